"""The output head of a language model: shown with its features, and only where the logits are its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from toy_models import text_inputs, toy_bert, toy_gemma2, toy_gpt2, toy_llama, toy_roberta, with_lora
from transformers import PreTrainedModel

from hfdistill import Anatomy, FrozenTeacher, Needs, Objective, VocabularyDivergenceLoss
from hfdistill.adapters import adapted
from hfdistill.capture import capture
from hfdistill.output_head import check_output_head, output_projection
from hfdistill.pairing import bind_objective

INPUTS = text_inputs()
HEAD = Needs(output_head=True)
LANGUAGE_MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "gpt2": lambda: toy_gpt2(head="LMHeadModel"),
    "llama": lambda: toy_llama(head="ForCausalLM"),
    "bert": lambda: toy_bert(head="ForMaskedLM"),
    "roberta": lambda: toy_roberta(head="ForMaskedLM"),
}


def checked(model: Any) -> None:
    """Let the check look at a student."""
    check_output_head(model, Anatomy.of(model), "student")


@pytest.mark.parametrize("family", LANGUAGE_MODELS)
def test_logits_follow_from_what_is_shown(family: str) -> None:
    """Features of another place, or a bias that is forgotten, would make other logits."""
    model = LANGUAGE_MODELS[family]()
    checked(model)
    labelled = {**INPUTS, "labels": INPUTS["input_ids"]}
    output, shown = capture(model, labelled, HEAD)
    assert shown.logits is None
    assert "logits" not in output, "logits of no tokens would be taken for logits"
    assert shown.output_head is not None
    torch.testing.assert_close(F.linear(*shown.output_head), model(**INPUTS).logits)
    both = capture(model, INPUTS, HEAD | Needs(logits=True))[1]
    assert both.logits is not None
    assert both.output_head is not None
    torch.testing.assert_close(F.linear(*both.output_head), both.logits)


def test_after_a_pass_the_model_is_itself() -> None:
    """Also after one that failed: a head that still answers for no tokens would break evaluation and generation."""
    model = LANGUAGE_MODELS["llama"]()
    capture(model, INPUTS, HEAD)
    with pytest.raises(ValueError, match="input_ids"):
        capture(model, {**INPUTS, "input_ids": None}, HEAD)
    head = output_projection(model)
    assert not head._forward_pre_hooks
    assert model(**INPUTS, labels=INPUTS["input_ids"]).logits.shape == (*INPUTS["input_ids"].shape, 64)


def test_the_check_leaves_the_student_as_it_was() -> None:
    """It is a pass of the student: dropout, random numbers and hooks must not notice."""
    student: Any = toy_gpt2(head="LMHeadModel", resid_pdrop=0.5).train()
    student.transformer.h[0].eval()
    modes, numbers = [module.training for module in student.modules()], torch.get_rng_state()
    checked(student)
    assert [module.training for module in student.modules()] == modes
    assert torch.equal(torch.get_rng_state(), numbers)
    assert not student.lm_head._forward_hooks
    assert not student.lm_head._forward_pre_hooks


def changed(model: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The model with a forward that changes its logits, as no configuration tells."""
    plain = model.forward

    def forward(*arguments: Any, **keywords: Any) -> Any:
        output = plain(*arguments, **keywords)
        output.logits = change(output.logits)
        return output

    model.forward = forward
    return model


CHANGES: dict[str, Callable[[Tensor], Tensor]] = {
    "scale": lambda logits: logits * 0.999,
    "shift": lambda logits: logits + 1e-3 * torch.arange(64),
    "cap": lambda logits: 1000 * torch.tanh(logits / 1000),
    "other shape": lambda logits: logits[:, 1:],
    "NaN": lambda logits: logits * torch.nan,
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("role", ["student", "teacher"])
def test_logits_that_change_after_the_head_are_found_out(change: str, role: str) -> None:
    """The loss would teach, or learn, what the model never answers; no list of families knows tomorrow's."""
    student, teacher = toy_llama(head="ForCausalLM"), toy_llama(head="ForCausalLM", width=24)
    changed(student if role == "student" else teacher, CHANGES[change])
    objective = Objective(kd=VocabularyDivergenceLoss())
    with pytest.raises(ValueError, match=rf"the {role} \(llama\) changes its logits after the head"):
        bind_objective(objective, student, Anatomy.of(student), FrozenTeacher(teacher))


def test_softcapping_is_found_out() -> None:
    """Gemma 2 bends its logits at 30, which the small ones of a model that is not trained hardly show."""
    with pytest.raises(ValueError, match="changes its logits after the head"):
        checked(toy_gemma2(head="ForCausalLM", final_logit_softcapping=30.0))
    checked(toy_gemma2(head="ForCausalLM", final_logit_softcapping=None))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_precisions_are_not_mistaken_for_changes(dtype: torch.dtype) -> None:
    """Half precision rounds; that is no reason to refuse it, nor to let softcapping pass."""
    checked(toy_llama(head="ForCausalLM").to(dtype))
    with pytest.raises(ValueError, match="changes its logits after the head"):
        checked(toy_gemma2(head="ForCausalLM", final_logit_softcapping=30.0).to(dtype))


@pytest.mark.parametrize("targets", [{"target_modules": ["q_proj", "lm_head"]}, {"modules_to_save": ["lm_head"]}])
def test_heads_that_are_more_than_a_matrix_are_refused(targets: dict[str, list[str]]) -> None:
    """An adapter on the head would be left out of what is learnt, and stay untrained."""
    student = adapted(toy_llama(head="ForCausalLM"), {"peft_type": "LORA", "target_modules": ["q_proj"]} | targets)
    with pytest.raises(ValueError, match=r"to be a plain nn\.Linear, got .*Keep adapters off the head"):
        checked(student)
    checked(with_lora(toy_llama(head="ForCausalLM"), ["q_proj"]))


def test_a_head_that_is_not_called_once_is_refused() -> None:
    """Of which of two calls the logits are cannot be told."""
    model: Any = toy_llama(head="ForCausalLM")
    plain = model.forward
    model.forward = lambda **inputs: [plain(**inputs), plain(**inputs)][1]
    with pytest.raises(ValueError, match=r"given features \(B, N, D\) once in a pass, but it was given .*, .*"):
        capture(model, INPUTS, HEAD)
    model.forward, model.get_output_embeddings = plain, lambda: torch.nn.Linear(2, 2)
    with pytest.raises(ValueError, match="but it was given nothing"):
        capture(model, INPUTS, HEAD)


def test_a_model_in_shards_is_refused() -> None:
    """ZeRO-3 leaves parameters of no elements in a model that is loaded within its context."""
    model: Any = toy_llama(head="ForCausalLM")
    model.lm_head.weight.ds_numel = model.lm_head.weight.numel()
    with pytest.raises(ValueError, match="the student's weights are in shards"):
        checked(model)


def test_a_label_map_is_refused() -> None:
    """It puts logits in another order, and words of a head that is read itself would stay as they are."""
    teacher = FrozenTeacher(toy_llama(head="ForCausalLM", classes=2), [1, 0])
    with pytest.raises(ValueError, match="label_map puts classes of logits in another order"):
        teacher.represent(INPUTS, HEAD)


def test_a_head_stays_where_its_teacher_lies() -> None:
    """Its chunks of logits are moved: the whole head at every step would be more."""
    shown = capture(toy_llama(head="ForCausalLM"), INPUTS, HEAD)[1].to(torch.device("meta"))
    assert shown.output_head is not None
    assert shown.output_head.weight.device.type == "cpu"
