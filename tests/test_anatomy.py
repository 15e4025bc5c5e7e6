"""Anatomy: sizes and layers of every family are read right, and what cannot be read is refused with advice."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from toy_models import (
    FAMILIES,
    STAGES,
    image_inputs,
    toy_albert,
    toy_bert,
    toy_deit,
    toy_resnet,
    toy_swin,
    toy_t5,
    toy_vit,
    with_lora,
)
from transformers import EfficientNetConfig, EfficientNetForImageClassification, PreTrainedModel

from hfdistill.anatomy import (
    Anatomy,
    attention_modules,
    base_model,
    dropout_fields,
    eager_attention,
    encoder_layers,
    first_layer,
)
from hfdistill.vision_stages import Window


@pytest.mark.parametrize("family", FAMILIES)
def test_sizes_are_the_configured_ones(family: str) -> None:
    """Each family names depth, width and heads in its own way; a wrong one gives wrong layer maps and projectors."""
    factory, make_inputs = FAMILIES[family]
    names = {0: "no", 1: "maybe", 2: "yes"}
    model = factory(layers=3, id2label=names)
    heads = 4 if family in ("llama", "qwen2") else 2
    anatomy = Anatomy.of(model)
    assert (anatomy.family, anatomy.depth, anatomy.width, anatomy.heads) == (family, 3, 16, heads)
    assert (anatomy.classes, dict(anatomy.label_names)) == (3, names)
    assert anatomy.vocabulary == (0 if make_inputs is image_inputs else 64)
    assert anatomy.attention == ("outputs" if family == "deberta-v2" else "interface")
    assert not anatomy.encoder_decoder
    assert set(make_inputs()) <= set(anatomy.input_names)


def test_a_classifier_for_images_without_attention() -> None:
    """ResNet has stages instead of layers, and nothing that attention losses could look at."""
    anatomy = Anatomy.of(toy_resnet())
    assert (anatomy.depth, anatomy.heads, anatomy.attention, anatomy.classes) == (3, 0, "none", 3)


def test_stages_count_as_layers() -> None:
    """Each stage has a width, a grid, heads and windows of its own; what is said of the model is of the last."""
    anatomy = Anatomy.of(toy_swin(depths=[2, 1, 3]))
    assert (anatomy.depth, anatomy.width, anatomy.heads, anatomy.grid) == (3, 32, 4, (2, 2))
    assert [anatomy.width_of(layer) for layer in range(4)] == [8, 16, 32, 32]
    assert [anatomy.grid_of(layer) for layer in range(4)] == [(8, 8), (4, 4), (2, 2), (2, 2)]
    assert [anatomy.heads_of(layer) for layer in (1, 2, 3)] == [1, 2, 4]
    assert [anatomy.attended_width(layer) for layer in (1, 2, 3)] == [8, 16, 32]
    assert [anatomy.attention_calls(layer) for layer in (1, 2, 3)] == [2, 3, 6]
    # the only block of a stage is not shifted, nor is one window that holds the whole map
    assert [anatomy.window_of(layer) for layer in (1, 2, 3)] == [Window(16, 4, True), Window(4, 4), Window(1, 4)]


def test_layers_of_other_models_are_all_alike() -> None:
    """The same questions, with one answer for every layer."""
    text, image = Anatomy.of(toy_bert(layers=3, width=24)), Anatomy.of(toy_vit(layers=3))
    for anatomy, width, grid, window in ((text, 24, None, None), (image, 16, (2, 2), Window(1, 4))):
        for layer in (1, 2, 3):
            assert anatomy.width_of(layer) == anatomy.attended_width(layer) == width
            assert anatomy.grid_of(layer) == grid
            assert anatomy.heads_of(layer) == 2
            assert anatomy.window_of(layer) == window
            assert anatomy.attention_calls(layer) == layer
        assert anatomy.width_of(0) == width


@pytest.mark.parametrize(
    ("make", "expected"),
    [*((make, True) for make in (toy_bert, toy_vit, toy_deit)), *((make, False) for make in STAGES.values())],
)
def test_which_models_have_a_class_token(make: Callable[[], PreTrainedModel], expected: bool) -> None:
    """Where there is none, the first token is a corner of the image, which stands for nothing."""
    assert Anatomy.of(make()).class_token == expected


def test_an_unknown_width_is_refused_where_it_is_asked_for() -> None:
    """EfficientNet names no width: that must not stop a loss on logits, nor become a projector of width 0."""
    config = EfficientNetConfig(num_block_repeats=[1] * 7, width_coefficient=0.1)
    anatomy = Anatomy.of(EfficientNetForImageClassification(config))
    with pytest.raises(ValueError, match=r"hidden states of efficientnet are is not known.*Use losses on logits"):
        anatomy.width_of(1)


def test_an_encoder_decoder_is_told_apart() -> None:
    """Its layers cannot be named by one number, so the checks must know."""
    assert Anatomy.of(toy_t5()).encoder_decoder


def test_a_model_without_configuration_is_refused() -> None:
    """Sizes would have to be guessed from a plain module."""
    with pytest.raises(TypeError, match=r"expected a transformers model, got Linear without a configuration.*pass a"):
        Anatomy.of(nn.Linear(2, 2))


def test_a_peft_model_is_read_through() -> None:
    """LoRA students are ordinary students; the wrapper's own forward takes only *args and names no input."""
    model = toy_bert()
    expected = Anatomy.of(model)
    wrapped = with_lora(model, ["query"])
    assert base_model(wrapped) is model
    assert base_model(model) is model
    assert Anatomy.of(wrapped) == expected
    assert encoder_layers(wrapped) is model.bert.encoder.layer


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("layers", [1, 3])
def test_first_layer_takes_the_embedding_output(family: str, layers: int) -> None:
    """Its input must be hidden_states[0], after any projection of narrow embeddings (ELECTRA, ALBERT).

    Three layers are as many as a MobileBERT layer has inner networks, one is as long as many a list: both are traps.
    """
    factory, make_inputs = FAMILIES[family]
    model = factory(layers=layers)
    taken: list[torch.Tensor] = []

    def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        taken.append(args[0] if args else kwargs["hidden_states"])

    handle = first_layer(model).register_forward_pre_hook(keep, with_kwargs=True)
    output = model(**make_inputs(), output_hidden_states=True)
    handle.remove()
    assert torch.equal(taken[0], output.hidden_states[0])


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - {"albert"}))
def test_encoder_layers_run_in_order(family: str) -> None:
    """Each item must give the hidden state of its number, or students made from a teacher get the wrong layers."""
    factory, make_inputs = FAMILIES[family]
    model = factory(layers=3)
    given: list[torch.Tensor] = []

    def keep(module: nn.Module, args: Any, output: Any) -> None:
        given.append(output if isinstance(output, torch.Tensor) else output[0])

    layers = encoder_layers(model)
    handles = [layer.register_forward_hook(keep) for layer in layers]
    output = model(**make_inputs(), output_hidden_states=True)
    for handle in handles:
        handle.remove()
    assert len(layers) == len(given) == 3
    for number in (1, 2):  # the last hidden state may be normalised once more
        assert torch.equal(given[number - 1], output.hidden_states[number])


def test_shared_layers_are_no_list() -> None:
    """ALBERT has one layer; whoever asks for a list of them must hear why there is none."""
    with pytest.raises(ValueError, match=r"no list of 3 equal layers.*one shared module.*hidden_states"):
        encoder_layers(toy_albert(layers=3))


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - {"deberta-v2"}))
def test_attention_modules_and_their_eager_function(family: str) -> None:
    """Capture marks exactly these modules, and calls their own eager function where eager was chosen."""
    model = FAMILIES[family][0](layers=3)
    modules = attention_modules(model)
    assert len(modules) == (1 if family == "albert" else 3)
    for module in modules:
        assert eager_attention(module).__module__ == type(module).__module__


def test_eager_function_of_a_derived_class() -> None:
    """FSDP2 replaces classes by derived ones of another module; the function is where forward was written."""
    model = toy_bert()
    module = attention_modules(model)[0]
    expected = eager_attention(module)
    module.__class__ = type("Sharded", (type(module),), {})
    assert type(module).__module__ == __name__
    assert attention_modules(model)[0] is module
    assert eager_attention(module) is expected


def test_dropout_fields_are_those_that_are_set() -> None:
    """BERT's classifier_dropout is None, meaning "as the hidden one": to set it would change what None means."""
    assert sorted(dropout_fields(toy_bert().config)) == ["attention_probs_dropout_prob", "hidden_dropout_prob"]
