"""One way to use a loss, and what of the common contract it promises (held to it by tests/losses/test_contract.py)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from toy_representations import ROWS

from hfdistill.losses import DistillationLoss
from hfdistill.representations import Needs

PAIRS = ((1, 2), (2, 4))
"""Layers of the toy student and of the toy teacher that variants compare."""
LOGITS = (Needs(logits=True), Needs(logits=True))
HIDDEN = (Needs(hidden_states=frozenset({1, 2})), Needs(hidden_states=frozenset({2, 4})))
HEADS = (Needs(output_head=True), Needs(output_head=True))
LAST = (Needs(hidden_states=frozenset({2})), Needs(hidden_states=frozenset({4})))


@dataclass(frozen=True)
class Variant:
    """One way to use a loss.

    Args:
        make: makes it.
        needs: what it must ask to see, of PAIRS.
        zero_at_equality: its value is 0 where both sides show the same.
        flat_at_equality: its gradient is 0 there too.
        trainable: "never"; "widths": it has trainable parts only where the widths differ (projectors); "always".
        additive: its value over a batch is the mean of its values over parts of it, weighed by `count`. Losses over
            relations between rows are not.
        single_row: whether one row alone teaches something; else its value is 0.
        head: of both models; TOKENS gives logits and labels of tokens.
        classes: K of both models.
        smooth: its gradient can be compared with numerical differences (no ranks, no maxima that tie).
        shut_out: it stays finite where both heads shut a class out with -inf.
        tolerance: relative, of its value on bfloat16 inputs.
    """

    make: Callable[[], DistillationLoss]
    needs: tuple[Needs, Needs]
    zero_at_equality: bool = True
    flat_at_equality: bool = True
    trainable: str = "never"
    additive: bool = True
    single_row: bool = True
    head: str = ROWS
    classes: int = 3
    smooth: bool = True
    shut_out: bool = True
    tolerance: float = 0.03
