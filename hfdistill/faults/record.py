"""The first number of a run that was not finite: a vector of whole numbers, which processes can gather, and its words.

It holds, in this order: the step, the micro-batch of the step, one flag for each column (the objective's terms, their
weighted sum, the gradient norm) and one for each of the first rows of the batch. A step of -1 says: all was finite.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

SUM = "the weighted sum of the terms"
NORM = "the gradient norm"
NAMED_ROWS = 64
"""So many rows of a batch can be named."""


class NonFiniteError(RuntimeError):
    """A term of the objective, their weighted sum or the gradient norm became NaN or inf."""


def nothing(columns: int, device: torch.device) -> Tensor:
    """The record of a run in which all was finite."""
    return torch.full((2 + columns + NAMED_ROWS,), -1, dtype=torch.long, device=device)


def noted(record: Tensor, step: int, micro_batch: int, flags: Tensor, rows: Tensor) -> Tensor:
    """The record after a micro-batch: as it is, if it holds something already, or nothing new was found.

    Args:
        record: what was found before.
        step: updates made before.
        micro_batch: its number in the update, from 0.
        flags: bool, one for each column.
        rows: bool (NAMED_ROWS,).
    """
    found = torch.empty_like(record)
    found[0].fill_(step)  # a tensor made of numbers would be copied to the device, and the host wait for it
    found[1].fill_(micro_batch)
    found[2:] = torch.cat([flags, rows])
    return torch.where(flags.any() & (record[0] < 0), found, record)


def broken_rows(numbers: Iterable[object], rows: int, device: torch.device) -> Tensor:
    """(NAMED_ROWS,) bool, which rows of a batch hold NaN or inf; -inf is how classes are switched off, and passes.

    Args:
        numbers: what the student was given and gave; what is no tensor (rows, ...) of floating point is passed over.
        rows: of the batch.
        device: of the result.
    """
    broken = torch.zeros(rows, dtype=torch.bool, device=device)
    for tensor in numbers:
        if isinstance(tensor, Tensor) and tensor.is_floating_point() and tensor.shape[:1] == (rows,):
            highest = tensor.detach().reshape(rows, -1).amax(dim=1)  # (B,); NaN, if one of them is
            broken = broken | highest.isnan() | highest.isposinf()
    return F.pad(broken, (0, NAMED_ROWS))[:NAMED_ROWS]


def explained(records: Sequence[Sequence[int]], columns: Sequence[str], stopped: bool) -> str:
    """What a user needs to know; "" if all was finite.

    Args:
        records: of each process.
        columns: what the flags stand for; the last two are SUM and NORM.
        stopped: whether the run ends.
    """
    steps = [record[0] for record in records if record[0] >= 0]
    if not steps:
        return ""
    first = {rank: record for rank, record in enumerate(records) if record[0] == min(steps)}
    named = {rank: _names(record, columns) for rank, record in first.items()}
    for general in (NORM, SUM):  # what follows from a term says nothing where the term itself is known
        if any(set(names) - {general} for names in named.values()):
            named = {rank: [name for name in names if name != general] for rank, names in named.items()}
    places = [
        f"{' and '.join(names)} ({_place(first[rank], rank, len(columns), len(records))})"
        for rank, names in named.items()
        if names
    ]
    if all(names in ([], [NORM]) for names in named.values()):  # it is that of all processes
        places = [NORM]
    ending = (
        "The student would become NaN with it: its weights are those before that step, and nothing was saved since. "
        if stopped
        else "Its weights stayed as they were. "
    )
    advice = (
        "Look at those rows (empty texts, broken pixels, labels), at a temperature close to 0, at fp16 (bf16 does not "
        "overflow), and, if the loss grew before, at the learning rate."
    )
    more = " on_nonfinite='skip' leaves such updates out and counts them." if stopped else ""
    return f"{'; '.join(places)} became NaN or inf in the batch of step {min(steps)}. {ending}{advice}{more}"


def _names(record: Sequence[int], columns: Sequence[str]) -> list[str]:
    found = [name for name, flag in zip(columns, record[2:], strict=False) if flag > 0]
    return [name if name in (SUM, NORM) else f"objective term {name!r}" for name in found]


def _place(record: Sequence[int], rank: int, columns: int, processes: int) -> str:
    rows = [str(row) for row, flag in enumerate(record[2 + columns :]) if flag > 0]
    words = [f"process {rank}"] if processes > 1 else []
    words.append(f"micro-batch {record[1]}")
    words.append(f"NaN or inf in rows {', '.join(rows)}" if rows else "what the student read and gave was finite")
    return ", ".join(words)
