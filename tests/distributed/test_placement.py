"""Where a teacher may lie is settled before the first step, and refused with what would do."""

from pathlib import Path
from typing import Any

import pytest
import torch
from toy_models import text_inputs, toy_bert, toy_distilbert, toy_llama, toy_roberta, toy_vit, with_lora
from training_toys import arguments, largest_difference, logged, text_rows, trainer_of, weights_of

from hfdistill.anatomy import Anatomy
from hfdistill.capture import capture
from hfdistill.distributed.placement import TeacherPlacement, _check_compilable, layer_classes
from hfdistill.distributed.sharding import is_sharded
from hfdistill.representations import Needs, Representations
from hfdistill.teacher_pass import TeacherPass
from hfdistill.teachers import FrozenTeacher


def test_unknown_placements_are_refused(tmp_path: Path) -> None:
    """A misspelt placement would otherwise be one of the others, without a word."""
    with pytest.raises(ValueError, match=r"auto, replicated, sharded or the name of a device .*, got 'shared'"):
        arguments(tmp_path, teacher_placement="shared")


def test_one_process_shares_out_nothing(tmp_path: Path) -> None:
    """Who asks for shards is short of memory, and would get none of it."""
    with pytest.raises(ValueError, match=r"under FSDP2 or DeepSpeed ZeRO-3.*this one is NO with 1 process\."):
        trainer_of(tmp_path, teacher_placement="sharded")


def test_a_teacher_of_ones_own_places_itself(tmp_path: Path) -> None:
    """What is not a model has no layers to shard, and `prepare` is all that it is told."""

    class Served:
        anatomy = Anatomy.of(toy_bert(layers=4))
        prepared = 0

        def prepare(self, device: object) -> None:
            self.prepared += 1

        def represent(self, inputs: object, needs: object) -> object:
            return FrozenTeacher(toy_bert(layers=4)).represent(inputs, needs)  # type: ignore[arg-type]

    with pytest.raises(ValueError, match="needs a teacher that is a model, got a Served"):
        trainer_of(tmp_path, teacher=Served(), teacher_placement="sharded")
    teacher = Served()
    trainer = trainer_of(tmp_path, teacher=teacher)
    trainer.train()
    assert teacher.prepared == 1
    assert not trainer.placement.sharded


def test_a_teacher_that_is_partitioned_is_refused(tmp_path: Path) -> None:
    """Its parameters are empty outside of DeepSpeed's engine: it would fail in the middle of its first layer."""
    teacher = toy_bert(layers=4)
    vars(next(teacher.parameters()))["ds_numel"] = 1024
    with pytest.raises(ValueError, match=r"the teacher is in shards.*Pass the teacher's name or folder"):
        trainer_of(tmp_path, teacher=teacher)


def test_a_plain_run_holds_the_teacher_whole(tmp_path: Path) -> None:
    """The default is the fastest that works: nothing is sharded where the student isn't."""
    trainer = trainer_of(tmp_path, rows=text_rows(4), max_steps=1)
    trainer.train()
    assert isinstance(trainer.teacher, FrozenTeacher)
    assert not trainer.placement.sharded
    assert not is_sharded(trainer.teacher.model)


@pytest.mark.parametrize(
    ("model", "layers"),
    [
        (toy_bert(), ["BertLayer"]),
        (toy_roberta(), ["RobertaLayer"]),
        (with_lora(toy_bert(), ["query"]), ["BertLayer"]),
        (toy_vit(), ["ViTLayer"]),
        (toy_llama(), ["LlamaDecoderLayer"]),
        (toy_distilbert(), None),
    ],
    ids=lambda value: type(value).__name__,
)
def test_layers_are_sharded_one_by_one(model: object, layers: list[str] | None) -> None:
    """Accelerate shards the input embeddings by themselves, and fails where what holds them is sharded already."""
    found = layer_classes(model)  # type: ignore[arg-type]
    assert found == layers or (layers is None and "Embeddings" not in found)


class Served:
    """A teacher without a model that anybody knows of."""

    anatomy = Anatomy.of(toy_bert(layers=4))

    def prepare(self, device: object) -> None: ...

    def represent(self, inputs: Any, needs: Any) -> Any: ...


def test_batches_go_to_the_teacher_and_what_it_shows_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """One tensor on the wrong side, the label map say, ends the run at its first batch.

    The device that computes nothing stands for the other one: it mixes with the processor as little as a GPU does. On
    it no pass can be compared with another, so each is whole.
    """
    sent: list[torch.Tensor] = []
    back: list[torch.device] = []
    teacher = FrozenTeacher(toy_bert(layers=4), label_map=[2, 0, 1])
    teacher.device = torch.device("meta")
    teacher.prepare(torch.device("cpu"))
    teacher.model.register_forward_pre_hook(lambda _, __, kwargs: sent.extend(kwargs.values()), with_kwargs=True)

    def come_back(shown: Representations, device: torch.device) -> Representations:
        assert shown.logits is not None
        back.append(device)
        assert {shown.logits.device.type, shown.hidden_states[4].device.type} == {"meta"}
        return shown

    monkeypatch.setattr(Representations, "to", come_back)
    monkeypatch.setattr(TeacherPass, "show", lambda own, inputs, needs: capture(own.model, inputs, needs)[1])
    inputs = {"input_ids": text_inputs()["input_ids"]}  # whether a mask masks anything, transformers asks a device
    teacher.represent(inputs, Needs(logits=True, hidden_states=frozenset({4})))
    assert {own.device.type for own in sent if isinstance(own, torch.Tensor)} == {"meta"}
    assert {own.device.type for own in teacher.model.parameters()} == {"meta"}
    assert teacher.label_map is not None
    assert teacher.label_map.device.type == "meta"
    assert back == [torch.device("cpu")]


def test_all_that_is_shown_changes_its_device() -> None:
    """Whatever a loss looks at: one tensor that stays behind is found by that loss alone, at its first batch."""
    layers = frozenset({0, 2})
    needs = Needs(True, layers, projections=frozenset({2}))
    shown = FrozenTeacher(toy_bert()).represent(text_inputs(), needs)
    shown.pooled_states = {(2, "mean"): torch.zeros(3, 16)}
    moved = shown.to(torch.device("meta"))
    assert moved.logits is not None
    tensors = [moved.logits, *moved.hidden_states.values(), *moved.pooled_states.values()]
    attention = moved.attentions[2]
    tensors += [value for value in vars(attention).values() if isinstance(value, torch.Tensor)]
    assert len(tensors) >= 1 + 2 + 1 + 4, "logits, states, a pooled one; query, key, value and which are allowed"
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert attention.scaling == shown.attentions[2].scaling
    assert shown.logits is not None
    assert shown.logits.device.type == "cpu"


def test_a_run_whose_teacher_has_a_device_of_its_own(tmp_path: Path) -> None:
    """The student must learn what it learns from a teacher beside it; to torch "cpu:0" is another name than "cpu"."""
    weights = []
    for place in ("auto", "cpu:0"):
        trainer = trainer_of(tmp_path, "tinybert", teacher_placement=place)
        trainer.train()
        assert isinstance(trainer.teacher, FrozenTeacher)
        assert trainer.teacher.device == (None if place == "auto" else torch.device(place))
        weights.append(weights_of(trainer.model))
    assert largest_difference(*weights) == 0.0


def test_devices_that_are_not_here_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With those that are: a wrong number is the usual reason."""
    accelerator, teacher = trainer_of(tmp_path).accelerator, FrozenTeacher(toy_bert(layers=4))
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: None)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 0)
    with pytest.raises(ValueError, match=r"'cuda:1' names a device that is not here: there is cpu\."):
        TeacherPlacement(teacher, accelerator, "cuda:1")
    TeacherPlacement(teacher, accelerator, "cpu")
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    for absent in ("cuda:2", "mps"):
        with pytest.raises(ValueError, match=rf"'{absent}' names .* there is cpu, cuda:0, cuda:1\."):
            TeacherPlacement(teacher, accelerator, absent)
    TeacherPlacement(teacher, accelerator, "cuda:1")
    assert teacher.device == torch.device("cuda:1")


@pytest.mark.parametrize(
    "asked", [{"teacher_placement": "cpu"}, {"teacher_torch_compile": True}], ids=["device", "compiled"]
)
def test_only_a_model_of_its_own_is_moved_or_compiled(tmp_path: Path, asked: dict[str, Any]) -> None:
    """The student's base must stay with the student, and what is behind the protocol is not ours to touch."""
    student = with_lora(toy_bert(layers=4), ["query"])
    with pytest.raises(ValueError, match="the base of the student itself, one copy for both"):
        trainer_of(tmp_path, student=student, teacher=student, **asked)
    with pytest.raises(ValueError, match="needs a teacher that is a model, got a Served"):
        trainer_of(tmp_path, teacher=Served(), **asked)
    teacher = toy_bert(layers=4)
    vars(next(teacher.parameters()))["ds_numel"] = 1024
    with pytest.raises(ValueError, match="the teacher is in shards"):
        trainer_of(tmp_path, teacher=teacher, **asked)


def test_a_sharded_teacher_is_not_compiled(tmp_path: Path) -> None:
    """Its layers are gathered as they run, which one compiled pass would break or fall out of."""
    accelerator = trainer_of(tmp_path).accelerator
    with pytest.raises(ValueError, match="compiles one whole model, and this teacher is in shards"):
        _check_compilable(FrozenTeacher(toy_bert(layers=4)), sharded=True)
    TeacherPlacement(None, accelerator, "auto", compiled=True)  # the control of an experiment, without a teacher


def test_a_compiled_teacher_teaches_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiling changes how fast a teacher is, not what it says; once, however often training begins."""
    compiled: list[torch.nn.Module] = []

    def compile_cheaply(model: Any) -> None:
        compiled.append(model)
        model._compiled_call_impl = torch.compile(model._call_impl, backend="eager")

    monkeypatch.setattr(torch.nn.Module, "compile", compile_cheaply)
    losses = []
    for asked in (False, True):
        trainer = trainer_of(tmp_path, "kd", teacher=toy_bert(layers=4, seed=1), teacher_torch_compile=asked)
        trainer.train()
        trainer.placement.place(trainer.teacher)
        losses.append([line["loss"] for line in logged(trainer)])
    assert len(compiled) == 1
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("places", [("gpu", "cpu"), ("cpu", "cuda")], ids=["teacher on cpu", "teacher on gpu"])
def test_two_real_devices(tmp_path: Path, places: tuple[str, str], precision: str) -> None:
    """What no stub can show: that a batch crosses from device to device and comes back as it was."""
    student, teacher = places
    losses = []
    for place in ("auto", teacher):
        run: dict[str, Any] = {"teacher_placement": place, "teacher_dtype": precision, "use_cpu": student == "cpu"}
        trainer = trainer_of(tmp_path, "tinybert", **run)
        trainer.train()
        losses.append([line["loss"] for line in logged(trainer)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-3 if precision == "float32" else 0.05)
