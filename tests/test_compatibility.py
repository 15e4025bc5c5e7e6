"""What is refused before the first step: each check with what it got, why it matters and what to do."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from toy_models import text_inputs, toy_bert, toy_vit, with_lora
from toy_representations import STUDENT, TEACHER
from training_toys import trainer_of
from transformers import PreTrainedTokenizerFast, TrainingArguments

from hfdistill.anatomy import Anatomy
from hfdistill.compatibility import (
    check_arguments,
    check_batch_size,
    check_dataset,
    check_distinct,
    check_label_order,
    check_optimizer,
    check_tokenizers,
    check_vocabulary_sizes,
)
from hfdistill.losses import HiddenStateLoss, TaskLoss
from hfdistill.objective import Objective
from hfdistill.representations import Needs
from hfdistill.teachers import FrozenTeacher

TEXT = "[UNK] i don ' t know it isn a bad film is Zürich 1999 an un der rated MASTERPIECE 10 / , ? : ; - ."
WORDS = TEXT.split()


def tokenizer(words: list[str]) -> PreTrainedTokenizerFast:
    """A tokenizer of whole words, whose ids are their places in the list."""
    backend = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]")


def labelled(*names: str) -> Anatomy:
    """A model with these labels."""
    return replace(STUDENT, classes=len(names), label_names=dict(enumerate(names)))


def test_two_models_are_two() -> None:
    """Equal numbers in two places are the normal case: a student made from its teacher."""
    check_distinct(toy_bert(), toy_bert())


def test_a_teacher_that_is_the_student_is_refused() -> None:
    """It would be frozen, and the student with it: the loss is constant and nothing says why."""
    model = toy_bert()
    with pytest.raises(ValueError, match=r"shares \d+ parameters with the student.*frozen.*student_from\(teacher"):
        check_distinct(model, model)


def test_a_teacher_that_shares_some_parameters_is_refused() -> None:
    """Embeddings that were assigned instead of copied, or an adapter around the teacher itself."""
    student, teacher = toy_bert(), toy_bert()
    student.bert.embeddings.word_embeddings = teacher.bert.embeddings.word_embeddings
    with pytest.raises(ValueError, match=r"shares 1 parameters with the student \(bert.embeddings.word_"):
        check_distinct(student, teacher)
    with pytest.raises(ValueError, match="Pass two models"):
        check_distinct(with_lora(teacher, ["query"]), teacher)


@pytest.mark.parametrize(
    ("student", "teacher"),
    [
        (labelled("no", "yes"), labelled("no", "yes")),
        (labelled("No", "YES"), labelled("no", "yes")),
        (labelled("LABEL_0", "LABEL_1"), labelled("yes", "no")),
        (labelled("no", "yes"), labelled("LABEL_1", "LABEL_0")),
        (labelled("no", "yes"), labelled("negative", "positive")),
        (labelled("no", "yes"), labelled("no", "yes", "maybe")),
        (replace(STUDENT, classes=2), labelled("yes", "no")),
    ],
)
def test_labels_that_say_nothing_against_it_pass(student: Anatomy, teacher: Anatomy) -> None:
    """Generic and unlike names tell nothing about the order; other counts are the losses' to refuse."""
    check_label_order(student, teacher)


def test_the_same_labels_in_another_order_give_the_label_map() -> None:
    """GLUE and most MNLI checkpoints disagree here; the student would learn every class from a wrong one."""
    student, teacher = (
        labelled("entailment", "neutral", "contradiction"),
        labelled("Contradiction", "entailment", "neutral"),
    )
    with pytest.raises(
        ValueError, match=r"same labels in another order: \{0: 'entailment'.*wrong one.*label_map=\[1, 2, 0\]\)"
    ):
        check_label_order(student, teacher)


def test_the_label_map_of_the_message_is_the_right_one() -> None:
    """Following the advice must give the teacher's logits in the student's order, and satisfy the check."""
    ours, theirs = {0: "a", 1: "b", 2: "c"}, {0: "c", 1: "a", 2: "b"}
    student, teacher = toy_bert(id2label=ours), toy_bert(id2label=theirs, seed=1)
    with pytest.raises(ValueError, match=r"label_map=\[1, 2, 0\]"):
        check_label_order(Anatomy.of(student), Anatomy.of(teacher))
    inputs = text_inputs()
    plain = teacher(**inputs).logits
    mapped = FrozenTeacher(teacher, label_map=[1, 2, 0])
    logits = mapped.represent(inputs, Needs(logits=True)).logits
    assert logits is not None
    for index, name in ours.items():
        place = next(place for place, other in theirs.items() if other == name)
        assert torch.equal(logits[:, index], plain[:, place])
    check_label_order(Anatomy.of(student), mapped.anatomy)


def test_equal_tokenizers_pass() -> None:
    """Two objects with one vocabulary are one tokenizer."""
    check_tokenizers(tokenizer(WORDS), tokenizer(WORDS))


def test_tokenizers_with_other_ids_are_refused_with_a_text() -> None:
    """Same size, same words, other places: nothing would fail, and the teacher would read another text."""
    with pytest.raises(
        ValueError,
        match=r"other ids: \"It isn't a bad film, is it\?\" is \[.*\] for the student and \[.*student_from",
    ):
        check_tokenizers(tokenizer(WORDS), tokenizer([WORDS[0], *reversed(WORDS[1:])]))


def test_vocabularies_that_differ_outside_the_probes_are_refused() -> None:
    """The probes cannot know every word; the vocabularies are compared as a whole."""
    with pytest.raises(ValueError, match=r"differ in 1 tokens, for example 'zoo': id \d+ for the student, None"):
        check_tokenizers(tokenizer([*WORDS, "zoo"]), tokenizer(WORDS))
    with pytest.raises(ValueError, match=r"differ in 2 tokens, for example 'ape': id 27 for the student, 28 for"):
        check_tokenizers(tokenizer([*WORDS, "ape", "zoo"]), tokenizer([*WORDS, "zoo", "ape"]))


def test_vocabularies_of_other_sizes_are_refused() -> None:
    """Without tokenizers to compare the sizes are all there is; the message says how to have it verified."""
    with pytest.raises(ValueError, match=r"different size, 64 and 80.*teacher_processing_class"):
        check_vocabulary_sizes(Anatomy.of(toy_bert()), Anatomy.of(toy_bert(vocabulary=80)))
    check_vocabulary_sizes(Anatomy.of(toy_bert()), Anatomy.of(toy_bert()))
    check_vocabulary_sizes(Anatomy.of(toy_vit()), Anatomy.of(toy_vit(width=24)))


def test_data_parallel_is_refused() -> None:
    """Its copies of the student would each compare their rows with the whole batch of the teacher."""
    args = SimpleNamespace(n_gpu=4)
    with pytest.raises(ValueError, match=r"4 GPUs in one process.*torchrun --nproc_per_node 4.*CUDA_VISIBLE"):
        check_arguments(args)  # type: ignore[arg-type]


@pytest.mark.parametrize("kwargs", [None, {"use_reentrant": False}, {"use_reentrant": True}])
def test_reentrant_checkpointing_is_refused(tmp_path: Path, kwargs: dict[str, Any] | None) -> None:
    """Its gradients of captured states are silently wrong; the other kind, the default, is right."""

    def arguments(checkpointing: bool) -> TrainingArguments:
        return TrainingArguments(
            output_dir=str(tmp_path),
            use_cpu=True,
            activation_checkpointing=checkpointing,
            activation_checkpointing_kwargs=kwargs,
        )

    check_arguments(arguments(checkpointing=False))
    if kwargs != {"use_reentrant": True}:
        check_arguments(arguments(checkpointing=True))
        return
    with pytest.raises(ValueError, match=r"reentrant.*silently wrong gradients.*\{'use_reentrant': False\}"):
        check_arguments(arguments(checkpointing=True))


def test_an_empty_dataset_is_refused() -> None:
    """A filter that keeps nothing; the Trainer itself would say that num_samples is 0."""
    with pytest.raises(ValueError, match=r"train_dataset is empty.*split's name.*max_samples"):
        check_dataset([])
    for dataset in ([1], None, iter([])):  # a stream has no length before it is read
        check_dataset(dataset)


class ThreeRowsLoss(HiddenStateLoss):
    """A relation between three rows."""

    fewest_rows = 3


@pytest.mark.parametrize(("rows", "gather", "fits"), [(2, False, False), (3, False, True), (2, True, True)])
def test_batches_too_small_for_a_relation_are_refused(rows: int, gather: bool, fits: bool, tmp_path: Path) -> None:
    """The loss would be 0 in every step, and the run would look like a very good one."""
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, per_device_train_batch_size=rows)
    vars(arguments)["distributed_state"] = SimpleNamespace(num_processes=2)
    loss = ThreeRowsLoss()
    loss.gather = gather
    if fits:
        check_batch_size(arguments, Objective(three=loss))
        return
    with pytest.raises(ValueError, match=r"'three'.*at least 3 of them, got 2.*per_device_train_batch_size to 3"):
        check_batch_size(arguments, Objective(three=loss))


def test_the_trainer_refuses_batches_too_small(tmp_path: Path) -> None:
    """Before the first step: found out after it, the run is paid for."""
    trainer_of(tmp_path, "rkd", per_device_train_batch_size=3)
    with pytest.raises(ValueError, match=r"'angle'.*at least 3 of them, got 2"):
        trainer_of(tmp_path, "rkd", per_device_train_batch_size=2)


def test_an_optimizer_without_the_projectors_is_refused() -> None:
    """They would stay as random as they began, and the student would learn to fit them."""
    student = nn.Linear(2, 2)
    objective = Objective(hidden=HiddenStateLoss())
    objective.bind(STUDENT, TEACHER)
    with pytest.raises(
        ValueError,
        match=r"lacks 6 parameters of the objective \(losses.hidden.projectors.0.linear.weight is",
    ):
        check_optimizer(torch.optim.SGD(student.parameters(), lr=0.1), objective)
    check_optimizer(torch.optim.SGD([*student.parameters(), *objective.parameters()], lr=0.1), objective)
    check_optimizer(torch.optim.SGD(student.parameters(), lr=0.1), Objective(task=TaskLoss()))
    check_optimizer(None, objective)
    objective.requires_grad_(False)
    check_optimizer(torch.optim.SGD(student.parameters(), lr=0.1), objective)
