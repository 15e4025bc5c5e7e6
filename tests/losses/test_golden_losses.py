"""The classes give the golden values: their settings reach the right formula with the right arguments.

tests/test_golden.py holds the formulas themselves to these values; here they pass through a class, its layer map, its
projector and its mask.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import golden
import pytest
import torch
from torch import Tensor
from toy_representations import ROWS, toy_anatomy

from hfdistill.losses import (
    AttentionMapLoss,
    AttentionRelationLoss,
    DistillationLoss,
    HiddenStateLoss,
    PatienceLoss,
    SoftTargetLoss,
    VocabularyDivergenceLoss,
)
from hfdistill.losses.relation.attention_relation import MINILM
from hfdistill.presets import preset
from hfdistill.representations import Attention, Batch, OutputHead, Representations

pytestmark = pytest.mark.data
Shown = tuple[Representations, Representations]
Inputs = dict[str, Tensor]


def on_logits(inputs: Inputs) -> Shown:
    """Logits of both sides."""
    return Representations(inputs["s"]), Representations(inputs["t"])


def on_heads(inputs: Inputs) -> Shown:
    """Logits of both sides as features before a head that leaves them as they are."""
    same = torch.eye(inputs["s"].shape[-1], dtype=torch.float64)
    ours, theirs = (Representations(output_head=OutputHead(inputs[side], same)) for side in "st")
    return ours, theirs


def on_states(inputs: Inputs) -> Shown:
    """The hidden state of layer 1."""
    return Representations(hidden_states={1: inputs["s"]}), Representations(hidden_states={1: inputs["t"]})


def on_layers(inputs: Inputs) -> Shown:
    """(B, M, D): the first token of the layers 1 to M."""
    first, second = (
        {layer + 1: side[:, layer, None] for layer in range(side.shape[1])} for side in (inputs["s"], inputs["t"])
    )
    return Representations(hidden_states=first), Representations(hidden_states=second)


def on_scores(inputs: Inputs) -> Shown:
    """Scores of layer 1, as the product of themselves with the identity."""
    identity = torch.eye(5, dtype=torch.float64).expand_as(inputs["s"])
    first, second = (Attention(query=inputs[side], key=identity) for side in "st")
    return Representations(attentions={1: first}), Representations(attentions={1: second})


def on_vectors(inputs: Inputs) -> Shown:
    """Queries, keys and values of layer 1, cut into two heads."""

    def heads(tensor: Tensor) -> Tensor:
        return tensor.view(*tensor.shape[:2], 2, -1).transpose(1, 2)  # (B, H, N, d)

    first, second = (
        Attention(heads(inputs["q" + side]), heads(inputs["k" + side]), heads(inputs["v" + side])) for side in "st"
    )
    return Representations(attentions={1: first}), Representations(attentions={1: second})


def chunked(*arguments: Any, **keywords: Any) -> Callable[[], DistillationLoss]:
    """A loss over a large vocabulary, three tokens at a time."""
    return lambda: VocabularyDivergenceLoss(*arguments, chunk=3, **keywords)


ONE = [(1, 1)]
CASES: dict[str, tuple[Callable[[], DistillationLoss], Callable[[Inputs], Shown]]] = {
    "kd_kl/T2.0": (lambda: SoftTargetLoss(2.0), on_logits),
    "kd_kl/tokens_masked": (lambda: SoftTargetLoss(2.0), on_logits),
    "soft_ce/T3": (lambda: SoftTargetLoss(3.0, "cross_entropy", scale_by_temperature=False), on_logits),
    "soft_ce_elementmean/tinybert": (lambda: SoftTargetLoss(1.0, "cross_entropy", "elementmean", False), on_logits),
    "logit_mse": (lambda: SoftTargetLoss(1.0, "mse"), on_logits),
    "hint/masked": (lambda: HiddenStateLoss(ONE), on_states),
    "hint/projected": (lambda: HiddenStateLoss(ONE), on_states),
    "hidden_cos/masked": (lambda: HiddenStateLoss(ONE, metric="cosine"), on_states),
    "pkd": (lambda: PatienceLoss("first"), on_layers),
    "pkd/unnormalised": (lambda: PatienceLoss("first", normalize=False), on_layers),
    "pkd/paper": (lambda: PatienceLoss("first", reduction="paper"), on_layers),
    "att_mse_masked": (lambda: AttentionMapLoss(ONE), on_scores),
    "tinybert_att/padded": (lambda: AttentionMapLoss(ONE, reduction="tinybert"), on_scores),
    "minilm/v1": (lambda: AttentionRelationLoss(ONE, MINILM), on_vectors),
    "minilm/v2": (lambda: AttentionRelationLoss(ONE), on_vectors),
    "forward_kl/tok": (chunked(), on_heads),
    "reverse_kl/tok": (chunked("reverse_kl"), on_heads),
    "generalized_jsd/beta0.1": (chunked("jsd", 0.1), on_heads),
    "generalized_jsd/beta0.5_T2": (chunked("jsd", temperature=2.0), on_heads),
    "skew_forward_kl/0.1": (chunked("skewed_kl"), on_heads),
    "skew_reverse_kl/0.1": (chunked("skewed_reverse_kl"), on_heads),
}
DEPTHS = {"on_layers": 3}


def read(shared: Path, name: str) -> tuple[golden.Case, Inputs]:
    """One case, and its tensors in float64."""
    case = next(case for case in golden.read_cases(shared / "methods" / "golden.json") if case["id"] == name)
    tensors = {key: torch.tensor(value, dtype=torch.float64) for key, value in case["inputs"].items()}
    return case, tensors


@pytest.mark.parametrize("name", CASES)
def test_a_class_gives_the_golden_value(name: str, shared: Path) -> None:
    """A keyword that does not reach its formula, or a swapped side, shows here and nowhere else."""
    make, show = CASES[name]
    case, inputs = read(shared, name)
    student, teacher = show(inputs)
    loss = make()
    narrow, wide = (
        next(iter(side.hidden_states.values())).shape[-1] if side.hidden_states else 8 for side in (student, teacher)
    )
    depth = DEPTHS.get(show.__name__, 1)
    head = (*loss.task_heads, ROWS)[0]
    loss.bind(toy_anatomy(narrow, depth, head=head), toy_anatomy(wide, depth, head=head))
    loss.double()
    if "W" in inputs:
        loss.load_state_dict({"projectors.0.linear.weight": inputs["W"], "projectors.0.linear.bias": inputs["b"]})
    labels = inputs["labels"].long() if "labels" in inputs else None
    batch = Batch(4, labels, mask=inputs.get("mask"))
    assert loss(student, teacher, batch).item() == pytest.approx(case["expected"], rel=1e-9)


def test_the_kd_preset_gives_the_golden_total(shared: Path) -> None:
    """Task and soft targets with the weights that Hinton's total has."""
    case, inputs = read(shared, "hinton_total")
    result = preset("kd")(*on_logits(inputs), Batch(4, inputs["y"].long()))
    assert result.loss.item() == pytest.approx(case["expected"], rel=1e-9)
