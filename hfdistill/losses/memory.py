"""A memory of every training row, and losses that contrast a batch with rows drawn from it."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn

from hfdistill.anatomy import Anatomy
from hfdistill.functional.contrastive import log_constant, noise_contrast, remembered
from hfdistill.functional.reductions import unit
from hfdistill.losses.base import choose
from hfdistill.losses.embedding import EmbeddedLoss, above_zero
from hfdistill.losses.gathering import gathered_rows
from hfdistill.losses.layerwise import Layers
from hfdistill.representations import IGNORE_INDEX, Batch
from hfdistill.schedules import Schedule

_MANY = 2**62  # so far above any number of rows that a remainder of it is as good as uniform


class MemoryBank(nn.Module):
    """What both models last showed of each training row, and the constants of their similarities.

    Buffers: written in training, in every checkpoint, never trained. Two banks hold 8 · rows · D bytes.

    Args:
        rows: length of the training set.
        dimension: D of a vector.
        normalized: whether the random vectors that it begins with have exactly length 1, or only about 1.
    """

    def __init__(self, rows: int, dimension: int, normalized: bool) -> None:
        super().__init__()
        bound = (3 / dimension) ** 0.5
        student, teacher = (torch.empty(rows, dimension).uniform_(-bound, bound) for _ in range(2))
        self.student: Tensor
        self.teacher: Tensor
        self.log_constants: Tensor
        self.register_buffer("student", unit(student) if normalized else student)
        self.register_buffer("teacher", unit(teacher) if normalized else teacher)
        self.register_buffer("log_constants", torch.full((2,), -torch.inf))  # student, teacher; -inf: not yet known

    @torch.no_grad()
    def constants(self, fresh: Tensor, settle: bool) -> Tensor:
        """Both log Z: those of the first batch, whichever batch is asked about.

        Args:
            fresh: (2,) those of this batch; -inf where it has no valid row.
            settle: keep them if there are none yet; all processes then take the mean of theirs.
        """
        if settle:
            every = gathered_rows(fresh[None])  # (processes, 2)
            fresh = every.logsumexp(0) - every.isfinite().sum(0).clamp(min=1).to(every).log()
        known = torch.where(self.log_constants.isfinite(), self.log_constants, fresh.to(self.log_constants))
        if settle:
            self.log_constants.copy_(known)
        return known.masked_fill(~known.isfinite(), 0.0)

    @torch.no_grad()
    def update(self, index: Tensor, student: Tensor, teacher: Tensor, valid: Tensor | None, momentum: float) -> None:
        """Remember the rows that all processes just saw; every process writes the same.

        Args:
            index: (B,) their numbers.
            student: (B, D).
            teacher: (B, D).
            valid: (B,) bool, False = remember nothing of the row; None: all are valid.
            momentum: share of what was remembered before.
        """
        valid = torch.ones_like(index, dtype=torch.bool) if valid is None else valid
        index, valid = gathered_rows(torch.stack([index, valid.long()], dim=1)).T  # (B of all,) each
        vectors = gathered_rows(torch.stack([student, teacher], dim=1))  # (B of all, 2, D)
        # a row seen twice, which samplers do to fill the last batch: all its places write what the last valid one has
        order = torch.arange(1, len(index) + 1, device=index.device)
        last, place = ((index[:, None] == index) * valid * order).max(1)
        for bank, seen in zip((self.student, self.teacher), vectors.to(self.student).unbind(1), strict=True):
            kept = bank[index]
            bank[index] = torch.where(last[:, None] > 0, remembered(kept, seen[place], momentum).to(kept), kept)


class Candidates(nn.Module):
    """Draws rows of the training set that a row is contrasted with.

    Negatives are drawn uniformly, with replacement, by PyTorch's global generator: from the rows of other classes, or,
    where there are no labels or only one class, from all other rows. A row without a label is a class of its own.

    Args:
        rows: length of the training set, at least 2.
        labels: (rows,) class of each row, or None.

    Raises:
        ValueError: fewer than 2 rows; another number of labels.
    """

    def __init__(self, rows: int, labels: Tensor | None) -> None:
        super().__init__()
        if rows < 2:
            raise ValueError(f"contrast needs at least 2 training rows, got {rows}: one row has no negatives.")
        if labels is not None and labels.shape != (rows,):
            raise ValueError(
                f"expected one class for each of the {rows} training rows, got labels {[*labels.shape]}: negatives "
                "are drawn from other classes. Pass None where rows have no class."
            )
        own = torch.arange(rows)
        classes = own if labels is None else torch.where(labels == IGNORE_INDEX, labels.max() + 1 + own, labels)
        _, classes, sizes = torch.unique(classes, return_inverse=True, return_counts=True)
        if len(sizes) == 1:
            classes, sizes = own, torch.ones(rows, dtype=torch.long)
        starts = sizes.cumsum(0) - sizes
        self.order: Tensor
        self.start: Tensor
        self.size: Tensor
        # of the data, not of the run: made anew when it is resumed
        self.register_buffer("order", classes.argsort(stable=True), persistent=False)  # the rows, class after class
        self.register_buffer("start", starts[classes], persistent=False)  # where the class of each row begins there
        self.register_buffer("size", sizes[classes], persistent=False)

    def drawn(self, index: Tensor, negatives: int, positives: str) -> Tensor:
        """(B, K + 1) row numbers: the positive, then K negatives.

        Args:
            index: (B,) the rows.
            negatives: K, or as many as there are other rows, if those are fewer.
            positives: "exact" takes the row itself, "relax" any row of its class.
        """
        start, size = self.start[index, None], self.size[index, None]  # (B, 1)
        places = self._random(index, min(negatives, len(self.order) - 1)) % (len(self.order) - size)  # (B, K)
        others = self.order[places + (places >= start) * size]  # the class of the row itself is skipped
        if positives == "exact":
            return torch.cat([index[:, None], others], dim=1)
        return torch.cat([self.order[start + self._random(index, 1) % size], others], dim=1)

    def spread(self, batch: int, negatives: int) -> Tensor:
        """(B, K + 1) for B rows outside the training set, without chance: their numbers go on behind it.

        The negatives, the same for each, are spread evenly over the training set, of whatever class.
        """
        rows, device = len(self.order), self.order.device
        count = min(negatives, rows - 1)
        own = torch.arange(rows, rows + batch, device=device)[:, None]  # (B, 1)
        others = torch.arange(count, device=device) * rows // count
        return torch.cat([own, others.expand(batch, -1)], dim=1)

    def _random(self, index: Tensor, count: int) -> Tensor:
        return torch.randint(_MANY, (len(index), count), device=index.device)


class MemoryContrastLoss(EmbeddedLoss):
    """Contrasts each row with rows that a memory remembers of the other model; subclass it and write `similarities`.

    Noise-contrastive estimation, of the student's vectors against the teacher's memory and the other way round. After
    each training step both memories take up the rows of the batch, on every process those of all. The trainer tells
    the loss the training set (`bind_data`) and each row's number. Rows outside it, in evaluation, stand for themselves
    as the positive of the other side, and their negatives are always the same; nothing is drawn or remembered then.

    Args:
        negatives: K, drawn with replacement for each row at each step; at most the number of training rows less 1.
        temperature: T > 0, which divides the cosines.
        momentum: share of what was remembered before, in [0, 1).
        positives: "exact" takes the row itself, "relax" any row of its class.
        dimension: D of the common space of both models.
        layers: see EmbeddedLoss; each pair has a memory of its own.
        pooling: see EmbeddedLoss.
        weight: see DistillationLoss.

    Raises:
        ValueError: a keyword out of its range; no `bind_data` before the first batch; training batches without index.
    """

    indexed: ClassVar[bool] = True
    normalized: ClassVar[bool] = False
    """Whether memories begin with vectors of exactly length 1."""

    def __init__(
        self,
        negatives: int,
        temperature: float,
        momentum: float = 0.5,
        positives: str = "exact",
        dimension: int = 128,
        layers: Layers = ((-1, -1),),
        pooling: str = "mean",
        weight: float | Schedule = 1.0,
    ) -> None:
        super().__init__(dimension, layers, pooling, weight=weight)
        self.negatives = int(above_zero("negatives", negatives, "without any there is nothing to contrast with"))
        self.temperature = above_zero("temperature", temperature, "it divides cosines; the papers use 0.05 and 0.07")
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum must be in [0, 1), got {momentum}: at 1 the memory would stay random.")
        self.momentum = momentum
        self.positives = choose("positives", positives, ("exact", "relax"))
        self.candidates: Candidates | None = None
        self.banks = nn.ModuleList()

    def bind(self, student: Anatomy, teacher: Anatomy) -> None:
        """Resolve the layer map and build the embedding layers; memories of other layers are forgotten."""
        before = self.embeddings
        super().bind(student, teacher)
        if self.embeddings is not before:
            self.banks = nn.ModuleList()

    def bind_data(self, rows: int, labels: Tensor | None) -> None:
        """Make a memory of the training set, or keep that of as many rows.

        Raises:
            ValueError: fewer than 2 rows; another number of labels.
        """
        self.candidates = Candidates(rows, labels)
        if [len(bank.student) for bank in self._made()] != [rows] * len(self.pairs):
            self.banks = nn.ModuleList(MemoryBank(rows, self.dimension, self.normalized) for _ in self.pairs)

    def contrast(self, position: int, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        """The contrast of both sides; in training the memories then take up the batch."""
        learning = self.training and torch.is_grad_enabled()
        index, rows = self._index(batch, learning), batch.real_rows()
        bank = self._made()[position]
        seen = [bank.student, bank.teacher]
        if batch.index is None:  # rows outside the training set stand behind it
            seen = [torch.cat([bank.student, student.to(seen[0])]), torch.cat([bank.teacher, teacher.to(seen[1])])]
        sides = [self.similarities(student, seen[1], index), self.similarities(teacher, seen[0], index)]
        size, counted = len(bank.student), self.counted(index, rows)
        constants = bank.constants(torch.stack([log_constant(side, size, counted) for side in sides]), learning)
        if learning and batch.index is not None:
            bank.update(batch.index, student, teacher, rows, self.momentum)
        values = [noise_contrast(side, at, size, counted) for side, at in zip(sides, constants, strict=True)]
        return torch.stack(values).sum()

    @abstractmethod
    def similarities(self, vectors: Tensor, memory: Tensor, index: Tensor) -> Tensor:
        """(..., K + 1), the positive first.

        Args:
            vectors: (B, D) of one side.
            memory: (rows, D) of the other side.
            index: (B, K + 1) candidates of each row, the positive first.
        """

    def counted(self, index: Tensor, rows: Tensor | None) -> Tensor | None:
        """Which similarities count, of their shape without the candidates; rows: (B,) bool, or None."""
        return rows

    def _index(self, batch: Batch, learning: bool) -> Tensor:
        if self.candidates is None:
            raise ValueError(
                f"{type(self).__name__} does not know the training set, of which it remembers every row. Train with "
                "DistillationTrainer(train_dataset=...), or call bind_data(rows, labels) after bind."
            )
        if batch.index is not None:
            return self.candidates.drawn(batch.index, self.negatives, self.positives)
        if learning:
            raise ValueError(
                f"{type(self).__name__} needs the number of each training row, got a batch without (Batch.index is "
                "None): it could not tell what it remembers of which row. Train with DistillationTrainer, which "
                "numbers train_dataset, or set batch.index."
            )
        return self.candidates.spread(batch.size, self.negatives)

    def _made(self) -> list[MemoryBank]:
        return [bank for bank in self.banks if isinstance(bank, MemoryBank)]
