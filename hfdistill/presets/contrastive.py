"""Presets of contrast between training rows: CRD, CRCD, InfoNCE."""

from __future__ import annotations

from hfdistill.losses.relation.contrastive_memory import ContrastiveMemoryLoss
from hfdistill.losses.relation.contrastive_relation import ContrastiveRelationLoss
from hfdistill.losses.relation.in_batch_contrast import InBatchContrastLoss
from hfdistill.losses.response.soft_target import SoftTargetLoss
from hfdistill.losses.task import TaskLoss
from hfdistill.objective import Objective
from hfdistill.schedules import Piecewise


def crd(
    contrast: float = 0.8,
    soft: float = 0.0,
    temperature: float = 4.0,
    negatives: int = 16384,
    contrast_temperature: float = 0.07,
    pooling: str = "mean",
) -> Objective:
    """Contrastive representations with a memory: task + 0.8 CRD of the last hidden states, + soft T^2 KL if asked for.

    Tian et al. 2020, Contrastive Representation Distillation, https://arxiv.org/abs/1910.10699. Weights, K, the
    temperatures and the option of soft targets (weight 1) are those of the authors' code for images. It needs a
    training set whose rows can be numbered, of which K is at most the length less 1.

    Args:
        contrast: weight of the contrast.
        soft: weight of the soft targets; 0 leaves them out.
        temperature: T > 0 of the soft targets.
        negatives: K, rows of other classes that each row is contrasted with.
        contrast_temperature: T > 0 of the contrast.
        pooling: how a row becomes one vector: "mean" of the real tokens, "cls", or "last" real token.
    """
    terms = {
        "task": TaskLoss(),
        "crd": ContrastiveMemoryLoss(negatives, contrast_temperature, pooling=pooling, weight=contrast),
    }
    return Objective(**terms, **({"kd": SoftTargetLoss(temperature, weight=soft)} if soft else {}))


def crcd(
    contrast: float = 1.0,
    switch: float = 240 / 250,
    negatives: int = 500,
    contrast_temperature: float = 0.05,
    pooling: str = "mean",
) -> Objective:
    """Contrastive relations with a memory: task + CRCD of the last hidden states, which ends shortly before the run.

    Zhu et al. 2021, Complementary Relation Contrastive Distillation, https://arxiv.org/abs/2103.16367. K, T and the
    end after 240 of 250 epochs are those of the authors' code, which they call incomplete; its relation between
    gradients is left out. It needs a training set whose rows can be numbered.

    Args:
        contrast: weight of the contrast until the switch.
        switch: share of the run after which the labels alone are learnt, in (0, 1).
        negatives: K, rows of other classes that each row is contrasted with.
        contrast_temperature: T > 0 of the contrast.
        pooling: how a row becomes one vector: "mean" of the real tokens, "cls", or "last" real token.
    """
    weight = Piecewise({0.0: contrast, switch: 0.0})
    loss = ContrastiveRelationLoss(negatives, contrast_temperature, pooling=pooling, weight=weight)
    return Objective(task=TaskLoss(), crcd=loss)


def infonce(contrast: float = 1.0, temperature: float = 0.1, pooling: str = "mean", gather: bool = False) -> Objective:
    """Contrast within the batch, without a memory: task + InfoNCE of the last hidden states.

    Van den Oord et al. 2018, Contrastive Predictive Coding, https://arxiv.org/abs/1807.03748, of which the loss is;
    its use between teacher and student, the weight and T are our choice. Take batches of 64 rows or more.

    Args:
        contrast: weight of the contrast.
        temperature: T > 0 of the contrast.
        pooling: how a row becomes one vector: "mean" of the real tokens, "cls", or "last" real token.
        gather: contrast with the rows of all processes.
    """
    loss = InBatchContrastLoss(temperature, pooling=pooling, gather=gather, weight=contrast)
    return Objective(task=TaskLoss(), infonce=loss)
