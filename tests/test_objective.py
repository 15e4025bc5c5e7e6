"""The objective: which losses run when, how they are weighed, what is reported, and what is refused."""

from __future__ import annotations

import pytest
import torch
from toy_representations import STUDENT, TEACHER, toy_anatomy, toy_scene

from hfdistill.losses import AttentionMapLoss, HiddenStateLoss, SoftTargetLoss, TaskLoss
from hfdistill.objective import Objective
from hfdistill.representations import Batch, Needs, Representations
from hfdistill.schedules import Linear, Piecewise


def three_terms() -> Objective:
    """Labels throughout, hidden states in the first half, soft targets in the second."""
    objective = Objective(
        task=TaskLoss(weight=0.5),
        hidden=HiddenStateLoss([(2, 4)], weight=Piecewise({0.0: 2.0, 0.5: 0.0})),
        kd=SoftTargetLoss(weight=Piecewise({0.0: 0.0, 0.5: 3.0})),
    )
    objective.bind(STUDENT, TEACHER)
    return objective


def test_the_loss_is_the_weighted_sum_and_the_terms_are_not_weighted() -> None:
    """A term in the log must be comparable between runs of other weights."""
    objective, scene = three_terms(), toy_scene()
    result = objective(*scene.parts())
    task, hidden = objective["task"](*scene.parts()), objective["hidden"](*scene.parts())
    torch.testing.assert_close(result.loss, 0.5 * task + 2.0 * hidden)
    torch.testing.assert_close(result.terms, {"task": task.detach(), "hidden": hidden.detach()})
    assert result.loss.requires_grad
    assert not any(term.requires_grad for term in result.terms.values())


def test_a_loss_of_weight_zero_does_not_run() -> None:
    """Neither its own work nor the teacher's pass may be paid for where it counts nothing."""
    objective, scene = three_terms(), toy_scene()
    scene.batch.progress = 0.5
    assert set(objective(*scene.parts()).terms) == {"task", "kd"}
    assert set(objective.active(0.0)) == {"task", "hidden"}
    last = frozenset({2})
    assert objective.needs(0.0) == (
        Needs(logits=True, hidden_states=last),
        Needs(hidden_states=frozenset({4})),
    )
    assert objective.needs(0.5) == (Needs(logits=True), Needs(logits=True))
    assert objective.needs() == (
        Needs(logits=True, hidden_states=last),
        Needs(logits=True, hidden_states=frozenset({4})),
    )


def test_weights_follow_their_schedules() -> None:
    """What the log shows as weight/<name>."""
    objective = Objective(task=TaskLoss(weight=Linear(1.0, 0.0)), kd=SoftTargetLoss())
    assert objective.weights(0.25) == {"task": 0.75, "kd": 1.0}


def test_scales_multiply_each_term_before_its_weight() -> None:
    """One factor per loss, in the order of the names, also where another loss does not run."""
    objective, scene = three_terms(), toy_scene()
    scene.batch.progress = 1.0
    plain = objective(*scene.parts())
    scaled = objective(*scene.parts(), torch.tensor([2.0, torch.nan, 0.25]))
    torch.testing.assert_close(scaled.terms, {"task": 2 * plain.terms["task"], "kd": 0.25 * plain.terms["kd"]})
    torch.testing.assert_close(scaled.loss, 0.5 * 2 * plain.terms["task"] + 3 * 0.25 * plain.terms["kd"])


def test_counts_are_those_of_each_loss() -> None:
    """Labels, tokens and rows are counted apart: one number for all would be wrong for two of them."""
    objective = three_terms()
    batches = [toy_scene().batch, toy_scene(lengths=(3, 3)).batch]
    assert objective.counts(batches).tolist() == [2 + 1, 11 + 6, 2 + 1]


def test_micro_batches_of_several_losses_make_the_whole() -> None:
    """Each loss averages over items of its own; the sum over micro-batches must still be the whole batch's loss."""
    objective = Objective(task=TaskLoss(), hidden=HiddenStateLoss(), map=AttentionMapLoss(weight=0.1))
    objective.bind(STUDENT, TEACHER)
    scene = toy_scene(lengths=(5, 1, 4, 2, 3))
    parts = [scene.rows(slice(0, 1)), scene.rows(slice(1, 4)), scene.rows(slice(4, 5))]
    totals = objective.counts(part.batch for part in parts)
    losses = [
        objective(*part.parts(), objective.counts([part.batch]) * len(parts) / totals).loss for part in parts[:2]
    ]
    ignored = objective.counts([parts[2].batch])
    assert ignored[0] == 0  # the last row's label is ignored: its task term must count 0, not 0 / 0
    losses.append(objective(*parts[2].parts(), ignored * len(parts) / totals).loss)
    torch.testing.assert_close(torch.stack(losses).mean(), objective(*scene.parts()).loss)


def test_names_and_losses_can_be_looked_up() -> None:
    """A user who tunes one term finds it by its name; an unknown one is a KeyError as in a dict."""
    objective = three_terms()
    assert list(objective) == ["task", "hidden", "kd"]
    assert isinstance(objective["kd"], SoftTargetLoss)
    assert repr(objective) == "Objective(task=TaskLoss, hidden=HiddenStateLoss, kd=SoftTargetLoss)"
    with pytest.raises(KeyError):
        objective["attention"]


def test_trainable_parts_are_parameters_of_the_objective() -> None:
    """This is how they reach the optimizer, the checkpoint and the device."""
    names = [name for name, _ in three_terms().named_parameters()]
    assert names == ["losses.hidden.projectors.0.linear.weight", "losses.hidden.projectors.0.linear.bias"]


def test_what_cannot_be_bound_names_its_term() -> None:
    """With five losses the message must say which one."""
    objective = Objective(task=TaskLoss(), kd=SoftTargetLoss())
    with pytest.raises(ValueError, match=r"objective term 'kd': SoftTargetLoss needs the same number of classes"):
        objective.bind(STUDENT, toy_anatomy(classes=5))


def test_an_empty_objective_is_refused() -> None:
    """There would be nothing to train on."""
    with pytest.raises(ValueError, match=r"at least one loss, got none.*Objective\(task=TaskLoss\(\)"):
        Objective()


@pytest.mark.parametrize("loss", [torch.nn.Linear, torch.nn.Linear(1, 1), SoftTargetLoss])
def test_what_is_no_loss_is_refused(loss: object) -> None:
    """A class instead of an instance is the usual slip."""
    with pytest.raises(TypeError, match=r"the loss 'x' must be a DistillationLoss, got \w+.*subclass"):
        Objective(x=loss)  # type: ignore[arg-type]


def test_an_objective_that_is_switched_off_says_so() -> None:
    """A schedule that ends before the training does would otherwise fail without a graph, or train on nothing."""
    objective = Objective(kd=SoftTargetLoss(weight=Piecewise({0.0: 1.0, 0.8: 0.0})))
    scene = toy_scene()
    assert objective(*scene.parts()).loss > 0
    with pytest.raises(ValueError, match=r"every loss of Objective\(kd=.*has the weight 0 at.*0.900.*above 0"):
        objective(Representations(), Representations(), Batch(2, progress=0.9))
