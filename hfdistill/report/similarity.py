"""How alike are the layers of a student and of its teacher? Linear CKA between all of their hidden states.

The models are run, not changed.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from hfdistill.anatomy import Anatomy
from hfdistill.capture import capture
from hfdistill.functional.kernels import linear_cka_debiased
from hfdistill.representations import Batch, Needs

_MOST_TOKENS = 2048  # more rows than most layers are wide; the time grows with them


@torch.no_grad()
def layer_similarity(
    student: nn.Module,
    teacher: nn.Module,
    inputs: Mapping[str, Tensor],
    teacher_inputs: Mapping[str, Tensor] | None = None,
) -> list[list[float]]:
    """Linear CKA of every student layer (rows, from the embeddings on) with every layer of the teacher (columns).

    Kornblith et al. 2019, Similarity of Neural Network Representations Revisited, arXiv 1905.00414, section 3; as the
    unbiased estimate of Song et al. 2012, since the biased one is near 1 for any two layers that are wider than there
    are rows. 1 for layers that are equal up to rotation and scale, around 0, also slightly below, for unrelated ones.
    Compared are real tokens (or places) where every layer of both models has the same number of them, 2048 from all
    over the batch if there are more; or else one vector per row, the mean over its real tokens: Swin and convolutional
    networks have fewer places in each stage.

    Args:
        student: A transformers model, in evaluation mode.
        teacher: The same.
        inputs: One batch of the student's inputs; `attention_mask` says which tokens are real.
        teacher_inputs: The same rows as the teacher takes them (pixels of another size); None: the student's.

    Raises:
        ValueError: A model does not show its layers, or there are fewer than 4 rows to compare.
    """
    sides = [_states(student, inputs), _states(teacher, inputs if teacher_inputs is None else teacher_inputs)]
    mask = Batch.of(inputs).mask
    counts = {state.shape[1] for states in sides for state in states}
    alike = len(counts) == 1
    ours, theirs = ([_tokens(state, mask) if alike else _row_means(state, mask) for state in side] for side in sides)
    if len(ours[0]) < 4:
        raise ValueError(
            f"layer_similarity needs at least 4 rows or tokens to compare, got {len(ours[0])}: of fewer the unbiased "
            "estimate does not exist. Pass a larger batch."
        )
    return [[linear_cka_debiased(layer, other).item() for other in theirs] for layer in ours]


def _states(model: nn.Module, inputs: Mapping[str, Tensor]) -> list[Tensor]:
    """The hidden states of all layers, (B, N, D) each."""
    anatomy = Anatomy.of(model)
    device = next(model.parameters()).device
    known = {name: x.to(device) for name, x in inputs.items() if name in anatomy.input_names and name != "labels"}
    layers = range(anatomy.depth + 1)
    _, shown = capture(model, known, Needs(hidden_states=frozenset(layers)))
    return [shown.hidden_states[layer] for layer in layers]


def _tokens(state: Tensor, mask: Tensor | None) -> Tensor:
    """Real tokens as rows, (B, N, D) -> (n, D), in double precision on the processor."""
    real = _real(state, mask).flatten().nonzero()[:, 0]  # (B, N) -> (n,)
    chosen = real[torch.linspace(0, len(real) - 1, min(len(real), _MOST_TOKENS)).round().long().to(real.device)]
    return state.flatten(0, 1)[chosen].to("cpu", torch.float64)


def _row_means(state: Tensor, mask: Tensor | None) -> Tensor:
    """The mean over the real tokens of each row, (B, N, D) -> (B, D)."""
    state = state.to("cpu", torch.float64)
    real = _real(state, mask).to(state)[..., None]  # (B, N, 1)
    return (state * real).sum(dim=1) / real.sum(dim=1).clamp(min=1)


def _real(state: Tensor, mask: Tensor | None) -> Tensor:
    """(B, N), which tokens are real: all of them where the mask is none of these tokens."""
    if mask is None or mask.shape != state.shape[:2]:
        return state.new_ones(state.shape[:2], dtype=torch.bool)
    return mask.to(state.device).bool()
