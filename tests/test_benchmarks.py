"""The benchmarks: statistics by hand-made samples, every module at toy size, and the page that is made of them."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks import epochs, imports, memory, peers, profiles, scaling, steps
from benchmarks.bare import BARE, batches
from benchmarks.lengths import computed_tokens, grouped_batches, sst2_like_lengths
from benchmarks.machine import add_options
from benchmarks.models import Models, Padding, Size, text_rows
from benchmarks.rounds import Ratio, clock, interleaved, ratio
from benchmarks.steps import Workbench
from benchmarks.table import printed
from benchmarks.textbrewer_adaptor import ADVICE, available
from benchmarks.trained import MODES, OBJECTIVES

TEACHER, STUDENT = "4x32x2", "2x16x2"
CPU = torch.device("cpu")


@pytest.fixture
def models() -> Models:
    """Toy models of both sizes."""
    return Models(Size.parse(TEACHER), Size.parse(STUDENT), CPU)


@pytest.fixture
def bench(models: Models, tmp_path: Path) -> Workbench:
    """Rows over batches of two short rows."""
    return Workbench(models, 2, 6, tmp_path)


def options(*words: str, **more: Any) -> argparse.Namespace:
    """The shared options at toy size, and a benchmark's own."""
    parser = argparse.ArgumentParser()
    add_options(parser)
    given = parser.parse_args(["--teacher", TEACHER, "--student", STUDENT, "--rounds", "2", *words])
    return argparse.Namespace(**vars(given), **more)


# ---- statistics ----


def test_a_ratio_is_of_medians_and_of_each_round() -> None:
    """The page's figures by hand: one slow round must move neither figure, but show in the spread."""
    row, base = [2.0, 9.0, 3.0], [1.0, 3.0, 2.0]
    assert ratio(row, base) == Ratio(of_medians=1.5, median=2.0, low=1.5, high=3.0)


def test_rows_of_different_rounds_are_not_compared() -> None:
    """Samples that were not taken in turn have no ratio, however many there are."""
    with pytest.raises(ValueError, match="got 2 and 1 samples"):
        ratio([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="a row and a round"):
        interleaved({}, 3)


def test_rounds_rotate_and_skip_what_is_told() -> None:
    """A row that is always first, or always after the same slow one, would be measured under other conditions."""
    order: list[str] = []

    def noted(name: str) -> Callable[[], None]:
        return lambda: order.append(name)

    seconds = interleaved({name: noted(name) for name in "abc"}, 3, every={"c": 2})
    assert "".join(order) == "cababcbacab"  # a round that warms up, then three
    assert {name: len(samples) for name, samples in seconds.items()} == {"a": 3, "b": 3, "c": 2}


def test_a_clock_counts_what_it_says() -> None:
    """Processor seconds of a GPU's work would be those of waiting for it."""
    now = clock(CPU, "cpu")
    start = now()
    time.sleep(0.05)
    assert now() - start < 0.04
    for device, kind in ((CPU, "sun"), (torch.device("cuda"), "cpu")):
        with pytest.raises(ValueError, match="a clock is one of"):
            clock(device, kind)


def test_sizes_are_read_or_refused() -> None:
    """A misread size would measure another model under the name of the one asked for."""
    assert Size.parse("12x768") == Size(12, 768, 12)
    assert str(Size.parse("2x32x2")) == "2x32x2"
    for text in ("12", "12x", "axb", "1x2x3x4"):
        with pytest.raises(ValueError, match="LAYERSxWIDTH"):
            Size.parse(text)


# ---- rows ----


def weights(model: nn.Module) -> list[torch.Tensor]:
    """A copy of a model's parameters."""
    return [parameter.detach().clone() for parameter in model.parameters()]


@pytest.mark.parametrize("name", BARE)
def test_a_bare_loop_trains_the_student_alone(name: str, models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    """A floor that did not learn, or a teacher that did, would be a floor of something else."""
    students = []
    make = models.student
    monkeypatch.setattr(models, "student", lambda *kind: students.append(make(*kind)) or students[-1])
    data = batches(text_rows([6] * 4), 2, CPU, Padding())
    step = BARE[name](models, data)
    first, teacher = weights(students[0]), weights(models.teacher)
    step()
    changed = [not torch.equal(old, new) for old, new in zip(first, weights(students[0]), strict=True)]
    assert sum(changed) > len(changed) // 2
    assert all(torch.equal(old, new) for old, new in zip(teacher, weights(models.teacher), strict=True))


def test_the_eager_teacher_is_the_same_memory(models: Models) -> None:
    """A second copy of the weights would be counted as the naive loop's memory."""
    own = {parameter.data_ptr() for parameter in models.teacher.parameters()}
    assert {parameter.data_ptr() for parameter in models.eager_teacher.parameters()} == own
    assert models.eager_teacher.config._attn_implementation == "eager"


def passes(model: nn.Module) -> list[int]:
    """A list that gets the number of rows of each forward pass."""
    seen: list[int] = []
    model.register_forward_pre_hook(lambda _, args, kwargs: seen.append(len(kwargs["input_ids"])), with_kwargs=True)
    return seen


def test_a_cached_row_never_asks_its_teacher(bench: Workbench) -> None:
    """The second epoch is what that row stands for; a miss would make it the first."""
    asked = passes(bench.models.half_teacher)
    cached, half = bench.step("tinybert cached"), bench.step("tinybert bf16")
    filled = len(asked)
    assert sum(asked) >= 2 * steps.BATCHES
    for _ in range(2 * steps.BATCHES):
        cached()
    assert len(asked) == filled
    half()
    assert len(asked) == filled + 1


def test_each_row_is_measured_in_each_round(bench: Workbench) -> None:
    """The whole way of one table, every objective and mode in it."""
    names = [*BARE, "Trainer", *(f"{name} live" for name in OBJECTIVES), *(f"kd {mode}" for mode in MODES)]
    section = steps.measured(bench, list(dict.fromkeys(names)), 2, time.perf_counter)
    assert set(section.seconds) == set(names)
    assert all(len(samples) == 2 and min(samples) > 0 for samples in section.seconds.values())
    assert section.over("kd live", "floor").high > 0
    assert "| kd live |" in printed(section)
    with pytest.raises(ValueError, match="no row 'kd fast'"):
        bench.step("kd fast")


def test_scaling_measures_each_point_beside_its_own_floor(tmp_path: Path) -> None:
    """A point over the floor of another shape would say nothing."""
    section = scaling.measured(options(tokens=6), [(2, 5)], tmp_path)
    assert [name for name in section.seconds if name.startswith("2 x 5")] == [
        "2 x 5: floor",
        "2 x 5: tinybert live",
        "2 x 5: naive",
    ]
    assert "4 x 6, student of 4 layers: 2 layers" in section.seconds
    assert scaling.over_floor(section).keys() == section.seconds.keys()


def test_a_profile_shows_what_a_row_does_more(capsys: pytest.CaptureFixture[str]) -> None:
    """A missed goal is explained by the operators that differ, however large those are that do not."""
    row, base = {"same": 5.0, "more": 0.35, "own": 0.15}, {"same": 5.0, "more": 0.1}
    lines = profiles.table("kd live", row, "floor", base).splitlines()
    assert lines[2:4] == ["| more | 0.1000 | 0.3500 | +0.2500 |", "| own | 0.0000 | 0.1500 | +0.1500 |"]
    assert lines[-1] == "| all | 5.1000 | 5.5000 | +0.4000 |"
    words = ["--teacher", TEACHER, "--student", STUDENT, "--batch", "2", "--tokens", "6", "--rounds", "1"]
    profiles.main(["tinybert live", *words])
    assert "aten::" in capsys.readouterr().out


def test_peak_memory_is_that_of_a_process_of_its_own() -> None:
    """What this process has held before must not hide what the row takes."""
    section = memory.measured(["floor"], options(batch=2, tokens=6))
    assert 0 < section.memory["floor"] < section.figures["floor: whole process, MB"]


def test_imports_are_counted_in_processor_seconds() -> None:
    """The import is to be done within the two readings of the clock, in an interpreter that has nothing yet."""
    assert 0 < imports.seconds("pass") < imports.seconds("import decimal, unittest.mock") < 5


# ---- epochs and peers ----


def test_an_epoch_is_the_mean_of_its_steps_times_their_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A share must come to a whole epoch for every row, those included of which only some steps are timed."""
    monkeypatch.setattr(epochs, "available", lambda: False)
    section = epochs.measured(options(examples=400, batch=8, steps=5, losses="logits"), tmp_path)
    samples = section.seconds[epochs.LIVE]
    assert len(samples) == 5
    assert section.figures[epochs.LIVE] == pytest.approx(sum(samples) / 5 * 50)
    assert section.tokens[epochs.LIVE] == section.tokens[epochs.CACHED]
    assert "| hfdistill, cached |" in epochs.table(section)


def test_a_share_of_an_epoch_has_its_lengths() -> None:
    """Sorted batches begin with the longest rows: the first of them would be no sample of the whole."""
    lengths = sst2_like_lengths(8 * 4 * epochs.SORTED, 1)
    whole = grouped_batches(lengths, 8)
    kept = epochs.share(whole, 10)
    assert len(kept) == 10
    tokens, expected = computed_tokens(lengths, kept) / 10, computed_tokens(lengths, whole) / len(whole)
    assert tokens == pytest.approx(expected, rel=0.1)
    assert epochs.share(whole[:3], 10) == whole[:3]


needs_textbrewer = pytest.mark.skipif(not available(), reason=ADVICE)


@needs_textbrewer
def test_textbrewer_and_hfdistill_learn_the_same_losses(models: Models, tmp_path: Path) -> None:
    """A comparison of speed is one of the same arithmetic only; padding included."""
    models.dropout = 0.0
    rows = text_rows([3, 6, 5, 4])
    trained = peers.Trained(models, rows, 4, tmp_path)
    inputs = Padding()(list(rows))
    found = peers.loss_values(trained, inputs)
    assert set(found) == set(peers.PARTS)
    for name, (ours, theirs) in found.items():
        assert ours == pytest.approx(theirs, rel=1e-5), name
        assert theirs > 0


@needs_textbrewer
@pytest.mark.parametrize("losses", peers.KINDS)
def test_textbrewer_runs_beside_hfdistill(losses: str, tmp_path: Path) -> None:
    """Every row of both comparisons at toy size."""
    same = peers.measured(options(batch=2, tokens=6), tmp_path)
    assert same.over(f"hfdistill {losses}", f"TextBrewer {losses}") is not None
    own = epochs.measured(options(examples=400, batch=4, steps=8, losses=losses), tmp_path)
    expected = {epochs.FIXED, epochs.DYNAMIC, epochs.HANDED, epochs.PRECISE, epochs.LIVE, epochs.CACHED}
    assert set(own.figures) == expected | ({epochs.KEPT} if losses == "logits" else set())
    assert (len(own.seconds[epochs.LIVE]), len(own.seconds[epochs.DYNAMIC])) == (8, 2)
    samples = own.seconds[epochs.DYNAMIC]
    assert own.figures[epochs.DYNAMIC] == pytest.approx(sum(samples) / 2 * 100)
    assert own.tokens[epochs.HANDED] == own.tokens[epochs.LIVE]
    assert own.tokens[epochs.FIXED] == 4 * epochs.LONGEST > own.tokens[epochs.DYNAMIC] >= own.tokens[epochs.LIVE]


def test_without_textbrewer_it_is_said_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is no dependency, so that its absence is the ordinary case."""
    monkeypatch.setattr(peers, "available", lambda: False)
    with pytest.raises(SystemExit, match=r"requirements-peers\.txt"):
        peers.main([])
