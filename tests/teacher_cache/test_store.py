"""A store of a teacher's rows: what is there is found, from any process; what is not there is missing."""

import json
import os
import pickle
from pathlib import Path

import pytest
import torch
from stored_rows import LAYOUT, TEACHER, fill, is_row, kept, key_of, keys_of, row_of, store_in
from torch.utils.data import DataLoader

from hfdistill.teacher_cache import store as stores
from hfdistill.teacher_cache.store import Layout, Store, check_space, stored_teachers

LOGITS = Layout(("logits",))


def shards(folder: Path) -> list[Path]:
    """The files of rows of the teacher of these tests."""
    return sorted((folder / TEACHER).glob("*.safetensors"))


def settled(store: Store) -> None:
    """Let the folder's last change be long ago, and the store know of it."""
    os.utime(store.folder, ns=(10**18, 10**18))
    store.refresh()


def test_what_was_kept_is_found_again(tmp_path: Path) -> None:
    """That is all a cache is for: in any order, some of it, twice in a batch, in the next run."""
    kept(store_in(tmp_path / "new" / "cache"), range(10))
    store = store_in(tmp_path / "new" / "cache")
    wanted = [7, 2, 2, 9, 0]
    assert store.missing(keys_of([7, 11, 2, 12])) == [1, 3]
    assert all(is_row(row, number) for row, number in zip(store.read(keys_of(wanted)), wanted, strict=True))
    assert [row is None for row in store.read(keys_of([1, 99]))] == [False, True]
    assert len(store) == 10
    assert store.size() == sum(path.stat().st_size for path in shards(tmp_path / "new" / "cache"))


def test_rows_that_are_not_written_yet_are_found(tmp_path: Path) -> None:
    """A row may come twice before 64 MB have come together, and the teacher is asked once."""
    store = store_in(tmp_path)
    store.append(keys_of([1, 2, 1]), [row_of(1), row_of(2), row_of(1)])
    assert not shards(tmp_path)
    assert (store.missing(keys_of([1, 2, 3])), len(store)) == ([2], 2)
    assert is_row(store.read([key_of(2)])[0], 2)


def test_what_was_given_may_change_afterwards(tmp_path: Path) -> None:
    """Rows are parts of a batch on its way: what is kept must not follow it, nor keep all of it alive."""
    store, row = store_in(tmp_path), row_of(1)
    store.append([key_of(1)], [row])
    for value in row.values():
        value.zero_()
    assert is_row(store.read([key_of(1)])[0], 1)


def test_files_are_written_when_enough_has_come_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file for each batch would be thousands; all in memory until the end would be lost with the process."""
    monkeypatch.setattr(stores, "SHARD_BYTES", 400)
    store = store_in(tmp_path)
    for number in range(20):
        store.append([key_of(number)], [row_of(number)])
    assert 2 <= len(shards(tmp_path)) <= 6
    assert len(store_in(tmp_path)) >= 14
    assert len(store) == 20


def test_rows_are_kept_once(tmp_path: Path) -> None:
    """Each epoch of a run that fills would otherwise write all of it again."""
    store = kept(store_in(tmp_path), range(5))
    size = store.size()
    for again in (store, store_in(tmp_path)):
        kept(again, range(5))
        assert (again.size(), len(shards(tmp_path))) == (size, 1)
    store.flush()
    assert store.size() == size


def test_layouts_share_what_they_have_in_common(tmp_path: Path) -> None:
    """A run that needs more than the last one must not take half a row for all of it, nor write that half again."""
    first = store_in(tmp_path, LOGITS)
    first.append(keys_of(range(6)), [{"logits": row_of(number)["logits"]} for number in range(6)])
    first.flush()
    both = store_in(tmp_path)
    assert both.missing(keys_of(range(8))) == list(range(8))
    assert (both.read([key_of(3)]), len(both)) == ([None], 0)
    kept(both, range(1, 8))
    held = [set(stores.Shard(path).kinds) for path in shards(tmp_path)]
    assert sorted(map(sorted, held)) == [["hidden_states/1"], ["hidden_states/1", "logits"], ["logits"]]
    again = store_in(tmp_path)
    assert (again.missing(keys_of(range(8))), len(again)) == ([0], 7)
    assert all(is_row(row, number) for number, row in enumerate(again.read(keys_of(range(1, 8))), start=1))
    logits = store_in(tmp_path, LOGITS).read([key_of(3)])[0]
    assert logits is not None
    assert list(logits) == ["logits"]


def test_an_appended_half_completes_a_row_at_once(tmp_path: Path) -> None:
    """The row of a batch may come again before its second half is written."""
    first = store_in(tmp_path, LOGITS)
    first.append([key_of(1)], [{"logits": row_of(1)["logits"]}])
    first.flush()
    both = store_in(tmp_path)
    both.append([key_of(1)], [row_of(1)])
    assert (both.missing([key_of(1)]), len(both)) == ([], 1)
    assert is_row(both.read([key_of(1)])[0], 1)


def test_another_precision_is_a_miss(tmp_path: Path) -> None:
    """Who asks for float32 must not be given what float16 has left of it, nor the other way about."""
    kept(store_in(tmp_path, Layout(LAYOUT.kinds, "float16")), range(3))
    for dtype in ("float32", "bfloat16", "auto"):
        assert store_in(tmp_path, Layout(LAYOUT.kinds, dtype)).missing(keys_of(range(3))) == [0, 1, 2]
    assert store_in(tmp_path, Layout(LAYOUT.kinds, "float16")).missing(keys_of(range(3))) == []


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_values_are_kept_in_the_precision_asked_for(dtype: str, tmp_path: Path) -> None:
    """Half the bytes are half the time to read; but classes and masks are no numbers to be rounded."""
    store = store_in(tmp_path, Layout(("a", "classes", "mask"), dtype))
    row = {"a": torch.randn(5).double(), "classes": torch.tensor([70001, 2]), "mask": torch.tensor([True, False])}
    store.append([key_of(1)], [row])
    store.flush()
    read = store_in(tmp_path, store.layout).read([key_of(1)])[0]
    assert read is not None
    assert torch.equal(read["a"], row["a"].to(getattr(torch, dtype)))
    assert (read["classes"].tolist(), read["mask"].tolist()) == ([70001, 2], [True, False])
    assert (read["classes"].dtype, read["mask"].dtype) == (torch.int64, torch.bool)


def test_a_value_that_does_not_fit_is_told(tmp_path: Path) -> None:
    """It would come back infinite, and so would the loss; what was infinite before stays what it was."""
    store = store_in(tmp_path, Layout(("logits", "scores/2"), "float16"))
    fine = {"logits": torch.zeros(1), "scores/2": torch.tensor([float("inf"), 1.0])}
    with pytest.raises(ValueError, match=r"scores/2 has the value -70000.*float16 holds no more than 65504"):
        store.append(keys_of([1, 2]), [fine, {**fine, "scores/2": torch.tensor([1.0, -70000.0, 2.0])}])
    assert (store.missing(keys_of([1, 2])), len(store)) == ([0, 1], 0)
    store.append([key_of(1)], [fine])
    store.flush()
    assert torch.equal(store.read([key_of(1)])[0]["scores/2"], torch.tensor([float("inf"), 1.0]).half())  # type: ignore[index]


def test_rows_of_other_kinds_than_the_layouts_are_refused(tmp_path: Path) -> None:
    """A row without one of its kinds would be written, and never found."""
    store = store_in(tmp_path)
    for row in ({"logits": torch.zeros(1)}, {**row_of(1), "more": torch.zeros(1)}):
        with pytest.raises(ValueError, match=r"expected of each row \['hidden_states/1', 'logits'\]"):
            store.append([key_of(1)], [row])
    with pytest.raises(ValueError, match="a row's key has 16 bytes"):
        store.append([b"short"], [row_of(1)])
    assert len(store) == 0


def test_rows_of_unequal_forms_are_kept(tmp_path: Path) -> None:
    """A kind may be nothing for some rows, or come in another dtype after the run's precision was changed."""
    store = store_in(tmp_path, LOGITS)
    told = [torch.zeros(0), torch.randn(2, 3), torch.randn(4).half(), torch.tensor(1.5), torch.randn(2)]
    store.append(keys_of(range(5)), [{"logits": value} for value in told])
    store.flush()
    read = store_in(tmp_path, LOGITS).read(keys_of(range(5)))
    assert all(row is not None and torch.equal(row["logits"], value) for row, value in zip(read, told, strict=True))
    assert [row["logits"].dtype for row in read if row is not None] == [value.dtype for value in told]


@pytest.mark.parametrize("kinds", [(), ("logits", "logits"), ("",), (".keys",)])
def test_a_layout_names_different_kinds(kinds: tuple[str, ...]) -> None:
    """A kind named as the file's own tensors would overwrite its keys."""
    with pytest.raises(ValueError, match="kinds must be different names"):
        Layout(kinds)


def test_a_layout_knows_its_precisions() -> None:
    """A misspelt precision must not be found out after an epoch."""
    with pytest.raises(ValueError, match="dtype must be one of auto, float32, bfloat16, float16, got 'fp16'"):
        Layout(("logits",), "fp16")  # type: ignore[arg-type]


def test_files_of_other_processes_are_seen(tmp_path: Path) -> None:
    """Two runs over one data set share the work while they run, not only afterwards."""
    store, other = store_in(tmp_path), store_in(tmp_path)
    kept(other, range(3))
    assert is_row(store.read([key_of(1)])[0], 1)
    kept(other, range(3, 6))
    assert store.missing(keys_of([4, 8])) == [1]
    assert not store.refresh()
    kept(other, [7])
    assert store.refresh()


def test_looking_again_costs_nothing_where_nothing_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a cache is filled every batch has rows that are missing."""
    store = kept(store_in(tmp_path), range(3))
    settled(store)
    monkeypatch.setattr(stores, "_shard_names", lambda folder: pytest.fail("the folder was read again"))
    assert store.missing(keys_of([1, 9])) == [1]


def test_a_change_is_seen_after_a_long_rest(tmp_path: Path) -> None:
    """Another run may begin to fill when this one has long found nothing new."""
    store, other = store_in(tmp_path), store_in(tmp_path)
    settled(store)
    kept(other, [1])
    assert store.missing([key_of(1)]) == []


def test_a_file_that_comes_within_one_tick_of_the_clock_is_seen(tmp_path: Path) -> None:
    """File systems tell the time of a change in steps, of up to two seconds."""
    store, other = store_in(tmp_path), store_in(tmp_path)
    kept(other, [1])
    store.refresh()
    before = store.folder.stat().st_mtime_ns
    kept(other, [2])
    os.utime(store.folder, ns=(before, before))
    assert store.missing([key_of(2)]) == []


def test_a_store_that_is_sent_to_a_worker_opens_the_files_there(tmp_path: Path) -> None:
    """What is sent must be small, and unwritten rows would be written twice."""
    store = kept(store_in(tmp_path), range(300))
    store.append([key_of(300)], [row_of(300)])
    sent = pickle.dumps(store)
    assert len(sent) < 1000
    there = pickle.loads(sent)
    assert is_row(there.read([key_of(7)])[0], 7)
    assert there.missing([key_of(300)]) == [0]


def test_a_data_loaders_worker_reads_while_rows_are_added(tmp_path: Path) -> None:
    """Rows are read where batches are collated, which is in another process, while this one fills."""
    store = kept(store_in(tmp_path), range(4))
    loader = DataLoader(
        range(8),  # type: ignore[arg-type]
        batch_size=4,
        num_workers=1,
        prefetch_factor=1,
        collate_fn=lambda numbers: [number for number in numbers if store.missing([key_of(number)])],
        multiprocessing_context="fork",
        persistent_workers=True,
    )
    assert list(loader) == [[], [4, 5, 6, 7]]
    kept(store, range(4, 8))
    assert list(loader) == [[], []]


def test_a_store_may_vanish_under_a_reader(tmp_path: Path) -> None:
    """Somebody who clears his disk must not kill a run that has the rows in reach already."""
    store = kept(store_in(tmp_path), range(3))
    for path in store.folder.iterdir():
        path.unlink()
    store.folder.rmdir()
    assert is_row(store.read([key_of(2)])[0], 2)
    assert store.missing(keys_of([1, 5])) == [1]


def test_fill_reads_what_it_writes(tmp_path: Path) -> None:
    """The helper that other tests start in processes of their own does what they think it does."""
    fill(str(tmp_path), [3, 1, 2, 3, 4], 2**20)
    assert len(store_in(tmp_path)) == 4


def test_about_is_what_was_said_last(tmp_path: Path) -> None:
    """A teacher that is only a cache knows its sizes from here."""
    Store.open(tmp_path, TEACHER, LAYOUT, about={"depth": 12, "widths": (1, 2)})
    assert store_in(tmp_path).about == {"depth": 12, "widths": [1, 2]}
    assert store_in(tmp_path, writes=False).about["depth"] == 12
    Store.open(tmp_path, TEACHER, LAYOUT, about={"depth": 13})
    store_in(tmp_path)
    Store.open(tmp_path, "ab" * 32, LAYOUT, about={"depth": 2})
    assert stored_teachers(tmp_path) == {TEACHER: {"depth": 13}, "ab" * 32: {"depth": 2}}


def test_space_is_checked_before_anything_is_written(tmp_path: Path) -> None:
    """An hour of a teacher's work must not end in a full disk that could have been foreseen."""
    check_space(tmp_path / "not" / "there", 1000)
    with pytest.raises(OSError, match=r"would take 1000000000\.0 GB in .*not, where [\d.]+ [GM]B are free") as caught:
        check_space(tmp_path / "not", 10**18)
    assert caught.value.errno == 28
    assert not list(tmp_path.iterdir())


def test_teacher_json_is_json(tmp_path: Path) -> None:
    """A person must be able to see whose cache it is."""
    Store.open(tmp_path, TEACHER, LAYOUT, about={"family": "bert"})
    content = json.loads((tmp_path / TEACHER / "teacher.json").read_text())
    assert (content["version"], content["about"]) == (1, {"family": "bert"})
