"""Relations between the samples of a batch: invariances, masks, values by hand, degenerate batches, errors."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from hfdistill.functional.categories import category_inter
from hfdistill.functional.relation import (
    angle_relation,
    correlation_congruence,
    distance_relation,
    instance_edges,
    layer_transformation,
    probabilistic_transfer,
    similarity_preserving,
)

PROPERTY = settings(deadline=None, max_examples=25, database=None, derandomize=True)
SEEDS = st.integers(0, 2**31 - 1)
GARBAGE = (float("nan"), float("inf"), -float("inf"), 1e30)
WIDTH, TEACHER_WIDTH = 3, 5


@dataclass(frozen=True)
class Formula:
    """A formula of (student, teacher, mask), and what may be done to one side without changing it."""

    name: str
    call: Callable[[Tensor, Tensor, Tensor | None], Tensor]
    shifted: bool = True
    scaled: bool = True
    each_scaled: bool = False  # every sample by a factor of its own
    flat: bool = True  # a gradient of 0 at equality
    smooth: bool = True
    tolerance: float = 1e-6  # of its invariances


def inter(student: Tensor, teacher: Tensor, mask: Tensor | None) -> Tensor:
    """Centres of classes of one sample each."""
    return category_inter(student, teacher, torch.arange(len(student)), mask)


def moved(student: Tensor, teacher: Tensor, mask: Tensor | None) -> Tensor:
    """From where the samples are to the origin."""
    sides = (student, torch.zeros_like(student), teacher, torch.zeros_like(teacher))
    return layer_transformation(*sides, mask, detach_max=False)


FORMULAS = (
    Formula("distance", distance_relation),
    Formula("angle", angle_relation),
    Formula("similarity", similarity_preserving, shifted=False),
    Formula("similarity, centred", lambda s, t, m: similarity_preserving(s, t, m, centre=True)),
    Formula("probabilistic", probabilistic_transfer, shifted=False, each_scaled=True, flat=False, tolerance=1e-3),
    Formula("congruence", correlation_congruence, shifted=False, each_scaled=True),
    Formula("edges", instance_edges, smooth=False),
    Formula("edges, through the largest", lambda s, t, m: instance_edges(s, t, m, detach_max=False)),
    Formula("transformation", moved, shifted=False),
    Formula("centres", inter, shifted=False, each_scaled=True),
)
EVERY = pytest.mark.parametrize("formula", FORMULAS, ids=lambda formula: formula.name)


def drawn(seed: int, rows: int, *widths: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(rows, width, generator=generator, dtype=torch.float64) for width in widths]


def cosines(side: Tensor) -> Tensor:
    return F.normalize(side) @ F.normalize(side).T


def rotation(seed: int, width: int) -> Tensor:
    return torch.linalg.qr(drawn(seed, width, width)[0])[0]


@EVERY
@PROPERTY
@given(seed=SEEDS, rows=st.integers(3, 6), garbage=st.sampled_from(GARBAGE))
def test_a_sample_that_does_not_count_might_as_well_not_be_there(
    formula: Formula, seed: int, rows: int, garbage: float
) -> None:
    """Mean distances, maxima, sums of rows and denominators are of the others alone, whatever it holds."""
    student, teacher = drawn(seed, rows, WIDTH, TEACHER_WIDTH)
    mask = torch.rand(rows, generator=torch.Generator().manual_seed(seed)) > 0.3
    expected = formula.call(student[mask], teacher[mask], None)
    student[~mask], teacher[~mask] = garbage, garbage
    student.requires_grad_()
    value = formula.call(student, teacher, mask)
    torch.testing.assert_close(value, expected)
    (gradient,) = torch.autograd.grad(value, student)
    assert gradient.isfinite().all()
    assert not gradient[~mask].any()


@EVERY
@PROPERTY
@given(seed=SEEDS, rows=st.integers(3, 6), factor=st.floats(0.1, 10))
def test_only_relations_are_compared(formula: Formula, seed: int, rows: int, factor: float) -> None:
    """What changes no relation must change no loss, on either side."""
    student, teacher = drawn(seed, rows, WIDTH, TEACHER_WIDTH)
    value = formula.call(student, teacher, None)
    order = torch.arange(rows).roll(1)
    changes: list[Callable[[Tensor], Tensor]] = [
        lambda side: side @ rotation(seed, side.shape[1]),
        lambda side: F.pad(side, (0, 2)),
    ]
    changes += [lambda side: factor * side] if formula.scaled else []
    changes += [lambda side: side + factor] if formula.shifted else []
    changes += [lambda side: side * torch.linspace(1, factor, rows)[:, None]] if formula.each_scaled else []
    for change in changes:
        torch.testing.assert_close(
            formula.call(change(student), teacher, None), value, rtol=formula.tolerance, atol=1e-8
        )
        torch.testing.assert_close(
            formula.call(student, change(teacher), None), value, rtol=formula.tolerance, atol=1e-8
        )
    torch.testing.assert_close(formula.call(student[order], teacher[order], None), value)


@EVERY
@PROPERTY
@given(seed=SEEDS, rows=st.integers(3, 6))
def test_a_rotated_copy_of_the_teacher_has_learnt_everything(formula: Formula, seed: int, rows: int) -> None:
    """Then the loss is 0 and pulls nowhere; before, it is above 0 and pulls."""
    (teacher,) = drawn(seed, rows, WIDTH)
    student = F.pad(2 * teacher @ rotation(seed, WIDTH), (0, 4)).requires_grad_()
    value = formula.call(student, teacher, None)
    torch.testing.assert_close(value, torch.zeros_like(value), rtol=0, atol=1e-12)
    (gradient,) = torch.autograd.grad(value, student)
    assert gradient.abs().max() < (1e-12 if formula.flat else 1e-6)
    other = drawn(seed + 1, rows, WIDTH)[0].requires_grad_()
    (gradient,) = torch.autograd.grad(formula.call(other, teacher, None), other)
    assert gradient.abs().max() > 1e-6


@EVERY
def test_gradients_are_those_of_the_value(formula: Formula) -> None:
    """Detached in the wrong place, a loss falls along something else than what it reports."""
    student, teacher = drawn(0, 4, WIDTH, TEACHER_WIDTH)
    mask = torch.tensor([True, True, False, True])
    if formula.smooth:
        assert torch.autograd.gradcheck(lambda side: formula.call(side, teacher, mask), student.requires_grad_())


@EVERY
@pytest.mark.parametrize("rows", [0, 1, 4])
def test_samples_that_coincide_pull_nowhere(formula: Formula, rows: int) -> None:
    """Two equal texts in a batch, or a batch of one: no root of 0, no division by it, however often derived."""
    teacher = drawn(0, rows, TEACHER_WIDTH)[0]
    for fill in (1.0, 0.0):
        student = torch.full((rows, WIDTH), fill, dtype=torch.float64, requires_grad=True)
        value = formula.call(student, teacher, None)
        assert value.isfinite()
        assert rows > 1 or fill == 0 or value == 0
        (gradient,) = torch.autograd.grad(value, student)
        assert gradient.isfinite().all()


def test_angles_can_be_derived_twice() -> None:
    """Each vertex lies at distance 0 from itself, in every batch; an outer loop of learning differentiates there."""
    student, teacher = drawn(0, 4, WIDTH, TEACHER_WIDTH)
    for formula in (distance_relation, angle_relation, probabilistic_transfer):
        (gradient,) = torch.autograd.grad(formula(student.requires_grad_(), teacher), student, create_graph=True)
        (second,) = torch.autograd.grad(gradient.square().sum(), student)
        assert second.isfinite().all()
        assert second.any()


@EVERY
def test_nothing_counts(formula: Formula) -> None:
    """A batch of nothing but padding neither stops a run nor moves the student."""
    student, teacher = drawn(0, 3, WIDTH, TEACHER_WIDTH)
    value = formula.call(student.requires_grad_(), teacher, torch.zeros(3, dtype=torch.bool))
    assert value == 0
    assert not torch.autograd.grad(value, student)[0].any()


def test_distances_by_hand() -> None:
    """0, 1 and 3 on a line are 1/2, 3/2 and 1 mean distances apart, the corners of a triangle 1: nine Huber terms."""
    line = torch.tensor([[0.0], [1.0], [3.0]])
    triangle = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.5, 3**0.5 / 2]])
    expected = 2 * (0.5**2 / 2 + 0.5**2 / 2) / 9
    assert distance_relation(line, triangle).item() == pytest.approx(expected)
    far = torch.tensor([[0.0], [1.0], [101.0]])  # in mean distances: 1 / 67.3, 100 / 67.3 and 101 / 67.3
    gaps = [1 - distance / (202 / 3) for distance in (1, 100, 101)]
    expected = 2 * sum(gap**2 / 2 if abs(gap) < 1 else abs(gap) - 0.5 for gap in gaps) / 9
    assert distance_relation(far, triangle).item() == pytest.approx(expected)


def test_angles_are_those_at_the_first_of_three() -> None:
    """Written out triple by triple: another order of the three is another loss."""
    student, teacher = drawn(3, 4, WIDTH, TEACHER_WIDTH)

    def cosine(side: Tensor, i: int, j: int, k: int) -> float:
        if i in (j, k):
            return 0.0
        return F.cosine_similarity(side[j] - side[i], side[k] - side[i], dim=0).item()

    triples = [(i, j, k) for i in range(4) for j in range(4) for k in range(4)]
    gaps = [abs(cosine(student, *triple) - cosine(teacher, *triple)) for triple in triples]
    expected = sum(gap**2 / 2 if gap < 1 else gap - 0.5 for gap in gaps) / 64
    assert angle_relation(student, teacher).item() == pytest.approx(expected)


@PROPERTY
@given(seed=SEEDS)
def test_drawn_vertices_are_a_sample_of_all(seed: int) -> None:
    """On average they must give the loss of all vertices, or drawing them would be another loss."""
    student, teacher = drawn(seed, 5, WIDTH, TEACHER_WIDTH)
    mask = torch.tensor([True, True, False, True, True])
    each = [angle_relation(student, teacher, mask, torch.tensor([vertex])) for vertex in range(5)]
    assert each[2] == 0  # a sample that does not count is no vertex
    torch.testing.assert_close(torch.stack(each).sum() / 4, angle_relation(student, teacher, mask))
    both = angle_relation(student, teacher, mask, torch.tensor([3, 0]))
    torch.testing.assert_close(both, (each[0] + each[3]) / 2)


def test_similarities_by_hand() -> None:
    """Orthogonal samples against equal ones: 1 - 1/sqrt(2) and 1/sqrt(2) in each row."""
    value = similarity_preserving(torch.eye(2, dtype=torch.float64), torch.ones(2, 2, dtype=torch.float64))
    assert value.item() == pytest.approx(0.29289321881345254, rel=1e-12)


def test_a_large_common_part_hides_similarities_unless_centred() -> None:
    """Vectors of language models share one; without centring there is next to nothing to learn."""
    student, teacher = drawn(0, 4, WIDTH, TEACHER_WIDTH)
    plain, centred = (similarity_preserving(student, teacher, centre=centre) for centre in (False, True))
    hidden = similarity_preserving(student + 100, teacher + 100)
    assert hidden < 1e-4 * plain
    torch.testing.assert_close(similarity_preserving(student + 100, teacher + 100, centre=True), centred)


@pytest.mark.parametrize("formula", [distance_relation, instance_edges])
def test_a_large_common_part_costs_no_precision(formula: Callable[[Tensor, Tensor], Tensor]) -> None:
    """|x|² + |y|² - 2xy of float32 vectors far from the origin is nothing but rounding errors."""
    student, teacher = drawn(0, 6, WIDTH, TEACHER_WIDTH)
    expected = formula(student, teacher)
    value = formula(student.float() + 1000, teacher.float() + 1000)
    torch.testing.assert_close(value.double(), expected, rtol=1e-3, atol=0)


def test_neighbourhoods_are_compared_by_their_divergence() -> None:
    """Up to the 1e-7 in the code: KL of the rows, divided by the number of samples twice."""
    student, teacher = drawn(0, 5, WIDTH, TEACHER_WIDTH)
    ours, theirs = (((cosines(side) + 1) / 2) for side in (student, teacher))
    ours, theirs = (side / side.sum(1, keepdim=True) for side in (ours, theirs))
    expected = F.kl_div(ours.log(), theirs, reduction="sum") / 25
    torch.testing.assert_close(probabilistic_transfer(student, teacher), expected, rtol=1e-4, atol=0)


def test_the_polynomial_approaches_the_kernel() -> None:
    """Of high order it is exp(-gamma |x - y|²) on the unit sphere; of order 2 it is not yet."""
    student, teacher = drawn(0, 4, WIDTH, TEACHER_WIDTH)
    kernels = [torch.exp(-0.7 * torch.cdist(side, side).square()) for side in map(F.normalize, (student, teacher))]
    expected = (kernels[0] - kernels[1]).square().mean()
    torch.testing.assert_close(correlation_congruence(student, teacher, gamma=0.7, order=20), expected)
    assert abs(correlation_congruence(student, teacher, gamma=0.7) - expected) > 1e-3 * expected


def test_edges_lie_between_0_and_1() -> None:
    """In units of the largest distance, so that depth and width do not change their scale."""
    corners, other = torch.tensor([[0.0], [1.0], [3.0]]), torch.tensor([[0.0], [3.0], [2.0]])
    expected = 2 * ((1 / 9 - 1.0) ** 2 + (1.0 - 4 / 9) ** 2 + (4 / 9 - 1 / 9) ** 2) / 9
    assert instance_edges(corners, other).item() == pytest.approx(expected)


@pytest.mark.parametrize("detach", [True, False])
def test_the_largest_distance_is_a_constant_where_asked(detach: bool) -> None:
    """The authors' code treats it so; another code does not, and its gradient is another."""
    student, teacher = drawn(0, 4, WIDTH, TEACHER_WIDTH)
    student.requires_grad_()
    (gradient,) = torch.autograd.grad(instance_edges(student, teacher, detach_max=detach), student)
    squares, target = ((side[:, None] - side).square().sum(-1) for side in (student, teacher))
    largest = squares.max().detach() if detach else squares.amax()
    expected = (squares / largest - target / target.max()).square().mean()
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, student)[0])


def test_transformations_by_hand() -> None:
    """Moves of 1 and 2 against moves of 2 and 1: squares in units of the larger, 1/4 and 1 against 1 and 1/4."""
    first, second = torch.zeros(2, 1), torch.tensor([[1.0], [2.0]])
    value = layer_transformation(first, second, torch.zeros(2, 3), 5 * torch.eye(2, 3) * second.flip(0))
    assert value.item() == pytest.approx((3 / 4) ** 2)


def test_teachers_get_no_gradient() -> None:
    """They are finished; a gradient would train them."""
    for formula in FORMULAS:
        student, teacher = (side.requires_grad_() for side in drawn(0, 4, WIDTH, TEACHER_WIDTH))
        formula.call(student, teacher, None).backward()
        assert teacher.grad is None


def test_shapes_that_do_not_fit_are_refused() -> None:
    """Broadcasting would relate samples of the one batch to those of another."""
    student, teacher = drawn(0, 4, WIDTH, TEACHER_WIDTH)
    for formula in FORMULAS:
        with pytest.raises(ValueError, match=r"4 samples .* and 3|inputs of .4, 3. and .3, 5."):
            formula.call(student, teacher[:3], None)
        with pytest.raises(ValueError, match=r"expected rows \[3\] as in the mask"):
            formula.call(student, teacher, torch.ones(3))
    with pytest.raises(ValueError, match="both layers of a network in one shape"):
        layer_transformation(student, teacher, student, student)
