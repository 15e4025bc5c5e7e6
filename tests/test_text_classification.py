"""A recipe run from end to end on toy data: teacher fine-tuned, arms trained, table and files written."""

import json
from pathlib import Path

import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Value
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    PreTrainedTokenizerFast,
)

from hfdistill import DistillationTrainingArguments, FrozenTeacher, TextClassification, distil_text_classifier
from hfdistill.teacher_precision import precision_of
from hfdistill.text_classification import load_rows, text_experiment, tokenize

WORDS = ["good", "bad", "film", "plot", "the", "a", "is", "was"]


GLUE_LABELS = {"sst2": ("negative", "positive"), "rte": ("entailment", "not_entailment")}


def toy_tokenizer(known: list[str] = WORDS) -> PreTrainedTokenizerFast:
    """Word by word, with BERT's special tokens and token types."""
    words = {word: index for index, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *known])}
    tokenizer = Tokenizer(WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=32,
    )


@pytest.fixture
def body(tmp_path: Path) -> Path:
    """A folder with an untrained BERT of 4 layers and its tokenizer: what a teacher is fine-tuned from."""
    folder = tmp_path / "body"
    config = BertConfig(
        vocab_size=12, hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=24, num_labels=2
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    toy_tokenizer().save_pretrained(folder)
    return folder


def write_glue(folder: Path, task: str, columns: tuple[str, ...], labels: list[str]) -> None:
    """A GLUE task of 24 and 12 rows as parquet files, the label being the word "good" or "bad" (or its score)."""
    feature = ClassLabel(names=labels) if labels else Value("float32")
    features = Features({**{column: Value("string") for column in columns}, "label": feature})
    for split, count in (("train", 24), ("validation", 12)):
        rows = {column: [f"the film is {WORDS[i % 2]}" for i in range(count)] for column in columns}
        rows["label"] = [i % 2 if labels else 5.0 * (i % 2) for i in range(count)]
        (folder / task).mkdir(parents=True, exist_ok=True)
        Dataset.from_dict(rows, features=features).to_parquet(folder / task / f"{split}.parquet")


def toy_arguments(folder: Path, **options: object) -> DistillationTrainingArguments:
    """A few steps on the CPU."""
    return DistillationTrainingArguments(
        output_dir=str(folder),
        max_steps=3,
        per_device_train_batch_size=8,
        train_sampling_strategy="group_by_length",
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        **options,
    )


def test_a_glue_task_from_body_to_table(body: Path, tmp_path: Path):
    """What run_glue promises: the teacher is fine-tuned, each arm and seed saved, figures and table written."""
    write_glue(tmp_path / "glue", "sst2", ("sentence",), ["negative", "positive"])
    recipe = TextClassification(
        task="sst2",
        data_dir=str(tmp_path / "glue"),
        teacher_body=str(body),
        teacher_epochs=1,
        student_layers=2,
        arms=["control", "kd", "mine"],
        objectives={"mine": {"hidden": {"loss": "HiddenStateLoss"}, "task": {"loss": "TaskLoss"}}},
        seeds=[0, 1],
        train_rows=16,
    )
    comparison = distil_text_classifier(recipe, toy_arguments(tmp_path / "out"))
    assert [arm.name for arm in comparison.arms] == ["control", "kd", "mine"]
    assert all(len(arm.metrics) == len(arm.agreement) == len(arm.kl) == 2 for arm in comparison.arms)
    assert comparison.arms[0].difference is None
    assert comparison.arms[1].difference is not None
    saved = json.loads((tmp_path / "out" / "results.json").read_text())
    assert saved["protocol"]["train_rows"] == 16
    assert "| teacher " in (tmp_path / "out" / "results.md").read_text()
    student, info = AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "out" / "kd" / "seed-1", output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert student.config.id2label == {0: "negative", 1: "positive"}


def test_agreement_compares_the_same_rows(body: Path, tmp_path: Path):
    """Grouping by length permutes what the Trainer predicts; a student equal to its teacher agrees on every row."""
    write_glue(tmp_path / "glue", "sst2", ("sentence",), ["negative", "positive"])
    recipe = TextClassification(
        task="sst2", data_dir=str(tmp_path / "glue"), teacher=str(body), student=str(body), arms=["control"]
    )
    arguments = toy_arguments(tmp_path / "out", learning_rate=0.0)
    (arm,) = distil_text_classifier(recipe, arguments).arms
    assert arm.agreement == [1.0]
    assert arm.kl[0] == pytest.approx(0.0, abs=1e-6)


def test_regression_of_a_pair(body: Path, tmp_path: Path):
    """STS-B: two sentences, a number as label, correlations as metrics."""
    write_glue(tmp_path / "glue", "stsb", ("sentence1", "sentence2"), [])
    recipe = TextClassification(
        task="stsb",
        data_dir=str(tmp_path / "glue"),
        teacher_body=str(body),
        student_layers=2,
        arms=["control", "kd", "pkd", "tinybert"],
    )
    comparison = distil_text_classifier(recipe, toy_arguments(tmp_path / "out"))
    assert comparison.metric == "spearmanr"
    assert set(comparison.arms[1].metrics[0]) == {"pearson", "spearmanr"}


def test_pairs_have_token_types(body: Path, tmp_path: Path):
    """BERT tells the sentences of a pair apart by token_type_ids; without them it would be taught something else."""
    write_glue(tmp_path / "glue", "rte", ("sentence1", "sentence2"), ["entailment", "not_entailment"])
    recipe = TextClassification(task="rte", data_dir=str(tmp_path / "glue"), teacher=str(body), student_layers=2)
    rows = tokenize(load_rows(recipe), recipe, toy_tokenizer(), token_types=True)
    assert rows["train"][0]["token_type_ids"] == [0] * 6 + [1] * 5
    assert set(rows["train"].column_names) == {"input_ids", "attention_mask", "token_type_ids", "labels"}


def test_data_of_ones_own(body: Path, tmp_path: Path):
    """Any folder with the splits train and validation, its columns named."""
    for split in ("train", "validation"):
        rows = Dataset.from_dict({"review": ["good film", "bad film"] * 8, "stars": [1, 0] * 8})
        (tmp_path / "mine").mkdir(exist_ok=True)
        rows.to_parquet(tmp_path / "mine" / f"{split}.parquet")
    recipe = TextClassification(
        dataset=str(tmp_path / "mine"),
        text_columns=["review"],
        label_column="stars",
        teacher=str(body),
        student_layers=2,
    )
    comparison = distil_text_classifier(recipe, toy_arguments(tmp_path / "out"))
    assert [arm.name for arm in comparison.arms] == ["control", "kd"]
    with pytest.raises(ValueError, match=r"lacks \['rating'\]"):
        load_rows(
            TextClassification(
                dataset=str(tmp_path / "mine"),
                text_columns=["review"],
                label_column="rating",
                teacher=str(body),
                student_layers=2,
            )
        )


def test_mnli_has_three_classes_and_two_evaluation_splits(body: Path, tmp_path: Path):
    """The mismatched split is measured too, under its own name beside the matched one's figures."""
    names = ["entailment", "neutral", "contradiction"]
    write_glue(tmp_path / "glue", "mnli", ("premise", "hypothesis"), names)
    for split in ("validation_matched", "validation_mismatched"):
        (tmp_path / "glue" / "mnli" / f"{split}.parquet").write_bytes(
            (tmp_path / "glue" / "mnli" / "validation.parquet").read_bytes()
        )
    recipe = TextClassification(
        task="mnli", data_dir=str(tmp_path / "glue"), teacher_body=str(body), student_layers=2, arms=["control", "kd"]
    )
    comparison = distil_text_classifier(recipe, toy_arguments(tmp_path / "out"))
    assert set(comparison.arms[1].metrics[0]) == {"accuracy", "validation_mismatched/accuracy"}
    student = AutoModelForSequenceClassification.from_pretrained(comparison.folders["kd"][-1])
    assert [student.config.id2label[index] for index in range(3)] == names


def test_a_teacher_of_another_task_is_not_taken(body: Path, tmp_path: Path):
    """Two tasks in one output folder: the second must not be taught by the first one's teacher; the same one may."""
    out = tmp_path / "out"
    records = []
    for task, columns in (("sst2", ("sentence",)), ("rte", ("sentence1", "sentence2")), ("rte", ())):
        if columns:
            write_glue(tmp_path / "glue", task, columns, list(GLUE_LABELS[task]))
        recipe = TextClassification(
            task=task, data_dir=str(tmp_path / "glue"), teacher_body=str(body), student_layers=2, arms=["control"]
        )
        distil_text_classifier(recipe, toy_arguments(out))
        records.append(json.loads((out / "teacher" / "run.json").read_text()))
    assert records[0]["key"] != records[1]["key"]
    assert records[1] == records[2]  # the third run found the second one's teacher, and its training time with it
    teacher = AutoModelForSequenceClassification.from_pretrained(out / "teacher")
    assert teacher.config.id2label[1] == "not_entailment"


def test_numbers_as_labels_are_a_regression(body: Path, tmp_path: Path):
    """Without class names a float is a score, not the name of a class."""
    for split in ("train", "validation"):
        rows = Dataset.from_dict({"text": ["good film", "bad film"] * 8, "score": [1.5, -0.5] * 8})
        (tmp_path / "mine").mkdir(exist_ok=True)
        rows.to_parquet(tmp_path / "mine" / f"{split}.parquet")
    own = {"dataset": str(tmp_path / "mine"), "text_columns": ["text"], "label_column": "score"}
    recipe = TextClassification(**own, teacher_body=str(body), student_layers=2, arms=["control"])
    comparison = distil_text_classifier(recipe, toy_arguments(tmp_path / "out"))
    assert comparison.metric == "spearmanr"
    student = AutoModelForSequenceClassification.from_pretrained(comparison.folders["control"][-1])
    assert student.config.num_labels == 1


def test_a_student_with_another_tokenizer_is_refused(body: Path, tmp_path: Path):
    """Both models read one batch; ids of another vocabulary would train without an error and mean nothing."""
    write_glue(tmp_path / "glue", "sst2", ("sentence",), ["negative", "positive"])
    other = tmp_path / "other"
    BertForSequenceClassification.from_pretrained(body).save_pretrained(other)
    toy_tokenizer(list(reversed(WORDS))).save_pretrained(other)
    recipe = TextClassification(
        task="sst2", data_dir=str(tmp_path / "glue"), teacher=str(body), student=str(other), arms=["kd"]
    )
    with pytest.raises(ValueError, match=r"vocabular|tokenizer"):
        distil_text_classifier(recipe, toy_arguments(tmp_path / "out"))


@pytest.mark.parametrize(("asked", "learnt_from"), [(None, None), ("checkpoint", "float16"), ("auto", "bfloat16")])
def test_the_precision_that_students_learn_from(
    body: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: str | None, learnt_from: str | None
):
    """Settled once for all runs, so that they are recorded with what they had; the table's teacher is in float32."""
    monkeypatch.setattr("hfdistill.teacher_precision.bfloat16_unit", lambda _: "amx_bf16")
    write_glue(tmp_path / "glue", "sst2", ("sentence",), ["negative", "positive"])
    BertForSequenceClassification.from_pretrained(body).half().save_pretrained(body)
    recipe = TextClassification(task="sst2", data_dir=str(tmp_path / "glue"), teacher=str(body), student_layers=2)
    made = text_experiment(recipe, toy_arguments(tmp_path / "out", teacher_dtype=asked))
    assert {own.dtype for own in made.teacher.parameters()} == {torch.float32}
    assert made.arguments.teacher_dtype == learnt_from
    assert {own.dtype for own in made.make_student().parameters()} == {torch.float32}
    trainer = made.trainer("kd", "kd", 0)
    assert isinstance(trainer.teacher, FrozenTeacher)
    assert precision_of(trainer.teacher.model) == (learnt_from or "float32")


def test_a_teacher_is_fine_tuned_in_float32(body: Path, tmp_path: Path):
    """Its precision is for teaching: what learns in bfloat16 loses the small steps at the end of training."""
    write_glue(tmp_path / "glue", "sst2", ("sentence",), ["negative", "positive"])
    recipe = TextClassification(
        task="sst2", data_dir=str(tmp_path / "glue"), teacher_body=str(body), teacher_epochs=0.1, student_layers=2
    )
    made = text_experiment(recipe, toy_arguments(tmp_path / "out", teacher_dtype="bfloat16"))
    saved = BertForSequenceClassification.from_pretrained(tmp_path / "out" / "teacher", dtype="auto")
    assert {own.dtype for own in (*saved.parameters(), *made.teacher.parameters())} == {torch.float32}
