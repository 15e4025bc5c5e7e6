"""Decoupled, correlated, standardised and hard targets as losses: golden values, options, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import golden
import pytest
import torch
from torch import Tensor
from toy_representations import STUDENT, TEACHER, TOKENS, toy_anatomy

from hfdistill.functional.classes import class_correlation, decoupled_kl, standardized_kl
from hfdistill.losses.logits import LogitLoss, Targets
from hfdistill.losses.response import correlation
from hfdistill.losses.response.correlation import CorrelationLoss
from hfdistill.losses.response.decoupled import DecoupledLoss
from hfdistill.losses.response.hard_label import HardLabelLoss
from hfdistill.losses.response.soft_target import SoftTargetLoss
from hfdistill.losses.response.standardized import StandardizedLoss
from hfdistill.losses.task import TaskLoss
from hfdistill.objective import Objective
from hfdistill.representations import IGNORE_INDEX, Batch, Representations
from hfdistill.schedules import Linear


def value_of(
    loss: LogitLoss, student: Tensor, teacher: Tensor, labels: Tensor | None = None, **batch: float
) -> Tensor:
    """The loss of these logits."""
    value: Tensor = loss(Representations(student), Representations(teacher), Batch(len(student), labels, **batch))
    return value


GOLDEN: dict[str, Callable[[], LogitLoss]] = {
    "dkd/1_8_4": DecoupledLoss,
    "dist/tau1": CorrelationLoss,
    "dist/tau4": lambda: CorrelationLoss(2.0, 2.0, temperature=4.0),
    "logit_std/T2": StandardizedLoss,
}


@pytest.mark.data
@pytest.mark.parametrize("name", GOLDEN)
def test_a_class_gives_the_golden_value(name: str, shared: Path) -> None:
    """A keyword that does not reach its formula, or a swapped side, shows here and nowhere else."""
    case = next(case for case in golden.read_cases(shared / "methods" / "golden.json") if case["id"] == name)
    inputs = {key: torch.tensor(value, dtype=torch.float64) for key, value in case["inputs"].items()}
    labels = inputs["y"].long() if "y" in inputs else None
    value = value_of(GOLDEN[name](), inputs["s"], inputs["t"], labels)
    assert value.item() == pytest.approx(case["expected"], rel=1e-9)


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "kd"),
    [("deit/hard", HardLabelLoss(0.5)), ("deit/soft", SoftTargetLoss(3.0, reduction="elementmean", weight=0.1))],
)
def test_hard_and_soft_targets_give_deits_totals(name: str, kd: LogitLoss, shared: Path) -> None:
    """On two heads, as in the paper: labels for the first, the teacher for the second."""
    case = next(case for case in golden.read_cases(shared / "methods" / "golden.json") if case["id"] == name)
    inputs = {key: torch.tensor(value, dtype=torch.float64) for key, value in case["inputs"].items()}
    batch, teacher = Batch(4, inputs["y"].long()), Representations(inputs["t"])
    share = kd.weight(0.0)
    total = Objective(task=TaskLoss(weight=1 - share))(Representations(inputs["s_cls"]), teacher, batch).loss
    total = total + Objective(kd=kd)(Representations(inputs["s_dist"]), teacher, batch).loss
    assert total.item() == pytest.approx(case["expected"], rel=1e-9)


@pytest.mark.parametrize("kind", [DecoupledLoss, CorrelationLoss, StandardizedLoss])
def test_two_classes_are_refused_with_advice(kind: type[LogitLoss]) -> None:
    """A part of each is a constant there, and a run would only look as if it learnt."""
    two = toy_anatomy(classes=2)
    with pytest.raises(ValueError, match=rf"{kind.__name__} needs at least 3 classes, got 2: .* Use SoftTargetLoss"):
        kind().bind(two, replace(TEACHER, classes=2))
    kind().bind(STUDENT, TEACHER)


def test_one_class_has_no_hard_label() -> None:
    """Regression: the likeliest of one class is that class, a loss of 0 for ever."""
    HardLabelLoss().bind(toy_anatomy(classes=2), toy_anatomy(classes=2))
    with pytest.raises(ValueError, match=r"HardLabelLoss needs at least 2 classes, got 1: .* Use SoftTargetLoss"):
        HardLabelLoss().bind(toy_anatomy(classes=1), toy_anatomy(classes=1))


@pytest.mark.parametrize("labels", [None, torch.tensor([0.5, 1.0])])
def test_decoupling_needs_class_labels(labels: Tensor | None) -> None:
    """Without them there is no label to keep apart; unlabelled data have another loss."""
    with pytest.raises(ValueError, match=r"DecoupledLoss reads the class labels, got .* or use SoftTargetLoss"):
        value_of(DecoupledLoss(), torch.randn(2, 3), torch.randn(2, 3), labels)
    with pytest.raises(ValueError, match=r"DecoupledLoss reads the class labels, got none"):
        DecoupledLoss().compare(torch.randn(2, 3), torch.randn(2, 3), Targets(None, None, 0.0))


def test_decoupling_takes_the_next_tokens_label_in_causal_models() -> None:
    """A causal position answers for the token after it: that one must be kept apart, not its own."""
    causal = toy_anatomy(head="ForCausalLM")
    loss = DecoupledLoss(temperature=1.0)
    loss.bind(causal, causal)
    student, teacher = torch.randn(2, 1, 4, 5)
    value = value_of(loss, student, teacher, torch.tensor([[IGNORE_INDEX, IGNORE_INDEX, 2, 1]]))
    torch.testing.assert_close(value, decoupled_kl(student[0, 1:3], teacher[0, 1:3], torch.tensor([2, 1]), 1.0))


def test_options_reach_the_formulas() -> None:
    """A weight that goes nowhere, or into the other's place, is another method."""
    student, teacher = torch.randn(2, 4, 5)
    labels = torch.tensor([0, 1, 2, 3])
    value = value_of(DecoupledLoss(0.5, 3.0, 2.0), student, teacher, labels)
    torch.testing.assert_close(value, decoupled_kl(student, teacher, labels, 2.0, alpha=0.5, beta=3.0))
    value = value_of(CorrelationLoss(0.5, 3.0, 2.0), student, teacher)
    torch.testing.assert_close(value, class_correlation(student, teacher, 2.0, beta=0.5, gamma=3.0))
    value = value_of(StandardizedLoss(3.0), student, teacher)
    torch.testing.assert_close(value, standardized_kl(student, teacher, 3.0))


@pytest.mark.parametrize(
    "kind",
    [lambda t: DecoupledLoss(temperature=t), lambda t: CorrelationLoss(temperature=t), StandardizedLoss],
)
def test_temperature_follows_the_training(kind: Callable[..., LogitLoss]) -> None:
    """A scheduled temperature is read at the batch's progress; one that is not positive is refused at once."""
    student, teacher, labels = torch.randn(4, 5), torch.randn(4, 5), torch.tensor([0, 1, 2, 3])
    scheduled = value_of(kind(Linear(4.0, 2.0)), student, teacher, labels, progress=1.0)
    torch.testing.assert_close(scheduled, value_of(kind(2.0), student, teacher, labels))
    assert scheduled != value_of(kind(3.0), student, teacher, labels)
    with pytest.raises(ValueError, match=r"temperature must be above 0, got 0"):
        kind(0)


@pytest.mark.parametrize("labelled", [True, False])
def test_gathering_correlates_the_rows_of_all_processes(labelled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits and what counts of them must be gathered alike, as rows: other processes pad to other lengths."""
    here, there = torch.randn(2, 2, 3, 4), torch.randn(2, 1, 5, 4)  # student and teacher, (B, N, K)
    labels = torch.tensor([[0, 1, IGNORE_INDEX], [2, 3, 0]])
    others = torch.tensor([True, True, False, True, False])
    waiting = [there[0].flatten(0, 1), there[1].flatten(0, 1), others]
    monkeypatch.setattr(correlation, "gathered_rows", lambda rows: torch.cat([rows, waiting.pop(0)]))
    loss = CorrelationLoss(gather=True)
    loss.bind(replace(STUDENT, head=TOKENS), replace(TEACHER, head=TOKENS))
    value = value_of(loss, here[0], here[1], labels if labelled else None)
    kept = labels.flatten() != IGNORE_INDEX if labelled else torch.ones(6, dtype=torch.bool)
    rows = [torch.cat([here[side].flatten(0, 1)[kept], there[side].flatten(0, 1)[others]]) for side in (0, 1)]
    torch.testing.assert_close(value, class_correlation(*rows))
    assert not waiting


def test_hard_labels_are_the_teachers_and_not_the_batchs() -> None:
    """Labels of the batch say only which rows count."""
    student, teacher = torch.randn(3, 4), torch.randn(3, 4)
    labels = torch.tensor([0, IGNORE_INDEX, 1])
    expected = torch.nn.functional.cross_entropy(student[[0, 2]], teacher[[0, 2]].argmax(-1))
    loss = HardLabelLoss()
    torch.testing.assert_close(value_of(loss, student, teacher, labels), expected)
    assert loss.count(Batch(3, labels)) == 2
