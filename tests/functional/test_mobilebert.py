"""MobileBERT's transfer: what the parts of a feature map are free of, the cross-entropy of scores, the turns."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hfdistill.functional.mobilebert import (
    attention_cross_entropy,
    attention_probability_cross_entropy,
    check_progressive,
    feature_map_transfer,
    feature_statistics,
    layer_in_turn,
)

PROPERTY = settings(deadline=None, max_examples=25, database=None, derandomize=True)
SEEDS = st.integers(0, 2**31 - 1)


def states(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """(3, 4, 6) on both sides, and a mask."""
    generator = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, 3, 4, 6, generator=generator, dtype=torch.float64)
    return student, teacher, token_mask(generator)


def scores(seed: int, scale: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """(3, 2, 4, 4) on both sides, and a mask."""
    generator = torch.Generator().manual_seed(seed)
    student, teacher = scale * torch.randn(2, 3, 2, 4, 4, generator=generator, dtype=torch.float64)
    return student, teacher, token_mask(generator)


def token_mask(generator: torch.Generator) -> Tensor:
    mask = torch.rand(3, 4, generator=generator) < 0.7
    mask[0] = True
    return mask


@PROPERTY
@given(seed=SEEDS)
def test_feature_maps_are_free_of_each_tokens_scale_and_mean(seed: int) -> None:
    """That is the part which a layer norm takes away; what it leaves is compared."""
    student, teacher, mask = states(seed)
    scale, shift = torch.rand(2, 3, 4, 1, dtype=torch.float64)
    expected = feature_map_transfer(student, teacher, mask)
    torch.testing.assert_close(feature_map_transfer((scale + 0.1) * student + shift, teacher, mask), expected)
    torch.testing.assert_close(feature_map_transfer(student, 5 * teacher - 1, mask), expected)


@PROPERTY
@given(seed=SEEDS)
def test_the_statistics_are_what_the_feature_map_is_free_of(seed: int) -> None:
    """Means see the shift alone, variances the scale alone: together the parts see everything."""
    student, _, mask = states(seed)
    means, variances = feature_statistics(student + 2, student, mask)
    torch.testing.assert_close(means, torch.tensor(4.0, dtype=torch.float64))
    assert variances < 1e-12
    centred = student - student.mean(-1, keepdim=True)
    means, variances = feature_statistics(3 * centred, centred, mask)
    assert means < 1e-12
    torch.testing.assert_close(variances, 8 * centred.square().mean(-1)[mask].mean())


def test_hand_values() -> None:
    """Two opposite tokens: each entry is 2 away after the norm; means and variances by mental arithmetic."""
    student, teacher = torch.tensor([[1.0, 3.0]]), torch.tensor([[5.0, -5.0]])
    assert feature_map_transfer(student, teacher).item() == pytest.approx(4.0)
    means, variances = feature_statistics(student, teacher)
    assert (means.item(), variances.item()) == pytest.approx((4.0, 24.0))


def test_statistics_are_free_of_the_widths() -> None:
    """Two numbers per token are compared, whatever they are taken over."""
    student, teacher = torch.tensor([[1.0, 1.0, 1.0]]), torch.tensor([[0.0, 4.0]])
    assert [value.item() for value in feature_statistics(student, teacher)] == pytest.approx([1.0, 4.0])


def test_a_token_without_variance_stays_finite() -> None:
    """A padded token that was blanked has variance 0, and a dead one too."""
    student = torch.full((2, 3, 8), 0.7).requires_grad_()
    value = feature_map_transfer(student, torch.randn(2, 3, 8))
    (gradient,) = torch.autograd.grad(value, student)
    assert value.isfinite()
    assert gradient.isfinite().all()


@PROPERTY
@given(seed=SEEDS, garbage=st.sampled_from([float("nan"), float("inf"), 1e30]))
def test_padding_never_counts(seed: int, garbage: float) -> None:
    """The authors' code takes the mean over padded tokens too."""
    student, teacher, mask = states(seed)
    for formula in (feature_map_transfer, lambda *sides: sum(feature_statistics(*sides))):
        dirty = student.masked_fill(~mask[..., None], garbage).requires_grad_()
        value = formula(dirty, teacher.masked_fill(~mask[..., None], garbage), mask)
        torch.testing.assert_close(value, formula(student[mask], teacher[mask]))
        (gradient,) = torch.autograd.grad(value, dirty)
        assert gradient.isfinite().all()
        assert not gradient[~mask].any()


@PROPERTY
@given(seed=SEEDS, causal=st.booleans())
def test_cross_entropy_is_that_of_distributions_over_the_keys_that_are_seen(seed: int, causal: bool) -> None:
    """Row by row over real keys; a padded key that kept some probability would make the loss depend on the padding."""
    student, teacher, mask = scores(seed)
    pattern = torch.ones(4, 4).tril().bool() if causal else torch.ones(4, 4).bool()
    rows = []
    for row, head, query in torch.cartesian_prod(torch.arange(3), torch.arange(2), torch.arange(4)).tolist():
        if mask[row, query]:
            seen = mask[row] & pattern[query]
            ours, theirs = (side[row, head, query, seen] for side in (student, teacher))
            rows.append(torch.nn.functional.cross_entropy(ours, theirs.softmax(0)))
    value = attention_cross_entropy(student, teacher, mask, pattern if causal else None)
    torch.testing.assert_close(value, torch.stack(rows).mean())


@PROPERTY
@given(seed=SEEDS)
def test_its_gradient_is_the_gap_of_the_distributions(seed: int) -> None:
    """So it is 0 at equality though the value, the teacher's entropy, is not."""
    student, teacher, mask = scores(seed)
    for ours in (student, teacher.clone()):
        ours.requires_grad_()
        (gradient,) = torch.autograd.grad(attention_cross_entropy(ours, teacher, mask), ours)
        keys = ~mask[:, None, None]
        gap = ours.masked_fill(keys, -torch.inf).softmax(-1) - teacher.masked_fill(keys, -torch.inf).softmax(-1)
        torch.testing.assert_close(gradient, (gap / (2 * mask.sum())).nan_to_num() * mask[:, None, :, None])


@PROPERTY
@given(seed=SEEDS)
def test_scores_and_probabilities_agree(seed: int) -> None:
    """Families that show only probabilities learn the same thing."""
    student, teacher, mask = scores(seed)
    seen = mask.clone()
    seen[:, 0] = True
    ours, theirs = (side.masked_fill(~seen[:, None, None], -torch.inf).softmax(-1) for side in (student, teacher))
    value = attention_probability_cross_entropy(ours, theirs, seen)
    torch.testing.assert_close(value, attention_cross_entropy(student, teacher, seen))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_confident_heads_and_shut_out_keys_stay_finite(dtype: torch.dtype) -> None:
    """Probabilities underflow long before scores do; a position bias of -inf shuts a key out on both sides."""
    student, teacher, mask = (side.to(dtype) if side.is_floating_point() else side for side in scores(0, 1e4))
    for side in (student, teacher):
        side[..., 1] = -torch.inf
    student.requires_grad_()
    value = attention_cross_entropy(student, teacher, mask)
    (gradient,) = torch.autograd.grad(value, student)
    assert value.isfinite()
    assert gradient.isfinite().all()
    maps = [side.detach().softmax(-1).requires_grad_() for side in (student, teacher)]
    assert attention_probability_cross_entropy(*maps, mask).isfinite()


def test_a_query_that_may_see_no_key_does_not_count() -> None:
    """A softmax over nothing is uniform over what is masked: log N per such query."""
    student, teacher, _ = scores(1)
    allowed = torch.ones(4, 4).tril(-1).bool()  # the first query sees nothing
    value = attention_cross_entropy(student, teacher, None, allowed)
    rows = [[side[:, :, query, :query] for side in (student, teacher)] for query in (1, 2, 3)]
    expected = [-(theirs.softmax(-1) * ours.log_softmax(-1)).sum(-1).mean() for ours, theirs in rows]
    torch.testing.assert_close(value, torch.stack(expected).mean())


@pytest.mark.parametrize(
    "formula", [attention_cross_entropy, attention_probability_cross_entropy, feature_map_transfer]
)
def test_all_masked_is_zero_and_shapes_must_agree(formula: Callable[..., Tensor]) -> None:
    """A batch of padding trains nothing; two numbers of heads, or widths, have no entries in common."""
    student = torch.full((2, 2, 3, 3), float("nan")).requires_grad_()
    mask = torch.zeros(2, 2, 3) if formula is feature_map_transfer else torch.zeros(2, 3)
    value = formula(student, student.detach(), mask)
    assert value == 0
    assert not torch.autograd.grad(value, student)[0].any()
    with pytest.raises(ValueError, match=r"expected one shape on both sides"):
        formula(torch.randn(2, 4, 3, 4), torch.randn(2, 2, 3, 3))


@PROPERTY
@given(progress=st.floats(0, 1), layers=st.integers(1, 30), finish=st.floats(0.01, 1))
def test_one_layer_learns_at_each_moment(progress: float, layers: int, finish: float) -> None:
    """The gates part the interval: two at once, or none, is another strategy."""
    position, share = layer_in_turn(progress, layers, finish)
    assert 0 <= position < layers
    assert share == (1 / layers if progress <= finish else 0.0)
    assert position == layers - 1 or progress * layers < finish * (position + 1)
    assert progress * layers > finish * (position - 1e-5)


@pytest.mark.parametrize(("layers", "steps", "finish"), [(24, 480, 0.5), (3, 30, 1.0), (7, 700, 0.1), (12, 1200, 0.3)])
def test_every_layer_gets_its_equal_share_of_the_steps(layers: int, steps: int, finish: float) -> None:
    """Steps are divided by their number before they come here: a rounding error must not shift a border by a step."""
    within = round(steps * finish)
    turns = [layer_in_turn(step / steps, layers, finish)[0] for step in range(within)]
    assert turns == sorted(turns)
    assert [turns.count(layer) for layer in range(layers)] == [within // layers] * layers


@pytest.mark.parametrize("share", [0.0, -0.1, 1.5, float("nan")])
def test_a_share_that_is_none_is_refused(share: float) -> None:
    """A number of steps, for one."""
    with pytest.raises(ValueError, match=r"progressive must be a share of the run .*, or None"):
        check_progressive(share)
    check_progressive(None)
    check_progressive(1.0)
