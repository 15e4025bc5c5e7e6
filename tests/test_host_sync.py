"""No step waits for the device: what is queued there must not run dry while the host reads a number.

On a CPU nothing waits, so it is operators that are looked at (host_sync.py); on a GPU CUDA itself tells.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from host_sync import watched_for_syncs
from loss_variants import VARIANTS
from torch import Tensor
from toy_models import toy_vit
from toy_representations import DATA_LABELS, STUDENT, TEACHER, Scene, toy_scene
from training_toys import image_rows, trainer_of
from transformers import TrainerCallback

from hfdistill import DistillationLoss, DistillationTrainer
from hfdistill.term_averages import TermAverages

ON_A_CPU = {
    "functional/reductions.py spared _local_scalar_dense": "looks only where the mask lies on a CPU",
    "functional/reductions.py real_length nonzero": "looks only where the mask lies on a CPU",
    "functional/reductions.py real_length _local_scalar_dense": "looks only where the mask lies on a CPU",
    "functional/reductions.py squared_distance _local_scalar_dense": "looks only where the sum lies on a CPU",
}
"""What is done on a CPU alone; the test on a GPU passes through the same functions."""
WAITS = {
    "universal logits": "sorts the tokens that have a partner, and nothing else: their number is a shape",
    "vocabulary": "makes the logits of the tokens that count, and no others: their number is a shape",
    "channel matching": "solves an assignment on the CPU every 2,000 batches, and reads which batch it is: an update "
    "that is left out takes its number back on the device",
}
"""First words of a variant's name -> why a step of it waits once."""
PRESETS = ("kd", "pkd", "tinybert", "minilm", "crd")


def made(name: str) -> tuple[DistillationLoss, Scene]:
    """The loss of a variant, bound, and a scene for it."""
    variant = VARIANTS[name]
    student, teacher = (replace(side, head=variant.head, classes=variant.classes) for side in (STUDENT, TEACHER))
    loss = variant.make()
    loss.bind(student, teacher)
    if loss.indexed:
        loss.bind_data(len(DATA_LABELS), DATA_LABELS)
    return loss, toy_scene(student, teacher)


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("name", VARIANTS)
def test_no_loss_waits_for_the_device(name: str, masked: bool) -> None:
    """Of one number read per loss and step an accelerator is idle for as long as the host takes to queue the next."""
    loss, scene = made(name)
    if not masked:
        scene = replace(scene, batch=replace(scene.batch, mask=None))

    def step() -> None:
        shown = scene.watched()
        (loss(*shown.parts()) * loss.count(shown.batch)).backward()

    step()  # the first batch of a run may wait: it decides what stays as it is for long
    with watched_for_syncs() as found:
        step()
    waits = any(name.startswith(words) for words in WAITS)
    assert waits == bool(found - ON_A_CPU.keys()), found


class WatchedStep(TrainerCallback):
    """Enters a context for the third step, from its first batch to after the optimizer's update."""

    def __init__(self, watch: Callable[[], AbstractContextManager[Any]]) -> None:
        self.watch = watch
        self.found: set[str] | None = None
        self._open = ExitStack()

    def enter(self, trainer: DistillationTrainer) -> None:
        """Begin, where it is the third step."""
        if trainer.state.global_step == 2:
            self.found = self._open.enter_context(self.watch())

    def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        self._open.close()


class OnAccelerator(DistillationTrainer):
    """A trainer that looks at no number before it logs, as if it ran on an accelerator."""

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        self._teaching.watch.at_once = self._numbers.at_once = False
        next(own for own in self.callback_handler.callbacks if isinstance(own, WatchedStep)).enter(self)
        return super().training_step(model, inputs, num_items_in_batch)


def step_of(folder: Path, preset: str, watch: Callable[[], AbstractContextManager[Any]], **changes: Any) -> set[str]:
    """What was found in the third step of a run; earlier ones find out how the teacher's pass can be cut."""
    callback = WatchedStep(watch)
    settings = {"optim": "adamw_torch_fused", "max_grad_norm": 1.0, "logging_steps": 100, "max_steps": 3} | changes
    trainer = trainer_of(folder, preset, kind=OnAccelerator, callbacks=[callback], **settings)
    trainer.train()
    if callback.found is None:
        raise RuntimeError("the third step was not watched")
    return callback.found


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("preset", PRESETS)
def test_no_step_of_the_trainer_waits_for_the_device(tmp_path: Path, preset: str, skip: bool) -> None:
    """Teacher, student, losses, watching for NaN, clipping and update: all of it goes into the queue."""
    changes = {"on_nonfinite": "skip"} if skip else {}
    assert step_of(tmp_path, preset, watched_for_syncs, **changes) <= ON_A_CPU.keys()


def test_what_waits_is_found() -> None:
    """A watch that sees nothing would pass every loss: numbers read, shapes that follow from data, numbers copied."""
    averages = TermAverages(lambda values: values)
    averages.add({"kd": torch.tensor(1.0)})
    loss, scene = made("universal logits")
    with watched_for_syncs() as found:
        averages.pop("loss/")
        loss(*scene.parts())
        torch.ones(3)[torch.tensor([True, False, True])].sum().item()  # not the package's own
    assert found >= {
        "term_averages.py pop tolist",
        "term_averages.py <listcomp> lift_fresh",
        "functional/divergences.py <genexpr> index",
    }
    assert all(line.startswith(("term_averages.py", "functional/")) for line in found)


@contextmanager
def refused_by_cuda() -> Iterator[set[str]]:
    """Within this context CUDA raises an error where the host would wait."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield set()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.parametrize("preset", PRESETS)
def test_cuda_is_not_waited_for(tmp_path: Path, preset: str) -> None:
    """What CUDA says itself. Two waits are not ours: transformers reads each padding mask, which images do not have,
    and the Trainer looks for NaN in each loss unless it is told not to.
    """
    images = {"student": toy_vit(), "teacher": toy_vit(layers=4, seed=1), "rows": image_rows()}
    step_of(tmp_path, preset, refused_by_cuda, use_cpu=False, logging_nan_inf_filter=False, **images)
