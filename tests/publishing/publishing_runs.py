"""Run as a program: `push` distils toy students and pushes them to the hub in HF_ENDPOINT, `pull` loads them again.

Both write logits into the folder given, by repository and revision; whoever started them compares.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from toy_models import toy_bert, toy_vit, with_lora
from training_toys import arguments, collate, image_rows, text_rows, trainer_of
from transformers import (
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertTokenizer,
    ViTImageProcessorPil,
)

from hfdistill import DistillationTrainer, HiddenStateLoss, Objective, SoftTargetLoss, TaskLoss
from hfdistill.export import export_onnx
from hfdistill.publishing.push import push_student

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *map(str, range(59)))


def answers(model: Any, rows: Any) -> torch.Tensor:
    """Logits of all rows."""
    batch = {name: value for name, value in collate(list(rows)).items() if name != "labels"}
    with torch.no_grad():
        return model.eval()(**batch).logits


def text_student(folder: Path) -> torch.Tensor:
    """A BERT whose trainer pushes while it trains and at the end, to its main branch."""
    objective = Objective(task=TaskLoss(), kd=SoftTargetLoss(), hidden=HiddenStateLoss())  # with projectors
    tokenizer = BertTokenizer(vocab={word: index for index, word in enumerate(WORDS)})
    trainer = trainer_of(
        folder / "bert",
        objective,
        toy_bert(width=8),
        processing_class=tokenizer,
        save_strategy="steps",
        save_steps=1,
        push_to_hub=True,
        hub_model_id="me/bert",
        hub_always_push=True,
    )
    trainer.train()
    trainer.push_to_hub(license="mit", language="en")
    return answers(trainer.model, text_rows())


def image_student(folder: Path) -> torch.Tensor:
    """A ViT that goes to a private repository, in the background."""
    processor = ViTImageProcessorPil(size={"height": 8, "width": 8})
    args = arguments(folder / "vit", hub_model_id="me/vit", hub_private_repo=True)
    trainer = trainer_of(
        folder / "vit",
        "kd",
        toy_vit(),
        image_rows(),
        teacher=toy_vit(layers=4, seed=1),
        processing_class=processor,
        args=args,
    )
    trainer.train()
    trainer.push_to_hub(blocking=False).result()
    return answers(trainer.model, image_rows())


def adapter_student(folder: Path) -> torch.Tensor:
    """A LoRA student of a base that is on the hub: as an adapter, and merged, from its trainer and from its folder."""
    toy_bert().save_pretrained(folder / "base")
    push_student(folder / "base", "me/base")
    base = AutoModelForSequenceClassification.from_pretrained("me/base")
    kind: Any = DistillationTrainer
    trainer = trainer_of(folder / "lora", "kd", with_lora(base, ["query"]), kind=kind, hub_model_id="me/lora")
    trainer.train()
    trainer.push_to_hub()
    trainer.push_to_hub(revision="merged", merge_adapter=True)
    push_student(folder / "lora", "me/merged-from-folder", merge_adapter=True)
    return answers(trainer.model, text_rows())


def push(folder: Path) -> None:
    """Distil and push everything."""
    logits = {"bert": text_student(folder), "vit": image_student(folder), "lora": adapter_student(folder)}
    export_onnx(folder / "bert", batch=collate(list(text_rows())))
    push_student(folder / "bert", "me/bert", revision="v2", commit_message="To a branch")
    pushed = push_student(folder / "bert", "me/base", create_pr=True)
    print(pushed.pr_url)
    save_file(logits, folder / "pushed.safetensors")


def pull(folder: Path) -> None:
    """Load everything from the hub, as a user does."""
    text, image = AutoModelForSequenceClassification, AutoModelForImageClassification
    logits = {
        "bert": answers(text.from_pretrained("me/bert"), text_rows()),
        "bert v2": answers(text.from_pretrained("me/bert", revision="v2"), text_rows()),
        "bert pull request": answers(text.from_pretrained("me/base", revision="refs/pr/1"), text_rows()),
        "vit": answers(image.from_pretrained("me/vit"), image_rows()),
        "lora": answers(text.from_pretrained("me/lora", num_labels=3), text_rows()),
        "lora merged": answers(text.from_pretrained("me/lora", revision="merged"), text_rows()),
        "lora merged from folder": answers(text.from_pretrained("me/merged-from-folder"), text_rows()),
    }
    print(AutoTokenizer.from_pretrained("me/bert").tokenize("7 13"))
    save_file(logits, folder / "pulled.safetensors")


if __name__ == "__main__":
    {"push": push, "pull": pull}[sys.argv[1]](Path(sys.argv[2]))
