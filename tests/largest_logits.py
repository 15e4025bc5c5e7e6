"""What is the largest tensor that is made? Looks at every operation, forward and backward, for tests of memory."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LargestLogits(TorchDispatchMode):
    """Notes the most rows of a tensor whose last axis is the vocabulary, and the most elements of any tensor."""

    def __init__(self, words: int) -> None:
        super().__init__()
        self.words, self.rows, self.elements = words, 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.numel())
                if tensor.dim() and tensor.shape[-1] == self.words:
                    self.rows = max(self.rows, tensor.numel() // self.words)
        return result
