"""Learning what and where to transfer: meta networks weigh channels and pairs of layers (Jang et al. 2019)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hfdistill.anatomy import Anatomy
from hfdistill.functional.learned_transfer import weighted_feature_match
from hfdistill.losses.bilevel import BilevelLoss
from hfdistill.losses.layerwise import Layers, mapped_layers
from hfdistill.losses.method import Method, Paper
from hfdistill.losses.pooling import pooled_vector
from hfdistill.representations import Batch, Representations
from hfdistill.schedules import Schedule


class LearnedTransferLoss(BilevelLoss):
    """Match every chosen student layer with every chosen teacher layer, as much as helps the task.

    L = sum over pairs (m, n) of mean_rows lambda_mn sum_d w_md mean_tokens (r_mn(h_s^n) - h_t^m)_d^2, with the channel
    weights w_m = softmax(f_m(mean_tokens h_t^m)) and the pair weights lambda_mn = relu6(g_mn(mean_tokens h_t^m)). f
    starts at 0 (all channels alike), g at lambda = 1. r are linear maps that learn with the student; f and g learn one
    level up: from the task loss after `virtual_steps` steps of a virtual student on L alone and one on the task.

    Jang et al. 2019, Learning What and Where to Transfer, https://arxiv.org/abs/1905.05901, equations 1 to 4 and
    algorithm 1.

    Shapes: hidden states (B, N, D_student) and (B, N, D_teacher); for image models patches alone.

    Args:
        layers: the layers of this map are the candidates, each of the student's with each of the teacher's.
        candidates: at most so many layers of either side, evenly spaced; the paper has 4.
        virtual_steps: steps of the virtual student on L, 2 in the paper. Each costs a forward and a double backward
            pass: with 2 of them a training step takes about six times as long. 0 leaves f and g as they began.
        weight: see DistillationLoss; the paper's is 0.5.

    Raises:
        ValueError: `candidates` below 1, `virtual_steps` below 0; a layer map that does not fit the two depths.
    """

    method = Method(
        papers=(
            Paper("Jang et al.", 2019, "Learning What and Where to Transfer", "https://arxiv.org/abs/1905.05901"),
        ),
        evidence=("l2t_ww",),
        restrictions=(
            "the meta networks learn in DistillationTrainer alone",
            "second-order gradients: SDPA runs its plain form in the virtual steps, flash attention is not possible",
            "not with FSDP or DeepSpeed",
        ),
        unverified="virtual steps are plain SGD without momentum; the authors' have momentum and weight decay",
    )
    places = True

    def __init__(
        self,
        layers: Layers = "uniform",
        candidates: int = 4,
        virtual_steps: int = 2,
        weight: float | Schedule = 1.0,
    ) -> None:
        super().__init__(layers, weight=weight)
        if candidates < 1 or virtual_steps < 0:
            raise ValueError(
                f"expected candidates >= 1 and virtual_steps >= 0, got {candidates} and {virtual_steps}: there is a "
                "meta network for each pair of candidates, and a pass of the student for each step. Take 4 and 2."
            )
        self.layers = self.layers.without_embeddings()
        self.candidates = candidates
        self.virtual_steps = virtual_steps
        self.teacher_layers: tuple[int, ...] = ()
        self.meta = nn.ModuleList()  # f of each teacher layer, then g of each pair

    def paired(self, student: Anatomy, teacher: Anatomy) -> tuple[tuple[int, int], ...]:
        """Each candidate of the student's with each of the teacher's."""
        chosen = mapped_layers(self.layers, student, teacher)
        ours, theirs = (spaced(sorted({pair[side] for pair in chosen}), self.candidates) for side in (0, 1))
        self.teacher_layers = theirs
        return tuple((own, other) for other in theirs for own in ours)

    def bind(self, student: Anatomy, teacher: Anatomy) -> None:
        """Choose the candidates, and build the projectors and the meta networks."""
        super().bind(student, teacher)
        sizes = [(teacher.width_of(layer), teacher.width_of(layer)) for layer in self.teacher_layers]
        sizes += [(teacher.width_of(layer), 1) for _, layer in self.pairs]
        if [(part.in_features, part.out_features) for part in self.meta if isinstance(part, nn.Linear)] == sizes:
            return
        parts = [nn.Linear(*size) for size in sizes]
        for number, part in enumerate(parts):
            nn.init.zeros_(part.weight)
            nn.init.constant_(part.bias, float(number >= len(self.teacher_layers)))  # lambda begins at 1
        self.meta = nn.ModuleList(parts)

    def meta_networks(self) -> nn.Module:
        """F and g."""
        return self.meta

    def matching(self, student: Representations, teacher: Representations, batch: Batch) -> Tensor:
        """The weighted match of all pairs."""
        values = []
        for position, (ours, theirs) in enumerate(self.pairs):
            states = student.hidden_states[ours], teacher.hidden_states[theirs]
            state, target, mask = self.aligned(position, *states, batch.mask)
            pooled = pooled_vector(target.detach(), mask, "mean").to(next(self.meta.parameters()).dtype)  # (B, D)
            channels = self.meta[self.teacher_layers.index(theirs)](pooled).softmax(-1)  # (B, D)
            pairing = F.relu6(self.meta[len(self.teacher_layers) + position](pooled))[:, 0]  # (B,)
            values.append(weighted_feature_match(self.project(position, state), target, channels, pairing, mask))
        return torch.stack(values).sum()

    def compare(self, student: Tensor, teacher: Tensor, mask: Tensor | None) -> Tensor:
        """One pair with every channel alike, as training begins."""
        rows, width = teacher.shape[0], teacher.shape[-1]
        even, whole = teacher.new_full((rows, width), 1 / width), teacher.new_ones(rows)
        return weighted_feature_match(student, teacher, even, whole, mask)

    def count(self, batch: Batch) -> Tensor:
        """Rows."""
        return batch.row_count()


def spaced(layers: list[int], most: int) -> tuple[int, ...]:
    """At most so many of the layers, evenly spaced, the last among them."""
    count = min(most, len(layers))
    return tuple(layers[-(-(position + 1) * len(layers) // count) - 1] for position in range(count))
