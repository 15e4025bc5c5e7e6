"""What a teacher in bfloat16 costs in accuracy and saves in time, on a task of one's own.

    python -m benchmarks.precision --teacher DIR --task sst2 --data_dir DIR --train_rows 8000 --seeds 0 1 2
    python -m benchmarks.precision --teacher DIR --dataset DIR --text_columns text ...

Fidelity: what the same teacher says of every validation row in both precisions, batch by batch in turn. Students: the
same student, rows and seeds, taught by each; runs are made in turn, and what counts is the difference between runs of
one seed beside that between seeds. Where the processor or GPU has no hardware for bfloat16 the times say so.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from benchmarks.machine import CPU, description, settle
from benchmarks.section import Section
from hfdistill import DistillationTrainingArguments, Experiment, TextClassification
from hfdistill.evaluation import input_batches, predicted_logits
from hfdistill.teacher_precision import convert, fast_bfloat16
from hfdistill.text_classification import text_experiment

PRECISIONS = ("float32", "bfloat16")
ARMS = ("kd", "tinybert")


def experiment(options: argparse.Namespace, folder: str) -> Experiment:
    """Rows, teacher and student as a recipe makes them.

    Args:
        options: of the command line.
        folder: for what training writes.
    """
    given = {name: vars(options)[name] for name in ("task", "data_dir", "dataset") if vars(options)[name]}
    recipe = TextClassification(
        teacher=options.teacher,
        text_columns=options.text_columns,
        student_layers=options.student_layers,
        train_rows=options.train_rows,
        **given,
    )
    arguments = DistillationTrainingArguments(
        output_dir=folder,
        use_cpu=settle(options).type == "cpu",
        num_train_epochs=options.epochs,
        learning_rate=options.learning_rate,
        per_device_train_batch_size=options.batch,
        per_device_eval_batch_size=64,
        train_sampling_strategy="group_by_length",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    return text_experiment(recipe, arguments)


@torch.no_grad()
def fidelity(exact: PreTrainedModel, rounded: PreTrainedModel, batches: list[dict[str, Tensor]]) -> Section:
    """How far the outputs of a model are from those of its twin in float32, and the seconds of both.

    Args:
        exact: in float32.
        rounded: the same in another precision.
        batches: of inputs, on the CPU; the first is also the warm-up.
    """
    seconds: dict[str, list[float]] = {f"teacher, {name}": [] for name in PRECISIONS}
    logits: list[list[Tensor]] = [[], []]
    apart, sizes = torch.zeros(0), torch.zeros(0)
    for number, batch in enumerate([batches[0], *batches]):
        states = []
        for model, shown, times in zip((exact, rounded), logits, seconds.values(), strict=True):
            inputs = {name: tensor.to(model.device) for name, tensor in batch.items()}
            start = time.perf_counter()
            output = model(**inputs, output_hidden_states=True)
            shown.append(output.logits.float().cpu())  # which a GPU is waited for by
            times.append(time.perf_counter() - start)
            real = inputs["attention_mask"].bool()
            states.append(torch.stack([state[real].float() for state in output.hidden_states]))  # (L + 1, tokens, D)
        if number == 0:
            for kept in (*logits, *seconds.values()):
                kept.clear()
            apart = sizes = torch.zeros(len(states[0]), device=states[0].device)
            continue
        apart = apart + (states[0] - states[1]).square().sum((1, 2))
        sizes = sizes + states[0].square().sum((1, 2))
    ours, theirs = (torch.cat(shown).double() for shown in logits)
    kl = (ours.softmax(-1) * (ours.log_softmax(-1) - theirs.log_softmax(-1))).sum(-1)
    errors = (apart / sizes).sqrt()
    figures = {
        "KL of bfloat16 from float32, mean": kl.mean().item(),
        "KL of bfloat16 from float32, largest": kl.max().item(),
        "same class": (ours.argmax(-1) == theirs.argmax(-1)).double().mean().item(),
        "logits, largest difference": (ours - theirs).abs().max().item(),
        "logits, standard deviation": ours.std().item(),
        "hidden states, relative error of the worst layer": errors.max().item(),
        "hidden states, relative error of the last layer": errors[-1].item(),
    }
    return Section("Precision of the teacher", seconds=seconds, figures=figures)


def accuracy(made: Experiment, model: PreTrainedModel) -> float:
    """The task's metric on the validation rows.

    Args:
        made: with rows and metric.
        model: a student, or a teacher in any precision.
    """
    rows = next(iter(made.evaluation.values()))
    logits = predicted_logits(model, rows, made.evaluation_collator, made.arguments)
    return float(made.metrics(logits, np.asarray(rows["labels"]))[made.metric])


def students(made: Experiment, seeds: list[int]) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Metric and seconds of each student, by what taught it.

    Args:
        made: the experiment.
        seeds: one run of each arm and precision with each.
    """
    scores: dict[str, list[float]] = {f"{arm}, {kind}": [] for arm in ARMS for kind in PRECISIONS}
    seconds: dict[str, list[float]] = {name: [] for name in scores}
    for turn, seed in enumerate(seeds):
        for arm in ARMS:
            for kind in PRECISIONS if turn % 2 == 0 else PRECISIONS[::-1]:
                trainer = made.trainer(arm, arm, seed, teacher_dtype=kind)
                trainer.train()
                seconds[f"{arm}, {kind}"].append(trainer.seconds_in_training())
                scores[f"{arm}, {kind}"].append(accuracy(made, trainer.model))
    return scores, seconds


def measured(options: argparse.Namespace) -> Section:
    """Everything, as one section.

    Args:
        options: of the command line.
    """
    with tempfile.TemporaryDirectory() as folder:
        made = experiment(options, folder)
        rounded = deepcopy(made.teacher)
        convert(rounded, "bfloat16")
        rows = next(iter(made.evaluation.values()))
        batches = input_batches(made.teacher, rows, made.evaluation_collator, made.arguments, -(-len(rows) // 64), 64)
        for model in (made.teacher, rounded):
            model.eval().to(settle(options))
        section = fidelity(made.teacher, rounded, batches)
        for kind, model in zip(PRECISIONS, (made.teacher, rounded), strict=True):
            section.figures[f"{made.metric} of the teacher, {kind}"] = accuracy(made, model)
        scores, seconds = students(made, options.seeds)
    section.seconds |= seconds
    for arm in ARMS:
        exact, other = (scores[f"{arm}, {kind}"] for kind in PRECISIONS)
        for kind, runs in zip(PRECISIONS, (exact, other), strict=True):
            section.figures |= {f"{made.metric} of {arm}, {kind}, mean": statistics.mean(runs)}
            section.figures |= {f"{made.metric} of {arm}, {kind}, sd over seeds": spread(runs)}
        differences = [rounded - full for full, rounded in zip(exact, other, strict=True)]
        section.figures |= {f"{made.metric} of {arm}, bfloat16 - float32, mean": statistics.mean(differences)}
        section.figures |= {f"{made.metric} of {arm}, bfloat16 - float32, sd": spread(differences)}
    known = ("train_rows", "seeds", "epochs", "batch", "learning_rate", "student_layers", "task")
    section.settings = {name: vars(options)[name] for name in known if vars(options)[name]}
    section.settings |= {"validation rows": len(rows), "hardware for bfloat16": fast_bfloat16(settle(options))}
    section.machine = description(options)
    return section


def spread(values: list[float]) -> float:
    """Standard deviation; 0 of one value."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


def table(section: Section) -> str:
    """The section as Markdown: times of both precisions side by side, then what differs.

    Args:
        section: of `measured`.
    """
    lines = [f"### {section.title}", "", ", ".join(f"{name} {value}" for name, value in section.settings.items()), ""]
    lines += ["| seconds, median | float32 | bfloat16 | bfloat16 / float32 |", "|---|--:|--:|--:|"]
    for name in dict.fromkeys(row.rpartition(", ")[0] for row in section.seconds):
        exact, rounded = (statistics.median(section.seconds[f"{name}, {kind}"]) for kind in PRECISIONS)
        what = "a validation batch of the teacher" if name == "teacher" else f"training a student, {name}"
        lines.append(f"| {what} | {exact:.3f} | {rounded:.3f} | {rounded / exact:.2f} |")
    lines += ["", *rows_of(section.figures)]
    return "\n".join(lines) + "\n"


def rows_of(figures: Mapping[str, float]) -> list[str]:
    """The figures as the lines of a table."""
    return ["| figure | |", "|---|--:|", *(f"| {name} | {value:.4g} |" for name, value in figures.items())]


def main() -> None:
    """Measure and print; write JSON and Markdown where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", required=True, help="folder of a fine-tuned classifier")
    for name in ("task", "data_dir", "dataset", "device"):
        parser.add_argument(f"--{name}")
    parser.add_argument("--text_columns", nargs="*", default=[])
    for name, default in (("train_rows", 8000), ("student_layers", 3), ("batch", 32), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=float, default=1.0)
    parser.add_argument("--learning_rate", type=float, default=1e-4)
    parser.add_argument("--cpu", default=CPU, help="how the page calls the machine")
    parser.add_argument("--output", type=Path, help="write the figures here, as JSON")
    parser.add_argument("--markdown", type=Path, help="write the table here")
    parser.set_defaults(clock="wall", matmul="highest")
    options = parser.parse_args()
    section = measured(options)
    section.save(options.output)
    print(table(section))
    if options.markdown:
        options.markdown.write_text(table(section), encoding="utf-8")


if __name__ == "__main__":
    main()
