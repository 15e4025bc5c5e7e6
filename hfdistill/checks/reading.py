"""Whether both models read the rows alike: tokenizers, vocabularies, special tokens, longest row, inputs ignored."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from hfdistill.anatomy import Anatomy, base_model
from hfdistill.checks.answers import not_applicable
from hfdistill.checks.examination import Examination
from hfdistill.checks.findings import Finding, Findings, Level
from hfdistill.checks.preflight import TOKEN_TYPES, ignored
from hfdistill.compatibility import check_tokenizers
from hfdistill.representations import SAMPLE_INDEX, TEACHER_PREFIX

_SPECIAL = ("pad_token_id", "bos_token_id", "eos_token_id", "mask_token_id", "sep_token_id", "cls_token_id")
_POSITIONS = ("max_position_embeddings", "n_positions", "max_source_positions")


@dataclass(frozen=True)
class _Reader:
    """One of the two models as a reader of ids.

    Args:
        role: "student" or "teacher".
        anatomy: its anatomy.
        model: itself, where it is known.
        tokenizer: its tokenizer, where it is known.
        prefix: of its own columns in a batch.
    """

    role: str
    anatomy: Anatomy
    model: nn.Module | None
    tokenizer: PreTrainedTokenizerBase | None
    prefix: str = ""


def examined_reading(examination: Examination) -> Findings:
    """All that concerns ids; a note where the models read no text."""
    found = _unread(examination)
    if "input_ids" not in examination.anatomy.input_names:
        return Findings([*found, not_applicable("tokenizers", "the student reads no token ids")])
    readers = list(_readers(examination))
    if len(readers) > 1:
        found.append(_same_tokenizer(examination, *readers))
    for reader in readers:
        found += [_longest(examination, reader), *_special_tokens(reader)]
    return found


def _readers(examination: Examination) -> Iterator[_Reader]:
    trainer = examination.trainer
    ours = trainer.processing_class
    yield _Reader("student", examination.anatomy, examination.student, _tokenizer(ours))
    teacher, model = examination.teacher, examination.teacher_model
    if teacher is None or "input_ids" not in teacher.anatomy.input_names:
        return
    own = f"{TEACHER_PREFIX}input_ids" in examination.batches[0]
    theirs = _tokenizer(trainer.teacher_processing_class) or _saved_tokenizer(model)
    yield _Reader("teacher", teacher.anatomy, model, theirs, TEACHER_PREFIX if own else "")


def _same_tokenizer(examination: Examination, student: _Reader, teacher: _Reader) -> Finding:
    if teacher.prefix:
        return Finding("tokenizers", "ok", "the teacher reads tokens of its own, in columns teacher_...")
    if student.tokenizer is None or teacher.tokenizer is None:
        unknown = " and ".join(reader.role for reader in (student, teacher) if reader.tokenizer is None)
        return Finding(
            "tokenizers",
            "note",
            f"that both models read the same ids could not be verified: the tokenizer of the {unknown} is not known. "
            f"Vocabularies have {student.anatomy.vocabulary} (student) and {teacher.anatomy.vocabulary} (teacher) "
            "entries.",
            "Pass processing_class=... and teacher_processing_class=...",
        )
    try:
        check_tokenizers(student.tokenizer, teacher.tokenizer)
    except ValueError as error:
        level: Level = "error" if examination.objective.same_tokens else "note"
        return Finding("tokenizers", level, str(error), "Or give the teacher columns of its own: teacher_input_ids.")
    return Finding("tokenizers", "ok", "both tokenizers give the same ids, and their vocabularies are equal.")


def _longest(examination: Examination, reader: _Reader) -> Finding:
    """The longest row against the positions that a model knows."""
    check, longest = f"{reader.role}'s length", longest_row(examination, reader.prefix)
    hard, limit = (False, 0) if reader.model is None else _positions(reader.model)
    figures = {"longest": longest, "positions": limit, "model": reader.role}
    if not limit:
        return Finding(check, "note", f"the longest row has {longest} tokens; the {reader.role} names no limit.")
    if longest > limit:
        end = "is an index error" if hard else "is at positions that it was never trained on"
        return Finding(
            check,
            "error" if hard else "warning",
            f"the longest row has {longest} tokens, the {reader.role} knows {limit} positions: what is beyond {end}.",
            f"Tokenize with truncation=True, max_length={limit}, or leave longer rows out.",
            figures,
        )
    most = 0 if reader.tokenizer is None else int(min(reader.tokenizer.model_max_length, 2**31))
    if most and longest == min(most, limit):
        message = f"the longest row has {longest} tokens, just what fits: longer texts were probably cut."
        return Finding(check, "note", message, "Count the rows of this length; they lost their end.", figures)
    told = f"the longest row has {longest} tokens, of {limit} positions that the {reader.role} knows."
    return Finding(check, "ok", told, figures=figures)


def _special_tokens(reader: _Reader) -> Findings:
    """Special tokens that stand at other ids in the tokenizer than in the model's configuration."""
    if reader.tokenizer is None or reader.model is None:
        return Findings()
    config = _config(reader.model)
    ids = {name: reader.tokenizer.convert_tokens_to_ids(token) for name, token in _tokens(reader.tokenizer)}
    other = {name: (ids[name], config[name]) for name in ids if isinstance(config.get(name), int)}
    other = {name: pair for name, pair in other.items() if pair[0] != pair[1]}
    found = Findings()
    for name, (tokenizer, model) in other.items():
        padding = name == "pad_token_id"
        found.append(
            Finding(
                "special tokens",
                "warning" if padding else "note",
                f"{name} is {tokenizer} in the {reader.role}'s tokenizer and {model} in its configuration"
                + (": padding may be read as text, or the last token of a row not be found." if padding else "."),
                f"Set config.{name} = {tokenizer}, if the tokenizer is right.",
                {"token": name, "tokenizer": tokenizer, "configuration": model, "model": reader.role},
            )
        )
    return found


def _unread(examination: Examination) -> Findings:
    """Inputs in the batches that one of the models, or both, leave out."""
    inputs, ours = examination.batches[0], set(examination.anatomy.input_names)
    teacher = examination.teacher
    theirs = set() if teacher is None else set(teacher.anatomy.input_names)
    labels = {*examination.trainer.label_names, "labels"}
    names = [name for name in inputs if name not in labels | {SAMPLE_INDEX} and not name.startswith(TEACHER_PREFIX)]
    own = any(name.startswith(TEACHER_PREFIX) for name in inputs)
    found = Findings()
    for name in names if teacher is not None and not own else ():
        if name in ours ^ theirs and not (name == TOKEN_TYPES and not _says_something(examination, name)):
            found.append(ignored(name, name in ours))
    if nobody := [name for name in names if name not in ours | theirs]:
        message = f"the collator makes {', '.join(nobody)}, which neither model's forward names."
        found.append(
            Finding("inputs", "warning", message, "Leave it out of the batches, or rename it.", {"inputs": nobody})
        )
    return found


def _says_something(examination: Examination, name: str) -> bool:
    return any(bool(inputs[name].any()) for inputs in examination.batches if isinstance(inputs.get(name), Tensor))


def longest_row(examination: Examination, prefix: str = "") -> int:
    """Tokens of the longest row: of the whole training set where its columns tell, else of the batches.

    Args:
        examination: with the data.
        prefix: of the column, "teacher_" for the teacher's own tokens.
    """
    name, rows = f"{prefix}input_ids", examination.trainer.train_dataset
    seen = max((inputs[name].shape[1] for inputs in examination.batches if name in inputs), default=0)
    if examination.split != "training" or not isinstance(rows, Dataset) or name not in rows.column_names:
        return seen
    column = rows.with_format("arrow").select_columns([name])[:][name]
    return max(seen, *(int(chunk.value_lengths().to_numpy().max()) for chunk in column.chunks if len(chunk)))


def _positions(model: nn.Module) -> tuple[bool, int]:
    """Whether a model has an embedding for each position, and how many it knows; 0 where it names no limit."""
    config = _config(model)
    limit = next((int(config[name]) for name in _POSITIONS if isinstance(config.get(name), int)), 0)
    tables = [
        part
        for name, part in model.named_modules()
        if isinstance(part, nn.Embedding)
        and ("position_embeddings" in name or name.endswith((".wpe", "embed_positions")))
    ]
    if not tables or limit <= 0:
        return False, max(limit, 0)
    padding = tables[0].padding_idx  # RoBERTa and its kin count positions from behind the padding
    return True, limit if padding is None or tables[0].num_embeddings > limit else limit - padding - 1


def _config(model: nn.Module) -> dict[str, Any]:
    base: Any = base_model(model)
    found: dict[str, Any] = base.config.get_text_config().to_dict()
    return found


def _tokens(tokenizer: PreTrainedTokenizerBase) -> Iterator[tuple[str, str]]:
    for name, token in tokenizer.special_tokens_map.items():
        if f"{name}_id" in _SPECIAL and isinstance(token, str):
            yield f"{name}_id", token


def _tokenizer(given: object) -> PreTrainedTokenizerBase | None:
    return given if isinstance(given, PreTrainedTokenizerBase) else None


def _saved_tokenizer(model: nn.Module | None) -> PreTrainedTokenizerBase | None:
    """The tokenizer in the folder that a model was loaded from; None where it came from no folder, or without one."""
    base: Any = None if model is None else base_model(model)
    folder = Path(str(base.name_or_path)) if base is not None and base.name_or_path else None
    if folder is None or not (folder / "tokenizer_config.json").is_file():
        return None
    return _tokenizer(AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False))
