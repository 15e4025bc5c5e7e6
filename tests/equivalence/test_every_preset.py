"""Every published method trains, stops, goes on and leaves a plain student: a text pair, and an image pair.

Student and teacher differ in width and depth. What is checked is what production needs of each preset by its name: the
loss is finite and trains the student, a resumed run ends where the uninterrupted one ends, bit by bit, with its
trainable parts, banks and random draws, and the saved folder is a model of transformers and nothing else.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from toy_models import toy_bert, toy_vit
from training_toys import image_rows, largest_difference, logged, text_rows, trainer_of, weights_of
from transformers import AutoModelForImageClassification, AutoModelForSequenceClassification

from hfdistill import DistillationTrainer, preset_names

# preset -> why it is not defined on images of one label each
TEXT_ONLY: dict[str, str] = {}
STEPS, STOP = 4, 2


def run(folder: Path, preset: str, images: bool, **changes: Any) -> DistillationTrainer:
    """A trainer of that preset that saves after every second of four steps."""
    student, teacher = (
        (toy_vit(layers=2, width=16, patch_size=2), toy_vit(layers=4, width=24, patch_size=2))
        if images
        else (toy_bert(layers=2, width=16), toy_bert(layers=4, width=24, seed=1))
    )
    rows = image_rows(16) if images else text_rows(16)
    plan = {
        "max_steps": STEPS,
        "save_strategy": "steps",
        "save_steps": STOP,
        "learning_rate": 1e-3,
        "optim": "adamw_torch",
    }
    return trainer_of(folder, preset, student, rows, teacher=teacher, per_device_train_batch_size=4, **plan, **changes)


@pytest.mark.parametrize("images", [False, True], ids=["text", "images"])
@pytest.mark.parametrize("preset", preset_names())
def test_trains_resumes_and_loads(preset: str, images: bool, tmp_path: Path) -> None:
    """A preset that only its own unit test ever built is no preset."""
    if images and preset in TEXT_ONLY:
        with pytest.raises(ValueError, match=TEXT_ONLY[preset]):
            run(tmp_path, preset, images).train()
        return
    whole = run(tmp_path / "whole", preset, images)
    before = weights_of(whole.student)
    whole.train()
    losses = [entry["loss"] for entry in logged(whole)]
    assert len(losses) == STEPS
    assert all(math.isfinite(loss) for loss in losses)
    assert largest_difference(before, weights_of(whole.student)) > 0

    resumed = run(tmp_path / "resumed", preset, images)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{STOP}"))
    assert largest_difference(weights_of(whole.student), weights_of(resumed.student)) == 0
    assert largest_difference(whole.objective.state_dict(), resumed.objective.state_dict()) == 0

    folder = tmp_path / "student"
    whole.save_model(str(folder))
    auto = AutoModelForImageClassification if images else AutoModelForSequenceClassification
    loaded, info = auto.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    assert largest_difference(weights_of(loaded), weights_of(whole.student)) == 0
    assert not any("distillation" in name for name in load_file(folder / "model.safetensors"))
    assert torch.isfinite(torch.stack([weight.abs().max() for weight in loaded.state_dict().values()])).all()
