"""Students of other sizes than their teacher: what follows the width, what is fresh, what chance decides."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_students import SIZES, every_family, family_teacher, hidden, logits, trained, weights
from toy_models import (
    text_inputs,
    toy_albert,
    toy_bert,
    toy_deberta,
    toy_distilbert,
    toy_electra,
    toy_gpt2,
    toy_llama,
    toy_mobilebert,
    toy_vit,
)
from transformers import PreTrainedModel, Qwen3Config, Qwen3Model

from hfdistill.students import describe_student, student_from


def test_the_note_is_true() -> None:
    """The names it calls copied hold the teacher's values, the others do not, and together they are all."""
    teacher = trained(toy_bert(layers=2))
    student = student_from(teacher, intermediate_size=8)
    note, own, source = describe_student(student), student.state_dict(), teacher.state_dict()
    assert set(note.copied) | set(note.fresh) == set(own)
    assert not set(note.copied) & set(note.fresh)
    assert all(torch.equal(own[name], source[name]) for name in note.copied)
    assert not any(own[name].equal(source[name]) for name in note.fresh)
    mlp = [f"{layer}.{module}.dense" for layer in (0, 1) for module in ("intermediate", "output")]
    assert note.fresh == tuple(f"bert.encoder.layer.{name}.{kind}" for name in mlp for kind in ("weight", "bias"))
    assert f"fresh: {note.fresh[0]}" in str(note).splitlines()


@every_family
def test_narrow_students_run(family: str) -> None:
    """Sizes hang together in ways that differ by family; a narrower student must at least compute and be saved so."""
    teacher, inputs = family_teacher(family)
    student = student_from(teacher, num_layers=2, hidden_size=8, seed=0)
    assert student.config.hidden_size == 8
    assert logits(student, inputs).isfinite().all()
    assert hidden(student, inputs)[-1].shape[-1] == 8
    assert type(student.config)(**student.config.to_dict()).to_dict() == student.config.to_dict()


@pytest.mark.parametrize(
    ("teacher", "field", "expected"),
    [
        (toy_bert(width=16, intermediate_size=40), "intermediate_size", 20),
        (toy_distilbert(hidden_dim=40), "hidden_dim", 20),
        (toy_gpt2(), "n_inner", None),
        (toy_deberta(pooler_hidden_size=16), "pooler_hidden_size", 8),
        (toy_llama(), "head_dim", 2),
        (toy_llama(heads=4, num_key_value_heads=4), "num_key_value_heads", 4),
        (toy_mobilebert(), "true_hidden_size", 8),
        (toy_vit(), "pooler_output_size", 8),
    ],
)
def test_sizes_that_hang_on_the_width_follow(teacher: PreTrainedModel, field: str, expected: int | None) -> None:
    """Half the width means half of what is measured in widths, under whatever name the family has for it."""
    assert student_from(teacher, hidden_size=8).config.to_dict()[field] == expected


def test_sizes_asked_for_are_taken() -> None:
    """Named sizes reach the configuration of a family that has other names for them."""
    config = student_from(toy_distilbert(), hidden_size=12, intermediate_size=20, num_attention_heads=3).config
    assert (config.dim, config.hidden_dim, config.n_heads) == (12, 20, 3)


@pytest.mark.parametrize("make", [toy_electra, toy_albert, toy_mobilebert])
def test_narrow_embeddings_of_their_own_are_copied(make: Callable[..., PreTrainedModel]) -> None:
    """Where embeddings do not have the width of the layers they fit a narrower student, and are worth keeping."""
    teacher = trained(make(layers=2))
    student = student_from(teacher, hidden_size=8)
    assert torch.equal(student.get_input_embeddings().weight, teacher.get_input_embeddings().weight)


@every_family
def test_other_heads_are_fresh(family: str) -> None:
    """With another number of heads the shapes still agree, but queries and keys of several heads would be mixed."""
    teacher, inputs = family_teacher(family)
    heads = 1 if teacher.config.num_attention_heads == 2 else 2
    student = student_from(teacher, num_attention_heads=heads, seed=0)
    fresh, own = describe_student(student).fresh, weights(student)
    markers = ("query", "q_lin", "q_proj", "Wqkv", "c_attn")
    queries = [name for name in own if any(marker in name for marker in markers)]
    assert queries
    assert set(queries) <= set(fresh)
    assert not any("mlp" in name or "intermediate" in name or "ffn" in name for name in fresh)
    assert logits(student, inputs).isfinite().all()


def test_attention_with_a_width_of_its_own_keeps_it() -> None:
    """Qwen3 sets the width of a head apart from the model's: any width goes with any number of heads."""
    config = Qwen3Config(vocab_size=32, head_dim=6, num_key_value_heads=2, **SIZES)
    student = student_from(Qwen3Model(config), hidden_size=10)
    assert (student.config.hidden_size, student.config.head_dim) == (10, 6)


def test_seed_decides_the_fresh_parts_and_nothing_else() -> None:
    """An experiment must be repeatable, and making a student must not change the random numbers that follow."""
    teacher = toy_vit()
    state = torch.get_rng_state()
    first, again, other = (weights(student_from(teacher, hidden_size=8, seed=seed)) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["classifier.weight"], other["classifier.weight"])


def test_without_a_seed_the_global_generator_decides() -> None:
    """`set_seed` at the top of a script is expected to govern a student made below it."""
    drawn = []
    for _ in range(2):
        torch.manual_seed(3)
        drawn.append(student_from(toy_bert(), hidden_size=8).classifier.weight)
    assert torch.equal(*drawn)


def test_other_fields_can_be_replaced() -> None:
    """Dropout or the vocabulary may differ; names are the configuration's own or the standard ones."""
    student = student_from(toy_gpt2(), config={"attn_pdrop": 0.5, "max_position_embeddings": 32})
    assert (student.config.attn_pdrop, student.config.n_positions) == (0.5, 32)
    assert describe_student(student).fresh == ("transformer.wpe.weight",)


def test_rotary_heads_need_an_even_width() -> None:
    """Rotary positions turn pairs of features; an odd width would only fail in the first forward pass."""
    with pytest.raises(
        ValueError, match=r"same even width. Nearest num_attention_heads that fit: 3, 2, 6, 1; .*: 8, 16"
    ):
        student_from(toy_llama(heads=4), hidden_size=12)


def test_grouped_heads_must_divide() -> None:
    """Key-value heads are shared evenly; the way out is a field of the configuration."""
    with pytest.raises(ValueError, match="1 attention heads cannot share 2 key-value heads"):
        student_from(toy_llama(), num_attention_heads=1)
    student = student_from(toy_llama(), num_attention_heads=1, config={"num_key_value_heads": 1})
    assert logits(student, text_inputs()).isfinite().all()


def test_dtype_is_the_teachers() -> None:
    """A silent change of precision would make the copy inexact; buffers that stay in float32 must stay there."""
    teacher = trained(toy_llama(layers=4, dtype=torch.float32))
    student = student_from(teacher.to(torch.bfloat16), num_layers=2, intermediate_size=8)
    assert {parameter.dtype for parameter in student.parameters()} == {torch.bfloat16}
    assert {name: b.dtype for name, b in student.named_buffers()} == {
        name: torch.float32 for name, _ in toy_llama(layers=2).named_buffers()
    }


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"hidden_size": 9}, "that fit: 1, 3, 9; nearest hidden_size for 2 heads: 8, 10"),
        ({"num_attention_heads": 3}, "width of 16 cannot be split over 3 .* that fit: 2, 4, 1, 8"),
        ({"hidden_size": 0}, "width to 0: it must be at least 1"),
        ({"config": {"hiden_act": "relu"}}, r"sets \['hiden_act'\], which a BertConfig does not have"),
        ({"config": {"num_hidden_layers": 2}}, "which arguments of student_from set"),
        ({"config": {"hidden_size": 8}, "hidden_size": 8}, "which arguments of student_from set"),
    ],
)
def test_sizes_that_cannot_be_are_refused_with_advice(arguments: dict[str, Any], told: str) -> None:
    """A width that heads do not divide fails in the first forward pass at best; the message has the ones that work."""
    with pytest.raises(ValueError, match=told):
        student_from(toy_bert(layers=4), **arguments)
