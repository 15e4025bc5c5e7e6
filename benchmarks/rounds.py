"""Rows measured side by side: in rounds, one step of each, and what their samples say.

A time says little about another machine, nor about this one an hour later: what counts is the ratio of two rows whose
samples were taken in turn. Each round begins one row later than the one before, so that none is always first.
"""

import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

Step = Callable[[], object]
Clock = Callable[[], float]
CLOCKS: dict[str, Clock] = {"wall": time.perf_counter, "cpu": time.process_time}


def clock(device: torch.device, kind: str = "wall") -> Clock:
    """What seconds are read from.

    Args:
        device: where the steps run; what was asked of a GPU is waited for.
        kind: "wall", or "cpu" for the processor seconds of this process, which do not count the turns that other
            programs take: for one thread on a machine that is not quiet, and for nothing else.

    Raises:
        ValueError: another kind, or processor seconds of a GPU's work.
    """
    if kind not in CLOCKS or (kind == "cpu" and device.type != "cpu"):
        raise ValueError(
            f"a clock is one of {', '.join(CLOCKS)}, and 'cpu' is of steps on one; got {kind!r}, {device}."
        )
    if device.type != "cuda":
        return CLOCKS[kind]

    def read() -> float:
        torch.cuda.synchronize(device)
        return time.perf_counter()

    return read


def interleaved(
    steps: Mapping[str, Step],
    rounds: int,
    now: Clock = time.perf_counter,
    warmups: int = 1,
    every: Mapping[str, int] | None = None,
) -> dict[str, list[float]]:
    """Seconds of each step in each round.

    Args:
        steps: the rows' steps, by name.
        rounds: how many are measured.
        now: reads seconds; see clock.
        warmups: rounds before these that are not.
        every: of a row, in how many rounds it has one step; a row that is not named has one in each.

    Raises:
        ValueError: no row, or no round.
    """
    if not steps or rounds < 1:
        raise ValueError(f"measuring needs a row and a round at least, got {len(steps)} rows and {rounds} rounds.")
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    names, pauses = list(steps), every or {}
    gc.collect()
    gc.freeze()  # else every collection looks through all that was imported
    for number in range(-warmups, rounds):
        first = number % len(names)
        for name in (*names[first:], *names[:first]):
            if number >= 0 and number % pauses.get(name, 1):
                continue
            start = now()
            steps[name]()
            if number >= 0:
                seconds[name].append(now() - start)
    return seconds


@dataclass(frozen=True)
class Ratio:
    """How two rows of one run compare.

    Args:
        of_medians: one row's median over the other's.
        median: of the rounds' own ratios.
        low: the smallest of these.
        high: the largest.
    """

    of_medians: float
    median: float
    low: float
    high: float


def ratio(row: Sequence[float], base: Sequence[float]) -> Ratio:
    """A row's samples over another's, round by round.

    Args:
        row: seconds (or any other figure) of each round.
        base: of the same rounds.

    Raises:
        ValueError: they are not of the same rounds.
    """
    if not row or len(row) != len(base):
        raise ValueError(
            f"a ratio needs two rows of the same rounds, got {len(row)} and {len(base)} samples. Measure both in one "
            "call of interleaved()."
        )
    each = [over / under for over, under in zip(row, base, strict=True)]
    middle = statistics.median(row) / statistics.median(base)
    return Ratio(middle, statistics.median(each), min(each), max(each))
