"""Few-sample recovery: exact where a map explains all, never worse, and folded without a trace."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_models import image_inputs, text_inputs, toy_bert, toy_gpt2, toy_llama, toy_vit
from training_toys import largest_difference, weights_of

from hfdistill.anatomy import encoder_layers, output_projections
from hfdistill.few_sample import recover_from_few_samples
from hfdistill.functional.few_sample import pointwise_map

PROPERTY = settings(deadline=None, max_examples=25, database=None, derandomize=True)


def bent(model: Any, layer: int, number: int) -> Any:
    """The same model with the output of one block multiplied by a random matrix."""
    module = list(output_projections(encoder_layers(model)[layer]).values())[number]
    turn = torch.randn(16, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        module.weight.copy_(turn @ module.weight)
        if module.bias is not None:
            module.bias.copy_(turn @ module.bias)
    return model


@PROPERTY
@given(seed=st.integers(0, 2**31 - 1), rows=st.integers(4, 9))
def test_a_linear_change_is_undone_exactly(seed: int, rows: int) -> None:
    """Where one map explains all rows, least squares must find it; padding must not enter."""
    generator = torch.Generator().manual_seed(seed)
    student = torch.randn(rows, 3, generator=generator, dtype=torch.float64)
    turn = torch.randn(2, 3, generator=generator, dtype=torch.float64)
    teacher = student @ turn.T
    torch.testing.assert_close(pointwise_map(student, teacher), turn, rtol=1e-6, atol=1e-6)
    padded = [torch.cat([side, torch.full((1, side.shape[1]), torch.nan)]) for side in (student, teacher)]
    mask = torch.arange(rows + 1) < rows
    torch.testing.assert_close(pointwise_map(*padded, mask), turn, rtol=1e-6, atol=1e-6)


def test_the_map_goes_from_one_width_to_another() -> None:
    """Twice the teacher's width or half: the formula does not care."""
    assert pointwise_map(torch.randn(9, 3), torch.randn(9, 5)).shape == (5, 3)
    assert pointwise_map(torch.randn(9, 3).bfloat16(), torch.randn(9, 5)).dtype == torch.float32


@pytest.mark.parametrize("make", [toy_bert, toy_llama, toy_vit])
@pytest.mark.parametrize("place", [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_a_bent_block_is_straightened(make: Any, place: tuple[int, int]) -> None:
    """A student that differs from its teacher by one linear map becomes its teacher."""
    teacher, student = make(), bent(make(), *place)
    inputs = image_inputs(rows=8) if make is toy_vit else text_inputs(rows=8)
    apart = (student(**inputs).logits - teacher(**inputs).logits).abs().max()
    steps = recover_from_few_samples(student, teacher, [inputs])
    assert len(steps) == 4
    assert all(step.after <= step.before + 1e-12 for step in steps)
    together = (student.eval()(**inputs).logits - teacher.eval()(**inputs).logits).abs().max()
    assert together < 1e-4 < apart


def test_all_batches_count_and_modes_stay() -> None:
    """The reference code kept the last batch only; and a recovery in the middle of training must not end it."""
    teacher, student = toy_bert(), bent(toy_bert(), 0, 1).train()
    batches = [text_inputs(rows=2, seed=seed) for seed in range(4)]
    both, last = (toy_bert() for _ in range(2))
    both.load_state_dict(student.state_dict())
    last.load_state_dict(student.state_dict())
    before = weights_of(teacher)
    recover_from_few_samples(student, teacher, batches)
    assert student.training
    assert largest_difference(before, weights_of(teacher)) == 0
    recover_from_few_samples(last, teacher, [text_inputs(rows=8, seed=3)])
    assert largest_difference(weights_of(student), weights_of(last)) > 0
    assert set(student.state_dict()) == set(both.state_dict())


def test_what_cannot_be_recovered_is_refused() -> None:
    """Silently doing nothing would be taken for a recovery."""
    with pytest.raises(ValueError, match="one width"):
        recover_from_few_samples(toy_bert(width=8), toy_bert(), [text_inputs()])
    with pytest.raises(ValueError, match="Give more rows"):
        recover_from_few_samples(toy_bert(), toy_bert(), [text_inputs(rows=1)])
    with pytest.raises(ValueError, match="not GPT-2"):
        recover_from_few_samples(toy_gpt2(), toy_gpt2(), [text_inputs(rows=8)])
