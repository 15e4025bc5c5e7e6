"""What a distillation step costs, beside the least it could cost.

    make bench        (or: python -m benchmarks --batch 16 --tokens 64 --repeats 5 --threads 1 --output results.json)

floor: a bare teacher forward and a bare student step (forward, backward, AdamW) on the KL of the logits. naive: the
same with all hidden states and attention maps of both models asked for under eager attention, as a hand-written loop
does for TinyBERT's losses. The other rows are the trainer's own step with that preset. All rows are interleaved in one
run, and the figure is the ratio of medians: a time alone says little about another machine.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.nn import functional as F
from transformers import BertConfig, BertForSequenceClassification, TrainingArguments

from hfdistill import DistillationTrainer

PRESETS = ("kd", "pkd", "tinybert", "minilm", "lrc_bert")
Inputs = dict[str, torch.Tensor]


def model(layers: int, width: int, attention: str = "sdpa") -> BertForSequenceClassification:
    """A BERT classifier of that size with random weights: its speed does not depend on what it knows."""
    config = BertConfig(
        num_hidden_layers=layers,
        hidden_size=width,
        intermediate_size=4 * width,
        num_attention_heads=12,
        attn_implementation=attention,
    )
    return BertForSequenceClassification(config)


def batch(rows: int, tokens: int) -> Inputs:
    """Random ids without padding, and labels."""
    generator = torch.Generator().manual_seed(0)
    return {
        "input_ids": torch.randint(1000, 20000, (rows, tokens), generator=generator),
        "attention_mask": torch.ones(rows, tokens, dtype=torch.long),
        "labels": torch.randint(0, 2, (rows,), generator=generator),
    }


def bare_step(
    teacher_size: tuple[int, int], student_size: tuple[int, int], inputs: Inputs, naive: bool
) -> Callable[[], None]:
    """The floor, or the naive loop with every hidden state and attention map of both models."""
    attention = "eager" if naive else "sdpa"
    teacher, student = model(*teacher_size, attention).eval(), model(*student_size, attention).train()
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-5, fused=True)
    projector = torch.nn.Linear(student_size[1], teacher_size[1])
    options = {"output_hidden_states": naive, "output_attentions": naive}
    step = teacher_size[0] // student_size[0]

    def run() -> None:
        with torch.no_grad():
            theirs = teacher(**inputs, **options)
        ours = student(**inputs, **options)
        loss = F.kl_div(ours.logits.log_softmax(-1), theirs.logits.softmax(-1), reduction="batchmean")
        if naive:
            for layer in range(student_size[0]):
                target = theirs.hidden_states[(layer + 1) * step]
                loss = loss + F.mse_loss(projector(ours.hidden_states[layer + 1]), target)
                loss = loss + F.mse_loss(ours.attentions[layer], theirs.attentions[(layer + 1) * step - 1])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return run


def trainer_step(
    preset: str, teacher_size: tuple[int, int], student_size: tuple[int, int], inputs: Inputs
) -> Callable[[], None]:
    """One training step of the trainer with that preset."""
    student = model(*student_size)
    args = TrainingArguments(output_dir="outputs/benchmarks", use_cpu=not torch.cuda.is_available(), report_to="none")
    trainer = DistillationTrainer(model=student, args=args, teacher=model(*teacher_size), objective=preset)
    optimizer = trainer.create_optimizer()
    if trainer.teacher is not None:
        trainer.teacher.prepare(args.device)

    def run() -> None:
        student.train()
        trainer.compute_loss(student, inputs).backward()
        optimizer.step()
        optimizer.zero_grad()

    return run


def measure(steps: dict[str, Callable[[], None]], repeats: int) -> dict[str, float]:
    """Median seconds of each, one after another in every round so that a slow minute hits all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for round_number in range(repeats + 1):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if round_number:  # the first warms up
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in seconds.items()}


def main() -> None:
    """Measure and print a table; write it as JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    teacher, student, inputs = (12, 768), (4, 312), batch(options.batch, options.tokens)
    steps = {"floor": bare_step(teacher, student, inputs, False), "naive": bare_step(teacher, student, inputs, True)}
    steps |= {name: trainer_step(name, teacher, student, inputs) for name in PRESETS}
    seconds = measure(steps, options.repeats)
    machine = f"{platform.machine()}, {options.threads} thread(s), torch {torch.__version__}"
    print(f"BERT 12x768 teaches 4x312, batch {options.batch} x {options.tokens}, {machine}\n")
    print("| step | seconds | over floor |\n|---|--:|--:|")
    for name, value in seconds.items():
        print(f"| {name} | {value:.3f} | {value / seconds['floor']:.2f} |")
    if options.output:
        options.output.write_text(json.dumps({"machine": machine, "seconds": seconds}, indent=2) + "\n")


if __name__ == "__main__":
    main()
