"""Needs, Batch and Attention: the plain data that losses and capture share. No model runs here."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hfdistill.representations import IGNORE_INDEX, Attention, Batch, Needs

LAYERS = st.frozensets(st.integers(0, 5))
NEEDS = st.builds(Needs, st.booleans(), LAYERS, LAYERS, LAYERS)


@given(NEEDS, NEEDS, NEEDS)
def test_union_of_needs_is_a_set_union(first: Needs, second: Needs, third: Needs) -> None:
    """The plan of a pass must not depend on the order of the losses, nor on two losses asking for the same."""
    assert first | second == second | first
    assert (first | second) | third == first | (second | third) == Needs.union([first, second, third])
    assert first | first == first
    assert first | Needs() == first
    assert (first | second).attention_layers == first.attention_layers | second.attention_layers


def test_needs_are_true_when_anything_is_needed() -> None:
    """A loss that needs nothing of a model must be recognisable, because then that model need not run."""
    assert not Needs()
    assert not Needs.union([])
    one = frozenset({1})
    for needs in (Needs(logits=True), Needs(hidden_states=one), Needs(projections=one)):
        assert needs
    assert Needs(attention_probabilities=one)


def test_batch_reads_mask_and_labels_by_name() -> None:
    """Every loss counts over these two; a user's label column may have another name."""
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    inputs = {"target": torch.tensor([0, 2]), "input_ids": mask, "attention_mask": mask, "return_loss": True}
    batch = Batch.of(inputs, label_name="target", progress=0.5)
    assert batch.size == 2
    assert batch.labels is inputs["target"]
    assert batch.mask is mask
    assert batch.progress == 0.5
    assert batch.token_count() == 5
    assert batch.pair_count() == 4 + 9


def test_batch_without_a_two_dimensional_mask_counts_rows() -> None:
    """Images have no mask, and a mask made by the user for pairs of tokens says nothing about tokens."""
    images = Batch.of({"scale": torch.tensor(2.0), "pixel_values": torch.zeros(4, 3, 8, 8)})
    pairs = Batch.of({"input_ids": torch.zeros(4, 5), "attention_mask": torch.ones(4, 1, 5, 5)})
    for batch in (images, pairs):
        assert batch.size == 4
        assert batch.mask is None
        assert batch.row_count() == batch.token_count() == batch.pair_count() == batch.label_count() == 4
        assert batch.row_count().dtype == torch.float32


def test_batch_without_tensors_is_refused() -> None:
    """Lists instead of tensors are what a wrong collator returns; the size of such a batch would be a guess."""
    with pytest.raises(ValueError, match=r"at least one tensor, got keys \['input_ids'\].*return_tensors='pt'"):
        Batch.of({"input_ids": [[1, 2]]})


def test_ignored_labels_are_not_counted() -> None:
    """The denominators of the task loss: rows for a class label, tokens for token labels, and never the ignored."""
    rows = Batch(size=3, labels=torch.tensor([1, IGNORE_INDEX, 0]))
    valid = rows.valid_rows()
    assert valid is not None
    assert valid.tolist() == [True, False, True]
    assert rows.label_count() == 2
    tokens = Batch(size=2, labels=torch.tensor([[IGNORE_INDEX, 1, 2], [0, IGNORE_INDEX, IGNORE_INDEX]]))
    assert tokens.valid_rows() is None
    assert tokens.label_count() == 3


def test_regression_targets_are_never_ignored() -> None:
    """-100.0 is a legitimate number to regress to, and multi-label targets are floats too."""
    for labels in (torch.tensor([-100.0, 0.5]), torch.tensor([[-100.0], [0.5]]), torch.ones(2, 4)):
        batch = Batch(size=2, labels=labels)
        assert batch.valid_rows() is None
        assert batch.label_count() == 2


def test_scores_repeat_grouped_keys() -> None:
    """With grouped keys head h belongs to group h // (H / groups); any other order pairs heads with foreign keys."""
    query, key = torch.randn(2, 4, 3, 5), torch.randn(2, 2, 3, 5)
    scores = Attention(query=query, key=key, scaling=0.5).scores
    for head in range(4):
        expected = 0.5 * query[:, head] @ key[:, head // 2].transpose(1, 2)
        torch.testing.assert_close(scores[:, head], expected)


def test_scores_contain_bias_but_not_mask() -> None:
    """A position bias is part of what a layer learned; the mask is part of the batch and must not enter raw scores."""
    query, key, bias = torch.randn(1, 2, 3, 4), torch.randn(1, 2, 3, 4), torch.randn(1, 2, 3, 3)
    allowed = torch.ones(1, 1, 3, 3, dtype=torch.bool).tril()
    attention = Attention(query=query, key=key, bias=bias, allowed=allowed)
    expected = query @ key.transpose(-1, -2) + bias
    torch.testing.assert_close(attention.scores, expected)
    torch.testing.assert_close(attention.probabilities, expected.masked_fill(~allowed, -torch.inf).softmax(-1))


def test_fully_masked_row_stays_finite() -> None:
    """A padded query may have no allowed key; one NaN there would poison the gradient of the whole batch."""
    query = torch.randn(1, 1, 2, 4, requires_grad=True)
    allowed = torch.tensor([[True, True], [False, False]])[None, None]
    probabilities = Attention(query=query, key=torch.randn(1, 1, 2, 4), allowed=allowed).probabilities
    probabilities.square().sum().backward()
    torch.testing.assert_close(probabilities.sum(-1), torch.ones(1, 1, 2))
    assert query.grad is not None
    assert query.grad.isfinite().all()


def test_probabilities_are_computed_once_and_wide() -> None:
    """Losses of one layer share them, and a softmax in bfloat16 keeps two digits; float64 must not be narrowed."""
    half = torch.randn(1, 1, 3, 4, dtype=torch.bfloat16)
    attention = Attention(query=half, key=half)
    assert attention.probabilities.dtype == torch.float32
    assert attention.probabilities is attention.probabilities
    double = half.double()
    assert Attention(query=double, key=double).probabilities.dtype == torch.float64


def test_merged_puts_heads_side_by_side() -> None:
    """MiniLM splits the merged vectors into other heads, so the order inside a token must be head by head."""
    value = torch.arange(12.0).view(1, 2, 3, 2)  # (B, H, N, d)
    merged = Attention(value=value).merged("value")
    assert merged.tolist() == [[[0, 1, 6, 7], [2, 3, 8, 9], [4, 5, 10, 11]]]


def test_given_probabilities_are_all_that_an_eager_family_shows() -> None:
    """Scores cannot be had back from probabilities; the message must lead to what can be compared."""
    given_probabilities = torch.full((1, 1, 2, 2), 0.5)
    attention = Attention(given_probabilities=given_probabilities)
    assert attention.probabilities is given_probabilities
    with pytest.raises(ValueError, match=r"raw attention scores.*target='probabilities'"):
        _ = attention.scores
    with pytest.raises(ValueError, match=r"the key vectors were asked for.*AttentionInterface"):
        attention.merged("key")
