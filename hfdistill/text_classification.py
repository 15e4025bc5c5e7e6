"""Distil a text classifier, from a description that a file or the command line can give.

`TextClassification` says what: the task, the teacher (or what to fine-tune into one), the student, the arms.
`distil_text_classifier` does it: data, teacher, an Experiment over arms and seeds, results.json and results.md. All
nine GLUE tasks are known by name; any other data set needs its columns named.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import ClassLabel, Dataset, DatasetDict, load_dataset
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)

from hfdistill.anatomy import Anatomy, dropout_fields
from hfdistill.arguments import DistillationTrainingArguments
from hfdistill.compatibility import check_tokenizers
from hfdistill.configuration import as_objective
from hfdistill.experiment import CONTROL, Array, Comparison, Experiment, Metrics
from hfdistill.glue import GlueTask, accuracy, load_metric, load_task, metrics, task_named
from hfdistill.losses import TaskLoss
from hfdistill.objective import Objective
from hfdistill.run_record import finished_seconds, plain_arguments, rows_digest, run_key, write_record
from hfdistill.students import student_from
from hfdistill.trainer import DistillationTrainer

logger = logging.getLogger(__name__)


@dataclass
class TextClassification:
    """What to distil; the training itself is described by DistillationTrainingArguments.

    Args:
        task: one of the nine GLUE tasks; None for data of one's own.
        data_dir: folder of parquet files (<data_dir>/<task>/train.parquet, ...); without it rows come from the hub.
        dataset: hub name or folder of a data set of one's own, with the splits train and validation.
        text_columns: one column, or the two of a pair, of a data set of one's own.
        label_column: its label; a ClassLabel, integers, or numbers for regression.
        teacher: folder or hub name of a fine-tuned classifier.
        teacher_body: folder or hub name of a model to fine-tune into the teacher first, where `teacher` is not given.
        teacher_epochs: epochs of that fine-tuning, on all training rows.
        teacher_learning_rate: learning rate of that fine-tuning.
        student: folder or hub name of the student; without it the student is cut from the teacher.
        student_layers: number of layers of a student that is cut from the teacher.
        student_layer_choice: which of the teacher's layers it gets: uniform, first, last, distilbert.
        student_hidden_size: width of the student; another than the teacher's means fresh weights.
        student_dropout: every dropout of the student, 0 to 1; None keeps what its configuration says. Matching a
            teacher that runs without dropout is a regression, which 0 makes easier.
        train_rows: train on this many rows, drawn at random; None for all.
        max_length: tokens per row; None: 64 for a sentence, 128 for a pair.
        arms: "control" and presets, or names of `objectives`.
        objectives: further arms by name, as mappings (in a configuration file).
        seeds: one run each.

    Raises:
        ValueError: what is given does not describe a task, a teacher or a student.
    """

    task: str | None = field(default=None, metadata={"help": "One of the nine GLUE tasks."})
    data_dir: str | None = field(default=None, metadata={"help": "Folder of parquet files; else the hub."})
    dataset: str | None = field(default=None, metadata={"help": "Hub name or folder of a data set of your own."})
    text_columns: list[str] = field(default_factory=list, metadata={"help": "Its text column, or a pair's two."})
    label_column: str = field(default="label", metadata={"help": "Its label column."})
    teacher: str | None = field(default=None, metadata={"help": "Folder or hub name of a fine-tuned classifier."})
    teacher_body: str | None = field(default=None, metadata={"help": "What to fine-tune into the teacher first."})
    teacher_epochs: float = field(default=3.0, metadata={"help": "Epochs of that fine-tuning."})
    teacher_learning_rate: float = field(default=5e-5, metadata={"help": "Learning rate of that fine-tuning."})
    student: str | None = field(default=None, metadata={"help": "Folder or hub name; else cut from the teacher."})
    student_layers: int | None = field(default=None, metadata={"help": "Layers of a student cut from the teacher."})
    student_layer_choice: str = field(default="uniform", metadata={"help": "uniform, first, last or distilbert."})
    student_hidden_size: int | None = field(default=None, metadata={"help": "Width of the student."})
    student_dropout: float | None = field(default=None, metadata={"help": "Dropout of the student; None: as it is."})
    train_rows: int | None = field(default=None, metadata={"help": "Train on this many rows; None for all."})
    max_length: int | None = field(default=None, metadata={"help": "Tokens per row; None: 64, or 128 for a pair."})
    arms: list[str] = field(default_factory=lambda: [CONTROL, "kd"], metadata={"help": "control and presets."})
    objectives: dict[str, Any] = field(default_factory=dict, metadata={"help": "Further arms (configuration files)."})
    seeds: list[int] = field(default_factory=lambda: [0], metadata={"help": "One run each."})

    def __post_init__(self) -> None:
        """Check what can be checked before anything is loaded."""
        if self.task is not None:
            task_named(self.task)
        elif self.dataset is None or not self.text_columns:
            raise ValueError(
                "say what to train on: task=..., one of the GLUE tasks, or dataset=... with text_columns=[...] for "
                "data of your own."
            )
        if self.teacher is None and self.teacher_body is None:
            raise ValueError(
                "a teacher is needed: teacher=... (a fine-tuned classifier), or teacher_body=... (a model that is "
                "fine-tuned into one first)."
            )
        if self.student is None and self.student_layers is None and self.student_hidden_size is None:
            raise ValueError(
                "say what the student is: student=... (a folder or hub name), or student_layers=... and "
                "student_hidden_size=... to cut it from the teacher."
            )
        for arm in self.arms:  # a misspelt arm must not fail after the teacher's fine-tuning
            if arm != CONTROL:
                as_objective(self.objectives.get(arm, arm))

    @property
    def glue(self) -> GlueTask | None:
        """The GLUE task, where it is one."""
        return None if self.task is None else task_named(self.task)


def distil_text_classifier(recipe: TextClassification, args: DistillationTrainingArguments) -> Comparison:
    """Run the recipe; everything is written below `args.output_dir`.

    Args:
        recipe: what to distil.
        args: how each student is trained.

    Raises:
        ValueError: columns, labels, teacher and student do not fit together.
    """
    rows = load_rows(recipe)
    source = recipe.teacher or recipe.teacher_body
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(source)
    if recipe.student is not None:
        check_tokenizers(AutoTokenizer.from_pretrained(recipe.student), tokenizer)
    models = [str(name) for name in (source, recipe.student) if name is not None]
    token_types = any("token_type_ids" in Anatomy.of(_architecture(name)).input_names for name in models)
    tokenized = tokenize(rows, recipe, tokenizer, token_types)
    collator = DataCollatorWithPadding(tokenizer)
    teacher = _teacher(recipe, args, tokenized, tokenizer, collator)
    metric, measured, resampled = _metrics(recipe, tokenized["train"])
    experiment = Experiment(
        teacher=teacher,
        make_student=lambda: _student(recipe, teacher),
        arguments=args,
        train_dataset=_training_rows(recipe, tokenized["train"]),
        evaluation={split: _by_length(tokenized[split]) for split in tokenized if split != "train"},
        data_collator=collator,
        processing_class=tokenizer,
        metrics=measured,
        metric=metric,
        resampled=resampled,
        output_dir=str(args.output_dir),
    )
    arms = {arm: None if arm == CONTROL else recipe.objectives.get(arm, arm) for arm in recipe.arms}
    comparison = experiment.run(arms, recipe.seeds)
    comparison.protocol["recipe"] = vars(recipe)
    comparison.save(str(args.output_dir))
    return comparison


def load_rows(recipe: TextClassification) -> DatasetDict:
    """The rows of the recipe, with a split "train" and at least one other.

    Raises:
        ValueError: a split or a column is missing.
    """
    if recipe.task is not None:
        return load_task(recipe.task, recipe.data_dir)
    loaded = load_dataset(str(recipe.dataset))
    wanted = [*recipe.text_columns, recipe.label_column]
    missing = sorted({"train", "validation"} - set(loaded)) or sorted(set(wanted) - set(loaded["train"].column_names))
    if missing:
        raise ValueError(
            f"{recipe.dataset} lacks {missing}; it has the splits {sorted(loaded)} and the columns "
            f"{loaded[next(iter(loaded))].column_names}. Name the columns with text_columns and label_column, and "
            "give it the splits train and validation."
        )
    return DatasetDict({split: loaded[split] for split in ("train", "validation")})


def tokenize(
    rows: DatasetDict, recipe: TextClassification, tokenizer: PreTrainedTokenizerBase, token_types: bool
) -> DatasetDict:
    """Token ids and a column `labels`; padding is left to the batches.

    Args:
        rows: splits with text and label columns.
        recipe: which columns, how long.
        tokenizer: the one that both models share.
        token_types: whether a model reads token_type_ids, which a pair needs.
    """
    glue = recipe.glue
    columns = list(glue.text_columns) if glue is not None else recipe.text_columns
    length = recipe.max_length or (glue.max_length if glue is not None else (64 if len(columns) == 1 else 128))
    label = "label" if glue is not None else recipe.label_column

    def encode(examples: Mapping[str, Any]) -> dict[str, Any]:
        texts = [examples[column] for column in columns]
        encoded = tokenizer(*texts, truncation=True, max_length=length, return_token_type_ids=token_types)
        return {**encoded, "labels": examples[label]}

    kept = {split: split_rows.column_names for split, split_rows in rows.items()}
    return DatasetDict(
        {
            split: split_rows.map(
                encode, batched=True, remove_columns=kept[split], desc=f"tokenizing {split}"
            ).cast_column("labels", split_rows.features[label])  # map forgets the names of the classes
            for split, split_rows in rows.items()
        }
    )


def _training_rows(recipe: TextClassification, rows: Dataset) -> Dataset:
    if recipe.train_rows is None or recipe.train_rows >= len(rows):
        return rows
    return rows.shuffle(seed=0).select(range(recipe.train_rows))


def _by_length(rows: Dataset) -> Dataset:
    """The same rows, short ones first: no figure depends on their order, and batches hold less padding."""
    return rows.select(np.argsort([len(ids) for ids in rows["input_ids"]], kind="stable"))


def _metrics(recipe: TextClassification, rows: Dataset) -> tuple[str, Metrics, Metrics]:
    """The figure of the table, what measures the runs, and the same without `evaluate`'s overhead for resampling."""
    glue = recipe.glue
    if glue is not None:
        return glue.primary, load_metric(glue.name), partial(metrics, glue.name)
    if _is_regression(rows):  # STS-B's correlations suit any number
        return "spearmanr", partial(metrics, "stsb"), partial(metrics, "stsb")
    return "accuracy", _accuracy, _accuracy


def _accuracy(logits: Array, labels: Array) -> dict[str, float]:
    return {"accuracy": accuracy(logits.argmax(axis=-1), labels)}


def _is_regression(rows: Dataset) -> bool:
    feature = rows.features["labels"]
    return not isinstance(feature, ClassLabel) and feature.dtype.startswith("float")


def _labels(recipe: TextClassification, rows: Dataset) -> dict[str, Any]:
    """The head's configuration: number and names of the classes."""
    if _is_regression(rows):
        return {"num_labels": 1, "problem_type": "regression"}
    feature = rows.features["labels"]
    classes = sorted(set(rows["labels"]))
    known = feature.names if isinstance(feature, ClassLabel) else recipe.glue.label_names if recipe.glue else ()
    names = list(known) or [str(name) for name in classes]
    if not known and classes != list(range(len(classes))):
        raise ValueError(
            f"labels must be whole numbers from 0 on, or a ClassLabel, got {classes[:8]}. A class is the index of a "
            "logit; cast the column: dataset.class_encode_column(...)."
        )
    return {"id2label": dict(enumerate(names)), "label2id": {name: index for index, name in enumerate(names)}}


def _teacher(
    recipe: TextClassification, args: DistillationTrainingArguments, rows: DatasetDict, tokenizer: Any, collator: Any
) -> PreTrainedModel:
    """The fine-tuned teacher, loaded; or trained, saved below output_dir, and found there again by a later run."""
    if recipe.teacher is not None:
        return _load(recipe.teacher, args)
    folder = Path(str(args.output_dir)) / "teacher"
    training = replace(
        args,
        output_dir=str(folder),
        num_train_epochs=recipe.teacher_epochs,
        learning_rate=recipe.teacher_learning_rate,
        max_steps=-1,
        save_strategy="no",
    )
    set_seed(args.seed)
    head = _labels(recipe, rows["train"])  # of another task's head the body is kept, and the head made anew
    teacher = _load(str(recipe.teacher_body), args, ignore_mismatched_sizes=True, **head)
    description = {"arguments": plain_arguments(training), "seed": args.seed}
    key = run_key(teacher, {}, rows_digest(rows["train"]), description)
    if finished_seconds(folder, key) is not None:
        logger.info("taking the teacher that an earlier run fine-tuned: %s", folder)
        return _load(str(folder), args)
    trainer = DistillationTrainer(
        model=teacher,
        args=training,
        objective=Objective(task=TaskLoss()),
        train_dataset=rows["train"],
        data_collator=collator,
        processing_class=tokenizer,
    )
    seconds = trainer.train().metrics["train_runtime"]
    trainer.save_model(str(folder))
    write_record(folder, key, seconds)
    return _load(str(folder), args)  # the trained object stays wrapped in mixed precision


def _student(recipe: TextClassification, teacher: PreTrainedModel) -> PreTrainedModel:
    if recipe.student is not None:
        config = {"id2label": teacher.config.id2label, "label2id": teacher.config.label2id}
        dropout = _dropout(recipe, AutoConfig.from_pretrained(recipe.student))
        model: PreTrainedModel = AutoModelForSequenceClassification.from_pretrained(
            recipe.student, dtype=torch.float32, **config, **dropout
        )
        return model
    student = student_from(
        teacher,
        num_layers=recipe.student_layers,
        layers=recipe.student_layer_choice,
        hidden_size=recipe.student_hidden_size,
        config=_dropout(recipe, teacher.config) or None,
    )
    student.to(dtype=torch.float32)  # type: ignore[call-arg]  # a teacher in half precision, a student in full
    return student


def _dropout(recipe: TextClassification, config: PreTrainedConfig) -> dict[str, float]:
    if recipe.student_dropout is None:
        return {}
    return dict.fromkeys(dropout_fields(config), recipe.student_dropout)


def _load(name: str, args: DistillationTrainingArguments, **config: Any) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForSequenceClassification.from_pretrained(
        name, dtype=args.teacher_dtype, **config
    )
    return model


def _architecture(name: str) -> PreTrainedModel:
    """The architecture without its weights, to read what its forward takes."""
    with torch.device("meta"):
        config = AutoConfig.from_pretrained(name)
        model: PreTrainedModel = AutoModelForSequenceClassification.from_config(config)  # type: ignore[no-untyped-call]
    return model
