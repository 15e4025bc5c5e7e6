"""A comparison under one protocol: teacher, control and distilled students, over seeds, on one data set.

An arm is a name and an objective; "control" is the same student trained on the labels alone. Every arm and seed gets
the same rows, the same number of steps and the same initial student. This module knows no task and no modality: what a
student is, how a batch is made and what is measured are given.
"""

from __future__ import annotations

import json
import logging
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import transformers
from datasets import Dataset
from tqdm.auto import tqdm
from transformers import PreTrainedModel, Trainer, TrainingArguments, set_seed

from hfdistill.losses import TaskLoss
from hfdistill.objective import Objective
from hfdistill.report import (
    ArmResult,
    agreement,
    mean_kl,
    paired_bootstrap,
    parameter_count,
    results_table,
    samples_per_second,
    size_on_disk,
)
from hfdistill.run_record import finished_seconds, plain_arguments, rows_digest, run_key, write_record
from hfdistill.trainer import DistillationTrainer

logger = logging.getLogger(__name__)

CONTROL = "control"
"""Name of the arm without distillation."""

Array = npt.NDArray[Any]
Metrics = Callable[[Array, Array], Mapping[str, float]]


@dataclass
class Comparison:
    """What an experiment found.

    Args:
        metric: the figure that the table shows.
        teacher: the teacher's own row.
        arms: one row per arm.
        protocol: what was run, for the record: data, arguments, versions, machine.
        folders: arm -> folder of its last seed's student.
    """

    metric: str
    teacher: ArmResult
    arms: list[ArmResult]
    protocol: dict[str, Any] = field(default_factory=dict)
    folders: dict[str, str] = field(default_factory=dict)

    def table(self) -> str:
        """The comparison as a Markdown table, the teacher first."""
        return results_table(self.arms, self.metric, self.teacher)

    def save(self, folder: str | Path) -> None:
        """Write results.json and results.md into `folder`."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        content = {
            "metric": self.metric,
            "teacher": asdict(self.teacher),
            "arms": [asdict(arm) for arm in self.arms],
            "protocol": self.protocol,
        }
        (folder / "results.json").write_text(json.dumps(content, indent=2, default=str) + "\n", encoding="utf-8")
        (folder / "results.md").write_text(self.table() + "\n", encoding="utf-8")


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
        data_collator: makes batches.
        processing_class: the tokenizer or image processor, saved with each student.
        metrics: from logits and labels to named figures.
        metric: the one that the table shows.
        resampled: what bootstrapping calls thousands of times instead of `metrics` where that is slow; None: the same.
        output_dir: students are saved in <output_dir>/<arm>/seed-<seed>.
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

    def run(self, arms: Mapping[str, Any], seeds: Sequence[int]) -> Comparison:
        """Train and measure every arm with every seed; runs that are finished already are taken from their folders.

        Args:
            arms: name -> objective (a preset's name or a mapping, so that each run gets a fresh one); for "control"
                None.
            seeds: of initialisation, order of the rows and dropout.

        Raises:
            ValueError: no arm or no seed; an objective that is an object, whose projectors one run would hand to the
                next.
        """
        if not arms or not seeds:
            raise ValueError(f"a comparison needs an arm and a seed, got arms {list(arms)} and seeds {list(seeds)}.")
        shared = [name for name, objective in arms.items() if isinstance(objective, Objective)]
        if shared:
            raise ValueError(
                f"the arms {shared} are given as Objective objects, whose trained projectors would pass from one seed "
                "to the next. Give a preset's name or a mapping; each run then builds its own."
            )
        self._rows = rows_digest(self.train_dataset)
        teacher_logits = self._predict(self.teacher)
        teacher = self._measured(self.teacher, "teacher", [teacher_logits], [])
        runs: dict[str, list[tuple[dict[str, Array], float]]] = {name: [] for name in arms}
        measured: dict[str, ArmResult] = {}
        with tqdm(total=len(arms) * len(seeds), desc="runs", unit="run") as bar:
            for name, objective in arms.items():
                for seed in seeds:
                    bar.set_postfix_str(f"{name}, seed {seed}")
                    student, seconds = self._train(name, objective, seed, teacher_logits)
                    runs[name].append((self._predict(student), seconds))
                    bar.update()
                logits, times = [run for run, _ in runs[name]], [seconds for _, seconds in runs[name]]
                measured[name] = self._measured(student, name, logits, times, teacher_logits)
        results = [self._compared(measured, name, runs) for name in arms]
        folders = {name: str(self._folder(name, seeds[-1])) for name in arms}
        return Comparison(self.metric, teacher, results, self._protocol(arms, seeds), folders)

    def _train(
        self, name: str, objective: Any, seed: int, teacher_logits: dict[str, Array]
    ) -> tuple[PreTrainedModel, float]:
        set_seed(seed)
        folder = self._folder(name, seed)
        student = self.make_student()
        description = {"arguments": plain_arguments(self.arguments), "objective": objective, "seed": seed}
        key = run_key(student, teacher_logits, self._rows, description)
        seconds = finished_seconds(folder, key)
        if seconds is not None:
            logger.info("%s, seed %d: taking the finished run in %s", name, seed, folder)
            return type(student).from_pretrained(folder, dtype=torch.float32), seconds
        trainer = DistillationTrainer(
            model=student,
            args=replace(self.arguments, seed=seed, output_dir=str(folder)),
            teacher=None if name == CONTROL else self.teacher,
            objective=Objective(task=TaskLoss()) if name == CONTROL else objective,
            train_dataset=self.train_dataset,
            data_collator=self.data_collator,
            processing_class=self.processing_class,
        )
        start = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - start
        trainer.save_model(str(folder))
        write_record(folder, key, seconds)
        # measured is what was saved, in full precision, not the object that mixed precision has wrapped
        return type(student).from_pretrained(folder, dtype=torch.float32), seconds

    def _predict(self, model: PreTrainedModel) -> dict[str, Array]:
        """Split -> logits (rows, K), in full precision."""
        trainer = Trainer(
            model=model,
            args=self._evaluation_arguments(),
            data_collator=self.data_collator,
            processing_class=self.processing_class,
        )
        return {split: np.asarray(trainer.predict(rows).predictions) for split, rows in self.evaluation.items()}

    def _evaluation_arguments(self) -> TrainingArguments:
        """Full precision, and rows in their own order: grouping by length would permute the predictions."""
        return replace(
            self.arguments,
            output_dir=str(self.output_dir),
            bf16=False,
            fp16=False,
            train_sampling_strategy="sequential",
        )

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
        return ArmResult(
            name=name,
            metrics=[self._scores(logits) for logits in runs],
            agreement=[] if reference is None else [agreement(logits[first], reference) for logits in runs],
            kl=[] if reference is None else [mean_kl(logits[first], reference) for logits in runs],
            difference=None,
            parameters=parameter_count(model),
            bytes=self._bytes(model, name),
            samples_per_second=samples_per_second(model, self._sample_batches()).samples_per_second,
            seconds=seconds,
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

    def _sample_batches(self) -> list[dict[str, torch.Tensor]]:
        """Up to 8 evaluation batches, of rows from all over the split, as training makes them."""
        rows = next(iter(self.evaluation.values()))
        size = self.arguments.per_device_eval_batch_size
        rows = rows.select(range(0, len(rows), max(1, len(rows) // (8 * size))))
        count = min(len(rows), 8 * size)
        columns = [name for name in rows.column_names if isinstance(rows[0][name], list | int | float)]
        trimmed = rows.select(range(count)).select_columns(columns)
        return [
            dict(self.data_collator([trimmed[i] for i in range(start, min(start + size, count))]))
            for start in range(0, count, size)
        ]

    def _folder(self, name: str, seed: int) -> Path:
        return Path(self.output_dir) / name / f"seed-{seed}"

    def _protocol(self, arms: Mapping[str, Any], seeds: Sequence[int]) -> dict[str, Any]:
        return {
            "arms": {name: objective if objective is not None else "labels only" for name, objective in arms.items()},
            "seeds": list(seeds),
            "train_rows": len(self.train_dataset),
            "evaluation_rows": {split: len(rows) for split, rows in self.evaluation.items()},
            "arguments": self.arguments.to_sanitized_dict(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, {self.arguments.device}",
        }
