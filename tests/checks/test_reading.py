"""Whether both models read the rows alike: tokenizers, special tokens, the longest row, what is ignored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from checks.patients import of, only
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from toy_models import toy_bert, toy_distilbert, toy_llama, toy_roberta
from training_toys import collate, image_rows, text_rows, trainer_of
from transformers import PreTrainedTokenizerFast

from hfdistill import DistillationTrainer, Objective, SoftTargetLoss, examine

WORDS = ["[CLS]", "[PAD]", "[UNK]", "the", "film", "is", "good"]


def tokenizer(words: list[str] = WORDS, longest: int = 64) -> PreTrainedTokenizerFast:
    """Word by word; padding is 1, as in the toy models."""
    model = WordLevel({word: at for at, word in enumerate(words)}, unk_token="[UNK]")
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]"}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model), model_max_length=longest, **special)


def both(ours: Any, theirs: Any) -> dict[str, Any]:
    """Both tokenizers as arguments of the trainer."""
    return {"processing_class": ours, "teacher_processing_class": theirs}


def test_equal_tokenizers_are_sound_and_unknown_ones_are_told(tmp_path: Path):
    """Silence would look like approval where nothing could be compared."""
    known = examine(trainer_of(tmp_path, **both(tokenizer(), tokenizer())))
    assert only(known, "tokenizers").level == "ok"
    half = only(examine(trainer_of(tmp_path, processing_class=tokenizer())), "tokenizers")
    assert half.level == "note"
    assert "could not be verified: the tokenizer of the teacher is not known" in half.message
    assert "teacher_processing_class" in half.advice


def test_the_teachers_tokenizer_is_found_beside_its_weights(tmp_path: Path):
    """A teacher loaded from a folder has it there; the trainer compared vocabulary sizes only."""
    teacher = toy_bert(layers=4, seed=1)
    for words, level in ((WORDS, "ok"), (WORDS[:3] + WORDS[:2:-1], "error")):
        folder = tmp_path / level
        teacher.save_pretrained(folder)
        tokenizer(words).save_pretrained(folder)
        loaded = type(teacher).from_pretrained(folder)
        found = only(examine(trainer_of(tmp_path, teacher=loaded, processing_class=tokenizer())), "tokenizers")
        assert found.level == level
    assert "the two vocabularies differ" in found.message or "gives other ids" in found.message


def test_a_special_token_at_another_place(tmp_path: Path):
    """A model that takes 1 for padding and is padded with 0 reads padding as text."""
    shifted = tokenizer(["[PAD]", "[CLS]", *WORDS[2:]])
    found = only(examine(trainer_of(tmp_path, processing_class=shifted)), "special tokens")
    assert found.level == "warning"
    assert found.figures == {"token": "pad_token_id", "tokenizer": 0, "configuration": 1, "model": "student"}
    assert not of(examine(trainer_of(tmp_path, processing_class=tokenizer())), "special tokens")


@pytest.mark.parametrize(
    ("make", "level", "positions"),
    [(toy_bert, "error", 16), (toy_roberta, "error", 14), (toy_llama, "warning", 16), (toy_distilbert, "error", 16)],
)
def test_rows_longer_than_the_positions(make: Any, level: str, positions: int, tmp_path: Path):
    """One long row among thousands ends a run hours later; RoBERTa counts from behind its padding."""
    rows = Dataset.from_list([*text_rows(12), {"input_ids": [7] * 17, "attention_mask": [1] * 17, "labels": 0}])
    models = {"student": make(max_position_embeddings=16), "teacher": make(seed=1, layers=4)}
    trainer = trainer_of(tmp_path, rows=rows, **models)
    found = only(examine(trainer, rows=4), "student's length")
    assert (found.level, found.figures["longest"], found.figures["positions"]) == (level, 17, positions)
    assert f"max_length={positions}" in found.advice
    assert only(examine(trainer, rows=4), "teacher's length").level == "ok"
    whole = text_rows(12).select(range(8))
    assert only(examine(trainer_of(tmp_path, rows=whole, **models)), "student's length").level == "ok"


def test_rows_as_long_as_the_tokenizer_allows_were_cut(tmp_path: Path):
    """What was cut off cannot be seen any more, but that all long rows have one length can."""
    longest = max(map(len, text_rows()["input_ids"]))
    trainer = trainer_of(tmp_path, processing_class=tokenizer(longest=longest))
    assert "probably cut" in only(examine(trainer), "student's length").message
    roomy = trainer_of(tmp_path, processing_class=tokenizer(longest=longest + 1))
    assert only(examine(roomy), "student's length").level == "ok"


def test_the_longest_row_is_that_of_the_whole_set_after_selection(tmp_path: Path):
    """Batches show a few rows; a column that a selection left rows out of must not count them."""
    rows = text_rows(30)
    lengths = [len(row) for row in rows["input_ids"]]
    shorter = rows.select([at for at, length in enumerate(lengths) if length < max(lengths)])
    for data, longest in ((rows, max(lengths)), (shorter, sorted(set(lengths))[-2])):
        findings = examine(trainer_of(tmp_path, rows=data), rows=1)
        assert only(findings, "student's length").figures["longest"] == longest


class WithExtra:
    """A collator that makes an input of its own."""

    def __call__(self, rows: Any) -> dict[str, Any]:
        """A batch and a copy of its mask."""
        batch = collate(rows)
        return {**batch, "attention_maks": batch["attention_mask"]}


def test_what_the_collator_makes_for_nobody(tmp_path: Path):
    """Many forwards take **kwargs and swallow a misspelt input."""
    found = only(examine(trainer_of(tmp_path, data_collator=WithExtra())), "inputs")
    assert found.level == "warning"
    assert found.figures == {"inputs": ["attention_maks"]}


def test_an_ignored_input_is_told_once(tmp_path: Path):
    """Columns and batches show the same thing."""
    trainer = trainer_of(tmp_path, student=toy_distilbert(), rows=text_rows(token_types=True))
    assert only(examine(trainer), "inputs").figures["ignored_by"] == "student"


def test_a_teacher_with_tokens_of_its_own_needs_no_equal_tokenizer(tmp_path: Path):
    """Losses on answers alone work across tokenizers; then nothing is compared, and its own rows are measured."""
    rows = text_rows()
    own = [[*ids, 9, 9] for ids in rows["input_ids"]]
    rows = rows.add_column("teacher_input_ids", own).add_column("teacher_attention_mask", [[1] * len(x) for x in own])

    def padded(batch: Any) -> dict[str, Any]:
        ours = collate([{k: v for k, v in row.items() if not k.startswith("teacher_")} for row in batch])
        theirs = collate([{k.removeprefix("teacher_"): v for k, v in row.items() if "teacher_" in k} for row in batch])
        return ours | {f"teacher_{name}": value for name, value in theirs.items()}

    objective = Objective(kd=SoftTargetLoss())
    objective["kd"].same_tokens = False
    findings = examine(trainer_of(tmp_path, objective, rows=rows, data_collator=padded))
    assert only(findings, "tokenizers").message.startswith("the teacher reads tokens of its own")
    ours, theirs = (only(findings, f"{role}'s length").figures["longest"] for role in ("student", "teacher"))
    assert theirs == ours + 2


def test_images_have_no_tokens(tmp_path: Path):
    """An image run is examined to the end."""
    from toy_models import toy_vit

    trainer: DistillationTrainer = trainer_of(
        tmp_path, student=toy_vit(), teacher=toy_vit(layers=4, seed=1), rows=image_rows(12)
    )
    findings = examine(trainer)
    assert only(findings, "tokenizers").message.startswith("not applicable")
    assert findings.worst != "error"
