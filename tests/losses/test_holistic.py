"""The holistic critic: one scalar that trains two sides, its value, and the heads it can score."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from toy_representations import STUDENT, TEACHER, TOKENS, Scene, toy_scene

from hfdistill.losses.pooling import pooled_vector
from hfdistill.losses.relation.holistic import HolisticLoss
from hfdistill.representations import Representations


def bound(width: int = 16, penalty: float = 10.0) -> HolisticLoss:
    """A critic of the toy models' answers."""
    loss = HolisticLoss(width, penalty)
    loss.bind(STUDENT, TEACHER)
    return loss


def answers(scene: Scene) -> tuple[Tensor, Tensor, Tensor]:
    """Pooled inputs (B, D_teacher), the student's and the teacher's distributions (B, K)."""
    assert scene.student.logits is not None
    assert scene.teacher.logits is not None
    inputs = pooled_vector(scene.teacher.hidden_states[0], scene.batch.mask, "mean")
    return inputs, scene.student.logits.softmax(-1), scene.teacher.logits.softmax(-1)


def score(loss: HolisticLoss, inputs: Tensor, distribution: Tensor) -> Tensor:
    """The critic's mean score."""
    value: Tensor = loss.critic(torch.cat([inputs, distribution], dim=-1)).mean()
    return value


def test_the_value_is_the_gap_and_the_same_in_evaluation() -> None:
    """The log shows what the student lowers, not a penalty; evaluation has no gradient to take a slope of."""
    loss, scene = bound(), toy_scene()
    inputs, ours, theirs = answers(scene)
    value = loss(*scene.parts())
    torch.testing.assert_close(value, score(loss, inputs, theirs) - score(loss, inputs, ours))
    with torch.no_grad():
        torch.testing.assert_close(loss(*scene.parts()), value.detach())


def test_the_student_falls_along_the_score_alone() -> None:
    """Neither the penalty nor the critic's own aim may reach it: it would help the critic, or fight it twice."""
    loss, scene = bound(), toy_scene().watched()
    loss(*scene.parts()).backward()
    again = toy_scene().watched()
    inputs, ours, _ = answers(again)
    (-score(loss, inputs, ours)).backward()
    assert scene.student.logits is not None
    assert again.student.logits is not None
    torch.testing.assert_close(scene.student.logits.grad, again.student.logits.grad)
    assert all(side.grad is None for side in scene.teacher.hidden_states.values())


def test_the_critic_raises_the_gap_with_its_slope_held_at_1() -> None:
    """Written out: the scores' difference and ten times the squared excess of the slope, at a random mixture."""
    loss, scene = bound(), toy_scene()
    torch.manual_seed(3)
    gradients = torch.autograd.grad(loss(*scene.parts()), list(loss.parameters()))
    inputs, ours, theirs = answers(scene)
    torch.manual_seed(3)
    share = torch.rand(3, 1)
    mixed = (share * ours + (1 - share) * theirs).requires_grad_()
    (slope,) = torch.autograd.grad(3 * score(loss, inputs, mixed), mixed, create_graph=True)
    penalty = 10.0 * (slope.norm(dim=-1) - 1).square().mean()
    written_out = score(loss, inputs, ours) - score(loss, inputs, theirs) + penalty
    torch.testing.assert_close(gradients, torch.autograd.grad(written_out, list(loss.parameters())))


def test_at_equality_the_value_is_0() -> None:
    """Equal answers to equal inputs cannot be told apart by any critic."""
    scene = toy_scene()
    teacher = Representations(scene.student.logits, scene.teacher.hidden_states)
    assert bound()(scene.student, teacher, scene.batch).item() == 0.0


def test_both_sides_learn_from_the_one_scalar() -> None:
    """The critic finds the distance, since its slope is 1; a student that follows it then comes nearer."""
    loss, scene = bound(), toy_scene()
    assert scene.student.logits is not None
    logits = scene.student.logits.clone().requires_grad_()
    _, _, target = answers(scene)
    distances, gaps = [], []
    critic, student = torch.optim.Adam(loss.parameters(), lr=0.03), torch.optim.Adam([logits], lr=0.02)
    for step in range(190):
        value = loss(replace(scene.student, logits=logits), scene.teacher, scene.batch)
        gaps.append(value.item())
        distances.append((logits.softmax(-1) - target).norm(dim=-1).mean().item())
        critic.zero_grad()
        student.zero_grad()
        value.backward()
        critic.step()
        if step >= 150:
            student.step()
    assert gaps[150] == pytest.approx(distances[0], rel=0.15)
    assert distances[-1] < 0.65 * distances[0]


def test_heads_whose_answers_it_cannot_score_are_refused() -> None:
    """A critic of rows sees one distribution per row; of one class there is nothing to see."""
    tokens = replace(STUDENT, head=TOKENS)
    with pytest.raises(ValueError, match=r"'ForTokenClassification' with 3 \(student\).*SoftTargetLoss"):
        HolisticLoss().bind(tokens, tokens)
    with pytest.raises(ValueError, match=r"with 3 \(student\) and .* with 5 \(teacher\)"):
        HolisticLoss().bind(STUDENT, replace(TEACHER, classes=5))
    with pytest.raises(ValueError, match=r"at least 2 classes"):
        HolisticLoss().bind(replace(STUDENT, classes=1), replace(TEACHER, classes=1))
    scene = toy_scene(tokens, tokens)
    with pytest.raises(ValueError, match=r"needs logits \(B, K\) of both models, got \(3, 5, 3\)"):
        bound()(*scene.parts())
    with pytest.raises(ValueError, match=r"width of at least 1 and a penalty above 0, got 128 and 0.0"):
        HolisticLoss(penalty=0.0)
