"""Runs of one trainer that must end alike: repeated, resumed, cut, spread, with a cached teacher, other attention."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from hfdistill.equivalence.differences import Difference, Differences
from hfdistill.equivalence.facts import Facts
from hfdistill.equivalence.processes import FOLDER, PROCESSES, in_two_processes, serve
from hfdistill.equivalence.short_runs import (
    MakeTrainer,
    NotComparableError,
    Outcome,
    Within,
    difference,
    short_run,
)
from hfdistill.equivalence.variations import Lesson, attending, disturbed, reseeded
from hfdistill.trainer import DistillationTrainer

STEPS = 4
CUTS = 2
"""Micro-batches into which a batch is cut."""
LENGTH = 0.05
"""Of the first update of a still run, all weights together: large against rounding, small against the weights."""

_STILL = "dropout off, SGD"


def equivalences(
    make_trainer: MakeTrainer, *, steps: int = STEPS, command: Sequence[str] | None = None
) -> Differences:
    """Make short runs that must be the same run, and say how far apart they end.

    Compared are a run and its repetition, a run and one stopped in the middle and resumed, a batch and its
    micro-batches, one process and two, the teacher and its cache, filled in other batches, eager attention and SDPA.
    What random numbers would set apart runs without dropout; see `short_runs`. Nothing is kept of the runs.

    Args:
        make_trainer: makes the trainer anew each time, from the same seed, with the given training arguments changed:
            `lambda **changes: DistillationTrainer(..., args=replace(args, **changes))`. Every run is its train().
        steps: of each run, at least 2.
        command: starts this program again, for the comparison of processes; without the name of Python: a script and
            its words, or -m, a module and its words. There this call makes the run, and ends the program. None: the
            processes are not compared.

    Raises:
        ValueError: fewer than 2 steps; the runs do not begin alike; this is one of several processes; models are
            sharded.
        SystemExit: in a process that this function started.
    """
    if FOLDER in os.environ:
        serve(make_trainer, Path(os.environ[FOLDER]))
    if steps < 2:
        raise ValueError(f"steps must be at least 2, got {steps}: a run is stopped in the middle.")
    with TemporaryDirectory(prefix="hfdistill-") as folder:
        comparisons = _Comparisons(make_trainer, steps, Path(folder), command)
        return Differences(_made(*row) for row in comparisons.rows())


def _made(name: str, compare: Callable[[], Difference], advice: str) -> Difference:
    try:
        return replace(compare(), name=name, advice=advice)
    except NotComparableError as error:
        return Difference(name, skipped=str(error))
    except Exception as error:  # noqa: BLE001  whatever code of the user's raises: the other comparisons are not lost
        return Difference(name, failed=f"{type(error).__name__}: {error}", advice=advice)


class _Comparisons:
    def __init__(self, make_trainer: MakeTrainer, steps: int, folder: Path, command: Sequence[str] | None) -> None:
        self.make_trainer = make_trainer
        self.steps = steps
        self.folder = folder
        self.command = command
        self._facts: Facts | None = None
        self._done: dict[tuple[int, frozenset[str], bool], Outcome] = {}
        self._middle = {"save_strategy": "steps", "save_steps": steps // 2, "save_only_model": False}
        self.whole_folder = folder / "whole"
        self.beginning, self.whole = short_run(make_trainer, self._lively("whole") | self._middle, within=self._look)
        norms = [norm for norm in self.whole.norms if math.isfinite(norm) and norm > 0]
        self.rate = LENGTH / max(norms, default=1.0)

    def rows(self) -> list[tuple[str, Callable[[], Difference], str]]:
        """Name, comparison, and what to do where it does not hold."""
        return [
            ("repeat", self.repeated, "Look for what is not seeded, in the data set, the collator or a callback."),
            (
                "resume",
                self.resumed,
                "Something that training changes is not in the checkpoint: state of a subclass, a callback, a data "
                "set or a loss of your own. Keep it in a buffer, or save and load it with the checkpoint.",
            ),
            (
                "accumulation",
                self.accumulated,
                "A loss must be the mean over its valid items, and `count` say how many these are; an overridden "
                "compute_loss must return what DistillationTrainer's does. A loss over the relations between rows "
                "says so by fewest_rows.",
            ),
            (
                "processes",
                self.spread,
                "As for accumulation; what an overridden method sums must be summed over all processes, and every "
                "parameter that learns must be used inside the student's forward.",
            ),
            (
                "cached teacher",
                self.cached,
                "What the teacher shows of a row depends on the rows or the padding beside it: pass the "
                "attention_mask, pad on the side that the teacher was trained with, put it into evaluation mode. "
                "Do not train with teacher_cache as it is.",
            ),
            (
                "attention",
                self.attended,
                "One of the two is wrong for this model or these masks. Train with attn_implementation='eager', and "
                "report it to transformers.",
            ),
        ]

    @property
    def facts(self) -> Facts:
        """What decides how the runs can be compared."""
        if self._facts is None:
            raise RuntimeError("the first run has not begun yet.")
        return self._facts

    # ---- the comparisons ----

    def repeated(self) -> Difference:
        """The same run twice, as the user trains."""
        again = self._run(self._lively("again"))
        apart = difference("repeat", self.whole, again, self.beginning, exact=True)
        if apart.largest == 0.0:
            return replace(apart, compared=f"{self.steps} steps twice", tolerance=0.0, note="dropout on")
        note = "dropout on; this device does not compute the same twice: full_determinism=True makes it"
        known = 0.0 if self.facts.device == "cpu" else None
        return replace(
            apart, compared=f"{self.steps} steps twice", tolerance=known, note=note if known is None else ""
        )

    def resumed(self) -> Difference:
        """Stopped in the middle and resumed, as the user trains."""
        middle = self.steps // 2
        checkpoint = self.whole_folder / f"checkpoint-{middle}"
        # other random numbers to begin with: those of the checkpoint must come back
        rest = self._run(self._lively("resumed") | self._middle, resume=str(checkpoint), within=disturbed)
        apart = difference("resume", self.whole, rest, self.beginning, exact=True)
        compared = f"{self.steps} steps against {middle}, and {self.steps - middle} resumed"
        if self.facts.device == "cpu" or apart.largest == 0.0:
            return replace(apart, compared=compared, tolerance=0.0, note="dropout on, bit by bit")
        again = self.repeated().largest
        tolerance = max(10 * again, self.facts.tolerance) if again else 0.0
        return replace(apart, compared=compared, tolerance=tolerance, note="dropout on")

    def accumulated(self) -> Difference:
        """A batch whole, against the same in micro-batches."""
        aside = self.facts.relating | self.facts.remembering
        whole, cut = self._still(aside=aside), self._still(cuts=CUTS, aside=aside)
        rows = self._rows()
        compared = f"{rows} rows x 1 against {rows // CUTS} x {CUTS}, {self.steps} steps"
        return self._judged(difference("", whole, cut, self.beginning), compared, aside)

    def spread(self) -> Difference:
        """One process against two; a term that relates the rows of one process needs the same micro-batches."""
        if self.command is None:
            raise NotComparableError(
                "make_trainer is known to this process alone. Pass command=..., what starts this program again, or "
                "use hfdistill check --equivalence."
            )
        cpu = self.facts.device == "cpu" or torch.cuda.device_count() < PROCESSES
        apart, aside = bool(self.facts.relating - self.facts.gathering), self.facts.remembering
        cuts, aside = (PROCESSES, aside | self.facts.gathering) if apart else (1, aside)
        one = self._still(cuts=cuts, aside=aside, cpu=cpu)
        rows = self._rows() // PROCESSES
        changes = self._changes(1, cpu) | {"per_device_train_batch_size": rows}
        changes |= {"use_cpu": True, "ddp_backend": "gloo"} if cpu else {}
        place = self.folder / "processes"
        place.mkdir()
        both = in_two_processes(self.command, place, changes, aside, cpu)
        found = [difference("", one, two, self.beginning) for two in both]
        compared = f"1 process x {rows * PROCESSES // cuts} rows x {cuts} against 2 x {rows}, {self.steps} steps"
        where = "gloo, on the processor" if cpu else "on two GPUs"
        return self._judged(max(found, key=lambda one: one.largest), compared, aside, where)

    def cached(self) -> Difference:
        """The live teacher, against what a cache kept of each row in smaller batches of an earlier run."""
        if not self.facts.teacher:
            raise NotComparableError("there is no teacher.")
        lesson = Lesson(self.folder / "cache")
        self._still(cuts=CUTS, within=lesson.recorded)
        live, cached = self._still(), self._still(within=lesson.replayed)
        rows = self._rows()
        compared = f"live in batches of {rows} against cached in batches of {rows // CUTS}, {self.steps} steps"
        return self._judged(difference("", live, cached, self.beginning), compared)

    def attended(self) -> Difference:
        """Eager attention of both models, against scaled dot product attention."""
        eager, sdpa = (self._still(within=partial(attending, kind=kind)) for kind in ("eager", "sdpa"))
        compared = f"eager against SDPA, {self.steps} steps"
        return self._judged(difference("", eager, sdpa, self.beginning), compared)

    # ---- the runs ----

    def _judged(self, apart: Difference, compared: str, aside: Collection[str] = (), where: str = "") -> Difference:
        """The difference with its tolerance; where it is too large, only if random numbers do not explain it.

        Raises:
            NotComparableError: they do.
        """
        note = ", ".join(part for part in (_STILL, self.facts.precision, where) if part)
        if aside:
            note += f"; set aside, as they depend on how rows are batched: {', '.join(sorted(aside))}"
        apart = replace(apart, compared=compared, note=note, tolerance=self.facts.tolerance)
        if not apart.holds:
            one, other = self._still(aside=aside), self._still(aside=aside, within=reseeded)
            drawn = difference("", one, other, self.beginning)
            if drawn.largest > self.facts.tolerance:
                raise NotComparableError(
                    "something besides dropout draws random numbers while training (a loss, the collator, a module): "
                    f"the very same batches with other numbers end {drawn.largest:.1e} apart, and {apart.compared} "
                    f"{apart.largest:.1e}."
                )
        return apart

    def _still(
        self,
        cuts: int = 1,
        aside: Collection[str] = (),
        cpu: bool = False,
        within: Within = nullcontext,
    ) -> Outcome:
        """A run without dropout of a batch in so many micro-batches; made once where it is asked for twice."""
        key = (cuts, frozenset(aside), cpu and self.facts.device != "cpu")
        if within is nullcontext and key in self._done:
            return self._done[key]
        changes = self._changes(cuts, cpu) | {"output_dir": str(self.folder / "still")}
        outcome = self._run(changes, still=True, aside=aside, within=within)
        if within is nullcontext:
            self._done[key] = outcome
        return outcome

    def _run(self, changes: Mapping[str, Any], **options: Any) -> Outcome:
        beginning, outcome = short_run(self.make_trainer, changes, **options)
        self.beginning.check(beginning)
        return outcome

    def _rows(self) -> int:
        return self.facts.batch(self.steps, max(CUTS, PROCESSES))

    def _lively(self, name: str) -> dict[str, Any]:
        """Changed arguments of a run as the user trains, a short one."""
        return {"output_dir": str(self.folder / name), "max_steps": self.steps}

    def _changes(self, cuts: int, cpu: bool) -> dict[str, Any]:
        """Changed arguments of a still run."""
        changes: dict[str, Any] = {
            "max_steps": self.steps,
            "learning_rate": self.rate,
            "per_device_train_batch_size": self._rows() // cuts,
            "gradient_accumulation_steps": cuts,
        }
        if cpu and self.facts.device != "cpu":  # what the processor cannot do, or does in another way
            changes |= {"use_cpu": True, "bf16": False, "fp16": False, "tf32": None}
        return changes

    def _look(self, trainer: DistillationTrainer) -> AbstractContextManager[None]:
        self._facts = Facts.of(trainer)
        return nullcontext()
