"""Oracles of contrast."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hfdistill.functional.contrastive import (
    cos_nce,
    in_batch_contrast,
    log_constant,
    memory_similarity,
    noise_contrast,
    relation_similarity,
    remembered,
)

Step = tuple[Tensor, Tensor, Tensor, Any, Any]


def cos_nce_of(zs: Tensor, zt: Tensor, neg: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
    if neg is None or not neg.numel():  # JSON writes (B, 0, D) as B empty lists
        neg = zs.new_zeros(zs.shape[0], 0, zs.shape[1])
    return cos_nce(zs, zt, neg, mask=mask)


def memory_step(similarity: Callable[..., Tensor], temperature: float) -> Callable[..., Step]:
    """A step of CRD or CRCD: the loss, both memories afterwards, and both constants, of this batch if not given."""

    def step(
        v_s: Tensor,
        v_t: Tensor,
        mem_s: Tensor,
        mem_t: Tensor,
        idx: Tensor,
        T: float = temperature,
        Z_s: Any = None,
        Z_t: Any = None,
        momentum: float = 0.5,
    ) -> Step:
        index, loss, constants = idx.long(), torch.zeros((), dtype=v_s.dtype), []
        for vectors, memory, given in ((v_s, mem_t, Z_s), (v_t, mem_s, Z_t)):
            similarities = similarity(vectors, memory, index, T)
            own = None if given is None else torch.as_tensor(given, dtype=v_s.dtype).log()
            constant = log_constant(similarities, len(memory)) if own is None else own
            loss = loss + noise_contrast(similarities, constant, len(memory))
            constants.append(constant.exp())
        own = index[:, 0]
        memories = [
            memory.index_copy(0, own, remembered(memory[own], vectors.detach(), momentum))
            for memory, vectors in ((mem_s, v_s), (mem_t, v_t))
        ]
        return loss, memories[0], memories[1], constants[0], constants[1]

    return step


ORACLES: dict[str, Callable[..., Any]] = {
    "cos_nce": cos_nce_of,
    "infonce": lambda s, t, T=0.1, mask=None: in_batch_contrast(s, t, T, mask),
    "crd_step": memory_step(memory_similarity, 0.07),
    "crcd_step": memory_step(relation_similarity, 0.05),
}
