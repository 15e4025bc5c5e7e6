"""Category structure: the centres of the classes in a batch, and the rows around them (Chen et al. 2020)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from hfdistill.anatomy import Anatomy
from hfdistill.functional.categories import category_compactness, category_inter, category_intra
from hfdistill.losses.base import choose
from hfdistill.losses.batch_relation import BatchRelationLoss
from hfdistill.losses.layerwise import Layers
from hfdistill.losses.method import Method, Paper
from hfdistill.representations import IGNORE_INDEX, Batch, Needs, Representations
from hfdistill.schedules import Schedule


class CategoryStructureLoss(BatchRelationLoss):
    """Match how the classes of a batch lie to each other, and the rows to the centres of their classes (CSKD).

    m_k is the mean of the rows of class k in the batch. L = sum over layers of inter mean over pairs of present
    classes of (cos(m_k, m_l)_student - cos(m_k, m_l)_teacher)^2 + intra mean over rows and entries of ((s - m_s) - (t
    - m_t))^2 + compactness mean over rows and entries of (s - m_s)^2, without a gradient through m_s in the last two.
    The student's features are projected where the widths differ; rows labelled -100 do not count.

    Chen et al. 2020, Improving Knowledge Distillation via Category Structure, ECCV,
    https://www.ecva.net/papers/eccv_2020/papers_ECCV/html/6056_ECCV_2020_paper.php, and the authors' code, where a
    1 x 1 convolution inside the student is the projector.

    Shapes: hidden states (B, N, D_student) and (B, N, D_teacher), of which one vector per row is taken, or logits (B,
    K); labels (B,).

    Args:
        layers: which student layer learns from which teacher layer; not read with target="logits".
        target: "features", or "logits".
        pooling: "mean" of the real tokens, "cls", or "last" real token.
        inter: weight of the structure between classes.
        intra: weight of the structure within classes.
        compactness: weight of the student's own rows around their centres, which no teacher has a part in.
        correct_only: for `intra`, take a side's centres over the rows that it classifies right, as the authors do; a
            row whose class has none is its own centre.
        reduction: "mean"; "paper" divides as the authors' code does once more, `inter` by the number of present
            classes, `intra` by the width: what its weights 0.04 and 0.002 are made for.
        gather: centres over the rows of all processes.
        weight: see DistillationLoss.

    Raises:
        ValueError: no classes, or different ones where logits are compared; a batch without one label per row; an
            unknown target, pooling or reduction; a layer map that does not fit the two depths.
    """

    projects: ClassVar[bool] = True
    method = Method(
        (
            Paper(
                "Chen et al.",
                2020,
                "Improving Knowledge Distillation via Category Structure",
                "https://www.ecva.net/papers/eccv_2020/papers_ECCV/html/6056_ECCV_2020_paper.php",
            ),
        ),
        ("cskd/inter", "cskd/intra"),
        (
            "one class label per row",
            "at least 2 classes in a batch: sample by class where there are many",
        ),
    )
    fewest_rows: int = 2

    def __init__(
        self,
        layers: Layers = ((-1, -1),),
        target: str = "features",
        pooling: str = "mean",
        inter: float = 1.0,
        intra: float = 1.0,
        compactness: float = 0.0,
        correct_only: bool = False,
        reduction: str = "mean",
        gather: bool = False,
        weight: float | Schedule = 1.0,
    ) -> None:
        super().__init__(layers, pooling, gather, weight)
        self.target = choose("target", target, ("features", "logits"))
        self.reduction = choose("reduction", reduction, ("mean", "paper"))
        self.inter = inter
        self.intra = intra
        self.compactness = compactness
        self.correct_only = correct_only

    def bind(self, student: Anatomy, teacher: Anatomy) -> None:
        """Resolve the layer map and build the projectors; refuse models without classes to speak of."""
        if min(student.classes, teacher.classes) == 1:
            raise ValueError(
                "CategoryStructureLoss needs classes, got a head with a single output (regression). Its centres are "
                "those of classes; use DistanceRelationLoss, which needs none."
            )
        if self.target == "features":
            super().bind(student, teacher)
        elif student.classes != teacher.classes:
            raise ValueError(
                f"CategoryStructureLoss compares logits class by class, got {student.classes} classes (student) and "
                f"{teacher.classes} (teacher). Give both the same classes, or compare target='features'."
            )

    @property
    def reads_classes(self) -> bool:
        """Always."""
        return True

    def needs(self) -> tuple[Needs, Needs]:
        """The hidden states of the mapped layers, logits where they are compared or judge what is correct."""
        logits = Needs(logits=self.target == "logits" or self.correct_only)
        student, teacher = super().needs()
        return student | logits, teacher | logits

    def forward(self, student: Representations, teacher: Representations, batch: Batch) -> Tensor:
        """Sum over the mapped layers, or the one value of the logits."""
        labels = batch.labels
        if labels is None or batch.valid_rows() is None:
            raise ValueError(
                "CategoryStructureLoss needs one class label per row, got "
                f"{'none' if labels is None else f'labels {tuple(labels.shape)} of {labels.dtype}'}. The centres of "
                "the classes depend on them; add labels, or use SimilarityPreservingLoss, which needs none."
            )
        labels, mask = self.all_rows(labels), self.real_rows(batch)
        rows = labels != IGNORE_INDEX if mask is None else (labels != IGNORE_INDEX) & mask
        if self.target == "logits":
            ours = self.all_rows(_one_per_row(student.taught_logits))
            theirs = self.all_rows(_one_per_row(teacher.logits).detach())
            shut_out = torch.isinf(ours) & (ours == theirs)  # a class at -inf on both sides has no part in it
            pairs = [(ours.masked_fill(shut_out, 0), theirs.masked_fill(shut_out, 0))]
        else:
            pairs = [self.vectors(position, student, teacher, batch) for position in range(len(self.pairs))]
        correct = [self._correct(side, labels) for side in (student, teacher)]
        values = [self.compare(ours, theirs, rows, labels, *correct) for ours, theirs in pairs]
        return torch.stack(values).sum()

    def compare(
        self,
        student: Tensor,
        teacher: Tensor,
        mask: Tensor | None,
        labels: Tensor | None = None,
        student_correct: Tensor | None = None,
        teacher_correct: Tensor | None = None,
    ) -> Tensor:
        """Weighted sum of the terms of one pair of layers; labels: (B,), None: all rows are of one class."""
        labels = student.new_zeros(len(student)) if labels is None else labels
        value = self.inter * category_inter(student, teacher, labels, mask, self.reduction)
        if self.intra:
            intra = category_intra(student, teacher, labels, mask, student_correct, teacher_correct, self.reduction)
            value = value + self.intra * intra
        return value + self.compactness * category_compactness(student, labels, mask)

    def count(self, batch: Batch) -> Tensor:
        """Labelled rows."""
        return batch.label_count()

    def _correct(self, shown: Representations, labels: Tensor) -> Tensor | None:
        return self.all_rows(_one_per_row(shown.logits).argmax(-1)) == labels if self.correct_only else None


def _one_per_row(logits: Tensor | None) -> Tensor:
    if logits is None or logits.dim() != 2:
        raise ValueError(
            "CategoryStructureLoss reads one vector of logits per row, got "
            f"{None if logits is None else tuple(logits.shape)}. Compare target='features' with "
            "correct_only=False for models that answer for tokens, or not at all."
        )
    return logits
