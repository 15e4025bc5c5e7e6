"""Sizes of stages, read off a pass without numbers, are those of the real pass, and reading them leaves no trace."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import nn
from toy_models import STAGES, image_inputs, toy_convnext, toy_resnet, toy_swin
from transformers import PoolFormerConfig, PoolFormerForImageClassification, PreTrainedModel

from hfdistill.vision_stages import Window, read_stages


def test_widths_and_grids_are_those_of_a_real_pass() -> None:
    """Projectors are built from them before the first batch."""
    for make in STAGES.values():
        model = make()
        stages = read_stages(type(model), model.config, attended=False)
        assert stages is not None
        output = model(**image_inputs(size=8), output_hidden_states=True)
        maps = output.get("reshaped_hidden_states", output.hidden_states)
        assert stages.widths == tuple(state.shape[1] for state in maps)
        assert len(set(stages.widths)) > 2
        if make is not toy_resnet:  # whose configuration names no size of images
            assert stages.grids == tuple(tuple(state.shape[2:]) for state in maps)


def test_a_family_without_an_image_size_has_nominal_grids() -> None:
    """They tell that these are images; how many places there are shows in the pass."""
    model = toy_resnet()
    stages = read_stages(type(model), model.config, attended=False)
    assert stages is not None
    assert stages.grids == ((56, 56), (56, 56), (28, 28), (14, 14))


def test_images_need_not_be_square() -> None:
    """Rows stay rows."""
    model = toy_convnext(image_size=[16, 8])
    stages = read_stages(type(model), model.config, attended=False)
    assert stages is not None
    assert stages.grids == ((16, 8), (16, 8), (8, 4), (4, 2))


def test_attention_is_that_of_each_stage() -> None:
    """Windows in an image, places in a window, and which windows lie half a window off."""
    model = toy_swin(depths=[1, 4, 2])
    stages = read_stages(type(model), model.config, attended=True)
    assert stages is not None
    assert stages.heads == (1, 2, 4)
    assert stages.windows == (Window(16, 4), Window(4, 4, True), Window(1, 4))
    assert stages.calls == (1, 5, 7)


@pytest.mark.parametrize("family", STAGES)
def test_reading_leaves_no_trace(family: str) -> None:
    """A run must draw the same numbers, and save the same configuration, whether or not someone looked."""
    model = STAGES[family]()

    class Drawing(type(model)):  # type: ignore[misc]  # which no test has read before
        def __init__(self, config: object) -> None:
            super().__init__(config)
            torch.rand(1, device="cpu")

    chosen = model.config._attn_implementation
    written, state = model.config.to_json_string(), torch.get_rng_state()
    assert read_stages(Drawing, model.config, attended=family == "swin") is not None
    assert torch.equal(torch.get_rng_state(), state)
    assert model.config.to_json_string() == written
    assert model.config._attn_implementation == chosen


def test_an_architecture_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Anatomy is asked for at every turn; a ResNet-50 takes a fifth of a second."""
    model, passes = toy_resnet(embedding_size=6), []
    forward = type(model).forward
    monkeypatch.setattr(type(model), "forward", lambda *args, **given: passes.append(1) or forward(*args, **given))
    first = read_stages(type(model), model.config, attended=False)
    assert read_stages(type(model), toy_resnet(embedding_size=6).config, attended=False) is first
    assert len(passes) == 1
    read_stages(type(model), toy_resnet(embedding_size=7).config, attended=False)
    assert len(passes) == 2


def poolformer() -> PreTrainedModel:
    """Two stages, and as many states as stages: none of the embeddings."""
    sizes = {"depths": [1, 1], "hidden_sizes": [8, 16], "num_encoder_blocks": 2}
    patches = {"patch_sizes": [3, 3], "strides": [2, 2], "padding": [1, 1]}
    return PoolFormerForImageClassification(PoolFormerConfig(**sizes, **patches))


def test_what_cannot_be_read_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    """A stage must not be taken for another; losses on logits go on, and the log says what does not."""
    model = poolformer()
    with caplog.at_level(logging.WARNING, "hfdistill.vision_stages"):
        assert read_stages(type(model), model.config, attended=False) is None
        assert read_stages(type(model), model.config, attended=False) is None
    assert [record.getMessage() for record in caplog.records] == [
        "PoolFormerForImageClassification has stages whose sizes cannot be read off a pass without numbers (2 hidden "
        "states for 2 stages): losses on hidden states and attention are not available for it, losses on logits are."
    ]


def test_a_class_that_cannot_be_built_is_told() -> None:
    """Code of a user's own may want more than a configuration."""
    model = toy_resnet()

    class Own(type(model)):  # type: ignore[misc]
        def __init__(self, config: object, more: nn.Module) -> None:
            super().__init__(config)

    assert read_stages(Own, model.config, attended=False) is None
