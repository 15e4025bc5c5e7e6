"""What must hold before a single step is made: of student and teacher, data, arguments and optimizer.

Each function refuses one thing that would otherwise fail late, or train without an error and teach nonsense.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sized
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from hfdistill.anatomy import Anatomy
from hfdistill.names import shown
from hfdistill.objective import Objective

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, TrainingArguments

_PROBES = ("It isn't a bad film, is it?", "Zürich, 1999: an un-der-rated MASTERPIECE; 10/10.", "i don't know")
_GENERIC = re.compile(r"LABEL_\d+")


def check_distinct(student: nn.Module, teacher: nn.Module) -> None:
    """Refuse a teacher that is the student, or shares parameters with it.

    Raises:
        ValueError: freezing the teacher would freeze the student.
    """
    ours = {id(parameter) for parameter in student.parameters()}
    shared = [name for name, parameter in teacher.named_parameters() if id(parameter) in ours]
    if shared:
        raise ValueError(
            f"the teacher shares {len(shared)} parameters with the student ({shared[0]} is one). The teacher is "
            "frozen, so the student could not learn. Pass two models: make the student with student_from(teacher, "
            "...), or load the teacher a second time. A student that learns by an adapter of PEFT can have its own "
            "base as the teacher: teacher=model, the student itself, with peft_config=... or a PeftModel."
        )


def check_label_order(student: Anatomy, teacher: Anatomy) -> None:
    """Refuse the same label names in another order; generic names (LABEL_0) say nothing and pass.

    Raises:
        ValueError: with the label map that makes them correspond.
    """
    ours = [student.label_names.get(index, "").lower() for index in range(student.classes)]
    theirs = [teacher.label_names.get(index, "").lower() for index in range(teacher.classes)]
    generic = any(_GENERIC.fullmatch(name.upper()) or not name for name in (*ours, *theirs))
    if generic or ours == theirs or sorted(ours) != sorted(theirs):
        return
    label_map = [theirs.index(name) for name in ours]
    raise ValueError(
        f"student and teacher have the same labels in another order: {dict(enumerate(ours))} (student), "
        f"{dict(enumerate(theirs))} (teacher). The student would learn every class from the wrong one. Load the "
        f"student with the teacher's id2label, or pass teacher=FrozenTeacher(teacher, label_map={label_map})."
    )


def check_tokenizers(student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase) -> None:
    """Refuse tokenizers that give other ids for the same text.

    Raises:
        ValueError: with a text on which they differ.
    """
    advice = (
        "Both models read one batch of ids, so the teacher would read another text than the student. Use a teacher "
        "with the student's tokenizer, or make the student from the teacher (student_from)."
    )
    for text in _PROBES:
        ours, theirs = student(text)["input_ids"], teacher(text)["input_ids"]
        if ours != theirs:
            raise ValueError(
                f"the teacher's tokenizer gives other ids: {text!r} is {ours[:8]} for the student and {theirs[:8]} "
                f"for the teacher. {advice}"
            )
    ours_vocabulary, theirs_vocabulary = student.get_vocab(), teacher.get_vocab()
    if ours_vocabulary != theirs_vocabulary:
        changed = ours_vocabulary.items() ^ theirs_vocabulary.items()
        example = min(changed)[0]
        raise ValueError(
            f"the two vocabularies differ in {len({token for token, _ in changed})} tokens, for example {example!r}: "
            f"id {ours_vocabulary.get(example)} for the student, {theirs_vocabulary.get(example)} for the teacher. "
            f"{advice}"
        )


def check_vocabulary_sizes(student: Anatomy, teacher: Anatomy) -> None:
    """Refuse embedding tables of different size where no tokenizers were given to compare.

    Raises:
        ValueError: the ids of one model may be out of the other's range, or mean something else.
    """
    if student.vocabulary and teacher.vocabulary and student.vocabulary != teacher.vocabulary:
        raise ValueError(
            f"student and teacher have vocabularies of different size, {student.vocabulary} and {teacher.vocabulary}. "
            "Both read one batch of ids, which then mean different tokens. Use a teacher with the student's "
            "tokenizer; where the tables differ only by padding, pass both tokenizers (processing_class=..., "
            "teacher_processing_class=...) so that this can be verified."
        )


def check_arguments(args: TrainingArguments) -> None:
    """Refuse ways to run the Trainer that distillation cannot follow.

    Raises:
        ValueError: torch.nn.DataParallel, or reentrant activation checkpointing; a number that trains nothing, or
            makes the student NaN; options that do nothing without another.
    """
    if args.n_gpu > 1:
        raise ValueError(
            f"{args.n_gpu} GPUs in one process would be run by torch.nn.DataParallel, whose copies of the student "
            f"would not see their share of the teacher's batch. Launch one process per GPU: torchrun --nproc_per_node "
            f"{args.n_gpu} your_script.py, or accelerate launch; or show one GPU only (CUDA_VISIBLE_DEVICES=0)."
        )
    checkpointing = args.activation_checkpointing or args.gradient_checkpointing
    options = args.activation_checkpointing_kwargs or args.gradient_checkpointing_kwargs or {}
    if checkpointing and isinstance(options, dict) and options.get("use_reentrant"):
        raise ValueError(
            "reentrant activation checkpointing gives silently wrong gradients for captured attention and hidden "
            "states. Set activation_checkpointing_kwargs={'use_reentrant': False}, the default."
        )
    for name, (holds, wanted) in _demands(args).items():
        if not holds:
            raise ValueError(f"{name} must be {wanted}, got {vars(args)[name]!r}.")


def _demands(args: TrainingArguments) -> dict[str, tuple[bool, str]]:
    """Name of an argument -> whether it is as it must be, and how that is; the Trainer takes all of these silently."""
    saves, fp16 = args.save_strategy == "steps", args.fp16 and args.device.type == "cpu"
    best = not args.load_best_model_at_end or args.eval_strategy != "no"
    batch = "a number of rows from 1 on"
    return {
        "per_device_train_batch_size": (args.per_device_train_batch_size >= 1, batch),
        "per_device_eval_batch_size": (args.per_device_eval_batch_size >= 1, batch),
        "gradient_accumulation_steps": (args.gradient_accumulation_steps >= 1, "1 (no accumulation) or more"),
        "max_steps": (args.max_steps != 0, "above 0, or -1 to go by num_train_epochs"),
        "num_train_epochs": (args.num_train_epochs > 0 or args.max_steps > 0, "above 0: nothing would be trained"),
        "learning_rate": (0 <= args.learning_rate < math.inf, "a finite number from 0 on, such as 5e-5"),
        "max_grad_norm": ((args.max_grad_norm or 0) >= 0, "0 (no clipping) or above: NaN would not clip"),
        "label_smoothing_factor": (0 <= args.label_smoothing_factor < 1, "a share of the target in [0, 1)"),
        "save_steps": (
            not saves or args.save_steps > 0,
            "above 0 where save_strategy='steps': nothing would be saved",
        ),
        "load_best_model_at_end": (best, "off without evaluation, which says what is best (eval_strategy='epoch')"),
        "fp16": (not fp16, "off without a GPU: it would be left out silently. Set bf16=True, or neither"),
    }


def check_student(model: object) -> None:
    """Refuse a student that is no model.

    Raises:
        TypeError: it is a name, a class, or something else.
    """
    if model is not None and not isinstance(model, nn.Module):
        raise TypeError(
            f"model must be the student, a transformers model, got {shown(model)} ({type(model).__name__}). Load it, "
            "as by AutoModelForSequenceClassification.from_pretrained(...), or make one (student_from)."
        )


def check_trainable(student: nn.Module) -> None:
    """Refuse a student of which nothing would learn.

    Raises:
        ValueError: no parameter requires a gradient.
    """
    if not any(parameter.requires_grad for parameter in student.parameters()):
        raise ValueError(
            "no parameter of the student requires a gradient, so it would learn nothing. It was frozen, perhaps as "
            "the teacher of an earlier run: load it anew, or call student.requires_grad_(True); of an adapter load it "
            "with is_trainable=True."
        )


def check_batch_size(args: TrainingArguments, objective: Objective) -> None:
    """Refuse batches of so few rows that a loss over the relations between them is always 0.

    Raises:
        ValueError: with the batch size that would do.
    """
    for name in objective:
        loss = objective[name]
        rows = args.per_device_train_batch_size * (args.world_size if loss.gather else 1)
        if rows < loss.fewest_rows:
            raise ValueError(
                f"objective term {name!r} ({type(loss).__name__}) relates the rows of a batch and needs at least "
                f"{loss.fewest_rows} of them, got {rows}: it would always be 0 and teach nothing; gradient "
                "accumulation does not enlarge a batch. Set per_device_train_batch_size to "
                f"{loss.fewest_rows} or more (32 or more is usual)."
            )


def check_dataset(dataset: object) -> None:
    """Refuse a training set without rows, or what is none.

    Raises:
        ValueError: its length is 0.
        TypeError: it is a name, or several splits.
    """
    if isinstance(dataset, str | Path | Mapping):
        held = f"the splits {sorted(map(str, dataset))}" if isinstance(dataset, Mapping) else f"the name {dataset!r}"
        raise TypeError(
            f"train_dataset must hold rows, got {held} ({type(dataset).__name__}). Load it, and pass one split: "
            "load_dataset(...)['train']."
        )
    if isinstance(dataset, Sized) and len(dataset) == 0:
        raise ValueError(
            "train_dataset is empty, so there is nothing to learn from. Look at the split's name, and at filters and "
            "max_samples before it."
        )


def check_optimizer(optimizer: torch.optim.Optimizer | None, objective: nn.Module) -> None:
    """Refuse an optimizer of the user's own that does not know the objective's trainable parts.

    Raises:
        ValueError: projectors would stay as random as they began.
    """
    if optimizer is None:
        return
    known = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    missing = [name for name, value in objective.named_parameters() if value.requires_grad and id(value) not in known]
    if missing:
        raise ValueError(
            f"the given optimizer lacks {len(missing)} parameters of the objective ({missing[0]} is one), which would "
            "never learn. Add trainer.objective.parameters() to it, or let the trainer make the optimizer."
        )
