"""Categories: centres of classes and samples around them, against their definitions, class by class."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from hfdistill.functional.categories import category_compactness, category_inter, category_intra

PROPERTY = settings(deadline=None, max_examples=25, database=None, derandomize=True)
SEEDS = st.integers(0, 2**31 - 1)


def drawn(seed: int, rows: int = 7, width: int = 4, teacher_width: int = 4) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A student's samples, a teacher's, labels of up to 4 classes, and which samples count."""
    generator = torch.Generator().manual_seed(seed)
    student = torch.randn(rows, width, generator=generator, dtype=torch.float64)
    teacher = torch.randn(rows, teacher_width, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 4, (rows,), generator=generator)
    return student, teacher, labels, torch.rand(rows, generator=generator) > 0.3


def centres_of(side: Tensor, labels: Tensor) -> dict[int, Tensor]:
    return {int(label): side[labels == label].mean(0) for label in labels.unique()}


@PROPERTY
@given(seed=SEEDS)
def test_angles_between_the_centres_of_present_classes(seed: int) -> None:
    """Absent classes have no centre, and samples that do not count are in none."""
    student, teacher, labels, mask = drawn(seed, teacher_width=6)
    ours, theirs = (
        torch.stack(list(centres_of(side[mask], labels[mask]).values())) if mask.any() else side[:0]
        for side in (student, teacher)
    )
    gaps = [F.normalize(side) @ F.normalize(side).T for side in (ours, theirs)]
    expected = (gaps[0] - gaps[1]).square().sum() / max(len(ours) ** 2, 1)
    student[~mask], teacher[~mask] = torch.nan, torch.inf
    torch.testing.assert_close(category_inter(student, teacher, labels, mask), expected)
    paper = category_inter(student, teacher, labels, mask, "paper")
    torch.testing.assert_close(paper, expected / max(len(ours), 1))


@PROPERTY
@given(seed=SEEDS)
def test_samples_around_the_centres_of_their_classes(seed: int) -> None:
    """Value and gradient as the closed form has them, with every sample that counts pulled to where it should lie."""
    student, teacher, labels, mask = drawn(seed)
    gaps = torch.zeros_like(student)
    for row in mask.nonzero()[:, 0].tolist():
        ours, theirs = (side[row] - side[mask & (labels == labels[row])].mean(0) for side in (student, teacher))
        gaps[row] = ours - theirs
    entries = max(int(mask.sum()) * 4, 1)
    student[~mask], teacher[~mask] = torch.nan, torch.inf
    value = category_intra(student.requires_grad_(), teacher, labels, mask)
    torch.testing.assert_close(value, gaps.square().sum() / entries)
    torch.testing.assert_close(torch.autograd.grad(value, student)[0], 2 * gaps / entries)
    torch.testing.assert_close(category_intra(student, teacher, labels, mask, reduction="paper") * 4, value)


def test_centres_of_samples_that_are_classified_right() -> None:
    """A class without one leaves each of its samples its own centre, so that it asks for no shift at all."""
    student, teacher, _, _ = drawn(0, rows=4)
    labels = torch.tensor([0, 0, 0, 1])
    right = torch.tensor([True, True, False, False])
    student.requires_grad_()
    value = category_intra(student, teacher, labels, None, right, torch.ones(4, dtype=torch.bool))
    ours = torch.cat([student[:3] - student[:2].mean(0), torch.zeros(1, 4)])
    theirs = torch.cat([teacher[:3] - teacher[:3].mean(0), torch.zeros(1, 4)])
    torch.testing.assert_close(value, (ours - theirs).square().mean())
    (gradient,) = torch.autograd.grad(value, student)
    torch.testing.assert_close(gradient, 2 * (ours - theirs).detach() / 16)  # the centre is a constant


@PROPERTY
@given(seed=SEEDS)
def test_compact_classes_are_points(seed: int) -> None:
    """Only then is there nothing left to gather; each sample is pulled to the centre of its class."""
    student, _, labels, mask = drawn(seed)
    points = student[labels]
    assert category_compactness(points, labels, mask).item() == pytest.approx(0.0, abs=1e-24)
    value = category_compactness(student.requires_grad_(), labels)
    (gradient,) = torch.autograd.grad(value, student)
    gaps = torch.stack([student[row] - student[labels == labels[row]].mean(0) for row in range(7)]).detach()
    torch.testing.assert_close(gradient, 2 * gaps / 28)


def test_names_of_classes_do_not_matter() -> None:
    """Labels are names; a formula that computes with them would favour one class."""
    student, teacher, labels, mask = drawn(1)
    renamed = torch.tensor([900, 2, 77, 0])[labels]
    for formula in (category_inter, category_intra):
        torch.testing.assert_close(
            formula(student, teacher, renamed, mask), formula(student, teacher, labels, mask), rtol=0, atol=0
        )


def test_one_class_has_no_structure_between_classes() -> None:
    """A batch of one class must not be divided by 0 pairs of them."""
    student, teacher, labels, _ = drawn(0)
    value = category_inter(student.requires_grad_(), teacher, torch.zeros_like(labels))
    assert value == 0
    assert not torch.autograd.grad(value, student)[0].any()


def test_labels_that_do_not_fit_are_refused() -> None:
    """Labels of tokens, or scores, would be compared as if they were classes."""
    student, teacher, labels, _ = drawn(0)
    with pytest.raises(ValueError, match=r"expected one label per sample, \[7\], got \[7, 2\]"):
        category_inter(student, teacher, labels[:, None].expand(7, 2))
    with pytest.raises(ValueError, match="one shape on both sides"):
        category_intra(student[:, :2], teacher, labels)
    for formula in (category_inter, category_intra):
        with pytest.raises(ValueError, match="reduction"):
            formula(student, teacher, labels, reduction="sum")
