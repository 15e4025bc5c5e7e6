"""The nine GLUE tasks: their columns, labels, splits and metrics, and their rows from a folder or from the hub.

The metrics need no network: they have the names and the values of `evaluate.load("glue", task)`. Shares and
correlations are in [-1, 1], never percent. The official test splits carry no labels and are not loaded.
"""

import logging
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from datasets import ClassLabel, Dataset, DatasetDict, load_dataset
from huggingface_hub import is_offline_mode
from pyarrow.parquet import read_metadata  # type: ignore[import-untyped]
from scipy.stats import pearsonr
from scipy.stats import spearmanr as rank_correlation
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

Array: TypeAlias = npt.NDArray[Any]
HUB_DATASET = "nyu-mll/glue"
LABEL_COLUMN = "label"
logger = logging.getLogger(__name__)


# What the metrics are: scikit-learn's and scipy's, with 0 where a constant side leaves them undefined.


def accuracy(predictions: Array, references: Array) -> float:
    """Share of equal labels."""
    return float(accuracy_score(references, predictions))


def f1(predictions: Array, references: Array) -> float:
    """F1 of class 1; 0 when class 1 is neither predicted nor there."""
    return float(f1_score(references, predictions, zero_division=0))


def pearson(predictions: Array, references: Array) -> float:
    """Pearson's correlation; 0 when one side is constant."""
    return 0.0 if _constant(predictions, references) else float(pearsonr(predictions, references).statistic)


def spearmanr(predictions: Array, references: Array) -> float:
    """Spearman's rank correlation; 0 when one side is constant."""
    return 0.0 if _constant(predictions, references) else float(rank_correlation(predictions, references).statistic)


def matthews_correlation(predictions: Array, references: Array) -> float:
    """Matthews' correlation of two binary labels; 0 when one side is constant."""
    return 0.0 if _constant(predictions, references) else float(matthews_corrcoef(references, predictions))


def _constant(*sides: Array) -> bool:
    return any(np.ptp(side) == 0 for side in sides)


_METRICS = (accuracy, f1, matthews_correlation, pearson, spearmanr)
METRICS: Mapping[str, Callable[[Array, Array], float]] = {metric.__name__: metric for metric in _METRICS}


@dataclass(frozen=True)
class GlueTask:
    """One task.

    Args:
        name: As the hub and `evaluate` call it.
        text_columns: One column, or the two of a pair in the order in which a tokenizer takes them.
        label_names: By class index; empty for regression.
        metric_names: GLUE's metrics of the task, all of METRICS.
        primary: The one that stands for the task in a table, by Devlin et al. 2019 (BERT), arXiv 1810.04805, Table 1:
            F1 for QQP and MRPC, Spearman for STS-B, accuracy for the others; Matthews for CoLA, as GLUE has no other.
        evaluation_splits: Splits with labels that are not trained on.
    """

    name: str
    text_columns: tuple[str, ...]
    label_names: tuple[str, ...]
    metric_names: tuple[str, ...] = ("accuracy",)
    primary: str = "accuracy"
    evaluation_splits: tuple[str, ...] = ("validation",)

    @property
    def regression(self) -> bool:
        """Whether the label is a number instead of a class."""
        return not self.label_names

    @property
    def num_labels(self) -> int:
        """Number of outputs: classes, or 1 for regression."""
        return len(self.label_names) or 1

    @property
    def max_length(self) -> int:
        """Tokens that are kept, special ones included: 64 for a sentence, 128 for a pair, the field's habit."""
        return 64 if len(self.text_columns) == 1 else 128


_SENTENCES = ("sentence1", "sentence2")
_ENTAILMENT = ("entailment", "not_entailment")
_MATTHEWS = "matthews_correlation"
TASKS: Mapping[str, GlueTask] = {
    task.name: task
    for task in (
        GlueTask("cola", ("sentence",), ("unacceptable", "acceptable"), (_MATTHEWS,), _MATTHEWS),
        GlueTask("sst2", ("sentence",), ("negative", "positive")),
        GlueTask("mrpc", _SENTENCES, ("not_equivalent", "equivalent"), ("accuracy", "f1"), "f1"),
        GlueTask("stsb", _SENTENCES, (), ("pearson", "spearmanr"), "spearmanr"),
        GlueTask("qqp", ("question1", "question2"), ("not_duplicate", "duplicate"), ("accuracy", "f1"), "f1"),
        GlueTask(
            "mnli",
            ("premise", "hypothesis"),
            ("entailment", "neutral", "contradiction"),
            evaluation_splits=("validation_matched", "validation_mismatched"),
        ),
        GlueTask("qnli", ("question", "sentence"), _ENTAILMENT),
        GlueTask("rte", _SENTENCES, _ENTAILMENT),
        GlueTask("wnli", _SENTENCES, ("not_entailment", "entailment")),
    )
}


def task_named(name: str) -> GlueTask:
    """Look a task up.

    Raises:
        ValueError: There is no such task; the nearest names come first.
    """
    if name not in TASKS:
        nearest = get_close_matches(name, TASKS, n=len(TASKS), cutoff=0.0)
        raise ValueError(f"expected a GLUE task, got {name!r}. The tasks are {', '.join(nearest)}.")
    return TASKS[name]


def metrics(task: str, predictions_or_logits: npt.ArrayLike, references: npt.ArrayLike) -> dict[str, float]:
    """Score predictions by GLUE's metrics of the task.

    Args:
        task: Name of the task.
        predictions_or_logits: Classes (B,) as integers, or logits (B, K); for stsb numbers (B,) or (B, 1).
        references: (B,), classes or numbers.

    Raises:
        ValueError: Shapes, classes or numbers that are none of the task's, and NaN.
    """
    wanted, predicted, expected = _scorable(task, predictions_or_logits, references)
    return {name: METRICS[name](predicted, expected) for name in wanted.metric_names}


@dataclass(frozen=True)
class LoadedMetric:
    """GLUE's metrics of one task, called like `metrics` without the task.

    Args:
        task: Name of the task.
        source: Where the values come from, "evaluate" or "offline" (`metrics`).
        compute: The `compute` of `evaluate`'s metric, or None.
    """

    task: str
    source: str
    compute: Callable[..., Mapping[str, float]] | None = None

    def __call__(self, predictions_or_logits: npt.ArrayLike, references: npt.ArrayLike) -> dict[str, float]:
        """Score predictions; Args and Raises as in `metrics`."""
        if self.compute is None:
            return metrics(self.task, predictions_or_logits, references)
        _, predicted, expected = _scorable(self.task, predictions_or_logits, references)
        with warnings.catch_warnings():  # a constant side is 0 in `metrics`, a warning and perhaps NaN there
            warnings.simplefilter("ignore")
            values = self.compute(predictions=predicted, references=expected)
        return {name: float(np.nan_to_num(value)) for name, value in values.items()}


def load_metric(task: str) -> LoadedMetric:
    """Load `evaluate`'s GLUE metric if the hub can be reached, or else the offline one; log which, see `source`.

    `evaluate` downloads its metric as code and runs it; HF_HUB_OFFLINE=1 keeps it from that.

    Raises:
        ValueError: There is no such task.
    """
    name = task_named(task).name
    if is_offline_mode():
        loaded, reason = LoadedMetric(name, "offline"), "HF_HUB_OFFLINE is set"
    else:
        import evaluate  # slow to import, and not needed offline

        try:
            loaded, reason = (
                LoadedMetric(name, "evaluate", evaluate.load("glue", name).compute),
                "the hub is reachable",
            )
        except OSError as error:  # a ConnectionError is one, and so is evaluate's FileNotFoundError
            loaded, reason = LoadedMetric(name, "offline"), f"the hub is not reachable: {error}"
    logger.info("GLUE metrics of %s: %s (%s)", name, loaded.source, reason)
    return loaded


def _scorable(
    task: str, predictions_or_logits: npt.ArrayLike, references: npt.ArrayLike
) -> tuple[GlueTask, Array, Array]:
    wanted = task_named(task)
    predicted, expected = np.asarray(predictions_or_logits), np.asarray(references)
    if predicted.ndim == 2 and predicted.shape[1] == wanted.num_labels:
        _require_finite(wanted, predicted)
        predicted = predicted[:, 0] if wanted.regression else predicted.argmax(axis=1)  # (B, K) -> (B,)
    if predicted.ndim != 1 or predicted.shape != expected.shape or len(expected) == 0:
        raise ValueError(
            f"{task} needs predictions (B,) or logits (B, {wanted.num_labels}) and references (B,), B >= 1, got "
            f"{np.shape(predictions_or_logits)} and {expected.shape}. Each row is scored against its own reference."
        )
    for values in (predicted, expected):
        (_require_finite if wanted.regression else _require_classes)(wanted, values)
    return wanted, predicted, expected


def _require_finite(task: GlueTask, values: Array) -> None:
    if not np.isfinite(values).all():
        raise ValueError(f"{task.name} needs finite numbers, got NaN or infinity: look for a run that diverged.")


def _require_classes(task: GlueTask, values: Array) -> None:
    if not (np.issubdtype(values.dtype, np.integer) and ((values >= 0) & (values < task.num_labels)).all()):
        raise ValueError(
            f"{task.name} needs classes 0 to {task.num_labels - 1} as integers, got {values.dtype} with values "
            f"{np.unique(values)[:5]}. Logits are accepted as (B, {task.num_labels}); -1 marks rows without a label."
        )


# The rows.


def load_task(
    task: str,
    data_dir: str | Path | None = None,
    cache_dir: str | Path | None = None,
    train_rows: int | None = None,
    seed: int = 0,
) -> DatasetDict:
    """Load the train split and the evaluation splits of a task.

    Args:
        task: Name of the task.
        data_dir: Folder with <task>/train.parquet, <task>/validation.parquet, ..., or with these files themselves; a
            split may lie in parts, train-00000-of-00002.parquet. Without it the rows come from the hub.
        cache_dir: Where `datasets` keeps its tables; its own default without it.
        train_rows: Train on this many rows, drawn at random; a smaller draw is the beginning of a larger one.
        seed: Of the draw.

    Raises:
        ValueError: Unknown task; no folder, train split or evaluation split; no rows, columns or labels of the task;
            more train_rows than there are.
        ConnectionError: Without data_dir, the hub cannot be reached.
    """
    wanted = task_named(task)
    cache = None if cache_dir is None else str(cache_dir)
    loaded = _from_hub(wanted, cache) if data_dir is None else _from_folder(wanted, Path(data_dir), cache)
    for split, rows in loaded.items():
        _check(wanted, split, rows)
    if train_rows is not None:
        loaded["train"] = _draw(loaded["train"], train_rows, seed)
    return DatasetDict(loaded)


def _from_hub(task: GlueTask, cache_dir: str | None) -> dict[str, Dataset]:
    try:
        splits = load_dataset(HUB_DATASET, task.name, cache_dir=cache_dir)
        return {split: splits[split] for split in ("train", *task.evaluation_splits)}
    except ConnectionError as error:
        raise ConnectionError(
            f"expected {task.name} on the hub as {HUB_DATASET}, which cannot be reached ({error}). Allow the network, "
            "or pass data_dir=, a folder with the task's parquet files."
        ) from error


def _from_folder(task: GlueTask, data_dir: Path, cache_dir: str | None) -> dict[str, Dataset]:
    folder = data_dir / task.name if (data_dir / task.name).is_dir() else data_dir
    files = {
        split: sorted(
            str(path) for pattern in (f"{split}.parquet", f"{split}-*.parquet") for path in folder.glob(pattern)
        )
        for split in ("train", *task.evaluation_splits)
    }
    absent = [split for split, paths in files.items() if not paths]
    if "train" in absent or len(absent) == len(task.evaluation_splits):
        there = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else "no such folder"
        raise ValueError(
            f"expected {'.parquet, '.join(absent)}.parquet in {data_dir / task.name} or in {data_dir}, found in "
            f"{folder}: {there}. Training needs the train split of {task.name}, its score another one."
        )
    if absent:
        logger.warning("%s: no %s in %s; it is left out", task.name, ", ".join(absent), folder)
    for split, paths in files.items():
        if paths and not any(read_metadata(path).num_rows for path in paths):  # datasets would name no file
            raise ValueError(f"{task.name}, split {split}: expected rows, found none in {paths}. Write it again.")
    # Split by split: together, a split with other columns fails in datasets before it can be named here.
    return {
        split: load_dataset("parquet", data_files={split: paths}, split=split, cache_dir=cache_dir)
        for split, paths in files.items()
        if paths
    }


def _check(task: GlueTask, split: str, rows: Dataset) -> None:
    columns = [*task.text_columns, LABEL_COLUMN]
    if missing := [name for name in columns if name not in rows.column_names]:
        raise ValueError(
            f"{task.name}, split {split}: expected the columns {columns}, missing {missing}, found "
            f"{rows.column_names}. They are the hub's names; rename yours, or see whether the file is another task's."
        )
    if task.regression:
        return
    label = rows.features[LABEL_COLUMN]
    if isinstance(label, ClassLabel) and tuple(label.names) != task.label_names:
        raise ValueError(
            f"{task.name}, split {split}: expected the labels {list(task.label_names)} in this order, found "
            f"{label.names}. Student and teacher must mean the same by a class; map the labels to the hub's order."
        )
    if unknown := set(rows.unique(LABEL_COLUMN)) - set(range(task.num_labels)):
        raise ValueError(
            f"{task.name}, split {split}: expected labels 0 to {task.num_labels - 1}, and found "
            f"{sorted(map(str, unknown))}. -1 marks rows without a label, which can be neither trained on nor scored."
        )


def _draw(rows: Dataset, count: int, seed: int) -> Dataset:
    if not 1 <= count <= len(rows):
        raise ValueError(
            f"expected train_rows from 1 to {len(rows)}, the rows of the train split, got {count}. A result must not "
            "claim more rows than it had; leave train_rows out to train on all."
        )
    return rows.select(np.random.default_rng(seed).permutation(len(rows))[:count])
