"""Runs of a student that is cut into shards, and of one that is not, by as many processes as torchrun starts.

    torchrun --nproc_per_node 2 sharded_runs.py FOLDER MODE EXPECTED_PROCESSES

MODE is plain (one process, or DDP), fsdp2, zero2 or zero3. Each case writes what it ended with, gathered, to
FOLDER/<case>-<mode>.safetensors and .json. Not a test itself: test_fsdp2.py and test_zero.py start it.

Accelerate runs FSDP on GPUs only. Here it is told that the CPUs are GPUs, and the rest of the way is the real one.
"""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from toy_models import toy_bert
from training_toys import arguments, logged, text_rows, trainer_of
from transformers import AutoModelForTokenClassification, PreTrainedModel

from hfdistill import (
    AttentionMapLoss,
    DistillationTrainer,
    HiddenStateLoss,
    InBatchContrastLoss,
    Objective,
    SoftTargetLoss,
    TaskLoss,
    preset,
)
from hfdistill.attachment import SUBMODULE
from hfdistill.distributed.sharding import element_count, whole_state

GLOBAL_BATCH = 8
IGNORED = (0, 1, 6)  # the halves of the batch have other numbers of labels
HEAD = "ForTokenClassification"
EXPECTED = {
    "fsdp2": DistributedType.FSDP,
    "zero2": DistributedType.DEEPSPEED,
    "zero3": DistributedType.DEEPSPEED,
}


def token_objective() -> Objective:
    """Task, logits, states through projectors, and attention, token by token."""
    return Objective(task=TaskLoss(), kd=SoftTargetLoss(), hidden=HiddenStateLoss(), attention=AttentionMapLoss())


def row_objective() -> Objective:
    """Rows told apart within the whole batch, through projectors."""
    return Objective(contrast=InBatchContrastLoss(gather=True), kd=SoftTargetLoss())


ONE_STEP = {"max_steps": 1, "learning_rate": 1.0}  # what the weights lose in it is their gradient
SAVED = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "max_grad_norm": 0.5, "optim": "adamw_torch"}
SAVED |= {"learning_rate": 0.01, "adam_epsilon": 1e-3}  # else gradients of 0 decide by their noise
CASES: dict[str, tuple[Callable[[], Objective], dict[str, Any]]] = {
    "gradient": (token_objective, {**ONE_STEP, "teacher_placement": "sharded"}),
    "whole teacher": (token_objective, {**ONE_STEP, "teacher_placement": "replicated"}),
    "accumulated": (token_objective, {**ONE_STEP, "gradient_accumulation_steps": 2}),
    "gathered": (row_objective, ONE_STEP),
    "saved": (token_objective, SAVED),
    "saved in shards": (token_objective, {**SAVED, "fsdp_config": {"state_dict_type": "SHARDED_STATE_DICT"}}),
    "scheduled": (lambda: preset("tinybert", switch=0.5), {"max_steps": 4, "max_grad_norm": 0.5}),
    "named": (token_objective, ONE_STEP),
}


def settings(mode: str, folder: Path, processes: int, changes: dict[str, Any]) -> Any:
    """Arguments of a run; from here on transformers and Accelerate know of the mode."""
    changes = dict(changes)
    fsdp = {"version": 2, **changes.pop("fsdp_config", {})}
    if mode not in ("fsdp2", "zero3"):
        changes.pop("teacher_placement", None)
    if mode == "fsdp2":
        changes |= {"fsdp": True, "fsdp_config": fsdp}
    if mode.startswith("zero"):
        zero = {"stage": int(mode[-1]), "stage3_gather_16bit_weights_on_model_save": True}
        zero["stage3_param_persistence_threshold"] = 0  # else small parameters, all that toys have, stay whole
        sizes = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
        automatic = dict.fromkeys((*sizes, "gradient_clipping"), "auto")
        changes["deepspeed"] = {**automatic, "zero_optimization": zero}
    batch = GLOBAL_BATCH // processes // changes.get("gradient_accumulation_steps", 1)
    args = arguments(folder, per_device_train_batch_size=batch, train_sampling_strategy="sequential", **changes)
    if mode == "fsdp2":
        PartialState().distributed_type = DistributedType.MULTI_GPU
    return args


def trainer(mode: str, folder: Path, processes: int, case: str, **given: Any) -> DistillationTrainer:
    """The trainer of a case, of connected processes; `given` are a seed, models by name, or other arguments."""
    seed, student, teacher = given.pop("seed", 5), given.pop("student", None), given.pop("teacher", None)
    objective, changes = CASES[case]
    args = settings(mode, folder, processes, changes | given)
    torch.manual_seed(seed)
    made = trainer_of(
        folder,
        objective(),
        toy_bert(width=8, head=HEAD, seed=seed) if student is None else loaded(student),
        text_rows(2 * GLOBAL_BATCH, labels="tokens", ignored=IGNORED),
        teacher=toy_bert(layers=4, seed=1, head=HEAD) if teacher is None else teacher,
        args=args,
    )
    if made.accelerator.num_processes != processes or made.args.world_size != processes:
        raise RuntimeError(f"{made.accelerator.num_processes} connected processes, expected {processes}")
    if mode != "plain" and made.accelerator.distributed_type != EXPECTED[mode]:
        raise RuntimeError(f"the run is {made.accelerator.distributed_type}, expected {EXPECTED[mode]}")
    return made


def loaded(name: str) -> PreTrainedModel:
    """A model as a user loads it, after the arguments are made."""
    model: PreTrainedModel = AutoModelForTokenClassification.from_pretrained(name)
    return model


def held(model: nn.Module) -> float:
    """The share of a model's parameters that this process holds."""
    own = whole = 0
    for value in model.parameters():
        cut: Tensor = vars(value).get("ds_tensor", value)
        own += cut.to_local().numel() if isinstance(cut, DTensor) else cut.numel()
        whole += element_count(value)
    return own / whole


def gathered(made: DistillationTrainer) -> dict[str, Tensor]:
    """Student and objective, whole, without one inside the other; nothing in some processes."""
    student = {name: value for name, value in whole_state(made.student).items() if SUBMODULE not in name}
    state = student | {f"objective.{name}": value for name, value in whole_state(made.objective).items()}
    return {name: value.clone().contiguous() for name, value in state.items()}


def write(folder: Path, name: str, made: DistillationTrainer, tensors: dict[str, Tensor], **facts: Any) -> None:
    """Write what a run ended with; the first process alone does."""
    if made.args.process_index:
        return
    save_file(tensors, folder / f"{name}.safetensors")
    facts["log"] = [{key: line[key] for key in line if key.startswith("loss")} for line in logged(made)]
    (folder / f"{name}.json").write_text(json.dumps(facts), encoding="utf-8")


def run_case(mode: str, folder: Path, processes: int, case: str, **given: Any) -> None:
    """Train, save what came of it, and go on from the middle of it where checkpoints were written."""
    place, changes = folder / f"{case}-{mode}", CASES[case][1]
    made = trainer(mode, place, processes, case, **given)
    before = gathered(made)
    made.train()
    facts = {"student": held(made.student), "teacher": held(made.teacher.model)}  # type: ignore[union-attr]
    after = gathered(made)
    made.save_model(str(place / "final"))
    facts["evaluated"] = made.evaluate(made.train_dataset)["eval_loss"]
    gradients = {f"gradient.{name}": before[name] - after[name] for name in after if changes.get("max_steps") == 1}
    write(folder, f"{case}-{mode}", made, after | gradients, **facts)
    if "save_strategy" in changes:
        rest = trainer(mode, place / "resumed", processes, case, seed=7)  # another student, other projectors
        rest.train(resume_from_checkpoint=str(place / "checkpoint-2"))
        write(folder, f"{case}, resumed-{mode}", rest, gathered(rest))


def refused(action: Callable[[], object]) -> str:
    """What an action is refused with."""
    try:
        action()
    except ValueError as error:
        return str(error)
    return ""


def named_models(folder: Path) -> dict[str, str]:
    """Folders of the student and the teacher, and nobody goes on before they are there."""
    names = {"student": str(folder / "student"), "teacher": str(folder / "teacher")}
    if torch.distributed.get_rank() == 0:
        toy_bert(width=8, head=HEAD, seed=5).save_pretrained(names["student"])
        toy_bert(layers=4, seed=1, head=HEAD).save_pretrained(names["teacher"])
    torch.distributed.barrier()
    return names


def run_named(mode: str, folder: Path, processes: int) -> None:
    """Models that transformers loads in the way that this mode asks for: in pieces, or in one process only."""
    names = named_models(folder)
    efficient = {"fsdp_config": {"cpu_ram_efficient_loading": True}} if mode == "fsdp2" else {}
    run_case(mode, folder, processes, "named", **names, **efficient)

    def partitioned() -> None:
        args = settings(mode, folder / "refused", processes, ONE_STEP)
        trainer_of(folder, "kd", toy_bert(head=HEAD), teacher=loaded(names["teacher"]), args=args)

    def other_student() -> None:
        trainer(mode, folder / "refused", processes, "gradient", seed=torch.distributed.get_rank()).train()

    def other_teacher() -> None:
        teacher = toy_bert(layers=4, seed=torch.distributed.get_rank(), head=HEAD)
        trainer(mode, folder / "refused", processes, "gradient", teacher=teacher).train()

    def in_stages() -> None:
        args = settings(mode, folder / "refused", processes, ONE_STEP)
        trainer_of(folder, "sskd", toy_bert(), teacher=toy_bert(layers=4, seed=1), args=args)

    actions = (partitioned,) if mode == "zero3" else (other_student, other_teacher, in_stages)
    messages = {action.__name__: refused(action) for action in actions}
    place = folder / f"refused-{mode}-{torch.distributed.get_rank()}.json"
    place.write_text(json.dumps(messages), encoding="utf-8")


def runs(mode: str, case: str) -> bool:
    """Whether a mode has a case: options of FSDP are its own, and without shards no model is loaded in pieces."""
    return mode in ("plain", "fsdp2") or not (case == "saved in shards" or (mode == "zero2" and case == "named"))


def run(folder: Path, mode: str, processes: int) -> None:
    """All cases of a mode."""
    for case in CASES:
        if runs(mode, case) and (case != "named" or mode == "plain"):
            run_case(mode, folder, processes, case)
    if mode in ("fsdp2", "zero3"):
        run_named(mode, folder, processes)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    if sys.argv[2].startswith("zero"):
        os.environ["DS_ACCELERATOR"] = "cpu"
        import deepspeed

        deepspeed.init_distributed("gloo")
    run(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
