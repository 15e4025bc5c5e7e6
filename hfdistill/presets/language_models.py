"""Presets of the methods made for language models: DistilBERT, Patient KD, TinyBERT, LRC-BERT, MiniLM."""

from __future__ import annotations

from hfdistill.layer_map import LayerMap
from hfdistill.losses import (
    AttentionMapLoss,
    AttentionRelationLoss,
    ContrastiveRepresentationLoss,
    HiddenStateLoss,
    PatienceLoss,
    SoftTargetLoss,
    TaskLoss,
)
from hfdistill.losses.relation.attention_relation import MINILM, MINILM_V2
from hfdistill.objective import Objective
from hfdistill.presets.shares import check_share
from hfdistill.schedules import Piecewise


def distilbert(temperature: float = 2.0, soft: float = 5.0, hard: float = 2.0, cosine: float = 1.0) -> Objective:
    """DistilBERT's three losses: 5 T^2 KL + 2 task + 1 cosine of the last hidden states.

    Sanh et al. 2019, DistilBERT, https://arxiv.org/abs/1910.01108, section 2. Weights and T are those of the code's
    README. There the task is masked language modelling; here it is whatever the student is trained on.

    Args:
        temperature: T > 0.
        soft: weight of the soft targets.
        hard: weight of the labels.
        cosine: weight of the hidden states.
    """
    return Objective(
        task=TaskLoss(weight=hard),
        kd=SoftTargetLoss(temperature, weight=soft),
        hidden=HiddenStateLoss(LayerMap.explicit([(-1, -1)]), metric="cosine", weight=cosine),
    )


def pkd(temperature: float = 10.0, alpha: float = 0.5, beta: float = 100.0, layers: str = "skip") -> Objective:
    """Patient KD: (1 - alpha) task + alpha T^2 KL + beta patience, on the [CLS] of the intermediate layers.

    Sun et al. 2019, Patient Knowledge Distillation, https://arxiv.org/abs/1908.09355, equation 8; T, alpha and beta
    are the authors' best on SST-2 out of their grid (T 5, 10, 20; alpha 0.2, 0.5, 0.7; beta 10 to 1000). As in their
    code the KL is averaged over the classes too and the patience over all elements, which is what these weights mean.

    Args:
        temperature: T > 0.
        alpha: share of the soft targets, 0 to 1.
        beta: weight of the patience loss.
        layers: "skip" or "last", the paper's two maps.

    Raises:
        ValueError: `alpha` is no share.
    """
    check_share(alpha)
    layer_map = LayerMap.last(final=False) if layers == "last" else LayerMap.parse(layers)
    return Objective(
        task=TaskLoss(weight=1.0 - alpha),
        kd=SoftTargetLoss(temperature, reduction="elementmean", weight=alpha),
        patience=PatienceLoss(layer_map, weight=beta),
    )


def pkd_last(temperature: float = 10.0, alpha: float = 0.5, beta: float = 100.0) -> Objective:
    """Patient KD from the teacher's last layers (PKD-Last); see `pkd`.

    Sun et al. 2019, Patient Knowledge Distillation, https://arxiv.org/abs/1908.09355, section 3.2.

    Args:
        temperature: T > 0.
        alpha: share of the soft targets, 0 to 1.
        beta: weight of the patience loss.
    """
    return pkd(temperature, alpha, beta, layers="last")


def tinybert(switch: float = 0.75, temperature: float = 1.0) -> Objective:
    """TinyBERT's task distillation: hidden states, embeddings and attention scores first, then the prediction.

    Jiao et al. 2020, TinyBERT, https://arxiv.org/abs/1909.10351, equations 7 to 10: uniform layer map, one projection
    for all layers, soft cross-entropy at T = 1 in the second phase and no labels. Its phases are two runs of 10 to 50
    and of 3 epochs with learning rates of their own, on augmented data; here one run switches. Attention is compared
    over real tokens only (the code's mean over the padded square is AttentionMapLoss(reduction="tinybert")), and the
    soft loss is averaged over rows, not over classes as in the code, which only scales the second phase.

    Args:
        switch: share of the run after which the prediction is learnt instead, in (0, 1).
        temperature: T of the soft targets.
    """
    first, second = Piecewise({0.0: 1.0, switch: 0.0}), Piecewise({0.0: 0.0, switch: 1.0})
    return Objective(
        hidden=HiddenStateLoss("uniform", shared_projector=True, weight=first),
        attention=AttentionMapLoss("uniform", weight=first),
        kd=SoftTargetLoss(temperature, divergence="cross_entropy", scale_by_temperature=False, weight=second),
    )


def lrc_bert(
    switch: float = 0.8, temperature: float = 1.1, contrastive: float = 1.0, soft: float = 1.0, hard: float = 3.0
) -> Objective:
    """LRC-BERT: contrastive representations alone first, then with soft targets and labels.

    Fu et al. 2021, LRC-BERT, https://arxiv.org/abs/2012.07335, equations 3 to 6. The two stages are the paper's; the
    switch at 80 %, T = 1.1 and the weights 1 : 1 : 3 are from memory, not verified. Its gradient perturbation is an
    option of the trainer: DistillationTrainingArguments(embedding_perturbation=1.0).

    Args:
        switch: share of the run in which only the contrastive loss is learnt, in (0, 1).
        temperature: T of the soft targets.
        contrastive: weight of the contrastive loss.
        soft: weight of the soft targets in the second stage.
        hard: weight of the labels in the second stage.
    """
    return Objective(
        task=TaskLoss(weight=Piecewise({0.0: 0.0, switch: hard})),
        kd=SoftTargetLoss(temperature, weight=Piecewise({0.0: 0.0, switch: soft})),
        contrastive=ContrastiveRepresentationLoss("uniform", weight=contrastive),
    )


def minilm(version: int = 2, relation_heads: int | None = None, switch: float = 0.5) -> Objective:
    """MiniLM: the last layer's self-attention relations first, then the task.

    Wang et al. 2020, MiniLM, https://arxiv.org/abs/2002.10957 (version 1: attention distributions and value
    relations); Wang et al. 2021, MiniLMv2, https://arxiv.org/abs/2012.15828 (version 2: query, key and value
    relations). The papers distil on unlabelled text and fine-tune on labels afterwards; here one run switches from the
    one to the other.

    Args:
        version: 1 or 2.
        relation_heads: None takes the models' own number of heads; a number that divides both widths otherwise.
        switch: share of the run after which the labels are learnt instead, in (0, 1).

    Raises:
        ValueError: another version.
    """
    if version not in (1, 2):
        raise ValueError(f"MiniLM has the versions 1 and 2, got {version}.")
    relations = MINILM if version == 1 else MINILM_V2
    return Objective(
        task=TaskLoss(weight=Piecewise({0.0: 0.0, switch: 1.0})),
        relation=AttentionRelationLoss(
            relations=relations, relation_heads=relation_heads, weight=Piecewise({0.0: 1.0, switch: 0.0})
        ),
    )
