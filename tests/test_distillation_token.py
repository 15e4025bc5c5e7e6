"""A distillation token for a ViT or a DeiT: the layers stay to the bit, and the token starts as the class token."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from test_students import logits, trained, weights
from torch import Tensor, nn
from toy_models import image_inputs, toy_bert, toy_deit, toy_vit
from transformers import (
    AutoModelForImageClassification,
    DeiTForImageClassificationWithTeacher,
    PreTrainedModel,
    ViTConfig,
    ViTModel,
)

from hfdistill.distillation_token import with_distillation_token
from hfdistill.students import describe_student, student_from

HEADS = ("cls_logits", "distillation_logits")
TOKEN, CLASS_TOKEN = "deit.embeddings.distillation_token", "deit.embeddings.cls_token"
POSITIONS = "deit.embeddings.position_embeddings"


def heads(model: PreTrainedModel, **more: Tensor) -> list[Tensor]:
    with torch.no_grad():
        output = model(**image_inputs(), **more)
    return [output[name] for name in HEADS]


def unseen_token(tokens: int = 6) -> Tensor:
    """A mask under which no token looks at the second one."""
    return torch.ones(3, tokens).index_fill(1, torch.tensor([1]), 0)


@pytest.mark.parametrize("settings", [{}, {"qkv_bias": False, "hidden_act": "relu", "layer_norm_eps": 0.1}])
def test_a_vit_is_in_it_to_the_last_weight(settings: dict[str, bool | str | float]) -> None:
    """Hidden from the others, the token changes nothing for them, and itself sees what the class token sees: then both
    heads must answer as the ViT did. A weight in a wrong place, or a setting lost, would show.
    """
    teacher = trained(toy_vit(layers=3, **settings))
    student = student_from(teacher, distillation_token=True)
    assert isinstance(student, DeiTForImageClassificationWithTeacher)
    assert not student.training
    expected = logits(teacher, image_inputs())
    for answer in heads(student, attention_mask=unseen_token()):
        torch.testing.assert_close(answer, expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(heads(student)[0], expected, rtol=1e-3)  # in sight it does change what others see


def test_a_deit_keeps_its_own_token() -> None:
    """It has learnt something there; only the head upon it is missing."""
    teacher = trained(toy_deit(layers=3))
    student = student_from(teacher, distillation_token=True)
    own, source = student.state_dict(), teacher.state_dict()
    assert torch.equal(heads(student)[0], logits(teacher, image_inputs()))
    assert all(torch.equal(own[name], source[name]) for name in (TOKEN, POSITIONS))
    assert torch.equal(own["distillation_classifier.weight"], source["classifier.weight"])
    assert describe_student(student).doubled == tuple(f"distillation_classifier.{kind}" for kind in ("weight", "bias"))


def test_a_teacher_with_two_heads_keeps_them() -> None:
    """Its second head is the point of it; the first must not be written over it."""
    teacher = trained(toy_deit(head="ForImageClassificationWithTeacher"))
    student = student_from(teacher, distillation_token=True)
    assert with_distillation_token(teacher) == (teacher, ())
    assert describe_student(student).doubled == ()
    for ours, theirs in zip(heads(student), heads(teacher), strict=True):
        assert torch.equal(ours, theirs)


def test_the_note_tells_what_was_doubled() -> None:
    """What the teacher has once must not pass for its own distillation token, and nothing of it is left to chance."""
    teacher = trained(toy_vit(layers=2))
    student = student_from(teacher, distillation_token=True)
    note, own = describe_student(student), student.state_dict()
    head = ("distillation_classifier.weight", "distillation_classifier.bias")
    assert set(note.doubled) == {TOKEN, POSITIONS, *head}
    assert (note.fresh, note.left_out, note.resized) == ((), (), ())
    assert sorted(note.copied) == sorted(own)
    assert f"doubled: {TOKEN}" in str(note).splitlines()
    assert torch.equal(own[TOKEN], own[CLASS_TOKEN])
    assert torch.equal(own[POSITIONS][:, 1:], teacher.vit.embeddings.position_embeddings)
    assert torch.equal(own[POSITIONS][:, 0], own[POSITIONS][:, 1])


def test_labels_and_settings_stay() -> None:
    """They decide what an answer means, whatever the class of the model."""
    teacher = toy_vit(id2label={0: "ant", 1: "bee", 2: "fly"}, hidden_dropout_prob=0.25, attn_implementation="eager")
    config = student_from(teacher, distillation_token=True).config
    theirs = teacher.config.to_dict()
    for name in ("model_type", "architectures"):
        theirs.pop(name)
    assert {name: value for name, value in config.to_dict().items() if name in theirs} == theirs
    assert (config.model_type, config._attn_implementation) == ("deit", "eager")


@pytest.mark.parametrize("make", [toy_vit, toy_deit])
def test_nothing_is_shared(make: Callable[..., PreTrainedModel]) -> None:
    """Neither with the teacher nor between the two heads and tokens: each of them learns something else."""
    teacher = trained(make())
    before, state = weights(teacher), torch.get_rng_state()
    student = student_from(teacher, distillation_token=True, seed=0)
    assert torch.equal(torch.get_rng_state(), state)
    places = [tensor.data_ptr() for tensor in (*student.state_dict().values(), *teacher.state_dict().values())]
    assert len(set(places)) == len(places)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.zero_()
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())
    assert all(parameter.requires_grad for parameter in student.parameters())


def test_it_can_be_cut_and_get_other_patches() -> None:
    """One call makes the whole student: layers, patches and token go together."""
    teacher = trained(toy_vit(layers=4))
    student = student_from(teacher, num_layers=2, patch_size=2, distillation_token=True)
    note = describe_student(student)
    assert (note.layers, note.fresh, note.left_out) == ((1, 3), (), ())
    assert set(note.resized) == {POSITIONS, "deit.embeddings.patch_embeddings.projection.weight"}
    assert student.state_dict()[POSITIONS].shape[1] == 2 + 16
    assert torch.equal(student.deit.layers[0].mlp.fc1.weight, teacher.vit.layers[1].mlp.fc1.weight)
    plain = student_from(teacher, num_layers=2, patch_size=2)
    for answer in heads(student, attention_mask=unseen_token(tokens=18)):
        torch.testing.assert_close(answer, logits(plain, image_inputs()), rtol=1e-5, atol=1e-5)


def test_a_narrower_one_is_fresh() -> None:
    """Nothing fits another width, and the note must not call a fresh token doubled."""
    student = student_from(toy_vit(), hidden_size=8, distillation_token=True, seed=0)
    note = describe_student(student)
    assert note.doubled == ()
    assert {TOKEN, "distillation_classifier.weight"} < set(note.fresh)
    assert all(answer.isfinite().all() for answer in heads(student))


def test_it_is_in_the_teachers_precision() -> None:
    """As every student."""
    student = student_from(toy_vit().to(torch.bfloat16), distillation_token=True)
    assert {parameter.dtype for parameter in student.parameters()} == {torch.bfloat16}


def test_a_saved_one_is_an_ordinary_checkpoint(tmp_path: Path) -> None:
    """The automatic class must find the class with two heads, and all of its weights."""
    student = student_from(trained(toy_vit()), distillation_token=True)
    student.save_pretrained(tmp_path)
    loaded, report = AutoModelForImageClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert type(loaded) is DeiTForImageClassificationWithTeacher
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    for ours, theirs in zip(heads(loaded), heads(student), strict=True):
        assert torch.equal(ours, theirs)


def test_the_heads_part_when_they_learn() -> None:
    """Alike at first, they must not stay so: the labels teach one, the teacher's answer the other."""
    student = student_from(trained(toy_vit()), distillation_token=True).train()
    first, second = heads(student)
    torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-5)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    goals, losses = (torch.tensor([0, 0, 0]), torch.tensor([2, 2, 2])), []
    for _ in range(5):
        output = student(**image_inputs())
        loss = sum(nn.functional.cross_entropy(output[name], goal) for name, goal in zip(HEADS, goals, strict=True))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    own = student.state_dict()
    assert not torch.allclose(own[TOKEN], own[CLASS_TOKEN], atol=1e-4)
    assert not torch.allclose(*heads(student), atol=0.1)


def toy_vit_encoder() -> PreTrainedModel:
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    return ViTModel(ViTConfig(image_size=8, patch_size=4, **sizes))


@pytest.mark.parametrize("make", [toy_bert, toy_vit_encoder])
def test_others_are_refused_with_what_to_do(make: Callable[[], PreTrainedModel]) -> None:
    """Layers of another family are not DeiT's, and without a head there is no answer to distil."""
    with pytest.raises(ValueError, match=f"got {type(make()).__name__}: only their layers are those of DeiT"):
        student_from(make(), distillation_token=True)
