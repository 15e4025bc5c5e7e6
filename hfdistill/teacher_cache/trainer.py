"""A Trainer whose batches bring along what its teacher showed of them before."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hfdistill.arguments import DistillationSettings
from hfdistill.checkpoints.trainer import CheckpointingTrainer
from hfdistill.distributed.placement import TeacherPlacement
from hfdistill.model_inputs import ModelInputs
from hfdistill.representations import Representations
from hfdistill.teachers import FrozenTeacher, Teacher
from hfdistill.teaching import Teaching

if TYPE_CHECKING:
    from hfdistill.teacher_cache.cache import TeacherCache  # imported where there is a cache: most runs have none

logger = logging.getLogger(__name__)


class CachingTrainer(CheckpointingTrainer):
    """Reads what is kept of the teacher, and keeps what it shows; see DistillationTrainer."""

    settings: DistillationSettings
    teacher: Teacher | None
    placement: TeacherPlacement
    _inputs: ModelInputs
    _teaching: Teaching
    _caching = False  # whether batches are made to learn from, and so bring along what is kept

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> Any:
        """Train, with the teacher's cache in use where there is one; see Trainer.train.

        Raises:
            ValueError: rows are missing of a teacher that cannot be asked, or are made at random.
            OSError: the cache cannot be written.
        """
        if not any(isinstance(callback, _Writing) for callback in self.callback_handler.callbacks):
            self.add_callback(_Writing(self))
        with self.caching():
            return super().train(resume_from_checkpoint, trial, ignore_keys_for_eval)

    @contextmanager
    def caching(self) -> Iterator[None]:
        """Within this context training batches bring along what is kept; after it all that was added is written.

        Also where it ends by an error or an interruption: what the teacher showed until then is kept.
        """
        self._caching = True
        try:
            yield
        except BaseException:
            try:
                self.write_cache()
            except OSError as error:
                logger.warning("what the teacher showed last was not kept: %s", error)
            raise
        finally:
            self._caching = False
        self.write_cache()

    def write_cache(self, together: bool = False) -> None:
        """Write what was kept since the last time.

        Args:
            together: go on only when all processes have: each finds what the others wrote.

        Raises:
            OSError: it cannot be written.
        """
        cache = self._teaching.cache
        if cache is not None and cache.asks is not None:
            cache.store.flush()
            if together:
                self.accelerator.wait_for_everyone()

    def ask_teacher(self, inputs: Mapping[str, Any]) -> Representations:
        """What the teacher shows of a batch as the data loader made it; kept where the batch says that it lacks."""
        prepared: Mapping[str, Any] = self._prepare_inputs(dict(inputs))
        with self.accelerator.autocast():
            return self._teaching.show(prepared, self.objective.needs()[1])

    def _settled_cache(self, conversion: object) -> TeacherCache | None:
        """What is kept of the teacher as the objective is bound now, where the run asks for it."""
        if self.settings.teacher_cache is None and (self.teacher is None or isinstance(self.teacher, FrozenTeacher)):
            return None
        from hfdistill.teacher_cache.opening import settled_cache

        run = (self._inputs.label_name, conversion, str(self.accelerator.mixed_precision), self.placement.sharded)
        return settled_cache(self.settings, self.teacher, self.objective, *run)

    def _get_dataloader(self, *args: Any, **options: Any) -> Any:
        cache, own = self._teaching.cache, self.data_collator
        if cache is None or not self._caching or not options.get("is_training", False):
            return super()._get_dataloader(*args, **options)
        from hfdistill.teacher_cache.probing import probe

        self.data_collator = cache.collator(own)
        try:
            loader: Any = super()._get_dataloader(*args, **options)
        finally:
            self.data_collator = own
        processes = (self.args.process_index, self.args.world_size)
        probe(cache, loader, self.ask_teacher, self.begin_epoch, processes)
        if self.args.world_size > 1:
            self.write_cache(together=True)
        return loader


class _Writing(TrainerCallback):
    """Writes the cache where a run might end, or another process look for what it lacks."""

    def __init__(self, trainer: CachingTrainer) -> None:
        self.trainer = trainer

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.trainer.write_cache(together=True)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.trainer.write_cache()
