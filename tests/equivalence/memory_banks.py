"""Contrast by as many processes as torchrun starts: memories in training runs, and gathered batches.

    torchrun --nproc_per_node 2 memory_banks.py FOLDER EXPECTED_PROCESSES

Writes what each process ends with to FOLDER/<case>-<processes>-<rank>.safetensors. Not a test itself:
test_memory_banks.py starts it.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, distributed
from toy_models import toy_bert
from toy_representations import STUDENT, TEACHER, Scene, toy_scene
from training_toys import text_rows, trainer_of, weights_of

from hfdistill import ContrastiveRepresentationLoss, DistillationLoss, Objective
from hfdistill.losses.relation.contrastive_memory import ContrastiveMemoryLoss
from hfdistill.losses.relation.contrastive_relation import ContrastiveRelationLoss
from hfdistill.losses.relation.in_batch_contrast import InBatchContrastLoss

ROWS, STEPS = 11, 3  # an odd number: the sampler fills the last batch of the two processes with a row seen before
GATHERED: dict[str, Any] = {
    "infonce": lambda: InBatchContrastLoss(gather=True),
    "cos_nce": lambda: ContrastiveRepresentationLoss(gather=True),
}
LENGTHS = (5, 2, 4, 0, 3)
SHARES = (slice(0, 3), slice(3, 5))
"""Rows of each process; one of them is all padding."""


def trained(folder: Path, processes: int) -> dict[str, Tensor]:
    """The objective's state after three steps of a run in which no process hands its buffers to the others."""
    torch.manual_seed(5)
    trainer = trainer_of(
        folder,
        Objective(crd=ContrastiveMemoryLoss(4, dimension=8), crcd=ContrastiveRelationLoss(4, dimension=8)),
        toy_bert(width=8),
        text_rows(ROWS),
        max_steps=STEPS,
        train_sampling_strategy="sequential",
        per_device_train_batch_size=4 // processes,
        ddp_broadcast_buffers=False,
    )
    if trainer.accelerator.num_processes != processes:
        raise RuntimeError(f"{trainer.accelerator.num_processes} connected processes, expected {processes}")
    begun = {f"begun.{name}": value for name, value in weights_of(trainer.objective).items() if value.isfinite().all()}
    torch.manual_seed(6 + trainer.args.process_index)  # unlike draws must not make unlike memories
    trainer.train()
    return begun | weights_of(trainer.objective)


def gradients(loss: DistillationLoss, scene: Scene, share: float) -> dict[str, Tensor]:
    """The value of one batch, and its gradients as data-parallel training averages them.

    Args:
        loss: bound here.
        scene: the rows of this process.
        share: what the objective multiplies the value by, its rows over the mean of the processes.
    """
    torch.manual_seed(0)
    loss.bind(STUDENT, TEACHER)
    with torch.no_grad():
        for parameter in loss.parameters():
            parameter.normal_()
    scene = scene.watched()
    value = loss(*scene.parts())
    (share * value).backward()
    found = {"value": value.detach()}
    for name, parameter in loss.named_parameters():
        found[name] = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        if distributed.is_initialized():
            distributed.all_reduce(found[name])
            found[name] /= distributed.get_world_size()
    state = scene.student.hidden_states[STUDENT.depth]
    return found | {"rows": torch.zeros_like(state) if state.grad is None else state.grad}


def run(folder: Path, processes: int) -> None:
    """Do every case and write what this process ends with."""
    results = {"trained": trained(folder, processes)}
    rank = distributed.get_rank() if distributed.is_initialized() else 0
    scene = toy_scene(lengths=LENGTHS)
    scene = scene if processes == 1 else scene.rows(SHARES[rank])
    share = float(scene.batch.row_count()) * processes / sum(length > 0 for length in LENGTHS)
    for name, make in GATHERED.items():
        results[name] = gradients(make(), scene, share)
    for name, tensors in results.items():
        save_file(
            {key: value.contiguous() for key, value in tensors.items()},
            folder / f"{name}-{processes}-{rank}.safetensors",
        )
    if distributed.is_initialized():
        distributed.destroy_process_group()


if __name__ == "__main__":
    run(Path(sys.argv[1]), int(sys.argv[2]))
