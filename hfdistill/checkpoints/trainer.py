"""A Trainer whose checkpoints are complete or absent, and whose resumed run is the uninterrupted one.

It saves the student alone, with the objective's trainable parts beside it, and resumes both.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import torch
from accelerate.utils import broadcast_object_list
from torch import nn
from torch.utils.data import IterableDataset
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME, TRAINING_ARGS_NAME
from transformers.trainer_pt_utils import LengthGroupedSampler
from transformers.trainer_utils import TrainOutput

from hfdistill.attachment import SUBMODULE
from hfdistill.checkpoints.batch_randomness import BatchRandomness
from hfdistill.checkpoints.folders import (
    UNFINISHED,
    check_complete,
    clear_unfinished,
    last_complete_checkpoint,
    publish,
    remove,
    step_of,
    surplus,
)
from hfdistill.checkpoints.log_sums import LogSums
from hfdistill.checkpoints.storage import explained_storage
from hfdistill.distributed.sharding import is_sharded, whole_state
from hfdistill.objective import Objective
from hfdistill.objective_state import load_objective, save_objective
from hfdistill.student_state import restore_renamed
from hfdistill.term_averages import TermAverages

logger = logging.getLogger(__name__)


class CheckpointingTrainer(Trainer):
    """Saves and resumes a student with its objective; see DistillationTrainer."""

    objective: Objective
    _train_terms: TermAverages
    _randomness: BatchRandomness | None = None
    _saving = False  # whether a checkpoint is being written
    _resumed: str | None = None  # the checkpoint that this run goes on from
    _began = 0.0  # when this part of the run began, less the seconds of the parts before
    _whole_run = False  # whether the sums of the log reach back to the first step of a resumed run

    @property
    def student(self) -> nn.Module:
        """The student, as it was given."""
        if self.model is None:
            raise ValueError("DistillationTrainer has no student yet. Pass model=..., or model_init=...")
        return self.model

    # ---- resuming ----

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> Any:
        """Train the student, from the beginning or from a checkpoint; see Trainer.train.

        Args:
            resume_from_checkpoint: a checkpoint's folder, or True for the last complete one in `output_dir`.
            trial: see Trainer.train.
            ignore_keys_for_eval: see Trainer.train.

        Raises:
            ValueError: there is no complete checkpoint, or the one that is named is not.
            FileNotFoundError: there is no such folder.
        """
        self._resumed = self._chosen_checkpoint(resume_from_checkpoint) if resume_from_checkpoint else None
        self._whole_run, self._began = False, time.perf_counter()
        if not any(isinstance(callback, _Continuity) for callback in self.callback_handler.callbacks):
            self.add_callback(_Continuity(self))
        return super().train(self._resumed, trial, ignore_keys_for_eval)

    def _chosen_checkpoint(self, asked: str | bool) -> str:
        """The checkpoint to resume from, the same on all processes; the first one looks."""
        if not isinstance(asked, bool):
            if not isinstance(asked, str | os.PathLike):
                raise TypeError(
                    f"resume_from_checkpoint must be a folder, or True for the last one in output_dir, got {asked!r} "
                    f"({type(asked).__name__})."
                )
            check_complete(asked)
            return str(asked)
        run = str(self.args.output_dir)
        found: list[str | None] = [last_complete_checkpoint(run) if self.args.process_index == 0 else None]
        if self.args.world_size > 1:
            broadcast_object_list(found)
        if found[0] is None:
            raise ValueError(
                f"resume_from_checkpoint=True, but {run} holds no complete checkpoint to go on from. Name one of "
                "another folder, or leave it out to begin anew."
            )
        logger.warning("Resuming from %s, the last complete checkpoint.", found[0])
        return found[0]

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if is_sharded(self.student):  # what is read here are files of shards, which hold the objective, too
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        if not restore_renamed(self.student, resume_from_checkpoint):
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        load_objective(self.objective, resume_from_checkpoint)

    def _load_best_model(self) -> None:
        best = self.state.best_model_checkpoint
        if best is None or is_sharded(self.student) or not restore_renamed(self.student, best):
            super()._load_best_model()

    def seconds_in_training(self) -> float:
        """Wall-clock seconds from the beginning of `train` to now, with those of the run that was resumed."""
        return time.perf_counter() - self._began

    def _get_dataloader(
        self,
        dataset: Any,
        description: str,
        batch_size: int,
        sampler_fn: Callable[[Any], Any] | None = None,
        is_training: bool = False,
        dataloader_key: str | None = None,
    ) -> Any:
        if not is_training or isinstance(dataset, IterableDataset):
            return super()._get_dataloader(dataset, description, batch_size, sampler_fn, is_training, dataloader_key)
        seed, own = self.args.seed if self.args.data_seed is None else self.args.data_seed, self.data_collator
        self._randomness = BatchRandomness(seed)
        kept = self._remove_unused_columns(dataset, description) if isinstance(dataset, datasets.Dataset) else dataset
        self.data_collator = self._randomness.collator(own)

        def sampler(_: Any) -> Any:  # made of the rows themselves, whose lengths are a column
            made = None if sampler_fn is None else sampler_fn(kept)
            if isinstance(made, LengthGroupedSampler) and made.generator is None and self._randomness is not None:
                made.generator = self._randomness.order  # else dropout's, which a resumed run begins anew
            return made

        try:
            loader: Any = super()._get_dataloader(
                self._randomness.rows(kept),
                description,
                batch_size,
                sampler,
                is_training,
                dataloader_key,
            )
        finally:
            self.data_collator = own
        if self.args.dataloader_persistent_workers:  # new ones after resuming must not draw from dropout's generator
            loader.base_dataloader.generator = torch.Generator()
        return loader

    def begin_epoch(self, epoch: int) -> None:
        """Let the batches of this epoch differ from those of the one before; called before the first is made."""
        if self._randomness is not None:
            self._randomness.begin_epoch(epoch)

    def restore_sums(self) -> None:
        """Go on with the sums of the log where the checkpoint left them; called when training begins."""
        if self._resumed is None:
            return
        sums = LogSums.load(self._resumed, self.args.process_index, self.args.world_size)
        if sums is None:
            logger.warning(
                "%s holds no sums of the log for %d processes: the next log line is the mean since the checkpoint.",
                *(self._resumed, self.args.world_size),
            )
            return
        self._tr_loss = sums.loss.to(self.args.device)
        self._total_loss_scalar = sums.total
        self._globalstep_last_logged = sums.logged
        self._whole_run, self._began = True, self._began - sums.seconds
        self._train_terms.restore({name: value.to(self.args.device) for name, value in sums.terms.items()})

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """The Trainer's own; `train_loss` of a resumed run is the mean over all of its steps."""
        if self._whole_run and "train_loss" in logs:
            logs["train_loss"] = self._total_loss_scalar / max(self.state.global_step, 1)
        super().log(logs, start_time)

    def _finalize_training(self, trial: Any, num_train_samples: float, start_time: float) -> TrainOutput:
        output: TrainOutput = super()._finalize_training(trial, num_train_samples, start_time)  # type: ignore[no-untyped-call]
        return output._replace(training_loss=output.metrics["train_loss"])

    # ---- saving: the student alone, the objective beside it ----

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the student; checkpoints get the objective's trainable parts beside it."""
        folder = Path(output_dir or str(self.args.output_dir))
        checkpoint = _internal_call and step_of(folder) is not None
        if self._kept_in_shards() and not checkpoint:  # the Trainer would write nothing at all, and not say so
            self._save(str(folder), whole_state(self.student))
        super().save_model(output_dir, _internal_call)
        if checkpoint:
            state = whole_state(self.objective)  # of all processes
            if self.args.should_save:
                save_objective(state, folder)

    def _kept_in_shards(self) -> bool:
        """Whether checkpoints hold the student in shards only, as FSDP's SHARDED_STATE_DICT asks."""
        plugin = self.accelerator.state.fsdp_plugin if self.is_fsdp_enabled else None
        return plugin is not None and "SHARDED" in str(plugin.state_dict_type)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        if state_dict is not None:
            state_dict = {key: value for key, value in state_dict.items() if not key.startswith(f"{SUBMODULE}.")}
        super()._save(output_dir, state_dict)
        if self.args.should_save:  # a pickle, which nobody reads: the record tells the arguments
            Path(output_dir or str(self.args.output_dir), TRAINING_ARGS_NAME).unlink(missing_ok=True)

    def _get_output_dir(self, trial: Any = None) -> str:
        place: str = super()._get_output_dir(trial)
        return str(Path(place) / UNFINISHED) if self._saving else place

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write the checkpoint aside, and move it to its place when it is whole; see checkpoints.folders."""
        run = Path(self._get_output_dir(trial))
        name = f"checkpoint-{self.state.global_step}"
        with explained_storage(run, name, self.args.should_save):
            if self.args.should_save:
                clear_unfinished(run)
            self.accelerator.wait_for_everyone()  # nobody writes before what a dead process left is gone
            self._saving = True
            try:
                super()._save_checkpoint(model, trial)
            finally:
                self._saving = False
            self.accelerator.wait_for_everyone()  # all have written
            if self.args.should_save:
                self._publish(run, name)
            self.accelerator.wait_for_everyone()  # nobody goes on before it is there
            if self.args.local_process_index == 0 and (run / UNFINISHED / name).is_dir():
                publish(run / UNFINISHED / name, run)  # a node whose disk the saving process doesn't see

    def _publish(self, run: Path, name: str) -> None:
        aside = run / UNFINISHED / name
        if self.state.best_model_checkpoint == str(aside):
            self.state.best_model_checkpoint = str(run / name)
            self.state.save_to_json(str(aside / TRAINER_STATE_NAME))
        place = publish(aside, run)
        best = self.state.best_model_checkpoint
        kept = {place} if best is None else {place, Path(best)}
        for folder in surplus(run, self.args.save_total_limit, kept):
            remove(folder)
        clear_unfinished(run)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        total, logged = self._total_loss_scalar, self._globalstep_last_logged
        sums = LogSums(self._tr_loss, total, logged, self.seconds_in_training(), self._train_terms.sums())
        sums.save(output_dir, self.args.process_index, self.args.world_size)


class _Continuity(TrainerCallback):
    """Restores the sums of the log after the Trainer has set them to 0, and tells batches of their epoch."""

    def __init__(self, trainer: CheckpointingTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.trainer.restore_sums()

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.trainer.begin_epoch(int(state.epoch or 0))
