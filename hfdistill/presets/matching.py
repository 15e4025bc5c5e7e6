"""Presets of what is matched with what: knowledge review, attended layers and channels, assigned channels, TOFD."""

from __future__ import annotations

from hfdistill.losses.feature.attended_layer import AttendedLayerLoss
from hfdistill.losses.feature.attentive_channel import AttentiveChannelLoss
from hfdistill.losses.feature.channel_matching import ChannelMatchingLoss
from hfdistill.losses.feature.review import ReviewLoss
from hfdistill.losses.feature.task_oriented import TaskOrientedLoss
from hfdistill.losses.response.soft_target import SoftTargetLoss
from hfdistill.losses.task import TaskLoss
from hfdistill.objective import Objective
from hfdistill.schedules import Linear

_EVERY_LAYER = "uniform(embeddings=False)"


def reviewkd(
    review: float = 1.0, warmup: float = 20 / 240, pooled: str = "cls", layers: str = _EVERY_LAYER
) -> Objective:
    """Knowledge review: task + w review, w growing from 0 to 1 while the run warms up.

    Chen et al. 2021, Distilling Knowledge via Knowledge Review, https://arxiv.org/abs/2104.09044. The authors' scripts
    have weights of 0.6 to 8, by the pair of models, and warm up in 20 of 240 epochs (CIFAR-100; 1 of 100 on ImageNet).
    As there, a vector per row is the deepest level; here every student layer is a level.

    Args:
        review: weight of the review after the warm-up.
        warmup: share of the run in which it grows to that, 0 to 1; 0 for none.
        pooled: the vector per row, "cls", "mean" or "last"; "none" leaves it out.
        layers: the levels.

    Raises:
        ValueError: `warmup` lies outside the run; an unknown `pooled`.
    """
    weight = review if warmup == 0 else Linear(0.0, review, finish=warmup)
    return Objective(task=TaskLoss(), review=ReviewLoss(layers, pooled, weight=weight))


def afd(
    temperature: float = 4.0,
    soft: float = 0.9,
    attended: float = 200.0,
    norm: str = "layer",
    layers: str | None = None,
) -> Objective:
    """Show, attend and distil: task + 0.9 T^2 KL + 200 attended layers, every student layer with every teacher layer.

    Ji et al. 2021, Show, Attend and Distill, https://arxiv.org/abs/2102.02973, with the weights and T of the authors'
    code. Its maps are unit vectors over the tokens, so that the loss falls as 1 / tokens; the weight was chosen on
    images of 64 to 1024 places.

    Args:
        temperature: T > 0.
        soft: weight of the soft targets.
        attended: weight of the attended layers.
        norm: "layer", or the paper's "batch", for 16 rows or more in a micro-batch.
        layers: the map whose layers take part; None: every layer of both models, as in the paper.
    """
    return Objective(
        task=TaskLoss(),
        kd=SoftTargetLoss(temperature, weight=soft),
        attended=AttendedLayerLoss(layers, norm=norm, weight=attended),
    )


def afds(attentive: float = 500.0, ratio: float = 1.0, layers: str = "explicit([(-1, -1)])") -> Objective:
    """Attentive feature distillation: task + 500 attentive channels of the last layer.

    Wang et al. 2020, Pay Attention to Features, Transfer Learn Faster CNNs,
    https://openreview.net/forum?id=ryxyCeHtPB. Weight, ratio and layer are those of the Knowledge-Distillation-Zoo for
    CIFAR-10, not verified against the paper, whose channel selection is left out.

    Args:
        attentive: weight of the channels.
        ratio: inner width of the attention, a share of the teacher's width.
        layers: which student layer learns from which teacher layer.
    """
    return Objective(task=TaskLoss(), attentive=AttentiveChannelLoss(layers, ratio, weight=attentive))


def mgd(
    temperature: float = 1.5,
    soft: float = 1.0,
    matching: float = 1.0,
    reduction: str = "absolute_max",
    update_every: int = 2000,
    cost_batches: int = 50,
    layers: str = _EVERY_LAYER,
) -> Objective:
    """Matching guided distillation with soft targets: task + T^2 KL + channels, assigned anew as the student changes.

    Yue et al. 2020, Matching Guided Distillation, https://arxiv.org/abs/2008.09958; T and the weight of the soft
    targets are those of the authors' code, in which they are an option. It sums squares before a ReLU, halves the
    weight of each shallower level and divides by 10^4: numbers for convolutional networks. Here it is a mean over
    tokens and channels, and the weight 1 is ours. The authors assign anew every epoch or two.

    Args:
        temperature: T > 0.
        soft: weight of the soft targets; 0 leaves them out.
        matching: weight of the channels.
        reduction: "absolute_max", "max" or "sparse".
        update_every: training batches between two assignments.
        cost_batches: how many of them an assignment is made from.
        layers: which student layer learns from which teacher layer.
    """
    return Objective(
        task=TaskLoss(),
        kd=SoftTargetLoss(temperature, weight=soft),
        matching=ChannelMatchingLoss(layers, reduction, update_every, cost_batches, weight=matching),
    )


def tofd(
    temperature: float = 3.0, alpha: float = 0.05, beta: float = 0.03, pooling: str = "cls", layers: str = _EVERY_LAYER
) -> Objective:
    """Task-oriented feature distillation: task + soft cross-entropy, of the model itself and of auxiliary classifiers.

    Zhang et al. 2020, Task-Oriented Feature Distillation,
    https://proceedings.neurips.cc/paper/2020/hash/a96b65a721e561e1e3de768ac819ffbb-Abstract.html, with the numbers of
    the authors' code. The classifiers also match features (alpha) through maps that stay near orthogonal (beta). T
    grows from 1 to 1 + temperature over the run, and there is no T^2. In the paper four classifiers, the model's own
    among them; here one at every student layer besides it.

    Args:
        temperature: how far T grows above 1, at least 0.
        alpha: factor of the features' distance.
        beta: factor of the maps' distance from orthogonal ones.
        pooling: vector per row, "cls", "mean" or "last".
        layers: which student layer learns from which teacher layer.
    """
    growing = Linear(1.0, 1.0 + temperature)
    return Objective(
        task=TaskLoss(),
        kd=SoftTargetLoss(growing, divergence="cross_entropy", scale_by_temperature=False),
        oriented=TaskOrientedLoss(layers, growing, alpha, beta, pooling),
    )
