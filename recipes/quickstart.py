"""The first run: a teacher, the same student with and without distillation, and a table; no network, a few minutes.

    make quickstart        (or: python recipes/quickstart.py --output_dir somewhere)

The task is made on the spot (quickstart_task.py): sentiment that needs negation, contrast and scope. The teacher
learns it from many labelled reviews. The student is half as deep and half as wide, starts from nothing and sees few
reviews: the control learns their labels, the distilled students also learn from what the teacher makes of them.
"""

import argparse
import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing here needs the hub; without it a look-up may wait for one

import numpy as np
import numpy.typing as npt
import torch
from datasets import Dataset, DatasetDict
from quickstart_task import LABEL_NAMES, MAX_LENGTH, dataset, tokenizer
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    DataCollatorWithPadding,
    PreTrainedTokenizerFast,
    Trainer,
    set_seed,
)

from hfdistill import Comparison, DistillationTrainingArguments, Experiment, student_from

TEACHER_ROWS, STUDENT_ROWS, VALIDATION_ROWS = 10_000, 1_500, 1_000
TEACHER_EPOCHS, TEACHER_LEARNING_RATE = 3.0, 5e-4
STUDENT_EPOCHS, STUDENT_LEARNING_RATE = 15.0, 1e-3
STUDENT = {"initializer_range": 0.05, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
SEEDS = (0, 1, 2)
SENTENCES = ("My friend said the plot was awful, but I disagree.", "Nobody who liked the music enjoyed the ending.")


def arguments(folder: Path, epochs: float, learning_rate: float) -> DistillationTrainingArguments:
    """The training arguments that teacher and students share."""
    return DistillationTrainingArguments(
        output_dir=str(folder),
        num_train_epochs=epochs,
        learning_rate=learning_rate,
        warmup_steps=0.1,
        per_device_train_batch_size=32,
        per_device_eval_batch_size=250,
        train_sampling_strategy="group_by_length",
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
    )


def accuracy(logits: npt.NDArray[np.float32], labels: npt.NDArray[np.int64]) -> dict[str, float]:
    """Share of reviews whose sentiment is read right."""
    return {"accuracy": float((logits.argmax(axis=-1) == labels).mean())}


def train_teacher(rows: Dataset, words: PreTrainedTokenizerFast, folder: Path) -> BertForSequenceClassification:
    """A small BERT, trained from scratch on all labelled reviews."""
    set_seed(0)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=256,
        max_position_embeddings=64,
        hidden_dropout_prob=0.05,
        attention_probs_dropout_prob=0.05,
        id2label=dict(enumerate(LABEL_NAMES)),
        label2id={name: index for index, name in enumerate(LABEL_NAMES)},
    )
    teacher = BertForSequenceClassification(config)
    training = arguments(folder / "teacher", TEACHER_EPOCHS, TEACHER_LEARNING_RATE)
    collator = DataCollatorWithPadding(words)
    Trainer(model=teacher, args=training, train_dataset=rows, data_collator=collator, processing_class=words).train()
    return teacher


def compare(
    teacher: BertForSequenceClassification, rows: DatasetDict, words: PreTrainedTokenizerFast, folder: Path
) -> Comparison:
    """The control and the distilled students, over seeds."""
    return Experiment(
        teacher=teacher,
        make_student=lambda: student_from(teacher, num_layers=2, hidden_size=64, config=STUDENT),
        arguments=arguments(folder, STUDENT_EPOCHS, STUDENT_LEARNING_RATE),
        train_dataset=rows["train"].select(range(STUDENT_ROWS)),
        evaluation={"validation": rows["validation"]},
        data_collator=DataCollatorWithPadding(words),
        processing_class=words,
        metrics=accuracy,
        metric="accuracy",
        output_dir=folder,
    ).run({"control": None, "kd": "kd", "tinybert": "tinybert"}, SEEDS)


def use(folder: str) -> None:
    """Load the saved student as anyone would, and read two sentences with it."""
    student, reader = AutoModelForSequenceClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    with torch.inference_mode():
        chances = student(**reader(list(SENTENCES), padding=True, return_tensors="pt")).logits.softmax(dim=-1)
    print(f"The distilled student, loaded again from {folder}:")
    for sentence, (best, label) in zip(
        SENTENCES, zip(*[x.tolist() for x in chances.max(dim=-1)], strict=True), strict=True
    ):
        print(f"  {sentence}  ->  {student.config.id2label[label]} ({best:.0%})")


def main() -> None:
    """Make the task, train the teacher, compare, and use the distilled student."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/quickstart"))
    folder: Path = parser.parse_args().output_dir
    words = tokenizer()
    rows = dataset(train=TEACHER_ROWS, validation=VALIDATION_ROWS).map(
        lambda batch: {**words(batch["text"], truncation=True, max_length=MAX_LENGTH), "labels": batch["label"]},
        batched=True,
        remove_columns=["text", "label"],
        desc="reading reviews",
    )
    print(f"Training the teacher: 4 layers, {TEACHER_ROWS} labelled reviews.")
    teacher = train_teacher(rows["train"], words, folder)
    print(f"Training students: 2 layers, half as wide, {STUDENT_ROWS} reviews, seeds {SEEDS}.")
    comparison = compare(teacher, rows, words, folder)
    comparison.save(folder)
    print(f"\n{comparison.table()}\n")
    use(comparison.folders["tinybert"][-1])


if __name__ == "__main__":
    main()
