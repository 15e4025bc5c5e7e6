"""The Trainer, taught to distil.

`DistillationTrainer(model=student, teacher=teacher, objective="kd", args=args, train_dataset=...)` is a Trainer in
everything else. The path of a batch: the teacher shows its representations (no gradient), the student's forward runs
with the objective attached to its root (see `attachment`), the terms are noted, the loss goes back. Evaluation is the
Trainer's own and needs no teacher.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import ImageProcessingMixin, PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments

from hfdistill.adapters import adapted, adapting
from hfdistill.anatomy import Anatomy
from hfdistill.arguments import DistillationSettings
from hfdistill.attachment import Attachment, Request, task_loss_of
from hfdistill.checks.preflight import preflight
from hfdistill.compatibility import check_arguments, check_dataset, check_optimizer, check_student, check_trainable
from hfdistill.configuration import as_objective
from hfdistill.distributed.launch import check_launch, check_one_student
from hfdistill.distributed.placement import TeacherPlacement, prepare_fsdp
from hfdistill.distributed.sharding import clear_gradients
from hfdistill.faults.nonfinite import NumberWatch
from hfdistill.faults.trainer import GuardedTrainer
from hfdistill.freezing import LayerFreezing
from hfdistill.item_counts import ItemCounts
from hfdistill.losses.bilevel import BilevelLoss
from hfdistill.meta_gradient import add_meta_gradients, meta_gradients
from hfdistill.mixup import MixedBatch, evaluated_logits
from hfdistill.model_inputs import ModelInputs
from hfdistill.objective import Objective
from hfdistill.observation import observed_task_loss, observed_terms
from hfdistill.pairing import bind_objective, check_mixing, check_run, paired_inputs, prepare_ddp, settled_teacher
from hfdistill.perturbation import found_shift, shifted_embeddings
from hfdistill.publishing.push import PublishingTrainer
from hfdistill.representations import SAMPLE_INDEX, Batch, Representations
from hfdistill.row_checks import CheckedRows, RowLimits, explained_inputs
from hfdistill.sample_index import class_labels, indexed_rows
from hfdistill.schedules import Constant
from hfdistill.shared_base import check_shared_base
from hfdistill.teacher_cache.trainer import CachingTrainer
from hfdistill.teacher_tokens import teacher_columns
from hfdistill.teachers import Teacher
from hfdistill.teaching import Teaching
from hfdistill.term_averages import TermAverages


class DistillationTrainer(CachingTrainer, GuardedTrainer, PublishingTrainer):
    """A Trainer whose student learns from a teacher.

    Args:
        model: the student; it stays `trainer.model`, and a saved student is a plain `from_pretrained` folder.
        args: TrainingArguments, or DistillationTrainingArguments for the options that distillation adds.
        teacher: a model (it will be frozen), a folder or hub name, or anything with the Teacher protocol. None is for
            objectives that need no teacher: the student without distillation. The student itself, where it learns by
            an adapter of PEFT: then its base teaches, the adapter switched off (see SharedBaseTeacher).
        objective: an Objective, a preset's name ("kd", "tinybert"), or a mapping as in a configuration file.
        teacher_processing_class: the teacher's tokenizer, to verify that both models read the same ids; or its image
            processor, to give it the student's images as it was made for them. Loaded with a teacher that is given by
            name.
        peft_config: the student learns by an adapter: a configuration of PEFT (LoraConfig, ...), or a mapping with its
            `peft_type` and fields. The student is wrapped, also one of `model_init`; a PeftModel needs none.
        trainer_arguments: everything else that Trainer takes.

    Raises:
        ValueError: student, teacher and objective do not fit together; the message says what to do.
        TypeError: `teacher` or `objective` is of a kind that is not understood.
    """

    teacher: Teacher | None = None
    loss_is_scaled_for_ga = False  # our losses are means over the batch: the Trainer must divide by accumulation steps

    def __init__(
        self,
        model: PreTrainedModel | nn.Module | None = None,
        args: TrainingArguments | None = None,
        *,
        teacher: PreTrainedModel | nn.Module | str | Teacher | None = None,
        objective: Objective | str | Mapping[str, Any] = "kd",
        teacher_processing_class: PreTrainedTokenizerBase | ImageProcessingMixin | None = None,
        peft_config: Any = None,
        **trainer_arguments: Any,
    ) -> None:
        check_student(model)
        super().__init__(model=adapted(model, peft_config), args=args, **adapting(trainer_arguments, peft_config))
        self.model_accepts_loss_kwargs = False  # else the loss would be scaled by accumulation and by world size
        if not self.label_names and not self.can_return_loss:
            self.label_names = ["labels"]  # a forward without labels (DeiT with two heads) names none
        self.settings = DistillationSettings.of(self.args)
        self.objective: Objective = as_objective(objective)
        self._settle_processes()
        check_dataset(self.train_dataset)
        self.student_anatomy = Anatomy.of(self.student)
        self.teacher = settled_teacher(teacher, self.student, self.settings, self.args.device)
        self.placement = TeacherPlacement(self.teacher, self.accelerator, *self.settings.running)
        self._losses_as_given = copy.deepcopy(self.objective.losses) if self.model_init is not None else None
        self._bind()
        self.teacher_processing_class = teacher_processing_class
        given = (self.processing_class, teacher_processing_class, teacher, self.settings.trust_remote_code)
        conversion = paired_inputs(
            self.student, self.student_anatomy, self.teacher, self.objective, self.train_dataset, *given
        )
        self._teaching = Teaching(self.teacher, conversion, self._settled_cache(conversion))
        self._numbers = NumberWatch(self.accelerator, self.objective, self.settings.on_nonfinite, self._teaching.watch)
        self._check_batches()
        if self.objective.staged:
            self.add_callback(LayerFreezing(self.student, self.objective))
        self._attachment: Attachment | None = None
        self._counts = ItemCounts(self.accelerator)
        self._last_progress = 0.0  # of the last loss; when it is logged, the step that it led to is already counted
        self._train_terms = TermAverages(lambda values: self.accelerator.reduce(values, reduction="mean"))
        self._eval_terms = TermAverages(lambda values: self.accelerator.reduce(values, reduction="mean"))

    # ---- the path of a batch ----

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The objective's weighted sum in training, the task loss in evaluation; see Trainer.compute_loss."""
        if not model.training and (self._inputs.with_labels or self.compute_loss_func is not None):
            return super().compute_loss(model, self._inputs.labelled(inputs), return_outputs, num_items_in_batch)
        if not model.training:
            output = model(**self._inputs.of_student(inputs))
            loss = observed_task_loss(output, self._batch(inputs))
            return (loss, output) if return_outputs else loss
        task_loss = task_loss_of(self.compute_loss_func)
        with self._attached() as attachment, ExitStack() as passing:
            mixed = self._mixed(inputs)
            inputs = inputs if mixed is None else mixed.inputs
            batch, student_inputs = self._batch(inputs, mixed), self._inputs.of_student(inputs)
            taught = self._teach(inputs, batch, mixed)
            if mixed is not None:  # after the teacher's pass, which may go through the same embeddings
                passing.enter_context(mixed.embeddings(self.student))
            fewer_rows = self.settings.uncertainty_mixup is not None
            scales = None if fewer_rows else self._counts.scales(self.objective, batch)
            request = Request(taught, batch, scales, task_loss)
            if self.settings.embedding_perturbation:
                student = self.accelerator.unwrap_model(model)  # autograd.grad must not go through DDP
                shift = found_shift(student, student_inputs, attachment, request, self.settings.embedding_perturbation)
                passing.enter_context(shifted_embeddings(self.student, shift))
            with attachment.request(request), explained_inputs(self.student, student_inputs, "student"):
                output, result = model(**student_inputs)
        self._train_terms.add(*self._numbers.counted(result.terms))
        self._last_progress = batch.progress
        loss = self._looked(result, batch.size, student_inputs, output)
        return (loss, output) if return_outputs else loss

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """The Trainer's own, and the gradients of meta networks one level up; see BilevelLoss."""
        loss: Tensor = super().training_step(model, inputs, num_items_in_batch)
        for bilevel in self.objective.bilevel(self._progress()):
            self._learn_to_teach(bilevel, self._prepare_inputs(inputs))
        return loss

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor | int | None]:
        """Count the valid items of each loss over the micro-batches of an update; see Trainer.get_batch_samples."""
        samples, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        if samples:
            clear_gradients(self.student)
            self._counts.begin(self.objective, (self._batch(inputs) for inputs in samples), device)
        return samples, items

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """The Trainer's own, with `eval_loss/<name>` noted where `eval_objective` asks for it."""
        inputs = self._prepare_inputs(inputs)
        if self.settings.eval_objective:
            self._observe(inputs)
        if ignore_keys is None and self.student_anatomy.distillation_head:
            ignore_keys = ["cls_logits", "distillation_logits"]  # predictions are the answer, the mean of both
        with explained_inputs(self.student, inputs, "student"):
            step: tuple[Tensor | None, Tensor | None, Tensor | None] = super().prediction_step(
                model, self._inputs.labelled(inputs), prediction_loss_only, ignore_keys
            )
        return step

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """The Trainer's own, with the objective's terms among the metrics where `eval_objective` asks for it."""
        output = super().evaluation_loop(*args, **kwargs)
        prefix = kwargs.get("metric_key_prefix", "eval")
        if output.metrics is not None:
            output.metrics.update(self._eval_terms.pop(f"{prefix}_loss/"))
        return output

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add `loss/<name>` (and `weight/<name>` where it is scheduled) to the training log."""
        if "loss" in logs:
            logs.update(self._train_terms.pop("loss/"))
            weights = self.objective.weights(self._last_progress)
            fixed = {name for name in weights if isinstance(self.objective[name].weight, Constant)}
            logs.update({f"weight/{name}": weights[name] for name in weights if name not in fixed})
        super().log(logs, start_time)

    # ---- training: the objective is attached for as long as it lasts ----

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> Any:
        """Train the student; see Trainer.train."""
        self.placement.place(self.teacher)
        if self.args.should_log:
            preflight(self.args, self.student, self.teacher, self.train_dataset, self.label_names).log()
        with self._attached():
            check_trainable(self.student)
            check_optimizer(self.optimizer, self.objective)
            check_one_student(self.student, self.accelerator)
            return super().train(resume_from_checkpoint, trial, ignore_keys_for_eval)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """The Trainer's optimizer, with the objective's trainable parts in it."""
        with self._attached():
            optimizer: torch.optim.Optimizer = super().create_optimizer(model)
        return optimizer

    def call_model_init(self, trial: Any = None) -> nn.Module:
        """A fresh student, and the objective as it was given, so that no trial goes on from the one before."""
        student: nn.Module = super().call_model_init(trial)
        attachment = vars(self).get("_attachment")  # Trainer.__init__ calls this before ours has set anything
        if attachment is not None:
            attachment.__exit__()
            self.student_anatomy = Anatomy.of(student)
            self.objective.losses = copy.deepcopy(self._losses_as_given)
            self._bind()
            self._attachment = Attachment(student, self.objective.to(self.args.device)).__enter__()
            self._teaching.cache = self._settled_cache(self._teaching.conversion)
        return student

    # ---- parts of the path ----

    def _get_dataloader(self, *args: Any, **options: Any) -> Any:
        own, learnt = self.data_collator, (self.student, self.teacher, self.objective, self._inputs.label_name)
        kind = (options.get("is_training", False), self.compute_loss_func is not None)
        self.data_collator = CheckedRows(own, RowLimits.of(*learnt, *kind, self.settings.on_nonfinite == "stop"))
        try:
            return super()._get_dataloader(*args, **options)
        finally:
            self.data_collator = own

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        columns: Any = self._signature_columns  # without the teacher's, what only it reads would be dropped as unused
        read = () if self.teacher is None else teacher_columns(self.teacher.anatomy.input_names)
        columns.extend(name for name in (SAMPLE_INDEX, *read) if name not in columns)

    def _batch(self, inputs: Mapping[str, Any], mixed: MixedBatch | None = None) -> Batch:
        return self._inputs.batch(inputs, self._progress(), mixed)

    def _progress(self) -> float:
        return min(self.state.global_step / max(self.state.max_steps, 1), 1.0)

    def _mixed(self, inputs: Mapping[str, Any]) -> MixedBatch | None:
        """The batch mixed as the run asks: its images, or the rows that the student is least sure of."""
        images, rows = self.settings.image_mixing, self.settings.uncertainty_mixup
        mix = None if images is None else images.draw(inputs["pixel_values"])
        if rows is not None:
            with self.accelerator.autocast():
                logits = evaluated_logits(self.student, self._inputs.of_student(inputs, labels=False))
            mix = rows.choose(logits, self._batch(inputs).mask)
        return None if mix is None else MixedBatch.of(inputs, mix, self._inputs.label_name)

    def _teach(self, inputs: Mapping[str, Any], batch: Batch, mixed: MixedBatch | None = None) -> Representations:
        _, needs = self.objective.needs(batch.progress)
        with self.accelerator.autocast():
            return self._teaching.show(inputs, needs, mixed, self.state.global_step)

    def _learn_to_teach(self, loss: BilevelLoss, inputs: dict[str, Any]) -> None:
        batch = self._batch(inputs)
        taught, rate = self._teach(inputs, batch), self._get_learning_rate()
        with self.accelerator.autocast():
            gradients = meta_gradients(self.student, loss, self._inputs.of_student(inputs), taught, batch, rate)
        scale = 1.0 if self.accelerator.scaler is None else self.accelerator.scaler.get_scale()
        share = scale / self._counts.micro_steps
        add_meta_gradients(loss, gradients, lambda own: self.accelerator.reduce(own, reduction="mean") * share)

    def _observe(self, inputs: Mapping[str, Any]) -> None:
        """Evaluate every term on one batch, for `eval_loss/<name>`."""
        batch, own = self._batch(inputs), self._inputs.of_student(inputs)
        self.objective.to(self.args.device)
        self.placement.place(self.teacher)
        taught, task_loss = self._teach(inputs, batch), task_loss_of(self.compute_loss_func)
        self._eval_terms.add(*observed_terms(self.student, self.objective, own, taught, batch, task_loss))

    # ---- setting up ----

    def _settle_processes(self) -> None:
        """Refuse a launch that came to something else than it was meant to, and tell Accelerate what is to be done."""
        check_launch(self.args, self.accelerator)
        prepare_ddp(self.accelerator, self.args, self.objective)
        prepare_fsdp(self.accelerator, self.student)
        check_arguments(self.args)

    def _check_batches(self) -> None:
        """Refuse batches that the objective cannot learn from, as they are cut or as they are mixed."""
        check_run(self.args, self.objective, self.accelerator, self.compute_loss_func)
        mixing = self.settings.image_mixing or self.settings.uncertainty_mixup
        check_mixing(mixing, self.objective, self.student_anatomy, self.teacher, self.compute_loss_func)

    def _bind(self) -> None:
        """Resolve layer maps and build trainable parts, before any optimizer exists."""
        theirs = None if self.teacher is None else self.teacher.anatomy
        self._inputs = ModelInputs(self.student_anatomy, theirs, self.label_names, self.args.label_smoothing_factor)
        check_shared_base(self.teacher, self.student, self.is_fsdp_enabled)
        bind_objective(self.objective, self.student, self.student_anatomy, self.teacher)
        if self.objective.indexed:
            rows: Any = indexed_rows(self.train_dataset)
            self.train_dataset = rows
            self.objective.bind_data(len(rows), class_labels(rows, self._inputs.label_name))

    @contextmanager
    def _attached(self) -> Iterator[Attachment]:
        """The objective on the student: for the length of training, or of this context where no training runs."""
        if self._attachment is not None:
            yield self._attachment
            return
        self.objective.to(self.args.device)
        self._attachment = Attachment(self.student, self.objective).__enter__()
        try:
            yield self._attachment
        finally:
            attachment, self._attachment = self._attachment, None  # model_init may have moved it to another student
            attachment.__exit__()
