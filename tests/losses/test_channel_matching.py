"""Channels assigned by their likeness: when costs are gathered, when the assignment changes, and what it keeps."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, distributed
from toy_representations import STUDENT, TEACHER, Scene, toy_anatomy, toy_scene

from hfdistill.functional.channel_matching import channel_cost, channel_groups, reduced_channels
from hfdistill.losses.feature.channel_matching import ChannelMatchingLoss
from hfdistill.representations import Batch, Representations

ONE = ((1, 1),)


def bound(loss: ChannelMatchingLoss, student_width: int = 4, teacher_width: int = 8) -> ChannelMatchingLoss:
    """Bound to models of two layers."""
    loss.bind(toy_anatomy(student_width), toy_anatomy(teacher_width))
    return loss


def scene(seed: int, rows: int = 3) -> Scene:
    """A text batch for widths 4 and 8; rows differ in length."""
    return toy_scene(toy_anatomy(4), toy_anatomy(8), lengths=(5, 2, 4, 3)[:rows], seed=seed)


def costs_of(*scenes: Scene) -> Tensor:
    """The mean cost over the rows of several batches."""
    costs = [
        channel_cost(shown.student.hidden_states[1], shown.teacher.hidden_states[1], shown.batch.mask)
        for shown in scenes
    ]
    rows = torch.tensor([float(shown.batch.size) for shown in scenes])
    return (torch.stack(costs) * rows[:, None, None]).sum(0) / rows.sum()


def test_a_permuted_student_is_recognised_and_has_nothing_to_learn() -> None:
    """The property that the method stands on, through layer map, mask and memory."""
    loss = bound(ChannelMatchingLoss(ONE), 8, 8)
    shown = toy_scene(toy_anatomy(8), toy_anatomy(8))
    order = torch.randperm(8, generator=torch.Generator().manual_seed(0))
    teacher = shown.teacher.hidden_states[1]
    student = Representations(hidden_states={1: teacher[..., order]})
    assert loss(student, shown.teacher, shown.batch) == 0
    assert torch.equal(loss.groups[0, :, 0], order)


@pytest.mark.parametrize(("reduction", "name"), [("absolute_max", "absolute_max"), ("max", "max"), ("sparse", "max")])
def test_the_value_is_the_mean_square_to_the_reduced_teacher(reduction: str, name: str) -> None:
    """Over real tokens and the student's channels, summed over pairs of layers."""
    loss = bound(ChannelMatchingLoss(((1, 1), (2, 2)), reduction))
    shown = scene(0)
    value = loss(*shown.parts())
    mask = shown.batch.mask
    assert mask is not None
    expected = torch.zeros(())
    for position, layer in enumerate((1, 2)):
        target = reduced_channels(shown.teacher.hidden_states[layer], loss.groups[position], name)
        gap = shown.student.hidden_states[layer] - target
        expected = expected + gap[mask.bool()].square().mean()
    torch.testing.assert_close(value, expected)
    size = 1 if reduction == "sparse" else 2
    torch.testing.assert_close(loss.groups[0], channel_groups(costs_of(shown), size))


@pytest.mark.parametrize(("reduction", "size"), [("absolute_max", 2), ("max", 2), ("sparse", 1)])
def test_reductions_share_out_the_teachers_channels(reduction: str, size: int) -> None:
    """Nine channels over four: two each and one left over, or one each."""
    loss = bound(ChannelMatchingLoss(ONE, reduction), 4, 9)
    assert loss.groups.shape == (1, 4, size)
    assert loss.groups.unique().numel() == 4 * size


def test_an_assignment_holds_until_enough_batches_are_seen() -> None:
    """First batch, end of the first gathering, end of the next one: there and only there it changes."""
    loss = bound(ChannelMatchingLoss(ONE, update_every=4, cost_batches=2))
    shown = [scene(seed, rows=2 + seed % 2) for seed in range(7)]
    wanted = {0: shown[:1], 1: shown[:2], 5: shown[4:6]}
    held = loss.groups.clone()
    for turn, batch in enumerate(shown):
        loss(*batch.parts())
        if turn in wanted:
            torch.testing.assert_close(loss.cost[0] / loss.rows, costs_of(*wanted[turn]))
            held = channel_groups(costs_of(*wanted[turn]))[None]
        assert torch.equal(loss.groups, held)
    assert loss.batches == 7


def test_evaluation_sees_nothing() -> None:
    """Else the assignment, and with it the training, would depend on how often one evaluates."""
    loss = bound(ChannelMatchingLoss(ONE))
    loss(*scene(0).parts())
    before = {name: buffer.clone() for name, buffer in loss.named_buffers()}
    loss.eval()
    loss(*scene(1).parts())
    assert all(torch.equal(buffer, before[name]) for name, buffer in loss.named_buffers())


def test_with_one_assignment_micro_batches_add_up() -> None:
    """Between two updates the loss is a mean over tokens like any other."""
    loss = bound(ChannelMatchingLoss(ONE, update_every=9, cost_batches=1))
    whole = scene(0)
    expected = loss(*whole.parts())
    parts = [whole.rows(slice(0, 1)), whole.rows(slice(1, 3))]
    counts = [loss.count(part.batch) for part in parts]
    added = sum(loss(*part.parts()) * count for part, count in zip(parts, counts, strict=True)) / sum(counts)
    torch.testing.assert_close(added, expected)


def test_an_empty_first_batch_assigns_nothing() -> None:
    """Of no token every channel is as like as any other."""
    loss = bound(ChannelMatchingLoss(ONE, cost_batches=2, update_every=2))
    order = loss.groups.clone()
    loss(*scene(0).nothing_valid().parts())
    assert torch.equal(loss.groups, order)
    loss(*scene(1).parts())
    assert torch.equal(loss.groups[0], channel_groups(costs_of(scene(1))))


def test_a_resumed_run_goes_on_with_the_same_costs() -> None:
    """Everything that decides is in the state: the interrupted run must take the same turns."""
    loss, resumed = (bound(ChannelMatchingLoss(ONE, update_every=3, cost_batches=3)) for _ in range(2))
    loss(*scene(0).parts())
    resumed.load_state_dict(loss.state_dict())
    for seed in (1, 2):
        assert torch.equal(loss(*scene(seed).parts()), resumed(*scene(seed).parts()))
    assert torch.equal(loss.groups, resumed.groups)
    assert torch.equal(resumed.groups[0], channel_groups(costs_of(scene(0), scene(1), scene(2))))


def test_processes_share_their_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each sees its own rows, and all must assign alike: two halves give the assignment of the whole."""
    whole = scene(0, rows=4)
    other = bound(ChannelMatchingLoss(ONE))
    other(*whole.rows(slice(2, 4)).parts())
    missing = iter([other.cost.clone(), other.rows.clone()])
    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed, "all_reduce", lambda tensor: tensor.add_(next(missing)))
    loss = bound(ChannelMatchingLoss(ONE))
    loss(*whole.rows(slice(0, 2)).parts())
    torch.testing.assert_close(loss.cost[0] / loss.rows, costs_of(whole))
    assert torch.equal(loss.groups[0], channel_groups(costs_of(whole)))


def test_binding_to_other_widths_forgets() -> None:
    """Costs of other channels mean nothing; those of the same pair of models stay."""
    loss = bound(ChannelMatchingLoss(ONE))
    loss(*scene(0).parts())
    bound(loss)
    assert loss.batches == 1
    bound(loss, 4, 12)
    assert loss.batches == 0
    assert loss.groups.shape == (1, 4, 3)


def test_images_are_compared_without_their_class_tokens() -> None:
    """Places only, and the larger grid averaged to the smaller."""
    student, teacher = (
        replace(toy_anatomy(width), prefix_tokens=1, grid=(side, side)) for width, side in ((4, 2), (8, 4))
    )
    loss = ChannelMatchingLoss(ONE)
    loss.bind(student, teacher)
    shown = Representations(hidden_states={1: torch.randn(2, 5, 4)})
    target = Representations(hidden_states={1: torch.randn(2, 17, 8)})
    value = loss(shown, target, Batch(2))
    for side in (shown, target):
        side.hidden_states[1][:, 0] += 5
    assert torch.equal(loss(shown, target, Batch(2)), value)


def test_a_student_wider_than_its_teacher_is_refused() -> None:
    """Before training, with another way out."""
    with pytest.raises(ValueError, match=r"not wider than its teacher, got 12 and 8 in layers .* Use HiddenStateLoss"):
        ChannelMatchingLoss().bind(replace(TEACHER, depth=2), STUDENT)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reduction": "mean"}, r"reduction must be one of 'absolute_max', 'max', 'sparse', got 'mean'"),
        ({"cost_batches": 0}, r"1 <= cost_batches <= update_every, got 0 and 2000"),
        ({"update_every": 10}, r"1 <= cost_batches <= update_every, got 50 and 10"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, object], message: str) -> None:
    """At construction, where the user sees what was written."""
    with pytest.raises(ValueError, match=message):
        ChannelMatchingLoss(**options)  # type: ignore[arg-type]
