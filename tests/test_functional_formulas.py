"""What single formulas promise and no golden value can show: invariances, closed forms, limits, errors."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hfdistill import functional as F

HEADS, WIDTH = 2, 4
GARBAGE = (float("nan"), float("inf"), -float("inf"), 1e30)
PROPERTY = settings(deadline=None, max_examples=25, database=None, derandomize=True)
SEEDS = st.integers(0, 2**31 - 1)
SIZES = st.tuples(st.integers(1, 4), st.integers(2, 5))  # B, N


def pair(seed: int, batch: int, tokens: int) -> tuple[Tensor, Tensor]:
    """Return a student's tensor (B, N, D), with a gradient, and a teacher's."""
    generator = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, batch, tokens, WIDTH, generator=generator, dtype=torch.float64)
    return student.requires_grad_(), teacher


@PROPERTY
@given(seed=SEEDS, temperature=st.floats(0.5, 20), sizes=SIZES)
def test_gradient_of_soft_targets_in_closed_form(seed: int, temperature: float, sizes: tuple[int, int]) -> None:
    """(T / rows)(p_s - p_t): the T² is there to give exactly this."""
    student, teacher = pair(seed, *sizes)
    mask = torch.rand(sizes, generator=torch.Generator().manual_seed(seed)) < 0.7
    (gradient,) = torch.autograd.grad(F.soft_target_kl(student, teacher, temperature, mask), student)
    difference = (student / temperature).softmax(-1) - (teacher / temperature).softmax(-1)
    expected = temperature / max(mask.sum().item(), 1) * difference * mask[..., None]
    torch.testing.assert_close(gradient, expected.detach(), rtol=1e-9, atol=1e-12)


@PROPERTY
@given(seed=SEEDS, sizes=SIZES)
def test_cross_entropy_differs_by_the_teachers_entropy(seed: int, sizes: tuple[int, int]) -> None:
    """Same gradient, other value: that is all that the two forms of soft targets differ in."""
    student, teacher = pair(seed, *sizes)
    cross_entropy = F.soft_target_cross_entropy(student, teacher, 3.0)
    divergence = F.soft_target_kl(student, teacher, 3.0, scale_by_temperature=False)
    entropy = -((teacher / 3).softmax(-1) * (teacher / 3).log_softmax(-1)).sum(-1).mean()
    torch.testing.assert_close(cross_entropy, divergence + entropy)


DIVERGENCES = pytest.mark.parametrize(
    "divergence", [F.soft_target_kl, F.soft_target_cross_entropy, F.reverse_kl, F.total_variation]
)


@DIVERGENCES
@PROPERTY
@given(seed=SEEDS, sizes=SIZES)
def test_divergences_ignore_a_shift_of_the_logits(
    divergence: Callable[..., Tensor], seed: int, sizes: tuple[int, int]
) -> None:
    """Logits plus a constant per row are the same distribution."""
    student, teacher = pair(seed, *sizes)
    shifts = torch.randn(2, *sizes, 1, generator=torch.Generator().manual_seed(seed + 2), dtype=torch.float64) * 50
    moved = divergence(student + shifts[0], teacher + shifts[1], 2.0)
    torch.testing.assert_close(moved, divergence(student, teacher, 2.0), rtol=1e-9, atol=1e-12)


@DIVERGENCES
def test_divergences_of_extreme_logits_are_finite(divergence: Callable[..., Tensor]) -> None:
    """A confident model's probabilities underflow; its loss and gradient must not."""
    student = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 1e4]], requires_grad=True)
    teacher = torch.tensor([[-1e4, 1e4, 0.0], [-1e4, 1e4, 1e4]])
    loss = divergence(student, teacher)
    (gradient,) = torch.autograd.grad(loss, student)
    assert loss.isfinite()
    assert loss > 0
    assert gradient.isfinite().all()


@pytest.mark.parametrize(
    "function", [F.soft_target_kl, F.soft_target_cross_entropy, F.reverse_kl, F.total_variation, F.logit_mse]
)
@PROPERTY
@given(seed=SEEDS, sizes=SIZES)
def test_classes_shut_out_on_both_sides(function: Callable[..., Tensor], seed: int, sizes: tuple[int, int]) -> None:
    """Vocabularies are padded with -inf, and inf - inf is NaN: such classes add nothing and move nothing."""
    student, teacher = pair(seed, *sizes)
    shut = [torch.nn.functional.pad(side.detach(), (0, 2), value=-float("inf")) for side in (student, teacher)]
    own = shut[0].requires_grad_()
    loss = function(own, shut[1], 2.0)
    (gradient,) = torch.autograd.grad(loss, own)
    expected = function(student, teacher, 2.0)
    # logit_mse is a mean over all classes, the shut ones too.
    torch.testing.assert_close(loss, expected * (WIDTH / (WIDTH + 2) if function is F.logit_mse else 1))
    assert gradient.isfinite().all()
    assert not gradient[..., WIDTH:].any()


def test_a_class_the_student_shut_out_alone_is_no_secret() -> None:
    """The student can never give what the teacher asks for: infinity says so, 0 would hide it."""
    student, teacher = torch.tensor([[0.0, -float("inf")]]), torch.tensor([[0.0, 0.0]])
    assert F.soft_target_kl(student, teacher) == float("inf")
    assert F.reverse_kl(student, teacher).isfinite()


@pytest.mark.parametrize("shape", [(), (1,), (2, 1, 1), (2, 3, 1)])
def test_temperature_tensors(shape: tuple[int, ...]) -> None:
    """One temperature per sample or token must be the same as so many calls with a float."""
    student, teacher = pair(0, 2, 3)
    temperature = torch.rand(shape, dtype=torch.float64) + 1
    rows = temperature.expand(2, 3, 1)
    one_by_one = [
        F.soft_target_kl(student[b, n], teacher[b, n], rows[b, n].item()) for b in range(2) for n in range(3)
    ]
    torch.testing.assert_close(F.soft_target_kl(student, teacher, temperature), torch.stack(one_by_one).mean())


@PROPERTY
@given(seed=SEEDS, scale=st.floats(1e-3, 1e3), sizes=SIZES)
def test_directions_ignore_length(seed: int, scale: float, sizes: tuple[int, int]) -> None:
    """Cosines and normalised states compare directions: a length that leaked in would dominate them."""
    student, teacher = pair(seed, *sizes)
    first, others = (student[:, 0], teacher[:, 0]), teacher[:, 1:]
    for function in (F.hidden_cosine, F.patience):
        torch.testing.assert_close(function(scale * student, teacher / scale), function(student, teacher))
    scaled = F.cos_nce(scale * first[0], first[1] / scale, scale * others)
    torch.testing.assert_close(scaled, F.cos_nce(*first, others))


@PROPERTY
@given(seed=SEEDS, sizes=SIZES)
def test_relations_ignore_rotations_within_a_head(seed: int, sizes: tuple[int, int]) -> None:
    """Relations are inner products: they know angles, not axes, so student and teacher need no common basis."""
    student, teacher = pair(seed, *sizes)
    generator = torch.Generator().manual_seed(seed)
    pieces = torch.randn(HEADS, WIDTH // HEADS, WIDTH // HEADS, generator=generator, dtype=torch.float64)
    rotation = torch.block_diag(*torch.linalg.qr(pieces)[0])
    turned = F.relation_kl(student @ rotation, student @ rotation, teacher, teacher, HEADS)
    torch.testing.assert_close(turned, F.relation_kl(student, student, teacher, teacher, HEADS))


def test_relations_are_free_of_the_width() -> None:
    """A narrower student is what relations are for: the same relations at another width are a loss of 0."""
    narrow = torch.randn(2, 3, 4, dtype=torch.float64)
    pieces = narrow.reshape(2, 3, HEADS, 2)  # (B, N, H, D / H)
    wide = torch.cat([pieces * 2**0.25, torch.zeros_like(pieces)], -1).reshape(2, 3, 8)  # √d_r grows by √2
    assert F.relation_kl(narrow, narrow, wide, wide, HEADS) == pytest.approx(0, abs=1e-12)


@PROPERTY
@given(seed=SEEDS, kept=st.lists(st.booleans(), min_size=6, max_size=6), garbage=st.sampled_from(GARBAGE))
def test_contrast_with_fewer_negatives_per_row(seed: int, kept: list[bool], garbage: float) -> None:
    """Rows have different numbers of usable negatives; a masked one must count neither as near nor as far."""
    generator = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, 2, WIDTH, generator=generator, dtype=torch.float64)
    negatives = torch.randn(2, 3, WIDTH, generator=generator, dtype=torch.float64)
    real = torch.tensor(kept).reshape(2, 3)
    student.requires_grad_()
    loss = F.cos_nce(student, teacher, negatives.masked_fill(~real[..., None], garbage), real)
    rows = [F.cos_nce(student[[b]], teacher[[b]], negatives[[b]][:, real[b]]) for b in range(2)]
    torch.testing.assert_close(loss, torch.stack(rows).mean())
    (gradient,) = torch.autograd.grad(loss, student)
    assert gradient.isfinite().all()
    assert 0 <= loss <= 4


def test_contrast_with_masked_rows() -> None:
    """A masked row, its negatives included, holds garbage."""
    student, teacher = torch.randn(2, 2, WIDTH, dtype=torch.float64)
    negatives = torch.randn(2, 3, WIDTH, dtype=torch.float64)
    expected = F.cos_nce(student[:1], teacher[:1], negatives[:1])
    student[1], negatives[1] = float("nan"), float("inf")
    student.requires_grad_()
    loss = F.cos_nce(student, teacher, negatives, mask=torch.tensor([1, 0]))
    assert loss == expected
    assert torch.autograd.grad(loss, student)[0].isfinite().all()
    assert torch.autograd.gradcheck(lambda side: F.cos_nce(side, teacher[:1], negatives[:1]), student[:1])


def test_contrast_takes_negatives_for_teacher_vectors() -> None:
    """The bank of negatives is the teacher's: no gradient may reach it."""
    student, teacher = torch.randn(2, 2, WIDTH).requires_grad_()
    negatives = torch.randn(2, 3, WIDTH, requires_grad=True)
    (gradient,) = torch.autograd.grad(F.cos_nce(student, teacher, negatives), negatives, allow_unused=True)
    assert gradient is None


@PROPERTY
@given(seed=SEEDS, batch=st.integers(1, 4))
def test_similarities_ignore_rotation_and_scale(seed: int, batch: int) -> None:
    """Only the pattern of similarities between samples is compared; one sample alone has none to learn."""
    generator = torch.Generator().manual_seed(seed)
    student = torch.randn(batch, WIDTH, generator=generator, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(batch, 2, 3, generator=generator, dtype=torch.float64)
    rotation = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=generator, dtype=torch.float64))[0]
    loss = F.similarity_preserving(student, teacher)
    torch.testing.assert_close(F.similarity_preserving(3 * student @ rotation, teacher), loss)
    assert torch.autograd.grad(loss, student)[0].isfinite().all()
    assert batch > 1 or loss == 0
    assert torch.autograd.gradcheck(lambda side: F.similarity_preserving(side, teacher), student)


@PROPERTY
@given(seed=SEEDS)
def test_triplet_is_bounded_by_its_margin_at_equality(seed: int) -> None:
    """A negative that answers like the positive costs the margin exactly; only the student learns from it."""
    generator = torch.Generator().manual_seed(seed)
    teacher, positive, negative = torch.randn(3, 4, WIDTH, generator=generator, dtype=torch.float64).requires_grad_()
    assert F.triplet(teacher, positive, positive, 2.0).item() == pytest.approx(2.0)
    assert F.triplet(teacher, teacher, teacher + 100, 2.0) == 0
    loss = F.triplet(teacher, positive, negative, 50.0)
    gradients = torch.autograd.grad(loss, [teacher, positive, negative], allow_unused=True)
    assert gradients[0] is None
    assert gradients[1].any()
    assert gradients[2].any()


def test_reductions_of_the_papers() -> None:
    """Published weights for one reduction are wrong for the other, by M · D for patience and D / 2 for hints."""
    student, teacher = torch.randn(2, 2, 3, WIDTH, dtype=torch.float64)
    ratio = F.patience(student, teacher, reduction="paper") / F.patience(student, teacher)
    assert ratio == pytest.approx(3 * WIDTH)
    hints = F.hidden_mse(student, teacher, reduction="paper")
    assert hints == pytest.approx(0.5 * (student - teacher).square().sum(-1).mean())
    assert F.patience(student, student) == 0
    assert F.patience(student.half(), teacher).dtype == torch.float64
    own = student.requires_grad_()
    assert torch.autograd.gradcheck(lambda side: F.patience(side, teacher), own)


@pytest.mark.parametrize("shape", [(3, 3), (1, 1, 3, 3), (2, 1, 3, 3)])
def test_permitted_pairs(shape: tuple[int, ...]) -> None:
    """Scores that a causal model never uses are arbitrary, often -inf or the lowest float: they must not be learnt."""
    student, teacher = torch.randn(2, 2, HEADS, 3, 3)
    causal = torch.ones(3, 3, dtype=torch.bool).tril()
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]], dtype=torch.bool)
    shut_student, shut_teacher = student.masked_fill(~causal, -float("inf")), teacher.masked_fill(~causal, -1e38)
    shut_student.requires_grad_()
    loss = F.attention_score_mse(shut_student, shut_teacher, mask, causal.expand(shape))
    squares = (student - teacher).square()
    kept = causal & mask[:, None, None] & mask[:, None, :, None]
    torch.testing.assert_close(loss, squares[kept.expand_as(squares)].mean())
    assert torch.autograd.grad(loss, shut_student)[0].isfinite().all()


def test_tinybert_scores_depend_on_the_padding() -> None:
    """The reference's quirk is kept where it is asked for by name, and only there."""
    student, teacher = torch.randn(2, 1, HEADS, 2, 2)
    longer = [torch.nn.functional.pad(side, (0, 1, 0, 1), value=-10000) for side in (student, teacher)]
    loss = F.attention_score_mse_tinybert(student, teacher)
    torch.testing.assert_close(F.attention_score_mse_tinybert(*longer), loss * 4 / 9)


def test_probabilities_that_underflowed() -> None:
    """A softmax in half precision gives exact zeros: the loss stays finite, and 0 log 0 is 0."""
    student = torch.tensor([[[[1.0, 0.0], [0.5, 0.5]]]], requires_grad=True)
    teacher = torch.tensor([[[[0.5, 0.5], [1.0, 0.0]]]])
    loss = F.attention_probability_kl(student, teacher)
    assert loss.isfinite()
    assert loss > 1
    assert torch.autograd.grad(loss, student)[0].isfinite().all()


@pytest.mark.parametrize("function", [F.hidden_cosine, F.patience, F.similarity_preserving])
def test_vectors_of_length_zero_have_a_bounded_gradient(function: Callable[..., Tensor]) -> None:
    """A dead vector divided by a tiny epsilon would throw the whole model with one step."""
    student = torch.zeros(2, 3, WIDTH, requires_grad=True)
    (gradient,) = torch.autograd.grad(function(student, torch.randn(2, 3, WIDTH)), student)
    assert gradient.isfinite().all()
    assert gradient.abs().max() < 10


PAIR = (torch.zeros(2, 3, 4), torch.zeros(2, 3, 4))
MAPS = (torch.zeros(2, 2, 3, 3), torch.zeros(2, 2, 3, 3))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: F.soft_target_kl(*PAIR, 0.0), "temperature above 0, got 0.0"),
        (lambda: F.logit_mse(*PAIR, -1.0), "temperature above 0, got -1.0"),
        (lambda: F.reverse_kl(*PAIR, float("nan")), "temperature above 0, got nan"),
        (lambda: F.total_variation(*PAIR, float("inf")), "temperature above 0, got inf"),
        (lambda: F.soft_target_kl(*PAIR, torch.ones(3, 4)), r"one value or \(..., 1\), got \[3, 4\]"),
        (lambda: F.soft_target_kl(*PAIR, reduction="sum"), "reduction among .*elementmean.*'sum'"),
        (lambda: F.hidden_mse(*PAIR, reduction="sum"), "reduction among .*paper.*'sum'"),
        (lambda: F.patience(*PAIR, reduction="elementmean"), "reduction among .*paper.*'elementmean'"),
        (lambda: F.soft_target_kl(PAIR[0][..., :1], PAIR[1][..., :1]), "at least 2 classes.*logit_mse"),
        (lambda: F.hidden_mse(PAIR[0], PAIR[1][..., :1]), r"\[2, 3, 4\] \(student\) and \[2, 3, 1\] \(teacher\)"),
        (lambda: F.soft_target_kl(*PAIR, mask=torch.ones(2)), r"rows \[2\] as in the mask, got inputs of \[2, 3, 4\]"),
        (lambda: F.attention_score_mse(*MAPS, torch.ones(2, 2)), r"rows \[2, 2\] as in the mask"),
        (lambda: F.attention_score_mse(MAPS[0], MAPS[1][:, :1]), "relation_kl"),
        (lambda: F.attention_score_mse(*MAPS, allowed=torch.ones(2, 2)), "allowed"),
        (lambda: F.relation_kl(*PAIR, *PAIR, heads=3), "heads=3"),
        (lambda: F.relation_kl(*PAIR, *PAIR, heads=0), "heads=0"),
        (
            lambda: F.relation_kl(*PAIR, PAIR[0][:, :2], PAIR[1][:, :2], heads=2),
            r"rows \[2, 3\] as in the first input",
        ),
        (lambda: F.flow_of_solution(*PAIR, PAIR[0][:, :2], PAIR[1][:, :2]), r"got inputs of .* and \[2, 2, 4\]"),
        (lambda: F.cos_nce(MAPS[0][0, 0], MAPS[1][0, 0], torch.zeros(5, 3)), r"negatives \(B, M, D\)"),
        (lambda: F.similarity_preserving(PAIR[0], PAIR[1][:1]), "one shape on both sides"),
    ],
)
def test_errors_say_what_is_wrong(call: Callable[[], Tensor], message: str) -> None:
    """Torch would broadcast most of these without a word, into a loss that trains on something else."""
    with pytest.raises(ValueError, match=message):
        call()
