"""Next-token distributions over large vocabularies, from features and output heads: logits are never made as a whole.

A language model's logits, (B, N, V), are often larger than all else that a step holds, and a divergence makes several
tensors of their size. These losses ask for the features before the head and for the head (see `output_head`), and make
logits, loss and gradients in chunks of tokens (see `functional.vocabulary`). If no other loss reads logits, neither
model makes any in training.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import ClassVar

from torch import Tensor

from hfdistill import functional
from hfdistill.anatomy import Anatomy
from hfdistill.functional.vocabulary import vocabulary_cross_entropy, vocabulary_divergence
from hfdistill.losses.base import DistillationLoss, choose
from hfdistill.losses.logits import SoftenedLogitLoss, Targets, next_labels
from hfdistill.losses.method import Method, Paper
from hfdistill.representations import IGNORE_INDEX, Batch, Needs, OutputHead, Representations
from hfdistill.schedules import Schedule

LANGUAGE_HEADS = ("ForMaskedLM", "ForCausalLM")
"""Heads that these losses are for, as transformers names them."""

_LIGER = Paper(
    "Hsu et al.",
    2024,
    "Liger Kernel: Efficient Triton Kernels for LLM Training",
    "https://arxiv.org/abs/2410.10989",
)
_RESTRICTIONS = (
    "masked and causal language models whose head is a plain linear module and whose logits nothing changes after it "
    "(no softcapping; this is tried out)",
    "no FSDP or ZeRO-3, which hold the head in shards",
    "the output that a training step returns has no logits, unless another loss needs them",
)


class VocabularyDivergenceLoss(SoftenedLogitLoss):
    """A divergence of the two models' distributions over a large vocabulary, in chunks of tokens.

    Value and gradients are those of SoftTargetLoss (without T^2), ReverseKLLoss, JensenShannonLoss or SkewedKLLoss on
    whole logits, up to rounding; memory is that of one chunk. What counts is what counts there: tokens whose label is
    not -100, or real ones where there are no labels; a position of a causal model where the token after it is
    labelled. Tokens that do not count cost nothing.

    Hsu et al. 2024, Liger Kernel, https://arxiv.org/abs/2410.10989, which does so for cross-entropy
    (FusedLinearCrossEntropy). Here the formula of a chunk is the one that whole logits are compared by.

    Shapes: features (B, N, D_s) and (B, N, D_t), heads (V, D_s) and (V, D_t).

    Args:
        divergence: "forward_kl", "reverse_kl", "jsd", "skewed_kl" or "skewed_reverse_kl".
        beta: share of the teacher in the mixture of "jsd", 0 to 1.
        alpha: share of the first side in the mixture of the skewed ones, from 0 to below 1.
        temperature: T > 0, or a Schedule.
        scale_by_temperature: multiply by T^2, as SoftTargetLoss does by default.
        chunk: tokens at a time; None: as many as make 2^24 logits.
        weight: see DistillationLoss.

    Raises:
        ValueError: an unknown divergence, a share that is none, T <= 0, chunk < 1, a model of another kind, two
            vocabularies.
        TypeError: `temperature` is neither a number nor a Schedule.
    """

    task_heads: ClassVar[tuple[str, ...]] = LANGUAGE_HEADS
    method = Method(
        papers=(_LIGER,),
        evidence=(
            "forward_kl/tok",
            "reverse_kl/tok",
            "generalized_jsd/beta0.1",
            "generalized_jsd/beta0.5_T2",
            "skew_forward_kl/0.1",
            "skew_reverse_kl/0.1",
            "equal to the losses on whole logits in tests/test_trainer_vocabulary.py",
        ),
        restrictions=_RESTRICTIONS,
    )

    def __init__(
        self,
        divergence: str = "forward_kl",
        beta: float = 0.5,
        alpha: float = 0.1,
        temperature: float | Schedule = 1.0,
        scale_by_temperature: bool = False,
        chunk: int | None = None,
        weight: float | Schedule = 1.0,
    ) -> None:
        super().__init__(temperature, weight)
        if not (0 <= beta <= 1 and 0 <= alpha < 1):
            raise ValueError(
                f"beta must be from 0 to 1 and alpha from 0 to below 1, got {beta} and {alpha}: they are shares of "
                "one side in a mixture of both. Use 0.5 and 0.1."
            )
        formulas: dict[str, Callable[..., Tensor]] = {
            "forward_kl": partial(functional.soft_target_kl, scale_by_temperature=False),
            "reverse_kl": functional.reverse_kl,
            "jsd": partial(functional.generalized_jsd, beta=beta),
            "skewed_kl": partial(functional.skewed_forward_kl, alpha=alpha),
            "skewed_reverse_kl": partial(functional.skewed_reverse_kl, alpha=alpha),
        }
        self.divergence = choose("divergence", divergence, tuple(formulas))
        self.scale_by_temperature = scale_by_temperature
        self.chunk = _checked(chunk)
        self._formula = formulas[divergence]

    def bind(self, student: Anatomy, teacher: Anatomy) -> None:
        """Refuse models that answer for anything else than tokens of one vocabulary."""
        super().bind(student, teacher)
        _check_head(self, student, "student")
        _check_head(self, teacher, "teacher")

    def needs(self) -> tuple[Needs, Needs]:
        """Both models' features and heads."""
        return Needs(output_head=True), Needs(output_head=True)

    def forward(self, student: Representations, teacher: Representations, batch: Batch) -> Tensor:
        """The divergence of the student's distributions from the teacher's."""
        ours, theirs = _given(self, student, "student"), _given(self, teacher, "teacher")
        labels = self._labels(ours.features, batch)
        mask = batch.mask if labels is None else labels != IGNORE_INDEX
        whole = Targets(None, None, batch.progress)  # what does not count is left out of the chunks
        return vocabulary_divergence(ours, theirs, partial(self.compare, targets=whole), mask, self.chunk)

    def compare(self, student: Tensor, teacher: Tensor, targets: Targets) -> Tensor:
        """The divergence of a chunk's logits, (P, V) on both sides."""
        temperature = self.temperature(targets.progress)
        value = self._formula(student, teacher, temperature=temperature)
        return value * temperature**2 if self.scale_by_temperature else value


class VocabularyTaskLoss(DistillationLoss):
    """The labels of a language model over a large vocabulary: TaskLoss in chunks of tokens.

    L = mean over labels that are not -100 of CE(logits, label); causal models are shifted by one token. Value and
    gradients are those of TaskLoss, up to rounding; memory is that of one chunk, and tokens without label cost
    nothing.

    Hsu et al. 2024, Liger Kernel, https://arxiv.org/abs/2410.10989 (FusedLinearCrossEntropy).

    Shapes: features (B, N, D), head (V, D), labels (B, N).

    Args:
        label_smoothing: share of the target spread over all words, 0 to 1; None takes the Trainer's
            `label_smoothing_factor`.
        chunk: tokens at a time; None: as many as make 2^24 logits.
        weight: see DistillationLoss.

    Raises:
        ValueError: a share that is none, chunk < 1, a student of another kind; a batch without labels, or with labels
            of another shape or of mixed rows.
    """

    task_heads: ClassVar[tuple[str, ...]] = LANGUAGE_HEADS
    labels_alone: ClassVar[bool] = True
    method = Method(
        papers=(_LIGER,),
        evidence=("equal to TaskLoss, value and gradients, in tests/test_trainer_vocabulary.py",),
        restrictions=(*_RESTRICTIONS, "no `compute_loss_func`, and no mixed rows"),
    )

    def __init__(
        self, label_smoothing: float | None = None, chunk: int | None = None, weight: float | Schedule = 1.0
    ) -> None:
        super().__init__(weight)
        if label_smoothing is not None and not 0 <= label_smoothing < 1:
            raise ValueError(
                f"label_smoothing must be in [0, 1), got {label_smoothing}: it is the share of the target that goes "
                "to all words. Use 0.1, or 0 to switch it off."
            )
        self.label_smoothing = label_smoothing
        self.chunk = _checked(chunk)
        self.shifted = False

    def bind(self, student: Anatomy, teacher: Anatomy) -> None:
        """Note whether the student predicts the next token; refuse one that predicts no tokens."""
        _check_head(self, student, "student")
        self.shifted = student.head == "ForCausalLM"

    def needs(self) -> tuple[Needs, Needs]:
        """The student's features and head, nothing of the teacher."""
        return Needs(output_head=True), Needs()

    def forward(self, student: Representations, teacher: Representations, batch: Batch) -> Tensor:
        """The task loss of the student."""
        head, labels = _given(self, student, "student"), batch.labels
        if labels is None or labels.shape != head.features.shape[:-1] or batch.partner_labels is not None:
            shape = None if labels is None else tuple(labels.shape)
            raise ValueError(
                f"VocabularyTaskLoss needs one label per token, of rows that are not mixed, got labels {shape} for "
                f"tokens {tuple(head.features.shape[:-1])}. Check the data collator; TaskLoss learns mixed rows."
            )
        smoothing = batch.label_smoothing if self.label_smoothing is None else self.label_smoothing
        targets = next_labels(labels) if self.shifted else labels
        return vocabulary_cross_entropy(head, targets, smoothing, self.chunk, IGNORE_INDEX)

    def count(self, batch: Batch) -> Tensor:
        """Labels that are not ignored."""
        if self.shifted and batch.labels is not None:
            return (next_labels(batch.labels) != IGNORE_INDEX).sum().float()
        return batch.label_count()


def _checked(chunk: int | None) -> int | None:
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk must be at least 1 token, got {chunk}. Leave it out: None chooses by the vocabulary.")
    return chunk


def _check_head(loss: DistillationLoss, model: Anatomy, role: str) -> None:
    if model.head not in loss.task_heads:
        raise ValueError(
            f"{type(loss).__name__} needs a {role} that answers with words of a vocabulary "
            f"({', '.join(loss.task_heads)}), got a {model.family} with head {model.head!r}. Use SoftTargetLoss and "
            "TaskLoss: a few classes need no chunks."
        )


def _given(loss: DistillationLoss, shown: Representations, role: str) -> OutputHead:
    if shown.output_head is None:
        raise ValueError(
            f"{type(loss).__name__} needs the {role}'s features before its head, and the head, but was shown neither: "
            "a teacher of one's own (or one that is kept in a cache) may have only logits. Use SoftTargetLoss with it."
        )
    return shown.output_head
