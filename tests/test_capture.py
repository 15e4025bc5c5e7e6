"""Capture shows what the model itself computes, on every family and backend, and leaves no trace in the model.

The reference is always the family's own eager code (`output_attentions=True`) on equal weights.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from toy_models import (
    FAMILIES,
    Inputs,
    image_inputs,
    text_inputs,
    toy_bert,
    toy_deberta,
    toy_falcon,
    toy_gemma2,
    toy_modernbert,
    toy_qwen2,
    toy_resnet,
    toy_swin,
    toy_t5,
    with_lora,
)
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import flash_attention_mask

from hfdistill.anatomy import attention_modules
from hfdistill.capture import Capture, capture
from hfdistill.representations import Needs

# what stages show is what transformers calls their attention: that of the last of their blocks
MODELS = FAMILIES | {"swin": (lambda layers, **config: toy_swin(**config), image_inputs)}
INTERFACE = sorted(set(MODELS) - {"deberta-v2"})
ACCESS = [(family, backend) for family in INTERFACE for backend in ("sdpa", "eager")] + [("deberta-v2", "eager")]
WANTED = frozenset({2, 3})  # of 3 layers; layer 2 of ModernBERT and layer 3 of Qwen2 look through a window
MAPS = Needs(attention_probabilities=WANTED)
FIRST = Needs(projections=frozenset({1}))


def toy(family: str, backend: str, **config: Any) -> tuple[PreTrainedModel, Inputs]:
    """Return a model of three layers and its inputs, text with ragged padding."""
    factory, make_inputs = MODELS[family]
    return factory(layers=3, attn_implementation=backend, **config), make_inputs()


def exact(family: str, backend: str) -> tuple[PreTrainedModel, Inputs]:
    """Return the same in float64 and training mode.

    No padded query sees padding alone: transformers' eager code makes NaN of such rows in float64, on any model.
    """
    model, inputs = toy(family, backend)
    if "pixel_values" in inputs:
        return model.double().train(), {"pixel_values": inputs["pixel_values"].double()}
    return model.double().train(), text_inputs(shorter=1)


def own_maps(model: PreTrainedModel, inputs: Inputs, layers: frozenset[int] = WANTED) -> dict[int, Tensor]:
    """Return what the family's eager code gives."""
    given = model(**inputs, output_attentions=True).attentions
    return {layer: given[layer - 1] for layer in layers}


def only_valid(maps: Tensor, inputs: Inputs) -> Tensor:
    """Zero the rows of padded queries, which mean nothing and differ between backends."""
    mask = inputs.get("attention_mask")
    return maps if mask is None else maps * mask[:, None, :, None]  # (B, H, N, N)


def rule(family: str, layer: int, inputs: Inputs, size: int) -> Tensor:
    """Return the allowed pairs by the definition of the family, (B or 1, 1, N, N)."""
    ahead = torch.arange(size) - torch.arange(size)[:, None]  # (N, N)
    allowed = torch.ones(1, 1, size, size, dtype=torch.bool)
    if family in ("gpt2", "llama", "qwen2"):
        allowed = allowed & (ahead <= 0)
    if (family, layer) == ("modernbert", 2):
        allowed = allowed & (ahead.abs() <= 2)
    if (family, layer) == ("qwen2", 3):
        allowed = allowed & (ahead > -4)
    mask = inputs.get("attention_mask")
    return allowed if mask is None else allowed & mask[:, None, None, :].bool()


def gradients(model: PreTrainedModel, maps: dict[int, Tensor], inputs: Inputs) -> dict[str, Tensor]:
    """Return the gradients of a fixed function of attention maps."""
    generator = torch.Generator().manual_seed(1)
    loss = torch.zeros((), dtype=torch.float64)
    for layer in sorted(maps):
        weights = torch.randn(maps[layer].shape, generator=generator)
        loss = loss + (only_valid(maps[layer], inputs) * weights).sum()
    loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(("family", "backend"), ACCESS)
def test_probabilities_equal_the_familys_own(family: str, backend: str) -> None:
    """The whole point: attention under a fused backend must be the attention that the layer really used."""
    model, inputs = toy(family, backend)
    _, shown = capture(model, inputs, MAPS)
    reference = own_maps(toy(family, "eager")[0], inputs)
    for layer in WANTED:
        probabilities = shown.attentions[layer].probabilities
        torch.testing.assert_close(
            only_valid(probabilities, inputs), only_valid(reference[layer], inputs), atol=1e-5, rtol=0
        )


@pytest.mark.parametrize(("family", "backend"), [pair for pair in ACCESS if pair[0] in INTERFACE])
def test_raw_scores_give_the_familys_own_probabilities(family: str, backend: str) -> None:
    """Raw scores are what TinyBERT compares; the mask laid over them here comes from the family's definition."""
    model, inputs = toy(family, backend)
    _, shown = capture(model, inputs, Needs(projections=WANTED))
    reference = own_maps(toy(family, "eager")[0], inputs)
    for layer in WANTED:
        scores = shown.attentions[layer].scores
        assert scores.isfinite().all()
        allowed = rule(family, layer, inputs, scores.shape[-1])
        probabilities = scores.masked_fill(~allowed, torch.finfo(torch.float32).min).softmax(-1)
        torch.testing.assert_close(
            only_valid(probabilities, inputs), only_valid(reference[layer], inputs), atol=1e-5, rtol=0
        )


@pytest.mark.parametrize(("family", "backend"), ACCESS)
def test_capture_changes_no_bit_of_the_pass(family: str, backend: str) -> None:
    """A student must not train on other numbers because it is watched, and selected states must be the right ones."""
    model, inputs = toy(family, backend)
    plain = model(**inputs, output_hidden_states=True)
    output, shown = capture(model, inputs, Needs(True, frozenset({0, 2, 3})) | MAPS)
    assert shown.logits is output.logits
    assert torch.equal(output.logits, plain.logits)
    assert sorted(shown.hidden_states) == [0, 2, 3]
    for layer, state in shown.hidden_states.items():
        assert torch.equal(state, plain.hidden_states[layer])


@pytest.mark.parametrize(
    ("family", "backend", "checkpointing"),
    # transformers does not offer activation checkpointing for ALBERT
    [(*pair, checkpointing) for pair in ACCESS for checkpointing in (False, True)[: 1 + (pair[0] != "albert")]],
)
def test_gradients_equal_those_through_eager_attentions(family: str, backend: str, checkpointing: bool) -> None:
    """Recorded queries and keys must be part of the graph, also where a layer is recomputed in the backward pass."""
    model, inputs = exact(family, backend)
    if checkpointing:
        model.activation_checkpointing_enable()
        assert model.is_activation_checkpointing
    _, shown = capture(model, inputs, MAPS)
    found = gradients(model, {layer: shown.attentions[layer].probabilities for layer in WANTED}, inputs)
    eager, _ = exact(family, "eager")
    expected = gradients(eager, own_maps(eager, inputs), inputs)
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    assert largest > 0.1
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():  # some families compute softmax or rotation in float32 even here
        torch.testing.assert_close(found[name], gradient, atol=1e-6 * largest, rtol=0)


def test_dropout_is_not_in_captured_maps() -> None:
    """A student in training mode is compared by what it attends to, not by what dropout left of it."""
    model = toy_bert(attention_probs_dropout_prob=0.5).train()
    _, shown = capture(model, text_inputs(), Needs(attention_probabilities=frozenset({1})))
    expected = own_maps(toy_bert(attn_implementation="eager"), text_inputs(), frozenset({1}))
    valid = only_valid(shown.attentions[1].probabilities, text_inputs())
    torch.testing.assert_close(valid, only_valid(expected[1], text_inputs()), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("factory", "config"),
    [
        (FAMILIES["bert"][0], {}),
        (FAMILIES["llama"][0], {}),
        (toy_qwen2, {}),
        (toy_modernbert, {"layer_types": ["sliding_attention"]}),
    ],
)
@pytest.mark.parametrize("rows", [1, 3], ids=["full", "padded"])
def test_a_backend_that_is_told_of_its_mask_by_arguments(
    factory: Callable[..., PreTrainedModel], config: dict[str, Any], rows: int
) -> None:
    """Flash attention gets padding as (B, N), causality and window as arguments; a map without them is wrong.

    It cannot run here, so a stand-in takes its mask and arguments; its output is not looked at.
    """
    AttentionMaskInterface.register("told_by_arguments", flash_attention_mask)
    AttentionInterface.register("told_by_arguments", lambda m, q, k, v, mask, **rest: (q.transpose(1, 2), None))
    inputs = text_inputs(rows=rows)
    model = factory(layers=1, attn_implementation="told_by_arguments", **config)
    _, shown = capture(model, inputs, FIRST)
    eager = factory(layers=1, attn_implementation="eager", **config)
    expected = only_valid(own_maps(eager, inputs, frozenset({1}))[1], inputs)
    torch.testing.assert_close(only_valid(shown.attentions[1].probabilities, inputs), expected, atol=1e-5, rtol=0)


def test_only_wanted_layers_are_recorded() -> None:
    """A layer that no loss looks at must not hold memory until the backward pass."""
    needs = Needs(hidden_states=frozenset({1}), projections=frozenset({3}))
    with Capture(toy_bert(layers=3), needs) as view:
        output = view.model(**text_inputs(), **view.arguments)
    shown = view.representations(output)
    assert list(shown.attentions) == [3]
    assert list(shown.hidden_states) == [1]
    assert [state is None for state in output.hidden_states] == [True, False, True, True]


@pytest.mark.parametrize("fails", [False, True], ids=["returns", "raises"])
def test_configurations_are_restored(fails: bool) -> None:
    """An interrupted batch (out of memory, caught by the user) must not leave a model that records for ever."""
    model = toy_bert()
    if fails:
        model.classifier.register_forward_pre_hook(lambda module, args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            capture(model, text_inputs(), FIRST)
    else:
        capture(model, text_inputs(), FIRST)
    assert all(module.config is model.config for module in attention_modules(model))
    assert model.config._attn_implementation == "sdpa"


def test_a_saved_configuration_does_not_mention_capture(tmp_path: Path) -> None:
    """A student is an ordinary from_pretrained folder, even when a callback saves it in the middle of a pass."""
    model = toy_bert()
    model.save_pretrained(tmp_path / "before")
    with Capture(model, FIRST) as view:
        model.save_pretrained(tmp_path / "inside")
        model(**text_inputs(), **view.arguments)
    model.save_pretrained(tmp_path / "after")
    before, inside, after = ((tmp_path / when / "config.json").read_text() for when in ("before", "inside", "after"))
    assert before == inside == after


def test_models_of_one_configuration_do_not_mix() -> None:
    """Teacher and student may share a configuration object, and their passes may be nested or alternate."""
    outer = toy_bert()
    inner = type(outer)(outer.config).eval()
    inner.load_state_dict(toy_bert(seed=1).state_dict())
    assert attention_modules(outer)[0].config is attention_modules(inner)[0].config
    alone = [capture(model, text_inputs(), FIRST)[1].attentions[1].scores for model in (outer, inner)]
    with Capture(outer, FIRST) as outer_view:
        with Capture(inner, FIRST) as inner_view:
            inner_output = inner(**text_inputs())
        outer_output = outer(**text_inputs())
    assert torch.equal(outer_view.representations(outer_output).attentions[1].scores, alone[0])
    assert torch.equal(inner_view.representations(inner_output).attentions[1].scores, alone[1])
    assert not torch.equal(alone[0], alone[1])


@pytest.mark.parametrize("backend", ["sdpa", "eager"])
def test_a_pass_within_a_pass_of_one_model(backend: str) -> None:
    """A PEFT student can be its own teacher with adapters off; the inner pass must not count as the outer's layers."""
    model = toy_bert(attn_implementation=backend)
    first, second = text_inputs(seed=1), text_inputs(seed=2)
    expected = [capture(model, inputs, FIRST)[1].attentions[1].scores for inputs in (first, second)]
    with Capture(model, FIRST) as view:
        _, inner = capture(model, second, FIRST)
        outer = view.representations(model(**first))
    assert torch.equal(outer.attentions[1].scores, expected[0])
    assert torch.equal(inner.attentions[1].scores, expected[1])


def test_a_lora_student_is_captured() -> None:
    """Adapters change queries; what is shown must contain them and lead gradients to them, and to nothing else."""
    student = with_lora(toy_bert(), ["query"])
    output, shown = capture(student, text_inputs(), Needs(True, frozenset({2}), frozenset({2})))
    shown.attentions[2].scores.sum().backward()
    with_gradient = {name for name, parameter in student.named_parameters() if parameter.grad is not None}
    assert with_gradient
    assert all("lora_" in name for name in with_gradient)
    merged: Any = student.merge_and_unload()
    expected, merged_view = capture(merged, text_inputs(), Needs(True, frozenset({2}), frozenset({2})))
    torch.testing.assert_close(output.logits, expected.logits, atol=1e-5, rtol=0)
    torch.testing.assert_close(shown.attentions[2].scores, merged_view.attentions[2].scores, atol=1e-5, rtol=0)
    base, _ = capture(toy_bert(), text_inputs(), FIRST)
    assert not torch.allclose(output.logits, base.logits, atol=1e-3)


@pytest.mark.parametrize("factory", [toy_bert, toy_deberta])
def test_plain_output_holds_nothing_captured(factory: Callable[..., PreTrainedModel]) -> None:
    """Trainer gathers every output as predictions; captured states among them would fill the memory in evaluation."""
    model = factory()
    plain = model(**text_inputs(), labels=torch.tensor([0, 1, 2]))
    inputs = text_inputs() | {"labels": torch.tensor([0, 1, 2])}
    output, shown = capture(model, inputs, Needs(True, frozenset({1}), attention_probabilities=frozenset({1})))
    assert type(output) is type(plain)
    assert list(output) == ["loss", "logits"]
    assert shown.loss is output.loss
    with Capture(model, Needs(logits=True)) as view:
        assert view.arguments == {}
        assert view.plain(plain) is plain


def probabilities_of(*layers: int) -> Needs:
    return Needs(attention_probabilities=frozenset(layers))


REFUSED: dict[str, tuple[Callable[[], PreTrainedModel], Needs, str]] = {
    "no attention": (toy_resnet, FIRST, "resnet has no attention.*hidden states, relations or logits"),
    "two stacks": (toy_t5, FIRST, "t5 has an encoder and a decoder.*hidden states, relations or logits"),
    "scores of deberta": (toy_deberta, FIRST, "deberta-v2 shows attention probabilities only.*target='probabilities'"),
    "own sdpa": (toy_falcon, probabilities_of(1), "falcon .*only under eager.*'sdpa'.*attn_implementation='eager'"),
    "layer 0": (toy_bert, probabilities_of(0), r"layers \[0\].*bert has layers 1 to 2.*no attention"),
    "layer 0 of deberta": (toy_deberta, probabilities_of(0), r"layers \[0\].*deberta-v2 has layers 1 to 2"),
    "layer too deep": (toy_bert, probabilities_of(2, 5), r"layers \[5\].*bert has layers 1 to 2.*other layers"),
    "state too deep": (toy_bert, Needs(hidden_states=frozenset({7})), "hidden state 7 of bert.*3 hidden states"),
    "bent scores": (toy_gemma2, FIRST, r"Gemma2Attention shapes its attention by \['softcap'\].*hidden states or log"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_shown_is_refused_with_advice(case: str) -> None:
    """Each of these would otherwise be a wrong number, or an error far away from its cause."""
    factory, needs, message = REFUSED[case]
    model = factory()
    with pytest.raises(ValueError, match=message):
        capture(model, image_inputs() if "pixel_values" in model.main_input_name else text_inputs(), needs)


def test_falcon_shows_probabilities_under_eager() -> None:
    """The advice of the refusal above must work."""
    model = toy_falcon(attn_implementation="eager")
    _, shown = capture(model, text_inputs(), probabilities_of(1))
    torch.testing.assert_close(shown.attentions[1].probabilities, own_maps(model, text_inputs(), frozenset({1}))[1])


def test_flex_attention_is_refused() -> None:
    """Its mask is compiled code; reading it as a tensor would fail deep inside a layer."""
    model = toy_bert()
    model.config._attn_implementation = "flex_attention"
    with pytest.raises(ValueError, match=r"bert runs flex_attention.*attn_implementation='sdpa'"):
        Capture(model, FIRST)


@pytest.mark.parametrize("needs", [Needs(logits=True), Needs(hidden_states=frozenset({1})), FIRST])
def test_a_tuple_output_is_refused(needs: Needs) -> None:
    """With return_dict=False the meaning of an output hangs on its place, and places move with what is asked for."""
    with pytest.raises(ValueError, match=r"expected a ModelOutput, got tuple.*return_dict=True"):
        capture(toy_bert(), text_inputs() | {"return_dict": False}, needs)  # type: ignore[dict-item]
