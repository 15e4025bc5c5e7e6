"""Sees to it that NaN and inf stop the run, or cost one update, and never reach the student's weights.

A term that is not finite makes the loss NaN, and so the gradients of all processes. Their norm, which every process
knows, then decides about the update of all alike, and nobody has to ask the others. On a CPU it is read at once. On an
accelerator reading would make each step wait for the device: there a fused optimizer, or the scaler of fp16, leaves
the update out without the host, and what was found is read when the trainer logs or saves.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from accelerate import Accelerator, DistributedType
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor
from torch.distributed.tensor import DTensor

from hfdistill.faults.record import NORM, SUM, NonFiniteError, broken_rows, explained, noted, nothing
from hfdistill.objective import ObjectiveResult
from hfdistill.teacher_watch import TeacherWatch

logger = logging.getLogger(__name__)


class NumberWatch:
    """Looks at every term and at the gradient norm, and keeps updates with NaN or inf from being made.

    Args:
        accelerator: whose processes make the updates together.
        names: of the objective's terms.
        on_nonfinite: "stop" ends the run; "skip" leaves the update out, with a count.
        teacher: the watch over the teacher's numbers. It waits for this one where several processes must stop
            together, and says nothing where updates are skipped: then the terms decide.

    Raises:
        ValueError: "skip" under DeepSpeed, which makes the update before the trainer can decide.
    """

    def __init__(
        self, accelerator: Accelerator, names: Iterable[str], on_nonfinite: str, teacher: TeacherWatch
    ) -> None:
        self.accelerator = accelerator
        self.columns = (*names, SUM, NORM)
        self.skip = on_nonfinite == "skip"
        self.at_once = accelerator.device.type == "cpu"
        self.teacher = teacher
        teacher.at_once = accelerator.num_processes == 1 and not self.skip
        self._deepspeed = accelerator.distributed_type == DistributedType.DEEPSPEED
        if self._deepspeed and self.skip:
            raise ValueError(
                "on_nonfinite='skip' cannot be kept under DeepSpeed, which makes the update within the backward pass, "
                "before anybody can look at the gradients. Leave it at 'stop', or train with DDP or FSDP."
            )
        self.reset()

    def reset(self) -> None:
        """Forget everything, as before training."""
        device = self.accelerator.device
        self._micro_batch = 0
        self._kept: list[tuple[Tensor, Tensor]] = []
        self._first = nothing(len(self.columns), device)
        self._refused = torch.zeros((), dtype=torch.bool, device=device)  # the update at hand, by this process
        self._left_out = torch.zeros((), dtype=torch.long, device=device)  # updates, since the last reading
        self._skipped = 0  # updates, since the last log line

    def begin(self, buffers: Iterable[Tensor]) -> None:
        """Before the first micro-batch of an update, keep what forward passes write (running means, memories)."""
        self._micro_batch = 0
        self._refused = torch.zeros_like(self._refused)
        self._kept = [(buffer, buffer.detach().clone()) for buffer in buffers]

    @torch.no_grad()
    def look(self, result: ObjectiveResult, step: int, rows: int, numbers: Iterable[object]) -> Tensor:
        """After a forward pass, note what is not finite.

        Args:
            result: of the micro-batch.
            step: updates made before.
            rows: B of the micro-batch.
            numbers: what the student was given and gave; tensors (B, ...) tell which rows are to blame.

        Returns:
            What the loss is to be multiplied with: 1, or NaN where the update must not be made.

        Raises:
            NonFiniteError: under DeepSpeed, where it cannot wait for the gradients.
        """
        terms = {**result.terms, SUM: result.loss.detach()}
        sound = torch.ones_like(self._refused)
        flags = ~torch.stack([terms[name].isfinite() if name in terms else sound for name in self.columns])
        if not self.at_once or bool(flags.any()):
            device = self._first.device
            self._first = noted(self._first, step, self._micro_batch, flags, broken_rows(numbers, rows, device))
            # where the run is to stop nothing is learnt any more, until somebody reads it
            self._refused = self._refused | (flags.any() if self.skip else self._first[0] >= 0)
        self._micro_batch += 1
        if self._deepspeed:
            self.read()
        return torch.where(self._refused, torch.nan, 1.0).to(result.loss)

    @torch.no_grad()
    def settle(self, norm: Tensor | float | None, step: int, optimizer: torch.optim.Optimizer) -> None:
        """Decide about an update, after the backward pass and before the optimizer's step.

        Args:
            norm: of the gradients of all processes.
            step: updates made before.
            optimizer: which is to make it.

        Raises:
            NonFiniteError: it must not be made, and the run is to stop at once.
        """
        if self._deepspeed:
            self._check_made(norm, step)
        else:
            self._leave_out(self._decision(norm), step, _plain(optimizer))

    def read(self) -> None:
        """Tell what was found since the last call; all processes call it together, and all are told.

        Raises:
            NonFiniteError: something was found, and the run is to stop.
            ValueError: the teacher's numbers were broken, and the run is to stop.
        """
        own = torch.cat([self.teacher.first_bad(self._first.device)[None], self._first])
        found = self.accelerator.gather(own[None]).tolist()  # (processes, 1 + length of a record)
        left_out = int(self._left_out)
        self._skipped += left_out
        self._left_out.zero_()
        self._first = nothing(len(self.columns), self._first.device)
        if not self.skip:
            self._check_teachers([line[0] for line in found])
        message = explained([line[1:] for line in found], self.columns, stopped=not self.skip)
        if message and not self.skip:
            raise NonFiniteError(message)
        if message:
            logger.warning("Updates left out since the last reading: %d. The first: %s", left_out, message)

    def logged(self) -> dict[str, float]:
        """What `read` found since the last call, for a log line: the number of skipped updates, where they are."""
        skipped, self._skipped = self._skipped, 0
        return {"skipped_updates": skipped} if self.skip else {}

    def release(self, optimizer: torch.optim.Optimizer | None) -> None:
        """After training, leave nothing behind that would keep the optimizer from making updates."""
        if optimizer is not None:
            vars(_plain(optimizer)).pop("found_inf", None)
        self.reset()

    def counted(self, terms: Mapping[str, Tensor]) -> tuple[Mapping[str, Tensor], dict[str, Tensor | float] | None]:
        """A micro-batch's terms as the log's means take them, and how much each counts: a broken one, nothing."""
        if not self.skip:
            return terms, None
        sound = {name: value.isfinite() for name, value in terms.items()}
        values = {name: torch.where(sound[name], value, 0.0) for name, value in terms.items()}
        return values, {name: finite.float() for name, finite in sound.items()}

    def _decision(self, norm: Tensor | float | None) -> Tensor:
        """Whether the update must not be made: the same on all processes, and on the device still."""
        if self.accelerator.scaler is not None:  # its own overflows are no fault, and it leaves their updates out
            refused: Tensor = self.accelerator.reduce(self._refused.float(), reduction="sum")
            return refused > 0
        whole = norm.full_tensor() if isinstance(norm, DTensor) else norm
        return ~torch.as_tensor(whole, device=self._first.device).isfinite()

    def _leave_out(self, refused: Tensor, step: int, optimizer: torch.optim.Optimizer) -> None:
        scaled = self.accelerator.scaler is not None
        fused = bool(optimizer.defaults.get("fused")) and self.accelerator.distributed_type != DistributedType.FSDP
        waiting = not self.at_once and (scaled or fused)
        if not waiting and not bool(refused):
            return
        flags = torch.stack([refused if name == NORM else torch.zeros_like(refused) for name in self.columns])
        no_row = broken_rows((), 0, flags.device)
        self._first = noted(self._first, step, max(self._micro_batch - 1, 0), flags, no_row)
        self._left_out += refused
        for buffer, kept in self._kept:
            buffer.copy_(torch.where(refused, kept, buffer))
        if scaled:
            return
        if waiting:
            vars(optimizer)["found_inf"] = refused.float()  # how a scaler tells fused optimizers
            return
        for parameter in (parameter for group in optimizer.param_groups for parameter in group["params"]):
            parameter.grad = None  # optimizers pass over those: neither momentum nor decay moves them
        if not self.skip:
            self.read()

    def _check_made(self, norm: Tensor | float | None, step: int) -> None:
        """Stop after an update that DeepSpeed made with broken gradients; in fp16 it leaves these out by itself."""
        if self.accelerator.mixed_precision == "fp16" or norm is None or math.isfinite(norm):
            return
        raise NonFiniteError(
            f"{NORM} became {float(norm)} at step {step}, and DeepSpeed has made that update already, so the weights "
            "in memory are broken. Nothing was saved since. Look at that batch and at the learning rate, then go on "
            "from the last checkpoint (resume_from_checkpoint=True)."
        )

    def _check_teachers(self, steps: Sequence[int]) -> None:
        """Stop all processes where the teacher of one showed NaN or inf.

        Args:
            steps: of each process, -1 where all was finite.
        """
        if steps[self.accelerator.process_index] >= 0:
            self.teacher.check()
        for rank, step in enumerate(steps):
            if step >= 0:
                raise ValueError(
                    f"the teacher's numbers held NaN or inf on process {rank}, in the batch of step {step}; the "
                    "message of that process says which and what to do. All processes stop with it."
                )


def _plain(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    while isinstance(optimizer, AcceleratedOptimizer):
        optimizer = optimizer.optimizer
    return optimizer
