"""A comparison under one protocol: teacher, control and distilled students, over seeds, on one data set.

An arm is a name and an objective; "control" is the same student trained on the labels alone. Every arm and seed gets
the same rows, the same number of steps and the same initial student. This module knows no task and no modality: what a
student is, how a batch is made and what is measured are given.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from datasets import Dataset
from tqdm.auto import tqdm
from transformers import PreTrainedModel, TrainingArguments, set_seed

from hfdistill.anatomy import Anatomy
from hfdistill.arguments import DistillationSettings
from hfdistill.arms import check_arms, check_evaluation
from hfdistill.checkpoints.folders import last_complete_checkpoint
from hfdistill.comparison import Comparison as Comparison
from hfdistill.comparison import write_json
from hfdistill.distributed.launch import check_data_parallel
from hfdistill.evaluation import Array, input_batches, predicted_logits, write_tensors
from hfdistill.losses import TaskLoss
from hfdistill.measurement import latencies, machine_name
from hfdistill.objective import Objective
from hfdistill.publishing.card import write_model_card
from hfdistill.publishing.folder import TASKS
from hfdistill.report import (
    ArmResult,
    agreement,
    mean_kl,
    paired_bootstrap,
    parameter_count,
    samples_per_second,
    size_on_disk,
)
from hfdistill.report.results import CONTROL as CONTROL
from hfdistill.run_record import finished_seconds, plain_arguments, rows_digest, run_key, write_record
from hfdistill.teacher_precision import precision_of
from hfdistill.trainer import DistillationTrainer

logger = logging.getLogger(__name__)

SAMPLE_ROWS = 64
"""Rows of the batch that is kept for measurements and for checks of an export."""
MEASURED_ROWS = 512
"""Rows whose inference is timed, at most, where they make a batch or more."""

Metrics = Callable[[Array, Array], Mapping[str, float]]


@dataclass
class Experiment:
    """Everything that the arms of a comparison share.

    Args:
        teacher: trained on the task; its outputs are what agreement and KL compare with.
        make_student: a fresh student; called once per arm and seed, after the seed is set.
        arguments: of every run; seed and output folder are set per run.
        train_dataset: rows to train on.
        evaluation: split name -> rows; the first is the one whose figures stand in the table, the metrics of the
            others are kept as "<split>/<metric>".
        data_collator: makes the batches that students train on.
        processing_class: the tokenizer or image processor, saved with each student.
        metrics: from logits and labels to named figures.
        metric: the one that the table shows.
        output_dir: students are saved in <output_dir>/<arm>/seed-<seed>.
        resampled: what bootstrapping calls thousands of times instead of `metrics` where that is slow; None: the same.
        evaluation_collator: makes batches without augmentation; None: as in training.
        teacher_collator: makes the batches that the teacher is evaluated on, where its inputs are prepared in another
            way than the student's; None: as the student's.
        teacher_processing_class: what prepares the teacher's inputs, where it is not the student's.
        batching: what decides how rows become batches (augmentation, sizes), as plain values: a run with others is
            another run.
        data: name and splits of the data, for the record.
    """

    teacher: PreTrainedModel
    make_student: Callable[[], PreTrainedModel]
    arguments: TrainingArguments
    train_dataset: Dataset
    evaluation: Mapping[str, Dataset]
    data_collator: Any
    processing_class: Any
    metrics: Metrics
    metric: str
    output_dir: str | Path
    resampled: Metrics | None = None
    evaluation_collator: Any = None
    teacher_collator: Any = None
    teacher_processing_class: Any = None
    batching: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Settle which collator serves what.

        Raises:
            TypeError: `make_student` is a model: every run would go on with the same one.
            ValueError: the runs are sharded, by FSDP or DeepSpeed.
        """
        check_data_parallel(self.arguments)
        if isinstance(self.make_student, torch.nn.Module):
            raise TypeError(
                "make_student must make a fresh student each time it is called, got a model: each run would go on "
                "with what the one before trained. Pass a function: lambda: student_from(teacher, num_layers=4)."
            )
        self.evaluation_collator = self.evaluation_collator or self.data_collator
        self.teacher_collator = self.teacher_collator or self.evaluation_collator
        self._copies: dict[str, PreTrainedModel] = {}

    def run(self, arms: Mapping[str, Any], seeds: Sequence[int]) -> Comparison:
        """Train and measure every arm with every seed, going on where an earlier call stopped.

        What that finished is taken from its folder; a run that was cut off goes on from its last complete checkpoint,
        where it wrote any (`save_strategy`).

        Beside each student it leaves predictions, training log, results and model card; in the output folder the
        labels of the evaluation rows with the teacher's predictions, and a batch of the student's inputs.

        Args:
            arms: name -> objective (a preset's name or a mapping, so that each run gets a fresh one); for "control"
                None.
            seeds: of initialisation, order of the rows and dropout.

        Raises:
            ValueError: no arm or no seed; an arm that cannot be a folder's name; an objective that is an object, whose
                projectors one run would hand to the next; rows without labels; a metric that is not measured.
            TypeError: `make_student` makes something else than a PreTrainedModel.
        """
        check_arms(arms, seeds)
        check_evaluation(self.evaluation)
        self._rows = rows_digest(self.train_dataset)
        teacher_logits = self._predict(self.teacher, self.teacher_collator)
        self._keep_evaluation(teacher_logits)
        teacher = self._measured(self.teacher, "teacher", [teacher_logits], [])
        if self.metric not in teacher.metrics[0]:  # told before the students are trained, not after
            raise ValueError(f"the metric {self.metric!r} is not among those measured: {sorted(teacher.metrics[0])}.")
        runs: dict[str, list[tuple[dict[str, Array], float]]] = {name: [] for name in arms}
        measured: dict[str, ArmResult] = {}
        with tqdm(total=len(arms) * len(seeds), desc="runs", unit="run", disable=not self._writes) as bar:
            for name, objective in arms.items():
                for seed in seeds:
                    bar.set_postfix_str(f"{name}, seed {seed}")
                    student, seconds = self._train(name, objective, seed, teacher_logits)
                    runs[name].append((self._predict(student, self.evaluation_collator), seconds))
                    self._write(self.folder(name, seed) / "predictions.safetensors", runs[name][-1][0])
                    bar.update()
                logits, times = [run for run, _ in runs[name]], [seconds for _, seconds in runs[name]]
                measured[name] = self._measured(student, name, logits, times, teacher_logits)
        self._write(Path(self.output_dir) / "sample_batch.safetensors", self._batches(student, 1, SAMPLE_ROWS)[0])
        results = [self._compared(measured, name, runs) for name in arms]
        folders = {name: [str(self.folder(name, seed)) for seed in seeds] for name in arms}
        known = Anatomy.of(self.teacher)
        comparison = Comparison(
            metric=self.metric,
            teacher=teacher,
            arms=results,
            protocol=self._protocol(arms, seeds),
            folders=folders,
            labels=[known.label_names[index] for index in range(known.classes)] if known.classes > 1 else [],
            teacher_folder=str(self.teacher.name_or_path),
        )
        if self._writes:
            comparison.save_beside_students()
            for folder in chain.from_iterable(folders.values()):
                write_model_card(folder)
        return comparison

    def trainer(
        self, name: str, objective: Any, seed: int, student: PreTrainedModel | None = None, **changes: Any
    ) -> DistillationTrainer:
        """The trainer of one arm and seed, not started.

        Args:
            name: of the arm; "control" has neither teacher nor objective of its own.
            objective: a preset's name or a mapping, so that each trainer gets a fresh one.
            seed: of initialisation, order of the rows and dropout.
            student: made anew where it is not given, after the seed is set.
            changes: training arguments that differ from the experiment's.
        """
        if student is None:
            set_seed(seed)
            student = self._fresh_student()
        changes = {"seed": seed, "output_dir": str(self.folder(name, seed)), **changes}
        arguments = replace(self.arguments, **changes)
        return DistillationTrainer(
            model=student,
            args=arguments,
            teacher=None if name == CONTROL else self._given_teacher(arguments),
            objective=Objective(task=TaskLoss()) if name == CONTROL else objective,
            train_dataset=self.train_dataset,
            data_collator=self.data_collator,
            processing_class=self.processing_class,
            teacher_processing_class=self.teacher_processing_class,
        )

    def folder(self, name: str, seed: int) -> Path:
        """Where the student of an arm and seed lies."""
        return Path(self.output_dir) / name / f"seed-{seed}"

    def _given_teacher(self, arguments: TrainingArguments) -> PreTrainedModel:
        """What students learn from: the teacher, or, where trainers convert it, a copy: it is measured as it is."""
        asked = DistillationSettings.of(arguments).teacher_dtype
        if asked in (None, "checkpoint", precision_of(self.teacher)):
            return self.teacher
        if asked not in self._copies:
            self._copies[asked] = copy.deepcopy(self.teacher)
        return self._copies[asked]

    @property
    def _writes(self) -> bool:
        """Whether this is the process that writes files."""
        return int(self.arguments.process_index) == 0

    def _write(self, path: Path, tensors: Mapping[str, Any]) -> None:
        if self._writes:
            write_tensors(path, tensors)

    def _train(
        self, name: str, objective: Any, seed: int, teacher_logits: dict[str, Array]
    ) -> tuple[PreTrainedModel, float]:
        set_seed(seed)
        folder = self.folder(name, seed)
        student = self._fresh_student()
        description = {"arguments": plain_arguments(self.arguments), "objective": objective, "seed": seed}
        key = run_key(student, teacher_logits, self._rows, {**description, "batching": self.batching})
        seconds = finished_seconds(folder, key, self.arguments)
        if seconds is not None:
            logger.info("%s, seed %d: taking the finished run in %s", name, seed, folder)
            return type(student).from_pretrained(folder, dtype=torch.float32), seconds
        trainer = self.trainer(name, objective, seed, student)
        trainer.train(resume_from_checkpoint=last_complete_checkpoint(folder))
        seconds = trainer.seconds_in_training()
        trainer.save_model(str(folder))
        if self._writes:
            write_json(folder / "log_history.json", trainer.state.log_history)
            write_record(folder, key, seconds)
        trainer.accelerator.wait_for_everyone()  # the folder is whole before any process reads it
        # measured is what was saved, in full precision, not the object that mixed precision has wrapped
        return type(student).from_pretrained(folder, dtype=torch.float32), seconds

    def _fresh_student(self) -> PreTrainedModel:
        student = self.make_student()
        if not isinstance(student, PreTrainedModel):
            raise TypeError(
                f"make_student must make a plain transformers model, got a {type(student).__name__}: what is measured "
                "is the model that its folder loads, and an adapter's folder loads none. Train an adapter by "
                "DistillationTrainer(peft_config=...)."
            )
        return student

    def _predict(self, model: PreTrainedModel, collator: Any) -> dict[str, Array]:
        """Split -> logits (rows, K), in full precision."""
        args = self._inference_arguments()
        return {split: predicted_logits(model, rows, collator, args) for split, rows in self.evaluation.items()}

    def _inference_arguments(self) -> TrainingArguments:
        return replace(self.arguments, output_dir=str(self.output_dir))

    def _keep_evaluation(self, teacher_logits: dict[str, Array]) -> None:
        """Write what every later comparison of predictions needs."""
        kept = {f"{split}/teacher_logits": logits for split, logits in teacher_logits.items()}
        kept |= {f"{split}/labels": np.asarray(rows["labels"]) for split, rows in self.evaluation.items()}
        self._write(Path(self.output_dir) / "evaluation.safetensors", kept)

    def _measured(
        self,
        model: PreTrainedModel,
        name: str,
        runs: list[dict[str, Array]],
        seconds: list[float],
        teacher_logits: dict[str, Array] | None = None,
    ) -> ArmResult:
        first = next(iter(self.evaluation))
        reference = None if teacher_logits is None else teacher_logits[first]
        size = self.arguments.per_device_eval_batch_size
        batches = self._batches(model, max(1, min(8, MEASURED_ROWS // size)), size)
        return ArmResult(
            name=name,
            metrics=[self._scores(logits) for logits in runs],
            agreement=[] if reference is None else [agreement(logits[first], reference) for logits in runs],
            kl=[] if reference is None else [mean_kl(logits[first], reference) for logits in runs],
            difference=None,
            parameters=parameter_count(model),
            bytes=self._bytes(model, name),
            samples_per_second=samples_per_second(model, batches).samples_per_second,
            seconds=seconds,
            latencies=latencies(model, self._batches(model, 1, SAMPLE_ROWS)[0]),
        )

    def _scores(self, logits: dict[str, Array]) -> dict[str, float]:
        scores: dict[str, float] = {}
        for position, (split, rows) in enumerate(self.evaluation.items()):
            found = self.metrics(logits[split], np.asarray(rows["labels"]))
            scores.update({key if position == 0 else f"{split}/{key}": value for key, value in found.items()})
        return scores

    def _compared(
        self, measured: dict[str, ArmResult], name: str, runs: dict[str, list[tuple[dict[str, Array], float]]]
    ) -> ArmResult:
        """The arm with its difference to the control, where that was run."""
        if name == CONTROL or CONTROL not in runs:
            return measured[name]
        first = next(iter(self.evaluation))
        ours, control = ([logits[first] for logits, _ in runs[arm]] for arm in (name, CONTROL))
        labels = np.asarray(self.evaluation[first]["labels"])
        difference = paired_bootstrap(self._score, ours, control, labels, samples=1000)
        return replace(measured[name], difference=difference)

    def _score(self, logits: Array, labels: Array) -> float:
        metrics = self.metrics if self.resampled is None else self.resampled
        return float(metrics(logits, labels)[self.metric])

    def _bytes(self, model: PreTrainedModel, name: str) -> int:
        folders = sorted((Path(self.output_dir) / name).glob("seed-*"))
        if folders:
            return size_on_disk(folders[-1])
        # the teacher is not saved here: what its weights take in the precision it runs in, as the students' do
        return sum(value.numel() * value.element_size() for value in model.state_dict().values())

    def _batches(self, model: PreTrainedModel, count: int, size: int) -> list[dict[str, torch.Tensor]]:
        """Up to `count` batches of a model's inputs, from all over the first evaluation split."""
        collator = self.teacher_collator if model is self.teacher else self.evaluation_collator
        rows = next(iter(self.evaluation.values()))
        return input_batches(model, rows, collator, self._inference_arguments(), count, size)

    def _protocol(self, arms: Mapping[str, Any], seeds: Sequence[int]) -> dict[str, Any]:
        return {
            "arms": {name: objective if objective is not None else "labels only" for name, objective in arms.items()},
            "seeds": list(seeds),
            "task": TASKS.get(Anatomy.of(self.teacher).head.removeprefix("For"), ""),
            "data": dict(self.data),
            "train_rows": len(self.train_dataset),
            "evaluation_rows": {split: len(rows) for split, rows in self.evaluation.items()},
            "arguments": self.arguments.to_sanitized_dict(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "machine": machine_name(self.arguments.device),
        }
