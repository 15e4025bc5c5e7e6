"""The objective on the student: there while a request is open, gone without a trace afterwards."""

from typing import Any

import pytest
import torch
from toy_models import text_inputs, toy_bert, with_lora
from transformers.modeling_outputs import SequenceClassifierOutput

from hfdistill import Anatomy, AttentionMapLoss, Batch, HiddenStateLoss, Needs, Objective, TaskLoss
from hfdistill.attachment import SUBMODULE, Attachment, Request, given_task_loss
from hfdistill.capture import capture

INPUTS = text_inputs()
BATCH = Batch.of(INPUTS)


def bound(student: Any, teacher: Any) -> Objective:
    """Hidden states and attention, with a projector, bound to the two models."""
    objective = Objective(hidden=HiddenStateLoss(), attention=AttentionMapLoss())
    objective.bind(Anatomy.of(student), Anatomy.of(teacher))
    return objective


def request_of(objective: Objective, teacher: Any) -> Request:
    """What one pass needs, with what the teacher shows of `INPUTS`."""
    with torch.no_grad():
        return Request(capture(teacher, INPUTS, objective.needs()[1])[1], BATCH)


def test_open_request_returns_output_and_result() -> None:
    """Everything trainable is reached through one forward, which is what DDP and FSDP demand."""
    student, teacher = toy_bert(width=8), toy_bert(layers=4, seed=1)
    objective = bound(student, teacher)
    with Attachment(student, objective) as attachment, attachment.request(request_of(objective, teacher)):
        output, result = student(**INPUTS)
    assert isinstance(output, SequenceClassifierOutput)
    assert set(output) == {"logits"}
    torch.testing.assert_close(output.logits, student(**INPUTS).logits)
    result.loss.backward()
    assert set(result.terms) == {"hidden", "attention"}
    assert all(parameter.grad is not None for parameter in objective.parameters())
    assert not [name for name, value in teacher.named_parameters() if value.grad is not None]


def test_without_a_request_the_student_is_itself() -> None:
    """Evaluation, generation and a subclass's own forward happen while the objective hangs there."""
    student, teacher = toy_bert(width=8), toy_bert(layers=4, seed=1)
    with Attachment(student, bound(student, teacher)):
        output = student(**INPUTS)
        assert isinstance(output, SequenceClassifierOutput)
        assert set(output) == {"logits"}
        assert set(student(**INPUTS, output_hidden_states=True)) == {"logits", "hidden_states"}


def test_what_the_user_asks_for_stays() -> None:
    """A request adds the layers it needs to the call, and takes out what it added: nothing else."""
    student, teacher = toy_bert(width=8), toy_bert(layers=4, seed=1)
    objective = bound(student, teacher)
    with Attachment(student, objective) as attachment, attachment.request(request_of(objective, teacher)):
        output, _ = student(**INPUTS, labels=torch.tensor([0, 1, 2]))
    assert set(output) == {"loss", "logits"}


@pytest.mark.parametrize("lora", [False, True])
def test_parts_come_and_go(lora: bool) -> None:
    """Optimizers and wrappers find the projectors on the student's root, and only for that time."""
    student, teacher = toy_bert(width=8), toy_bert(layers=4, seed=1)
    root = with_lora(student, ["query"]) if lora else student
    objective = bound(root, teacher)
    names = set(root.state_dict())
    with Attachment(root, objective) as attachment:
        assert attachment.attached
        added = {name for name, _ in root.named_parameters() if name.startswith(SUBMODULE)}
        assert added == {f"{SUBMODULE}.{name}" for name, _ in objective.named_parameters()} != set()
    assert not attachment.attached
    assert set(root.state_dict()) == names
    assert not root._forward_hooks
    assert not root._forward_pre_hooks


def test_error_in_the_forward_closes_the_request() -> None:
    """A batch that fails (out of memory, a wrong id) must not leave the capture in the attention layers."""
    student, teacher = toy_bert(width=8), toy_bert(layers=4, seed=1)
    objective = bound(student, teacher)
    modules = list(student.modules())
    configs = [vars(module).get("config") for module in modules]
    with Attachment(student, objective) as attachment:
        with pytest.raises(IndexError), attachment.request(request_of(objective, teacher)):
            student(input_ids=torch.full((3, 9), 1000))
        found = [vars(module).get("config") for module in modules]
        assert all(now is before for now, before in zip(found, configs, strict=True))
        assert isinstance(student(**INPUTS), SequenceClassifierOutput)


def test_one_objective_at_a_time() -> None:
    """Two trainers on one student would train each other's projectors."""
    student, teacher = toy_bert(width=8), toy_bert(layers=4, seed=1)
    with (
        Attachment(student, bound(student, teacher)),
        pytest.raises(ValueError, match="another objective already hangs"),
        Attachment(student, bound(student, teacher)),
    ):
        pass
    with Attachment(student, bound(student, teacher)) as again:
        assert again.attached


def test_what_the_student_ignored_on_save_is_kept() -> None:
    """Students with keys of their own to leave out keep them during training, and afterwards have exactly these."""
    student, teacher = toy_bert(width=8), toy_bert(layers=4, seed=1)
    student._keys_to_ignore_on_save = {"classifier.bias"}
    objective = bound(student, teacher)
    with Attachment(student, objective):
        assert student._keys_to_ignore_on_save == {"classifier.bias"} | {
            f"{SUBMODULE}.{name}" for name in objective.state_dict()
        }
    assert student._keys_to_ignore_on_save == {"classifier.bias"}


def test_keys_that_a_class_ignores_are_kept_in_its_subclasses() -> None:
    """A user's subclass of a model inherits what must not be saved."""
    base = type(toy_bert())

    class Parent(base):  # type: ignore[misc, valid-type]
        _keys_to_ignore_on_save = ("classifier.bias",)

    class Child(Parent):
        pass

    student = Child(toy_bert(width=8).config)
    objective = bound(student, toy_bert(layers=4, seed=1))
    with Attachment(student, objective):
        assert "classifier.bias" in set(student._keys_to_ignore_on_save)
    assert student._keys_to_ignore_on_save == {"classifier.bias"}


@pytest.mark.parametrize(
    ("head", "taken"), [("ForSequenceClassification", False), ("ForQuestionAnswering", True), ("", True)]
)
def test_heads_with_a_loss_of_their_own_are_asked_for_it(head: str, taken: bool) -> None:
    """TaskLoss knows classes and tokens; of start and end positions only the head knows the loss."""
    loss = torch.tensor(3.0)
    anatomy = Anatomy(family="bert", depth=1, width=8, head=head)
    found = given_task_loss({"loss": loss}, None, None, anatomy)
    assert (found is loss) == taken
    own = given_task_loss(
        {"loss": loss}, torch.tensor([1]), lambda output, labels: output["loss"] + labels[0], anatomy
    )
    assert own is not None
    assert own.item() == 4.0


def test_objective_without_parts_leaves_saving_alone() -> None:
    """Where nothing is learnt beside the student nothing has to be left out."""
    student = toy_bert()
    objective = Objective(task=TaskLoss())
    objective.bind(Anatomy.of(student), Anatomy.of(student))
    assert objective.needs() == (Needs(logits=True), Needs())
    with Attachment(student, objective):
        assert not student._keys_to_ignore_on_save
