"""Presets of image classifiers: a teacher's choice on a second head, and a teacher that is asked for long."""

from __future__ import annotations

from hfdistill.losses import SoftTargetLoss, TaskLoss
from hfdistill.losses.response.hard_label import HardLabelLoss
from hfdistill.objective import Objective
from hfdistill.presets.shares import check_share


def deit(alpha: float = 0.5) -> Objective:
    """DeiT, hard: (1 - alpha) task on the class head + alpha CE with the teacher's choice on the distillation head.

    Touvron et al. 2021, Training data-efficient image transformers & distillation through attention,
    https://arxiv.org/abs/2012.12877; alpha as in the authors' code. The student is a
    DeiTForImageClassificationWithTeacher, whose answer is the mean of both heads; where alpha is 0 or 1 that mean is
    learnt. A student with one head (ViT, BERT) learns both terms with it, and the log says so. The Trainer's
    label_smoothing_factor smooths the labels.

    Args:
        alpha: share of the distillation, 0 to 1.

    Raises:
        ValueError: `alpha` is no share.
    """
    check_share(alpha)
    return Objective(task=TaskLoss(weight=1.0 - alpha), kd=HardLabelLoss(alpha))


def deit_soft(alpha: float = 0.1, temperature: float = 3.0, reduction: str = "mean") -> Objective:
    """DeiT, soft: (1 - alpha) task on the class head + alpha T^2 KL on the distillation head.

    Touvron et al. 2021, Training data-efficient image transformers & distillation through attention,
    https://arxiv.org/abs/2012.12877. alpha = 0.1 and T = 3 are the paper's from memory, not verified; they were chosen
    with reduction="elementmean", under which the KL is smaller by the number of classes. A student with one head
    learns both terms with it, which is `kd`.

    Args:
        alpha: share of the distillation, 0 to 1.
        temperature: T > 0.
        reduction: "mean" over rows; "elementmean" over rows and classes, as in the authors' code.

    Raises:
        ValueError: an unknown reduction; `alpha` is no share.
    """
    check_share(alpha)
    kd = SoftTargetLoss(temperature, reduction=reduction, weight=alpha)
    return Objective(task=TaskLoss(weight=1.0 - alpha), kd=kd)


def funmatch(temperature: float = 1.0) -> Objective:
    """Function matching: KL(teacher || student) alone, without labels, for a long run on heavily mixed images.

    Beyer et al. 2022, Knowledge distillation: A good teacher is patient and consistent,
    https://arxiv.org/abs/2106.05237; read in the authors' code, where T = 1. Consistent is half of the method: both
    models see the same crop, mixed in the same way (DistillationTrainingArguments(mixup_alpha=..., cutmix_alpha=...)),
    so a stored answer of the teacher will not do. Patient is the other half: their runs took 1200 to 9600 epochs. A
    student with two heads (DeiT) learns the mean of both.

    Args:
        temperature: T > 0; the KL is multiplied by T^2.
    """
    return Objective(kd=SoftTargetLoss(temperature))
