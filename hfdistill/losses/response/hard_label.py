"""Hard distillation: the teacher's answer as the label (Touvron et al. 2021)."""

from __future__ import annotations

import logging

from torch import Tensor

from hfdistill.anatomy import Anatomy
from hfdistill.functional.classes import hard_label_cross_entropy
from hfdistill.losses.logits import LogitLoss, Targets
from hfdistill.losses.method import Method, Paper

logger = logging.getLogger(__name__)


class HardLabelLoss(LogitLoss):
    """Learn the teacher's most likely class as if it were the label.

    L = mean_rows CE(student logits, argmax_k teacher logits). Rows and tokens labelled -100 do not count; no other
    label is read. It is not 0 where student equals teacher: a student may always be surer.

    Touvron et al. 2021, Training data-efficient image transformers & distillation through attention (DeiT),
    https://arxiv.org/abs/2012.12877; read in the authors' code. Like there it is learnt by the head on the
    distillation token, where the student has one (DeiTForImageClassificationWithTeacher), and the labels by the class
    head. A student with one head learns both with it, which the log says. Their soft distillation is SoftTargetLoss(
    reduction="elementmean").

    Shapes: logits (B, K) or (B, N, K), the same on both sides.

    Args:
        weight: see DistillationLoss.

    Raises:
        ValueError: fewer than 2 classes, different numbers of classes or shapes.
    """

    method = Method(
        papers=(
            Paper(
                "Touvron et al.",
                2021,
                "Training data-efficient image transformers & distillation through attention",
                "https://arxiv.org/abs/2012.12877",
            ),
        ),
        evidence=("deit/hard",),
        restrictions=(
            "the same number of classes on both sides, in the same order",
            "at least 2 classes: with one output there is none to choose",
            "the paper's second head only where the student has it (DeiTForImageClassificationWithTeacher); else its "
            "one head learns labels and teacher",
        ),
    )

    def bind(self, student: Anatomy, teacher: Anatomy) -> None:
        """Refuse heads that cannot be compared; tell where labels and teacher share one head."""
        super().bind(student, teacher)
        if not student.distillation_head:
            logger.warning(
                "HardLabelLoss: %s has no distillation head, so its one head learns the teacher's choice, beside the "
                "labels where these are learnt. DeiTForImageClassificationWithTeacher has a second head for it.",
                student.family,
            )

    def compare(self, student: Tensor, teacher: Tensor, targets: Targets) -> Tensor:
        """The cross-entropy with the teacher's choice."""
        return hard_label_cross_entropy(student, teacher, targets.mask)
