"""Gradient perturbation: the step along the gradient, and a student that reads shifted embeddings once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from toy_models import FAMILIES, text_inputs, toy_albert, toy_bert

from hfdistill.anatomy import first_layer
from hfdistill.perturbation import perturbation, shifted_embeddings


@pytest.mark.parametrize("family", FAMILIES)
def test_the_embedding_output_is_seen_and_shifted(family: str) -> None:
    """In every family what is seen is hidden_states[0], and a shift of it changes what the model answers."""
    factory, make_inputs = FAMILIES[family]
    model, inputs = factory(), make_inputs()
    plain = model(**inputs, output_hidden_states=True)
    with shifted_embeddings(model, None) as seen:
        untouched = model(**inputs).logits
    assert torch.equal(untouched, plain.logits)
    assert torch.equal(seen[0], plain.hidden_states[0])
    with shifted_embeddings(model, torch.randn_like(seen[0])):
        shifted = model(**inputs, output_hidden_states=True)
    assert not torch.allclose(shifted.logits, plain.logits)
    assert torch.equal(model(**inputs).logits, plain.logits)


def test_a_shared_layer_is_shifted_once() -> None:
    """ALBERT calls one layer for all depths; its later inputs are what it made itself."""
    model, inputs = toy_albert(layers=3), text_inputs()
    plain = model(**inputs, output_hidden_states=True).hidden_states
    taken: list[torch.Tensor] = []

    def keep(module: torch.nn.Module, args: tuple[Any, ...]) -> None:
        taken.append(args[0])

    shift = torch.ones_like(plain[0])
    with shifted_embeddings(model, shift) as seen:
        handle = first_layer(model).register_forward_pre_hook(keep)  # runs after the shift
        output = model(**inputs, output_hidden_states=True).hidden_states
    handle.remove()
    assert len(seen) == 1
    torch.testing.assert_close(taken[0], plain[0] + shift)
    torch.testing.assert_close(taken[1:], list(output[1:3]))


def test_the_hook_leaves_with_the_context_even_after_an_error() -> None:
    """A shift that stays would perturb every evaluation."""
    model, inputs = toy_bert(), text_inputs()
    plain = model(**inputs).logits
    with pytest.raises(RuntimeError, match="out"), shifted_embeddings(model, torch.ones(3, 9, 16)):
        raise RuntimeError("out")
    assert torch.equal(model(**inputs).logits, plain)


def test_the_step_goes_along_the_gradient_with_length_epsilon() -> None:
    """Per row: a long text must not be moved less than a short one. A row without gradient stays where it is."""
    embeddings = torch.randn(3, 4, 5, requires_grad=True)
    weights = torch.randn(3, 4, 5)
    weights[1] = 0.0
    step = perturbation((embeddings * weights).sum(), embeddings, 0.7)
    assert not step.requires_grad
    torch.testing.assert_close(step.flatten(1).norm(dim=1), torch.tensor([0.7, 0.0, 0.7]))
    torch.testing.assert_close(step[0] / 0.7, weights[0] / weights[0].norm())
    assert embeddings.grad is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_neither_overflows_nor_divides_by_zero(dtype: torch.dtype) -> None:
    """In float16 a sum of squares passes 65504 soon, and 1e-12 is 0."""
    embeddings = torch.zeros(2, 64, 64, dtype=dtype, requires_grad=True)
    weights = torch.full((2, 64, 64), 100.0, dtype=dtype)
    weights[1] = 0.0
    step = perturbation((embeddings * weights).sum(), embeddings, 1.0)
    torch.testing.assert_close(step.flatten(1).norm(dim=1), torch.tensor([1.0, 0.0]), rtol=1e-2, atol=0.0)


def test_the_step_raises_the_loss() -> None:
    """It is the direction in which the embeddings hurt most; downhill it would be a present to the student."""
    model, inputs = toy_bert(), text_inputs()
    labels = torch.tensor([0, 1, 2])
    with shifted_embeddings(model, None) as seen:
        loss = model(**inputs, labels=labels).loss
    step = perturbation(loss, seen[0], 0.1)
    with shifted_embeddings(model, step):
        assert model(**inputs, labels=labels).loss > loss


def test_gradients_are_the_same_under_activation_checkpointing() -> None:
    """The backward pass runs the first layer again, after the hook has gone: it must run from the shifted input."""
    inputs, labels, shift = text_inputs(), torch.tensor([0, 1, 2]), torch.randn(3, 9, 16)
    gradients = []
    for checkpointing in (False, True):
        model = toy_bert().train()
        if checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": False})
        with shifted_embeddings(model, shift):
            loss = model(**inputs, labels=labels).loss
        loss.backward()
        gradients.append({name: value.grad for name, value in model.named_parameters()})
    torch.testing.assert_close(gradients[1], gradients[0])
