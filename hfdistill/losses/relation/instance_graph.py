"""The instance relationship graph: rows, their distances, and how they move through the layers (Liu et al. 2019)."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

from hfdistill.anatomy import Anatomy
from hfdistill.functional.relation import instance_edges, layer_transformation
from hfdistill.functional.response import logit_mse
from hfdistill.losses.batch_relation import BatchRelationLoss
from hfdistill.losses.layerwise import Layers
from hfdistill.losses.method import Method, Paper
from hfdistill.representations import Batch, Needs, Representations
from hfdistill.schedules import Schedule


class InstanceGraphLoss(BatchRelationLoss):
    """Match the graph of the rows of a batch, and how it changes through the layers (IRG).

    Vertices V are the logits, edges E_ij = |e_i - e_j|^2 / max, transformations T_i = |e_i - e'_i|^2 / max between two
    neighbouring mapped layers of one network. L = vertices mean (V_student - V_teacher)^2 + edges mean (E_student -
    E_teacher)^2 + transformations mean (T_student - T_teacher)^2, the edges averaged over the mapped layers, the
    transformations over the steps between them. Edges and transformations are free of the widths; where the layers of
    one network differ in theirs (stages), neighbouring channels of the wider are averaged, as a reference code does.

    Liu et al. 2019, Knowledge Distillation via Instance Relationship Graph, CVPR,
    https://openaccess.thecvf.com/CVPR2019, layers one to one. The default weights are those of a reference code; the
    authors' code has another reduction.

    Shapes: hidden states (B, N, D_student) and (B, N, D_teacher), of which one vector per row is taken; logits (B, K).

    Args:
        layers: which student layer learns from which teacher layer; transformations need at least two pairs.
        pooling: "mean" of the real tokens, "cls", or "last" real token.
        embeddings: False leaves the embedding output out of the map.
        vertices: weight of the vertices; 0: logits are not looked at.
        edges: weight of the edges.
        transformations: weight of the transformations.
        detach_max: no gradient through the largest distance, as in the authors' code.
        gather: relate the rows of all processes.
        weight: see DistillationLoss.

    Raises:
        ValueError: different numbers of classes, or logits of tokens, with vertices; transformations with a single
            pair of layers; an unknown pooling; a layer map that does not fit the two depths.
    """

    method = Method(
        (
            Paper(
                "Liu et al.",
                2019,
                "Knowledge Distillation via Instance Relationship Graph",
                "https://openaccess.thecvf.com/CVPR2019",
            ),
        ),
        ("irg",),
        ("at least 2 rows in a batch", "depends on which rows share a batch: see gather"),
        "the paper's mode of one student layer to all teacher layers, which is left out",
    )
    fewest_rows: int = 2

    def __init__(
        self,
        layers: Layers = "uniform",
        pooling: str = "mean",
        embeddings: bool = False,
        vertices: float = 0.1,
        edges: float = 5.0,
        transformations: float = 5.0,
        detach_max: bool = True,
        gather: bool = False,
        weight: float | Schedule = 1.0,
    ) -> None:
        super().__init__(layers, pooling, gather, weight)
        if not embeddings:
            self.layers = self.layers.without_embeddings()
        self.vertices = vertices
        self.edges = edges
        self.transformations = transformations
        self.detach_max = detach_max

    def bind(self, student: Anatomy, teacher: Anatomy) -> None:
        """Resolve the layer map; refuse heads whose vertices, and maps whose layers, cannot be compared."""
        super().bind(student, teacher)
        if self.vertices and student.classes != teacher.classes:
            raise ValueError(
                f"InstanceGraphLoss compares logits as vertices, got {student.classes} classes (student) and "
                f"{teacher.classes} (teacher). Give both the same classes, or set vertices=0."
            )
        if self.transformations and len(self.pairs) < 2:
            raise ValueError(
                f"InstanceGraphLoss compares how rows move from one mapped layer to the next, got the map {self.pairs}"
                ". Map at least two layers, or set transformations=0."
            )

    def needs(self) -> tuple[Needs, Needs]:
        """The hidden states of the mapped layers, and logits if there are vertices."""
        logits = Needs(logits=bool(self.vertices))
        student, teacher = super().needs()
        return student | logits, teacher | logits

    def forward(self, student: Representations, teacher: Representations, batch: Batch) -> Tensor:
        """Weighted sum of the three terms."""
        rows = self.real_rows(batch)
        layers = [self.vectors(position, student, teacher, batch) for position in range(len(self.pairs))]
        edges = torch.stack([self.compare(ours, theirs, rows) for ours, theirs in layers]).mean()
        value = self.edges * edges
        if self.vertices:
            value = value + self.vertices * self._vertices(student.taught_logits, teacher.logits, rows)
        if self.transformations:
            moves = [
                layer_transformation(*_of_one_width(*ours), *_of_one_width(*theirs), rows, self.detach_max)
                for ours, theirs in (zip(*pair, strict=True) for pair in pairwise(layers))
            ]
            value = value + self.transformations * torch.stack(moves).mean()
        return value

    def compare(self, student: Tensor, teacher: Tensor, mask: Tensor | None) -> Tensor:
        """Squared difference of the edges of one pair of layers."""
        return instance_edges(student, teacher, mask, self.detach_max)

    def _vertices(self, student: Tensor | None, teacher: Tensor | None, rows: Tensor | None) -> Tensor:
        if student is None or teacher is None or student.dim() != 2:
            raise ValueError(
                "InstanceGraphLoss takes one vector of logits per row as its vertex, got "
                f"{None if student is None else tuple(student.shape)} (student) and "
                f"{None if teacher is None else tuple(teacher.shape)} (teacher). Set vertices=0 for models that "
                "answer for tokens, or not at all."
            )
        return logit_mse(self.all_rows(student), self.all_rows(teacher), mask=rows)


def _of_one_width(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Two layers' vectors (B, D) of one network, neighbouring channels of the wider averaged to the narrower's D."""
    width = min(first.shape[-1], second.shape[-1])
    narrow = (side if side.shape[-1] == width else F.adaptive_avg_pool1d(side, width) for side in (first, second))
    return next(narrow), next(narrow)
