"""A teacher that is the base below the student's adapter: it answers as its independent copy, and leaves no trace."""

import copy
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from test_adapters import KINDS, base_weights, lora
from torch import Tensor, nn
from toy_models import (
    image_inputs,
    text_inputs,
    toy_albert,
    toy_bert,
    toy_llama,
    toy_resnet,
    toy_roberta,
    toy_vit,
    with_lora,
)
from training_toys import largest_difference, trainer_of, weights_of
from transformers import TrainerCallback

from hfdistill import AttentionMapLoss, FrozenTeacher, HiddenStateLoss, Needs, Objective, SharedBaseTeacher, TaskLoss
from hfdistill.adapters import adapted
from hfdistill.representations import Representations
from hfdistill.shared_base import adapter_off, check_shared_base

ALL = Needs(True, frozenset({0, 1, 2}), frozenset({1, 2}))
DROPOUT = {"hidden_dropout_prob": 0.3, "attention_probs_dropout_prob": 0.3}
Q = {"target_modules": ["q_proj", "v_proj"]}


def disturbed(student: nn.Module) -> Any:
    """The student in training, every parameter that learns far from where PEFT began it."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for own in student.parameters():
            if own.requires_grad:
                own.add_(0.3 * torch.randn(own.shape, generator=generator))
    return student.train()


def shown_tensors(shown: Representations) -> dict[str, Tensor]:
    """Everything that a pass showed, by name."""
    found = {"logits": shown.logits} | {f"state {at}": state for at, state in shown.hidden_states.items()}
    for at, attention in shown.attentions.items():
        found |= {f"{name} {at}": vars(attention)[name] for name in ("query", "key", "value", "allowed")}
    return {name: value for name, value in found.items() if value is not None}


def state_of(student: nn.Module) -> dict[str, Any]:
    """Modes, gradients' flags, adapters and hooks of a model, and where the random numbers stand."""
    layers = [part for part in student.modules() if isinstance(part, peft.tuners.lora.LoraLayer)]
    return {
        "training": [part.training for part in student.modules()],
        "learns": [own.requires_grad for own in student.parameters()],
        "active": [(tuple(part.active_adapters), part.disable_adapters) for part in layers],
        "hooks": sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in student.modules()),
        "weights": {name: value.clone() for name, value in student.state_dict().items()},
        "random": torch.get_rng_state(),
    }


def same(one: Any, other: Any) -> bool:
    """Whether two such states are equal to the last bit."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)
    return torch.equal(one, other) if isinstance(one, Tensor) else bool(one == other)


BASES: dict[str, tuple[Callable[..., Any], Callable[[], dict[str, Tensor]], Any]] = {
    **{f"bert, {kind}": (lambda: toy_bert(**DROPOUT), text_inputs, config) for kind, config in KINDS.items()},
    "roberta": (lambda: toy_roberta(**DROPOUT), text_inputs, lora(target_modules=["query", "dense"], task_type=None)),
    "albert": (lambda: toy_albert(**DROPOUT), text_inputs, lora()),
    "llama": (toy_llama, text_inputs, lora(**Q)),
    "vit": (lambda: toy_vit(**DROPOUT), image_inputs, lora(**Q)),
}


@pytest.mark.filterwarnings("ignore:Unsupported layer type:UserWarning")
@pytest.mark.parametrize("case", BASES)
def test_the_base_answers_as_its_independent_copy(case: str) -> None:
    """The teacher must be the model that was wrapped, to the last bit, while the student drops out and has moved."""
    make, inputs, config = BASES[case]
    torch.manual_seed(0)
    expected = FrozenTeacher(copy.deepcopy(make())).represent(inputs(), ALL)
    student = disturbed(adapted(make(), config))
    teacher = SharedBaseTeacher(student)
    teacher.represent(inputs(), ALL)  # transformers hangs hooks of its own on a model that first shows its states
    before = state_of(student)
    shown = teacher.represent(inputs(), ALL)
    assert same(shown_tensors(shown), shown_tensors(expected))
    assert len(shown_tensors(shown)) >= 10
    assert not any(value.requires_grad for value in shown_tensors(shown).values())
    assert same(state_of(student), before)
    student.eval()
    with torch.no_grad():
        assert not torch.allclose(student(**inputs()).logits, expected.logits), "the adapter does something"


def test_what_a_user_set_by_hand_is_set_back() -> None:
    """PEFT lets a whole adapter learn when it is switched on again; half of one may have been frozen on purpose."""
    student = disturbed(adapted(toy_bert(**DROPOUT), lora()))
    student.add_adapter("other", lora())
    student.get_base_model().training = False  # its layers still drop out
    layer = student.get_base_model().bert.encoder.layer[1]
    layer.eval()
    for name, own in student.named_parameters():
        own.requires_grad_(own.requires_grad and "lora_A" not in name)
    layer.attention.self.query.enable_adapters(False)
    shown, expected = (
        teacher.represent(text_inputs(), ALL) for teacher in (SharedBaseTeacher(student), FrozenTeacher(toy_bert()))
    )
    assert same(shown_tensors(shown), shown_tensors(expected))
    before = state_of(student)
    with pytest.raises(RuntimeError, match="in the middle"), adapter_off(student):
        raise RuntimeError("in the middle of a pass")
    assert same(state_of(student), before)


def test_embeddings_made_to_learn_do_not_reach_the_teacher() -> None:
    """To recompute activations PEFT makes the embeddings' output require gradients, under no_grad as well."""
    student = adapted(toy_llama(), lora(**Q))
    student.enable_input_require_grads()
    shown = SharedBaseTeacher(student).represent(text_inputs(), ALL)
    assert not any(state.requires_grad for state in shown.hidden_states.values())


@pytest.mark.parametrize("given", ["config", "ready", "base", "teacher"])
def test_the_student_itself_as_the_teacher(tmp_path: Path, given: str) -> None:
    """Whoever passes the student or the base below its adapter means that the base teaches."""
    model: Any = toy_bert(layers=4)
    student = model if given == "config" else adapted(model, lora())
    teacher = {"config": model, "ready": student, "base": model, "teacher": None}[given]
    trainer = trainer_of(
        tmp_path,
        "kd",
        student,
        teacher=SharedBaseTeacher(student) if teacher is None else teacher,
        peft_config=lora() if given == "config" else None,
    )
    assert isinstance(trainer.teacher, SharedBaseTeacher)
    assert trainer.teacher.student is trainer.model
    trainer.train()
    assert trainer.model.training
    assert largest_difference(base_weights(trainer.model), weights_of(toy_bert(layers=4))) == 0.0


def test_without_an_adapter_it_stays_refused(tmp_path: Path) -> None:
    """A model cannot be frozen and learn; the refusal must show the way that there is."""
    student = toy_bert()
    with pytest.raises(ValueError, match=r"shares .* parameters with the student.*peft_config"):
        trainer_of(tmp_path, "kd", student, teacher=student)
    with pytest.raises(TypeError, match=r"needs a PeftModel.*got a BertForSequenceClassification"):
        SharedBaseTeacher(student)


def conv_student() -> nn.Module:
    """A network whose batch normalisation keeps running statistics."""
    return adapted(toy_resnet(), lora(task_type=None, target_modules=["convolution"]))


def unfrozen() -> nn.Module:
    """A student of which a part of the base learns, too."""
    student = adapted(toy_bert(), lora())
    student.get_base_model().bert.pooler.requires_grad_(True)
    return student


def merged() -> nn.Module:
    """A student whose adapter has been added to the weights."""
    student = disturbed(adapted(toy_bert(), lora()))
    student.merge_adapter()
    return student


def second_of_two() -> nn.Module:
    """A student with another adapter, not in use, that has taken a part of the base."""
    student = adapted(toy_bert(), lora())
    student.add_adapter("other", lora(init_lora_weights="pissa"))
    return student


DRIFTING: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "pissa": (lambda: adapted(toy_bert(), lora(init_lora_weights="pissa")), "takes a part of the base"),
    "olora": (lambda: adapted(toy_bert(), lora(init_lora_weights="olora")), "init_lora_weights='olora'"),
    "pissa beside": (second_of_two, "takes a part of the base"),
    "biases": (lambda: adapted(toy_bert(), lora(bias="all")), "training changes 18 parts.*bias is one"),
    "unfrozen": (unfrozen, "pooler.dense.weight is one"),
    "merged": (merged, "merged into its base.*unmerge_adapter"),
    "batch norm": (conv_student, "running statistics"),
}


@pytest.mark.filterwarnings("ignore:(Already found|Careful).*:UserWarning")
@pytest.mark.parametrize("case", DRIFTING)
def test_a_base_that_would_not_be_itself_is_refused(case: str) -> None:
    """With the adapter off PEFT gives back what is left of the base, and training may change even that."""
    make, message = DRIFTING[case]
    with pytest.raises(ValueError, match=message):
        SharedBaseTeacher(make())


def test_another_students_base_is_refused(tmp_path: Path) -> None:
    """It would be neither frozen nor the student's; a fresh student of model_init has another base, too."""
    teacher = SharedBaseTeacher(adapted(toy_bert(), lora()))
    with pytest.raises(ValueError, match="of another model than the student"):
        trainer_of(tmp_path, "kd", peft_config=lora(), teacher=teacher)
    with pytest.raises(ValueError, match="of another model than the student"):
        trainer_of(tmp_path, "kd", model_init=lambda: toy_bert(), peft_config=lora(), teacher=teacher)


def test_shards_are_refused() -> None:
    """Outside a pass of the whole student FSDP holds no weights to teach with."""
    student = adapted(toy_bert(), lora())
    with pytest.raises(ValueError, match=r"FSDP gathers.*Run it by DDP or DeepSpeed"):
        check_shared_base(SharedBaseTeacher(student), student, sharded=True)
    check_shared_base(SharedBaseTeacher(student), student, sharded=False)
    check_shared_base(FrozenTeacher(toy_bert()), student, sharded=True)


def test_an_untrained_head_of_the_base_is_told(caplog: pytest.LogCaptureFixture) -> None:
    """Before fine-tuning the base's head is random, and it is that head which teaches, not the student's copy."""
    base: Any = toy_bert()
    nn.init.zeros_(base.classifier.bias)
    student = adapted(base, lora())
    nn.init.normal_(base.classifier.modules_to_save["default"].bias)
    with caplog.at_level(logging.WARNING):
        SharedBaseTeacher(student)
        assert "classifier.original_module.bias is exactly 0" in caplog.text
        caplog.clear()
        SharedBaseTeacher(adapted(toy_bert(), lora()))
    assert not caplog.records


def storages(*parts: object) -> dict[int, int]:
    """The bytes of every piece of memory that these modules hold numbers in, by its address."""
    modules = [part for part in parts if isinstance(part, nn.Module)]
    tensors = [own for part in modules for own in part.parameters()]
    return {own.untyped_storage().data_ptr(): own.untyped_storage().nbytes() for own in tensors}


def test_one_copy_of_the_weights(tmp_path: Path) -> None:
    """It is for memory that a base is shared: no weight of it may lie in memory twice, in training either."""
    model: Any = toy_bert(layers=4, width=32)
    alone = sum(own.numel() for own in model.parameters())
    head = sum(own.numel() for own in model.classifier.parameters())
    held: list[int] = []

    class Counting(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            held.append(sum(storages(trainer.model, *vars(trainer.teacher).values()).values()) // 4)

    trainer = trainer_of(tmp_path, "kd", model, teacher=model, peft_config=lora(), callbacks=[Counting()])
    teacher: Any = trainer.teacher
    assert sum(own.numel() for own in teacher.base_parameters()) == alone
    trainer.train()
    added = sum(own.numel() for name, own in trainer.model.named_parameters() if "lora_" in name)
    assert held == [alone + head + added] * 2


def test_record_and_card_say_who_taught(tmp_path: Path) -> None:
    """Whoever reads the card must learn that the teacher was the base, and how large it was without the adapter."""
    toy_bert(layers=4).save_pretrained(tmp_path / "base")
    model: Any = type(toy_bert()).from_pretrained(tmp_path / "base")
    objective = Objective(task=TaskLoss(), hidden=HiddenStateLoss(), attention=AttentionMapLoss())
    trainer = trainer_of(tmp_path / "run", objective, model, teacher=model, peft_config=lora())
    trainer.train()
    trainer.save_model()
    trainer.create_model_card()
    teacher = json.loads((tmp_path / "run" / "distillation.json").read_text())["teacher"]
    size = sum(own.numel() for own in toy_bert(layers=4).parameters())
    assert teacher == {
        **{"name": "base", "place": "folder", "class": "BertForSequenceClassification", "shared_base": True},
        **{"parameters": size, "trained_parameters": 0},
    }
    card = (tmp_path / "run" / "README.md").read_text()
    assert "its own base, the adapter switched off" in card
    assert f"{size:,} parameters" in card
    plain = trainer_of(tmp_path / "plain", "kd", with_lora(toy_bert(), ["query"]))
    plain.save_model()
    plain.create_model_card()
    assert "adapter switched off" not in (tmp_path / "plain" / "README.md").read_text()
