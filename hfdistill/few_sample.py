"""Few-sample recovery: mend a compressed student block by block, in closed form and without labels (Li et al. 2020).

A student that was made by pruning heads or neurons keeps the teacher's width, but the outputs of its blocks have
shifted. From some tens to hundreds of unlabelled rows one linear map per block brings them back; it is folded into the
block's own output layer, so that the student has no parameter more than before. There is no loss and no optimizer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hfdistill.anatomy import Anatomy, encoder_layers, output_projections
from hfdistill.functional.few_sample import pointwise_map
from hfdistill.layer_map import LayerMap
from hfdistill.representations import Batch

Inputs = Mapping[str, Any]


class Recovery(NamedTuple):
    """What one map did.

    Attributes:
        layer: number of the student's layer, from 1.
        module: name of the linear module inside it that took the map in.
        before: mean squared difference of its outputs from the teacher's, before.
        after: the same afterwards, on the same rows.
    """

    layer: int
    module: str
    before: float
    after: float


def recover_from_few_samples(
    student: nn.Module, teacher: nn.Module, batches: Iterable[Inputs], layers: str | LayerMap = "uniform"
) -> list[Recovery]:
    """Fold into each block of the student the linear map that brings its output closest to the teacher's.

    For the output layers of attention and MLP of each mapped layer, from below: Q = argmin |X_s Q^T - X_t| over the
    real tokens of all batches, X_s and X_t their outputs before the residual sum; then W <- Q W, b <- Q b. Each map is
    found with those below already in place. The student is changed; the teacher is not.

    Li et al. 2020, Few Sample Knowledge Distillation for Efficient Network Compression,
    https://arxiv.org/abs/1812.01839, section 3. Theirs are convolutions of pruned networks, with one pointwise layer
    per block; the places in a transformer are our choice.

    Args:
        student: of the teacher's width; other numbers of heads, neurons and layers are in order.
        teacher: what it was made from.
        batches: inputs of both models, on their device; some tens to hundreds of rows, no labels needed. They are
            gone through once for each map, so they are kept in memory.
        layers: which student layer learns from which teacher layer.

    Returns:
        One entry per map, in the order they were made.

    Raises:
        ValueError: other widths; no linear output layers; fewer real tokens than the width, so that no single map is
            the best.
    """
    kept = [dict(inputs) for inputs in batches]
    ours, theirs = Anatomy.of(student), Anatomy.of(teacher)
    if ours.width != theirs.width:
        raise ValueError(
            f"few-sample recovery needs one width, got {ours.width} (student) and {theirs.width} (teacher): outputs "
            "of blocks are matched entry by entry. Make the student by leaving out layers, heads or neurons."
        )
    chosen = LayerMap.parse(layers).without_embeddings().resolve(ours.depth, theirs.depth)
    modes = [(model, model.training) for model in (student, teacher)]
    for model, _ in modes:
        model.eval()
    try:
        return [step for pair in sorted(chosen) for step in _recover_layer(student, teacher, kept, *pair)]
    finally:
        for model, training in modes:
            model.train(training)


@torch.no_grad()
def _recover_layer(
    student: nn.Module, teacher: nn.Module, batches: list[dict[str, Any]], ours: int, theirs: int
) -> list[Recovery]:
    own = output_projections(encoder_layers(student)[ours - 1])
    other = output_projections(encoder_layers(teacher)[theirs - 1])
    if not own or len(own) != len(other):
        raise ValueError(
            f"few-sample recovery folds maps into linear output layers, found {len(own)} in the student's layer "
            f"{ours} and {len(other)} in the teacher's layer {theirs}. Student and teacher must be of one family "
            "whose attention and MLP end in torch.nn.Linear (not GPT-2)."
        )
    steps = []
    for (name, module), target in zip(own.items(), other.values(), strict=True):
        outputs, targets = _outputs(student, module, batches), _outputs(teacher, target, batches)
        if len(outputs) < module.out_features:
            raise ValueError(
                f"few-sample recovery needs at least as many tokens as the width, got {len(outputs)} for "
                f"{module.out_features}: with fewer, maps that agree on them differ elsewhere. Give more rows."
            )
        found = pointwise_map(outputs, targets)
        module.weight.copy_(found.to(module.weight) @ module.weight)
        if module.bias is not None:
            module.bias.copy_(found.to(module.bias) @ module.bias)
        before, after = ((side - targets).square().mean().item() for side in (outputs, outputs @ found.T))
        steps.append(Recovery(ours, name, before, after))
    return steps


def _outputs(model: nn.Module, module: nn.Linear, batches: list[dict[str, Any]]) -> Tensor:
    """What `module` gives for every real token of all batches, (tokens, D), float32."""
    rows: list[Tensor] = []
    handle = module.register_forward_hook(lambda *call: rows.append(call[2]))
    names = Anatomy.of(model).input_names
    found = []
    try:
        for inputs in batches:
            rows.clear()
            model(**{name: value for name, value in inputs.items() if name in names and name != "labels"})
            mask = Batch.of(inputs).mask
            output = rows[0].float()  # (B, N, D)
            found.append(output.flatten(0, 1) if mask is None else output[mask.bool()])
    finally:
        handle.remove()
    return torch.cat(found)
