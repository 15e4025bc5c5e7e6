"""A student taught by its own base must be the one that an independent copy of the base teaches, to the last bit."""

from pathlib import Path
from typing import Any

import pytest
import shared_base_runs
import torch
from launching import in_two_processes
from safetensors.torch import load_file
from shared_base_runs import CASES, learnt, trainer_in
from training_toys import largest_difference, logged, text_rows, weights_of

WAYS: dict[str, dict[str, Any]] = {
    "mixed rows": {"uncertainty_mixup": True},
    "perturbed": {"embedding_perturbation": 0.1},
    "bfloat16": {"bf16": True},
    "evaluated": {"eval_objective": True, "eval_dataset": text_rows(8, seed=3), "eval_strategy": "epoch"},
}


@pytest.mark.parametrize("case", [*CASES, *WAYS])
def test_a_shared_base_teaches_as_its_copy_does(tmp_path: Path, case: str) -> None:
    """Sharing is for memory: weights, gradients, dropout and the log must be those of a run with two models."""
    ends, logs = [], []
    for shared in (True, False):
        name, changes = (case, {}) if case in CASES else ("plain", WAYS[case])
        trainer = trainer_in(tmp_path, name, shared, 1, **changes)
        began = learnt(trainer)
        trainer.train()
        ends.append(learnt(trainer))
        logs.append(
            [{key: value for key, value in line.items() if "loss" in key} for line in trainer.state.log_history]
        )
        assert largest_difference(began, ends[-1]) > 1e-3, "nothing was learnt, so nothing is compared"
    assert largest_difference(*ends) == 0.0
    assert logs[0] == logs[1]


def test_resumed_with_a_shared_base(tmp_path: Path) -> None:
    """Only the adapter is in the checkpoint: the base that teaches comes from the script, in a resumed run as well."""
    changes: dict[str, Any] = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "optim": "adamw_torch"}
    whole = trainer_in(tmp_path / "whole", "plain", True, 1, **changes)
    whole.train()
    files = {path.name for path in (tmp_path / "whole" / "checkpoint-2").iterdir()}
    assert "adapter_model.safetensors" in files
    assert "model.safetensors" not in files
    rest = trainer_in(tmp_path / "rest", "plain", True, 1, **changes)
    with torch.no_grad():  # what a new process would begin with
        for own in rest.model.parameters():
            if own.requires_grad:
                own.add_(1.0)
    rest.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert largest_difference(learnt(rest), learnt(whole)) == 0.0
    assert [line["loss"] for line in logged(rest)[2:]] == [line["loss"] for line in logged(whole)[2:]]


@pytest.mark.slow
def test_two_processes_make_the_steps_of_one(tmp_path: Path) -> None:
    """The teacher's pass goes around DDP, through the very modules whose gradients DDP waits for."""
    shared_base_runs.run(tmp_path, 1)
    in_two_processes(shared_base_runs.__file__, str(tmp_path), "2")
    for case in CASES:
        one = load_file(tmp_path / f"{case}-shared-1-0.safetensors")
        for rank in (0, 1):
            shared, copied = (
                load_file(tmp_path / f"{case}-{kind}-2-{rank}.safetensors") for kind in ("shared", "copied")
            )
            assert largest_difference(shared, copied) == 0.0, (case, rank)
            assert largest_difference(one, shared) < 1e-7, (case, rank)


@pytest.mark.slow
def test_zero_3_gathers_the_base_for_the_teacher(tmp_path: Path) -> None:
    """Under ZeRO-3 each module's weights are gathered when it is called, whoever calls it."""
    pytest.importorskip("deepspeed")
    expected = trainer_in(tmp_path, "plain", True, 1, dropout=False)
    expected.train()
    in_two_processes(shared_base_runs.__file__, str(tmp_path), "2", "zero3")
    shared, copied = (load_file(tmp_path / f"zero3-{kind}.safetensors") for kind in ("shared", "copied"))
    assert largest_difference(shared, copied) == 0.0
    whole = {name: value for name, value in weights_of(expected.model).items() if name in shared}
    assert largest_difference(shared, whole) < 1e-5
    assert len(shared) > 40
