"""Value and gradients of each loss that gathers rows, on one batch, by as many processes as torchrun starts.

    torchrun --nproc_per_node 2 gather.py FOLDER

Each process has some of the rows and writes what it got to FOLDER/<processes>-<rank>.pt. Not a test itself:
test_gather.py starts it.
"""

import sys
from dataclasses import replace
from pathlib import Path

import torch
from loss_variants import VARIANTS
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel
from toy_representations import STUDENT, TEACHER, Scene, leaves, rebuilt, toy_scene

from hfdistill.losses import DistillationLoss

# case -> real tokens of each row, and where the second process's rows begin; the last row has no label
CASES = {"halves": ((5, 2, 4, 3), 2), "uneven, with an empty row": ((5, 0, 4, 2, 3), 3)}
DATA_LABELS = torch.arange(20) % 3
Results = dict[str, dict[str, dict[str, Tensor]]]


def gathers(loss: DistillationLoss) -> list[nn.Module]:
    """The parts of a loss that can gather rows."""
    return [module for module in loss.modules() if "gather" in vars(module)]


GATHERING = [name for name, variant in VARIANTS.items() if gathers(variant.make())]


class Shown(nn.Module):
    """A student whose representations a parameter each scales, and what the loss makes of them."""

    def __init__(self, name: str, lengths: tuple[int, ...]) -> None:
        super().__init__()
        variant = VARIANTS[name]
        student, teacher = (replace(side, head=variant.head, classes=variant.classes) for side in (STUDENT, TEACHER))
        torch.manual_seed(0)
        self.loss = variant.make()
        for part in gathers(self.loss):
            vars(part)["gather"] = True
        self.loss.bind(student, teacher)
        if self.loss.indexed:
            self.loss.bind_data(len(DATA_LABELS), DATA_LABELS)
        self.scene = toy_scene(student, teacher, lengths).to(torch.float64)
        self.gains = nn.ParameterList(torch.ones(shown.shape[-1]) for shown in leaves(self.scene.student))
        self.double()

    def forward(self, scene: Scene) -> Tensor:
        scaled = (shown * gain for shown, gain in zip(leaves(scene.student), self.gains, strict=True))
        return self.loss(rebuilt(scene.student, scaled), scene.teacher, scene.batch)


def measured(name: str, case: str, rank: int, processes: int) -> dict[str, Tensor]:
    """What one loss makes of this process's rows: its value, and the gradients that the processes agree on."""
    lengths, cut = CASES[case]
    shown = Shown(name, lengths)
    scene, total = shown.scene, shown.loss.count(shown.scene.batch)
    if processes > 1:
        scene = scene.rows(slice(0, cut) if rank == 0 else slice(cut, len(lengths)))
    wrapped = DistributedDataParallel(shown, find_unused_parameters=True) if processes > 1 else shown
    torch.manual_seed(1)
    value = wrapped(scene)
    # as the objective scales it: by its number of items, where data-parallel training takes the mean over processes
    (value * shown.loss.count(scene.batch) * processes / total).backward()
    gradients = {key: parameter.grad for key, parameter in shown.named_parameters() if parameter.grad is not None}
    return {"value": value.detach(), **gradients}


def run(folder: Path) -> None:
    """Measure every loss in every case and write the results."""
    processes, rank = 1, 0
    if distributed.is_torchelastic_launched():
        distributed.init_process_group("gloo")
        processes, rank = distributed.get_world_size(), distributed.get_rank()
    results: Results = {case: {name: measured(name, case, rank, processes) for name in GATHERING} for case in CASES}
    torch.save(results, folder / f"{processes}-{rank}.pt")
    if processes > 1:
        distributed.destroy_process_group()


if __name__ == "__main__":
    run(Path(sys.argv[1]))
