"""Broken runs: arguments, objectives, rows and models."""

from __future__ import annotations

from pathlib import Path

from datasets import Dataset, DatasetDict
from toy_models import toy_bert, toy_vit, with_lora
from training_toys import arguments, text_rows, trainer_of

from broken_input import (
    Case,
    argument,
    changed,
    cut,
    first,
    frozen,
    objective,
    pictures,
    shared_loss,
    teacher,
    token_types,
    train,
)
from hfdistill import FrozenTeacher, HiddenStateLoss, Objective, TaskLoss, student_from

NAN = float("nan")
ARGUMENTS = (
    Case("learning rate NaN", argument(learning_rate=NAN), ValueError, r"learning_rate must be a finite .*got nan"),
    Case(
        "no rows in a batch", argument(per_device_train_batch_size=0), ValueError, r"train_batch_size must be.*got 0"
    ),
    Case(
        "no accumulation steps", argument(gradient_accumulation_steps=0), ValueError, r"accumulation_steps must be 1"
    ),
    Case("no steps", argument(max_steps=0), ValueError, r"max_steps must be above 0, or -1.*num_train_epochs"),
    Case(
        "no epochs", argument(max_steps=-1, num_train_epochs=0), ValueError, r"epochs must be above 0: nothing would"
    ),
    Case(
        "clipping at NaN", argument(max_grad_norm=NAN), ValueError, r"max_grad_norm must be 0 .no clipping. or above"
    ),
    Case("smoothing of 2", argument(label_smoothing_factor=2.0), ValueError, r"share of the target in \[0, 1\)"),
    Case("saving every 0 steps", argument(save_strategy="steps", save_steps=0), ValueError, r"nothing would be saved"),
    Case(
        "best of nothing", argument(load_best_model_at_end=True), ValueError, r"off without evaluation.*eval_strategy"
    ),
    Case("fp16 on a CPU", argument(fp16=True), ValueError, r"fp16 must be off without a GPU.*Set bf16=True"),
    Case(
        "unknown precision",
        argument(teacher_dtype="fp16"),
        ValueError,
        r"one of float32, bfloat16, float16, checkpoint, auto",
    ),
    Case("perturbation NaN", argument(embedding_perturbation=NAN), ValueError, r"must be 0 \(off\) or above, got nan"),
    Case(
        "reentrant checkpointing",
        argument(activation_checkpointing=True, activation_checkpointing_kwargs={"use_reentrant": True}),
        ValueError,
        r"silently wrong gradients.*'use_reentrant': False",
    ),
    Case("output into a file", lambda here: arguments(Path(__file__)), ValueError, r"must be a folder.*another place"),
    Case("two kinds of mixing", argument(uncertainty_mixup=True, mixup_alpha=0.2), ValueError, r"Set one of them"),
)
OBJECTIVES = (
    Case("empty objective", objective({}), ValueError, r"needs at least one loss.*preset's name"),
    Case("misspelt preset", objective("tinibert"), ValueError, r"unknown preset 'tinibert'.*nearest first: tinybert"),
    Case(
        "unknown option", objective({"preset": "kd", "tau": 2}), ValueError, r"takes no 'tau'. Accepted.*temperature"
    ),
    Case("negative weight", objective(lambda: Objective(task=TaskLoss(weight=-1))), ValueError, r"0 or above, got -1"),
    Case("weight in quotes", objective({"kd": {"loss": "SoftTargetLoss", "weight": "0.5"}}), TypeError, r"got '0.5'"),
    Case(
        "temperature 0", objective({"kd": {"loss": "SoftTargetLoss", "temperature": 0}}), ValueError, r"above 0, got 0"
    ),
    Case("term outside its folder", objective({"../x": {"loss": "TaskLoss"}}), ValueError, r"'../x' is not called by"),
    Case(
        "term of torch's own", objective({"keys": {"loss": "TaskLoss"}}), ValueError, r"can be called 'keys'.*Rename"
    ),
    Case("one loss twice", objective(shared_loss), ValueError, r"one object under two names.*Make two losses"),
    Case("a function for a loss", objective({"x": {"loss": "os:system"}}), ValueError, r"is not a DistillationLoss"),
    Case(
        "a path for a loss", objective({"x": {"loss": "./my.py:MyLoss"}}), ValueError, r"'package.module:Class'.*'.py'"
    ),
    Case(
        "layer that is not there",
        objective(lambda: Objective(h=HiddenStateLoss([(1, 9)]))),
        ValueError,
        r"teacher layer 9.*What to do: write a layer from 0 to 4",
    ),
    Case(
        "misspelt layer map",
        objective(lambda: Objective(h=HiddenStateLoss("unifrom"))),
        ValueError,
        r"one of 'uniform'",
    ),
    Case(
        "all weights 0",
        lambda here: train(here, Objective(task=TaskLoss(weight=0.0))),
        ValueError,
        r"Give one of them",
    ),
)
ROWS = (
    Case(
        "label too large",
        lambda here: train(here, rows=first(labels=3)),
        ValueError,
        r"0 to 2 .*got \[3\] in row .*num_labels",
    ),
    Case(
        "label -1",
        lambda here: train(here, rows=changed(labels=-1)),
        ValueError,
        r"or -100 to leave a row out; got \[-1\]",
    ),
    Case(
        "label of a word",
        lambda here: train(here, rows=changed(labels="yes")),
        ValueError,
        r"'yes' as 'labels'.*map their",
    ),
    Case(
        "no label",
        lambda here: train(here, rows=changed(labels=None)),
        ValueError,
        r"has None as 'labels'.*Filter such rows",
    ),
    Case(
        "labels of floats",
        lambda here: train(here, rows=changed(labels=0.5)),
        TypeError,
        r"float32.*integers, or.*num_labels=1",
    ),
    Case(
        "several labels as integers",
        lambda here: train(here, rows=changed(labels=[0, 1, 1])),
        TypeError,
        r"must be floats",
    ),
    Case(
        "several labels under a softmax",
        lambda here: train(here, rows=changed(labels=[0.0, 1.0, 1.0])),
        ValueError,
        r"term 'kd' classes exclude each other.*divergence='mse'",
    ),
    Case(
        "label column misnamed",
        lambda here: train(here, rows=text_rows().rename_column("labels", "target")),
        ValueError,
        r"needs labels in the batch, which holds.*rename_column",
    ),
    Case(
        "number NaN",
        lambda here: train(
            here, student=toy_bert(classes=1), teacher=toy_bert(4, classes=1, seed=1), rows=changed(labels=NAN)
        ),
        ValueError,
        r"labels hold NaN or inf in rows .*filter them out",
    ),
    Case(
        "token out of the vocabulary",
        lambda here: train(here, rows=first(input_ids=[70], attention_mask=[1])),
        ValueError,
        r"input_ids must be 0 to 63.*got \[70\].*resize_token_embeddings",
    ),
    Case(
        "token type out of the table",
        lambda here: train(here, rows=token_types(2)),
        ValueError,
        r"token_type_ids must be 0 to 1",
    ),
    Case(
        "row without a token",
        lambda here: train(here, rows=first(input_ids=[], attention_mask=[])),
        ValueError,
        r"no token in",
    ),
    Case(
        "all rows masked",
        lambda here: train(
            here,
            "minilm",
            rows=Dataset.from_list([{**row, "attention_mask": [0] * len(row["input_ids"])} for row in text_rows()]),
        ),
        ValueError,
        r"label them -100",
    ),
    Case(
        "mask of another length",
        lambda here: train(here, rows=first(attention_mask=[1] * 30)),
        ValueError,
        r"Pad both with one",
    ),
    Case(
        "rows too long",
        lambda here: train(here, rows=text_rows(tokens=(70, 80))),
        ValueError,
        r"64 positions.*truncation=True",
    ),
    Case(
        "text that is no tokens",
        lambda here: train(here, rows=Dataset.from_list([{"text": "a", "labels": 0}] * 8)),
        ValueError,
        r"reads input_ids.*Tokenize texts",
    ),
    Case(
        "pixels NaN",
        lambda here: train(here, **pictures(NAN)),
        ValueError,
        r"pixel_values hold NaN.*how these rows were",
    ),
    Case(
        "pixels not normalised",
        lambda here: train(here, **pictures(255)),
        TypeError,
        r"whole numbers .*model's image processor",
    ),
    Case("no rows", argument(rows=text_rows().select([])), ValueError, r"train_dataset is empty.*split's name"),
    Case(
        "all splits", argument(rows=DatasetDict(train=text_rows())), TypeError, r"splits \['train'\].*pass one split"
    ),
)
MODELS = (
    Case(
        "student by name",
        argument(student="bert-base-uncased"),
        TypeError,
        r"got 'bert-base-uncased'.*from_pretrained",
    ),
    Case(
        "frozen student",
        lambda here: train(here, student=frozen()),
        ValueError,
        r"requires a gradient.*requires_grad_\(True\)",
    ),
    Case(
        "student without a head",
        lambda here: train(here, student=toy_bert(head="Model")),
        ValueError,
        r"with the head of its",
    ),
    Case(
        "teacher of images for texts",
        lambda here: train(here, teacher=toy_vit(4)),
        ValueError,
        r"teacher reads pixel_values",
    ),
    Case(
        "teacher of more classes",
        argument(teacher=toy_bert(4, classes=5)),
        ValueError,
        r"3 \(student\) and 5 .*label_map",
    ),
    Case(
        "teacher that is the student",
        lambda here: trainer_of(here, student=(m := toy_bert()), teacher=m),
        ValueError,
        r"shares 41 parameters.*Pass two models",
    ),
    Case(
        "teacher that is not there",
        argument(teacher="./no/such/folder"),
        FileNotFoundError,
        r"no folder here.*user/name",
    ),
    Case("teacher without a name", argument(teacher=""), ValueError, r"named by an empty text. Give a folder"),
    Case(
        "teacher with a login in its name",
        argument(teacher="https://me:secret@huggingface.co/a/b"),
        FileNotFoundError,
        r"'https://huggingface.co/a/b' is no folder",
    ),
    Case("folder without a teacher", teacher(Path.mkdir), FileNotFoundError, r"holds no config.json, but nothing"),
    Case(
        "adapter for a teacher",
        teacher(lambda f: with_lora(toy_bert(4), ["query"]).save_pretrained(f)),
        ValueError,
        r"adapter of PEFT.*merge_and_unload",
    ),
    Case("teacher cut off", teacher(cut), ValueError, r"weights of the teacher.*copy it again"),
    Case(
        "teacher without weights",
        teacher(lambda f: toy_bert(4).config.save_pretrained(f)),
        FileNotFoundError,
        r"is whole",
    ),
    Case(
        "teacher without a trained head",
        teacher(lambda f: toy_bert(4, head="Model").save_pretrained(f)),
        ValueError,
        r"no trained weights for classifier.bias.*Fine-tune the teacher",
    ),
    Case(
        "label map of fractions",
        lambda here: FrozenTeacher(toy_bert(), label_map=[0.5, 1, 2]),
        ValueError,
        r"Entry k is the",
    ),
    Case(
        "student of no layers",
        lambda here: student_from(toy_bert(), num_layers=0),
        ValueError,
        r"between 1 and the teacher's 2",
    ),
    Case(
        "width in quotes",
        lambda here: student_from(toy_bert(), hidden_size="8"),
        TypeError,
        r"whole numbers.*got '8'.*Write 6",
    ),
    Case(
        "width that heads cannot share",
        lambda here: student_from(toy_bert(), hidden_size=7),
        ValueError,
        r"Nearest num_att",
    ),
)
