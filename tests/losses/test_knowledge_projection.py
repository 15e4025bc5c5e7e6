"""Knowledge projection: which candidates there are, how they are selected, and what every process agrees on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed
from toy_representations import LENGTHS, STUDENT, TEACHER, toy_anatomy, toy_scene

from hfdistill.functional.activation import projected_mse
from hfdistill.losses.feature import knowledge_projection
from hfdistill.losses.feature.knowledge_projection import KnowledgeProjectionLoss
from hfdistill.representations import Representations

LAYERS = {"student_layers": [1, 2], "teacher_layers": [1, 2, 4]}


def bound(**keywords: Any) -> KnowledgeProjectionLoss:
    """A loss with six candidates."""
    loss = KnowledgeProjectionLoss(**(LAYERS | keywords))
    loss.bind(STUDENT, TEACHER)
    return loss


def at(progress: float, seed: int = 0) -> tuple[Any, ...]:
    """A scene at this share of the run."""
    scene = toy_scene(seed=seed)
    return scene.student, scene.teacher, replace(scene.batch, progress=progress)


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[None]:
    """A process group of one process."""
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def test_candidates_are_all_pairs_of_the_layers_named() -> None:
    """Each has a projection of its own, from the teacher's width to the student's."""
    loss = bound(student_layers=[0, -1])
    assert loss.remaining == loss.pairs == ((0, 1), (0, 2), (0, 4), (2, 1), (2, 2), (2, 4))
    limit = (6 / (12 + 8)) ** 0.5  # xavier's, of each projection by itself
    assert len(loss.projections) == 6
    for projection in loss.projections:
        assert projection.shape == (12, 8)
        assert 0.9 * limit < projection.abs().max() <= limit


@pytest.mark.parametrize(("depth", "layers"), [(12, (4, 8, 12)), (4, (2, 3, 4)), (2, (1, 2)), (1, (1,))])
def test_without_a_word_thirds_of_the_depth_are_candidates(depth: int, layers: tuple[int, ...]) -> None:
    """Every pair of 6 and 12 layers would be 72 projections."""
    loss = KnowledgeProjectionLoss(student_layers=[-1])
    loss.bind(STUDENT, toy_anatomy(12, depth))
    assert loss.pairs == tuple((2, layer) for layer in layers)


def test_the_value_is_the_mean_of_the_candidates_left() -> None:
    """Each by its own projection, and a dropped one counts no more."""
    loss = bound()
    student, teacher, batch = at(0.0)
    expected = [
        projected_mse(
            student.hidden_states[ours], teacher.hidden_states[theirs] @ loss.projections[number], batch.mask
        )
        for number, (ours, theirs) in enumerate(loss.pairs)
    ]
    torch.testing.assert_close(loss(student, teacher, batch), torch.stack(expected).mean())
    loss.left = torch.tensor([False, True, False, False, True, False])
    loss.eval()
    torch.testing.assert_close(loss(student, teacher, batch), (expected[1] + expected[4]) / 2)


def test_candidates_fall_to_one_and_stay() -> None:
    """Their number falls with the run alone: 6, 3, 2, 1, the last at the end of the selection, and never rises."""
    loss = bound(selection=0.6)
    numbers = []
    for step in range(20):
        loss(*at(step / 20, seed=step))
        numbers.append(len(loss.remaining))
    assert numbers == [6] * 4 + [3] * 4 + [2] * 4 + [1] * 8
    kept = loss.remaining
    loss(*at(0.0))
    assert loss.remaining == kept


@pytest.mark.parametrize(
    ("keywords", "numbers"),
    [
        ({"dropped": 0.1}, [6, 5, 4, 3, 2, 1]),
        ({"dropped": 0.9}, [6, 1]),
        ({"student_layers": [1], "teacher_layers": [2]}, [1]),
    ],
)
def test_each_selection_drops_its_share_and_at_least_one(keywords: dict[str, Any], numbers: list[int]) -> None:
    """A tenth of six is none, and a selection that drops none would never end."""
    loss = bound(**keywords)
    found = []
    for step in range(101):
        loss(*at(step / 100))
        found.append(len(loss.remaining))
    assert list(dict.fromkeys(found)) == numbers
    assert found[-1] == 1


def test_the_worst_by_the_running_mean_are_dropped() -> None:
    """One lucky batch must not decide."""
    loss = bound(teacher_layers=[2, 4], selection=1.0)
    loss.running = torch.tensor([3.0, 1.0, 2.0, 4.0])
    loss(*at(0.5))  # the first of two selections
    assert loss.remaining == ((1, 4), (2, 2))


def test_the_running_mean_follows_the_losses_of_those_left() -> None:
    """By the momentum; of a dropped candidate it stays as it was."""
    loss = bound(teacher_layers=[2], momentum=0.75)
    loss.running = torch.tensor([99.0, 1.0])
    single = [projected_mse(*sides, batch.mask) for sides, batch in candidates(loss)]
    loss(*at(0.0))
    before = 0.75 * torch.tensor([99.0, 1.0]) + 0.25 * torch.stack(single)
    torch.testing.assert_close(loss.running, before)
    loss(*at(0.9))
    assert loss.remaining == ((2, 2),)
    torch.testing.assert_close(loss.running, torch.stack([before[0], 0.75 * before[1] + 0.25 * single[1]]))


def candidates(loss: KnowledgeProjectionLoss) -> Iterator[tuple[tuple[Tensor, Tensor], Any]]:
    """Student's states, projected teacher's states, and the batch, of each candidate."""
    student, teacher, batch = at(0.0)
    for number, (ours, theirs) in enumerate(loss.pairs):
        projected = teacher.hidden_states[theirs] @ loss.projections[number].detach()
        yield (student.hidden_states[ours], projected), batch


def test_a_candidate_that_fits_wins() -> None:
    """The teacher's layer 2 is the student's layer 1 in another basis; all others are noise."""
    loss = bound(momentum=0.5)
    basis = torch.linalg.qr(torch.randn(12, 12))[0][:8]
    optimizer = torch.optim.Adam(loss.parameters(), lr=0.1)
    for step in range(60):
        student, teacher, batch = at(step / 60, seed=step)
        states = dict(teacher.hidden_states) | {2: student.hidden_states[1] @ basis}
        value = loss(student, Representations(hidden_states=states), batch)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    assert loss.remaining == ((1, 2),)
    assert value < 0.1


def test_projections_do_not_collapse() -> None:
    """Student and projection are both trained; were their size free, both would go to 0 and the loss with them."""
    student, teacher, batch = at(0.0)
    loss = bound(student_layers=[2], teacher_layers=[4])
    state = student.hidden_states[2].clone().requires_grad_()
    optimizer = torch.optim.SGD([state, *loss.parameters()], lr=1.0)
    for _ in range(100):
        optimizer.zero_grad()
        loss(Representations(hidden_states={2: state}), teacher, batch).backward()
        optimizer.step()
    projected = teacher.hidden_states[4] @ loss.projections[0].detach()
    assert projected.var(-1).min() > 0.05
    assert state.detach().var(-1)[batch.mask.bool()].min() > 0.05


def test_evaluation_selects_nothing() -> None:
    """How often a run is evaluated must not change what it learns."""
    loss = bound()
    state = {name: value.clone() for name, value in loss.state_dict().items()}
    with torch.no_grad():
        loss(*at(0.9))
    loss.eval()(*at(0.9))
    torch.testing.assert_close(dict(loss.state_dict()), state, rtol=0.0, atol=0.0)


def test_a_resumed_run_selects_the_same() -> None:
    """All that decides is in the checkpoint, or is the share of the run."""
    loss, resumed = bound(), bound()
    for step in range(4):
        loss(*at(step / 10, seed=step))
    resumed.load_state_dict(loss.state_dict())
    for step in range(4, 10):
        values = [one(*at(step / 10, seed=step)) for one in (loss, resumed)]
        assert torch.equal(*values)
    assert resumed.remaining == loss.remaining


def test_one_overflow_does_not_decide_for_good() -> None:
    """A skipped step in half precision leaves no NaN in a running mean, by which all candidates would be alike."""
    loss = bound()
    loss(*at(0.0))
    running = loss.running.clone()
    student, teacher, batch = at(0.0)
    broken = Representations(
        hidden_states={layer: state * torch.inf for layer, state in student.hidden_states.items()}
    )
    assert not loss(broken, teacher, batch).isfinite()
    assert torch.equal(loss.running, running)
    assert loss(*toy_scene().nothing_valid().parts()) == 0
    assert torch.equal(loss.running, running)


@pytest.mark.usefixtures("alone")
def test_processes_agree_by_the_mean_of_their_losses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each sees other rows; a selection by its own would drop other candidates, and their projections drift apart."""
    loss = bound(teacher_layers=[2], momentum=0.0)
    loss(*at(0.0))
    own, theirs = loss.running.clone(), torch.tensor([1.0, 7.0])
    tokens, their_tokens = sum(LENGTHS), 33.0

    def all_reduce(total: Tensor) -> None:
        total += torch.cat([theirs * their_tokens, torch.tensor([their_tokens])])

    monkeypatch.setattr(knowledge_projection.distributed, "all_reduce", all_reduce)
    value = loss(*at(0.0))
    torch.testing.assert_close(loss.running, (tokens * own + their_tokens * theirs) / (tokens + their_tokens))
    torch.testing.assert_close(value, own.mean())  # the loss itself is that of this process's rows


def test_binding_to_other_layers_starts_again() -> None:
    """Another pair of models has other candidates; the same one goes on with what was found."""
    loss = bound()
    loss(*at(0.9))
    projections, remaining = list(loss.projections), loss.remaining
    loss.bind(STUDENT, TEACHER)
    assert all(kept is before for kept, before in zip(loss.projections, projections, strict=True))
    assert loss.remaining == remaining
    loss.bind(STUDENT, toy_anatomy(16, 4))
    assert [tuple(projection.shape) for projection in loss.projections] == [(16, 8)] * 6
    assert loss.remaining == loss.pairs
    assert not loss.running.any()


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"dropped": 0.0}, r"dropped must be a share between 0 and 1, got 0.0"),
        ({"dropped": 1.0}, r"dropped must be a share between 0 and 1, got 1.0"),
        ({"selection": 5000}, r"selection must be a share between 0 and 1, got 5000"),
        ({"momentum": 1.0}, r"momentum must be a share between 0 and 1, got 1.0"),
        ({"student_layers": []}, r"needs at least one pair, got none"),
        ({"student_layers": [3]}, r"names student layer 3, but the student has layers 0 \(embeddings\) to 2"),
        ({"teacher_layers": [4, -1]}, r"is there twice"),
    ],
)
def test_what_cannot_be_is_refused(keywords: dict[str, Any], message: str) -> None:
    """Before the first batch; a selection counted in steps would never come."""
    with pytest.raises(ValueError, match=message):
        bound(**keywords)
