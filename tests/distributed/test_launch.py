"""What a launcher's environment and Accelerate's state tell of a run that is not what was asked for."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate.utils import DistributedType
from toy_models import toy_bert
from training_toys import arguments, collate, text_rows, trainer_of

from hfdistill import Experiment
from hfdistill.distributed.launch import check_launch, fingerprint

AUTO = {"gradient_clipping": "auto"}


def run(kind: str, **plugins: Any) -> Any:
    """As much of an Accelerator as is asked: its kind, two processes, and plugins."""
    return SimpleNamespace(distributed_type=DistributedType(kind), num_processes=2, state=SimpleNamespace(**plugins))


def deepspeed(**config: Any) -> Any:
    """A run under DeepSpeed."""
    return run("DEEPSPEED", deepspeed_plugin=SimpleNamespace(deepspeed_config=config))


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"WORLD_SIZE": "2", "LOCAL_RANK": "0"}, "2 processes were launched, but they are not connected"),
        ({"OMPI_COMM_WORLD_SIZE": "4"}, "MPI started 4 processes, but they are not connected"),
        (
            {"ACCELERATE_MIXED_PRECISION": "no", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"},
            "told to start several processes and started one",
        ),
    ],
)
def test_a_lonely_process_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], message: str
) -> None:
    """It would train a student of its own and save it over the others'; told before anything is loaded."""
    args = arguments(tmp_path)  # the group is not there: these processes were never connected
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=message):
        check_launch(args, SimpleNamespace(num_processes=1))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("accelerator", "changes", "message"),
    [
        (run("FSDP", fsdp_plugin=SimpleNamespace(fsdp_version=1)), {}, "FSDP version 1 flattens"),
        (
            deepspeed(zero_optimization={"stage": 2}),
            {"max_grad_norm": 0.5},
            'DeepSpeed then clips at 1.0. Write "gradient_clipping": "auto"',
        ),
        (deepspeed(**AUTO, zero_optimization={"stage": 3}), {}, "saves no student, only shards"),
    ],
)
def test_settings_that_change_or_lose_the_student(
    tmp_path: Path, accelerator: Any, changes: dict[str, Any], message: str
) -> None:
    """Each trains without an error, and gives another student than was asked for, or none."""
    with pytest.raises(ValueError, match=message):
        check_launch(arguments(tmp_path, **changes), accelerator)


@pytest.mark.parametrize(
    "accelerator",
    [
        run("MULTI_GPU"),
        run("FSDP", fsdp_plugin=SimpleNamespace(fsdp_version=2)),
        deepspeed(**AUTO, zero_optimization={"stage": 2}),
        deepspeed(**AUTO, zero_optimization={"stage": 3, "stage3_gather_16bit_weights_on_model_save": True}),
    ],
)
def test_what_works_is_let_through(tmp_path: Path, accelerator: Any) -> None:
    """A check that refuses everything would pass the tests above."""
    check_launch(arguments(tmp_path, max_grad_norm=0.5), accelerator)


def test_deepspeed_that_is_left_out_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked for by the launcher, but left out by Accelerate, which then runs DDP."""
    args = arguments(tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(ValueError, match="DeepSpeed was asked for, but the run is MULTI_CPU with 2 processes"):
        check_launch(args, run("MULTI_CPU"))


def test_the_trainer_checks_its_launch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the teacher is loaded: nobody waits for a model to be told of the launch."""
    args = arguments(tmp_path)
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "4")
    with pytest.raises(ValueError, match="MPI started 4 processes"):
        trainer_of(tmp_path, args=args, teacher="no/such-teacher")


@pytest.mark.parametrize("variable", ["ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"])
def test_experiments_are_not_sharded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    """It predicts outside of training, where it would fail after the teacher has been evaluated, or measure shards."""
    args = arguments(tmp_path)
    monkeypatch.setenv(variable, "true")
    with pytest.raises(ValueError, match="Launch it data-parallel"):
        Experiment(toy_bert(), toy_bert, args, text_rows(4), {}, collate, None, None, "accuracy", tmp_path)


def test_fingerprints_tell_models_apart() -> None:
    """Also two whose weights are the same numbers in another place, and one that has none yet."""
    model, same, other, swapped = toy_bert(), toy_bert(), toy_bert(seed=1), toy_bert()
    one, two = (swapped.bert.encoder.layer[at].output.dense.weight for at in (0, 1))
    one.data, two.data = two.data, one.data
    assert torch.equal(fingerprint(model), fingerprint(same))
    assert not torch.isclose(fingerprint(model), fingerprint(other)).all()
    assert not torch.isclose(fingerprint(model), fingerprint(swapped), rtol=1e-6).all()
    assert fingerprint(toy_bert().to("meta")).isnan().all()
