"""A batch brings along what the teacher showed of it, neither model is given that, and what is unknown is said."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from cached_runs import CountingTeacher
from stored_rows import TEACHER
from training_toys import collate, text_rows
from transformers import BatchEncoding

from hfdistill import Batch, Needs, UnknownRowsError
from hfdistill.representations import CACHED, ROW_KEYS
from hfdistill.teacher_cache.collator import CachedRows, real_tokens
from hfdistill.teacher_cache.entries import Entries
from hfdistill.teacher_cache.store import Layout, Store
from hfdistill.teacher_tokens import own_inputs, without_teachers

ROWS = list(text_rows(6))
NEEDS = Needs(logits=True, pooled_states=frozenset({(4, "cls")}))


def rows_of(folder: Path, fills: bool = True, token_labels: str = "", collator: Any = collate) -> CachedRows:
    """A collator of the toy teacher's rows."""
    entries = Entries(NEEDS, CountingTeacher().anatomy)
    return CachedRows(collator, Store.open(folder, TEACHER, Layout(entries.kinds)), entries, fills, token_labels)


def keep(cached: CachedRows, rows: list[Any]) -> None:
    """Show rows to the teacher and keep what it shows."""
    batch = collate(rows)
    shown = CountingTeacher().represent(batch, Needs(logits=True, hidden_states=frozenset({4})))
    keys = [bytes(key) for key in cached(rows)[ROW_KEYS].tolist()]
    real = real_tokens(batch, cached.entries.teacher.input_names)
    cached.store.append(keys, cached.entries.rows(shown, real, len(rows)))


def test_what_is_missing_is_named_and_what_is_there_comes_along(tmp_path: Path) -> None:
    """The one or the other, for the whole batch: half a batch of knowledge cannot be learnt from."""
    cached = rows_of(tmp_path)
    batch = cached(ROWS[:3])
    assert CACHED not in batch
    assert batch[ROW_KEYS].shape == (3, 16)
    keep(cached, ROWS[:3])
    assert ROW_KEYS in cached(ROWS[2:5]), "one row of it is there, two are not"
    found = cached([ROWS[2], ROWS[0]])
    assert ROW_KEYS not in found
    assert found[CACHED]["pooled_states/4/cls"].shape == (2, 16)
    theirs = CountingTeacher().represent(collate([ROWS[2], ROWS[0]]), Needs(logits=True)).logits
    torch.testing.assert_close(found[CACHED]["logits"], theirs, rtol=1e-5, atol=1e-6)


def test_neither_model_is_given_it() -> None:
    """A model called with an argument that it does not know stops the run."""
    batch = {**collate(ROWS[:2]), CACHED: {"logits": torch.zeros(2, 3)}, ROW_KEYS: torch.zeros(2, 16)}
    ours, theirs = ("input_ids", "attention_mask"), ("input_ids", "attention_mask")
    assert not {CACHED, ROW_KEYS} & without_teachers(batch, ours, theirs).keys()
    assert own_inputs(batch) == {}, "nor taken for columns of the teacher's own"
    assert Batch.of(batch).size == 2
    assert Batch.of({CACHED: batch[CACHED], **collate(ROWS[:2])}).size == 2


def test_a_worker_reads_what_was_written_since(tmp_path: Path) -> None:
    """A worker holds its own copy of the collator, made before the first row was kept."""
    cached = rows_of(tmp_path)
    worker = pickle.loads(pickle.dumps(cached))  # what a data loader does to start a worker
    keep(cached, ROWS[:2])
    assert ROW_KEYS in worker(ROWS[:2])
    cached.store.flush()
    assert CACHED in worker(ROWS[:2])


def test_rows_that_nobody_knows_are_counted(tmp_path: Path) -> None:
    """Without a teacher to ask the run must stop before it learns from nothing, and say what to do."""
    filling = rows_of(tmp_path)
    keep(filling, ROWS[:2])
    filling.store.flush()
    cached = rows_of(tmp_path, fills=False)
    assert CACHED in cached(ROWS[:2])
    with pytest.raises(UnknownRowsError, match=r"2 of 4 rows(.|\n)*fill_cache"):
        cached(ROWS[:4])


@pytest.mark.parametrize("ignored", [-100, 0])
def test_labels_in_the_padding_are_refused(ignored: int, tmp_path: Path) -> None:
    """The teacher's answers to padding are not kept, so that a label there would be learnt against 0."""

    def labelled(rows: list[Any]) -> dict[str, Any]:
        batch = collate(rows)
        batch["labels"] = torch.where(batch["attention_mask"].bool(), 1, ignored)
        return batch

    cached = rows_of(tmp_path, token_labels="labels", collator=labelled)
    if ignored == -100:
        assert ROW_KEYS in cached(ROWS[:3])
    else:
        with pytest.raises(ValueError, match="Pad labels with -100"):
            cached(ROWS[:3])


def test_any_mapping_is_a_batch(tmp_path: Path) -> None:
    """Tokenizers' own collators return a BatchEncoding."""
    cached = rows_of(tmp_path, collator=lambda rows: BatchEncoding(collate(rows)))
    assert ROW_KEYS in cached(ROWS[:2])
