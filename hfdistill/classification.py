"""Distil a classifier, whatever it reads: the part that a recipe for text and one for images share.

`Classification` describes teacher, student and arms. A recipe of its own adds what its rows are, and turns them into
`ClassificationData`; `prepared_experiment` then finds or fine-tunes the teacher, and `distil_classifier` runs the arms
and seeds and writes what came of it.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from datasets import Dataset
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel, set_seed

from hfdistill.anatomy import Anatomy, dropout_fields
from hfdistill.arguments import DistillationTrainingArguments
from hfdistill.arms import check_arms, check_runs
from hfdistill.checkpoints.folders import last_complete_checkpoint
from hfdistill.class_names import check_class_names, say_nothing
from hfdistill.configuration import as_objective
from hfdistill.distributed.placement import own_device
from hfdistill.experiment import CONTROL, Comparison, Experiment, Metrics
from hfdistill.layer_map import LayerMap
from hfdistill.losses import TaskLoss
from hfdistill.model_loading import check_model_name, explained_loading
from hfdistill.objective import Objective
from hfdistill.run_record import finished_seconds, plain_arguments, rows_digest, run_key, write_record
from hfdistill.students import student_from
from hfdistill.teacher_precision import convert, precision_of, settled_precision
from hfdistill.teachers import check_trained
from hfdistill.trainer import DistillationTrainer

logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Classification:
    """Teacher, student and arms of a recipe; the training itself is described by DistillationTrainingArguments.

    Args:
        teacher: folder or hub name of a fine-tuned classifier.
        teacher_body: folder or hub name of a model to fine-tune into the teacher first, where `teacher` is not given;
            its weights may be random.
        teacher_epochs: epochs of that fine-tuning, on all training rows.
        teacher_learning_rate: learning rate of that fine-tuning.
        same_label_order: the teacher's classes are the data's in this order, whatever they are called there; without
            it names that differ are refused.
        student: folder or hub name of the student; without it the student is cut from the teacher.
        student_layers: number of layers of a student that is cut from the teacher.
        student_layer_choice: which of the teacher's layers it gets: uniform, first, last, distilbert.
        student_hidden_size: width of the student; another than the teacher's means fresh weights.
        student_dropout: every dropout of the student, 0 to 1; None keeps what its configuration says. Matching a
            teacher that runs without dropout is a regression, which 0 makes easier.
        train_rows: train on this many rows, drawn at random; None for all.
        arms: "control" and presets, or names of `objectives`.
        objectives: further arms by name, as mappings (in a configuration file).
        seeds: one run each.

    Raises:
        ValueError: what is given does not describe a teacher, a student or an arm; an arm that cannot be a folder's
            name; a number that trains nothing.
        TypeError: `objectives` is no mapping.
    """

    task_tag: ClassVar[str]
    """The task as the hub names it."""
    auto_model: ClassVar[Any]
    """The Auto class of teacher and student."""

    teacher: str | None = field(default=None, metadata={"help": "Folder or hub name of a fine-tuned classifier."})
    teacher_body: str | None = field(default=None, metadata={"help": "What to fine-tune into the teacher first."})
    teacher_epochs: float = field(default=3.0, metadata={"help": "Epochs of that fine-tuning."})
    teacher_learning_rate: float = field(default=5e-5, metadata={"help": "Learning rate of that fine-tuning."})
    same_label_order: bool = field(
        default=False, metadata={"help": "The teacher's classes are the data's in this order, whatever their names."}
    )
    student: str | None = field(default=None, metadata={"help": "Folder or hub name; else cut from the teacher."})
    student_layers: int | None = field(default=None, metadata={"help": "Layers of a student cut from the teacher."})
    student_layer_choice: str = field(default="uniform", metadata={"help": "uniform, first, last or distilbert."})
    student_hidden_size: int | None = field(default=None, metadata={"help": "Width of the student."})
    student_dropout: float | None = field(default=None, metadata={"help": "Dropout of the student; None: as it is."})
    train_rows: int | None = field(default=None, metadata={"help": "Train on this many rows; None for all."})
    arms: list[str] = field(default_factory=lambda: [CONTROL, "kd"], metadata={"help": "control and presets."})
    objectives: dict[str, Any] = field(default_factory=dict, metadata={"help": "Further arms (configuration files)."})
    seeds: list[int] = field(default_factory=lambda: [0], metadata={"help": "One run each."})

    def __post_init__(self) -> None:
        """Check what can be checked before anything is loaded."""
        if self.teacher is None and self.teacher_body is None:
            raise ValueError(
                "a teacher is needed: teacher=... (a fine-tuned classifier), or teacher_body=... (a model that is "
                "fine-tuned into one first)."
            )
        sizes = self.student_sizes()
        if self.student is None and not sizes:
            raise ValueError(
                "say what the student is: student=... (a folder or hub name), or student_layers=... and "
                "student_hidden_size=... to cut it from the teacher."
            )
        if self.student is not None and sizes:
            given = ["student_layers" if name == "num_layers" else f"student_{name}" for name in sizes]
            raise ValueError(
                f"student={self.student!r} is taken as it is, so {', '.join(given)} would be lost: these are for a "
                "student that is cut from the teacher. Leave out one or the other."
            )
        _check_values(self)
        for arm in self.arms:  # a misspelt arm must not fail after the teacher's fine-tuning
            if arm != CONTROL:
                as_objective(self.objectives.get(arm, arm))

    @property
    def source(self) -> str:
        """Where the teacher comes from."""
        return str(self.teacher or self.teacher_body)

    def objective_of(self, arm: str) -> Any:
        """What an arm learns by, as an Experiment takes it: None for the control, a preset's name or a mapping."""
        return None if arm == CONTROL else self.objectives.get(arm, arm)

    def student_sizes(self) -> dict[str, Any]:
        """What a student that is cut from the teacher has of its own, as keywords of `student_from`."""
        sizes = {"num_layers": self.student_layers, "hidden_size": self.student_hidden_size}
        return {name: value for name, value in sizes.items() if value is not None}


@dataclass(frozen=True)
class Inputs:
    """How rows become a model's inputs.

    Args:
        processing_class: tokenizer or image processor, saved with the model.
        training: makes the batches that the model trains on.
        evaluation: makes the batches that it is evaluated on.
    """

    processing_class: Any
    training: Any
    evaluation: Any


@dataclass(frozen=True)
class ClassificationData:
    """Rows that are ready, and how they are batched and judged.

    Args:
        train: all rows to train on.
        evaluation: split -> rows, the split that counts first.
        student: how they become the student's inputs.
        teacher: how they become the teacher's.
        labels: names of the classes, by index; empty for regression.
        metrics: see Experiment.
        metric: see Experiment.
        record: name and splits of the data.
        resampled: see Experiment.
        batching: what of the batches decides a result, as plain values.
    """

    train: Dataset
    evaluation: Mapping[str, Dataset]
    student: Inputs
    teacher: Inputs
    labels: Sequence[str]
    metrics: Metrics
    metric: str
    record: Mapping[str, Any]
    resampled: Metrics | None = None
    batching: Mapping[str, Any] = field(default_factory=dict)


def prepared_experiment(
    recipe: Classification, args: DistillationTrainingArguments, data: ClassificationData
) -> Experiment:
    """The experiment that a recipe describes, on data that is ready: its teacher stands, no student is trained yet.

    Args:
        recipe: what to distil.
        args: how each student is trained.
        data: what to train and evaluate on.

    Raises:
        ValueError: labels, teacher and student do not fit together.
    """
    teacher = _teacher(recipe, args, data)
    if (precision := _precision(teacher, args)) != args.teacher_dtype:
        args = replace(args, teacher_dtype=precision)
        convert(teacher, "float32")  # as the table shows it, whatever the students learn from
    anatomy = Anatomy.of(teacher)
    check_class_names(data.labels, anatomy, recipe.same_label_order)
    if data.labels and say_nothing(anatomy.label_names.values()) and not say_nothing(data.labels):
        teacher.config.update(_head(data.labels))  # the student and its records then name the classes
    train = _training_rows(recipe, data.train)
    return Experiment(
        teacher=teacher,
        make_student=lambda: _student(recipe, teacher, args),
        arguments=args,
        train_dataset=train,
        evaluation=data.evaluation,
        data_collator=data.student.training,
        evaluation_collator=data.student.evaluation,
        teacher_collator=data.teacher.evaluation,
        processing_class=data.student.processing_class,
        teacher_processing_class=data.teacher.processing_class,
        metrics=data.metrics,
        metric=data.metric,
        resampled=data.resampled,
        output_dir=str(args.output_dir),
        batching=data.batching,
        data={**data.record, "train_rows": len(train), "evaluation_split": next(iter(data.evaluation))},
    )


def distil_classifier(recipe: Classification, experiment: Experiment) -> Comparison:
    """Run the arms of a recipe; everything is written below the output folder of its arguments.

    Args:
        recipe: what to distil.
        experiment: the one that it describes; see prepared_experiment.
    """
    arms = {arm: recipe.objective_of(arm) for arm in recipe.arms}
    comparison = experiment.run(arms, recipe.seeds)
    comparison.protocol["recipe"] = vars(recipe)
    if experiment.arguments.process_index == 0:
        comparison.save(str(experiment.arguments.output_dir))
    return comparison


def _check_values(recipe: Classification) -> None:
    """Refuse what would fail, or do nothing, only after a teacher has been fine-tuned."""
    layers, width, rows = recipe.student_layers, recipe.student_hidden_size, recipe.train_rows
    demands = {
        "teacher_body": (not (recipe.teacher and recipe.teacher_body), "left out where a teacher is given, as it is"),
        "teacher_epochs": (0 < recipe.teacher_epochs < math.inf, "a number above 0"),
        "teacher_learning_rate": (0 < recipe.teacher_learning_rate < math.inf, "a finite number above 0"),
        "student_layers": (layers is None or layers >= 1, "1 or more"),
        "student_hidden_size": (width is None or width >= 1, "1 or more"),
        "student_dropout": (0 <= (recipe.student_dropout or 0) < 1, "a share in [0, 1)"),
        "train_rows": (rows is None or rows >= 1, "1 or more, or left out for all rows"),
    }
    for name, (holds, wanted) in demands.items():
        if not holds:
            raise ValueError(f"{name} must be {wanted}, got {vars(recipe)[name]!r}.")
    for role, model in (("teacher", recipe.source), ("student", recipe.student)):
        if model is not None:
            check_model_name(model, role)
    if recipe.student_layer_choice != "distilbert":
        LayerMap.parse(recipe.student_layer_choice)
    if not isinstance(recipe.objectives, Mapping):
        raise TypeError(
            f"objectives must be names with what they stand for, got {recipe.objectives!r}. Write in the file "
            "objectives: {mine: {kd: {loss: SoftTargetLoss}}}."
        )
    check_arms({arm: recipe.objectives.get(arm) for arm in recipe.arms}, recipe.seeds)
    check_runs(recipe.arms, recipe.seeds)


def _training_rows(recipe: Classification, rows: Dataset) -> Dataset:
    if recipe.train_rows is None or recipe.train_rows >= len(rows):
        return rows
    return rows.shuffle(seed=0).select(range(recipe.train_rows))


def _head(labels: Sequence[str]) -> dict[str, Any]:
    """The head's configuration: number and names of the classes."""
    if not labels:
        return {"num_labels": 1, "problem_type": "regression"}
    return {"id2label": dict(enumerate(labels)), "label2id": {name: index for index, name in enumerate(labels)}}


def _teacher(recipe: Classification, args: DistillationTrainingArguments, data: ClassificationData) -> PreTrainedModel:
    """The fine-tuned teacher, loaded; or trained, saved below output_dir, and found there again by a later run."""
    if recipe.teacher is not None:
        return _load(recipe, recipe.teacher, args, "auto" if args.teacher_dtype == "checkpoint" else "float32")
    folder = Path(str(args.output_dir)) / "teacher"
    training = replace(
        args,
        output_dir=str(folder),
        num_train_epochs=recipe.teacher_epochs,
        learning_rate=recipe.teacher_learning_rate,
        max_steps=-1,
    )
    set_seed(args.seed)
    # of another task's head the body is kept, and the head made anew
    teacher = _load(recipe, str(recipe.teacher_body), args, **_head(data.labels))
    description = {"arguments": plain_arguments(training), "seed": args.seed, "batching": data.batching}
    key = run_key(teacher, {}, rows_digest(data.train), description)
    if finished_seconds(folder, key, args) is not None:
        logger.info("taking the teacher that an earlier run fine-tuned: %s", folder)
        return _load(recipe, str(folder), args)
    trainer = DistillationTrainer(
        model=teacher,
        args=training,
        objective=Objective(task=TaskLoss()),
        train_dataset=data.train,
        data_collator=data.teacher.training,
        processing_class=data.teacher.processing_class,
    )
    trainer.train(resume_from_checkpoint=last_complete_checkpoint(folder))
    trainer.save_model(str(folder))
    if args.process_index == 0:
        write_record(folder, key, trainer.seconds_in_training())
    trainer.accelerator.wait_for_everyone()  # the folder is whole before any process reads it
    return _load(recipe, str(folder), args)  # the trained object stays wrapped in mixed precision


def _student(recipe: Classification, teacher: PreTrainedModel, args: DistillationTrainingArguments) -> PreTrainedModel:
    if recipe.student is not None:
        names = {"id2label": teacher.config.id2label, "label2id": teacher.config.label2id}
        with explained_loading(recipe.student, "student"):
            config = AutoConfig.from_pretrained(recipe.student, trust_remote_code=args.trust_remote_code)
        changes: dict[str, Any] = {**names, **_dropout(recipe, config)}
        return _load(recipe, recipe.student, args, **changes)
    dropout = _dropout(recipe, teacher.config)
    return student_from(teacher, layers=recipe.student_layer_choice, config=dropout or None, **recipe.student_sizes())


def _dropout(recipe: Classification, config: PreTrainedConfig) -> dict[str, float]:
    if recipe.student_dropout is None:
        return {}
    return dict.fromkeys(dropout_fields(config), recipe.student_dropout)


def _precision(teacher: PreTrainedModel, args: DistillationTrainingArguments) -> str | None:
    """In which precision the teacher teaches, settled once for all runs."""
    if args.teacher_dtype == "checkpoint":
        return precision_of(teacher)
    return settled_precision(args.teacher_dtype, own_device(args.teacher_placement) or args.device)


def _load(
    recipe: Classification, name: str, args: DistillationTrainingArguments, dtype: str = "float32", **config: Any
) -> PreTrainedModel:
    """A classifier by name; where `config` says how many classes it has, a head of other ones is made anew."""
    options: dict[str, Any] = {"dtype": dtype, "trust_remote_code": args.trust_remote_code, **config}
    with explained_loading(name, "student" if name == recipe.student else "teacher"):
        model, info = recipe.auto_model.from_pretrained(
            name, output_loading_info=True, ignore_mismatched_sizes=bool(config), **options
        )
    if not config:
        check_trained(name, info["missing_keys"])
    loaded: PreTrainedModel = model
    return loaded
