"""Students wrapped by PEFT through `peft_config`, and what of an adapter is refused or told."""

import logging
import re
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from toy_models import text_inputs, toy_bert, toy_gpt2, toy_llama, toy_vit, with_lora
from training_toys import image_rows, largest_difference, text_rows, trainer_of, weights_of

from hfdistill import AttentionMapLoss, HiddenStateLoss, Needs, Objective, SoftTargetLoss, TaskLoss
from hfdistill.adapters import adapted, check_adapter

LORA: dict[str, Any] = {"target_modules": ["query", "value"], "r": 2}
TOKENS = "ForTokenClassification"


def lora(**changes: Any) -> peft.LoraConfig:
    """A small LoRA of queries and values, with a head of its own."""
    return peft.LoraConfig(**{"task_type": "SEQ_CLS", **LORA, **changes})


def virtual(kind: Callable[..., Any], task: str = "SEQ_CLS") -> Any:
    """A configuration of three virtual tokens."""
    own = {"encoder_hidden_size": 8} if kind is peft.PromptEncoderConfig else {}
    return kind(task_type=task, num_virtual_tokens=3, **own)


def base_weights(student: Any) -> dict[str, Tensor]:
    """The weights of the model that PEFT wrapped, by the names that they had."""
    held = student.get_base_model().state_dict()
    own = {name: value for name, value in held.items() if "lora_" not in name and "modules_to_save" not in name}
    return {name.replace(".base_layer", "").replace(".original_module", ""): value for name, value in own.items()}


@pytest.mark.parametrize("given", ["model", "model_init"])
def test_the_adapter_learns_and_is_saved_alone(tmp_path: Path, given: str) -> None:
    """What PEFT was asked to freeze must stand still, and the projector and the adapter must both move."""
    run = {"student": toy_bert(width=8)} if given == "model" else {"model_init": lambda: toy_bert(width=8)}
    objective = Objective(task=TaskLoss(), kd=SoftTargetLoss(), hidden=HiddenStateLoss())
    trainer = trainer_of(tmp_path, objective, peft_config=lora(), save_strategy="epoch", max_steps=4, **run)
    assert isinstance(trainer.model, peft.PeftModel)
    began = toy_bert(width=8).state_dict()
    trainer.train()
    assert isinstance(trainer.model, peft.PeftModel), "model_init makes a new student when training begins"
    learnt = {name for name, value in trainer.model.named_parameters() if value.requires_grad}
    assert {name for name in learnt if "lora_" not in name} == {
        f"base_model.model.classifier.modules_to_save.default.{name}" for name in ("weight", "bias")
    }
    assert largest_difference(base_weights(trainer.model), began) == 0.0
    saved = load_file(tmp_path / "checkpoint-4" / "adapter_model.safetensors")
    assert {name.replace(".default", "").replace(".modules_to_save", "") for name in learnt} == set(saved)
    assert all(value.any() for name, value in saved.items() if "lora_B" in name), "LoRA's B begins at zero"


def test_a_mapping_says_the_same_as_the_configuration(tmp_path: Path) -> None:
    """What stands in a YAML file must be the adapter that the same words in Python make."""
    written = {"peft_type": "lora", "task_type": "SEQ_CLS", **LORA}
    ends = []
    for config in (lora(), written):
        torch.manual_seed(4)
        trainer = trainer_of(tmp_path, "kd", peft_config=config)
        trainer.train()
        ends.append(weights_of(trainer.model))
    assert largest_difference(*ends) == 0.0


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_a_ready_peft_model_is_the_same_student(tmp_path: Path) -> None:
    """`peft_config` is a shorter way to write it, not another student."""
    ends = []
    for ready in (False, True):
        torch.manual_seed(4)
        student: Any = peft.get_peft_model(toy_bert(), lora()) if ready else toy_bert()
        trainer = trainer_of(tmp_path, "kd", student, **({} if ready else {"peft_config": lora()}))
        trainer.train()
        ends.append(weights_of(trainer.model))
    assert largest_difference(*ends) == 0.0


def test_the_configuration_given_is_not_changed() -> None:
    """PEFT writes the base's name and the head into it, and the next student would be another one."""
    config = lora()
    before = config.to_dict()
    first, second = adapted(toy_bert(), config), adapted(toy_bert(), config)
    assert config.to_dict() == before
    assert [name for name, _ in first.named_parameters()] == [name for name, _ in second.named_parameters()]


REFUSED: dict[str, tuple[Any, type[Exception], str]] = {
    "unknown target": (lora(target_modules=["nope"]), ValueError, "'nope' among its target_modules"),
    "one of two misspelt": (lora(target_modules=["query", "valeu"]), ValueError, "no module.*Nearest.*: value"),
    "misspelt module to save": (lora(modules_to_save=["clasifier"]), ValueError, "Nearest.*: classifier"),
    "pattern without a match": (lora(target_modules=".*nope"), ValueError, "PEFT cannot put LORA on Bert.*query"),
    "nothing learns": (lora(inference_mode=True), ValueError, "inference_mode=True"),
    "no task": (peft.PromptTuningConfig(num_virtual_tokens=3), ValueError, "no task_type None"),
    "no configuration": (3, TypeError, "peft_config must be .*got int"),
    "no method": (peft.PeftConfig(), TypeError, "got PeftConfig"),
    "unknown method": ({"peft_type": "LORRA"}, ValueError, "got 'LORRA'. Nearest: (XLORA|LORA)"),
    "method left out": ({"r": 2}, ValueError, "needs a peft_type"),
    "unknown field": ({"peft_type": "LORA", "rank": 2}, ValueError, "takes no 'rank'"),
    "field of another type": ({"peft_type": "LORA", "r": "2"}, TypeError, "takes r as int, got '2'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_configuration_that_cannot_be_meant_is_refused(tmp_path: Path, case: str) -> None:
    """PEFT leaves out the misspelt one of two names, and trains nothing at all, without a word."""
    config, kind, message = REFUSED[case]
    with pytest.raises(kind, match=message):
        trainer_of(tmp_path, "kd", peft_config=config)


def test_two_adapters_are_refused(tmp_path: Path) -> None:
    """PEFT warns and wraps the wrapped model again; what is saved then does not load."""
    with pytest.raises(ValueError, match="wrapped already"):
        trainer_of(tmp_path, "kd", with_lora(toy_bert(), ["query"]), peft_config=lora())
    inside = with_lora(toy_bert(), ["query"]).get_base_model()
    with pytest.raises(ValueError, match="wrapped already"):
        trainer_of(tmp_path, "kd", inside, peft_config=lora())


def test_without_peft_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PEFT is optional: who lacks it must be told what to install."""
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ImportError, match=r"pip install 'hfdistill\[peft\]'"):
        trainer_of(tmp_path, "kd", peft_config={"peft_type": "LORA"})


KINDS: dict[str, Any] = {
    "lora": lora(),
    "dora": lora(use_dora=True),
    "all linear": lora(target_modules="all-linear"),
    "ia3": peft.IA3Config(task_type="SEQ_CLS", target_modules=["key", "value"], feedforward_modules=[]),
    "oft": peft.OFTConfig(task_type="SEQ_CLS", target_modules=["query"], r=0, oft_block_size=4),
    "norms": peft.LNTuningConfig(task_type="SEQ_CLS", target_modules=["LayerNorm"]),
    "tokens": lora(trainable_token_indices=[5, 6]),
    "prompt": virtual(peft.PromptTuningConfig),
    "prefix": virtual(peft.PrefixTuningConfig),
    "p-tuning": virtual(peft.PromptEncoderConfig),
}


@pytest.mark.filterwarnings("ignore:Unsupported layer type:UserWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_any_method_of_peft_learns(tmp_path: Path, kind: str) -> None:
    """Whatever PEFT puts in the way of the forward pass, the objective's gradient must reach all that learns."""
    torch.manual_seed(0)
    trainer = trainer_of(tmp_path, "kd", peft_config=KINDS[kind], optim="adamw_torch", learning_rate=1e-2, max_steps=3)
    before = weights_of(trainer.model)
    trainer.train()
    learns = {name for name, value in trainer.model.named_parameters() if value.requires_grad}
    moved = {name for name, value in weights_of(trainer.model).items() if not torch.equal(value, before[name])}
    assert moved
    assert moved == learns | (moved - learns if kind == "oft" else set())


@pytest.mark.parametrize("kind", [peft.PromptTuningConfig, peft.PromptEncoderConfig, peft.PrefixTuningConfig])
def test_virtual_tokens_are_not_compared_with_text(tmp_path: Path, kind: Any) -> None:
    """With three more positions in front every token would be compared with the third one after it."""
    moves = kind is not peft.PrefixTuningConfig
    student = adapted(toy_bert(), virtual(kind))
    assert student(**text_inputs(), output_hidden_states=True).hidden_states[-1].shape[1] == (12 if moves else 9)
    for name, loss in (("attention", AttentionMapLoss()), ("hidden states", HiddenStateLoss())):
        run: dict[str, Any] = {"objective": Objective(layers=loss), "peft_config": virtual(kind)}
        if name == "hidden states" and not moves:
            trainer_of(tmp_path, **run).train()
            continue
        with pytest.raises(ValueError, match=rf"the student's adapter \(P.*\) puts 3 virtual tokens.*its {name}"):
            trainer_of(tmp_path, **run)
    with pytest.raises(ValueError, match="the teacher's adapter"):
        trainer_of(tmp_path, Objective(layers=AttentionMapLoss()), teacher=adapted(toy_bert(layers=4), virtual(kind)))


def test_answers_per_token_of_virtual_tokens_are_refused(tmp_path: Path) -> None:
    """A head that answers for each token answers for the virtual ones, too; prefixes have no answers."""
    run: dict[str, Any] = {"rows": text_rows(labels="tokens"), "teacher": toy_bert(layers=4, head=TOKENS)}
    with pytest.raises(ValueError, match="answers per token"):
        trainer_of(
            tmp_path, "kd", toy_bert(head=TOKENS), peft_config=virtual(peft.PromptTuningConfig, "TOKEN_CLS"), **run
        )
    trainer_of(
        tmp_path, "kd", toy_bert(head=TOKENS), peft_config=virtual(peft.PrefixTuningConfig, "TOKEN_CLS"), **run
    ).train()


def new_head(model: Any) -> nn.Module:
    """The model with a head as transformers makes it: biases of zero."""
    nn.init.zeros_(model.classifier.bias)
    model_: nn.Module = model
    return model_


HEADS: dict[str, tuple[Callable[[], Any], Any, str]] = {
    "new and frozen": (lambda: new_head(toy_bert()), lora(task_type=None), "classifier.bias is exactly 0"),
    "new and learning": (lambda: new_head(toy_bert()), lora(), ""),
    "new and to be saved": (lambda: new_head(toy_bert()), lora(task_type=None, modules_to_save=["classifier"]), ""),
    "trained and frozen": (toy_bert, lora(task_type=None), ""),
    "without a bias": (toy_llama, lora(task_type=None, target_modules=["q_proj"]), "score.weight.*cannot be told"),
    "language model": (lambda: toy_gpt2(head="LMHeadModel"), lora(task_type=None, target_modules=["c_attn"]), ""),
    "image": (lambda: new_head(toy_vit()), lora(task_type=None, target_modules=["q_proj"]), "classifier.bias"),
}


@pytest.mark.parametrize("case", HEADS)
def test_a_new_head_that_stands_still_is_told(case: str, caplog: pytest.LogCaptureFixture) -> None:
    """The commonest slip with PEFT: LoRA without a task_type leaves the fresh head random, and nothing fails."""
    make, config, message = HEADS[case]
    with warnings.catch_warnings(), caplog.at_level(logging.WARNING):
        warnings.filterwarnings("ignore", message="fan_in_fan_out")
        check_adapter(adapted(make(), config), Needs(logits=True), "student")
    told = " ".join(record.getMessage() for record in caplog.records)
    if not message:
        assert not told
    else:
        assert "the student's head is frozen" in told
        assert "modules_to_save" in told
        assert re.search(message, told)


def test_adalora_is_told_what_it_lacks(caplog: pytest.LogCaptureFixture) -> None:
    """Its regulariser lives in a loss that the objective does not read."""
    student = adapted(toy_bert(), peft.AdaLoraConfig(task_type="SEQ_CLS", total_step=10, target_modules=["query"]))
    with caplog.at_level(logging.WARNING):
        check_adapter(student, Needs(logits=True), "student")
    assert "update_and_allocate" in caplog.text


def test_an_image_student_learns_by_an_adapter(tmp_path: Path) -> None:
    """Its forward takes no token ids, which PEFT's classes for tasks pass on."""
    config = lora(target_modules=["q_proj", "v_proj"])
    run: dict[str, Any] = {"rows": image_rows(), "teacher": toy_vit(layers=4, seed=1), "peft_config": config}
    trainer = trainer_of(tmp_path, Objective(kd=SoftTargetLoss(), hidden=HiddenStateLoss()), toy_vit(), **run)
    before = weights_of(trainer.model)
    trainer.train()
    assert largest_difference(weights_of(trainer.model), before) > 1e-4
