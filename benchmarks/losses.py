"""What each loss costs by itself, beside plain KD: time and peak memory of its forward and backward pass.

    python -m benchmarks.losses [--rows 32 --tokens 128 --width 768 --repeats 5 --markdown docs/costs.md]

Every loss of the catalogue runs with its defaults on random representations of a student of 6 and a teacher of 12
layers of one width, in a process of its own, so that memory is its own too. In each process plain KD (SoftTargetLoss
on the logits of 3 classes) and a student's forward and backward pass are measured in turn with the loss, so that the
ratios are of one run. Peak memory is what the process grows by beyond its inputs (Linux only).
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import BertConfig, BertModel

from hfdistill import (
    Anatomy,
    Attention,
    Batch,
    DistillationLoss,
    Needs,
    OutputHead,
    Representations,
    SoftTargetLoss,
)
from hfdistill.losses import CATALOGUE
from hfdistill.representations import IGNORE_INDEX

CLASSES, HEADS, DEPTHS = 3, 12, (6, 12)
WORDS, LABELLED = 30522, 7
"""Of language models: the vocabulary, and every which token has a label, as in masked language modelling."""
TRAINING_ROWS = 65536
PAGE = """# What each loss costs

Forward and backward pass of each loss, with its defaults (layer maps included: "uniform" over 6 layers and the
embeddings costs seven times one layer), on a batch of {rows} rows of {tokens} tokens, width {width}, in float32, on
one thread of {cpu}. Written by `python -m benchmarks.losses --markdown docs/costs.md`.

Each loss is measured in a process of its own, in turn with plain KD (soft targets of {classes} classes:
{kd_ms:.2f} ms, {kd_mb:.1f} MB), and set beside the forward and backward pass of a student of 6 layers
({step_s:.1f} s, {step_mb:.0f} MB).

* alone / KD: time of the loss over the time of plain KD, which on a step's scale is nothing.
* step time, step memory: student's pass and loss together, over student's pass and plain KD: what a user pays.
* Losses over a vocabulary (`Vocabulary...`): 30,522 words, every seventh token with a label; plain KD beside them is
  still that of 3 classes.
* Not in it: the teacher's pass, which all share; the virtual steps of `LearnedTransferLoss`; the assignments of
  `ChannelMatchingLoss`, seconds per pair of layers once in 2,000 batches. Memory banks hold 65,536 rows here.

| loss | ms | MB | alone / KD | step time | step memory |
|---|---:|---:|---:|---:|---:|
"""


def shown(depth: int, options: argparse.Namespace, needs: Needs, gradient: bool) -> Representations:
    """Random representations of one model, of what is needed alone."""

    def states(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, requires_grad=gradient)

    shape = (options.rows, HEADS, options.tokens, options.width // HEADS)
    return Representations(
        logits=states(options.rows, CLASSES),
        hidden_states={layer: states(options.rows, options.tokens, options.width) for layer in needs.hidden_states},
        attentions={
            layer: Attention(states(*shape), states(*shape), states(*shape), scaling=shape[-1] ** -0.5)
            for layer in needs.attention_layers
        },
        output_head=OutputHead(states(options.rows, options.tokens, options.width), states(WORDS, options.width))
        if needs.output_head
        else None,
    )


def leaves(representations: Representations) -> list[torch.Tensor]:
    """Every tensor that a gradient may reach."""
    attentions = [
        tensor
        for attention in representations.attentions.values()
        for tensor in (attention.query, attention.key, attention.value)
        if tensor is not None
    ]
    logits = [] if representations.logits is None else [representations.logits]
    head = [tensor for tensor in representations.output_head or () if tensor is not None]
    return [*logits, *representations.hidden_states.values(), *attentions, *head]


def loss_step(loss: DistillationLoss, options: argparse.Namespace) -> Callable[[], None]:
    """One forward and backward pass of a loss."""
    head = (*loss.task_heads, "ForSequenceClassification")[0]
    ours, theirs = (
        Anatomy("bert", depth, options.width, HEADS, "interface", WORDS, CLASSES, head=head) for depth in DEPTHS
    )
    loss.bind(ours, theirs)
    labels = torch.arange(options.rows) % CLASSES
    if loss.task_heads:
        places = torch.arange(options.rows * options.tokens).view(options.rows, options.tokens)
        labels = (places % WORDS).masked_fill(places % LABELLED > 0, IGNORE_INDEX)  # (B, N)
    if loss.indexed:
        loss.bind_data(TRAINING_ROWS, torch.arange(TRAINING_ROWS) % CLASSES)
    needs = loss.needs()
    student = shown(DEPTHS[0], options, needs[0], gradient=True)
    teacher = shown(DEPTHS[1], options, needs[1], gradient=False)
    mask = torch.ones(options.rows, options.tokens, dtype=torch.long)
    batch = Batch(options.rows, labels, mask, progress=0.5, index=torch.arange(options.rows))

    def step() -> None:
        for tensor in (*leaves(student), *loss.parameters()):
            tensor.grad = None
        for attention in student.attentions.values():
            vars(attention).pop("scores", None)  # made on demand and kept: each pass makes its own
            vars(attention).pop("probabilities", None)
        loss(student, teacher, batch).backward()

    return step


def student_step(options: argparse.Namespace) -> Callable[[], None]:
    """A forward and backward pass of a student of that size."""
    config = BertConfig(
        num_hidden_layers=DEPTHS[0],
        hidden_size=options.width,
        intermediate_size=4 * options.width,
        num_attention_heads=HEADS,
    )
    model = BertModel(config)
    ids = torch.randint(1000, 20000, (options.rows, options.tokens))

    def step() -> None:
        model.zero_grad()
        model(ids).last_hidden_state.sum().backward()

    return step


def memory(kind: str) -> float:
    """This process's memory now ("VmRSS") or at its peak ("VmHWM"), in MB."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(float(line.split()[1]) / 1024 for line in lines if line.startswith(kind))


def growth(step: Callable[[], None]) -> float:
    """By how many MB the process grows at the peak of a step."""
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the peak begins anew
    before = memory("VmRSS")
    step()
    return max(memory("VmHWM") - before, 0.0)


def measured(name: str, options: argparse.Namespace) -> dict[str, float]:
    """Median seconds and peak growth of one loss ("student": of the student's pass), with plain KD in turn."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    tiny = argparse.Namespace(rows=2, tokens=4, width=options.width)
    for sizes in (tiny, options):  # the tiny pass loads code, which is no cost of the loss
        step = student_step(sizes) if name == "student" else loss_step(CATALOGUE[name](), sizes)
        plain = loss_step(SoftTargetLoss(), sizes)
        if sizes is tiny:
            step()
            plain()
    figures = {"memory": growth(step), "kd_memory": growth(plain)}
    seconds: dict[str, list[float]] = {"seconds": [], "kd_seconds": []}
    for _ in range(options.repeats):
        for key, run in (("seconds", step), ("kd_seconds", plain)):
            start = time.perf_counter()
            run()
            seconds[key].append(time.perf_counter() - start)
    return figures | {key: statistics.median(values) for key, values in seconds.items()}


def in_own_process(name: str, options: argparse.Namespace) -> dict[str, float]:
    """`measured`, in a fresh process."""
    sizes = [f"--{key}={vars(options)[key]}" for key in ("rows", "tokens", "width", "repeats")]
    command = [sys.executable, "-m", "benchmarks.losses", "--only", name, *sizes]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode:
        raise RuntimeError(f"measuring {name} failed:\n{run.stderr}")
    figures: dict[str, float] = json.loads(run.stdout)
    return figures


def page(results: dict[str, dict[str, float]], options: argparse.Namespace) -> str:
    """The results as Markdown, cheapest first."""
    student = results["student"]
    kd = results["SoftTargetLoss"]
    head = PAGE.format(
        rows=options.rows,
        tokens=options.tokens,
        width=options.width,
        cpu=options.cpu,
        classes=CLASSES,
        kd_ms=1000 * kd["kd_seconds"],
        step_s=student["seconds"],
        kd_mb=kd["memory"],
        step_mb=student["memory"],
    )
    lines = []
    for name, row in sorted(results.items(), key=lambda item: item[1]["seconds"]):
        if name != "student":
            slower = (student["seconds"] + row["seconds"]) / (student["seconds"] + row["kd_seconds"])
            larger = (student["memory"] + row["memory"]) / (student["memory"] + row["kd_memory"])
            figures = f"{1000 * row['seconds']:.3g} | {row['memory']:.0f} | {row['seconds'] / row['kd_seconds']:.3g}"
            lines.append(f"| `{name}` | {figures} | {slower:.3f} | {larger:.3f} |")
    return head + "\n".join(lines) + "\n"


def main() -> None:
    """Measure every loss, or one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("rows", 32), ("tokens", 128), ("width", 768), ("repeats", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--only", choices=[*CATALOGUE, "student"], help="measure one, and print it as JSON")
    parser.add_argument("--markdown", type=Path, help="write the page here")
    parser.add_argument("--cpu", default="a server's processor", help="how the page calls the machine")
    options = parser.parse_args()
    if options.only:
        print(json.dumps(measured(options.only, options)))
        return
    results = {name: in_own_process(name, options) for name in ("student", *CATALOGUE)}
    text = page(results, options)
    print(text)
    if options.markdown:
        options.markdown.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
