"""A teacher runs what is needed of it and no more, and shows the same to the last bit.

The reference is always one pass through the whole model. Families are those of toy_models.py, all with three layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from torch import Tensor, nn
from toy_models import (
    FAMILIES,
    STAGES,
    Inputs,
    image_inputs,
    text_inputs,
    toy_albert,
    toy_bert,
    toy_falcon,
    toy_gpt2,
    toy_llama,
    toy_t5,
    with_lora,
)
from training_toys import logged, trainer_of
from transformers import PreTrainedModel

from hfdistill import Anatomy, AttentionRelationLoss, HiddenStateLoss, Needs, Objective, Representations
from hfdistill.anatomy import encoder_layers
from hfdistill.capture import capture
from hfdistill.shared_base import SharedBaseTeacher
from hfdistill.teacher_pass import TeacherPass, can_end_early
from hfdistill.teachers import FrozenTeacher

NEEDS = {
    "embeddings": Needs(hidden_states=frozenset({0})),
    "middle": Needs(hidden_states=frozenset({1, 2})),
    "last": Needs(hidden_states=frozenset({1, 3})),
    "middle map": Needs(attention_probabilities=frozenset({2})),
    "last map": Needs(projections=frozenset({3})),
    "two maps": Needs(projections=frozenset({1, 3})),
    "both": Needs(hidden_states=frozenset({2}), projections=frozenset({1})),
    "map after state": Needs(hidden_states=frozenset({1}), projections=frozenset({3})),
    "answer": Needs(logits=True, hidden_states=frozenset({1}), attention_probabilities=frozenset({1})),
}
ENDS = {"last": "body", "answer": "answer"}  # all others end with a layer
HEADS = {
    "masked words": lambda layers, **config: toy_bert(layers, head="ForMaskedLM", **config),
    "next word": lambda layers, **config: toy_gpt2(layers, head="LMHeadModel", **config),
    "adapted": lambda layers, **config: with_lora(toy_bert(layers, **config), ["query"]),
    "choices": lambda layers, **config: toy_bert(layers, head="ForMultipleChoice", **config),
}
MODELS: dict[str, tuple[Callable[..., nn.Module], Callable[..., Inputs]]] = {
    **FAMILIES,
    **{
        name: (lambda layers, factory=factory, **config: factory(**config), image_inputs)
        for name, factory in STAGES.items()
    },
    **{name: (make, text_inputs) for name, make in HEADS.items()},
    "falcon": (toy_falcon, text_inputs),
}
PROBABILITIES_ALONE = ("deberta-v2", "falcon")  # which eager code outside the AttentionInterface returns at the end
NO_ATTENTION = ("resnet", "convnext")


def made(family: str, seed: int = 0) -> tuple[nn.Module, Inputs]:
    """A model of three layers, or stages, and inputs that differ by `seed`."""
    make, make_inputs = MODELS[family]
    config = {"attn_implementation": "eager"} if family in PROBABILITIES_ALONE else {}
    inputs = make_inputs(seed=seed)
    if family == "choices":  # (B, choices, N)
        inputs = {name: torch.stack([value, value.flip(0)], dim=1) for name, value in inputs.items()}
    return make(layers=3, **config), inputs


def tensors_of(shown: Representations) -> dict[str, Tensor]:
    """All that a pass showed, by name."""
    found = {"logits": shown.logits} | {f"state {layer}": state for layer, state in shown.hidden_states.items()}
    for layer, attention in shown.attentions.items():
        names = ("query", "key", "value", "bias", "allowed", "given_probabilities")
        found |= {f"{name} {layer}": vars(attention)[name] for name in names}
    return {name: tensor for name, tensor in found.items() if tensor is not None}


def whole(model: nn.Module, inputs: Inputs, needs: Needs) -> Representations:
    """What a pass through all of the model shows of what is needed."""
    shown = capture(model, inputs, needs)[1]
    return shown if needs.logits else replace(shown, logits=None)


def assert_same(ours: Representations, theirs: Representations) -> None:
    """The same things, bit for bit."""
    found, expected = tensors_of(ours), tensors_of(theirs)
    assert found.keys() == expected.keys() != set()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


@contextmanager
def counted(model: nn.Module) -> Iterator[list[str]]:
    """The names of the modules that ran to their end, in order."""
    ran: list[str] = []

    def note(name: str) -> Callable[..., None]:
        return lambda *_: ran.append(name)

    handles = [module.register_forward_hook(note(name)) for name, module in model.named_modules() if name]
    yield ran
    for handle in handles:
        handle.remove()


@torch.no_grad()
def ran_for(model: nn.Module, needs: Needs, inputs: Inputs) -> list[str]:
    """What ran of a model in the second pass for `needs`."""
    passes = TeacherPass(model, Anatomy.of(model))
    passes.show(inputs, needs)
    with counted(model) as ran:
        passes.show(inputs, needs)
    return ran


CAN_SHOW = [
    (family, need)
    for family in MODELS
    for need, needs in NEEDS.items()
    if not needs.attention_layers
    or not (family in NO_ATTENTION or (family in PROBABILITIES_ALONE and needs.projections))
    if (family, need) not in {("falcon", "answer"), ("falcon", "middle map")}
]


@pytest.mark.parametrize(("family", "need"), CAN_SHOW)
@torch.no_grad()
def test_a_cut_pass_shows_what_a_whole_one_does(family: str, need: str) -> None:
    """In the first batch, which tries it out, and in those after it, which are cut as early as the family allows."""
    model, _ = made(family)
    passes = TeacherPass(model, Anatomy.of(model))
    for batch in range(3):
        inputs = made(family, seed=batch)[1]
        assert_same(passes.show(inputs, NEEDS[need]), whole(model, inputs, NEEDS[need]))
    late = family in PROBABILITIES_ALONE and bool(NEEDS[need].attention_layers) and need != "answer"
    assert passes._ends[NEEDS[need]] == ("body" if late else ENDS.get(need, "layer"))


@pytest.mark.parametrize(
    ("need", "layers"),
    [("embeddings", 0), ("middle", 2), ("last", 3), ("middle map", 1), ("last map", 2), ("both", 2), ("answer", 3)],
)
def test_nothing_runs_beyond_what_is_needed(need: str, layers: int) -> None:
    """Layers above the deepest, the head, and what stands after the queries, keys and values of the last map."""
    ran = ran_for(toy_bert(3), NEEDS[need], text_inputs())
    assert [name for name in ran if name.count(".") == 3] == [f"bert.encoder.layer.{index}" for index in range(layers)]
    begun = {name for name in ran if name.startswith(f"bert.encoder.layer.{layers}.")}
    own = f"bert.encoder.layer.{layers}.attention.self"
    assert begun == ({f"{own}.query", f"{own}.key", f"{own}.value"} if "map" in need else set())
    assert ("classifier" in ran) == (need == "answer")


def test_the_words_of_a_language_model_are_not_made_for_nothing() -> None:
    """A masked language model's head is a fifth of BERT-base, and a causal one's more at a vocabulary of 128,000."""
    for model, head in ((toy_bert(3, head="ForMaskedLM"), "cls"), (toy_gpt2(3, head="LMHeadModel"), "lm_head")):
        assert head in ran_for(model, NEEDS["answer"], text_inputs())
        assert not [name for name in ran_for(model, NEEDS["last"], text_inputs()) if name.startswith(head)]


def test_a_shared_layer_is_called_as_often_as_needed() -> None:
    """ALBERT's layers are one module: its calls are counted."""
    model = toy_albert(3)
    shared = "albert.encoder.albert_layer_groups.0.albert_layers.0"
    calls = {
        need: ran_for(model, NEEDS[need], text_inputs()).count(shared) for need in ("embeddings", "middle", "last")
    }
    assert calls == {"embeddings": 0, "middle": 2, "last": 3}


@torch.no_grad()
def test_a_layer_that_changes_its_input_is_not_cut_before() -> None:
    """What is on the way is then not what the model returns; the first pass finds out, and all passes run whole."""
    model, inputs, needs = toy_bert(3), text_inputs(), NEEDS["middle"]
    encoder_layers(model)[2].attention.register_forward_pre_hook(lambda _, args: (args[0].add_(1.0), *args[1:]))
    expected = whole(model, inputs, needs)
    passes = TeacherPass(model, Anatomy.of(model))
    for _ in range(2):
        assert_same(passes.show(inputs, needs), expected)
    assert passes._ends[needs] == "body"


@torch.no_grad()
def test_a_head_that_changes_the_states_is_run() -> None:
    """What the model returns is not what its body made: the first pass finds out here too."""
    model, inputs, needs = toy_bert(3), text_inputs(), NEEDS["last"]

    def doubled(_: nn.Module, args: object, output: Any) -> Any:
        output["hidden_states"] = tuple(None if state is None else 2 * state for state in output["hidden_states"])
        return output

    model.register_forward_hook(doubled)
    passes = TeacherPass(model, Anatomy.of(model))
    for _ in range(2):
        assert_same(passes.show(inputs, needs), whole(model, inputs, needs))
    assert passes._ends[needs] == "answer"


@torch.no_grad()
def test_layers_that_run_in_another_order_are_not_taken_for_others() -> None:
    """Custom code may walk through its list backwards; a state would have the number of another."""
    model, inputs, needs = toy_bert(3), text_inputs(), NEEDS["middle"]
    model.bert.encoder.layer = Backwards(encoder_layers(model))
    passes = TeacherPass(model, Anatomy.of(model))
    for _ in range(2):
        assert_same(passes.show(inputs, needs), whole(model, inputs, needs))


class Backwards(nn.ModuleList):
    """A list of layers, walked through from its end, the last layer twice."""

    def __iter__(self) -> Iterator[nn.Module]:
        layers = [self[index] for index in reversed(range(len(self)))]
        return iter([layers[0], *layers])


@torch.no_grad()
def test_a_pass_that_does_not_get_there_is_made_whole() -> None:
    """A model whose later batches take another way still shows what was asked for, at the cost of a second pass."""
    model, inputs, needs = toy_bert(3), text_inputs(), NEEDS["middle"]
    passes = TeacherPass(model, Anatomy.of(model))
    passes.show(inputs, needs)
    assert passes._ends[needs] == "layer"
    model.bert.encoder.layer = encoder_layers(model)[:2]  # nothing follows the second layer any more
    assert_same(passes.show(inputs, needs), whole(model, inputs, needs))


def hooked() -> nn.Module:
    """A model one layer of which Accelerate brings to its device for each call."""
    model = toy_bert(3)
    add_hook_to_module(encoder_layers(model)[0], AlignDevicesHook(io_same_device=True))
    return model


def partitioned() -> nn.Module:
    """A model that looks as if ZeRO-3 had cut it."""
    model = toy_bert(3)
    vars(model.classifier.bias)["ds_numel"] = 3
    return model


def partly_compiled() -> nn.Module:
    """A model with one compiled layer."""
    model = toy_bert(3)
    encoder_layers(model)[0].compile(backend="eager")
    return model


@pytest.mark.parametrize("make", [hooked, partitioned, partly_compiled])
def test_models_that_clear_up_behind_a_pass_run_whole(make: Callable[[], nn.Module]) -> None:
    """A pass that is left in the middle would leave gathered weights, or weights on the device, where they are."""
    model = make()
    assert not can_end_early(model, Anatomy.of(model))
    assert can_end_early(toy_bert(3), Anatomy.of(model))
    assert not can_end_early(toy_t5(), Anatomy.of(toy_t5())), "one number cannot name a layer of two stacks"
    assert "classifier" in ran_for(model, NEEDS["middle"], text_inputs())


def test_a_compiled_model_runs_whole() -> None:
    """Also where it was compiled after passes of it had been cut."""
    model, inputs, needs = toy_bert(3), text_inputs(), NEEDS["middle"]
    teacher = FrozenTeacher(model)
    teacher.represent(inputs, needs)
    model.compile(backend="eager")
    with counted(model) as ran:
        teacher.represent(inputs, needs)
    assert "classifier" in ran


@pytest.mark.parametrize("need", ["middle", "last", "last map", "answer"])
@pytest.mark.parametrize("broken", [False, True])
@torch.no_grad()
def test_nothing_stays_behind(need: str, broken: bool) -> None:
    """No hook, no marked configuration, no recording of transformers' own; also where a batch fails on the way."""
    model, inputs = toy_bert(3), text_inputs()
    before = capture(model, inputs, NEEDS["last"])[0], state_of(model)
    passes = TeacherPass(model, Anatomy.of(model))
    for _ in range(2):
        passes.show(inputs, NEEDS[need])
    if broken:
        with pytest.raises(IndexError):
            passes.show({"input_ids": torch.full((3, 9), 1000)}, NEEDS[need])
    assert state_of(model) == before[1]
    after = model(**inputs, output_hidden_states=True)
    assert torch.equal(after.logits, before[0].logits)
    assert len(after.hidden_states) == 4


def state_of(model: nn.Module) -> list[tuple[int, ...]]:
    """Which hooks and which configuration each module has."""
    return [
        (*module._forward_hooks, *module._forward_pre_hooks, id(vars(module).get("config")))
        for module in model.modules()
    ]


@pytest.mark.parametrize("make", [toy_gpt2, toy_llama])
def test_decoders_keep_no_keys_and_values(make: Callable[..., PreTrainedModel]) -> None:
    """They would copy those of every layer for a next token that nobody asks for."""
    model, kept = make(), []
    model.base_model.register_forward_hook(lambda module, args, output: kept.append(output.get("past_key_values")))
    shown = FrozenTeacher(model).represent(text_inputs(), Needs(logits=True))
    assert kept == [None]
    torch.testing.assert_close(shown.logits, model(**text_inputs()).logits)
    assert kept[1] is not None, "without being told it keeps nothing either: nothing is shown"


def test_a_base_shared_with_the_student_is_cut_too() -> None:
    """The teacher's pass ends inside the student's own modules, whose adapter and hooks must be as before."""
    student = with_lora(toy_bert(3), ["query"]).train()
    teacher, inputs, needs = SharedBaseTeacher(student), text_inputs(), NEEDS["both"]
    with torch.no_grad():
        expected = whole(toy_bert(3), inputs, needs)
        answer = capture(student, inputs, NEEDS["last"])[1].logits  # transformers' own recording stays, once it hangs
    state = state_of(student)
    for _ in range(2):
        assert_same(teacher.represent(inputs, needs), expected)
    assert teacher.teacher_pass._ends[needs] == "layer"
    assert state_of(student) == state
    assert student.training
    assert answer is not None
    assert torch.equal(student(**inputs).logits, answer)


def test_training_with_a_cut_teacher_is_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run as a whole: the losses of a run with cut passes are those of one with whole passes."""

    def losses() -> list[float]:
        torch.manual_seed(0)
        relation = AttentionRelationLoss(relations=("query-key", "value-value"))
        trainer = trainer_of(tmp_path, Objective(hidden=HiddenStateLoss(layers=[(1, 2)]), relation=relation))
        trainer.train()
        return [line["loss"] for line in logged(trainer)]

    cut = losses()
    monkeypatch.setattr(TeacherPass, "show", TeacherPass._whole)
    assert cut == losses()
