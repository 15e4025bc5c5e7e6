"""GLUE's tasks: the table, the metrics against scikit-learn and scipy, and rows from a folder of parquet files."""

from __future__ import annotations

import logging
import re
import warnings
from pathlib import Path

import evaluate
import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Value
from scipy import stats
from sklearn import metrics as sklearn_metrics

from hfdistill import glue
from hfdistill.glue import TASKS, load_metric, load_task, metrics, task_named

ROWS = {"train": 12, "validation": 6, "validation_matched": 6, "validation_mismatched": 5}


def small_split(task_name: str, rows: int) -> Dataset:
    """Make rows of a task: a different text in every one, and every class."""
    task = TASKS[task_name]
    texts = {column: [f"{column} {row}" for row in range(rows)] for column in task.text_columns}
    labels = [row / 2 for row in range(rows)] if task.regression else [row % task.num_labels for row in range(rows)]
    kind = Value("float32") if task.regression else ClassLabel(names=list(task.label_names))
    features = Features({**{column: Value("string") for column in task.text_columns}, "label": kind})
    return Dataset.from_dict({**texts, "label": labels}, features=features)


def write(task_name: str, folder: Path, without: tuple[str, ...] = ()) -> Path:
    """Write a small task as parquet files, one per split."""
    folder.mkdir(parents=True, exist_ok=True)
    for split in ("train", *TASKS[task_name].evaluation_splits):
        if split not in without:
            small_split(task_name, ROWS[split]).to_parquet(folder / f"{split}.parquet")
    return folder


# The table.


def test_the_nine_tasks():
    """Nine tasks, and nothing under a name that the hub or `evaluate` does not know."""
    assert list(TASKS) == ["cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli"]
    assert [name for name, task in TASKS.items() if task.name != name] == []


@pytest.mark.parametrize("task", TASKS.values(), ids=lambda task: task.name)
def test_a_task_agrees_with_itself(task: glue.GlueTask):
    """Recipes size the model and choose the best checkpoint by these fields: one that is off fails hours later."""
    assert task.num_labels == (1 if task.name == "stsb" else 3 if task.name == "mnli" else 2)
    assert task.regression == (task.name == "stsb")
    assert task.max_length == (64 if task.name in {"cola", "sst2"} else 128)
    assert task.primary in task.metric_names
    assert set(task.metric_names) <= set(glue.METRICS)


def test_entailment_is_class_1_in_wnli_and_class_0_elsewhere():
    """WNLI's labels run the other way round from RTE's; copying one line to the other would go unseen."""
    assert TASKS["wnli"].label_names == TASKS["rte"].label_names[::-1] == ("not_entailment", "entailment")
    assert TASKS["mnli"].label_names == ("entailment", "neutral", "contradiction")


def test_an_unknown_task_names_the_nearest_first():
    """Most unknown tasks are misspelt ones, and the reader should not search for his."""
    with pytest.raises(ValueError, match=r"got 'sst-2'\. The tasks are sst2, .*cola"):
        task_named("sst-2")
    for use in (load_metric, load_task, lambda name: metrics(name, [0], [0])):
        with pytest.raises(ValueError, match="The tasks are qnli"):
            use("qnly")


# The metrics.


@pytest.mark.parametrize("seed", range(5))
def test_metrics_equal_scikit_learn_and_scipy(seed: int):
    """Published numbers come from these libraries: ours may be faster, never different."""
    random = np.random.default_rng(seed)
    predictions, references = random.integers(0, 2, (2, 50))
    accuracy = sklearn_metrics.accuracy_score(references, predictions)
    assert metrics("sst2", predictions, references) == pytest.approx({"accuracy": accuracy}, rel=1e-12)
    f1 = sklearn_metrics.f1_score(references, predictions)
    for task in ("mrpc", "qqp"):
        assert metrics(task, predictions, references) == pytest.approx({"accuracy": accuracy, "f1": f1}, rel=1e-12)
    matthews = sklearn_metrics.matthews_corrcoef(references, predictions)
    assert metrics("cola", predictions, references) == pytest.approx({"matthews_correlation": matthews}, rel=1e-12)
    scores = np.round(random.uniform(0, 5, 50) * 2) / 2  # with ties
    guesses = np.round(scores + random.normal(size=50), 1)
    correlations = {"pearson": stats.pearsonr(guesses, scores)[0], "spearmanr": stats.spearmanr(guesses, scores)[0]}
    assert metrics("stsb", guesses, scores) == pytest.approx(correlations, rel=1e-12)


def test_metrics_by_hand():
    """Independent of any library: 2 true positives, 1 false positive, 1 false negative, 1 true negative."""
    predictions, references = [1, 1, 1, 0, 0], [1, 1, 0, 1, 0]
    assert metrics("mrpc", predictions, references) == pytest.approx({"accuracy": 3 / 5, "f1": 2 / 3})
    # (TP TN - FP FN) / sqrt((TP+FP)(TP+FN)(TN+FP)(TN+FN)) = (2 - 1) / sqrt(3 * 3 * 2 * 2)
    assert metrics("cola", predictions, references) == pytest.approx({"matthews_correlation": 1 / 6})
    # Of 1, 2, 3 and 1, 3, 2: covariance 1/3, variances 2/3; ranks are the same numbers.
    assert metrics("stsb", [1, 2, 3], [1, 3, 2]) == pytest.approx({"pearson": 0.5, "spearmanr": 0.5})


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("constant", ["predictions", "references", "both"])
def test_constant_sides_give_a_number_and_no_warning(task: str, constant: str):
    """A student that learnt nothing is a result to report, not a NaN or a crash at the end of training."""
    varied, same = np.array([0, 1, 0, 1, 1]), np.zeros(5, dtype=int)
    sides = (same if constant != "references" else varied, same if constant != "predictions" else varied)
    values = metrics(task, *sides)
    assert [values[name] for name in values if name != "accuracy"] == [0.0] * (len(values) - ("accuracy" in values))
    if "accuracy" in values:
        assert values["accuracy"] == pytest.approx(1.0 if constant == "both" else 0.4)


def test_logits_are_taken_too():
    """Trainer hands logits to compute_metrics; regression comes as one column."""
    logits, references = np.array([[2.0, 1.0], [0.1, 0.2], [3.0, -1.0]]), [0, 1, 1]
    assert metrics("sst2", logits, references) == metrics("sst2", [0, 1, 0], references) == {"accuracy": 2 / 3}
    column = np.array([[1.0], [2.0], [4.0]])
    assert metrics("stsb", column, [1.0, 3.0, 2.0]) == metrics("stsb", column[:, 0], [1.0, 3.0, 2.0])


@pytest.mark.parametrize(
    ("task", "predictions", "references", "message"),
    [
        ("sst2", np.zeros((3, 3)), [0, 1, 0], r"logits \(B, 2\).*got \(3, 3\)"),
        ("sst2", [0, 1], [0, 1, 0], r"got \(2,\) and \(3,\)"),
        ("sst2", [], [], "B >= 1"),
        ("sst2", [0.2, 0.9], [0, 1], "as integers, got float64"),
        ("sst2", [0, 2], [0, 1], "classes 0 to 1"),
        ("mnli", [0, 2], [0, -1], "-1 marks rows without a label"),
        ("sst2", [[np.nan, 0.0]], [0], "finite"),
        ("stsb", [np.inf, 0.0], [0.0, 1.0], "finite"),
        ("stsb", np.zeros((2, 2)), [0.0, 1.0], r"\(B, 1\)"),
    ],
)
def test_unscorable_input_is_refused(task: str, predictions: object, references: object, message: str):
    """Numpy would broadcast or compare most of these to some number that looks like a score."""
    with pytest.raises(ValueError, match=message):
        metrics(task, predictions, references)


def test_offline_the_metric_is_ours_and_says_so(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch):
    """Without a hub the run must go on, must not try, and its log must tell where the numbers come from."""
    monkeypatch.setattr(evaluate, "load", lambda *_: pytest.fail("tried the hub although HF_HUB_OFFLINE is set"))
    with caplog.at_level(logging.INFO):
        metric = load_metric("mrpc")
    assert metric.source == "offline"
    assert "mrpc: offline (HF_HUB_OFFLINE is set)" in caplog.text
    assert metric([1, 0], [1, 1]) == metrics("mrpc", [1, 0], [1, 1])


@pytest.mark.parametrize("error", [ConnectionError("no route"), FileNotFoundError("no such module")])
def test_an_unreachable_hub_falls_back(
    error: OSError, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    """A machine can be offline without saying so in HF_HUB_OFFLINE."""

    def load(*_: str) -> None:
        raise error

    monkeypatch.setattr(glue, "is_offline_mode", lambda: False)
    monkeypatch.setattr(evaluate, "load", load)
    with caplog.at_level(logging.INFO):
        assert load_metric("cola").source == "offline"
    assert f"not reachable: {error}" in caplog.text


def test_a_reachable_hub_gives_evaluates_metric(monkeypatch: pytest.MonkeyPatch):
    """It takes classes, not logits, and may be undefined for constant ones: both sources are called alike."""

    class Module:
        def compute(self, predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
            assert predictions.tolist() == [0, 0, 0]
            warnings.warn("constant", stacklevel=2)
            return {"matthews_correlation": float("nan")}

    asked = []
    monkeypatch.setattr(glue, "is_offline_mode", lambda: False)
    monkeypatch.setattr(evaluate, "load", lambda *names: asked.append(names) or Module())
    metric = load_metric("cola")
    assert (metric.source, asked) == ("evaluate", [("glue", "cola")])
    assert metric([[1.0, 0.0]] * 3, [0, 1, 1]) == {"matthews_correlation": 0.0}


# The rows.


@pytest.mark.parametrize("task", ["sst2", "mnli", "stsb"])
@pytest.mark.parametrize("nested", [True, False])
def test_rows_from_a_folder(task: str, nested: bool, tmp_path: Path):
    """data_dir may hold all tasks or be the task's own folder; nothing may be lost or reordered on the way."""
    write(task, tmp_path / "data" / task if nested else tmp_path / "data")
    loaded = load_task(task, data_dir=tmp_path / "data", cache_dir=tmp_path / "cache")
    assert list(loaded) == ["train", *TASKS[task].evaluation_splits]
    for split, rows in loaded.items():
        assert rows.to_dict() == small_split(task, ROWS[split]).to_dict()


def test_a_split_in_parts(tmp_path: Path):
    """A copy of the hub's repository holds train-00000-of-00001.parquet and the like."""
    write("sst2", tmp_path, without=("train",))
    for part in range(2):
        small_split("sst2", 4 + part).to_parquet(tmp_path / f"train-0000{part}-of-00002.parquet")
    loaded = load_task("sst2", data_dir=tmp_path, cache_dir=tmp_path / "cache")
    assert loaded["train"]["sentence"][:] == [f"sentence {row}" for row in (*range(4), *range(5))]


def test_train_rows_are_a_fixed_random_beginning(tmp_path: Path):
    """A comparison draws the same rows for every arm, and its learning curve adds rows instead of changing them."""
    write("sst2", tmp_path)

    def drawn(count: int | None, seed: int = 0) -> list[str]:
        loaded = load_task("sst2", data_dir=tmp_path, cache_dir=tmp_path / "cache", train_rows=count, seed=seed)
        assert len(loaded["validation"]) == ROWS["validation"]
        return loaded["train"]["sentence"][:]

    everything = drawn(None)
    assert drawn(5) == drawn(8)[:5]
    assert drawn(5) != everything[:5]
    assert sorted(drawn(12)) == sorted(everything)
    assert drawn(12, seed=1) != drawn(12)
    for count in (0, 13):
        with pytest.raises(ValueError, match=f"train_rows from 1 to 12, .* got {count}"):
            drawn(count)


def test_a_missing_evaluation_split_is_told_and_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """MNLI can be scored on the matched split alone, but the reader must know that the other one is missing."""
    write("mnli", tmp_path, without=("validation_mismatched",))
    loaded = load_task("mnli", data_dir=tmp_path, cache_dir=tmp_path / "cache")
    assert list(loaded) == ["train", "validation_matched"]
    assert f"mnli: no validation_mismatched in {tmp_path}" in caplog.text


@pytest.mark.parametrize("without", [("train",), ("validation",), ("train", "validation")])
def test_missing_splits_are_named(without: tuple[str, ...], tmp_path: Path):
    """The usual cause is a wrong folder: the message says where it looked, for what, and what is there."""
    write("sst2", tmp_path / "sst2", without=without)
    (tmp_path / "sst2" / "notes.txt").touch()
    with pytest.raises(ValueError, match=r"notes\.txt") as caught:
        load_task("sst2", data_dir=tmp_path, cache_dir=tmp_path / "cache")
    assert f"expected {', '.join(f'{split}.parquet' for split in without)} in {tmp_path / 'sst2'}" in str(caught.value)
    assert ("train.parquet'" in str(caught.value)) == ("train" not in without)


def test_a_missing_folder_is_named(tmp_path: Path):
    """`datasets` would look such a path up on the hub and speak of a repository."""
    with pytest.raises(ValueError, match=f"{re.escape(str(tmp_path / 'nowhere'))}: no such folder"):
        load_task("sst2", data_dir=tmp_path / "nowhere", cache_dir=tmp_path / "cache")


def replaced(split: str, rows: Dataset, folder: Path) -> Path:
    """Write small sst2 files with one split replaced."""
    write("sst2", folder)
    rows.to_parquet(folder / f"{split}.parquet")
    return folder


def test_missing_columns_are_named(tmp_path: Path):
    """The tokenizer's KeyError would name one column and neither the split nor the file's own."""
    rows = small_split("sst2", 4).rename_column("sentence", "text")
    with pytest.raises(ValueError, match=r"split validation: .*missing \['sentence'\], found \['text', 'label'\]"):
        load_task("sst2", data_dir=replaced("validation", rows, tmp_path), cache_dir=tmp_path / "cache")


def test_an_empty_split_is_refused(tmp_path: Path):
    """A metric over no rows is NaN, found after training."""
    with pytest.raises(ValueError, match="split validation: expected rows, found none"):
        load_task(
            "sst2", data_dir=replaced("validation", small_split("sst2", 0), tmp_path), cache_dir=tmp_path / "cache"
        )


def test_labels_in_another_order_are_refused(tmp_path: Path):
    """A flipped label order trains without complaint and distils the opposite of what the teacher says."""
    rows = small_split("sst2", 4).cast_column("label", ClassLabel(names=["positive", "negative"]))
    with pytest.raises(
        ValueError, match=r"\['negative', 'positive'\] in this order, found \['positive', 'negative'\]"
    ):
        load_task("sst2", data_dir=replaced("train", rows, tmp_path), cache_dir=tmp_path / "cache")


@pytest.mark.parametrize("label", [-1, 2, None])
def test_labels_outside_the_task_are_refused(label: int | None, tmp_path: Path):
    """-1, as in GLUE's test splits, would be ignored or crash on a device, depending on the loss."""
    rows = Dataset.from_dict({"sentence": ["a", "b"], "label": [0, label]})
    with pytest.raises(ValueError, match=rf"labels 0 to 1, and found \['{label}'\]"):
        load_task("sst2", data_dir=replaced("train", rows, tmp_path), cache_dir=tmp_path / "cache")


def test_without_a_folder_and_a_hub_the_error_says_what_to_do(tmp_path: Path):
    """Offline, `datasets` says only that it could not reach something."""
    with pytest.raises(ConnectionError, match=r"nyu-mll/glue, which cannot be reached .* pass data_dir="):
        load_task("sst2", cache_dir=tmp_path)


def test_from_the_hub_the_unlabelled_test_split_is_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """GLUE's test splits have -1 for every label; the task and the cache must reach `load_dataset` as given."""
    asked = []
    splits = {name: small_split("sst2", 3) for name in ("train", "validation", "test")}
    monkeypatch.setattr(glue, "load_dataset", lambda *names, **options: asked.append((names, options)) or splits)
    assert list(load_task("sst2", cache_dir=tmp_path)) == ["train", "validation"]
    assert asked == [(("nyu-mll/glue", "sst2"), {"cache_dir": str(tmp_path)})]


@pytest.mark.data
@pytest.mark.parametrize(
    ("task", "rows"),
    [
        ("cola", (8551, 1043)),
        ("sst2", (67349, 872)),
        ("rte", (2490, 277)),
        ("wnli", (635, 71)),
        ("mnli", (9999, 9815)),
    ],
)
def test_real_rows(task: str, rows: tuple[int, int], shared: Path, tmp_path: Path):
    """Columns, label names and counts of the real files, not of files made to fit the table."""
    loaded = load_task(task, data_dir=shared / "data" / "glue", cache_dir=tmp_path)
    assert tuple(len(split) for split in loaded.values()) == rows


@pytest.mark.data
def test_majority_class_of_real_rows(shared: Path, tmp_path: Path):
    """SST-2's validation split has 444 positive rows of 872, as published: the floor of every comparison."""
    references = load_task("sst2", data_dir=shared / "data" / "glue", cache_dir=tmp_path)["validation"]["label"][:]
    assert metrics("sst2", [1] * len(references), references) == {"accuracy": pytest.approx(444 / 872)}
