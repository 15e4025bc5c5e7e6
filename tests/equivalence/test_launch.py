"""A launch that becomes fewer connected processes than were asked for is refused; the documented ones work."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import launches
import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file

from hfdistill.distributed.launch import promised_processes

CONFIGS = Path(__file__).parents[2] / "recipes" / "configs" / "accelerate"
TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
ACCELERATE = ["accelerate.commands.launch", "--main_process_port", "0"]
TWO = ["--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]


def launched(folder: Path, launcher: list[str], *ways: str, **environment: str) -> dict[str, list[dict[str, Any]]]:
    """Launch the script without a GPU in sight: way -> what became of it in each process."""
    tests = Path(__file__).parents[1]
    paths = os.pathsep.join(map(str, (tests, tests.parent)))
    own = {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths, "CUDA_VISIBLE_DEVICES": "", "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-m", *launcher, launches.__file__, str(folder), *ways]
    ended = subprocess.run(
        command, env={**os.environ, **own, **environment}, capture_output=True, text=True, timeout=300, check=False
    )
    assert ended.returncode == 0, ended.stderr[-4000:]
    return {way: [json.loads(path.read_text()) for path in sorted(folder.glob(f"*-{way}.json"))] for way in ways}


@pytest.fixture(scope="module")
def loss(tmp_path_factory: pytest.TempPathFactory) -> float:
    """The loss of one process on the whole batch."""
    found = launches.outcome(tmp_path_factory.mktemp("one"), "cpu")
    assert found["processes"] == 1
    return float(found["loss"])


@pytest.mark.slow
@pytest.mark.distributed
def test_torchrun(tmp_path: Path, loss: float) -> None:
    """Its processes are connected only in a run that says that it uses the CPU, and there is no FSDP on one."""
    found = launched(tmp_path, TORCHRUN, "asked", "cpu", "fsdp")
    assert len(found["asked"]) == len(found["fsdp"]) == 2
    for alone, connected, fallen_back in zip(*found.values(), strict=True):
        assert "2 processes were launched, but they are not connected" in alone["refused"]
        assert "torchrun --nproc_per_node 2" in alone["refused"]
        assert "FSDP was asked for, but the run is MULTI_CPU with 2 processes" in fallen_back["refused"]
        assert (connected["kind"], connected["processes"]) == ("MULTI_CPU", 2)
        assert connected["loss"] == pytest.approx(loss, rel=1e-6)


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("how", ["words", "configuration"])
def test_accelerate_starts_one_process_on_a_cpu(tmp_path: Path, how: str) -> None:
    """It needs mpirun for two, and does not say so."""
    config = {"distributed_type": "MULTI_CPU", "num_processes": 2, "num_machines": 1, "machine_rank": 0}
    (tmp_path / "cpu.yaml").write_text(yaml.safe_dump({**config, "use_cpu": True}))
    words = ["--cpu", *TWO] if how == "words" else ["--config_file", str(tmp_path / "cpu.yaml")]
    (found,) = launched(tmp_path, [*ACCELERATE, *words], "cpu")["cpu"]
    assert "told to start several processes and started one" in found["refused"]
    assert "torchrun --nproc_per_node 2" in found["refused"]


@pytest.mark.slow
@pytest.mark.distributed
def test_accelerate_does_not_tell_the_script_of_the_cpu(tmp_path: Path) -> None:
    """A configuration that says `use_cpu: true` starts two runs that know nothing of each other."""
    config = yaml.safe_load((CONFIGS / "ddp_cpu.yaml").read_text()) | {"use_cpu": True}
    (tmp_path / "cpu.yaml").write_text(yaml.safe_dump(config))
    found = launched(tmp_path, [*ACCELERATE, "--config_file", str(tmp_path / "cpu.yaml")], "asked")["asked"]
    assert len(found) == 2
    assert all("they are not connected" in alone["refused"] for alone in found)


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize(
    ("name", "way", "kind", "sharded"),
    [
        ("ddp_cpu", "cpu", "MULTI_CPU", False),
        ("fsdp2", "sharded", "FSDP", True),
        ("zero2", "cpu", "DEEPSPEED", False),
        ("zero3", "cpu", "DEEPSPEED", True),
    ],
)
def test_configurations_train(tmp_path: Path, loss: float, name: str, way: str, kind: str, sharded: bool) -> None:
    """Each configuration that a CPU can run, from the launcher's command line to the loss of a step."""
    if kind == "DEEPSPEED" and find_spec("deepspeed") is None:
        pytest.skip("needs DeepSpeed: pip install 'hfdistill[deepspeed]'")
    words = [*ACCELERATE, "--config_file", str(CONFIGS / f"{name}.yaml")]
    found = launched(tmp_path, words, way, DS_ACCELERATOR="cpu")[way]
    assert len(found) == 2
    for one in found:
        assert (one["kind"], one["processes"], one["sharded"]) == (kind, 2, sharded)
        assert one["loss"] == pytest.approx(loss, rel=1e-6)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_accelerate_reads_configurations(path: Path) -> None:
    """An unknown entry is an error to it; each names two processes, as its comment says."""
    config = load_config_from_file(str(path))
    assert config.num_processes == 2
    assert f"recipes/configs/accelerate/{path.name}" in path.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("environment", "processes"),
    [
        ({}, 1),
        ({"WORLD_SIZE": "4", "RANK": "1", "LOCAL_RANK": "1"}, 4),
        ({"OMPI_COMM_WORLD_SIZE": "3"}, 3),
        ({"PMI_SIZE": "2"}, 2),
        ({"PMI_SIZE": "what"}, 1),
        ({"MASTER_ADDR": "host", "MASTER_PORT": "29500"}, 1),
        ({"ACCELERATE_MIXED_PRECISION": "no"}, 1),
        ({"ACCELERATE_MIXED_PRECISION": "no", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}, 2),
    ],
)
def test_promised_processes(environment: dict[str, str], processes: int) -> None:
    """What each launcher writes; a meeting point alone is written by job scripts, too, and promises nothing."""
    assert promised_processes(environment) == processes
