"""Attention maps: scores and probabilities, numbers of heads, patterns, and families that show less."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import golden
import pytest
import torch
from torch import Tensor
from toy_models import text_inputs, toy_bert, toy_deberta, toy_resnet
from toy_representations import LENGTHS, STUDENT, TEACHER, Scene, toy_anatomy, toy_scene

from hfdistill.anatomy import Anatomy
from hfdistill.capture import capture, check_attention
from hfdistill.losses import AttentionMapLoss
from hfdistill.representations import Attention, Batch, Representations

LAST = [(-1, -1)]


def bound(student: Anatomy = STUDENT, teacher: Anatomy = TEACHER, **keywords: Any) -> AttentionMapLoss:
    """A loss on the last layers, bound."""
    loss = AttentionMapLoss(LAST, **keywords)
    loss.bind(student, teacher)
    return loss


def of_real_tokens(scene: Scene, name: str) -> list[tuple[Tensor, Tensor]]:
    """For each row the last layers' maps (H, n, n) of both sides, cut to its n real tokens."""
    student, teacher = vars_of(scene.student.attentions[2], name), vars_of(scene.teacher.attentions[4], name)
    return [(student[row, :, :n, :n], teacher[row, :, :n, :n]) for row, n in enumerate(LENGTHS)]


def vars_of(attention: Attention, name: str) -> Tensor:
    """Scores or probabilities."""
    return attention.scores if name == "scores" else attention.probabilities


@pytest.mark.parametrize("target", ["scores", "probabilities"])
def test_mse_is_the_mean_over_pairs_of_real_tokens(target: str) -> None:
    """TinyBERT's loss without its dependence on the length of the padding."""
    scene = toy_scene()
    gaps = [(ours - theirs).flatten() for ours, theirs in of_real_tokens(scene, target)]
    loss = bound(target=target)
    torch.testing.assert_close(loss(*scene.parts()), torch.cat(gaps).square().mean())
    assert loss.count(scene.batch) == sum(n * n for n in LENGTHS)


def test_kl_is_the_mean_over_heads_and_real_queries() -> None:
    """Each query's distribution counts once, however many keys it has."""
    scene = toy_scene()
    rows = [
        (theirs * (theirs.log() - ours.log())).sum(-1).flatten()
        for ours, theirs in of_real_tokens(scene, "probabilities")
    ]
    loss = bound(target="probabilities", divergence="kl")
    torch.testing.assert_close(loss(*scene.parts()), torch.cat(rows).mean())
    assert loss.count(scene.batch) == sum(LENGTHS)


@pytest.mark.parametrize("target", ["scores", "probabilities"])
def test_cross_entropy_is_the_kl_and_the_teachers_entropy(target: str) -> None:
    """Of scores the softmax is taken over real keys alone; the value at equality is that entropy, not 0."""
    scene = toy_scene()
    maps = of_real_tokens(scene, "scores")
    rows = [-(theirs.softmax(-1) * ours.log_softmax(-1)).sum(-1).flatten() for ours, theirs in maps]
    loss = bound(target=target, divergence="cross_entropy")
    value = loss(*scene.parts())
    torch.testing.assert_close(value, torch.cat(rows).mean())
    assert loss.count(scene.batch) == sum(LENGTHS)
    entropies = [-(theirs.softmax(-1) * theirs.log_softmax(-1)).sum(-1).flatten() for _, theirs in maps]
    kl = bound(target="probabilities", divergence="kl")(*scene.parts())
    torch.testing.assert_close(value, kl + torch.cat(entropies).mean())


@pytest.mark.data
def test_cross_entropy_of_scores_gives_the_golden_value(shared: Path) -> None:
    """Scores of one layer, as the product of themselves with the identity."""
    cases = golden.read_cases(shared / "methods" / "golden.json")
    case = next(case for case in cases if case["id"] == "mobilebert/att_ce")
    student, teacher, mask = (torch.tensor(case["inputs"][key], dtype=torch.float64) for key in ("s", "t", "mask"))
    key = torch.eye(5, dtype=torch.float64).expand_as(student)
    shown = [Representations(attentions={1: Attention(query=scores, key=key)}) for scores in (student, teacher)]
    loss = AttentionMapLoss([(1, 1)], divergence="cross_entropy")
    loss.bind(toy_anatomy(8, 1), toy_anatomy(8, 1))
    assert loss(*shown, Batch(4, mask=mask)).item() == pytest.approx(case["expected"], rel=1e-9)


def test_other_numbers_of_heads_are_refused_with_three_ways_out() -> None:
    """Head by head a comparison of 2 with 4 has no meaning, and broadcasting could still run."""
    with pytest.raises(
        ValueError,
        match=r"head by head, got 2 heads \(student\) and 4 \(teacher\).*heads='mean', AttentionRelationLoss .*=4",
    ):
        bound(teacher=replace(TEACHER, heads=4))


@pytest.mark.parametrize("heads", ["mean", "sum"])
@pytest.mark.parametrize("target", ["scores", "probabilities"])
def test_merged_heads_compare_any_numbers_of_heads(target: str, heads: str) -> None:
    """One of the three ways out; TextBrewer adds the heads."""
    teacher = replace(TEACHER, heads=4)
    scene = toy_scene(STUDENT, teacher)
    gaps = [(merged(ours, heads) - merged(theirs, heads)).flatten() for ours, theirs in of_real_tokens(scene, target)]
    loss = bound(teacher=teacher, target=target, heads=heads)
    torch.testing.assert_close(loss(*scene.parts()), torch.cat(gaps).square().mean())


def merged(maps: Tensor, heads: str) -> Tensor:
    """Maps (H, n, n) as one."""
    return maps.mean(0) if heads == "mean" else maps.sum(0)


def test_cross_entropy_of_mean_scores_takes_any_numbers_of_heads() -> None:
    """TextBrewer's attention_ce_mean: first the mean of the scores, then one softmax."""
    teacher = replace(TEACHER, heads=4)
    scene = toy_scene(STUDENT, teacher)
    pairs = [(ours.mean(0), theirs.mean(0)) for ours, theirs in of_real_tokens(scene, "scores")]
    rows = [-(theirs.softmax(-1) * ours.log_softmax(-1)).sum(-1) for ours, theirs in pairs]
    loss = bound(teacher=teacher, divergence="cross_entropy", heads="mean")
    torch.testing.assert_close(loss(*scene.parts()), torch.cat(rows).mean())


def test_pairs_that_the_pattern_excludes_do_not_count() -> None:
    """A causal layer never uses the scores above the diagonal; to match them would be noise."""
    scene = toy_scene()
    causal = torch.ones(5, 5, dtype=torch.bool).tril()[None, None]  # (1, 1, N, N)
    for attention in (*scene.student.attentions.values(), *scene.teacher.attentions.values()):
        assert attention.allowed is not None
        attention.allowed = attention.allowed & causal
    gaps = []
    for ours, theirs in of_real_tokens(scene, "scores"):
        below = torch.ones(ours.shape[-2:]).tril().bool()
        gaps.append((ours - theirs)[:, below].flatten())
    torch.testing.assert_close(bound()(*scene.parts()), torch.cat(gaps).square().mean())
    seen = [
        -(theirs.softmax(-1) * ours.log_softmax(-1)).sum(-1).flatten()
        for maps in of_real_tokens(scene, "scores")
        for query in range(maps[0].shape[1])
        for ours, theirs in [[side[:, query, : query + 1] for side in maps]]
    ]
    torch.testing.assert_close(bound(divergence="cross_entropy")(*scene.parts()), torch.cat(seen).mean())
    for attention in scene.student.attentions.values():
        attention.allowed = None  # a backend that needs no mask shows none: the other side's pattern holds
    torch.testing.assert_close(bound()(*scene.parts()), torch.cat(gaps).square().mean())


def test_the_reference_reduction_depends_on_the_padding() -> None:
    """Kept for parity with TinyBERT's code: the mean over the padded square, padded keys at 0."""
    loss = bound(reduction="tinybert")
    scene = toy_scene()
    assert scene.batch.mask is not None
    keys = scene.batch.mask[:, None, None]
    gap = (scene.student.attentions[2].scores - scene.teacher.attentions[4].scores) * keys
    expected = gap.square().mean()
    torch.testing.assert_close(loss(*scene.parts()), expected)
    assert loss(*scene.padded(5, 0.0, 0.0).parts()) < 0.7 * expected
    assert loss.count(scene.batch) == 3
    scene.batch.mask = None
    gap = scene.student.attentions[2].scores - scene.teacher.attentions[4].scores
    torch.testing.assert_close(loss(*scene.parts()), gap.square().mean())


def test_probabilities_of_an_eager_family_are_enough() -> None:
    """DeBERTa shows no queries and keys, yet its maps can be learnt from and by."""
    teacher, student = toy_deberta(attn_implementation="eager"), toy_bert()
    loss = bound(Anatomy.of(student), Anatomy.of(teacher), target="probabilities", divergence="kl")
    inputs = text_inputs()
    ours, theirs = (
        capture(model, inputs, needs)[1] for model, needs in zip((student, teacher), loss.needs(), strict=True)
    )
    value = loss(ours, theirs, Batch.of(inputs))
    value.backward()
    assert value > 0
    assert student.get_parameter("bert.encoder.layer.1.attention.self.query.weight").grad is not None
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_scores_of_an_eager_family_are_refused() -> None:
    """Raw scores cannot be had back from probabilities; the message names what works."""
    student, teacher = toy_bert(), toy_deberta()
    loss = bound(Anatomy.of(student), Anatomy.of(teacher))
    with pytest.raises(ValueError, match=r"deberta-v2 shows attention probabilities only.*target='probabilities'"):
        check_attention(Anatomy.of(teacher), loss.needs()[1], teacher)


@pytest.mark.parametrize("side", ["student", "teacher"])
def test_a_family_without_attention_is_refused(side: str) -> None:
    """ResNet has 0 heads: that it has no attention at all must be said, not that 0 is not 2."""
    resnet, bert = toy_resnet(), toy_bert()
    models = {"student": bert, "teacher": bert} | {side: resnet}
    with pytest.raises(ValueError, match=r"resnet has no attention that could be compared.*hidden states, relations"):
        bound(Anatomy.of(models["student"]), Anatomy.of(models["teacher"]))


def test_settings_that_exclude_each_other_are_refused() -> None:
    """A KL of raw scores, and TinyBERT's square of probabilities, would both give a number."""
    with pytest.raises(ValueError, match=r"divergence='kl' needs target='probabilities'.*not a distribution"):
        AttentionMapLoss(divergence="kl")
    for other in ({"target": "probabilities"}, {"divergence": "cross_entropy"}):
        with pytest.raises(ValueError, match=r"reduction='tinybert' is about raw scores.*leave it out"):
            AttentionMapLoss(reduction="tinybert", **other)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"heads='sum' cannot go with divergence='cross_entropy'.*heads='mean'"):
        AttentionMapLoss(divergence="cross_entropy", heads="sum")


@pytest.mark.parametrize("keyword", ["target", "divergence", "heads", "reduction"])
def test_unknown_words_list_the_accepted_ones(keyword: str) -> None:
    """A misspelt word must not fall back on a default."""
    with pytest.raises(ValueError, match=rf"{keyword} must be one of '\w+'(, '\w+')+, got 'score'"):
        AttentionMapLoss(**{keyword: "score"})  # type: ignore[arg-type]


def test_a_layer_map_may_name_no_embeddings() -> None:
    """Explicit pairs with layer 0 leave nothing to compare, which must not become a loss of 0."""
    with pytest.raises(ValueError, match=r"no pair remains"):
        AttentionMapLoss([(0, 0)]).bind(STUDENT, toy_anatomy())
