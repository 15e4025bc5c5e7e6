"""A finished run is found again, and never another one's."""

from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from toy_models import toy_bert
from training_toys import arguments

from hfdistill.run_record import RECORD, finished_seconds, rows_digest, run_key, write_record

ROWS = {"input_ids": [[index, index + 1] for index in range(300)], "labels": [index % 2 for index in range(300)]}
LOGITS = {"validation": np.zeros((3, 2), dtype=np.float32)}


def key_of(seed: int = 0, logit: float = 0.0, rows: str = "rows", weight: float = 0.0) -> str:
    """The key of a run with one of its ingredients changed."""
    student = toy_bert(seed=0)
    with torch.no_grad():
        next(student.parameters()).view(-1)[0] += weight
    return run_key(student, {"validation": LOGITS["validation"] + np.float32(logit)}, rows, {"seed": seed})


def test_equal_runs_have_equal_keys():
    """Else a broken-off experiment would begin again."""
    assert key_of() == key_of()


@pytest.mark.parametrize("change", [{"seed": 1}, {"logit": 1e-6}, {"rows": "other"}, {"weight": 1e-3}])
def test_whatever_decides_a_result_changes_the_key(change: dict[str, float]):
    """A result of other weights, another teacher, other rows or another seed must not be taken for this one."""
    assert key_of(**change) != key_of()


def test_every_row_counts():
    """Two training sets may differ in the middle alone."""
    changed = {**ROWS, "labels": [*ROWS["labels"][:150], 1 - ROWS["labels"][150], *ROWS["labels"][151:]]}
    assert rows_digest(Dataset.from_dict(ROWS)) == rows_digest(Dataset.from_dict(ROWS))
    assert rows_digest(Dataset.from_dict(changed)) != rows_digest(Dataset.from_dict(ROWS))
    assert rows_digest(Dataset.from_dict(ROWS).shuffle(seed=0)) != rows_digest(Dataset.from_dict(ROWS))


def test_files_that_rows_only_name_count(tmp_path: Path):
    """A row of an image folder holds a path: the image behind it may have been exchanged since."""
    image = tmp_path / "a.png"
    image.write_bytes(b"one")
    rows = Dataset.from_list([{"image": {"bytes": None, "path": str(image)}}])
    before = rows_digest(rows)
    assert rows_digest(rows) == before
    image.write_bytes(b"other")
    assert rows_digest(rows) != before


def test_a_record_is_found_by_its_key_and_gone_when_another_run_begins(tmp_path: Path):
    """A run that is stopped between saving its student and its record must not be taken for the run before it."""
    args = arguments(tmp_path)
    assert finished_seconds(tmp_path, "one", args) is None
    write_record(tmp_path, "one", 12.5)
    (tmp_path / "results.json").write_text("{}")
    (tmp_path / "model.onnx").write_text("")
    assert finished_seconds(tmp_path, "one", args) == 12.5
    assert (tmp_path / "results.json").exists()
    assert finished_seconds(tmp_path, "two", args) is None
    assert [path.name for path in tmp_path.iterdir()] == [RECORD]  # nor figures and exports of the other student
    assert finished_seconds(tmp_path, "one", args) is None


def test_checkpoints_stay_for_their_own_run_alone(tmp_path: Path):
    """A run that goes on from the checkpoint of other arguments would be neither the one nor the other."""
    args = arguments(tmp_path)
    for key, kept in (("one", False), ("one", True), ("two", False)):
        assert finished_seconds(tmp_path, key, args) is None
        assert (tmp_path / "checkpoint-3").is_dir() == kept
        (tmp_path / "checkpoint-3").mkdir(exist_ok=True)
