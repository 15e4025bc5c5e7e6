"""Student and teacher put together: the teacher settled, the objective bound to both, both checked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import nn
from transformers import AutoTokenizer, PreTrainedTokenizerBase, TrainingArguments

from hfdistill.adapters import check_adapter
from hfdistill.anatomy import Anatomy, base_model
from hfdistill.arguments import DistillationSettings
from hfdistill.capture import check_attention
from hfdistill.compatibility import (
    check_batch_size,
    check_distinct,
    check_label_order,
    check_tokenizers,
    check_vocabulary_sizes,
)
from hfdistill.distributed.placement import check_own_model, own_device, shards_student
from hfdistill.distributed.sharding import is_sharded
from hfdistill.images.mixing import ImageMixing
from hfdistill.images.pairing import settled_conversion
from hfdistill.images.pixels import PixelConversion
from hfdistill.losses import TaskLoss
from hfdistill.losses.bilevel import is_learning
from hfdistill.mixup import UncertaintyMixup
from hfdistill.model_loading import explained_loading
from hfdistill.objective import Objective
from hfdistill.output_head import check_output_head
from hfdistill.shared_base import SharedBaseTeacher, shares_base
from hfdistill.teacher_precision import convert, precision_of, settled_precision
from hfdistill.teacher_tokens import holds_own
from hfdistill.teachers import FrozenTeacher, Teacher


def settled_teacher(
    teacher: nn.Module | str | Path | Teacher | None,
    student: nn.Module,
    settings: DistillationSettings,
    device: torch.device,
) -> Teacher | None:
    """A Teacher of what a user may give, in the precision asked for: a model, a name, a Teacher, or None.

    The student itself, and the base that its adapter sits on, become a SharedBaseTeacher.

    Args:
        teacher: what was given.
        student: the student, whose head says how to load a teacher by name.
        settings: precision and place of the teacher, and whether the code that comes with one by name is run.
        device: where the student is trained.

    Raises:
        TypeError: something else was given.
        ValueError: the teacher shares parameters with the student, lacks a trained head, or cannot be converted.
    """
    device = own_device(settings.teacher_placement) or device
    if isinstance(teacher, str | Path):
        precision = settled_precision(settings.teacher_dtype, device) or "float32"
        dtype = "auto" if precision == "checkpoint" else precision  # the word of transformers for the same
        loading: Any = {"dtype": dtype, "trust_remote_code": settings.trust_remote_code}
        return FrozenTeacher.from_pretrained(str(teacher), base_model(student), **loading)
    settled = _frozen(teacher, student)
    _convert(settled, settings.teacher_dtype, device)
    return settled


def _frozen(teacher: nn.Module | Teacher | None, student: nn.Module) -> Teacher | None:
    if isinstance(teacher, nn.Module):
        if shares_base(teacher, student):
            return SharedBaseTeacher(student)
        check_distinct(student, teacher)
        return FrozenTeacher(teacher)
    if isinstance(teacher, FrozenTeacher) and not isinstance(teacher, SharedBaseTeacher):
        check_distinct(student, teacher.model)
    elif teacher is not None and not isinstance(teacher, Teacher):
        raise TypeError(
            f"teacher must be a model, a folder or hub name, or have the Teacher protocol (anatomy, prepare, "
            f"represent), got {type(teacher).__name__}. The trainer asks it for representations of each batch."
        )
    return teacher


def _convert(teacher: Teacher | None, asked: str | None, device: torch.device) -> None:
    """Bring a teacher that was given as a model to the precision asked for, in place."""
    if teacher is None or asked in (None, "checkpoint"):
        return
    if not isinstance(teacher, FrozenTeacher) or isinstance(teacher, SharedBaseTeacher):
        already = isinstance(teacher, FrozenTeacher) and precision_of(teacher.model) == asked
        if asked != "auto" and not already:
            check_own_model(teacher, f"teacher_dtype={asked!r}")
        return
    fixed = is_sharded(teacher.model) or not all(own.is_floating_point() for own in teacher.model.parameters())
    if asked == "auto" and fixed:
        return
    precision = settled_precision(asked, device)
    if precision is None or precision_of(teacher.model) == precision:
        return
    if fixed:
        raise ValueError(
            f"teacher_dtype={asked!r} cannot be brought to a teacher that is quantised or in shards. Load it in the "
            "precision that you want and leave teacher_dtype out, or pass its name or folder."
        )
    convert(teacher.model, precision)


def check_same_tokens(
    student: Anatomy,
    teacher: Anatomy,
    processing_class: object,
    theirs: object,
    given: object,
    trust_remote_code: bool = False,
) -> None:
    """Refuse two models that read one batch of ids as different texts.

    Args:
        student: the student's anatomy.
        teacher: the teacher's.
        processing_class: the student's tokenizer, or whatever else prepares its inputs.
        theirs: the teacher's tokenizer, if given, or what else prepares its inputs.
        given: the teacher as it was given; from a name its tokenizer is loaded where it was not given.
        trust_remote_code: run the code that comes with that tokenizer.

    Raises:
        ValueError: the tokenizers differ, or, where one is not known, the sizes of the vocabularies.
    """
    ours = processing_class if isinstance(processing_class, PreTrainedTokenizerBase) else None
    if theirs is None and ours is not None and isinstance(given, str | Path):
        with explained_loading(given, "teacher's tokenizer"):
            theirs = AutoTokenizer.from_pretrained(str(given), trust_remote_code=trust_remote_code)
    if ours is not None and isinstance(theirs, PreTrainedTokenizerBase):
        check_tokenizers(ours, theirs)
    else:
        check_vocabulary_sizes(student, teacher)


def paired_inputs(
    student: nn.Module,
    ours: Anatomy,
    teacher: Teacher | None,
    objective: Objective,
    dataset: object,
    processing_class: object,
    theirs: object,
    given: object,
    trust_remote_code: bool = False,
) -> PixelConversion | None:
    """See to it that both models read the same rows: refuse other tokens, convert other pixels.

    Args:
        student: the student.
        ours: its anatomy.
        teacher: the teacher, settled, or None.
        objective: bound.
        dataset: the training set; where it holds images of the teacher's own, nothing is converted.
        processing_class: the student's tokenizer or image processor, or whatever else prepares its inputs.
        theirs: the teacher's, if given.
        given: the teacher as it was given; from a name its own is loaded where it was not given.
        trust_remote_code: run the code that comes with what is loaded.

    Raises:
        ValueError: see check_same_tokens and settled_conversion.
        TypeError: see settled_conversion.
    """
    if teacher is not None and objective.same_tokens:
        check_same_tokens(ours, teacher.anatomy, processing_class, theirs, given, trust_remote_code)
    if teacher is None or holds_own(dataset, "pixel_values"):
        return None
    return settled_conversion(student, ours.input_names, teacher, processing_class, theirs, given, trust_remote_code)


def bind_objective(objective: Objective, student: nn.Module, ours: Anatomy, teacher: Teacher | None) -> None:
    """Resolve layer maps and build trainable parts, then check that both models can show what is needed.

    Args:
        objective: what to bind.
        student: the student.
        ours: its anatomy.
        teacher: the teacher, or None for an objective without one.

    Raises:
        ValueError: the models cannot be compared, cannot show it, or the teacher is missing.
    """
    theirs = ours if teacher is None else teacher.anatomy
    objective.bind(ours, theirs)
    asked, taught = objective.needs()
    model = teacher.model if isinstance(teacher, FrozenTeacher) else None
    check_attention(ours, asked, student)
    check_attention(theirs, taught, model)
    check_adapter(student, asked, "student")
    check_adapter(model, taught, "teacher")
    if asked.output_head:
        check_output_head(student, ours, "student")
    if taught.output_head and model is not None:
        check_output_head(model, theirs, "teacher")
    if teacher is None and taught:
        raise ValueError(
            f"{objective!r} learns from a teacher, but teacher is None. Pass teacher=...; only an objective of losses "
            "that look at the student alone (TaskLoss) trains without one."
        )
    if teacher is not None and taught.logits:
        check_label_order(ours, theirs)


def check_run(
    args: TrainingArguments,
    objective: Objective,
    accelerator: Accelerator,
    loss_function: Callable[..., Any] | None = None,
) -> None:
    """Refuse a run whose batches or sharding its objective cannot be learnt with.

    Args:
        args: of the run.
        objective: bound.
        accelerator: the run's.
        loss_function: the Trainer's `compute_loss_func`.

    Raises:
        ValueError: see check_batch_size, check_bilevel; an objective that teaches in stages under FSDP; one that reads
            the student's head where it lies in shards, or where a function of one's own reads its logits.
    """
    check_batch_size(args, objective)
    check_bilevel(objective, accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED))
    if objective.staged and accelerator.distributed_type == DistributedType.FSDP:
        raise ValueError(
            f"{objective!r} teaches in stages and freezes a part of the student in each, but FSDP settles before the "
            "first step what learns: later stages would teach nothing. Train data-parallel (DDP) or with DeepSpeed."
        )
    reads_head = objective.needs()[0].output_head
    if reads_head and shards_student(accelerator):
        raise ValueError(
            f"{objective!r} makes logits in chunks from the student's whole head, outside its forward pass, where "
            "FSDP and ZeRO-3 hold it in shards. Train data-parallel (DDP, ZeRO-2), or use SoftTargetLoss and TaskLoss."
        )
    if reads_head and loss_function is not None:
        raise ValueError(
            f"compute_loss_func is given the student's logits, which {objective!r} does not make as a whole. Leave "
            "compute_loss_func out, or use SoftTargetLoss and TaskLoss."
        )


def check_mixing(
    mixing: UncertaintyMixup | ImageMixing | None,
    objective: Objective,
    student: Anatomy,
    teacher: Teacher | None,
    loss_function: Callable[..., Any] | None = None,
) -> None:
    """Refuse to mix the rows of a batch where what is learnt from them would not be what was mixed.

    Args:
        mixing: how, or None.
        objective: bound.
        student: the student's anatomy.
        teacher: the teacher, or None.
        loss_function: the Trainer's `compute_loss_func`.

    Raises:
        ValueError: a loss that remembers rows, or a function that is given one label of two; rows of text with labels
            of next tokens, or a teacher that is no FrozenTeacher; images where there are none, or with losses that go
            by the class of each row.
    """
    if mixing is None:
        return
    if objective.indexed:
        raise ValueError(
            f"{objective!r} remembers what it saw of each training row, and mixup shows mixed rows: the memory would "
            "hold what no row is. Leave one of them out."
        )
    if loss_function is not None and any(isinstance(objective[name], TaskLoss) for name in objective):
        raise ValueError(
            "a mixed row has the labels of two rows, and compute_loss_func would be given those of one, as if it were "
            "whole. Leave compute_loss_func out (TaskLoss learns both labels), or mixup off."
        )
    if isinstance(mixing, ImageMixing):
        _check_image_mixing(objective, student)
    else:
        _check_mixed_rows(objective, student, teacher)


def _check_image_mixing(objective: Objective, student: Anatomy) -> None:
    if "pixel_values" not in student.input_names or "input_ids" in student.input_names:
        raise ValueError(
            f"mixup_alpha and cutmix_alpha mix images, and a {student.family} reads text. Leave them at 0; rows of "
            "text are mixed by uncertainty_mixup."
        )
    single = [name for name in objective if objective[name].reads_classes]
    if single:
        raise ValueError(
            f"objective term {single[0]!r} ({type(objective[single[0]]).__name__}) goes by the class of each row, and "
            "a mixed image has two. Use SoftTargetLoss, which needs none, or leave mixup_alpha and cutmix_alpha at 0."
        )
    learning = [name for name in objective if is_learning(objective[name])]
    if learning:
        raise ValueError(
            f"objective term {learning[0]!r} learns how to teach from whole rows with one label each, so that mixed "
            "images would be taught by what was learnt on others. Set virtual_steps=0, or leave mixup off."
        )


def _check_mixed_rows(objective: Objective, student: Anatomy, teacher: Teacher | None) -> None:
    if student.head == "ForCausalLM" and any(objective[name].labels_alone for name in objective):
        raise ValueError(
            "uncertainty_mixup mixes rows token by token, and which token follows in a mixture is not defined, so "
            "that TaskLoss has no labels in a causal model. Leave TaskLoss out of the objective, or mixup off."
        )
    if teacher is not None and not isinstance(teacher, FrozenTeacher):
        raise ValueError(
            f"uncertainty_mixup mixes the embeddings inside student and teacher, but the teacher is a "
            f"{type(teacher).__name__}. It would be shown unmixed rows, and teach something else than is learnt. Pass "
            "the teacher as a model, or leave uncertainty_mixup off."
        )


def check_bilevel(objective: Objective, sharded: bool) -> None:
    """Refuse meta networks whose student is cut into shards.

    Args:
        objective: bound.
        sharded: whether FSDP or DeepSpeed runs the student.

    Raises:
        ValueError: virtual steps need the student's parameters whole.
    """
    learning = [type(objective[name]).__name__ for name in objective if is_learning(objective[name])]
    if sharded and learning:
        raise ValueError(
            f"{learning[0]} takes virtual steps of the whole student, which FSDP and DeepSpeed cut into shards: its "
            "meta networks could not learn. Train data-parallel (DDP), or set virtual_steps=0."
        )


def prepare_ddp(accelerator: Accelerator, args: TrainingArguments, objective: Objective) -> None:
    """Settle what data-parallel training needs for this objective, where the user has not said."""
    if args.ddp_find_unused_parameters is None:  # losses on layers leave the head unused, schedules more
        accelerator.ddp_handler.find_unused_parameters = True
    if args.ddp_broadcast_buffers is None and objective.indexed:  # every process writes the same memory banks
        accelerator.ddp_handler.broadcast_buffers = False
