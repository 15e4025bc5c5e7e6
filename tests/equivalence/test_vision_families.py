"""Every preset between image classifiers of every family: it trains a student, or says why it is not defined.

A transformer learns from transformers, from one with stages (Swin) and from convolutional models, and models with
stages learn too. Widths, depths and grids differ on purpose, between the models and between the stages.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from torch import nn
from toy_models import image_inputs, toy_convnext, toy_deit, toy_resnet, toy_swin, toy_vit
from training_toys import image_rows, largest_difference, logged, trainer_of, weights_of
from transformers import PreTrainedModel

from hfdistill import DistillationTrainer, Objective, preset, preset_names
from hfdistill.anatomy import Anatomy
from hfdistill.capture import capture
from hfdistill.representations import Batch

SIZE = 32
ROWS = 8
LABELS = torch.arange(ROWS) % 3


def vit(layers: int) -> PreTrainedModel:
    """A student of 4 x 4 patches."""
    return toy_vit(layers=layers, image_size=SIZE, patch_size=8)


TEACHERS: dict[str, Callable[[], PreTrainedModel]] = {
    "vit": lambda: toy_vit(layers=4, width=24, image_size=SIZE, patch_size=8, seed=1),
    "deit": lambda: toy_deit(layers=4, width=24, image_size=SIZE, patch_size=8, seed=1),
    "swin": lambda: toy_swin(embed_dim=16, num_heads=[1, 2, 4], image_size=SIZE, patch_size=4, seed=1),
    "convnext": lambda: toy_convnext(hidden_sizes=[16, 24, 32], image_size=SIZE, patch_size=4, seed=1),
    "resnet": lambda: toy_resnet(embedding_size=16, hidden_sizes=[20, 24, 32], seed=1),
}
LAYERS = dict.fromkeys(TEACHERS, 2) | {"resnet": 5}
"""Layers of the transformer that learns from each; more than the ResNet has stages."""

STAGED: dict[tuple[str, str], Callable[[], PreTrainedModel]] = {
    ("swin", "swin"): lambda: toy_swin(image_size=SIZE, patch_size=4),
    ("convnext", "resnet"): lambda: toy_convnext(image_size=SIZE, patch_size=4),
}
"""(family of the student, of the teacher) -> the student."""

TOY: dict[str, dict[str, object]] = {"lcc": {"parts": 2}}
"""Options of presets that toy maps, which end at 2 x 2 places, ask for."""

PLACES = "their places are not the same"
ATTENTION = "(convnext|resnet) has no attention that could be compared"
SPACES = "between different spaces there is no distance"
UNDEFINED: dict[tuple[str, str, str], str] = {
    ("tinybert", "vit", "swin"): PLACES,
    ("minilm", "vit", "swin"): PLACES,
    ("mobilebert", "vit", "swin"): PLACES,
    ("tinybert", "vit", "convnext"): ATTENTION,
    ("minilm", "vit", "convnext"): ATTENTION,
    ("mobilebert", "vit", "convnext"): ATTENTION,
    ("tinybert", "vit", "resnet"): ATTENTION,
    ("minilm", "vit", "resnet"): ATTENTION,
    ("mobilebert", "vit", "resnet"): ATTENTION,
    ("tinybert", "convnext", "resnet"): ATTENTION,
    ("minilm", "convnext", "resnet"): ATTENTION,
    ("mobilebert", "convnext", "resnet"): ATTENTION,
    ("ckd", "vit", "swin"): SPACES,
    ("ckd", "vit", "convnext"): SPACES,
    ("ckd", "vit", "resnet"): SPACES,
    ("ckd", "swin", "swin"): SPACES,
    ("ckd", "convnext", "resnet"): SPACES,
    ("dynabert_depth", "vit", "resnet"): "two student layers would have to share a teacher layer",
}
"""(preset, family of the student, of the teacher) -> what the error says."""


@cache
def rows() -> Dataset:
    """Eight images."""
    return image_rows(ROWS, size=SIZE)


@cache
def teacher(family: str) -> PreTrainedModel:
    """One teacher of a family for all of its runs: it never changes."""
    return TEACHERS[family]()


def untaught(objective: Objective, student: nn.Module, source: PreTrainedModel) -> list[str]:
    """The terms that give the student no gradient at any time of a run."""
    ours, theirs = objective.needs()
    inputs = image_inputs(rows=ROWS, size=SIZE)
    _, shown = capture(student, inputs, ours)
    with torch.no_grad():
        _, target = capture(source, inputs, theirs)
    parameters = [parameter for parameter in student.parameters() if parameter.requires_grad]
    silent = []
    for name in objective:
        loss = objective[name]
        shares = [share for share in (0.0, 0.5, 1.0) if loss.weight(share) != 0.0]
        if not shares:  # a task that a preset leaves out
            continue
        batch = Batch(ROWS, LABELS, progress=shares[0], index=torch.arange(ROWS))
        found = torch.autograd.grad(loss(shown, target, batch), parameters, allow_unused=True, retain_graph=True)
        if not any(gradient is not None and gradient.isfinite().all() and gradient.any() for gradient in found):
            silent.append(name)
    return silent


def refused(name: str, ours: str, theirs: str, run: Callable[[], object]) -> bool:
    """Whether the pair is one of the undefined; then `run` must say why."""
    reason = UNDEFINED.get((name, ours, theirs))
    if reason is not None:
        with pytest.raises(ValueError, match=reason):
            run()
    return reason is not None


@pytest.mark.parametrize("theirs", TEACHERS)
@pytest.mark.parametrize("name", preset_names())
def test_a_transformer_learns_from_every_family(name: str, theirs: str, tmp_path: Path) -> None:
    """A preset that stops on a family without a word of why is a promise broken, one that teaches nothing a worse one.

    Each term by itself must reach the student: beside the labels nobody would notice one that does not.
    """
    student, source = vit(LAYERS[theirs]), teacher(theirs)

    def made() -> DistillationTrainer:
        return trainer_of(tmp_path, preset(name, **TOY.get(name, {})), student, rows(), teacher=source)

    if refused(name, "vit", theirs, made):
        return
    trainer, before = made(), weights_of(student)
    trainer.train()
    losses = [entry["loss"] for entry in logged(trainer)]
    assert len(losses) == 2
    assert all(math.isfinite(loss) for loss in losses)
    assert largest_difference(before, weights_of(student)) > 0
    assert untaught(trainer.objective, student.eval().requires_grad_(), source) == []


@pytest.mark.parametrize(("ours", "theirs"), [pytest.param(*pair, id="-from-".join(pair)) for pair in STAGED])
@pytest.mark.parametrize("name", preset_names())
def test_a_student_with_stages_is_taught(name: str, ours: str, theirs: str) -> None:
    """Its layers differ in width and grid as the teacher's do; a loss that knows one width would fail here alone."""
    options = {"depth_multiplier": 1.0} if name == "dynabert_depth" else TOY.get(name, {})
    objective, student, source = preset(name, **options), STAGED[ours, theirs](), teacher(theirs)

    def bind() -> None:
        objective.bind(Anatomy.of(student), Anatomy.of(source))

    if refused(name, ours, theirs, bind):
        return
    bind()
    objective.bind_data(ROWS, LABELS)
    assert untaught(objective, student, source) == []


def test_no_family_is_left_out() -> None:
    """A refusal that stands for nothing that is run would hide a preset that works."""
    run = {("vit", family) for family in TEACHERS} | set(STAGED)
    assert {(ours, theirs) for _, ours, theirs in UNDEFINED} <= run
    assert {name for name, _, _ in UNDEFINED} <= set(preset_names())
