"""Layer similarity: equal layers, what CKA is free of, padding, and models whose layers have other places."""

from __future__ import annotations

import pytest
import torch
from toy_models import (
    PAD,
    image_inputs,
    text_inputs,
    toy_bert,
    toy_deit,
    toy_gpt2,
    toy_resnet,
    toy_swin,
    toy_t5,
    toy_vit,
)

from hfdistill.capture import capture
from hfdistill.functional.kernels import linear_cka_debiased
from hfdistill.report.similarity import layer_similarity
from hfdistill.representations import Needs


def test_a_model_is_like_itself():
    """The diagonal is 1, and the matrix of one model with itself is symmetric."""
    values = torch.tensor(layer_similarity(toy_bert(layers=3), toy_bert(layers=3), text_inputs(6)))
    assert values.shape == (4, 4)
    torch.testing.assert_close(values.diagonal(), torch.ones(4))
    torch.testing.assert_close(values, values.T)
    assert values[0, 3] < 0.9  # else the diagonal would say nothing


def test_rows_are_the_students_layers():
    """Transposed, the page would outline the wrong pairs as mapped."""
    values = layer_similarity(toy_bert(layers=2, width=8, seed=1), toy_bert(layers=3, width=16), text_inputs(6))
    assert [len(line) for line in values] == [4, 4, 4]


def test_values_are_linear_cka_of_the_hidden_states():
    """Held to the formula on hidden states that were taken in another way, padding cut out by hand."""
    student, teacher, inputs = toy_bert(layers=2, width=8, seed=1), toy_bert(layers=2), text_inputs(6)
    ours, theirs = (model(**inputs, output_hidden_states=True).hidden_states for model in (student, teacher))
    real = inputs["attention_mask"].bool()
    expected = linear_cka_debiased(ours[1][real].double(), theirs[2][real].double())
    assert layer_similarity(student, teacher, inputs)[1][2] == pytest.approx(expected.item(), rel=1e-6)


def test_rotation_and_scale_do_not_matter():
    """A layer is known up to a basis: a similarity that sees it would call equal models different."""
    model, turned = toy_gpt2(layers=1, width=8), toy_gpt2(layers=1, width=8)
    rotation = torch.linalg.qr(torch.randn(8, 8))[0]
    with torch.no_grad():
        for table in (turned.transformer.wte, turned.transformer.wpe):
            table.weight.copy_(3 * table.weight @ rotation)
    assert layer_similarity(turned, model, text_inputs(4, shorter=0))[0][0] == pytest.approx(1.0, abs=1e-6)


def test_padding_does_not_matter():
    """Padded tokens are alike in every model: counted in, any two models would look related."""
    inputs = text_inputs(6, tokens=9)
    longer = {
        "input_ids": torch.nn.functional.pad(inputs["input_ids"], (0, 5), value=PAD),
        "attention_mask": torch.nn.functional.pad(inputs["attention_mask"], (0, 5)),
    }
    models = toy_bert(layers=2, width=8, seed=1), toy_bert(layers=2)
    short, long = (torch.tensor(layer_similarity(*models, given)) for given in (inputs, longer))
    torch.testing.assert_close(short, long, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("teacher", [toy_deit(layers=2), toy_resnet(), toy_swin()], ids=["deit", "resnet", "swin"])
def test_other_numbers_of_places_are_compared_by_row(teacher: torch.nn.Module):
    """DeiT has a token more than ViT, Swin and convolutional networks have fewer places in each stage."""
    student, inputs = toy_vit(layers=2, width=8), image_inputs(12)
    values = layer_similarity(student, teacher, inputs)
    states = [capture(model, inputs, Needs(hidden_states=frozenset({1})))[1] for model in (student, teacher)]
    expected = linear_cka_debiased(*(shown.hidden_states[1].double().mean(dim=1) for shown in states))
    assert values[1][1] == pytest.approx(expected.item(), rel=1e-6)


def test_the_teacher_may_have_its_own_pixels():
    """A teacher for larger images gets the same rows in its own size."""
    student, teacher = toy_vit(layers=1), toy_vit(layers=1, image_size=16)
    inputs = image_inputs(12)
    larger = {"pixel_values": torch.nn.functional.interpolate(inputs["pixel_values"], size=(16, 16))}
    assert len(layer_similarity(student, teacher, inputs, larger)[0]) == 2


def test_long_batches_are_thinned_evenly(monkeypatch: pytest.MonkeyPatch):
    """The time grows with the tokens; the first rows alone might be those of one class."""
    models, inputs = (toy_bert(layers=1, width=8, seed=1), toy_bert(layers=1)), text_inputs(8, shorter=0)
    monkeypatch.setattr("hfdistill.report.similarity._MOST_TOKENS", 24)
    thinned = layer_similarity(*models, inputs)[0][0]
    ours, theirs = (model(**inputs, output_hidden_states=True).hidden_states[0].double() for model in models)
    chosen = torch.linspace(0, 71, 24).round().long()
    expected = linear_cka_debiased(ours.flatten(0, 1)[chosen], theirs.flatten(0, 1)[chosen])
    assert thinned == pytest.approx(expected.item(), rel=1e-6)


def test_too_few_rows_are_refused():
    """Of 3 rows the estimate is 0 by definition, which reads as a result."""
    with pytest.raises(ValueError, match="at least 4 rows or tokens"):
        layer_similarity(toy_vit(), toy_deit(), image_inputs(3))


def test_a_model_that_shows_no_layers_is_refused():
    """An encoder-decoder has two stacks, which its output names otherwise: no empty matrix may come of it."""
    with pytest.raises(ValueError, match="hidden state"):
        layer_similarity(toy_bert(), toy_t5(), {**text_inputs(4), "decoder_input_ids": torch.ones(4, 3).long()})
