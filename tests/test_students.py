"""Students with the teacher's layers: the right ones, doing what they did, sharing nothing; and what is refused."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from toy_models import (
    FAMILIES,
    Inputs,
    text_inputs,
    toy_albert,
    toy_bert,
    toy_deberta,
    toy_distilbert,
    toy_gpt2,
    toy_modernbert,
    toy_qwen2,
    toy_resnet,
    toy_swin,
    toy_t5,
)
from transformers import (
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from hfdistill.anatomy import encoder_layers
from hfdistill.layer_map import LayerMap
from hfdistill.students import describe_student, student_from

SIZES = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 32}
every_family = pytest.mark.parametrize("family", FAMILIES)


def trained(model: PreTrainedModel) -> PreTrainedModel:
    """Move every weight: fresh norms and biases are alike in all layers, so a wrong copy would look right."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def family_teacher(family: str, layers: int = 4) -> tuple[PreTrainedModel, Inputs]:
    make, inputs = FAMILIES[family]
    return trained(make(layers=layers)), inputs()


def logits(model: PreTrainedModel, inputs: Inputs) -> Tensor:
    with torch.no_grad():
        return model(**inputs).logits


def hidden(model: PreTrainedModel, inputs: Inputs) -> tuple[Tensor, ...]:
    with torch.no_grad():
        return model(**inputs, output_hidden_states=True).hidden_states


def weights(model: PreTrainedModel) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@every_family
def test_a_student_of_full_size_is_the_teacher(family: str) -> None:
    """Copying everything must lose nothing, in any family: the outputs are equal bit by bit."""
    teacher, inputs = family_teacher(family)
    student = student_from(teacher)
    note = describe_student(student)
    assert torch.equal(logits(student, inputs), logits(teacher, inputs))
    assert (note.fresh, note.left_out) == ((), ())
    assert type(student) is type(teacher)
    assert not student.training


@every_family
def test_first_layers_compute_what_they_did(family: str) -> None:
    """The first two layers see the same input as in the teacher, so their outputs must be the teacher's own."""
    teacher, inputs = family_teacher(family)
    student = student_from(teacher, num_layers=2, layers="first")
    ours, theirs = hidden(student, inputs), hidden(teacher, inputs)
    # families differ in whether the last entry is taken before or after the final norm
    last = 2 if family in ("modernbert", "gpt2", "llama", "qwen2") else 3
    assert len(ours) == 3
    for layer in range(last):
        assert torch.equal(ours[layer], theirs[layer])


def test_a_cut_student_is_the_teacher_truncated_by_hand() -> None:
    """Against an independent truncation: the teacher itself with its other layers removed."""
    teacher = trained(toy_bert(layers=6))
    student = student_from(teacher, layers=[0, 3, -1])
    layers = encoder_layers(teacher)
    teacher.bert.encoder.layer = nn.ModuleList([layers[0], layers[3], layers[5]])
    assert torch.equal(logits(student, text_inputs()), logits(teacher, text_inputs()))


@pytest.mark.parametrize(
    ("layers", "student_depth", "depth", "expected"),
    [
        ("uniform", 4, 12, [2, 5, 8, 11]),
        ("uniform", 2, 5, [2, 4]),
        ("first", 3, 12, [0, 1, 2]),
        ("last", 3, 12, [9, 10, 11]),
        ("distilbert", 6, 12, [0, 2, 4, 7, 9, 11]),
        ("distilbert", None, 12, [0, 2, 4, 7, 9, 11]),
        ("every(3)", 3, 12, [2, 5, 8]),
        (LayerMap.explicit([(2, 1), (1, 4)]), 2, 4, [3, 0]),
        ([5, -12, 5], None, 12, [5, 0, 5]),
        ("uniform", None, 3, [0, 1, 2]),
    ],
)
def test_rules_pick_their_layers(
    layers: str | LayerMap | list[int], student_depth: int | None, depth: int, expected: list[int]
) -> None:
    """The weights themselves tell which layer was copied; a shift by one would train well and still be wrong."""
    teacher = trained(toy_distilbert(layers=depth, width=4))
    student = student_from(teacher, num_layers=student_depth, layers=layers)
    own, source = encoder_layers(student), encoder_layers(teacher)
    assert describe_student(student).layers == tuple(expected)
    assert student.config.num_hidden_layers == student.config.n_layers == len(own) == len(expected)
    for position, layer in enumerate(expected):
        assert torch.equal(own[position].ffn.lin1.weight, source[layer].ffn.lin1.weight)
        assert torch.equal(own[position].output_layer_norm.bias, source[layer].output_layer_norm.bias)


@every_family
def test_a_saved_student_is_an_ordinary_checkpoint(family: str, tmp_path: Path) -> None:
    """Whoever gets the student loads it without this package: no key missing, none unexpected, the same logits."""
    teacher, inputs = family_teacher(family)
    student = student_from(teacher, num_layers=2)
    student.save_pretrained(tmp_path)
    auto = AutoModelForImageClassification if family in ("vit", "deit") else AutoModelForSequenceClassification
    loaded, report = auto.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert not report["mismatched_keys"]
    assert torch.equal(logits(loaded, inputs), logits(student, inputs))


def test_the_task_and_its_settings_stay() -> None:
    """Label names decide what a prediction means, and the padding token what a sentence is; neither may be reset."""
    teacher = toy_bert(id2label={0: "no", 1: "maybe", 2: "yes"}, problem_type="single_label_classification")
    teacher.set_attn_implementation("eager")
    config = student_from(teacher, num_layers=1).config
    assert config.id2label == {0: "no", 1: "maybe", 2: "yes"}
    assert config.label2id == teacher.config.label2id
    assert config.num_labels == 3
    assert config.problem_type == "single_label_classification"
    assert config.pad_token_id == teacher.config.pad_token_id
    assert config._attn_implementation == "eager"


@every_family
def test_teacher_and_student_share_nothing(family: str) -> None:
    """Training the student must not change its teacher, and making it must leave the teacher as it was."""
    teacher, _ = family_teacher(family)
    for parameter in teacher.parameters():
        parameter.requires_grad_(False)
    before, settings = weights(teacher), teacher.config.to_dict()
    student = student_from(teacher, num_layers=2)
    assert all(parameter.requires_grad for parameter in student.parameters())
    with torch.no_grad():
        for tensor in (*student.parameters(), *student.buffers()):
            tensor.zero_()
    student.config.id2label[0] = "changed"
    assert teacher.config.to_dict() == settings
    for name, tensor in teacher.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_tied_weights_stay_tied() -> None:
    """A language model's input and output embeddings are one matrix; two copies would drift apart in training."""
    teacher = trained(BertForMaskedLM(BertConfig(vocab_size=32, **SIZES)).eval())
    student = student_from(teacher, num_layers=2)
    assert student.get_output_embeddings().weight is student.get_input_embeddings().weight
    assert torch.equal(student.get_input_embeddings().weight, teacher.get_input_embeddings().weight)
    assert torch.equal(student.cls.predictions.bias, teacher.cls.predictions.bias)


def test_generation_settings_stay() -> None:
    """They live beside the configuration, and a student that stops elsewhere than its teacher cannot be compared."""
    teacher = GPT2LMHeadModel(GPT2Config(vocab_size=32, n_embd=8, n_layer=2, n_head=2, bos_token_id=1, eos_token_id=2))
    teacher.generation_config.max_new_tokens = 5
    student = student_from(teacher, num_layers=1)
    assert student.generation_config.max_new_tokens == 5
    assert student.generation_config is not teacher.generation_config


@pytest.mark.parametrize("make", [toy_modernbert, toy_qwen2])
def test_layers_keep_their_kind_of_attention(make: Callable[..., PreTrainedModel]) -> None:
    """A layer trained with a window that is then run without one is another layer."""
    teacher = trained(make(layers=5))
    student = student_from(teacher, layers=[0, 1, 4])
    assert len(set(teacher.config.layer_types)) == 2
    assert student.config.layer_types == [teacher.config.layer_types[layer] for layer in (0, 1, 4)]
    inputs = text_inputs(rows=1, tokens=16)
    teacher.config.use_cache = student.config.use_cache = False  # a cache goes by the layers' own numbers
    teacher.model.layers = nn.ModuleList([encoder_layers(teacher)[layer] for layer in (0, 1, 4)])
    teacher.config.layer_types = student.config.layer_types
    teacher.config.num_hidden_layers = 3
    torch.testing.assert_close(logits(student, inputs), logits(teacher, inputs))


def test_a_list_as_long_as_the_model_is_deep_is_not_always_per_layer() -> None:
    """DeBERTa's two kinds of relative attention are not two layers."""
    student = student_from(toy_deberta(layers=2), num_layers=1)
    assert student.config.pos_att_type == ["p2c", "c2p"]


def test_what_has_no_place_is_told(caplog: pytest.LogCaptureFixture) -> None:
    """ModernBERT's first layer has no norm before attention: a layer copied there loses its own, not in silence."""
    with caplog.at_level(logging.INFO, logger="hfdistill.students"):
        student = student_from(toy_modernbert(layers=4), num_layers=2)
    note = describe_student(student)
    assert (note.fresh, note.left_out) == ((), ("model.layers.1.attn_norm.weight",))
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert "left out: model.layers.1.attn_norm.weight" in record.getMessage()


def test_a_complete_copy_is_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    """Where everything was copied there is nothing to worry about: one line of information."""
    with caplog.at_level(logging.INFO, logger="hfdistill.students"):
        student_from(toy_bert(layers=4), num_layers=2)
    [record] = caplog.records
    assert record.levelno == logging.INFO
    assert "0 fresh, teacher layers [1, 3]" in record.getMessage()


def test_shared_layers_are_only_a_number() -> None:
    """ALBERT has one layer whatever its depth, so every choice of layers is the same student."""
    teacher = trained(toy_albert(layers=6))
    students = [student_from(teacher, num_layers=3, layers=rule) for rule in ("first", "last")]
    first, last = (logits(student, text_inputs()) for student in students)
    assert torch.equal(first, last)
    assert torch.equal(hidden(students[0], text_inputs())[3], hidden(teacher, text_inputs())[3])


def depth_scaled_gpt2() -> PreTrainedModel:
    return toy_gpt2(layers=4, scale_attn_by_inverse_layer_idx=True)


def mixed_qwen3_moe() -> PreTrainedModel:
    experts = {"mlp_only_layers": [1], "num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 8}
    attention = {"vocab_size": 32, "head_dim": 4, "num_key_value_heads": 2}
    return Qwen3MoeForCausalLM(Qwen3MoeConfig(**SIZES, **attention, **experts))


@pytest.mark.parametrize(
    ("make", "told"),
    [(depth_scaled_gpt2, "scaling is 0.17"), (mixed_qwen3_moe, "model.layers.1.mlp is a Qwen3MoeMLP")],
)
def test_layers_that_would_behave_otherwise_are_refused(make: Callable[[], PreTrainedModel], told: str) -> None:
    """Weights that agree in shape can still be those of another function; that must not pass as a copy."""
    teacher = make()
    assert describe_student(student_from(teacher, num_layers=2, layers="first")).fresh == ()
    with pytest.raises(ValueError, match=told):
        student_from(teacher, num_layers=2)


def test_a_refused_layer_can_be_asked_for_outright(caplog: pytest.LogCaptureFixture) -> None:
    """`config` is the way out of the refusal above, and the log says what is different."""
    with caplog.at_level(logging.WARNING, logger="hfdistill.students"):
        student_from(depth_scaled_gpt2(), num_layers=2, config={"scale_attn_by_inverse_layer_idx": False})
    assert "would be" in caplog.text


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"num_layers": 5}, "between 1 and the teacher's 4, got 5"),
        ({"num_layers": 0}, "between 1 and the teacher's 4, got 0"),
        ({"layers": [0, 1, 2, 3, 3]}, "lists 5 teacher layers; expected 1 to 4"),
        ({"layers": [0, 1], "num_layers": 3}, "lists 2 teacher layers; expected 3"),
        ({"layers": []}, "lists 0 teacher layers"),
        ({"layers": [0, 4]}, r"names \[4\], but the teacher has layers 0 to 3"),
        ({"layers": "distilbert"}, "only for 12 -> 6 layers, got 4 -> 6"),
        ({"layers": "skip", "num_layers": 2}, "'skip' does not give each of the 2 student layers"),
        ({"layers": "unifrom", "num_layers": 2}, "no layer map 'unifrom'"),
    ],
)
def test_what_cannot_be_is_refused_with_advice(arguments: dict[str, Any], told: str) -> None:
    """A wrong number here becomes a wrong student after hours of training; the message has the numbers that work."""
    with pytest.raises(ValueError, match=told):
        student_from(toy_bert(layers=4), **arguments)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (toy_swin, "stages"),
        (toy_resnet, "stages"),
        (toy_t5, "several stacks"),
        (lambda: toy_albert(num_hidden_groups=2), "group of shared layers"),
        (lambda: toy_bert().to("meta"), "meta device"),
    ],
)
def test_families_without_one_stack_of_layers_are_refused(make: Callable[[], PreTrainedModel], told: str) -> None:
    """Cutting these by a layer number would give a model nobody asked for."""
    with pytest.raises(ValueError, match=told):
        student_from(make(), num_layers=1)


@pytest.mark.parametrize("layers", [3, [0.5], [(1, 3)], None])
def test_layers_of_a_wrong_type_are_refused(layers: object) -> None:
    """Pairs belong into a LayerMap; a list here holds teacher layers."""
    with pytest.raises(TypeError, match="a list of teacher layer numbers counted from 0"):
        student_from(toy_bert(), layers=layers)


def test_plain_modules_are_refused() -> None:
    """Without a configuration there is nothing to make a smaller one from."""
    with pytest.raises(TypeError, match="needs a transformers PreTrainedModel as teacher, got Linear"):
        student_from(nn.Linear(2, 2))


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")  # asked for by PEFT 0.21
def test_adapters_must_be_merged_first() -> None:
    """An adapter's weights lie beside the layers: a copy of the layers alone is not the teacher that was trained."""
    peft = pytest.importorskip("peft")
    adapter = peft.LoraConfig(task_type="SEQ_CLS", target_modules=["query"], r=2)
    teacher = peft.get_peft_model(toy_bert(), adapter).eval()
    trained(teacher)
    with pytest.raises(TypeError, match="merge_and_unload"):
        student_from(teacher, num_layers=1)
    before = logits(teacher, text_inputs())
    student = student_from(teacher.merge_and_unload())
    torch.testing.assert_close(logits(student, text_inputs()), before)


def test_only_made_students_are_described() -> None:
    """A loaded model has no memory of where its weights come from, and a guess would be worse than an error."""
    with pytest.raises(ValueError, match="the very model that student_from returned"):
        describe_student(toy_bert())
