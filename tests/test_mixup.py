"""Uncertainty-aware mixup: who is kept, and models that read exactly what mixing by hand would give them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from toy_models import FAMILIES, image_inputs, text_inputs, toy_albert, toy_bert, toy_t5, toy_vit, with_lora

from hfdistill.functional.supervision import unix_mask, unix_mix
from hfdistill.mixup import Mix, MixedBatch, UncertaintyMixup, evaluated_logits

TEXT = [family for family, (_, make_inputs) in FAMILIES.items() if make_inputs is text_inputs]
MIX = Mix(3, torch.tensor([2, 0]), torch.tensor([1, 2]), torch.tensor([0.25, 0.6]))


def by_hand(model: Any, inputs: dict[str, Tensor], mix: Mix = MIX) -> tuple[Tensor, Tensor]:
    """Mixed token embeddings (k, N, D), padding as 0, and the union of the two masks (k, N)."""
    tokens = model.get_input_embeddings()(inputs["input_ids"]) * inputs["attention_mask"][..., None]
    rows, masks = [], []
    for kept, partner, share in zip(mix.kept, mix.partners, mix.coefficients, strict=True):
        rows.append((1 - share) * tokens[kept] + share * tokens[partner])
        masks.append(inputs["attention_mask"][kept] | inputs["attention_mask"][partner] * (share > 0))
    return torch.stack(rows), torch.stack(masks)


# ---- choosing ----


def test_rows_and_coefficients_are_those_of_the_formula() -> None:
    """The module chooses what unix_mix, held to golden values, chooses: order, partners and shares."""
    logits, rows = torch.randn(8, 5), torch.randn(8, 3)
    torch.manual_seed(1)
    mix = UncertaintyMixup(keep=0.5, unmixed=0.25, sharpness=6.0, strategy="margin").choose(logits)
    torch.manual_seed(1)
    share, partners = float(torch.rand(())), torch.randperm(8)
    mixed, order, coefficients = unix_mix(rows, logits, partners, share, 4, 2, 6.0, "margin")
    assert mix.size == 8
    assert torch.equal(mix.kept, order)
    assert torch.equal(mix.partners, partners[:4])
    torch.testing.assert_close(mix.coefficients, coefficients)
    batch = MixedBatch.of({"pixel_values": rows}, mix)
    torch.testing.assert_close(batch.inputs["pixel_values"], mixed)


def test_defaults_are_the_authors() -> None:
    """Of 64 rows 48 are kept, and mixing sets in at rank 32."""
    torch.manual_seed(0)
    mix = UncertaintyMixup().choose(torch.randn(64, 10))
    torch.manual_seed(0)
    torch.randn(64, 10)
    torch.testing.assert_close(mix.coefficients, (float(torch.rand(())) * unix_mask(64, 32, 10.0)[:48]).float())


def test_a_row_of_tokens_is_as_unsure_as_its_mean_real_token() -> None:
    """Padding is as unsure as can be, and would keep the shortest rows."""
    logits = torch.zeros(2, 3, 4)
    logits[0, 0, 0], logits[1, :, 0] = 5.0, 2.0
    chosen = UncertaintyMixup(keep=0.5).choose(logits, torch.tensor([[1, 0, 0], [1, 1, 1]]))
    assert chosen.kept.tolist() == [1]
    assert UncertaintyMixup(keep=0.5).choose(logits).kept.tolist() == [0]


def test_one_row_is_kept_at_least() -> None:
    """The last batch of an epoch may hold one row; nothing is not a batch."""
    assert len(UncertaintyMixup(keep=0.1).choose(torch.randn(1, 3)).kept) == 1


@pytest.mark.parametrize("wrong", [{"keep": 0.0}, {"keep": 1.5}, {"unmixed": -0.1}, {"sharpness": 0.0}])
def test_shares_that_are_none_are_refused(wrong: dict[str, float]) -> None:
    """48 for "48 of 64" is the likely mistake."""
    with pytest.raises(ValueError, match=r"0 < keep <= 1.*shares of a batch"):
        UncertaintyMixup(**wrong)  # type: ignore[arg-type]


def test_an_unknown_strategy_is_refused() -> None:
    """Before the first batch."""
    with pytest.raises(ValueError, match="'entropy', 'least_confidence', 'margin', got 'entrophy'"):
        UncertaintyMixup(strategy="entrophy")


# ---- mixing inputs ----


def test_the_kept_rows_of_everything() -> None:
    """Numbers are mixed, classes are the kept rows', and what has no rows stays."""
    inputs = image_inputs(3)
    labels, targets, name = torch.tensor([5, 6, 7]), torch.tensor([1.0, 2.0, 4.0]), torch.tensor(9)
    given = inputs | {"labels": labels, "age": targets, "index": torch.arange(3), "flag": name, "interpolate": True}
    batch = MixedBatch.of(given, MIX)
    pixels = inputs["pixel_values"]
    expected = torch.stack([0.75 * pixels[2] + 0.25 * pixels[1], 0.4 * pixels[0] + 0.6 * pixels[2]])
    torch.testing.assert_close(batch.inputs["pixel_values"], expected)
    torch.testing.assert_close(batch.inputs["age"], torch.tensor([3.5, 2.8]))
    assert batch.inputs["labels"].tolist() == [7, 5]
    assert batch.inputs["index"].tolist() == [2, 0]
    assert batch.inputs["flag"] is name
    assert batch.inputs["interpolate"] is True
    assert batch.partner_labels is not None
    assert batch.partner_labels.tolist() == [6, 7]
    assert torch.equal(given["pixel_values"], image_inputs(3)["pixel_values"])


def test_where_either_row_has_a_token_is_no_padding() -> None:
    """A place that only the partner fills takes its token and its segment; a partner of share 0 fills none."""
    ids = torch.tensor([[5, 6, 7, 8], [9, 10, 1, 1], [11, 1, 1, 1]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]])
    types = torch.tensor([[0, 0, 1, 1], [0, 1, 0, 0], [0, 0, 0, 0]])
    labels = torch.tensor([[1, 1, 1, 1], [2, 2, -100, -100], [0, -100, -100, -100]])
    mix = Mix(3, torch.tensor([1, 2, 1]), torch.tensor([0, 1, 0]), torch.tensor([0.3, 0.5, 0.0]))
    given = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types, "labels": labels}
    inputs = MixedBatch.of(given, mix).inputs
    assert inputs["input_ids"].tolist() == [[9, 10, 7, 8], [11, 10, 1, 1], [9, 10, 1, 1]]
    assert inputs["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 0, 0]]
    assert inputs["token_type_ids"].tolist() == [[0, 1, 1, 1], [0, 1, 0, 0], [0, 1, 0, 0]]
    assert torch.equal(inputs["labels"], labels[mix.kept])


def test_a_mask_of_another_kind_is_refused() -> None:
    """From (n, 1, N, N) nobody can tell which tokens are real."""
    inputs = text_inputs() | {"attention_mask": torch.ones(3, 1, 9, 9)}
    with pytest.raises(ValueError, match=r"attention mask \(n, N\), got \(3, 1, 9, 9\)"):
        MixedBatch.of(inputs, MIX)


# ---- mixing embeddings ----


@pytest.mark.parametrize("family", TEXT)
def test_a_model_reads_what_mixing_by_hand_gives_it(family: str) -> None:
    """Each real token's last state is that under `inputs_embeds` mixed by hand; afterwards the model is as before."""
    model = FAMILIES[family][0]()
    inputs = text_inputs()
    plain = model(**inputs).logits
    mixed, mask = by_hand(model, inputs)
    expected = model.base_model(inputs_embeds=mixed, attention_mask=mask, output_hidden_states=True).hidden_states[-1]
    batch = MixedBatch.of(inputs, MIX)
    assert torch.equal(batch.inputs["attention_mask"], mask)
    with batch.embeddings(model):
        shown = model(**batch.inputs, output_hidden_states=True).hidden_states[-1]
        unmixed = model(**batch.inputs, output_hidden_states=True).hidden_states[-1]  # one pass is mixed, no more
    torch.testing.assert_close(shown[mask.bool()], expected[mask.bool()])
    assert not torch.allclose(unmixed[mask.bool()], shown[mask.bool()], atol=1e-3)
    assert torch.equal(model(**inputs).logits, plain)


@pytest.mark.parametrize("wrap", [lambda model: model, lambda model: with_lora(model, ["query"])])
def test_gradients_reach_the_embeddings_of_both_rows(wrap: Callable[[Any], Any]) -> None:
    """As they do by hand; under activation checkpointing too, which runs the layers again after the context."""
    reference, model = toy_bert(), toy_bert()
    inputs = text_inputs()
    mixed, mask = by_hand(reference, inputs)
    reference(inputs_embeds=mixed, attention_mask=mask).logits.square().sum().backward()
    expected = reference.get_input_embeddings().weight.grad
    wrapped = wrap(model)
    model.get_input_embeddings().weight.requires_grad_()
    model.activation_checkpointing_enable({"use_reentrant": False})
    model.train()  # the toys have no dropout
    batch = MixedBatch.of(inputs, MIX)
    with batch.embeddings(wrapped):
        logits = wrapped(**batch.inputs).logits
    logits.square().sum().backward()
    if wrapped is model:  # adapters change the values
        torch.testing.assert_close(model.get_input_embeddings().weight.grad, expected)
    partner_only = set(inputs["input_ids"][1].tolist()) - set(inputs["input_ids"][2].tolist())
    assert model.get_input_embeddings().weight.grad[sorted(partner_only)].any()


def test_nothing_mixed_in_is_the_plain_row() -> None:
    """A share of 0 keeps the most uncertain rows exactly as they are, whatever the length of their partners."""
    model, inputs = toy_bert(), text_inputs()
    batch = MixedBatch.of(inputs, Mix(3, MIX.kept, torch.tensor([0, 1]), torch.zeros(2)))
    with batch.embeddings(model):
        logits = model(**batch.inputs).logits
    torch.testing.assert_close(logits, model(**inputs).logits[MIX.kept])


def test_what_stands_in_the_padding_does_not_matter() -> None:
    """A padding token has an embedding too, and mixed in it would change what every row means."""
    model, inputs = toy_bert(), text_inputs()
    results = []
    for padding in (1, 40):
        ids = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, padding)
        batch = MixedBatch.of(inputs | {"input_ids": ids}, MIX)
        with batch.embeddings(model):
            results.append(model(**batch.inputs).logits)
    torch.testing.assert_close(results[0], results[1])


def test_without_a_mask_every_token_is_mixed() -> None:
    """A batch of equal lengths may come without one."""
    model, inputs = toy_bert(), text_inputs(shorter=0)
    mixed, _ = by_hand(model, inputs)
    batch = MixedBatch.of({"input_ids": inputs["input_ids"]}, MIX)
    with batch.embeddings(model):
        logits = model(**batch.inputs).logits
    torch.testing.assert_close(logits, model(inputs_embeds=mixed).logits)


def test_images_are_mixed_by_their_pixels_alone() -> None:
    """Mixing the patch embeddings on top would mix twice."""
    model, inputs = toy_vit(), image_inputs()
    batch = MixedBatch.of(inputs, MIX)
    with batch.embeddings(model):
        logits = model(**batch.inputs).logits
    torch.testing.assert_close(logits, model(pixel_values=batch.inputs["pixel_values"]).logits)


def test_a_model_that_embeds_elsewhere_is_refused() -> None:
    """T5's encoder has an embedding of its own: mixing nothing in silence would teach from unmixed rows."""
    model = toy_t5()
    batch = MixedBatch.of(text_inputs() | {"decoder_input_ids": torch.full((3, 4), 7)}, MIX)
    with pytest.raises(ValueError, match="was not called, so nothing was mixed"), batch.embeddings(model):
        model(**batch.inputs)


def test_the_hook_leaves_with_the_context_even_after_an_error() -> None:
    """Embeddings that stay mixed would spoil every evaluation."""
    model, inputs = toy_albert(), text_inputs()
    plain = model(**inputs).logits
    batch = MixedBatch.of(inputs, MIX)
    with pytest.raises(RuntimeError, match="out"), batch.embeddings(model):
        raise RuntimeError("out")
    assert torch.equal(model(**inputs).logits, plain)


def test_what_cannot_be_mixed_is_refused() -> None:
    """A model without token embeddings, and rows that do not fit (inputs of another batch)."""
    batch = MixedBatch.of(text_inputs(), MIX)
    with pytest.raises(TypeError, match="get_input_embeddings, got Linear"), batch.embeddings(torch.nn.Linear(2, 2)):
        pass
    model = toy_bert()
    with pytest.raises(ValueError, match=r"embeddings of \(2, 9\) tokens, got \(3, 9, 16\)"), batch.embeddings(model):
        model(**text_inputs())


def test_half_precision_embeddings_keep_their_dtype() -> None:
    """A float32 coefficient must not lift what a bfloat16 layer reads, nor be rounded to eight bits itself."""
    model, inputs = toy_bert().bfloat16(), text_inputs()
    mixed, _ = by_hand(toy_bert().bfloat16().float(), inputs)
    batch = MixedBatch.of(inputs, MIX)
    seen: list[Tensor] = []
    with batch.embeddings(model):
        handle = model.get_input_embeddings().register_forward_hook(lambda *args: seen.append(args[2]))
        model(**batch.inputs)
    handle.remove()
    assert seen[0].dtype == torch.bfloat16
    assert torch.equal(seen[0], mixed.bfloat16())


# ---- what the trainer needs besides ----


def test_classes_of_both_rows_are_kept_apart_and_numbers_are_mixed() -> None:
    """What TaskLoss learns them from: a class has no half, a number has."""
    labels = torch.tensor([0, 1, 2])
    batch = MixedBatch.of(image_inputs() | {"labels": labels}, MIX)
    assert torch.equal(batch.inputs["labels"], labels[MIX.kept])
    assert batch.partner_labels is not None
    assert torch.equal(batch.partner_labels, labels[MIX.partners])
    regression = MixedBatch.of(image_inputs() | {"labels": labels.float()}, MIX)
    expected = (1 - MIX.coefficients) * labels[MIX.kept] + MIX.coefficients * labels[MIX.partners]
    torch.testing.assert_close(regression.inputs["labels"], expected)
    assert regression.partner_labels is None


def test_evaluated_logits_are_without_dropout_and_leave_no_trace() -> None:
    """The ranking must not be noise; and a module that the user froze in evaluation mode stays there."""
    model, inputs = toy_bert(hidden_dropout_prob=0.5), text_inputs()
    expected = model(**inputs).logits
    model.train()
    model.get_input_embeddings().eval()
    logits = evaluated_logits(model, inputs)
    assert torch.equal(logits, expected)
    assert not logits.requires_grad
    assert model.training
    assert model.classifier.training
    assert not model.get_input_embeddings().training
