"""Features of auxiliary classifiers at several depths of both models (Zhang L. et al. 2020, TOFD)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hfdistill.anatomy import Anatomy
from hfdistill.functional.matching import task_oriented
from hfdistill.functional.response import soft_target_cross_entropy
from hfdistill.losses.base import DistillationLoss, choose
from hfdistill.losses.layerwise import Layers, layer_sets, mapped_layers, pair_widths, parse_layers
from hfdistill.losses.logits import TOKEN_HEADS
from hfdistill.losses.method import Method, Paper
from hfdistill.losses.pooling import POOLINGS, pooled_vector, settled_poolings
from hfdistill.representations import IGNORE_INDEX, Batch, Needs, Representations
from hfdistill.schedules import Linear, Schedule, as_schedule

_NOT_OF_ROWS = (*TOKEN_HEADS, "ForQuestionAnswering")


class TaskOrientedLoss(DistillationLoss):
    """Match the features that auxiliary classifiers make of several layers, so that what the task needs is matched.

    L = sum over pairs of CE(z_s, y) + H(softmax(z_t / T), softmax(z_s / T)) + alpha ||W f_s - f_t||_F
    + beta (||W W^T - I||_F + ||W^T W - I||_F) + CE(z_t, y), with f an adapter (linear, GELU) of one vector per row, z
    a linear head on f, and W linear. The cross-entropy H has no T^2. Norms are not squared and span the batch: their
    share grows with sqrt(rows). Adapters, heads and W belong to the loss and are thrown away with it.

    Zhang et al. 2020, Task-Oriented Feature Distillation,
    https://proceedings.neurips.cc/paper/2020/hash/a96b65a721e561e1e3de768ac819ffbb-Abstract.html, with the authors'
    code. There the teacher's adapters (convolutions) and heads are trained beforehand; here by the last term, in the
    same run: they see the labels only, and nothing of it reaches the teacher.

    Shapes: hidden states (B, N, D_student) and (B, N, D_teacher), of which one vector per row is taken; labels (B,).

    Args:
        layers: the depths, which student layer learns from which teacher layer.
        temperature: T > 0, or a Schedule; the code's goes from 1 to 4 over the run.
        alpha: factor of the features' distance, at least 0.
        beta: factor of the maps' distance from orthogonal ones, at least 0; both its terms are 0 only where the widths
            agree.
        pooling: how the tokens of a row become one vector: "cls", "mean" of the real tokens, or "last" real token.
        weight: see DistillationLoss.

    Raises:
        ValueError: an unknown pooling, a factor below 0; a model that classifies no rows; a batch without class labels
            of its rows; a layer map that does not fit the two depths.
    """

    same_tokens: ClassVar[bool] = False
    method: ClassVar[Method | None] = Method(
        papers=(
            Paper(
                "Zhang et al.",
                2020,
                "Task-Oriented Feature Distillation",
                "https://proceedings.neurips.cc/paper/2020/hash/a96b65a721e561e1e3de768ac819ffbb-Abstract.html",
            ),
        ),
        evidence=("tofd",),
        restrictions=("class labels of rows", "depends on which rows share a batch"),
        unverified="linear adapters instead of convolutions, and teacher heads trained in the same run, are ours",
    )

    def __init__(
        self,
        layers: Layers = "uniform(embeddings=False)",
        temperature: float | Schedule = Linear(1.0, 4.0),  # noqa: B008 a schedule is a value
        alpha: float = 0.05,
        beta: float = 0.03,
        pooling: str = "mean",
        weight: float | Schedule = 1.0,
    ) -> None:
        super().__init__(weight)
        if not (alpha >= 0 and beta >= 0):
            raise ValueError(
                f"alpha and beta must be at least 0, got {alpha} and {beta}: below 0 features would part. The paper "
                "has 0.05 and 0.03."
            )
        self.layers = parse_layers(layers)
        self.temperature = as_schedule(temperature)
        self.alpha, self.beta = alpha, beta
        self.pooling = choose("pooling", pooling, tuple(POOLINGS))
        self.poolings = (pooling, pooling)
        self.pairs: tuple[tuple[int, int], ...] = ()
        self.depths = nn.ModuleList()

    def bind(self, student: Anatomy, teacher: Anatomy) -> None:
        """Resolve the layer map and build the classifiers; refuse what does not classify rows."""
        if student.classes < 2 or student.head in _NOT_OF_ROWS:
            raise ValueError(
                f"TaskOrientedLoss needs a student that classifies rows into at least 2 classes, got "
                f"{student.head or 'a head'} with {student.classes}: its auxiliary classifiers learn the labels of "
                "rows. Use HiddenStateLoss, which needs no labels."
            )
        self.pairs = mapped_layers(self.layers, student, teacher)
        self.poolings = settled_poolings(self.pooling, student, teacher)
        wanted = [(*widths, student.classes) for widths in pair_widths(self.pairs, student, teacher)]
        if [depth.sizes for depth in self._built()] != wanted:
            self.depths = nn.ModuleList(_Depth(*sizes) for sizes in wanted)

    @property
    def reads_classes(self) -> bool:
        """Always."""
        return True

    def needs(self) -> tuple[Needs, Needs]:
        """The hidden states of the mapped layers."""
        student, teacher = layer_sets(self.pairs)
        return Needs(hidden_states=student), Needs(hidden_states=teacher)

    def forward(self, student: Representations, teacher: Representations, batch: Batch) -> Tensor:
        """The sum over all depths."""
        labels, temperature = self._labels(batch), self.temperature(batch.progress)
        valid = labels != IGNORE_INDEX
        masks = batch.mask, batch.mask if batch.teacher_mask is None else batch.teacher_mask
        terms = []
        for (ours, theirs), depth in zip(self.pairs, self._built(), strict=True):
            states = student.hidden_states[ours], teacher.hidden_states[theirs].detach()
            vectors = [pooled_vector(*side) for side in zip(states, masks, self.poolings, strict=True)]
            # 0 times a NaN of padding would be a NaN in the adapters' gradients
            feature, target = depth(*(vector.masked_fill(~valid[:, None], 0.0) for vector in vectors))
            answer, goal = depth.student_head(feature), depth.teacher_head(target)
            terms += [_cross_entropy(answer, labels), _cross_entropy(goal, labels)]
            terms.append(soft_target_cross_entropy(answer, goal, temperature, valid))
            # one depth at a time: (1, B, D_teacher) twice and (1, D_teacher, D_student)
            parts = depth.map(feature)[None], target[None], depth.map.weight[None]
            terms.append(task_oriented(*parts, self.alpha, self.beta, valid))
        return torch.stack(terms).sum()

    def count(self, batch: Batch) -> Tensor:
        """Rows that are labelled and hold a real token."""
        return batch.row_count() if batch.labels is None else (self._labels(batch) != IGNORE_INDEX).sum().float()

    def _labels(self, batch: Batch) -> Tensor:
        """(B,) classes, -100 for rows that do not count."""
        labels = batch.labels
        if labels is None or labels.is_floating_point() or labels.shape != (batch.size,):
            raise ValueError(
                f"TaskOrientedLoss needs one class label per row, got {'none' if labels is None else 'other labels'} "
                "in the batch: its auxiliary classifiers learn them. Add labels to the data set, or leave it out."
            )
        real = batch.real_rows()
        return labels if real is None else labels.masked_fill(~real, IGNORE_INDEX)

    def _built(self) -> list[_Depth]:
        return [module for module in self.depths if isinstance(module, _Depth)]


class _Depth(nn.Module):
    """Adapter and head of both sides, and the map between their features, of one pair of layers."""

    def __init__(self, student_width: int, teacher_width: int, classes: int) -> None:
        super().__init__()
        self.sizes = (student_width, teacher_width, classes)
        self.student_adapter = nn.Linear(student_width, student_width)
        self.teacher_adapter = nn.Linear(teacher_width, teacher_width)
        self.student_head = nn.Linear(student_width, classes)
        self.teacher_head = nn.Linear(teacher_width, classes)
        self.map = nn.Linear(student_width, teacher_width, bias=False)

    def forward(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors (B, D_student) and (B, D_teacher) as features of the same shapes."""
        feature, target = (
            F.gelu(adapter(vectors.to(adapter.weight.dtype)))
            for adapter, vectors in ((self.student_adapter, student), (self.teacher_adapter, teacher))
        )
        return feature, target


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    logits = logits if logits.dtype == torch.float64 else logits.float()
    total = F.cross_entropy(logits, labels.long(), ignore_index=IGNORE_INDEX, reduction="sum")
    return total / (labels != IGNORE_INDEX).sum().clamp(min=1)
