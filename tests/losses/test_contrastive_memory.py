"""CRD: what it remembers of which row, whom it contrasts a row with, and what it does without a training set."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import golden
import pytest
import torch
from torch import Tensor
from toy_representations import DATA_LABELS, STUDENT, TEACHER, toy_anatomy, toy_scene

from hfdistill.losses.memory import Candidates, MemoryBank, MemoryContrastLoss
from hfdistill.losses.relation.contrastive_memory import ContrastiveMemoryLoss
from hfdistill.losses.relation.contrastive_relation import ContrastiveRelationLoss
from hfdistill.representations import Batch, Representations

ROWS = len(DATA_LABELS)
KINDS = pytest.mark.parametrize("kind", [ContrastiveMemoryLoss, ContrastiveRelationLoss])


def made(kind: type[MemoryContrastLoss] = ContrastiveMemoryLoss, labels: Tensor | None = DATA_LABELS) -> Any:
    """A loss of 4 negatives in 8 dimensions, bound to the toy models and to 16 rows."""
    torch.manual_seed(0)
    loss = kind(4, dimension=8)
    loss.bind(STUDENT, TEACHER)
    loss.bind_data(ROWS, labels)
    return loss


def bank_of(loss: MemoryContrastLoss) -> MemoryBank:
    bank = loss.banks[0]
    assert isinstance(bank, MemoryBank)
    return bank


def held(loss: MemoryContrastLoss) -> dict[str, Tensor]:
    """A copy of all that the loss keeps."""
    return {name: value.clone() for name, value in loss.state_dict().items()}


def identity(loss: MemoryContrastLoss, inputs: dict[str, Tensor]) -> tuple[Representations, Representations]:
    """Both sides showing the vectors of a golden case, which pass through the embedding layers as they are."""
    width = inputs["v_s"].shape[1]
    loss.bind(toy_anatomy(width, 1), toy_anatomy(width, 1))
    loss.bind_data(len(inputs["mem_s"]), None)
    loss.double()
    with torch.no_grad():
        for layer in (loss.embeddings[0].student, loss.embeddings[0].teacher):
            layer.weight.copy_(torch.eye(width))
            layer.bias.zero_()
    bank_of(loss).student.copy_(inputs["mem_s"])
    bank_of(loss).teacher.copy_(inputs["mem_t"])
    first, second = (Representations(hidden_states={1: inputs[side][:, None]}) for side in ("v_s", "v_t"))
    return first, second


GOLDEN: dict[str, tuple[Callable[[], MemoryContrastLoss], str]] = {
    "crd/loss": (lambda: ContrastiveMemoryLoss(3, 0.5, dimension=4), "value"),
    "crd/loss_fixed_Z": (lambda: ContrastiveMemoryLoss(3, 0.5, dimension=4), "value"),
    "crd/mem_s": (lambda: ContrastiveMemoryLoss(3, 0.5, dimension=4), "student"),
    "crd/mem_t": (lambda: ContrastiveMemoryLoss(3, 0.5, dimension=4), "teacher"),
    "crcd/loss": (lambda: ContrastiveRelationLoss(3, 0.5, dimension=4, own_anchor="keep"), "value"),
}


@pytest.mark.data
@pytest.mark.parametrize("name", GOLDEN)
def test_a_step_gives_the_golden_value(name: str, shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The formulas are held to these numbers elsewhere; here a swapped memory or side would show."""
    case = next(case for case in golden.read_cases(shared / "methods" / "golden.json") if case["id"] == name)
    inputs = {key: torch.tensor(value, dtype=torch.float64) for key, value in case["inputs"].items()}
    index = inputs["idx"].long()
    loss = GOLDEN[name][0]()
    sides = identity(loss, inputs)
    monkeypatch.setattr(Candidates, "drawn", lambda *_: index)
    if "Z_s" in case["kwargs"]:
        bank_of(loss).log_constants.copy_(torch.tensor([case["kwargs"]["Z_s"], case["kwargs"]["Z_t"]]).double().log())
    result = {"value": loss(*sides, Batch(3, index=index[:, 0]))} | dict(bank_of(loss).named_buffers())
    expected = torch.tensor(case["expected"], dtype=torch.float64)
    torch.testing.assert_close(result[GOLDEN[name][1]].detach(), expected, rtol=1e-9, atol=1e-12)


@KINDS
def test_a_step_remembers_its_rows_and_no_others(kind: type[MemoryContrastLoss]) -> None:
    """A row that was never seen keeps its random vector; one that was is a mixture of length 1."""
    loss, scene = made(kind), toy_scene()
    before = held(loss)
    loss(*scene.parts())
    for name, old in before.items():
        new = loss.state_dict()[name]
        if name in ("banks.0.student", "banks.0.teacher"):
            changed = (new != old).any(1)
            assert changed.nonzero().flatten().tolist() == scene.batch.index.tolist()
            torch.testing.assert_close(new[changed].norm(dim=1), torch.ones(3))
        elif name != "banks.0.log_constants":
            assert torch.equal(new, old), name


def test_rows_of_padding_alone_are_not_remembered() -> None:
    """They have no vector: what stands for them would become a negative of others."""
    loss, scene = made(), toy_scene(lengths=(5, 0, 4))
    before = held(loss)["banks.0.teacher"]
    loss(*scene.parts())
    changed = (bank_of(loss).teacher != before).any(1)
    assert changed.nonzero().flatten().tolist() == [1, 9]


@KINDS
def test_the_first_batch_sets_the_constants(kind: type[MemoryContrastLoss]) -> None:
    """Set anew by each batch they would be no constants, and the loss another one."""
    loss = made(kind)
    assert not bank_of(loss).log_constants.isfinite().any()
    loss(*toy_scene().parts())
    first = bank_of(loss).log_constants.clone()
    assert first.isfinite().all()
    loss(*toy_scene(seed=1).parts())
    assert torch.equal(bank_of(loss).log_constants, first)


@KINDS
def test_a_batch_without_rows_sets_nothing(kind: type[MemoryContrastLoss]) -> None:
    """The first batch may be all padding: constants of nothing would be kept for ever."""
    loss = made(kind)
    before = held(loss)
    loss(*toy_scene().nothing_valid().parts())
    assert all(torch.equal(value, before[name]) for name, value in loss.state_dict().items())


@KINDS
@pytest.mark.parametrize("how", ["eval", "no_grad"])
@pytest.mark.parametrize("numbered", [True, False])
def test_evaluation_remembers_nothing(kind: type[MemoryContrastLoss], how: str, numbered: bool) -> None:
    """Rows of another set have no place in the memory, and to look at a run must not change it."""
    loss, scene = made(kind), toy_scene()
    loss(*scene.parts())
    before, scene.batch.index = held(loss), scene.batch.index if numbered else None
    loss.train(how != "eval")
    with torch.set_grad_enabled(how != "no_grad"):
        assert loss(*scene.parts()).isfinite()
    assert all(torch.equal(value, before[name]) for name, value in loss.state_dict().items())


@KINDS
def test_rows_outside_the_training_set_are_compared_without_chance(kind: type[MemoryContrastLoss]) -> None:
    """An evaluation must not depend on draws, nor change those of the training that goes on after it.

    A row that the student shows as the teacher does has a smaller loss than one with which it was mixed up.
    """
    loss, scene = made(kind).eval(), toy_scene(teacher=replace(STUDENT, depth=4))
    loss.bind(STUDENT, replace(STUDENT, depth=4))
    loss.bind_data(ROWS, None)
    loss.embeddings[0].teacher.load_state_dict(loss.embeddings[0].student.state_dict())
    scene.batch.index = None
    state = torch.get_rng_state()
    scene.teacher.hidden_states = {4: scene.student.hidden_states[2]}
    alike = loss(*scene.parts())
    assert torch.equal(alike, loss(*scene.parts()))
    assert torch.equal(torch.get_rng_state(), state)
    scene.teacher.hidden_states = {4: scene.student.hidden_states[2].roll(1, dims=1).flip(2)}
    assert loss(*scene.parts()) > alike


@KINDS
def test_a_resumed_run_goes_on_bitwise(kind: type[MemoryContrastLoss]) -> None:
    """Memories, constants and draws: one of them begun anew would be another run, with the same curve at first."""
    scenes = [toy_scene(seed=step) for step in range(4)]
    whole = made(kind)
    for scene in scenes[:2]:
        whole(*scene.parts())
    saved, drawn = copy.deepcopy(whole.state_dict()), torch.get_rng_state()
    expected = [whole(*scene.parts()) for scene in scenes[2:]]
    torch.manual_seed(7)
    resumed = kind(4, dimension=8)
    resumed.bind(STUDENT, TEACHER)
    resumed.bind_data(ROWS, DATA_LABELS)
    resumed.load_state_dict(saved)
    torch.set_rng_state(drawn)
    for scene, value in zip(scenes[2:], expected, strict=True):
        assert torch.equal(resumed(*scene.parts()), value)
    assert all(torch.equal(value, resumed.state_dict()[name]) for name, value in whole.state_dict().items())


def test_a_memory_outlives_a_second_binding() -> None:
    """A later stage goes on with the same rows and models; of others nothing of it would be true."""
    loss = made()
    loss(*toy_scene().parts())
    before, bank = held(loss), bank_of(loss)
    loss.bind(STUDENT, TEACHER)
    loss.bind_data(ROWS, None)
    assert bank_of(loss) is bank
    assert all(torch.equal(value, before[name]) for name, value in loss.state_dict().items())
    loss.bind_data(ROWS + 1, None)
    assert len(bank_of(loss).student) == ROWS + 1
    longer = bank_of(loss)
    loss.bind(toy_anatomy(width=16), TEACHER)
    loss.bind_data(ROWS + 1, None)
    assert bank_of(loss) is not longer


@pytest.mark.parametrize(("kind", "exact"), [(ContrastiveMemoryLoss, False), (ContrastiveRelationLoss, True)])
def test_memories_begin_with_random_vectors(kind: type[MemoryContrastLoss], exact: bool) -> None:
    """Of length about 1 as in CRD, or of exactly 1 as in CRCD; the two sides must not be the same."""
    bank = bank_of(made(kind))
    lengths = torch.cat([bank.student, bank.teacher]).norm(dim=1)
    assert lengths.mean().item() == pytest.approx(1.0, abs=0.1)
    assert torch.allclose(lengths, torch.ones(())) is exact
    assert not torch.equal(bank.student, bank.teacher)


def test_without_a_training_set_it_says_what_to_do() -> None:
    """A script of one's own does not know that the memory must be as long as the data."""
    loss = ContrastiveMemoryLoss()
    loss.bind(STUDENT, TEACHER)
    with pytest.raises(ValueError, match=r"does not know the training set.*DistillationTrainer.*bind_data\(rows"):
        loss(*toy_scene().parts())
    with pytest.raises(ValueError, match=r"at least 2 training rows, got 1"):
        loss.bind_data(1, None)
    with pytest.raises(ValueError, match=r"one class for each of the 5 training rows, got labels \[16\]"):
        loss.bind_data(5, DATA_LABELS)


def test_training_rows_need_their_numbers() -> None:
    """Without them it would remember rows in the places of others, and still fall."""
    loss, scene = made(), toy_scene()
    scene.batch.index = None
    with pytest.raises(ValueError, match=r"needs the number of each training row.*Batch.index is None"):
        loss(*scene.parts())


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"negatives": 0}, "negatives must be above 0, got 0"),
        ({"temperature": 0.0}, "temperature must be above 0, got 0.0"),
        ({"temperature": float("inf")}, "temperature must be above 0, got inf"),
        ({"momentum": 1.0}, r"momentum must be in \[0, 1\), got 1.0"),
        ({"momentum": -0.1}, r"momentum must be in \[0, 1\), got -0.1"),
        ({"positives": "easy"}, "positives must be one of 'exact', 'relax', got 'easy'"),
        ({"dimension": 0}, "dimension must be above 0, got 0"),
        ({"pooling": "max"}, "pooling must be one of 'cls', 'mean', 'last', got 'max'"),
    ],
)
def test_keywords_out_of_range_are_refused(keywords: dict[str, Any], message: str) -> None:
    """At construction, before hours of training."""
    with pytest.raises(ValueError, match=message):
        ContrastiveMemoryLoss(**keywords)


def test_a_teachers_own_tokens_are_pooled_by_their_own_mask() -> None:
    """A teacher with another tokenizer has rows of another length: by the student's mask it would read padding."""
    scene = toy_scene()
    mask = scene.batch.mask
    assert mask is not None
    longer = {
        layer: torch.cat([state, torch.full_like(state, torch.nan)], dim=1)
        for layer, state in scene.teacher.hidden_states.items()
    }
    batch = replace(scene.batch, teacher_mask=torch.cat([mask, torch.zeros_like(mask)], dim=1))
    values = []
    for parts in (scene.parts(), (scene.student, Representations(hidden_states=longer), batch)):
        values.append(made()(*parts))  # made: from one seed, so that the draws are the same
    torch.testing.assert_close(*values)
