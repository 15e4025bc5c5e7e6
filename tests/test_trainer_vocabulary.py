"""Language models with their logits in chunks, through the trainer: the run with whole logits, without them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate.utils import DistributedType
from largest_logits import LargestLogits
from torch import Tensor, nn
from toy_models import toy_bert, toy_gpt2, toy_llama, with_lora
from training_toys import arguments, collate, largest_difference, logged, text_rows, trainer_of, weights_of
from transformers import PreTrainedModel

from hfdistill import (
    Anatomy,
    Batch,
    DistillationLoss,
    FrozenTeacher,
    HiddenStateLoss,
    JensenShannonLoss,
    Needs,
    Objective,
    Representations,
    ReverseKLLoss,
    SkewedKLLoss,
    SoftTargetLoss,
    TaskLoss,
    VocabularyDivergenceLoss,
    VocabularyTaskLoss,
)
from hfdistill.attachment import Attachment, Request
from hfdistill.pairing import check_run

ROWS = text_rows(8, labels="tokens", ignored=(1, 2, 6))
TEACHER = {"width": 24, "seed": 1}
MODELS: dict[str, Callable[..., PreTrainedModel]] = {
    "gpt2, tied": lambda **sizes: toy_gpt2(head="LMHeadModel", **sizes),
    "llama": lambda **sizes: toy_llama(head="ForCausalLM", **sizes),
    "llama, tied": lambda **sizes: toy_llama(head="ForCausalLM", tie_word_embeddings=True, **sizes),
    "bert": lambda **sizes: toy_bert(head="ForMaskedLM", **sizes),
    "bert, not tied": lambda **sizes: toy_bert(head="ForMaskedLM", tie_word_embeddings=False, **sizes),
}
Pair = tuple[Callable[[], DistillationLoss], Callable[[], DistillationLoss]]
DIVERGENCES: dict[str, Pair] = {
    "forward": (
        lambda: SoftTargetLoss(2.0, scale_by_temperature=True),
        lambda: VocabularyDivergenceLoss(temperature=2.0, scale_by_temperature=True, chunk=5),
    ),
    "reverse": (ReverseKLLoss, lambda: VocabularyDivergenceLoss("reverse_kl", chunk=1)),
    "jsd": (
        lambda: JensenShannonLoss(0.3, 2.0, scale_by_temperature=True),
        lambda: VocabularyDivergenceLoss("jsd", beta=0.3, temperature=2.0, scale_by_temperature=True),
    ),
    "skewed": (lambda: SkewedKLLoss(alpha=0.2), lambda: VocabularyDivergenceLoss("skewed_kl", alpha=0.2, chunk=7)),
    "skewed reverse": (
        lambda: SkewedKLLoss("reverse", 0.2),
        lambda: VocabularyDivergenceLoss("skewed_reverse_kl", alpha=0.2, chunk=100),
    ),
}


def trained(folder: Path, model: str, objective: Objective, **changes: Any) -> tuple[dict[str, Tensor], list[Any]]:
    """The student's weights after two updates, and the log."""
    student = changes.pop("student", None) or MODELS[model]()
    teacher = changes.pop("teacher", None) or MODELS[model](**TEACHER)
    trainer = trainer_of(folder, objective, student, changes.pop("rows", ROWS), teacher=teacher, **changes)
    trainer.train()
    return weights_of(student), logged(trainer)


def both(folder: Path, model: str, pair: Pair, **changes: Any) -> list[tuple[dict[str, Tensor], list[Any]]]:
    """The run with whole logits, and the one in chunks; `changes` makes what each of them is given."""
    objectives = (
        Objective(task=TaskLoss(weight=0.5), kd=pair[0]()),
        Objective(task=VocabularyTaskLoss(weight=0.5, chunk=4), kd=pair[1]()),
    )
    return [trained(folder, model, one, **{key: make() for key, make in changes.items()}) for one in objectives]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("divergence", ["forward", "jsd"])
def test_the_run_is_that_of_whole_logits(tmp_path: Path, model: str, divergence: str) -> None:
    """Chunks are a matter of memory: padding, ignored labels, accumulation and tied heads must not show."""
    steps = {"gradient_accumulation_steps": lambda: 2, "per_device_train_batch_size": lambda: 2}
    (plain, plain_log), (chunked, chunked_log) = both(tmp_path, model, DIVERGENCES[divergence], **steps)
    assert largest_difference(plain, weights_of(MODELS[model]())) > 1e-3, "nothing was learnt that could differ"
    assert largest_difference(plain, chunked) < 2e-6
    for one, other in zip(plain_log, chunked_log, strict=True):
        for key in ("loss", "loss/task", "loss/kd"):
            assert other[key] == pytest.approx(one[key], rel=2e-5)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_every_divergence_is_the_plain_one(tmp_path: Path, divergence: str) -> None:
    """A keyword that does not reach its formula would show nowhere else."""
    (plain, _), (chunked, _) = both(tmp_path, "llama", DIVERGENCES[divergence])
    assert largest_difference(plain, chunked) < 2e-6


@pytest.mark.parametrize("model", ["llama", "bert"])
def test_no_logits_are_made_in_training(tmp_path: Path, model: str) -> None:
    """Neither the models' own forward nor the losses may hold logits of more than a chunk: else nothing is saved."""
    words, chunk = 499, 3
    objective = Objective(
        task=VocabularyTaskLoss(chunk=chunk), kd=VocabularyDivergenceLoss(chunk=chunk), hidden=HiddenStateLoss()
    )
    with LargestLogits(words) as seen:
        trained(
            tmp_path,
            model,
            objective,
            student=MODELS[model](vocabulary=words),
            teacher=MODELS[model](vocabulary=words, **TEACHER),
            weight_decay=0.0,
        )
    assert 0 < seen.rows <= 24 + chunk, "a transposed weight has as many rows of words as the teacher is wide"
    assert seen.elements == words * 24, "the teacher's head is the largest"


def test_another_loss_may_need_logits(tmp_path: Path) -> None:
    """Then both models make them, and the losses in chunks read the head beside them."""
    plain = Objective(task=TaskLoss(), kd=SoftTargetLoss(1.0))
    mixed = Objective(task=TaskLoss(), kd=VocabularyDivergenceLoss(chunk=3))
    assert largest_difference(trained(tmp_path, "llama", plain)[0], trained(tmp_path, "llama", mixed)[0]) < 2e-6


def test_without_labels_all_real_tokens_count(tmp_path: Path) -> None:
    """A corpus for distillation often has none."""
    rows = text_rows(8, labels=None)
    plain, chunked = Objective(kd=ReverseKLLoss()), Objective(kd=VocabularyDivergenceLoss("reverse_kl"))
    weights = [trained(tmp_path, "bert", one, rows=rows)[0] for one in (plain, chunked)]
    assert largest_difference(*weights) < 2e-6


def adapter() -> Any:
    """A Llama that learns by LoRA, the same each time."""
    torch.manual_seed(0)
    return with_lora(MODELS["llama"](), ["q_proj", "v_proj"])


def test_an_adapter_learns_through_a_frozen_head(tmp_path: Path) -> None:
    """The head is in PEFT's base: its weight has no gradient, what comes before it does."""
    pair = DIVERGENCES["forward"]
    (plain, _), (chunked, _) = both(tmp_path, "llama", pair, student=adapter)
    assert largest_difference(plain, chunked) < 2e-6
    assert largest_difference(plain, weights_of(adapter())) > 1e-4


def test_the_base_of_an_adapter_teaches(tmp_path: Path) -> None:
    """One head is then the student's and the teacher's, and must be read in both passes."""
    runs = []
    for objective in (Objective(kd=ReverseKLLoss()), Objective(kd=VocabularyDivergenceLoss("reverse_kl"))):
        student = adapter()
        runs.append(trained(tmp_path, "llama", objective, student=student, teacher=student)[0])
    assert largest_difference(*runs) < 2e-6


@pytest.mark.parametrize("option", ["activation_checkpointing", "label_smoothing_factor"])
def test_options_of_the_trainer_hold(tmp_path: Path, option: str) -> None:
    """Recomputed activations must not be noted as a second pass, and smoothing is part of the task loss."""
    changes = {option: lambda: True if option == "activation_checkpointing" else 0.3}
    (plain, log), (chunked, chunked_log) = both(tmp_path, "llama", DIVERGENCES["forward"], **changes)
    assert largest_difference(plain, chunked) < 2e-6
    assert chunked_log[0]["loss/task"] == pytest.approx(log[0]["loss/task"], rel=2e-5)


def test_half_precision_differs_as_it_does_anyway(tmp_path: Path) -> None:
    """Under bf16 chunks may differ from whole logits by what bf16 itself changes, no more."""
    (plain, _), (chunked, _) = both(tmp_path, "llama", DIVERGENCES["jsd"], bf16=lambda: True)
    (wide, _), _ = both(tmp_path, "llama", DIVERGENCES["jsd"])
    assert largest_difference(plain, chunked) < 2 * largest_difference(plain, wide)


def test_evaluation_has_whole_logits(tmp_path: Path) -> None:
    """Metrics, predictions and the evaluation's own loss are those of any Trainer; terms are observed in chunks."""
    objective = Objective(task=VocabularyTaskLoss(), kd=VocabularyDivergenceLoss())
    student, teacher = MODELS["llama"](), MODELS["llama"](**TEACHER)
    trainer = trainer_of(tmp_path, objective, student, ROWS, teacher=teacher, eval_dataset=ROWS, eval_objective=True)
    metrics = trainer.evaluate()
    plain = trainer_of(
        tmp_path,
        Objective(task=TaskLoss(), kd=SoftTargetLoss(1.0)),
        student,
        ROWS,
        teacher=teacher,
        eval_dataset=ROWS,
        eval_objective=True,
    ).evaluate()
    for key in ("eval_loss", "eval_loss/task", "eval_loss/kd"):
        assert metrics[key] == pytest.approx(plain[key], rel=2e-5)
    assert trainer.predict(ROWS.select(range(4))).predictions.shape[-1] == 64


def test_a_step_returns_no_logits(tmp_path: Path) -> None:
    """There are none; logits of no tokens would go through a subclass's metrics as NaN."""
    trainer = trainer_of(
        tmp_path, Objective(kd=VocabularyDivergenceLoss()), MODELS["llama"](), ROWS, teacher=MODELS["llama"](**TEACHER)
    )
    inputs = next(iter(trainer.get_train_dataloader()))
    _, output = trainer.compute_loss(trainer.model.train(), dict(inputs), return_outputs=True)
    assert "logits" not in output
    assert trainer.model(**inputs).logits.shape[:2] == inputs["input_ids"].shape, "outside a step it is itself"


def test_data_parallel_students_learn_the_same(tmp_path: Path) -> None:
    """The head is used within the root's hook, where DDP looks for parameters: each is ready once, none is missing."""
    student, teacher = (MODELS["gpt2, tied"](**sizes) for sizes in ({}, TEACHER))
    objective = Objective(task=VocabularyTaskLoss(), kd=VocabularyDivergenceLoss())
    objective.bind(Anatomy.of(student), Anatomy.of(teacher))
    inputs = collate(list(ROWS.select(range(4))))
    request = Request(FrozenTeacher(teacher).represent(inputs, objective.needs()[1]), Batch.of(inputs))
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        gradients = []
        for find_unused in (None, False, True):
            student.zero_grad()
            with Attachment(student, objective) as attachment, attachment.request(request):
                wrapped = student
                if find_unused is not None:
                    wrapped = nn.parallel.DistributedDataParallel(student, find_unused_parameters=find_unused)
                wrapped(**inputs)[1].loss.backward()
            gradients.append([own.grad for own in student.parameters()])
    finally:
        torch.distributed.destroy_process_group()
    assert all(gradient is not None for gradient in gradients[0])
    torch.testing.assert_close(gradients[1], gradients[0])
    torch.testing.assert_close(gradients[2], gradients[0])


def test_what_cannot_be_learnt_in_chunks_is_refused(tmp_path: Path) -> None:
    """Each of these would teach something else than was asked, or fail in the middle of a step."""
    labels, kd = Objective(task=VocabularyTaskLoss()), Objective(kd=VocabularyDivergenceLoss())
    cases: dict[str, dict[str, Any]] = {
        "compute_loss_func is given the student's logits": {"compute_loss_func": lambda *_, **__: None},
        "needs a student that answers with words": {"student": toy_bert()},
        "needs labels in the batch": {"objective": labels, "rows": text_rows(8, labels=None)},
    }
    for match, changes in cases.items():
        with pytest.raises(ValueError, match=match):
            trained(tmp_path, "llama", **{"objective": kd} | changes)


@pytest.mark.parametrize("kind", [DistributedType.FSDP, DistributedType.DEEPSPEED])
def test_a_head_in_shards_is_refused(tmp_path: Path, kind: DistributedType) -> None:
    """Outside the student's forward pass, where the chunks are made, its weight is a piece, or empty."""
    objective = Objective(kd=VocabularyDivergenceLoss())
    plugin = SimpleNamespace(deepspeed_plugin=SimpleNamespace(zero_stage=3))
    accelerator: Any = SimpleNamespace(distributed_type=kind, state=plugin)
    with pytest.raises(ValueError, match="FSDP and ZeRO-3 hold it in shards"):
        check_run(arguments(tmp_path), objective, accelerator)
    check_run(arguments(tmp_path), Objective(kd=ReverseKLLoss()), accelerator)


def test_a_teacher_of_ones_own_without_a_head_is_refused(tmp_path: Path) -> None:
    """It may show logits, which are not what was asked for."""

    class Served(FrozenTeacher):
        def represent(self, inputs: Any, needs: Needs) -> Representations:
            return super().represent(inputs, Needs(logits=True))

    teacher = Served(MODELS["llama"](**TEACHER))
    with pytest.raises(ValueError, match="needs the teacher's features before its head"):
        trained(tmp_path, "llama", Objective(kd=VocabularyDivergenceLoss()), teacher=teacher)


def test_broken_features_of_a_teacher_are_found(tmp_path: Path) -> None:
    """Without logits to look at, a teacher that overflows would make the student NaN with it."""
    teacher = MODELS["llama"](**TEACHER)
    with torch.no_grad():
        teacher.model.norm.weight[0] = torch.nan
    with pytest.raises(ValueError, match=r"the teacher's output_head\.features held NaN"):
        trained(tmp_path, "llama", Objective(kd=VocabularyDivergenceLoss()), teacher=teacher)


@pytest.mark.parametrize("words", ["beta", "alpha", "chunk", "divergence", "smoothing"])
def test_settings_that_mean_nothing_are_refused(words: str) -> None:
    """Before the first batch, with what would do."""
    wrong: dict[str, Callable[[], Any]] = {
        "beta": lambda: VocabularyDivergenceLoss("jsd", beta=1.5),
        "alpha": lambda: VocabularyDivergenceLoss("skewed_kl", alpha=1.0),
        "chunk": lambda: VocabularyDivergenceLoss(chunk=0),
        "divergence": lambda: VocabularyDivergenceLoss("kl"),
        "smoothing": lambda: VocabularyTaskLoss(label_smoothing=1.0),
    }
    with pytest.raises(ValueError, match=words):
        wrong[words]()
