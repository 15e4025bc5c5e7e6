"""The teacher's precision: which one a machine is fast in, how a teacher comes to it, and what it leaves alone."""

import copy
import logging
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch
from toy_models import (
    FAMILIES,
    STAGES,
    image_inputs,
    text_inputs,
    toy_bert,
    toy_deit_with_teacher,
    toy_gemma2,
    toy_llama,
    toy_t5,
    toy_vit,
    with_lora,
)
from training_toys import image_rows, largest_difference, logged, trainer_of, weights_of
from transformers import PreTrainedModel

from hfdistill import FrozenTeacher, Needs
from hfdistill.anatomy import Anatomy
from hfdistill.teacher_precision import bfloat16_unit, convert, fast_bfloat16, precision_of, settled_precision

HALF = ("bfloat16", "float16")


def pretend(monkeypatch: pytest.MonkeyPatch, mkldnn: bool = True, **capabilities: Any) -> None:
    """Make torch see a processor with these instructions."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: MappingProxyType(capabilities))
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: mkldnn)


@pytest.mark.parametrize("name", ["avx512_bf16", "amx_bf16", "bf16", "sve_bf16"])
def test_processors_that_multiply_in_bfloat16(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """x86 has two such sets of instructions and Arm has two; each is worth a factor of three."""
    pretend(monkeypatch, **{name: True, "avx2": True})
    assert fast_bfloat16("cpu")
    assert bfloat16_unit("cpu") == name


def test_processors_that_only_emulate_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of oneDNN bfloat16 counts as supported where it is taken apart, slower than float32: its word is not enough."""
    pretend(monkeypatch, avx512_f=True, avx512_bw=True, avx512_vnni=True, avx512_bf16=False, amx_bf16=False)
    assert not fast_bfloat16("cpu")
    pretend(monkeypatch, mkldnn=False, avx512_bf16=True)
    assert not fast_bfloat16("cpu")
    pretend(monkeypatch)
    assert not fast_bfloat16(torch.device("cpu"))
    assert not fast_bfloat16("mps"), "not known, so not promised"


@pytest.mark.parametrize(("capability", "fast"), [((7, 5), False), ((8, 0), True), ((9, 0), True), ((12, 0), True)])
def test_gpus_multiply_in_bfloat16_from_ampere_on(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], fast: bool
) -> None:
    """A Turing GPU computes bfloat16 too, many times slower than float16."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert fast_bfloat16("cuda:1") is fast


def test_auto_says_what_it_chose(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """A teacher that is rounded without a word would be looked for in the objective."""
    caplog.set_level(logging.INFO, logger="hfdistill")
    pretend(monkeypatch, avx512_bf16=True)
    assert settled_precision("auto", "cpu") == "bfloat16"
    assert "the teacher runs in bfloat16, which cpu has hardware for (avx512_bf16)" in caplog.text
    pretend(monkeypatch)
    assert settled_precision("auto", "cpu") == "float32"
    assert "float32, since cpu is not known to multiply in bfloat16" in caplog.text
    caplog.clear()
    assert settled_precision("bfloat16", "cpu") == "bfloat16"
    assert settled_precision(None, "cpu") is None
    assert not caplog.text


CONVERTED = {
    **{name: make for name, (make, _) in FAMILIES.items()},
    **STAGES,
    "deit with two heads": toy_deit_with_teacher,
    "gemma2": toy_gemma2,
    "t5": toy_t5,
}


@pytest.mark.parametrize("precision", HALF)
@pytest.mark.parametrize("family", CONVERTED)
def test_a_converted_model_is_the_one_that_is_loaded_so(tmp_path: Path, family: str, precision: str) -> None:
    """A model's own `to` would round rotary frequencies, which no loading does, and what must stay in float32."""
    model = CONVERTED[family]()
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path, dtype=getattr(torch, precision))
    pointers = {name: id(own) for name, own in model.named_parameters()}
    convert(model, precision)
    assert {name: id(own) for name, own in model.named_parameters()} == pointers, "tied weights must stay tied"
    ours, theirs = model.state_dict(keep_vars=True), loaded.state_dict(keep_vars=True)
    assert {name: own.dtype for name, own in ours.items()} == {name: own.dtype for name, own in theirs.items()}
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert precision_of(model) == precision
    computed = [own for name, own in model.named_buffers() if name not in ours and own.is_floating_point()]
    assert all(own.dtype == torch.float32 for own in computed)


def test_rotary_frequencies_are_not_rounded() -> None:
    """At position 4,000 a frequency of eight bits is off by more than a turn."""
    model = toy_llama()
    before = {name: own.clone() for name, own in model.named_buffers()}
    assert any("inv_freq" in name for name in before)
    convert(model, "bfloat16")
    assert largest_difference(dict(model.named_buffers()), before) == 0.0


def test_an_adapter_is_converted_with_its_base() -> None:
    """Layers that multiply a half precision state by float32 adapters do not run."""
    model = with_lora(toy_bert(), ["query"])
    convert(model, "bfloat16")
    assert {own.dtype for own in model.parameters()} == {torch.bfloat16}
    assert FrozenTeacher(model).represent(text_inputs(), Needs(logits=True)).logits is not None


@pytest.mark.parametrize("precision", HALF)
@pytest.mark.parametrize("family", [*FAMILIES, *STAGES])
def test_every_family_teaches_in_half_precision(family: str, precision: str) -> None:
    """Pixels come in float32, and a convolution in half precision refuses them: the teacher must read them its way."""
    make, inputs = FAMILIES.get(family) or (STAGES[family], image_inputs)
    anatomy = Anatomy.of(make())
    attended = frozenset({anatomy.depth}) if anatomy.attention != "none" else frozenset()
    probabilities = attended if anatomy.attention == "outputs" else frozenset()
    needs = Needs(True, frozenset({0, anatomy.depth}), attended - probabilities, probabilities)
    options: dict[str, Any] = {"attn_implementation": "eager"} if probabilities else {}
    teachers = [FrozenTeacher(make(**options)) for _ in range(2)]
    convert(teachers[1].model, precision)
    exact, rounded = (teacher.represent(inputs(), needs) for teacher in teachers)
    assert exact.logits is not None
    assert rounded.logits is not None
    assert rounded.logits.dtype == getattr(torch, precision)
    pairs = [(exact.logits, rounded.logits)]
    pairs += [(exact.hidden_states[layer], rounded.hidden_states[layer]) for layer in needs.hidden_states]
    for one, other in pairs:
        assert (one - other.float()).norm() < 0.1 * one.norm()
    assert all(attention.probabilities.dtype == torch.float32 for attention in rounded.attentions.values()) or (
        probabilities
    )


@pytest.mark.parametrize("precision", HALF)
@pytest.mark.parametrize("given", ["model", "teacher", "name"])
def test_the_trainer_brings_a_teacher_to_its_precision(tmp_path: Path, given: str, precision: str) -> None:
    """However it was given: a precision that one way ignores is believed to be measured."""
    model = toy_bert(layers=4, seed=1)
    model.save_pretrained(tmp_path / "teacher")
    teacher: Any = {"model": model, "teacher": FrozenTeacher(model, [2, 0, 1]), "name": str(tmp_path / "teacher")}[
        given
    ]
    trainer = trainer_of(tmp_path, "tinybert", teacher=teacher, teacher_dtype=precision)
    assert isinstance(trainer.teacher, FrozenTeacher)
    assert {own.dtype for own in trainer.teacher.model.parameters()} == {getattr(torch, precision)}
    assert given == "name" or trainer.teacher.model is model
    assert {own.dtype for own in trainer.model.parameters()} == {torch.float32}
    trainer.train()
    rounded = toy_bert(layers=4, seed=1).to(getattr(torch, precision)).float()
    exact = FrozenTeacher(rounded, [2, 0, 1] if given == "teacher" else None)
    expected = trainer_of(tmp_path, "tinybert", teacher=exact)
    expected.train()
    for line, other in zip(logged(trainer), logged(expected), strict=True):
        assert line["loss"] == pytest.approx(other["loss"], rel=0.02)


def test_without_a_word_a_model_stays_as_it_was_passed(tmp_path: Path) -> None:
    """The default must not change what a user took care to load; "checkpoint" of a passed model is what it is."""
    for asked in (None, "checkpoint"):
        teacher = toy_bert(layers=4, seed=1).half()
        trainer_of(tmp_path, teacher=teacher, teacher_dtype=asked)
        assert {own.dtype for own in teacher.parameters()} == {torch.float16}


@pytest.mark.parametrize(("asked", "expected"), [(None, "float32"), ("checkpoint", "float16"), ("auto", "bfloat16")])
def test_a_teacher_by_name_is_loaded_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: str | None, expected: str
) -> None:
    """Checkpoints in float16 overflow and are slow on processors, so that what was saved is taken only where asked."""
    pretend(monkeypatch, amx_bf16=True)
    toy_bert(layers=4, seed=1).half().save_pretrained(tmp_path / "teacher")
    trainer = trainer_of(tmp_path, teacher=str(tmp_path / "teacher"), teacher_dtype=asked)
    assert isinstance(trainer.teacher, FrozenTeacher)
    assert precision_of(trainer.teacher.model) == expected


def test_auto_follows_the_device_that_the_teacher_runs_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A teacher on a device of its own is fast by that device's hardware, not by the student's."""
    monkeypatch.setattr("hfdistill.teacher_precision.bfloat16_unit", lambda device: "fast" * (device.index == 0))
    for place, expected in (("auto", torch.float32), ("cpu:0", torch.bfloat16)):
        teacher = toy_bert(layers=4, seed=1)
        trainer_of(tmp_path, teacher=teacher, teacher_dtype="auto", teacher_placement=place)
        assert {own.dtype for own in teacher.parameters()} == {expected}


def test_the_students_own_base_is_not_converted(tmp_path: Path) -> None:
    """It is the student; the precision that it has already is no reason to stop."""
    student = with_lora(toy_bert(layers=4), ["query"])
    before = weights_of(student)
    with pytest.raises(
        ValueError, match=r"teacher_dtype='bfloat16' is about the teacher's weights.*the student itself"
    ):
        trainer_of(tmp_path, student=student, teacher=student, teacher_dtype="bfloat16")
    for harmless in ("float32", "auto", "checkpoint"):
        trainer_of(tmp_path, student=student, teacher=student, teacher_dtype=harmless)
    assert largest_difference(weights_of(student), before) == 0.0


class Served:
    """A teacher without a model that anybody knows of."""

    anatomy = Anatomy.of(toy_bert(layers=4))

    def prepare(self, device: object) -> None: ...

    def represent(self, inputs: Any, needs: Any) -> Any: ...


def test_a_teacher_of_ones_own_has_its_own_precision(tmp_path: Path) -> None:
    """What is behind the protocol cannot be converted, and ignoring the argument would be believed."""
    with pytest.raises(ValueError, match=r"teacher_dtype='float16' needs a teacher that is a model, got a Served"):
        trainer_of(tmp_path, teacher=Served(), teacher_dtype="float16")
    trainer_of(tmp_path, teacher=Served(), teacher_dtype="auto")


def test_a_quantised_teacher_is_left_alone(tmp_path: Path) -> None:
    """Its integers are no numbers by themselves: cast to bfloat16 they would lose their scales."""
    teacher = toy_bert(layers=4, seed=1)
    weight = torch.nn.Parameter(torch.ones(3, 3, dtype=torch.int8), requires_grad=False)
    teacher.classifier.register_parameter("packed", weight)
    with pytest.raises(ValueError, match="quantised or in shards"):
        trainer_of(tmp_path, teacher=teacher, teacher_dtype="bfloat16")
    trainer_of(tmp_path, teacher=teacher, teacher_dtype="auto")
    assert precision_of(teacher) == "float32"


def test_a_bfloat16_teacher_of_mixed_rows(tmp_path: Path) -> None:
    """Rows are mixed in the teacher's own embeddings, whose precision is not the student's."""
    teacher = toy_bert(layers=4, seed=1)
    trainer = trainer_of(tmp_path, "pkd", teacher=teacher, teacher_dtype="bfloat16", uncertainty_mixup=True)
    trainer.train()
    assert all(line["loss"] == line["loss"] for line in logged(trainer))


def test_a_bfloat16_teacher_of_images(tmp_path: Path) -> None:
    """The same batch of pixels feeds a student in float32 and its teacher."""
    teacher: PreTrainedModel = toy_vit(layers=4, seed=1)
    twin = copy.deepcopy(teacher)
    changes: dict[str, Any] = {"student": toy_vit(), "rows": image_rows()}
    runs = [
        trainer_of(tmp_path, "kd", teacher=teacher, teacher_dtype="bfloat16", **changes),
        trainer_of(tmp_path, "kd", teacher=twin, **(changes | {"student": toy_vit()})),
    ]
    for trainer in runs:
        trainer.train()
    assert logged(runs[0])[0]["loss"] == pytest.approx(logged(runs[1])[0]["loss"], rel=0.02)


@pytest.mark.gpu
def test_a_gpu_of_today_is_fast_in_bfloat16() -> None:
    """The one figure that no stub can vouch for: what torch says of a real device."""
    assert fast_bfloat16("cuda") is (torch.cuda.get_device_capability() >= (8, 0))
