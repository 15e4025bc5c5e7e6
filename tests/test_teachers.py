"""The frozen teacher: it never changes, shows what is asked for, and is loaded with the class its task has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from toy_models import (
    FAMILIES,
    text_inputs,
    toy_albert,
    toy_bert,
    toy_deit,
    toy_gpt2,
    toy_llama,
    toy_t5,
    toy_vit,
    with_lora,
)
from transformers import BertModel, PreTrainedModel

from hfdistill.representations import Needs
from hfdistill.teachers import FrozenTeacher, Teacher, auto_class

EVERYTHING = Needs(logits=True, hidden_states=frozenset({0, 2}), projections=frozenset({1}))


def noisy_bert() -> PreTrainedModel:
    """A model whose answers change whenever its dropout is on."""
    return toy_bert(hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.5)


def test_the_given_model_is_frozen() -> None:
    """No gradient, no dropout: the same teacher from the first batch to the last."""
    model = noisy_bert().train()
    teacher = FrozenTeacher(model)
    assert teacher.model is model
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert isinstance(teacher, Teacher)


def test_what_it_shows_carries_no_gradient() -> None:
    """A graph of the teacher would double the memory for nothing."""
    shown = FrozenTeacher(toy_bert()).represent(text_inputs(), EVERYTHING)
    attention = shown.attentions[1]
    for tensor in (shown.logits, *shown.hidden_states.values(), attention.query, attention.key, attention.value):
        assert tensor is not None
        assert not tensor.requires_grad
    assert set(shown.hidden_states) == {0, 2}


def test_it_shows_only_what_is_needed() -> None:
    """The union of the losses' needs is the plan; nothing else is kept."""
    shown = FrozenTeacher(toy_bert()).represent(text_inputs(), Needs(logits=True))
    assert shown.logits is not None
    assert not shown.hidden_states
    assert not shown.attentions


def test_train_on_a_container_does_not_wake_its_dropout() -> None:
    """Who holds both models in one module calls train() on both."""
    teacher = FrozenTeacher(noisy_bert())
    inputs = text_inputs()
    before = teacher.represent(inputs, EVERYTHING).logits
    nn.ModuleList([teacher.model]).train()
    after = teacher.represent(inputs, EVERYTHING).logits
    assert before is not None
    assert after is not None
    assert torch.equal(before, after)
    assert not teacher.model.training


def test_inputs_of_others_are_left_out() -> None:
    """The batch holds labels and columns that only the student, or the metric, takes."""
    model = toy_bert()
    inputs = text_inputs()
    expected = model(**inputs).logits
    more: dict[str, Any] = {
        "labels": torch.tensor([0, 1, 2]),
        "pixel_values": torch.ones(3, 3, 8, 8),
        "idx": [1, 2, 3],
    }
    shown = FrozenTeacher(model).represent(inputs | more, Needs(logits=True))
    assert shown.logits is not None
    assert torch.equal(shown.logits, expected)
    assert shown.loss is None


def test_a_peft_teacher_takes_its_base_models_inputs() -> None:
    """The wrapper's forward names no input; an adapted teacher is still a teacher, adapters included."""
    wrapped = with_lora(toy_bert(), ["query"])
    inputs = text_inputs()
    expected = wrapped(**inputs).logits
    shown = FrozenTeacher(wrapped).represent(inputs | {"labels": torch.tensor([0, 1, 2])}, Needs(logits=True))
    assert shown.logits is not None
    assert torch.equal(shown.logits, expected)


@pytest.mark.parametrize("label_map", [[2, 0, 1], [2, 0]])
def test_a_label_map_reorders_and_chooses(label_map: list[int]) -> None:
    """Entry k is the teacher class that means student class k; classes that no one asks for are left out."""
    model = toy_bert(id2label={0: "a", 1: "b", 2: "c"})
    teacher = FrozenTeacher(model, label_map=label_map)
    teacher.prepare(torch.device("cpu"))
    inputs = text_inputs()
    shown = teacher.represent(inputs, Needs(logits=True))
    assert shown.logits is not None
    assert torch.equal(shown.logits, model(**inputs).logits[:, label_map])
    assert teacher.anatomy.classes == len(label_map)
    assert dict(teacher.anatomy.label_names) == {ours: "abc"[theirs] for ours, theirs in enumerate(label_map)}


@pytest.mark.parametrize("label_map", [[0, 0, 1], [0, 3], [-1, 0]])
def test_a_wrong_label_map_is_refused(label_map: list[int]) -> None:
    """Twice the same class, or one that is not there: an index error at the first batch, or a wrong run."""
    with pytest.raises(ValueError, match=r"classes 0 to 2 at most once, got \[.*Entry k is the teacher class"):
        FrozenTeacher(toy_bert(), label_map=label_map)


def test_a_model_of_another_library_is_refused() -> None:
    """Its sizes cannot be read; the Teacher protocol is the way in for such models."""
    with pytest.raises(TypeError, match=r"expected a transformers model, got Linear"):
        FrozenTeacher(nn.Linear(2, 2))


@pytest.mark.parametrize(
    "make",
    [
        toy_bert,
        lambda **settings: toy_bert(head="ForTokenClassification", **settings),
        lambda **settings: toy_bert(head="ForMaskedLM", **settings),
        lambda **settings: toy_bert(head="ForQuestionAnswering", **settings),
        toy_albert,
        lambda **settings: toy_gpt2(head="LMHeadModel", **settings),
        toy_vit,
        toy_deit,
    ],
)
def test_a_teacher_given_by_name_has_the_students_head(make: Any, tmp_path: Path) -> None:
    """The class follows from the student, for every task; the weights are the saved ones, in full precision."""
    saved, like = make(), make(layers=1, seed=5)
    saved.save_pretrained(tmp_path)
    teacher = FrozenTeacher.from_pretrained(str(tmp_path), like)
    assert type(teacher.model) is type(saved)
    loaded = teacher.model.state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in saved.state_dict().items())
    assert not teacher.model.training
    assert teacher.anatomy.depth == 2


def test_the_precision_of_the_weights_can_be_chosen(tmp_path: Path) -> None:
    """A large teacher fits in half the memory; float32 is the default whatever it was saved in."""
    toy_bert().to(torch.bfloat16).save_pretrained(tmp_path)
    for dtype, expected in (("float32", torch.float32), ("auto", torch.bfloat16), (torch.float16, torch.float16)):
        teacher = FrozenTeacher.from_pretrained(str(tmp_path), toy_bert(), dtype=dtype)
        assert {parameter.dtype for parameter in teacher.model.parameters()} == {expected}


def test_a_teacher_without_a_trained_head_is_refused(tmp_path: Path) -> None:
    """Transformers only warns, and the student would learn the answers of a random head."""
    BertModel(toy_bert().config).save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match=r"no trained weights for classifier.bias, classifier.weight.*random.*Fine-tune the teacher"
    ):
        FrozenTeacher.from_pretrained(str(tmp_path), toy_bert())


@pytest.mark.parametrize(
    ("model", "name"),
    [
        (toy_bert(), "AutoModelForSequenceClassification"),
        (toy_llama(), "AutoModelForSequenceClassification"),
        (toy_bert(head="ForTokenClassification"), "AutoModelForTokenClassification"),
        (toy_bert(head="ForMultipleChoice"), "AutoModelForMultipleChoice"),
        (toy_bert(head="ForQuestionAnswering"), "AutoModelForQuestionAnswering"),
        (toy_bert(head="ForMaskedLM"), "AutoModelForMaskedLM"),
        (toy_gpt2(head="LMHeadModel"), "AutoModelForCausalLM"),
        (toy_llama(head="ForCausalLM"), "AutoModelForCausalLM"),
        (toy_t5(), "AutoModelForSeq2SeqLM"),
        (toy_vit(), "AutoModelForImageClassification"),
        (toy_deit(), "AutoModelForImageClassification"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_the_auto_class_is_that_of_the_head(model: PreTrainedModel, name: str) -> None:
    """Another class would load the body and a random head of another task."""
    assert auto_class(model).__name__ == name


def test_a_class_of_ones_own_has_no_auto_class() -> None:
    """Then only its author knows how to load it."""

    class Mine(type(toy_bert())):  # type: ignore[misc]
        """A head that transformers does not know."""

    with pytest.raises(ValueError, match=r"no Auto class loads Mine.*Load the teacher yourself"):
        auto_class(Mine(toy_bert().config))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_can_teach(family: str) -> None:
    """Hidden states and answers of each family, from a batch as the Trainer has it."""
    factory, make_inputs = FAMILIES[family]
    teacher = FrozenTeacher(factory())
    shown = teacher.represent(make_inputs() | {"labels": torch.tensor([0, 1, 2])}, Needs(True, frozenset({0, 1, 2})))
    assert shown.logits is not None
    assert shown.logits.shape == (3, 3)
    assert {layer: state.shape[-1] for layer, state in shown.hidden_states.items()} == {0: 16, 1: 16, 2: 16}
