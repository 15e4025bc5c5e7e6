"""Presets of image classifiers: DeiT's two forms with its weights and reductions, and function matching."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import golden
import pytest
import torch
from toy_representations import STUDENT, TEACHER, toy_scene

from hfdistill import Needs, Objective, preset
from hfdistill.losses.response.hard_label import HardLabelLoss
from hfdistill.losses.response.soft_target import SoftTargetLoss
from hfdistill.presets.vision import deit, deit_soft, funmatch
from hfdistill.representations import Batch, Representations


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "make"), [("deit/hard", deit), ("deit/soft", lambda: deit_soft(reduction="elementmean"))]
)
def test_the_total_on_two_heads_is_golden(name: str, make: Callable[[], Objective], shared: Path) -> None:
    """Weights, heads, temperature and reduction together: what the authors' code gives for the same logits."""
    case = next(case for case in golden.read_cases(shared / "methods" / "golden.json") if case["id"] == name)
    inputs = {key: torch.tensor(value, dtype=torch.float64) for key, value in case["inputs"].items()}
    heads = inputs["s_cls"], inputs["s_dist"]
    student = Representations((heads[0] + heads[1]) / 2, class_logits=heads[0], distillation_logits=heads[1])
    result = make()(student, Representations(inputs["t"]), Batch(4, inputs["y"].long()))
    assert result.loss.item() == pytest.approx(case["expected"], rel=1e-9)


def test_weights_and_options_reach_their_losses() -> None:
    """They are the method, and mean what the paper means by them only with its reduction."""
    assert deit().weights(0.0) == {"task": 0.5, "kd": 0.5}
    assert isinstance(deit()["kd"], HardLabelLoss)
    assert deit(alpha=0.25).weights(0.0) == {"task": 0.75, "kd": 0.25}
    assert deit_soft().weights(0.0) == {"task": 0.9, "kd": 0.1}
    assert preset("deit_soft", alpha=0.25).weights(0.0) == {"task": 0.75, "kd": 0.25}
    soft = deit_soft()["kd"]
    assert isinstance(soft, SoftTargetLoss)
    assert (soft.reduction, soft.temperature(0.0), soft.scale_by_temperature) == ("mean", 3.0, True)
    soft = deit_soft(temperature=2.0, reduction="elementmean")["kd"]
    assert isinstance(soft, SoftTargetLoss)
    assert (soft.reduction, soft.temperature(0.0)) == ("elementmean", 2.0)
    with pytest.raises(ValueError, match=r"reduction must be one of 'mean', 'elementmean', got 'batchmean'"):
        deit_soft(reduction="batchmean")


@pytest.mark.parametrize("make", [deit, deit_soft])
def test_a_share_is_between_0_and_1(make: Callable[..., Objective]) -> None:
    """At 1.5 the labels would weigh -0.5: the student would learn to be wrong."""
    with pytest.raises(ValueError, match=r"alpha must be a share between 0 and 1, got 1.5"):
        make(alpha=1.5)


def test_function_matching_is_the_plain_kl_without_labels() -> None:
    """Mixed images have no label that it would need; the whole distribution of the teacher is the target."""
    student, teacher = torch.randn(2, 4, 5)
    result = funmatch()(Representations(student), Representations(teacher), Batch(4))
    ours, theirs = student.log_softmax(-1), teacher.log_softmax(-1)
    torch.testing.assert_close(result.loss, (theirs.exp() * (theirs - ours)).sum(-1).mean())
    assert list(result.terms) == ["kd"]
    assert funmatch().needs() == (Needs(logits=True), Needs(logits=True))


@pytest.mark.parametrize("make", [deit, deit_soft, funmatch])
def test_each_gives_a_loss_with_a_gradient(make: Callable[..., Objective]) -> None:
    """With default arguments, on models of one head and of other width and depth."""
    objective, scene = make(), toy_scene().watched()
    objective.bind(STUDENT, TEACHER)
    value = objective(*scene.parts()).loss
    value.backward()
    assert value.isfinite()
    assert scene.student.logits is not None
    assert scene.student.logits.grad is not None
    assert scene.student.logits.grad.any()
