"""Presets of activation knowledge: FitNets, AT, FSP, NST, VID, KPN, CWD, structured distillation."""

from __future__ import annotations

from dataclasses import dataclass

from hfdistill.losses.feature.activation_attention import ActivationAttentionLoss
from hfdistill.losses.feature.channel import ChannelLoss
from hfdistill.losses.feature.flow import FlowLoss
from hfdistill.losses.feature.hidden_state import HiddenStateLoss
from hfdistill.losses.feature.knowledge_projection import KnowledgeProjectionLoss
from hfdistill.losses.feature.neuron_selectivity import NeuronSelectivityLoss
from hfdistill.losses.feature.variational import VariationalLoss
from hfdistill.losses.relation.holistic import HolisticLoss
from hfdistill.losses.relation.token_pairs import TokenPairLoss
from hfdistill.losses.response.soft_target import SoftTargetLoss
from hfdistill.losses.task import TaskLoss
from hfdistill.objective import Objective
from hfdistill.schedules import Linear, Piecewise, Schedule

_EVERY_LAYER = "uniform(embeddings=False)"


@dataclass(frozen=True)
class _After(Schedule):
    """0 before `begin`, then what another schedule says."""

    begin: float
    schedule: Schedule

    def at(self, progress: float) -> float:
        return self.schedule.at(progress) if progress >= self.begin else 0.0


def fitnets(
    switch: float = 0.5, temperature: float = 3.0, soft: float = 4.0, last_soft: float = 1.0, layers: str = "skip"
) -> Objective:
    """FitNets: hints for the intermediate layers first, then task + lambda soft targets, lambda falling from 4 to 1.

    Romero et al. 2015, FitNets, https://arxiv.org/abs/1412.6550, equations 2 and 3; T = 3 and the fall of lambda are
    from memory, not verified. The paper has one hint, in the middle, and trains only the layers below it; here all
    intermediate layers have one, of which a student of two layers has one too. Its stages are two runs; here one run
    switches. Soft targets are cross-entropies without T^2, as in equation 2; with hints alone their weight (the
    paper's half sum of squares, here a mean) only scales the first stage.

    Args:
        switch: share of the run after which soft targets and labels are learnt instead, in (0, 1).
        temperature: T > 0.
        soft: weight of the soft targets at the switch, the labels' being 1.
        last_soft: their weight at the end.
        layers: which layers have hints; "explicit([(2, 6)])" is the paper's one, for depths of 4 and 12.
    """
    return Objective(
        task=TaskLoss(weight=Piecewise({0.0: 0.0, switch: 1.0})),
        kd=SoftTargetLoss(
            temperature,
            divergence="cross_entropy",
            scale_by_temperature=False,
            weight=_After(switch, Linear(soft, last_soft, begin=switch)),
        ),
        hint=HiddenStateLoss(layers, weight=Piecewise({0.0: 1.0, switch: 0.0})),
    )


def at(beta: float = 1000.0, layers: str = _EVERY_LAYER) -> Objective:
    """Attention transfer: task + beta times the difference of activation maps, at every layer.

    Zagoruyko and Komodakis 2017, Paying More Attention to Attention, https://arxiv.org/abs/1612.03928. The loss is
    the one of the authors' code, the mean over tokens of squared differences, and 1000 its weight; without soft
    targets, as in RepDistiller. The mean falls as rows get longer.

    Args:
        beta: weight of the attention.
        layers: the layer map.
    """
    return Objective(task=TaskLoss(), attention=ActivationAttentionLoss(layers, weight=beta))


def fsp(beta: float = 50.0, switch: float = 1 / 9) -> Objective:
    """FSP, the flow of the solution procedure: the flows alone first, then the task alone.

    Yim et al. 2017, A Gift from Knowledge Distillation,
    https://openaccess.thecvf.com/content_cvpr_2017/html/Yim_A_Gift_From_CVPR_2017_paper.html. The two stages are the
    paper's, two runs there; the weight of 50, on the mean over entries, and 30 epochs before 240 of the task are
    RepDistiller's.

    Args:
        beta: weight of the flows.
        switch: share of the run after which the task is learnt instead, in (0, 1).
    """
    return Objective(
        task=TaskLoss(weight=Piecewise({0.0: 0.0, switch: 1.0})),
        flow=FlowLoss(weight=Piecewise({0.0: beta, switch: 0.0})),
    )


def nst(beta: float = 50.0, kernel: str = "polynomial", layers: str = _EVERY_LAYER) -> Objective:
    """Neuron selectivity transfer: task + beta times the discrepancy of channels, at every layer.

    Huang and Wang 2017, Like What You Like, https://arxiv.org/abs/1707.01219; the weight of 50 is RepDistiller's.

    Args:
        beta: weight of the selectivity.
        kernel: "polynomial", "linear" or "gaussian".
        layers: the layer map.
    """
    return Objective(task=TaskLoss(), selectivity=NeuronSelectivityLoss(layers, kernel, weight=beta))


def vid(beta: float = 1.0, layers: str = _EVERY_LAYER) -> Objective:
    """Variational information distillation: task + beta times the predictions of the teacher's states.

    Ahn et al. 2019, Variational Information Distillation, https://arxiv.org/abs/1904.05835; the weight of 1 is
    RepDistiller's.

    Args:
        beta: weight of the predictions.
        layers: the layer map.
    """
    return Objective(task=TaskLoss(), information=VariationalLoss(layers, weight=beta))


def kpn(alpha: float = 1.0, selection: float = 0.5, end: float = 0.9) -> Objective:
    """Knowledge projection: task + alpha times the teacher's projected states, without them at the end.

    Zhi et al. 2017, Knowledge Projection, https://arxiv.org/abs/1710.09505. That layers are chosen in training and
    that the projection is dropped at the end is the paper's; all numbers are ours, none is verified.

    Args:
        alpha: weight of the projection.
        selection: share of the run within which one pair of layers is left of nine.
        end: share of the run after which the task is learnt alone, in (0, 1].
    """
    return Objective(
        task=TaskLoss(),
        projection=KnowledgeProjectionLoss(selection=selection, weight=Piecewise({0.0: alpha, end: 0.0})),
    )


def cwd(beta: float = 50.0, temperature: float = 4.0, knowledge: str = "hidden") -> Objective:
    """Channel-wise distillation: task + beta T^2 KL of each channel's distribution over the tokens.

    Shu et al. 2020, Channel-wise Knowledge Distillation for Dense Prediction, https://arxiv.org/abs/2011.13256. T = 4
    is the authors'; 50 for features is from memory, not verified.

    Args:
        beta: weight of the channels; the authors' is 3 for logits.
        temperature: T > 0.
        knowledge: "hidden", the last layer's states, or "logits" of a token-level head.
    """
    return Objective(task=TaskLoss(), channel=ChannelLoss(knowledge=knowledge, temperature=temperature, weight=beta))


def structured(pixel: float = 10.0, pair: float = 1.0, holistic: float = 0.1) -> Objective:
    """Structured distillation: task + pixel KL + pair x similarities of tokens + holistic x a critic's gap.

    Liu et al. 2019, Structured Knowledge Distillation for Semantic Segmentation, https://arxiv.org/abs/1903.04197,
    with the authors' three weights. The pixel-wise term is that of soft targets with T = 1, over tokens
    for token-level heads and over rows for the others; the similarities are those of the last layer. The critic scores
    whole rows, which is ours; it takes row-level classifiers only.

    Args:
        pixel: weight of the soft targets.
        pair: weight of the similarities.
        holistic: weight of the critic; 0 leaves it out, as token-level heads must.
    """
    return Objective(
        task=TaskLoss(),
        pixel=SoftTargetLoss(temperature=1.0, weight=pixel),
        pair=TokenPairLoss(weight=pair),
        **({"holistic": HolisticLoss(weight=holistic)} if holistic else {}),
    )
