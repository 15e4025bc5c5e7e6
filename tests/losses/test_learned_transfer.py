"""Learned transfer: the candidates, the weights at the start, and meta networks that learn what helps the task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call
from toy_models import text_inputs, toy_bert
from toy_representations import STUDENT, TEACHER, toy_anatomy, toy_scene
from training_toys import largest_difference, trainer_of, weights_of

from hfdistill import Batch, Objective, Representations, TaskLoss
from hfdistill.capture import capture
from hfdistill.functional import hidden_mse
from hfdistill.losses.feature.learned_transfer import LearnedTransferLoss, spaced
from hfdistill.meta_gradient import meta_gradients
from hfdistill.pairing import check_bilevel


def test_begins_as_plain_hints_between_all_candidates() -> None:
    """With equal channels and lambda 1 it is the mean squared difference, summed over all pairs."""
    student = toy_anatomy(width=12)
    loss, scene = LearnedTransferLoss("uniform"), toy_scene(student, TEACHER, lengths=(4, 4, 4))
    loss.bind(student, TEACHER)
    assert loss.pairs == ((1, 2), (2, 2), (1, 4), (2, 4))
    hints = [
        hidden_mse(scene.student.hidden_states[ours], scene.teacher.hidden_states[theirs])
        for ours, theirs in loss.pairs
    ]
    torch.testing.assert_close(loss(*scene.parts()), torch.stack(hints).sum())


def test_candidates_are_spread_over_the_depth() -> None:
    """The last layer must be among them; all of a deep model's pairs would cost a projector each."""
    assert spaced([1, 2, 3], 4) == (1, 2, 3)
    assert spaced(list(range(1, 13)), 4) == (3, 6, 9, 12)
    assert spaced(list(range(1, 7)), 4) == (2, 3, 5, 6)
    loss = LearnedTransferLoss("uniform", candidates=4)
    loss.bind(toy_anatomy(depth=6), toy_anatomy(depth=12))
    assert len(loss.pairs) == 16


def test_the_student_descends_with_the_meta_networks_fixed() -> None:
    """Trained to make the loss small, lambda would fall to 0 and nothing would be transferred."""
    loss, scene = LearnedTransferLoss(), toy_scene()
    loss.bind(STUDENT, TEACHER)
    scene = scene.watched()
    loss(*scene.parts()).backward()
    assert all(parameter.grad is None and parameter.requires_grad for parameter in loss.meta_networks().parameters())
    assert all(parameter.grad is not None for parameter in loss.projectors.parameters())
    loss.matching(*scene.parts()).backward()
    assert all(parameter.grad is not None for parameter in loss.meta_networks().parameters())


def situation() -> tuple[Any, LearnedTransferLoss, dict[str, Tensor], Representations, Batch]:
    """A double-precision student, a bound loss, and what a teacher showed."""
    student = toy_bert().double().eval()
    teacher = toy_bert(layers=4, width=24, seed=1).double().eval()
    inputs = text_inputs() | {"labels": torch.tensor([0, 1, 2])}
    loss = LearnedTransferLoss(candidates=1)
    loss.bind(toy_anatomy(width=16), toy_anatomy(width=24, depth=4))
    with torch.no_grad():
        _, shown = capture(teacher, text_inputs(), loss.needs()[1])
    return student, loss.double(), inputs, shown, Batch.of(inputs)


def outcome(
    student: Any,
    loss: LearnedTransferLoss,
    inputs: dict[str, Tensor],
    shown: Representations,
    batch: Batch,
    rate: float,
) -> Tensor:
    """The task loss of a virtual student, its steps made one by one without a graph through them."""
    model = {name: own.detach().clone().requires_grad_() for name, own in student.named_parameters()}
    maps = {f"projectors.{name}": own.detach().clone() for name, own in loss.projectors.named_parameters()}
    task = TaskLoss()
    for step in range(loss.virtual_steps + 1):
        output = functional_call(student, model, (), {**inputs, "output_hidden_states": True})
        seen = Representations(output.logits, dict(enumerate(output.hidden_states)))
        last = step == loss.virtual_steps
        maps = {name: own.detach().requires_grad_() for name, own in maps.items()}
        value = task(seen, Representations(), batch) if last else functional_call(loss, maps, (seen, shown, batch))
        for weights in (model,) if last else (model, maps):
            found = torch.autograd.grad(value, list(weights.values()), allow_unused=True, retain_graph=True)
            for (name, own), gradient in zip(list(weights.items()), found, strict=True):
                moved = own if gradient is None else own - rate * gradient
                weights[name] = moved.detach().requires_grad_()
    logits = functional_call(student, model, (), inputs).logits
    return task(Representations(logits), Representations(), batch).detach()


def test_meta_gradients_are_those_of_the_virtual_students_outcome() -> None:
    """Compared with numerical differences of the whole inner loop: a step left out of the graph would show."""
    student, loss, inputs, shown, batch = situation()
    before = weights_of(student)
    found = meta_gradients(student, loss, inputs, shown, batch, 0.5)
    assert largest_difference(before, weights_of(student)) == 0
    for parameter, gradient in zip(loss.meta_networks().parameters(), found, strict=True):
        place = int(gradient.abs().argmax())
        flat, values = parameter.data.view(-1), []
        for step in (1e-3, -2e-3):
            flat[place] += step
            values.append(outcome(student, loss, inputs, shown, batch, 0.5))
        flat[place] += 1e-3
        numerical = (values[0] - values[1]) / 2e-3
        assert gradient.view(-1)[place] != 0
        torch.testing.assert_close(gradient.view(-1)[place], numerical, rtol=1e-3, atol=1e-12)


@pytest.mark.parametrize("steps", [0, 2])
def test_meta_networks_learn_in_the_trainer(steps: int, tmp_path: Path) -> None:
    """Without the trainer's part they would stay uniform for ever, and nothing would tell."""
    loss = LearnedTransferLoss(candidates=2, virtual_steps=steps)
    trainer = trainer_of(
        tmp_path,
        Objective(task=TaskLoss(), match=loss),
        toy_bert(),
        teacher=toy_bert(layers=4, width=24),
        optim="adamw_torch",
        gradient_accumulation_steps=2,
        per_device_train_batch_size=2,
    )
    before = weights_of(loss.meta_networks())
    trainer.train()
    assert (largest_difference(before, weights_of(loss.meta_networks())) > 0) == (steps > 0)


@pytest.mark.parametrize("wrong", [{"candidates": 0}, {"virtual_steps": -1}])
def test_impossible_sizes_are_refused(wrong: dict[str, int]) -> None:
    """Zero candidates would match nothing, and train without a word."""
    with pytest.raises(ValueError, match="Take 4 and 2"):
        LearnedTransferLoss(**wrong)


def test_a_student_in_shards_is_refused() -> None:
    """Its meta networks would stay as they began, and nothing would tell."""
    check_bilevel(Objective(match=LearnedTransferLoss(virtual_steps=0)), sharded=True)
    check_bilevel(Objective(match=LearnedTransferLoss()), sharded=False)
    with pytest.raises(ValueError, match="set virtual_steps=0"):
        check_bilevel(Objective(task=TaskLoss(), match=LearnedTransferLoss()), sharded=True)
