"""CRCD: relations between the rows of a batch and their anchors. What it shares with CRD: test_contrastive_memory."""

from __future__ import annotations

import pytest
import torch
from toy_representations import DATA_LABELS, STUDENT, TEACHER, toy_scene

from hfdistill.functional.contrastive import log_constant, noise_contrast, relation_similarity
from hfdistill.losses.memory import MemoryBank
from hfdistill.losses.relation.contrastive_relation import ContrastiveRelationLoss
from hfdistill.representations import Batch


def made(own_anchor: str = "drop") -> ContrastiveRelationLoss:
    """A loss bound to the toy models and to 16 rows."""
    torch.manual_seed(0)
    loss = ContrastiveRelationLoss(4, 0.5, own_anchor=own_anchor, dimension=8)
    loss.bind(STUDENT, TEACHER)
    loss.bind_data(len(DATA_LABELS), DATA_LABELS)
    return loss


def test_pairs_of_real_rows_count_but_not_with_oneself() -> None:
    """A row's own anchor is its own positive: their relation has the direction of a rounding error."""
    index = torch.tensor([[3, 1], [5, 1], [3, 2]])  # the last row is the first one again
    dropped = made().counted(index, None)
    assert dropped.tolist() == [[False, True, False], [True, False, True], [False, True, False]]
    rows = torch.tensor([True, False, True])
    assert not made().counted(index, rows).any()
    kept = made("keep").counted(index, rows)
    assert kept.tolist() == [[True, False, True], [False, False, False], [True, False, True]]


@pytest.mark.parametrize("own_anchor", ["drop", "keep"])
def test_the_value_is_the_mean_over_pairs(own_anchor: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each pair of a row and an anchor is one row of the noise-contrastive loss, written out pair by pair."""
    loss, scene = made(own_anchor), toy_scene()
    assert loss.candidates is not None
    assert scene.batch.index is not None
    index = loss.candidates.drawn(scene.batch.index, 4, "exact")
    monkeypatch.setattr(type(loss.candidates), "drawn", lambda *_: index)
    (bank,) = (module for module in loss.banks if isinstance(module, MemoryBank))
    mask = scene.batch.mask
    assert mask is not None
    pooled = [
        (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        for states in (scene.student.hidden_states[2], scene.teacher.hidden_states[4])
    ]
    expected = torch.zeros(())
    for vectors, memory in zip(loss.embeddings[0](*pooled), (bank.teacher, bank.student), strict=True):
        similarities = relation_similarity(vectors, memory, index, 0.5)
        pairs = [(i, j) for i in range(3) for j in range(3) if own_anchor == "keep" or i != j]
        chosen = torch.stack([similarities[pair] for pair in pairs])
        expected = expected + noise_contrast(chosen, log_constant(chosen, 16), 16)
    torch.testing.assert_close(loss(*scene.parts()), expected)


def test_one_row_alone_teaches_nothing() -> None:
    """The last batch of an epoch: its only anchor is its own, and a mean over no pairs must be 0, with a gradient."""
    loss, scene = made(), toy_scene().rows(slice(0, 1)).watched()
    value = loss(*scene.parts())
    value.backward()
    assert value == 0
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in loss.parameters())


def test_no_masks_are_masks_of_ones() -> None:
    """Images have no padding and no mask."""
    loss, scene = made(), toy_scene(lengths=(5, 5, 5))
    expected = loss(*scene.parts())
    batch = Batch(3, index=scene.batch.index)
    torch.testing.assert_close(made()(scene.student, scene.teacher, batch), expected)


def test_an_unknown_word_lists_the_accepted_ones() -> None:
    """A misspelt word must not fall back on a default."""
    with pytest.raises(ValueError, match=r"own_anchor must be one of 'drop', 'keep', got 'skip'"):
        ContrastiveRelationLoss(own_anchor="skip")
