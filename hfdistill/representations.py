"""What one forward pass shows to the losses, and what a loss asks to be shown.

`Needs` is the question (which layers, which kind), `Representations` the answer, `Batch` what both models were given.
Nothing here runs a model: `capture` does that. Layers are numbered as in transformers' `hidden_states`: 0 is the
embedding output, 1..L are the outputs of the layers; the attention of layer m has the number m.

Shape letters: B batch, N tokens, D width, H heads, K classes (see `functional`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from hfdistill.functional.vocabulary import OutputHead as OutputHead

IGNORE_INDEX = -100
"""Label value that excludes a row or a token from every loss, as in PyTorch and transformers."""

SAMPLE_INDEX = "sample_index"
"""Column that says which row of the training set each row of a batch is; neither model is given it."""

CACHED = "cached_teacher"
"""Entry of a batch with what a cache holds of the teacher: name -> (B, ...); neither model is given it."""

ROW_KEYS = "row_keys"
"""Entry of a batch whose rows a cache lacks: their names, (B, 16) bytes; neither model is given it."""

TEACHER_PREFIX = "teacher_"
"""What columns begin with that only the teacher is given: `teacher_input_ids` are its own ids of the same text."""


@dataclass(frozen=True)
class Needs:
    """What a loss must see of one model; unions (`|`) of needs make the plan of a forward pass.

    Args:
        logits: the output of the head.
        hidden_states: layer numbers, 0 is the embedding output.
        projections: layers whose queries, keys and values (and so the raw scores) are needed.
        attention_probabilities: layers whose attention distributions are needed; families that cannot show their
            projections (DeBERTa) can still show these under eager attention.
        output_head: the features before the head of a language model, and the head; without `logits` none are made.
        pooled_states: (layer, pooling) of which one vector per row is enough; see `losses.pooling`.
        attention_scores: layers of which the raw scores are enough, without queries and keys.
        top_classes: (k, temperature) of which the k most likely classes and the mass of the others are enough.

    The last three are for what is kept of a teacher (`DistillationLoss.cached_needs`): a pass shows the whole state.
    """

    logits: bool = False
    hidden_states: frozenset[int] = frozenset()
    projections: frozenset[int] = frozenset()
    attention_probabilities: frozenset[int] = frozenset()
    output_head: bool = False
    pooled_states: frozenset[tuple[int, str]] = frozenset()
    attention_scores: frozenset[int] = frozenset()
    top_classes: frozenset[tuple[int, float]] = frozenset()

    def __or__(self, other: Needs) -> Needs:
        return Needs(
            self.logits or other.logits,
            self.hidden_states | other.hidden_states,
            self.projections | other.projections,
            self.attention_probabilities | other.attention_probabilities,
            self.output_head or other.output_head,
            self.pooled_states | other.pooled_states,
            self.attention_scores | other.attention_scores,
            self.top_classes | other.top_classes,
        )

    @staticmethod
    def union(needs: Iterable[Needs]) -> Needs:
        """All of `needs` in one."""
        result = Needs()
        for need in needs:
            result = result | need
        return result

    @property
    def attention_layers(self) -> frozenset[int]:
        """Layers of which any attention knowledge is needed."""
        return self.projections | self.attention_probabilities | self.attention_scores

    def without_repetition(self) -> Needs:
        """The same without what follows from something else in it: a state's pooled vector, say, from the state."""
        return replace(
            self,
            pooled_states=frozenset(item for item in self.pooled_states if item[0] not in self.hidden_states),
            attention_scores=self.attention_scores - self.projections,
            top_classes=frozenset() if self.logits else self.top_classes,
        )

    def __bool__(self) -> bool:
        return (
            self.logits
            or self.output_head
            or bool(self.hidden_states or self.attention_layers or self.pooled_states or self.top_classes)
        )


@dataclass
class Attention:
    """The attention of one layer as its queries, keys and values; scores and probabilities are made on demand, once.

    Args:
        query: (B, H, N, d) as the layer multiplies them (after rotary embedding, where the family has one).
        key: (B, H, N, d); with grouped keys repeated to H heads where scores are asked for.
        value: (B, H, N, d).
        scaling: what the product of query and key is multiplied by, normally d ** -0.5.
        bias: additive (B or 1, H or 1, N, N) attention mask or position bias that the layer adds to its scores.
        allowed: bool (B or 1, 1, N, N), the pairs that padding, causality or a sliding window leave; None: all.
        given_probabilities: (B, H, N, N) where the family shows nothing but these (eager-only families).
        given_scores: (B, H, N, N) where nothing but these was kept (a cache).
    """

    query: Tensor | None = None
    key: Tensor | None = None
    value: Tensor | None = None
    scaling: float = 1.0
    bias: Tensor | None = None
    allowed: Tensor | None = None
    given_probabilities: Tensor | None = None
    given_scores: Tensor | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Of scores and probabilities, (B, H, N, N)."""
        given = self.given_scores if self.given_probabilities is None else self.given_probabilities
        if given is not None:
            return tuple(given.shape)
        return () if self.query is None or self.key is None else (*self.query.shape[:3], self.key.shape[2])

    @property
    def parts(self) -> tuple[Tensor | None, ...]:
        """What scores and probabilities are made of, each (B or 1, H or 1, ...), for `of_parts`."""
        key = self.key if self.query is None or self.key is None else _repeated(self.key, self.query.shape[1])
        return self.query, key, self.bias, self.allowed, self.given_probabilities, self.given_scores

    def of_parts(
        self,
        query: Tensor | None,
        key: Tensor | None,
        bias: Tensor | None,
        allowed: Tensor | None,
        probabilities: Tensor | None,
        scores: Tensor | None,
    ) -> Attention:
        """The attention of some rows and heads, made of their `parts`."""
        return Attention(query, key, None, self.scaling, bias, allowed, probabilities, scores)

    @cached_property
    def scores(self) -> Tensor:
        """Raw scores before mask and softmax, (B, H, N, N), float32 or wider, under autocast too."""
        if self.given_scores is not None:
            return self.given_scores
        if self.query is None or self.key is None:
            raise ValueError(
                "raw attention scores were asked for, but this model shows only attention probabilities (it does not "
                "go through transformers' AttentionInterface). Compare probabilities instead: target='probabilities'."
            )
        key = _repeated(self.key, self.query.shape[1])
        query, key = (side if side.dtype == torch.float64 else side.float() for side in (self.query, key))
        with torch.autocast(query.device.type, enabled=False):  # it would round the scores to half precision
            scores = torch.matmul(query * self.scaling, key.transpose(-1, -2))
        return scores if self.bias is None else scores + self.bias

    @cached_property
    def probabilities(self) -> Tensor:
        """Attention distribution over the keys, without dropout, (B, H, N, N), float32 or wider."""
        if self.given_probabilities is not None:
            return self.given_probabilities
        scores = self.scores
        if self.allowed is not None:
            # the lowest number, not -inf: a row without any allowed key stays finite, as in transformers
            scores = scores.masked_fill(~self.allowed, torch.finfo(scores.dtype).min)
        return scores.softmax(dim=-1)

    def merged(self, name: str) -> Tensor:
        """Queries, keys or values with their heads side by side, (B, N, H * d): what MiniLM's relations start from."""
        tensor: Tensor | None = {"query": self.query, "key": self.key, "value": self.value}[name]
        if tensor is None:
            raise ValueError(
                f"the {name} vectors were asked for, but this model shows only attention probabilities. Relations "
                "between queries, keys and values need a family that goes through transformers' AttentionInterface."
            )
        return tensor.transpose(1, 2).flatten(2)  # (B, N, H * d)


def _repeated(key: Tensor, heads: int) -> Tensor:
    """Keys (B, H_k, N, d) that groups of heads share, as (B, H, N, d)."""
    return key if key.shape[1] == heads else key.repeat_interleave(heads // key.shape[1], dim=1)


@dataclass
class Representations:
    """What one forward pass of one model showed.

    Args:
        logits: (B, K), or (B, N, K) for token-level heads: the answer that counts when the model is used. It is what a
            teacher teaches; a student learns by `labelled_logits` and `taught_logits`.
        hidden_states: layer number -> (B, N, D).
        attentions: layer number -> Attention.
        loss: the task loss, a scalar, where something else than the logits and labels alone decides it: a function
            of the user's, or a head (question answering) that computes it from several outputs.
        class_logits: (B, K) of the head that learns the labels, where a model has one for them alone (DeiT).
        distillation_logits: (B, K) of the head that learns the teacher, where a model has one for it alone (DeiT);
            its `logits` are the mean of both.
        output_head: of a language model the features (B, N, D) before its head, and the head's weight (V, D) and bias.
        pooled_states: (layer, pooling) -> (B, D), where nothing but these was kept of a layer (a cache).
    """

    logits: Tensor | None = None
    hidden_states: Mapping[int, Tensor] = field(default_factory=dict)
    attentions: Mapping[int, Attention] = field(default_factory=dict)
    loss: Tensor | None = None
    class_logits: Tensor | None = None
    distillation_logits: Tensor | None = None
    output_head: OutputHead | None = None
    pooled_states: Mapping[tuple[int, str], Tensor] = field(default_factory=dict)

    @property
    def labelled_logits(self) -> Tensor | None:
        """What a student learns the labels with: the class head's logits, or those of its one head."""
        return self.logits if self.class_logits is None else self.class_logits

    @property
    def taught_logits(self) -> Tensor | None:
        """What a student learns the teacher with: the distillation head's logits, or those of its one head."""
        return self.logits if self.distillation_logits is None else self.distillation_logits

    def to(self, device: torch.device) -> Representations:
        """The same on `device`."""
        moved: Representations = _moved(self, device)
        return moved

    def with_one_answer(self) -> Representations:
        """The same without the heads' own logits: both are learnt with `logits`, and so both heads learn."""
        return replace(self, class_logits=None, distillation_logits=None)


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, Mapping):
        return {key: _moved(entry, device) for key, entry in value.items()}
    if isinstance(value, OutputHead):
        return value  # chunks of logits are made where it lies, and moved: the whole head would be more
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{own.name: _moved(vars(value)[own.name], device) for own in fields(value)})
    return value


@dataclass
class Batch:
    """What both models were given, as far as a loss may look at it.

    Args:
        size: number of rows B.
        labels: (B,) classes, (B,) or (B, 1) regression targets, (B, K) multi-label targets, or (B, N) token labels;
            `IGNORE_INDEX` excludes.
        mask: (B, N), 1 = real token; None: every token is real.
        progress: share of training done, 0 to 1; what schedules look at.
        label_smoothing: the Trainer's `label_smoothing_factor`, for the task loss.
        index: (B,) number of each row in the training set, for losses that keep something per row; None where the
            batch is not from the training set, or no loss asked.
        teacher_labels: the labels of the teacher's own tokens, (B, N_teacher), where it has another tokenizer.
        teacher_mask: (B, N_teacher), 1 = real token of the teacher's own; None: `mask` holds for both.
        partner_labels: class labels of what is mixed into each row, of the shape of `labels`; None: rows are whole.
        partner_shares: (B,) how much of each row is its partner, 0 to 1.
    """

    size: int
    labels: Tensor | None = None
    mask: Tensor | None = None
    progress: float = 0.0
    label_smoothing: float = 0.0
    index: Tensor | None = None
    teacher_labels: Tensor | None = None
    teacher_mask: Tensor | None = None
    partner_labels: Tensor | None = None
    partner_shares: Tensor | None = None

    @classmethod
    def of(cls, inputs: Mapping[str, object], label_name: str = "labels", progress: float = 0.0) -> Batch:
        """Read the batch out of a Trainer's inputs.

        Raises:
            ValueError: without any tensor there is no batch size.
        """
        tensors = {name: value for name, value in inputs.items() if isinstance(value, Tensor) and value.dim() > 0}
        if not tensors:
            raise ValueError(
                f"a batch needs at least one tensor, got keys {sorted(inputs)}. Without one there is no batch size; "
                "let the data collator return tensors (return_tensors='pt')."
            )
        mask = tensors.get("attention_mask")
        return cls(
            size=next(iter(tensors.values())).shape[0],
            labels=tensors.get(label_name),
            mask=mask if mask is not None and mask.dim() == 2 else None,
            progress=progress,
            index=tensors.get(SAMPLE_INDEX),
            teacher_labels=tensors.get(f"{TEACHER_PREFIX}{label_name}"),
            teacher_mask=tensors.get(f"{TEACHER_PREFIX}attention_mask"),
        )

    def valid_rows(self) -> Tensor | None:
        """(B,) bool, rows whose class label is not ignored; None where labels do not speak of rows."""
        if self.labels is None or self.labels.is_floating_point() or self.labels.dim() != 1:
            return None
        return self.labels != IGNORE_INDEX

    def real_rows(self) -> Tensor | None:
        """(B,) bool, rows that hold a real token; None: all of them."""
        return None if self.mask is None else self.mask.bool().any(dim=1)

    def row_count(self) -> Tensor:
        """Number of rows that hold a real token, a float scalar on the batch's device."""
        real = self.real_rows()
        return self._scalar(self.size) if real is None else real.sum().float()

    def token_count(self) -> Tensor:
        """Number of real tokens; without a mask the number of rows, which is proportional to it."""
        return self.row_count() if self.mask is None else self.mask.sum().float()

    def pair_count(self) -> Tensor:
        """Number of (query, key) pairs of real tokens; without a mask the number of rows."""
        return self.row_count() if self.mask is None else self.mask.sum(dim=1).float().square().sum()

    def label_count(self) -> Tensor:
        """Number of labels that are not ignored: rows or tokens; the number of rows where there are no labels."""
        if self.labels is None or self.labels.is_floating_point():
            return self._scalar(self.size)
        return (self.labels != IGNORE_INDEX).sum().float()

    def _scalar(self, value: float) -> Tensor:
        device = next((t.device for t in (self.mask, self.labels) if t is not None), torch.device("cpu"))
        return torch.full((), float(value), device=device)  # made there: a copy of a number would be waited for
