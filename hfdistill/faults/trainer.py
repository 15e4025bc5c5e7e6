"""A Trainer that says what happened, and what to do, when a run fails, and lets nothing broken go on or be saved."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer

from hfdistill.anatomy import Anatomy
from hfdistill.attachment import SUBMODULE
from hfdistill.faults.memory import BatchShape, advice, is_out_of_memory
from hfdistill.faults.nonfinite import NumberWatch
from hfdistill.faults.processes import Processes, explained_loss, is_lost_process
from hfdistill.faults.workers import explained_worker, is_dead_worker, traced
from hfdistill.objective import Objective
from hfdistill.teachers import Teacher


class GuardedTrainer(Trainer):
    """Watches numbers, memory, data loaders and the other processes; see DistillationTrainer."""

    objective: Objective
    student_anatomy: Anatomy
    teacher: Teacher | None
    _numbers: NumberWatch
    _shape: BatchShape | None = None
    _processes: Processes | None = None

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> Any:
        """Train; see Trainer.train.

        Raises:
            NonFiniteError: a term, or the gradient norm, became NaN or inf (`on_nonfinite="stop"`).
            DataWorkerError: a worker of the data loader died.
            LostProcessError: another process of this run is gone, or does not answer.
        """
        self._numbers.reset()
        self._processes = Processes.together(self.accelerator, self.args.ddp_timeout)
        try:
            with self._explained():
                output = super().train(resume_from_checkpoint, trial, ignore_keys_for_eval)
                self._numbers.read()
        finally:
            self._numbers.release(self.optimizer)
        return output

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> Any:
        """The Trainer's own; with it an update begins, and what its forward passes may write is kept."""
        samples = super().get_batch_samples(epoch_iterator, num_batches, device)
        if self.model is not None:
            buffers = self.model.named_buffers()  # memories of rows are large, and of no use after a stop
            self._numbers.begin(kept for name, kept in buffers if self._numbers.skip or f"{SUBMODULE}." not in name)
        return samples

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """The Trainer's own, with the size of the batch noted, in case that it is too large."""
        self._shape = BatchShape.of(inputs)
        loss: Tensor = super().training_step(model, inputs, num_items_in_batch)
        return loss

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """The Trainer's own; asked for once in each update, before the optimizer's step."""
        norm = super()._get_grad_norm(model, grad_norm)  # type: ignore[no-untyped-call]
        if self.optimizer is not None:
            self._numbers.settle(norm, self.state.global_step, self.optimizer)
        return norm

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """The Trainer's own, with the number of updates that were skipped since the last line."""
        if "loss" in logs:
            self._numbers.read()
            logs.update(self._numbers.logged())
        super().log(logs, start_time)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        self._numbers.read()
        super()._save_checkpoint(model, trial)

    def _get_dataloader(self, dataset: Any, *args: Any, **kwargs: Any) -> DataLoader[Any]:
        loader: DataLoader[Any] = super()._get_dataloader(traced(dataset), *args, **kwargs)
        return loader

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            if is_out_of_memory(error):
                self._note_memory(error)
            elif is_dead_worker(error):
                raise explained_worker(error, self.args.dataloader_num_workers) from error
            elif self._processes is not None and is_lost_process(error):
                place, timeout = str(self.args.output_dir), self.args.ddp_timeout
                raise explained_loss(self._processes, self.state.global_step, place, timeout) from error
            raise

    def _note_memory(self, error: RuntimeError) -> None:
        """Keep the error, by whose kind others know it, and add to its message."""
        error.add_note(advice(self._shape, self.args, self.student_anatomy, self.objective, self.teacher))

    def _looked(self, result: Any, rows: int, inputs: Mapping[str, Any], output: Any) -> Tensor:
        """The loss of a micro-batch, NaN where its update must not be made."""
        shown = output.values() if isinstance(output, Mapping) else ()
        loss: Tensor = result.loss * self._numbers.look(
            result, self.state.global_step, rows, [*inputs.values(), *shown]
        )
        return loss
