"""Distil a text classifier, from a description that a file or the command line can give.

`TextClassification` says what: the task, the teacher (or what to fine-tune into one), the student, the arms.
`distil_text_classifier` does it: data, teacher, an Experiment over arms and seeds, results.json and results.md. All
nine GLUE tasks are known by name; any other data set needs its columns named.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from datasets import ClassLabel, Dataset, DatasetDict, load_dataset
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from hfdistill.anatomy import Anatomy
from hfdistill.arguments import DistillationTrainingArguments
from hfdistill.classification import (
    Classification,
    ClassificationData,
    Inputs,
    distil_classifier,
    prepared_experiment,
)
from hfdistill.compatibility import check_tokenizers
from hfdistill.evaluation import Array
from hfdistill.experiment import Comparison, Experiment, Metrics
from hfdistill.glue import HUB_DATASET, GlueTask, accuracy, load_metric, load_task, metrics, task_named
from hfdistill.model_loading import explained_loading


@dataclass
class TextClassification(Classification):
    """What to distil; the training itself is described by DistillationTrainingArguments.

    Args:
        task: one of the nine GLUE tasks; None for data of one's own.
        data_dir: folder of parquet files (<data_dir>/<task>/train.parquet, ...); without it rows come from the hub.
        dataset: hub name or folder of a data set of one's own, with the splits train and validation.
        text_columns: one column, or the two of a pair, of a data set of one's own.
        label_column: its label; a ClassLabel, integers, or numbers for regression.
        max_length: tokens per row; None: 64 for a sentence, 128 for a pair.

    Teacher, student and arms are described as `Classification` says.

    Raises:
        ValueError: what is given does not describe a task, a teacher or a student.
    """

    task_tag: ClassVar[str] = "text-classification"
    auto_model: ClassVar[Any] = AutoModelForSequenceClassification

    task: str | None = field(default=None, metadata={"help": "One of the nine GLUE tasks."})
    data_dir: str | None = field(default=None, metadata={"help": "Folder of parquet files; else the hub."})
    dataset: str | None = field(default=None, metadata={"help": "Hub name or folder of a data set of your own."})
    text_columns: list[str] = field(default_factory=list, metadata={"help": "Its text column, or a pair's two."})
    label_column: str = field(default="label", metadata={"help": "Its label column."})
    max_length: int | None = field(default=None, metadata={"help": "Tokens per row; None: 64, or 128 for a pair."})

    def __post_init__(self) -> None:
        """Check what can be checked before anything is loaded."""
        if self.task is not None:
            task_named(self.task)
        elif self.dataset is None or not self.text_columns:
            raise ValueError(
                "say what to train on: task=..., one of the GLUE tasks, or dataset=... with text_columns=[...] for "
                "data of your own."
            )
        _check_one_source(self)
        super().__post_init__()

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
    return distil_classifier(recipe, text_experiment(recipe, args))


def text_experiment(recipe: TextClassification, args: DistillationTrainingArguments) -> Experiment:
    """The experiment that the recipe describes: rows tokenized, teacher loaded, no student trained yet.

    Args:
        recipe: what to distil.
        args: how each student is trained.

    Raises:
        ValueError: columns, labels, teacher and student do not fit together.
    """
    rows = load_rows(recipe)
    tokenizer = _tokenizer(recipe.source, "teacher", args)
    if recipe.student is not None:
        check_tokenizers(_tokenizer(recipe.student, "student", args), tokenizer)
    models = [name for name in (recipe.source, recipe.student) if name is not None]
    token_types = any("token_type_ids" in Anatomy.of(_architecture(name, args)).input_names for name in models)
    with args.main_process_first(local=False, desc="tokenizing"):  # the others take it from the cache
        tokenized = tokenize(rows, recipe, tokenizer, token_types)
    collator = DataCollatorWithPadding(tokenizer)
    inputs = Inputs(tokenizer, collator, collator)
    metric, measured, resampled = _metrics(recipe, tokenized["train"])
    data = ClassificationData(
        train=tokenized["train"],
        evaluation={split: _by_length(tokenized[split]) for split in tokenized if split != "train"},
        student=inputs,
        teacher=inputs,
        labels=_labels(recipe, tokenized["train"]),
        metrics=measured,
        metric=metric,
        resampled=resampled,
        record=_record(recipe),
    )
    return prepared_experiment(recipe, args, data)


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


def _labels(recipe: TextClassification, rows: Dataset) -> list[str]:
    """Names of the classes, by index; none for regression."""
    if _is_regression(rows):
        return []
    feature = rows.features["labels"]
    classes = sorted(set(rows["labels"]))
    known = feature.names if isinstance(feature, ClassLabel) else recipe.glue.label_names if recipe.glue else ()
    if not known and classes != list(range(len(classes))):
        raise ValueError(
            f"labels must be whole numbers from 0 on, or a ClassLabel, got {classes[:8]}. A class is the index of a "
            "logit; cast the column: dataset.class_encode_column(...)."
        )
    return list(known) or [str(name) for name in classes]


def _record(recipe: TextClassification) -> dict[str, str]:
    if recipe.task is not None:
        return {"name": HUB_DATASET, "config": recipe.task}
    name = str(recipe.dataset)
    return {"name": Path(name).name if Path(name).exists() else name}  # a path says nothing on another machine


def _architecture(name: str, args: DistillationTrainingArguments) -> PreTrainedModel:
    """The architecture without its weights, to read what its forward takes."""
    trusted = {"trust_remote_code": args.trust_remote_code}
    with torch.device("meta"), explained_loading(name, "model"):
        config = AutoConfig.from_pretrained(name, **trusted)
        auto: Any = AutoModelForSequenceClassification
        model: PreTrainedModel = auto.from_config(config, **trusted)
    return model


def _tokenizer(name: str, role: str, args: DistillationTrainingArguments) -> PreTrainedTokenizerBase:
    with explained_loading(name, f"{role}'s tokenizer"):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            name, trust_remote_code=args.trust_remote_code
        )
    return tokenizer


def _check_one_source(recipe: TextClassification) -> None:
    """Refuse what would silently not be read."""
    unread = [name for name in ("dataset", "text_columns") if recipe.task is not None and vars(recipe)[name]]
    unread += ["data_dir"] if recipe.task is None and recipe.data_dir else []
    if unread:
        raise ValueError(
            f"{unread[0]} would not be read: rows come from the GLUE task ({recipe.task}, from data_dir or the hub) "
            "or from a dataset of your own with text_columns. Leave out the one or the other."
        )
    if len(recipe.text_columns) > 2:
        raise ValueError(
            f"text_columns must be one column, or the two of a pair, got {recipe.text_columns}. A tokenizer takes no "
            "more; join columns before."
        )
    if recipe.max_length is not None and recipe.max_length < 3:
        raise ValueError(
            f"max_length must be at least 3 tokens, got {recipe.max_length}: two are the tokenizer's own. Leave it "
            "out for 64, or 128 for a pair."
        )
