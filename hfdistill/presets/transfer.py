"""Presets of what moves between the layers of two models: kernel alignment, CKD, MobileBERT, DynaBERT."""

from __future__ import annotations

from hfdistill.layer_map import LayerMap
from hfdistill.losses import AttentionMapLoss, HiddenStateLoss, SoftTargetLoss, TaskLoss
from hfdistill.losses.feature.feature_map import FeatureMapLoss
from hfdistill.losses.feature.kernel_alignment import KernelAlignmentLoss
from hfdistill.losses.relation.context import LayerRelationLoss, TokenRelationLoss
from hfdistill.objective import Objective
from hfdistill.presets.shares import check_share
from hfdistill.schedules import Piecewise


def cka(temperature: float = 2.0, alpha: float = 0.5, beta: float = 1.0, debiased: bool = False) -> Objective:
    """Kernel alignment beside soft targets: (1 - alpha) task + alpha T^2 KL + beta (1 - CKA) of the tokens' states.

    Kornblith et al. 2019, Similarity of Neural Network Representations Revisited, https://arxiv.org/abs/1905.00414;
    as a distillation loss Zhou et al. 2024, https://arxiv.org/abs/2401.11824, on image features and uncentred. CKA is
    of each pair of layers of the uniform map; layers, T and weights are our choice, no paper's.

    Args:
        temperature: T > 0.
        alpha: share of the soft targets, 0 to 1.
        beta: weight of the alignment, which is at most 1 per pair of layers.
        debiased: for batches with fewer real tokens than the models are wide.

    Raises:
        ValueError: `alpha` is no share.
    """
    check_share(alpha)
    return Objective(
        task=TaskLoss(weight=1.0 - alpha),
        kd=SoftTargetLoss(temperature, weight=alpha),
        alignment=KernelAlignmentLoss(debiased=debiased, weight=beta),
    )


def ckd(
    temperature: float = 4.0, alpha: float = 0.9, pair: float = 100.0, angle: float = 1000.0, window: int | None = 21
) -> Objective:
    """Contextual KD: (1 - alpha) task + alpha soft + pair (word + layer distances) + angle (word + layer angles).

    Park et al. 2021, Distilling Linguistic Context for Language Model Compression (CKD),
    https://arxiv.org/abs/2109.08359. T, alpha and the weights are the authors' for SST-2, out of T 1 to 4, alpha 0.7
    or 0.9 and weights of 0.1 to 1000 over the GLUE tasks (CoLA: T 3, alpha 0.7, 1 and 10). As in their code the soft
    loss is a cross-entropy without T^2. That code leaves the labels out (alpha=1) and, by a misspelt name, takes its
    layer relations with weight 1 unless told otherwise: what the paper's results were made with is not certain.

    Args:
        temperature: T > 0.
        alpha: share of the soft targets, 0 to 1.
        pair: weight of the distances, between tokens and between layers.
        angle: weight of the angles, between tokens and between layers.
        window: tokens around each whose angles are compared, odd; None: all.

    Raises:
        ValueError: `alpha` is no share; a student of one layer, which has too few to relate.
    """
    check_share(alpha)
    return Objective(
        task=TaskLoss(weight=1.0 - alpha),
        kd=SoftTargetLoss(temperature, divergence="cross_entropy", scale_by_temperature=False, weight=alpha),
        word_pair=TokenRelationLoss("uniform", "distance", weight=pair),
        word_angle=TokenRelationLoss("uniform", "angle", window, weight=angle),
        layer_pair=LayerRelationLoss("uniform", "distance", weight=pair),
        layer_angle=LayerRelationLoss("uniform", "angle", weight=angle),
    )


def mobilebert(
    switch: float = 0.32,
    alpha: float = 0.5,
    temperature: float = 1.0,
    feature_map: float = 100.0,
    mean: float = 5000.0,
    variance: float = 5.0,
    attention: float = 1.0,
) -> Objective:
    """MobileBERT's progressive transfer: layer by layer first, then (1 - alpha) task + alpha soft.

    Sun et al. 2020, MobileBERT, https://arxiv.org/abs/2004.02984. Factors, alpha and the switch (after 240,000 of
    740,000 steps) are those of the authors' command line. First the layers take turns at matching feature maps, their
    means and variances, and attention (cross-entropy of scores); then the soft targets are a cross-entropy without
    T^2. There the task is masked language modelling, and T multiplies the teacher's logits alone. Made for a student
    as deep as its teacher, with as many heads and, by its bottlenecks, states as wide: where widths differ, one
    projection for all layers, ours, takes their place.

    Args:
        switch: share of the run in which the layers take turns, in (0, 1).
        alpha: share of the soft targets afterwards, 0 to 1.
        temperature: T of the soft targets.
        feature_map: weight of the normalised feature maps.
        mean: weight of the feature maps' means.
        variance: weight of the feature maps' variances.
        attention: weight of the attention.

    Raises:
        ValueError: `alpha` is no share; `switch` lies outside the run.
    """
    check_share(alpha)

    def first(weight: float) -> Piecewise:
        return Piecewise({0.0: weight, switch: 0.0})

    soft = SoftTargetLoss(
        temperature,
        divergence="cross_entropy",
        scale_by_temperature=False,
        weight=Piecewise({0.0: 0.0, switch: alpha}),
    )
    return Objective(
        feature_map=FeatureMapLoss(progressive=switch, shared_projector=True, weight=first(feature_map)),
        feature_mean=FeatureMapLoss(part="mean", progressive=switch, weight=first(mean)),
        feature_variance=FeatureMapLoss(part="variance", progressive=switch, weight=first(variance)),
        attention=AttentionMapLoss(divergence="cross_entropy", progressive=switch, weight=first(attention)),
        task=TaskLoss(weight=Piecewise({0.0: 0.0, switch: 1.0 - alpha})),
        kd=soft,
    )


def dynabert_width(soft: float = 1.0, hidden: float = 0.1) -> Objective:
    """DynaBERT's first stage, for one width: soft cross-entropy + 0.1 hidden states of all layers and the embeddings.

    Hou et al. 2020, DynaBERT, https://arxiv.org/abs/2004.04037, with the weights and, for the cross-entropy, the mean
    over the classes too of the authors' code; no labels. The teacher is the full fine-tuned model. This is the
    objective alone: in the paper one network holds students of four widths, heads and neurons ordered by importance,
    and each step adds the gradients of all four.

    Args:
        soft: weight of the soft targets.
        hidden: weight of the hidden states.
    """
    return _dynabert(LayerMap.uniform(), soft, hidden)


def dynabert_depth(depth_multiplier: float = 0.5, soft: float = 1.0, hidden: float = 1.0) -> Objective:
    """DynaBERT's second stage, for one depth: soft cross-entropy + hidden states of the layers that it keeps.

    Hou et al. 2020, DynaBERT, https://arxiv.org/abs/2004.04037, as `dynabert_width`. The teacher is the width-adaptive
    model of the first stage at the student's width and in full depth. The objective alone, for a student that has
    round(depth_multiplier * depth of the teacher) layers; the paper trains depths 1, 0.75 and 0.5 in one network.

    Args:
        depth_multiplier: share of the teacher's layers that the student has.
        soft: weight of the soft targets.
        hidden: weight of the hidden states.

    Raises:
        ValueError: `depth_multiplier` lies outside (0, 1] or does not give the student's depth.
    """
    return _dynabert(LayerMap.dynabert(depth_multiplier), soft, hidden)


def _dynabert(layers: LayerMap, soft: float, hidden: float) -> Objective:
    return Objective(
        kd=SoftTargetLoss(
            1.0, divergence="cross_entropy", reduction="elementmean", scale_by_temperature=False, weight=soft
        ),
        hidden=HiddenStateLoss(layers, weight=hidden),
    )
