"""NaN in one of two processes that hold shards of a student: both stop before its weights change."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
from launching import in_two_processes
from safetensors.torch import load_file
from training_toys import largest_difference

pytestmark = [pytest.mark.slow, pytest.mark.distributed]


@pytest.mark.parametrize("mode", ["fsdp2", "zero2", "zero3"])
def test_shards_stop_together(tmp_path: Path, mode: str) -> None:
    """A gradient in shards is nobody's alone, and DeepSpeed makes its update within the backward pass."""
    if mode.startswith("zero") and find_spec("deepspeed") is None:
        pytest.skip("needs DeepSpeed: pip install 'hfdistill[deepspeed]'")
    in_two_processes(str(Path(__file__).with_name("sharded_nonfinite.py")), str(tmp_path), mode)
    told = {
        name: [json.loads((tmp_path / f"{name}-{rank}.json").read_text(encoding="utf-8")) for rank in (0, 1)]
        for name in ("sound", "stop", "skip")
    }
    weights = {name: load_file(tmp_path / f"{name}.safetensors") for name in told}
    assert told["sound"][0][0] == ""
    assert told["stop"][0] == told["stop"][1]
    assert told["stop"][0][0] == "NonFiniteError"
    assert told["stop"][0][1].startswith("objective term 'odd' (process 1, micro-batch 0, ")
    assert largest_difference(weights["stop"], weights["sound"]) == 0.0
    if mode == "fsdp2":
        assert told["skip"][0] == told["skip"][1] == ["", "", [0, 1, 0, 0]]
        assert all(value.isfinite().all() for value in weights["skip"].values())
        assert largest_difference(weights["skip"], weights["sound"]) > 0.0
    else:
        assert "on_nonfinite='skip' cannot be kept under DeepSpeed" in told["skip"][0][1]
