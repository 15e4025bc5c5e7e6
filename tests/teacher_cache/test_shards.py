"""One file of a teacher cache: what was written is what is read, or nothing is."""

from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from stored_rows import is_row, key_of, keys_of, row_of
from torch import Tensor

from hfdistill.teacher_cache.shards import DamagedShardError, Shard, write_shard

ROWS = {key_of(number): row_of(number) for number in range(4)}
KINDS = ("hidden_states/1", "logits")
VALUES = {
    "equal shapes": [torch.randn(3) for _ in range(4)],
    "other lengths": [torch.randn(tokens, 2) for tokens in (3, 1, 4, 1)],
    "other lengths of two axes": [torch.randn(2, tokens, tokens) for tokens in (3, 1, 4, 1)],
    "no axis": [torch.tensor(float(row)) for row in range(4)],
    "nothing": [torch.zeros(0), torch.zeros(0), torch.zeros(0), torch.zeros(0)],
    "nothing of some": [torch.zeros(0, 2), torch.randn(3, 2), torch.zeros(0, 2), torch.randn(1, 2)],
    "bool": [torch.tensor([True, False, row > 1]) for row in range(4)],
    "int64": [torch.tensor([2**40 + row, -row]) for row in range(4)],
    "float16": [torch.randn(3).half() for _ in range(4)],
    "bfloat16": [torch.randn(tokens, 2).bfloat16() for tokens in (3, 1, 4, 1)],
    "float64": [torch.randn(3).double() for _ in range(4)],
    "not contiguous": [torch.randn(2, 5).T for _ in range(4)],
    "not a number": [torch.tensor([float("nan"), float("inf"), -float("inf")]) for _ in range(4)],
}


def equal(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are the same, of one dtype and shape, and with the same NaN."""
    return one.dtype == other.dtype and one.shape == other.shape and torch.equal(one.nan_to_num(), other.nan_to_num())


def read_all(path: Path) -> None:
    """Read every row of a file."""
    shard = Shard(path)
    for row in range(len(shard.keys)):
        shard.read(row, shard.kinds)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The content of a file of four rows."""
    return write_shard(tmp_path_factory.mktemp("whole"), ROWS, "auto").read_bytes()


@pytest.mark.parametrize("name", VALUES)
def test_rows_are_read_as_they_were_written(name: str, tmp_path: Path) -> None:
    """Families show tensors of all shapes and dtypes, and a state that comes back changed trains something else."""
    rows = {key_of(number): {"a": torch.randn(2), "b/1": value} for number, value in enumerate(VALUES[name])}
    shard = Shard(write_shard(tmp_path, rows, "float16"))
    assert (shard.keys, shard.kinds, shard.precision) == (list(rows), ("a", "b/1"), "float16")
    for at in (2, 0, 3, 1, 1):
        read, told = shard.read(at, ("b/1", "a")), rows[shard.keys[at]]
        assert list(read) == ["b/1", "a"]
        assert all(equal(read[kind], told[kind]) for kind in told)


def test_reading_copies_nothing(tmp_path: Path) -> None:
    """A cache is larger than memory: what is read must be the file, not a copy that stays."""
    shard = Shard(write_shard(tmp_path, ROWS, "auto"))
    one, other = shard.read(3, KINDS), shard.read(3, KINDS)
    assert all(one[kind].data_ptr() == other[kind].data_ptr() for kind in KINDS)


def test_nothing_else_is_left_in_the_folder(tmp_path: Path) -> None:
    """What is left over from writing fills the disk; and two files never take each other's name."""
    torch.manual_seed(0)
    one = write_shard(tmp_path, ROWS, "auto")
    torch.manual_seed(0)
    other = write_shard(tmp_path, ROWS, "auto")
    assert sorted(tmp_path.iterdir()) == sorted((one, other))


@pytest.mark.parametrize("eighths", range(8))
def test_a_truncated_file_is_found(eighths: int, whole: bytes, tmp_path: Path) -> None:
    """A file that a broken copy has cut must not be read as far as it goes."""
    path = tmp_path / "cut.safetensors"
    path.write_bytes(whole[: len(whole) * eighths // 8])
    with pytest.raises(DamagedShardError):
        Shard(path)


def test_a_longer_file_is_found(whole: bytes, tmp_path: Path) -> None:
    """What follows the values was not written by us."""
    path = tmp_path / "long.safetensors"
    path.write_bytes(whole + b"\0")
    with pytest.raises(DamagedShardError):
        Shard(path)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_is_never_knowledge(place: float, bit: int, whole: bytes, tmp_path: Path) -> None:
    """Wherever a disk errs, in values, keys, shapes or header: a row is what was written, or is not there."""
    broken = bytearray(whole)
    broken[int(place * len(broken))] ^= 1 << bit
    path = tmp_path / "flipped.safetensors"
    path.write_bytes(broken)
    try:
        shard = Shard(path)
    except DamagedShardError:
        return
    for at, key in enumerate(shard.keys):
        for kind in shard.kinds:
            try:
                value = shard.read(at, (kind,))[kind]
            except DamagedShardError:
                continue
            assert equal(value, ROWS[key][kind])


def test_every_flipped_byte_is_told(whole: bytes, tmp_path: Path) -> None:
    """Behind the header there is no byte, of values, keys, shapes or checksums, whose error may stay unseen."""
    path = tmp_path / "flipped.safetensors"
    start = 8 + int.from_bytes(whole[:8], "little")
    for at in range(start, len(whole)):
        broken = bytearray(whole)
        broken[at] ^= 1 << at % 8
        path.write_bytes(broken)
        with pytest.raises(DamagedShardError):
            read_all(path)


def test_a_value_cannot_stand_for_another(whole: bytes, tmp_path: Path) -> None:
    """Two rows of equal length that change places keep every byte: the checksum must know whose they are."""
    one, other = row_of(0)["logits"].numpy().tobytes(), row_of(3)["logits"].numpy().tobytes()
    path = tmp_path / "swapped.safetensors"
    path.write_bytes(whole.replace(one, b"?" * 12).replace(other, one).replace(b"?" * 12, other))
    shard = Shard(path)
    assert is_row(shard.read(1, KINDS), 1)
    for row in (0, 3):
        with pytest.raises(DamagedShardError, match="another checksum"):
            shard.read(row, KINDS)


@pytest.mark.parametrize(
    ("told", "changed"),
    [
        (b'"dtype":"F32"', b'"dtype":"I32"'),
        (torch.tensor([[2, 3]]).numpy().tobytes(), torch.tensor([[3, 2]]).numpy().tobytes()),
        (b"scores/1", b"scores/2"),
    ],
    ids=["dtype", "shape", "kind"],
)
def test_values_cannot_be_read_as_something_else(told: bytes, changed: bytes, tmp_path: Path) -> None:
    """Where the header errs all values are whole, and yet nothing that they say is true."""
    path = write_shard(tmp_path, {key_of(row): {"scores/1": torch.randn(2, 3)} for row in range(3)}, "auto")
    content = path.read_bytes()
    assert told in content
    path.write_bytes(content.replace(told, changed))
    with pytest.raises(DamagedShardError, match="another checksum"):
        read_all(path)


def test_a_foreign_file_is_refused(tmp_path: Path) -> None:
    """Any model's weights are safetensors, too."""
    save_file({"weight": torch.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(DamagedShardError, match="not of this format"):
        Shard(tmp_path / "model.safetensors")
    with pytest.raises(FileNotFoundError):
        Shard(tmp_path / "nowhere.safetensors")


def test_reading_tells_what_is_damaged_and_reads_the_rest(whole: bytes, tmp_path: Path) -> None:
    """A row whose other kind is damaged must not stop a run that does not ask for that kind."""
    path = tmp_path / "half.safetensors"
    path.write_bytes(whole.replace(row_of(2)["logits"].numpy().tobytes(), b"\0" * 12))
    shard = Shard(path)
    assert torch.equal(shard.read(2, ("hidden_states/1",))["hidden_states/1"], row_of(2)["hidden_states/1"])
    with pytest.raises(DamagedShardError, match="row 2 of 'logits'"):
        shard.read(2, KINDS)
    assert shard.keys == keys_of(range(4))
