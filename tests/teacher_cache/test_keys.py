"""Names of teachers and rows: the same for the same content, others for any other."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from toy_models import (
    image_inputs,
    text_inputs,
    toy_albert,
    toy_bert,
    toy_deberta,
    toy_gpt2,
    toy_llama,
    toy_roberta,
    toy_swin,
    toy_t5,
    toy_vit,
    with_lora,
)
from training_toys import collate, text_rows
from transformers import AutoModel, PreTrainedModel

from hfdistill.shared_base import SharedBaseTeacher
from hfdistill.teacher_cache import keys
from hfdistill.teacher_cache.keys import row_keys, teacher_key
from hfdistill.teacher_tokens import TeacherTokensCollator

TEXT = ("input_ids", "attention_mask", "token_type_ids", "position_ids", "inputs_embeds", "labels")
FAMILIES = [toy_bert, toy_albert, toy_gpt2, toy_llama, toy_vit, toy_swin, toy_deberta, toy_t5]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_teacher_that_is_loaded_again_has_its_name(family: Callable[..., PreTrainedModel], tmp_path: Path) -> None:
    """Every run loads the teacher anew, and may choose another attention implementation or folder."""
    teacher = family()
    told = teacher_key(teacher)
    assert told == teacher_key(family())
    assert len(told) == 64
    teacher.save_pretrained(tmp_path / "saved")
    again = type(teacher).from_pretrained(tmp_path / "saved")
    assert teacher_key(again) == told
    if again.config.model_type != "deberta-v2":
        again.set_attn_implementation("eager")
    assert teacher_key(again) == told


def raised(teacher: PreTrainedModel, by: float) -> PreTrainedModel:
    """The model with one weight changed."""
    with torch.no_grad():
        next(teacher.parameters()).view(-1)[5] += by
    return teacher


def of_a_subclass() -> PreTrainedModel:
    """The same weights and configuration in a class whose forward may be another."""
    teacher = toy_bert()
    teacher.__class__ = type("BentBert", (type(teacher),), {})
    return teacher


OTHERS: dict[str, Callable[[], nn.Module]] = {
    "a class of its own": of_a_subclass,
    "other weights": lambda: toy_bert(seed=1),
    "one weight": lambda: raised(toy_bert(), 1e-6),
    "half precision": lambda: toy_bert().to(torch.bfloat16),
    "another class": lambda: toy_bert(head="ForTokenClassification"),
    "another family": toy_roberta,
    "more layers": lambda: toy_bert(layers=3),
    "its configuration": lambda: toy_bert(layer_norm_eps=1e-5),
    "its activation": lambda: toy_bert(hidden_act="relu"),
    "without a head": lambda: toy_bert(head="Model"),
    "an adapter": lambda: with_lora(toy_bert(), ["query"]),
}


@pytest.mark.parametrize("name", OTHERS)
def test_another_teacher_has_another_name(name: str) -> None:
    """What one teacher showed must never be taught as another's."""
    assert teacher_key(OTHERS[name]()) != teacher_key(toy_bert())


def test_the_order_of_labels_is_part_of_the_name() -> None:
    """What is kept is the teacher's answer in the student's order."""
    teacher = toy_bert()
    told = {teacher_key(teacher, labels) for labels in (None, [0, 1, 2], [2, 1, 0], (0, 1))}
    assert len(told) == 4
    assert teacher_key(teacher, [2, 1, 0]) == teacher_key(toy_bert(), (2, 1, 0))


def test_what_is_only_said_is_not_part_of_the_name() -> None:
    """A teacher whose folder, or whose classes, got other names shows the same."""
    renamed = toy_bert()
    renamed.config.id2label = {0: "a", 1: "b", 2: "c"}
    renamed.config._name_or_path = "elsewhere"
    renamed.config.output_hidden_states = True
    renamed.train().requires_grad_(False)
    assert teacher_key(renamed) == teacher_key(toy_bert())


def test_a_buffer_is_part_of_the_name() -> None:
    """Running statistics decide what a model shows, and are no parameters."""
    one, other = (nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)) for _ in range(2))
    other.load_state_dict(one.state_dict())
    teachers = []
    for added in (one, other):
        teachers.append(toy_bert())
        teachers[-1].added = added
    assert teacher_key(teachers[0]) == teacher_key(teachers[1])
    other[1].running_mean.add_(1)
    assert teacher_key(teachers[0]) != teacher_key(teachers[1])


CHANGES: dict[str, Callable[[PreTrainedModel], Any]] = {
    "in place": lambda model: raised(model, 1.0),
    "through .data": lambda model: next(model.parameters()).data.mul_(1.5),
    "reordered": lambda model: model.classifier.weight.requires_grad_(False).copy_(model.classifier.weight.flip(0)),
    "reordered through .data": lambda model: setattr(
        model.classifier.weight, "data", model.classifier.weight.data.flip(0)
    ),
    "another tensor": lambda model: setattr(model.classifier, "weight", nn.Parameter(model.classifier.weight + 1)),
    "loaded": lambda model: model.load_state_dict(toy_bert(seed=1).state_dict()),
    "cast": lambda model: model.to(torch.float16),
    "configured": lambda model: setattr(model.config, "hidden_act", "relu"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_teacher_that_changes_gets_another_name(name: str) -> None:
    """A teacher that is trained on between two runs of one process must not find what it showed before."""
    teacher = toy_bert()
    before = teacher_key(teacher)
    CHANGES[name](teacher)
    assert teacher_key(teacher) != before


def test_a_teacher_is_digested_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seeds and arms of an experiment share the teacher, and gigabytes take seconds."""
    teacher = toy_bert()
    told = teacher_key(teacher)
    monkeypatch.setattr(keys.hashlib, "sha256", lambda *content: pytest.fail("digested again"))
    assert teacher_key(teacher) == told


def adapted(targets: list[str], alpha: int = 8) -> PeftModel:
    """A BERT with LoRA, the same each time."""
    torch.manual_seed(0)
    wrapped = with_lora(toy_bert(), targets)
    wrapped.peft_config["default"].lora_alpha = alpha
    return wrapped


def test_adapters_are_part_of_the_name() -> None:
    """A LoRA teacher is its base and its adapter, and how strongly that one acts is in its configuration alone."""
    teachers = [adapted(["query"]), adapted(["value"]), adapted(["query", "value"]), adapted(["query"], alpha=16)]
    assert len({teacher_key(teacher) for teacher in teachers}) == 4
    assert teacher_key(adapted(["query"])) == teacher_key(teachers[0])


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_an_adapted_teacher_that_is_loaded_again_has_its_name(tmp_path: Path) -> None:
    """What PEFT notes when it saves (paths, versions, that it is for inference) changes no number."""
    teacher = adapted(["query"])
    teacher.save_pretrained(tmp_path)
    assert teacher_key(PeftModel.from_pretrained(toy_bert(), tmp_path)) == teacher_key(teacher)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("heads", [None, ["classifier"]])
def test_a_shared_base_has_the_name_of_the_model_it_was(heads: list[str] | None) -> None:
    """The base teaches, and the adapter, which learns, must not change whose knowledge it is."""
    student = get_peft_model(toy_bert(), LoraConfig(target_modules=["query"], r=2, modules_to_save=heads))
    teacher = SharedBaseTeacher(student)
    told = teacher_key(teacher.model, parameters=teacher.base_parameters())
    assert told == teacher_key(toy_bert())
    with torch.no_grad():
        for name, parameter in student.named_parameters():
            if "lora" in name or "modules_to_save" in name:
                parameter.add_(1)
    assert teacher_key(teacher.model, parameters=teacher.base_parameters()) == told
    raised(teacher.model, 1.0)
    assert teacher_key(teacher.model, parameters=teacher.base_parameters()) != told


def test_a_teacher_without_its_weights_has_no_name() -> None:
    """All models whose weights lie elsewhere would have one name, and learn from each other's rows."""
    configuration = toy_bert().config
    with torch.device("meta"):
        empty = AutoModel.from_config(configuration)
    with pytest.raises(ValueError, match="a teacher whose weights are all in this process"):
        teacher_key(empty)


def padded(ids: list[list[int]], width: int, left: bool = False, **columns: int) -> dict[str, Tensor]:
    """Rows of token ids as a batch of this width, with further columns that are constant over the tokens."""
    batch = {"input_ids": torch.full((len(ids), width), 1), "attention_mask": torch.zeros(len(ids), width).long()}
    batch |= {name: torch.zeros(len(ids), width).long() for name in columns}
    for row, tokens in enumerate(ids):
        at = slice(width - len(tokens), width) if left else slice(0, len(tokens))
        batch["input_ids"][row, at] = torch.tensor(tokens, dtype=torch.long)
        batch["attention_mask"][row, at] = 1
        for name, value in columns.items():
            batch[name][row, at] = value
    return batch


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_row_has_one_name_in_every_batch(data: st.DataObject) -> None:
    """Shuffling, length grouping, dynamic padding, ranks and accumulation make other batches of the same rows."""
    rows = data.draw(st.lists(st.lists(st.integers(5, 7), max_size=4), min_size=1, max_size=6))
    told = [row_keys(padded([row], max(1, len(row)), token_type_ids=1), TEXT)[0] for row in rows]
    assert all(len(key) == 16 for key in told)
    order = data.draw(st.permutations(range(len(rows))))
    wider = data.draw(st.integers(4, 9))
    batch = padded([rows[at] for at in order], wider, left=data.draw(st.booleans()), token_type_ids=1)
    batch["input_ids"] = batch["input_ids"].where(batch["attention_mask"] > 0, data.draw(st.integers(0, 9)))
    batch["labels"] = torch.arange(len(rows))
    assert row_keys(batch, TEXT) == [told[at] for at in order]
    same = {tuple(row) for row in rows}
    assert len(set(told)) == len(same)


ROW = padded([[5, 6, 7, 8]], 6, token_type_ids=0)
ROWS: dict[str, dict[str, Tensor]] = {
    "a token": padded([[5, 6, 9, 8]], 6, token_type_ids=0),
    "their order": padded([[6, 5, 7, 8]], 6, token_type_ids=0),
    "one less": padded([[5, 6, 7]], 6, token_type_ids=0),
    "one more": padded([[5, 6, 7, 8, 1]], 6, token_type_ids=0),
    "the second sentence": padded([[5, 6, 7, 8]], 6, token_type_ids=1),
    "a token that is masked": {**ROW, "attention_mask": torch.tensor([[1, 1, 0, 1, 0, 0]])},
    "the mask's numbers": {**ROW, "attention_mask": 2 * ROW["attention_mask"]},
    "the ids' dtype": {**ROW, "input_ids": ROW["input_ids"].int()},
    "a column less": padded([[5, 6, 7, 8]], 6),
    "no mask": {"input_ids": ROW["input_ids"], "token_type_ids": ROW["token_type_ids"]},
    "positions": {**ROW, "position_ids": torch.arange(6)[None]},
    "a setting": {**ROW, "inputs_embeds": 0.5},  # type: ignore[dict-item]
}


def test_another_row_has_another_name() -> None:
    """Another tokenizer, length, text or mask makes other rows, and each is a miss."""
    told = {name: row_keys(batch, TEXT)[0] for name, batch in {"itself": ROW, **ROWS}.items()}
    assert len(set(told.values())) == len(told)


def test_gaps_in_the_mask_hide_what_is_in_them() -> None:
    """The teacher does not read there; but where the gap is, it does."""
    gap = torch.tensor([[1, 0, 1, 1, 0, 0]])
    one, same = (padded([[5, other, 7, 8]], 6) | {"attention_mask": gap} for other in (6, 9))
    elsewhere = padded([[5, 7, 6, 8]], 6) | {"attention_mask": torch.tensor([[1, 1, 0, 1, 0, 0]])}
    assert row_keys(one, TEXT) == row_keys(same, TEXT)
    assert row_keys(one, TEXT) != row_keys(elsewhere, TEXT)


def test_columns_cannot_change_places() -> None:
    """The same bytes in other columns are another row."""
    one = {"input_ids": torch.tensor([[5, 6]]), "token_type_ids": torch.tensor([[0, 1]])}
    other = {"input_ids": torch.tensor([[0, 1]]), "token_type_ids": torch.tensor([[5, 6]])}
    assert row_keys(one, TEXT) != row_keys(other, TEXT)


def test_pixels_decide_the_name_of_an_image() -> None:
    """An augmented image is another image."""
    batch, names = image_inputs(rows=4), ("pixel_values", "labels")
    told = row_keys(batch, names)
    assert len(set(told)) == 4
    assert row_keys({"pixel_values": batch["pixel_values"].flip(0), "labels": torch.zeros(4)}, names) == told[::-1]
    touched = batch["pixel_values"].clone()
    touched[2, 1, 3, 3] += 1e-6
    changed = row_keys({"pixel_values": touched}, names)
    assert [one == other for one, other in zip(told, changed, strict=True)] == [True, True, False, True]
    assert row_keys({"pixel_values": batch["pixel_values"].bfloat16()}, names)[0] not in told
    assert row_keys({"pixel_values": batch["pixel_values"].reshape(4, 3, 4, 16)}, names)[0] not in told
    assert row_keys({"pixel_values": batch["pixel_values"].view(torch.int32)}, names)[0] not in told


def test_embeddings_are_padded_as_tokens_are() -> None:
    """A model may be given the embeddings of its tokens instead of these."""
    values, mask = torch.randn(2, 5, 3), torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    told = row_keys({"inputs_embeds": values, "attention_mask": mask}, TEXT)
    short = row_keys({"inputs_embeds": values[:1, :3], "attention_mask": mask[:1, :3]}, TEXT)
    assert told[:1] == short
    assert told[0] != row_keys({"inputs_embeds": values[:1, :3] + 1, "attention_mask": mask[:1, :3]}, TEXT)[0]


@pytest.mark.parametrize("name", ["pixel_values", "decoder_input_ids"])
def test_what_is_as_long_as_the_tokens_by_chance_is_read_whole(name: str) -> None:
    """A picture of three channels beside three tokens has no padding where the tokens have it."""
    names = (*TEXT, name)
    given = torch.randn(1, 3, 2, 2) if name == "pixel_values" else torch.tensor([[4, 5, 6]])
    other = given.clone()
    other[0, 2] += 1
    text = padded([[5, 6]], 3)
    assert row_keys({**text, name: given}, names) != row_keys({**text, name: other}, names)


def test_the_teachers_own_columns_count_where_there_are_any() -> None:
    """With two tokenizers what the student reads says nothing of what the teacher was shown."""
    rows = [{"input_ids": [5, 6], "attention_mask": [1, 1], "labels": 1}]
    rows = [{**row, "teacher_input_ids": [7, 8, 9], "teacher_attention_mask": [1, 1, 1]} for row in rows]
    batch = TeacherTokensCollator(collate, collate)(rows)  # type: ignore[arg-type]
    told = row_keys(batch, TEXT)
    assert told == row_keys({"input_ids": torch.tensor([[7, 8, 9]]), "attention_mask": torch.ones(1, 3).long()}, TEXT)
    assert row_keys({**batch, "input_ids": batch["input_ids"] + 1}, TEXT) == told
    assert row_keys({**batch, "teacher_input_ids": batch["teacher_input_ids"] + 1}, TEXT) != told


def test_a_tokenizers_length_makes_other_rows_of_what_it_cuts() -> None:
    """With another max_length the long rows are misses, and the short ones, which it does not change, are found."""
    rows = text_rows(count=12, tokens=(3, 9))
    cut = rows.map(lambda row: {name: row[name][:6] for name in ("input_ids", "attention_mask")})
    told, short = (row_keys(collate(list(data)), TEXT) for data in (rows, cut))
    whole = [len(row["input_ids"]) <= 6 for row in rows]
    assert [one == other for one, other in zip(told, short, strict=True)] == whole
    assert {True, False} == set(whole)
    assert set(told).isdisjoint(row_keys(collate(list(text_rows(count=12, seed=1))), TEXT))


def test_what_cannot_be_cut_into_rows_is_refused() -> None:
    """A name that leaves something out would find another row's knowledge."""
    with pytest.raises(ValueError, match="tensors of one number of rows"):
        row_keys({**text_inputs(), "position_ids": torch.arange(5)}, TEXT)
    with pytest.raises(ValueError, match=r"tensors of one number of rows .* got none"):
        row_keys({"labels": torch.zeros(3), "strange": torch.zeros(3)}, TEXT)
    with pytest.raises(ValueError, match="got position_ids of type list"):
        row_keys({**text_inputs(), "position_ids": [[0, 1]]}, TEXT)
    assert row_keys({**text_inputs(), "position_ids": None}, TEXT) == row_keys(text_inputs(), TEXT)
