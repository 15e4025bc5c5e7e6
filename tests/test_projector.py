"""The projector: what it computes, in which dtype, how it starts, and when it is nothing at all."""

from __future__ import annotations

import pytest
import torch

from hfdistill.projector import Projector


def test_equal_widths_need_no_projector():
    """Where widths agree the very tensor comes back: no parameter to train, no copy, no change of dtype."""
    projector = Projector(8, 8)
    hidden = torch.randn(2, 3, 8, dtype=torch.float16)
    assert projector(hidden) is hidden
    assert projector.is_identity
    assert not list(projector.parameters())
    assert not projector.state_dict()
    projector.reset_parameters()


def test_force_learns_a_map_between_equal_widths():
    """A paper may project even between equal widths; that must be a real, trainable map."""
    projector = Projector(8, 8, force=True)
    assert not projector.is_identity
    assert sorted(projector.state_dict()) == ["linear.bias", "linear.weight"]
    assert not torch.equal(projector(torch.ones(2, 8)), torch.ones(2, 8))


@pytest.mark.parametrize("shape", [(5,), (2, 5), (2, 3, 5), (2, 4, 3, 5), (0, 5)])
def test_projects_the_last_dimension_of_any_shape(shape):
    """Pooled states, tokens and heads all pass through the one formula h W^T + b."""
    projector = Projector(5, 7)
    torch.nn.init.normal_(projector.linear.bias)
    hidden = torch.randn(shape)
    expected = hidden @ projector.linear.weight.T + projector.linear.bias
    torch.testing.assert_close(projector(hidden), expected)
    assert projector(hidden).shape == (*shape[:-1], 7)


def test_gradient_reaches_the_parameters_and_the_student():
    """A projector that blocks the gradient teaches the student nothing while the loss still falls."""
    projector = Projector(5, 7)
    hidden = torch.randn(2, 3, 5, requires_grad=True)
    projector(hidden).pow(2).sum().backward()
    for tensor in (hidden, projector.linear.weight, projector.linear.bias):
        assert tensor.grad is not None
        assert tensor.grad.abs().sum() > 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_runs_in_the_dtype_of_its_parameters(dtype):
    """A half-precision student is lifted to the projector's float32, and its gradient comes back in its own dtype."""
    projector = Projector(5, 7)
    hidden = torch.randn(2, 5).to(dtype).requires_grad_()
    projected = projector(hidden)
    assert projected.dtype == torch.float32
    torch.testing.assert_close(projected, projector(hidden.detach().float()))
    projected.sum().backward()
    assert hidden.grad is not None
    assert hidden.grad.dtype == dtype
    assert Projector(5, 7).to(dtype)(torch.randn(2, 5)).dtype == dtype


def test_starts_as_bert_does_and_from_the_seed():
    """TinyBERT's results depend on this start, and a run must repeat from its seed."""
    torch.manual_seed(0)
    projector = Projector(200, 300)
    torch.manual_seed(0)
    again = Projector(200, 300)
    assert torch.equal(projector.linear.weight, again.linear.weight)
    assert projector.linear.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert abs(projector.linear.weight.mean().item()) < 5e-4
    assert not projector.linear.bias.any()


def test_reset_parameters_starts_over():
    """Stages reuse a projector: after a reset nothing of the earlier training may be left."""
    projector = Projector(5, 7)
    with torch.no_grad():
        projector.linear.weight.fill_(9.0)
        projector.linear.bias.fill_(9.0)
    projector.reset_parameters()
    assert projector.linear.weight.abs().max() < 1.0
    assert not projector.linear.bias.any()


def test_bias_can_be_left_out():
    """Bias-free projections are published too; the reset must not trip over the missing bias."""
    projector = Projector(5, 7, bias=False)
    assert sorted(projector.state_dict()) == ["linear.weight"]
    assert not projector(torch.zeros(2, 5)).any()


@pytest.mark.parametrize(
    ("projector", "shape"), [(Projector(5, 7), (2, 7)), (Projector(5, 5), (2, 7)), (Projector(5, 7), ())]
)
def test_another_width_is_refused(projector, shape):
    """Passing the teacher's states is the likely slip; the identity would let it through without this check."""
    with pytest.raises(ValueError, match=r"student of width 5.*Pass the student's states"):
        projector(torch.zeros(shape))


@pytest.mark.parametrize(("widths", "side"), [((0, 4), "student"), ((4, -1), "teacher")])
def test_widths_are_positive(widths, side):
    """Torch builds a Linear of width 0 without a word; its loss would be zero for ever."""
    with pytest.raises(ValueError, match=f"{side} width of at least 1"):
        Projector(*widths)


@pytest.mark.parametrize("width", [4.0, True, None, "4"])
def test_widths_are_integers(width):
    """A config without the expected field often gives None; the message says where the width comes from."""
    with pytest.raises(TypeError, match="hidden_size"):
        Projector(4, width)


def test_print_shows_the_widths():
    """The trainer logs its projectors; a reader must see which way they go."""
    assert "5 -> 7" in repr(Projector(5, 7))
    assert "identity" in repr(Projector(5, 5))
