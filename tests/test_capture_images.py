"""Capture of image models with stages: maps as tokens, one attention for each stage, and nothing left in the output.

What a stage attends to is held to the family's own code in test_capture, with all other families.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from toy_models import STAGES, image_inputs, toy_convnext, toy_swin
from transformers import PreTrainedModel, SegformerConfig, SegformerForImageClassification

from hfdistill.capture import capture
from hfdistill.representations import Needs


@pytest.mark.parametrize("family", STAGES)
def test_states_of_stages_are_shown_as_tokens(family: str) -> None:
    """Losses know (B, N, D) alone: places row by row, where a column by column reading would mix them up."""
    model, inputs = STAGES[family](), image_inputs(size=32)  # no map of one place
    plain = model(**inputs, output_hidden_states=True)
    output, shown = capture(model, inputs, Needs(True, frozenset({0, 2, 3})))
    assert torch.equal(output.logits, plain.logits)
    for layer, state in shown.hidden_states.items():
        maps = plain.get("reshaped_hidden_states", plain.hidden_states)[layer]  # (B, D, rows, columns)
        rows, columns = maps.shape[2:]
        assert state.shape == (len(maps), rows * columns, maps.shape[1])
        assert torch.equal(state[:, columns + 1], maps[:, :, 1, 1])
        assert torch.equal(state.transpose(1, 2).reshape(maps.shape), maps)


def test_a_map_that_would_be_read_as_another_is_refused() -> None:
    """Of 4 x 16 places no loss could tell that they are not 8 x 8: each would be compared with a wrong one."""
    model, wide = toy_convnext(), torch.randn(1, 3, 4, 16)
    with pytest.raises(ValueError, match=r"convnext made a map of 4 x 16 places.*one of 8 x 8.*Give it square images"):
        capture(model, {"pixel_values": wide}, Needs(hidden_states=frozenset({1})))
    _, shown = capture(model, {"pixel_values": wide[..., :8]}, Needs(hidden_states=frozenset({1})))
    assert shown.hidden_states[1].shape == (1, 32, 8)


def test_plain_output_of_stages_holds_no_second_form_of_the_states() -> None:
    """Swin returns its states twice; either would be gathered as predictions."""
    output, _ = capture(toy_swin(), image_inputs(), Needs(True, frozenset({1}), frozenset({2})))
    assert list(output) == ["logits"]


def toy_segformer() -> PreTrainedModel:
    """Two stages of one and of two blocks, which show as many states as stages: their sizes cannot be read off."""
    stages = {"depths": [1, 2], "num_encoder_blocks": 2, "hidden_sizes": [8, 16], "num_attention_heads": [1, 2]}
    patches = {"patch_sizes": [3, 3], "strides": [2, 2], "sr_ratios": [1, 1], "mlp_ratios": [2, 2]}
    return SegformerForImageClassification(SegformerConfig(**stages, **patches)).eval()


REFUSED: dict[str, tuple[Callable[[], PreTrainedModel], int, str]] = {
    "layer 0": (toy_swin, 0, r"layers \[0\].*swin has layers 1 to 3"),
    "too deep": (toy_swin, 4, r"layers \[4\].*swin has layers 1 to 3"),
    "unknown stages": (
        toy_segformer,
        1,
        "segformer called its attention 3 times for 2 layers.*hidden states or logits",
    ),
    "convolutions": (toy_convnext, 1, "convnext has no attention.*hidden states, relations or logits"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_attention_that_no_stage_has_is_refused(case: str) -> None:
    """A stage must not be taken for another, nor a block for a stage."""
    factory, layer, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        capture(factory(), image_inputs(), Needs(attention_probabilities=frozenset({layer})))


def test_attention_of_a_stage_is_between_the_places_of_a_window() -> None:
    """Rows times windows stand in the place of rows, and pairs that a shift put side by side have no probability."""
    model = toy_swin()
    _, shown = capture(model, image_inputs(rows=3), Needs(attention_probabilities=frozenset({1, 3})))
    first, last = shown.attentions[1], shown.attentions[3]
    assert first.probabilities.shape == (3 * 16, 1, 4, 4)
    assert last.probabilities.shape == (3 * 1, 4, 4, 4)
    assert first.allowed is not None
    assert first.allowed.shape[1] == 1
    corner = first.probabilities.unflatten(0, (3, 16))[:, -1, 0]  # four places of four corners of the image
    torch.testing.assert_close(corner, torch.eye(4).expand(3, 4, 4), atol=1e-6, rtol=0)
