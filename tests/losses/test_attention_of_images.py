"""Attention losses between image models: between the same places alone, with or without a distillation token."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from toy_models import image_inputs, toy_convnext, toy_deit, toy_resnet, toy_swin, toy_vit
from transformers import PreTrainedModel

from hfdistill.anatomy import Anatomy
from hfdistill.capture import capture
from hfdistill.losses import AttentionLoss, AttentionMapLoss, AttentionRelationLoss
from hfdistill.representations import Attention, Batch, Needs, Representations

Model = Callable[[], PreTrainedModel]


def value_of(loss: AttentionLoss, student: PreTrainedModel, teacher: PreTrainedModel) -> torch.Tensor:
    """The loss of three images."""
    loss.bind(Anatomy.of(student), Anatomy.of(teacher))
    inputs = image_inputs()
    shown = [capture(model, inputs, needs)[1] for model, needs in zip((student, teacher), loss.needs(), strict=True)]
    return loss(*shown, Batch.of(inputs))


LOSSES: dict[str, Callable[[], AttentionLoss]] = {
    "scores": lambda: AttentionMapLoss(),
    "probabilities": lambda: AttentionMapLoss(target="probabilities", divergence="kl"),
    "relations": lambda: AttentionRelationLoss("uniform"),
}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("backend", ["sdpa", "eager"])
def test_swins_of_the_same_windows_learn_from_each_other(name: str, backend: str) -> None:
    """Stage by stage, with other heads and widths in each; a model has nothing to learn from itself."""
    student = toy_swin(attn_implementation=backend)
    assert value_of(LOSSES[name](), student, toy_swin()).item() == pytest.approx(0.0, abs=1e-6)
    value = value_of(LOSSES[name](), student, toy_swin(depths=[2, 4, 2], seed=1))
    assert value > 1e-4
    value.backward()
    attended = [p.grad for n, p in student.named_parameters() if "q_proj" in n and p.grad is not None]
    assert any(gradient.any() for gradient in attended)


@pytest.mark.parametrize("name", LOSSES)
def test_a_distillation_token_takes_no_part(name: str) -> None:
    """A ViT has none: what a DeiT would attend to without it is compared, with the class token and all patches."""
    loss, vit, deit = LOSSES[name](), toy_vit(), toy_deit(seed=1)
    loss.bind(Anatomy.of(vit), Anatomy.of(deit))
    inputs, layers = image_inputs(), Needs(projections=frozenset({1, 2}))
    (_, ours), (_, theirs) = (capture(model, inputs, layers) for model in (vit, deit))
    for layer in (1, 2):
        kept = torch.tensor([0, 2, 3, 4, 5])  # class token and the four patches
        whole = theirs.attentions[layer]
        own, other = loss.shared((layer, layer), ours, theirs)
        assert own is ours.attentions[layer]
        torch.testing.assert_close(other.scores, whole.scores[:, :, kept][..., kept])
        probabilities = whole.probabilities[:, :, kept][..., kept]
        torch.testing.assert_close(other.probabilities, probabilities / probabilities.sum(-1, keepdim=True))
        assert torch.equal(other.merged("value"), whole.merged("value")[:, kept])
    assert loss(ours, theirs, Batch.of(inputs)) > 0


def test_probabilities_alone_are_shared_out_again() -> None:
    """Families that show nothing else lose the key's share, which the other keys take in proportion."""
    given = torch.rand(2, 2, 6, 6).softmax(-1)
    bias, allowed = torch.randn(1, 1, 6, 6), torch.ones(2, 1, 1, 6, dtype=torch.bool)
    loss = AttentionMapLoss("uniform", target="probabilities")
    loss.bind(Anatomy.of(toy_vit()), Anatomy.of(toy_deit()))
    attention = Attention(given_probabilities=given, bias=bias, allowed=allowed)
    ours = Attention(given_probabilities=torch.rand(2, 2, 5, 5))
    shown = Representations(attentions={1: ours}), Representations(attentions={1: attention})
    _, other = loss.shared((1, 1), *shown)
    kept = torch.tensor([0, 2, 3, 4, 5])
    torch.testing.assert_close(other.probabilities.sum(-1), torch.ones(2, 2, 5))
    expected = given[:, :, kept][..., kept]
    torch.testing.assert_close(other.probabilities, expected / expected.sum(-1, keepdim=True))
    assert other.bias is not None
    assert other.allowed is not None
    assert torch.equal(other.bias, bias[:, :, kept][..., kept])
    assert other.allowed.shape == (2, 1, 1, 5)


REFUSED: dict[str, tuple[Model, Model, str]] = {
    "windows of another size": (
        lambda: toy_swin(image_size=16),
        lambda: toy_swin(image_size=16, window_size=4, depths=[1, 1, 1]),
        r"64 shifted windows of 4 places in layer 1 of swin \(student\) and 16 windows of 16 places.*same patches and",
    ),
    "windows that lie elsewhere": (
        toy_swin,
        lambda: toy_swin(depths=[1, 2, 2]),
        r"16 shifted windows of 4 places in layer 1.* and 16 windows of 4 places",
    ),
    "other patches": (toy_vit, lambda: toy_vit(patch_size=2), r"4 places in layer 1 .*and 16 places in layer 1"),
    "windows and all at once": (toy_vit, toy_swin, r"4 places in layer 1 of vit .*4 shifted windows of 4 places"),
    "no attention": (toy_vit, toy_resnet, r"resnet has no attention that could be compared.*not AttentionMapLoss"),
    "no attention in the student": (toy_convnext, toy_swin, r"convnext has no attention that could be compared"),
    "heads of one stage": (
        toy_swin,
        lambda: toy_swin(num_heads=[1, 4, 4]),
        r"got 2 heads \(student\) and 4 \(teacher\) in layers 2 and 2",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_attention_between_other_places_is_refused(case: str) -> None:
    """Before the first batch: numbers that happen to be as many would be compared in the wrong places."""
    student, teacher, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        AttentionMapLoss().bind(Anatomy.of(student()), Anatomy.of(teacher()))


def test_relation_heads_divide_the_width_that_a_stage_attends_with() -> None:
    """The states that a stage gives are twice as wide as those that it attends with."""
    student, teacher = Anatomy.of(toy_swin()), Anatomy.of(toy_swin(embed_dim=16))
    AttentionRelationLoss([(1, 1)], relation_heads=8).bind(student, teacher)
    with pytest.raises(ValueError, match=r"relation_heads=16 does not divide the student's width 8"):
        AttentionRelationLoss([(1, 1)], relation_heads=16).bind(student, teacher)
    wide = Anatomy.of(toy_swin(embed_dim=16, num_heads=[2, 4, 4]))
    with pytest.raises(ValueError, match=r"own heads, got 1 \(student\) and 2 .* in layers 1 and 1.*8 and 16"):
        AttentionRelationLoss([(1, 1)]).bind(student, wide)


def test_a_single_window_is_attention_between_all_places() -> None:
    """Swin's last stage looks at 2 x 2 places at once, as a ViT does at 2 x 2 patches, beside its class token."""
    value = value_of(AttentionMapLoss([(2, 3)], heads="mean"), toy_vit(), toy_swin())
    assert value > 0
    value.backward()
