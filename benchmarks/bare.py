"""Training loops without a trainer: the floor of a distillation step, the student alone, and the naive loop."""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain, repeat
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader

from benchmarks.models import Inputs, Models, Padding

RATE = 1e-5
TEMPERATURE = 4.0


def batches(rows: Dataset, batch: int, device: torch.device, padding: Padding) -> Iterator[Inputs]:
    """Shuffled batches without end, as a loop of torch has them."""
    order = torch.Generator().manual_seed(0)
    loader = DataLoader(rows, batch, shuffle=True, collate_fn=padding, generator=order, drop_last=True)
    for inputs in chain.from_iterable(repeat(loader)):
        yield {name: tensor.to(device) for name, tensor in inputs.items()}


def optimizer_of(*modules: torch.nn.Module) -> torch.optim.AdamW:
    """The optimizer of every row of every table: the Trainer's default, AdamW in one fused kernel, no weight decay."""
    parameters = [parameter for module in modules for parameter in module.parameters()]
    return torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.0, fused=True)


def kl(student: Tensor, teacher: Tensor) -> Tensor:
    """T^2 KL(teacher || student), mean over rows; logits (B, K) each."""
    ours, theirs = (logits.float() / TEMPERATURE for logits in (student, teacher))
    return F.kl_div(ours.log_softmax(-1), theirs.softmax(-1), reduction="batchmean") * TEMPERATURE**2


def floor(models: Models, data: Iterator[Inputs], half: bool = False) -> Callable[[], None]:
    """The teacher's forward pass and the student's step (forward, backward, AdamW) on the KL of the logits.

    Args:
        models: of the run.
        data: batches without end.
        half: with the teacher in bfloat16: what a row with such a teacher could cost at the least.
    """
    teacher, student = models.half_teacher if half else models.teacher, models.student()
    optimizer = optimizer_of(student)

    def step() -> None:
        inputs = next(data)
        with torch.no_grad():
            theirs = teacher(inputs["input_ids"], inputs["attention_mask"])
        ours = student(inputs["input_ids"], inputs["attention_mask"])
        kl(ours.logits, theirs.logits).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def alone(models: Models, data: Iterator[Inputs]) -> Callable[[], None]:
    """The student's step on its labels, without a teacher."""
    student = models.student()
    optimizer = optimizer_of(student)

    def step() -> None:
        student(**next(data)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def naive(models: Models, data: Iterator[Inputs]) -> Callable[[], None]:
    """The loop that asks both models for everything under eager attention and compares mapped layers by hand.

    Hidden states of the embeddings and of each student layer by one projection, attention maps, and the logits.
    """
    teacher, student = models.eager_teacher, models.student("eager")
    width, other = student.config.hidden_size, teacher.config.hidden_size
    projector = torch.nn.Linear(width, other).to(models.device)
    optimizer = optimizer_of(student, projector)
    everything = {"output_hidden_states": True, "output_attentions": True}

    def step() -> None:
        inputs = next(data)
        with torch.no_grad():
            theirs = teacher(inputs["input_ids"], inputs["attention_mask"], **everything)
        ours = student(inputs["input_ids"], inputs["attention_mask"], **everything)
        (kl(ours.logits, theirs.logits) + mapped(ours, theirs, projector)).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def mapped(ours: Any, theirs: Any, projector: torch.nn.Module) -> Tensor:
    """Squared differences of hidden states and attention maps, uniform over the teacher's depth."""
    every = len(theirs.attentions) // len(ours.attentions)
    loss = F.mse_loss(projector(ours.hidden_states[0]), theirs.hidden_states[0])
    for layer, maps in enumerate(ours.attentions, start=1):
        loss = loss + F.mse_loss(projector(ours.hidden_states[layer]), theirs.hidden_states[layer * every])
        loss = loss + F.mse_loss(maps, theirs.attentions[layer * every - 1])
    return loss


BARE: dict[str, Callable[[Models, Iterator[Inputs]], Callable[[], None]]] = {
    "floor": floor,
    "floor bf16": partial(floor, half=True),
    "student": alone,
    "naive": naive,
}
"""Name of a row -> what makes its step."""
