"""What would make the host wait for an accelerator, noticed on a CPU: numbers read, and shapes that follow from data.

An accelerator works through a queue. Whoever reads a number of a tensor, or makes a tensor as long as its data says,
waits until the queue is empty, and so does a copy of a number that the host has just made.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import hfdistill

PACKAGE = Path(hfdistill.__file__).parent
READ = {"_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero", "argwhere", "masked_select", "bincount"}
READ |= {"_unique", "_unique2", "unique_dim", "unique_consecutive"}
COPIED = {"lift_fresh"}
"""What `torch.tensor(...)` and a list of indices do: numbers of the host become a tensor."""
READ_WHOLE = ("tolist", "numpy", "cpu")
"""Methods that read a tensor without an operator where it lies on the CPU anyway."""
MASKABLE = {"index", "index_put", "index_put_", "_index_put_impl_"}


class HostSync(TorchDispatchMode):
    """Notes where the package itself, not a library that it calls, would wait: "file function operator"."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, given = func._schema.name.removeprefix("aten::"), kwargs or {}
        masked = name in MASKABLE and any(at is not None and at.dtype == torch.bool for at in args[1])
        grown = name == "repeat_interleave" and given.get("output_size") is None
        if name in READ | COPIED or masked or grown:
            self.note(name)
        return func(*args, **given)

    def note(self, operator: str) -> None:
        """Take down whose code asked for it."""
        frame: Any = sys._getframe(1)
        while frame is not None:
            path = Path(frame.f_code.co_filename)
            if path.is_relative_to(PACKAGE):
                self.found.add(f"{path.relative_to(PACKAGE).as_posix()} {frame.f_code.co_name} {operator}")
                return
            if {"transformers", "accelerate"} & set(path.parts):
                return
            frame = frame.f_back


@contextmanager
def watched_for_syncs() -> Iterator[set[str]]:
    """Within this context whatever the package would wait for appears in the set."""
    with HostSync() as mode, ExitStack() as patches:
        for name in READ_WHOLE:
            plain = getattr(torch._C.TensorBase, name)

            def noted(self: Tensor, *args: Any, plain: Any = plain, name: str = name, **given: Any) -> Any:
                mode.note(name)
                return plain(self, *args, **given)

            patches.enter_context(patch.object(Tensor, name, noted, create=True))
        yield mode.found
