"""Divergence losses as classes: options reach their formulas, what counts on either side, what is refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import golden
import pytest
import torch
from torch import Tensor
from toy_representations import TOKENS, toy_anatomy

from hfdistill.functional.divergences import universal_logit
from hfdistill.functional.response import reverse_kl, soft_target_kl
from hfdistill.losses.base import DistillationLoss
from hfdistill.losses.response.cross_vocabulary import UniversalLogitLoss
from hfdistill.losses.response.divergence import JensenShannonLoss, ReverseKLLoss, SkewedKLLoss, TotalVariationLoss
from hfdistill.losses.response.top_classes import TopKLoss
from hfdistill.representations import IGNORE_INDEX, Batch, Representations
from hfdistill.schedules import Linear

CAUSAL = "ForCausalLM"
GOLDEN: dict[str, Callable[[], DistillationLoss]] = {
    "hand/reverse_kl": ReverseKLLoss,
    "reverse_kl/tok": ReverseKLLoss,
    "hand/tv": TotalVariationLoss,
    "total_variation": TotalVariationLoss,
    "generalized_jsd/beta0.1": lambda: JensenShannonLoss(0.1),
    "generalized_jsd/beta0.5_T2": lambda: JensenShannonLoss(temperature=2.0),
    "generalized_jsd/beta1.0": lambda: JensenShannonLoss(1.0),
    "skew_forward_kl/0.1": SkewedKLLoss,
    "skew_forward_ce/0.1": lambda: SkewedKLLoss(form="cross_entropy"),
    "skew_reverse_kl/0.1": lambda: SkewedKLLoss("reverse"),
    "topk_kl/zero": lambda: TopKLoss(3, "zero"),
    "topk_kl/tail": lambda: TopKLoss(3),
}
SOFTENED: dict[str, Callable[..., DistillationLoss]] = {
    "reverse kl": ReverseKLLoss,
    "total variation": TotalVariationLoss,
    "jensen-shannon": JensenShannonLoss,
    "skewed kl": SkewedKLLoss,
    "top k": lambda **options: TopKLoss(2, **options),
}


def bound(loss: DistillationLoss, head: str = TOKENS) -> DistillationLoss:
    """The loss, bound to two models with this head."""
    loss.bind(toy_anatomy(head=head), toy_anatomy(head=head))
    return loss


def value_of(loss: DistillationLoss, student: Tensor, teacher: Tensor, **batch: Any) -> Tensor:
    """The loss of these logits."""
    value: Tensor = loss(Representations(student), Representations(teacher), Batch(len(student), **batch))
    return value


def read(shared: Path, name: str) -> tuple[golden.Case, dict[str, Tensor]]:
    """One golden case, and its tensors."""
    case = next(case for case in golden.read_cases(shared / "methods" / "golden.json") if case["id"] == name)
    lists = {key: value for key, value in case["inputs"].items() if isinstance(value, list)}
    return case, {key: torch.tensor(value, dtype=torch.float64) for key, value in lists.items()}


@pytest.mark.data
@pytest.mark.parametrize("name", GOLDEN)
def test_a_class_gives_the_golden_value(name: str, shared: Path) -> None:
    """A keyword that does not reach its formula, or swapped sides, shows here and nowhere else."""
    case, inputs = read(shared, name)
    value = value_of(bound(GOLDEN[name]()), inputs["s"], inputs["t"], labels=inputs["labels"].long())
    assert value.item() == pytest.approx(case["expected"], rel=1e-9)


@pytest.mark.data
def test_universal_logits_give_the_golden_value(shared: Path) -> None:
    """The file's spans as labels of either side's own tokens."""
    case, inputs = read(shared, "uld/v5_v8")
    labels = []
    for side in "st":
        spans = inputs[f"{side}_spans"].long()
        given = torch.full(inputs[side].shape[:2], IGNORE_INDEX)
        for row, (start, length) in zip(given, spans.tolist(), strict=True):
            row[start : start + length] = 1
        labels.append(given)
    loss = bound(UniversalLogitLoss())
    batch = {"labels": labels[0], "teacher_labels": labels[1]}
    assert value_of(loss, inputs["s"], inputs["t"], **batch).item() == pytest.approx(case["expected"], rel=1e-9)
    assert loss.count(Batch(4, **batch)) == 4


@pytest.mark.parametrize("make", SOFTENED.values(), ids=SOFTENED)
def test_temperature_softens_and_is_squared_only_on_demand(make: Callable[..., DistillationLoss]) -> None:
    """The papers leave T^2 out, which a user of soft targets would not expect; schedules are read at the progress."""
    student, teacher = torch.randn(4, 5), torch.randn(4, 5)
    plain = value_of(make(), student, teacher)
    torch.testing.assert_close(value_of(make(temperature=3.0), 3 * student, 3 * teacher), plain)
    scaled = make(temperature=Linear(1.0, 3.0), scale_by_temperature=True)
    torch.testing.assert_close(value_of(scaled, 3 * student, 3 * teacher, progress=1.0), 9 * plain)
    torch.testing.assert_close(value_of(scaled, student, teacher), plain)


@pytest.mark.parametrize("make", SOFTENED.values(), ids=SOFTENED)
def test_a_causal_position_counts_where_the_next_token_is_labelled(make: Callable[..., DistillationLoss]) -> None:
    """One position off, and the end of the prompt teaches nothing while the end of the answer teaches what follows."""
    loss = bound(make(), CAUSAL)
    student, teacher = torch.randn(1, 4, 5), torch.randn(1, 4, 5)
    labels = torch.tensor([[-100, -100, 2, 1]])
    torch.testing.assert_close(
        value_of(loss, student, teacher, labels=labels), value_of(make(), student[0, 1:3], teacher[0, 1:3])
    )
    assert loss.count(Batch(1, labels)) == 2


def test_a_cut_teacher_makes_the_reverse_kl_infinite_and_nothing_else() -> None:
    """The way out that ReverseKLLoss names must be one."""
    student, teacher = torch.randn(2, 4), torch.randn(2, 4)
    teacher[:, 0] = -math.inf
    assert value_of(ReverseKLLoss(), student, teacher) == math.inf
    for loss in (SkewedKLLoss("reverse"), JensenShannonLoss(), TotalVariationLoss(), TopKLoss(3)):
        assert value_of(loss, student, teacher).isfinite()


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_alpha_is_the_share_of_the_first_side(direction: str) -> None:
    """Two sides with nothing in common are -log(alpha) apart, whichever is the first."""
    student, teacher = torch.tensor([[0.0, -math.inf]]), torch.tensor([[-math.inf, 0.0]])
    value = value_of(SkewedKLLoss(direction, 0.25), student, teacher)
    assert value.item() == pytest.approx(math.log(4.0))


def test_top_k_beyond_the_classes_is_the_forward_kl() -> None:
    """The default k is for vocabularies; a classifier has fewer classes."""
    student, teacher = torch.randn(4, 3), torch.randn(4, 3)
    for missing in ("tail", "zero"):
        torch.testing.assert_close(value_of(TopKLoss(10, missing), student, teacher), soft_target_kl(student, teacher))
    torch.testing.assert_close(value_of(JensenShannonLoss(1.0), student, teacher), reverse_kl(student, teacher))


# (student's labels, teacher's labels, student's positions, teacher's positions) of a causal pair, -100 as _
_ = IGNORE_INDEX
ALIGNED = {
    "masked prompts of unequal length": ([_, _, 1, 2, 3], [_, 1, 2, 3], [1, 2, 3], [0, 1, 2]),
    "the longer answer is cut": ([_, 1, 2, _, _], [_, _, 4, 5, 6], [0, 1], [1, 2]),
    "no leading -100": ([4, 1, 2, _], [4, 1, 2], [0, 1], [0, 1]),
    "one side alone has no leading -100": ([4, 1, 2], [_, 1, 2], [0, 1], [0, 1]),
    "two answers in one row": ([_, 1, _, 2, _], [_, _, 1, 2], [0, 2], [1, 2]),
}


@pytest.mark.parametrize("case", ALIGNED)
def test_the_answers_predictors_are_compared_in_order(case: str) -> None:
    """Aligned by the labels themselves, a row without a prompt is one position off the others (as in known code)."""
    labels, teacher_labels, ours, theirs = ALIGNED[case]
    student, teacher = torch.randn(1, len(labels), 5), torch.randn(1, len(teacher_labels), 7)
    loss = bound(UniversalLogitLoss(), CAUSAL)
    value = value_of(
        loss, student, teacher, labels=torch.tensor([labels]), teacher_labels=torch.tensor([teacher_labels])
    )
    torch.testing.assert_close(value, universal_logit(student[:, ours], teacher[:, theirs]))


def test_padding_on_the_left_shifts_no_answer() -> None:
    """The place before the first token predicts it, but if it is padding it has read nothing."""
    student, teacher = torch.randn(1, 4, 5), torch.randn(1, 3, 7)
    loss = bound(UniversalLogitLoss(), CAUSAL)
    batch: dict[str, Any] = {
        "labels": torch.tensor([[_, 4, 1, 2]]),
        "mask": torch.tensor([[0, 1, 1, 1]]),
        "teacher_labels": torch.tensor([[4, 1, 2]]),
        "teacher_mask": torch.tensor([[1, 1, 1]]),
    }
    value = value_of(loss, student, teacher, **batch)
    torch.testing.assert_close(value, universal_logit(student[:, 1:3], teacher[:, :2]))


def test_rows_without_a_pair_do_not_count() -> None:
    """A row whose answer one tokenizer's cut left out has nothing to compare; the mean is over the others."""
    student, teacher = torch.randn(3, 3, 5), torch.randn(3, 4, 7)
    labels = torch.tensor([[_, 1, 2], [_, _, _], [_, 1, _]])
    teacher_labels = torch.tensor([[_, 1, 2, 3], [_, 1, 2, 3], [_, _, _, _]])
    loss = bound(UniversalLogitLoss(), CAUSAL)
    batch = {"labels": labels, "teacher_labels": teacher_labels}
    expected = universal_logit(student[:1, :2], teacher[:1, :2])
    torch.testing.assert_close(value_of(loss, student, teacher, **batch), expected)
    assert loss.count(Batch(3, **batch)) == 1


@pytest.mark.parametrize("own_tokens", [False, True])
def test_without_labels_all_real_positions_count(own_tokens: bool) -> None:
    """Unlabelled text distils too; one tokenizer with two vocabularies has one mask."""
    student, teacher = torch.randn(2, 4, 5), torch.randn(2, 4, 7)
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]])
    theirs = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]]) if own_tokens else mask
    batch = {"mask": mask} | ({"teacher_mask": theirs} if own_tokens else {})
    expected = universal_logit(student, teacher, student_mask=mask, teacher_mask=theirs)
    loss = bound(UniversalLogitLoss(), CAUSAL)
    torch.testing.assert_close(value_of(loss, student, teacher, **batch), expected)
    assert loss.count(Batch(2, **batch)) == 2
    assert loss.count(Batch(2)) == 2


@pytest.mark.parametrize("labelled", [True, False])
def test_a_row_of_a_classifier_is_one_position(labelled: bool) -> None:
    """Whatever tokens the teacher reads: its answer is one row. The two may even have different classes."""
    student, teacher = torch.randn(3, 2), torch.randn(3, 4)
    labels = torch.tensor([0, IGNORE_INDEX, 1]) if labelled else None
    rows = [0, 2] if labelled else [0, 1, 2]
    batch = {"labels": labels, "mask": torch.ones(3, 5), "teacher_mask": torch.ones(3, 7)}
    loss = UniversalLogitLoss(2.0, teacher_temperature=3.0, top=1)
    loss.bind(toy_anatomy(classes=2), toy_anatomy(classes=4))
    expected = universal_logit(student[rows, None], teacher[rows, None], 2.0, top=1, teacher_temperature=3.0)
    torch.testing.assert_close(value_of(loss, student, teacher, **batch), expected)
    assert loss.count(Batch(3, **batch)) == len(rows)


def test_sides_that_cannot_be_aligned_are_refused() -> None:
    """A mask of other tokens, or the labels of one side alone, would align what does not correspond."""
    student, teacher = torch.randn(1, 3, 5), torch.randn(1, 4, 5)
    labels = torch.tensor([[_, 1, 2]])
    loss = bound(UniversalLogitLoss(), CAUSAL)
    with pytest.raises(ValueError, match=r"the teacher's own tokens, got \(1, 3\) for logits \(1, 4, 5\).*teacher_la"):
        value_of(loss, student, teacher, labels=labels)
    with pytest.raises(ValueError, match=r"both models or of none, got those of the student alone.*column teacher_la"):
        value_of(loss, student, teacher, labels=labels, teacher_mask=torch.ones(1, 4))
    with pytest.raises(ValueError, match=r"got those of the teacher alone.*column labels"):
        value_of(loss, student, teacher, teacher_labels=torch.tensor([[_, 1, 2, 3]]))
    with pytest.raises(ValueError, match=r"heads of one kind, got ForCausalLM \(student\) and ForToken.*next token"):
        loss.bind(toy_anatomy(head=CAUSAL), toy_anatomy(head=TOKENS))
    with pytest.raises(ValueError, match=r"at least 2 classes, got 1 \(student\) and 3 \(teacher\).*SoftTargetLoss"):
        loss.bind(toy_anatomy(classes=1), toy_anatomy())
    with pytest.raises(ValueError, match=r"logits of both models, but the teacher gave none"):
        loss(Representations(student), Representations(), Batch(1))


REFUSED: dict[str, tuple[Callable[[], DistillationLoss], str]] = {
    "beta": (lambda: JensenShannonLoss(1.5), r"beta must be from 0 to 1, got 1.5: it is the share"),
    "alpha": (lambda: SkewedKLLoss(alpha=-0.1), r"alpha must be from 0 to 1, got -0.1: it is the share"),
    "alpha 1": (lambda: SkewedKLLoss(alpha=1.0), r"alpha must be below 1.*0 whatever the student answers"),
    "direction": (lambda: SkewedKLLoss("both"), r"direction must be one of 'forward', 'reverse', got 'both'"),
    "form": (lambda: SkewedKLLoss(form="ce"), r"form must be one of 'kl', 'cross_entropy', got 'ce'"),
    "reverse form": (
        lambda: SkewedKLLoss("reverse", form="cross_entropy"),
        r"for direction='forward'.*has a gradient",
    ),
    "k": (lambda: TopKLoss(0), r"k must be at least 1, got 0"),
    "missing": (lambda: TopKLoss(2, "uniform"), r"missing must be one of 'tail', 'zero', got 'uniform'"),
    "temperature": (lambda: TopKLoss(2, temperature=0.0), r"temperature must be above 0, got 0.0"),
    "their temperature": (lambda: UniversalLogitLoss(teacher_temperature=-1.0), r"must be above 0, got -1.0"),
    "top": (lambda: UniversalLogitLoss(top=0), r"top must be at least 1, got 0"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_settings_that_make_no_sense_are_refused(case: str) -> None:
    """At construction, before a night of training on something else than what was meant."""
    make, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        make()
    for single in (ReverseKLLoss(), JensenShannonLoss(), TopKLoss()):
        with pytest.raises(ValueError, match=r"needs at least 2 classes, got 1"):
            single.bind(toy_anatomy(classes=1), toy_anatomy(classes=1))
