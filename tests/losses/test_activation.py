"""Losses on activations: golden values through the classes, tokens as places, counts, what each refuses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import golden
import pytest
import torch
from torch import Tensor
from toy_representations import LENGTHS, STUDENT, TEACHER, TOKENS, toy_anatomy, toy_scene

from hfdistill.anatomy import Anatomy
from hfdistill.functional.activation import token_gram, token_similarity
from hfdistill.functional.feature import flow_of_solution
from hfdistill.losses.base import DistillationLoss
from hfdistill.losses.feature.activation_attention import ActivationAttentionLoss
from hfdistill.losses.feature.channel import ChannelLoss
from hfdistill.losses.feature.flow import FlowLoss
from hfdistill.losses.feature.knowledge_projection import KnowledgeProjectionLoss
from hfdistill.losses.feature.neuron_selectivity import NeuronSelectivityLoss
from hfdistill.losses.feature.token_gram import TokenGramLoss
from hfdistill.losses.feature.variational import VariationalLoss
from hfdistill.losses.relation.token_pairs import TokenPairLoss
from hfdistill.representations import Batch, Needs, Representations

ONE, TWO = [(1, 1)], [(1, 1), (2, 2)]
GOLDEN: dict[str, Callable[[], DistillationLoss]] = {
    "at/code": lambda: ActivationAttentionLoss(ONE),
    "at/code_masked": lambda: ActivationAttentionLoss(ONE),
    "at/paper": lambda: ActivationAttentionLoss(ONE, variant="paper"),
    "nst/poly": lambda: NeuronSelectivityLoss(ONE),
    "nst/poly_masked": lambda: NeuronSelectivityLoss(ONE),
    "nst/gauss_fixed": lambda: NeuronSelectivityLoss(ONE, "gaussian", 0.5),
    "cwd/T4": lambda: ChannelLoss(ONE),
    "cwd/masked": lambda: ChannelLoss(ONE, temperature=1.0),
    "spatial_pairwise": lambda: TokenPairLoss(ONE),
    "spatial_pairwise/masked": lambda: TokenPairLoss(ONE),
}
PLACES: dict[str, Callable[[], DistillationLoss]] = {
    "activation attention, code": lambda: ActivationAttentionLoss(TWO),
    "activation attention, paper": lambda: ActivationAttentionLoss(TWO, variant="paper"),
    "flow": lambda: FlowLoss(TWO),
    "neuron selectivity": lambda: NeuronSelectivityLoss(TWO),
    "token gram": lambda: TokenGramLoss(TWO),
    "channel": lambda: ChannelLoss(TWO),
    "variational": lambda: VariationalLoss(TWO),
    "knowledge projection": lambda: KnowledgeProjectionLoss([1], [1, 2]),
    "token pairs": lambda: TokenPairLoss(TWO, nodes=0),
    "token pairs, nodes": lambda: TokenPairLoss(TWO),
}


def image_anatomy(width: int, prefix: int, side: int) -> Anatomy:
    """Two layers over a square of patches, after some class tokens."""
    return replace(toy_anatomy(width), prefix_tokens=prefix, grid=(side, side))


def images(anatomy: Anatomy, seed: int) -> Representations:
    """Random states of three images."""
    assert anatomy.grid is not None
    tokens = anatomy.prefix_tokens + anatomy.grid[0] * anatomy.grid[1]
    generator = torch.Generator().manual_seed(seed)
    return Representations(
        hidden_states={layer: torch.randn(3, tokens, anatomy.width, generator=generator) for layer in range(3)}
    )


def changed(shown: Representations, change: Callable[[Tensor], Tensor]) -> Representations:
    """The same representations with changed states."""
    return Representations(hidden_states={layer: change(state) for layer, state in shown.hidden_states.items()})


def with_token(place: int) -> Callable[[Tensor], Tensor]:
    """A change of the token at one place."""

    def change(state: Tensor) -> Tensor:
        state = state.clone()
        state[:, place] = 9.0 * state[:, place].flip(-1) + 5.0
        return state

    return change


def value_of(loss: DistillationLoss, student: Representations, teacher: Representations) -> Tensor:
    """The value in evaluation, where nothing is selected."""
    return loss.eval()(student, teacher, Batch(3))


@pytest.mark.data
@pytest.mark.parametrize("name", GOLDEN)
def test_a_class_gives_the_golden_value(name: str, shared: Path) -> None:
    """A keyword that does not reach its formula, or a swapped side, shows here and nowhere else."""
    case = next(case for case in golden.read_cases(shared / "methods" / "golden.json") if case["id"] == name)
    tensors = {
        key: torch.tensor(value, dtype=torch.float64)
        for key, value in case["inputs"].items()
        if isinstance(value, list)
    }
    student, teacher = tensors["s"], tensors["t"]
    loss = GOLDEN[name]().double()
    loss.bind(toy_anatomy(student.shape[-1], 1), toy_anatomy(teacher.shape[-1], 1))
    sides = (Representations(hidden_states={1: side}) for side in (student, teacher))
    value = loss(*sides, Batch(4, mask=tensors.get("mask")))
    assert value.item() == pytest.approx(case["expected"], rel=1e-9)


@pytest.mark.parametrize("name", PLACES)
def test_class_tokens_are_no_places(name: str) -> None:
    """A class token outweighs every patch, and the teacher may have two: only the patches may count."""
    loss = PLACES[name]()
    ours, theirs = image_anatomy(8, 1, 2), image_anatomy(12, 2, 2)
    loss.bind(ours, theirs)
    student, teacher = images(ours, 0), images(theirs, 1)
    value = value_of(loss, student, teacher)
    for place in (0, 1):
        other = value_of(loss, changed(student, with_token(0)), changed(teacher, with_token(place)))
        assert torch.equal(other, value)
    assert not torch.equal(value_of(loss, changed(student, with_token(1)), teacher), value)
    assert not torch.equal(value_of(loss, student, changed(teacher, with_token(2))), value)


@pytest.mark.parametrize("name", PLACES)
def test_the_larger_grid_is_pooled(name: str) -> None:
    """A teacher of smaller patches has more of them; four of its places are one of the student's."""
    loss = PLACES[name]()
    ours, theirs = image_anatomy(8, 1, 2), image_anatomy(12, 1, 4)
    loss.bind(ours, theirs)
    student, teacher = images(ours, 0), images(theirs, 1)

    def pooled(state: Tensor) -> Tensor:
        grid = state[:, 1:].unflatten(1, (2, 2, 2, 2)).mean((2, 4))  # (B, rows, columns, D)
        return torch.cat([state[:, :1], grid.flatten(1, 2)], dim=1)

    value = value_of(loss, student, teacher)
    loss.bind(ours, image_anatomy(12, 1, 2))
    torch.testing.assert_close(value, value_of(loss, student, changed(teacher, pooled)))


def test_token_pairs_are_nodes_of_an_image() -> None:
    """The paper max-pools to four nodes; other numbers are an option, and so is every patch."""
    ours, theirs = image_anatomy(8, 1, 4), image_anatomy(12, 1, 4)
    student, teacher = images(ours, 0), images(theirs, 1)

    def nodes(state: Tensor, count: int) -> Tensor:
        side = 4 // count
        return state[:, 1:].unflatten(1, (count, side, count, side)).amax((2, 4)).flatten(1, 2)  # (B, nodes, D)

    for wanted, count in ((1, 1), (2, 2), (4, 4), (9, 4), (0, 4)):
        loss = TokenPairLoss(nodes=wanted)
        loss.bind(ours, theirs)
        expected = token_similarity(nodes(student.hidden_states[2], count), nodes(teacher.hidden_states[2], count))
        torch.testing.assert_close(value_of(loss, student, teacher), expected)


def test_nodes_are_those_of_the_smaller_grid() -> None:
    """Whichever side has it: six places are no square that could be guessed."""
    large, small = (replace(image_anatomy(8, 1, 2), grid=grid) for grid in ((4, 6), (2, 3)))
    many, few = images(large, 0), images(small, 1)
    loss, values = TokenPairLoss(), []
    for ours, theirs, sides in ((large, small, (many, few)), (small, large, (few, many))):
        loss.bind(ours, theirs)
        values.append(value_of(loss, *sides))
    assert values[0] > 0
    torch.testing.assert_close(*values)  # its formula has no direction


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_token_pairs_pool_images_in_half_precision(dtype: torch.dtype) -> None:
    """The largest of some numbers needs no more digits than they have."""
    ours, theirs = image_anatomy(8, 1, 4), image_anatomy(12, 1, 4)
    loss = TokenPairLoss()
    loss.bind(ours, theirs)
    student, teacher = (changed(images(side, 0), lambda state: state.to(dtype)) for side in (ours, theirs))
    value = value_of(loss, student, teacher)
    assert value.dtype == torch.float32
    single = (changed(side, lambda state: state.float()) for side in (student, teacher))
    torch.testing.assert_close(value, value_of(loss, *single))


def test_token_pairs_of_text_are_not_pooled() -> None:
    """Words have no grid, and padding would be among them."""
    loss = TokenPairLoss()
    loss.bind(STUDENT, TEACHER)
    scene = toy_scene()
    expected = token_similarity(scene.student.hidden_states[2], scene.teacher.hidden_states[4], scene.batch.mask)
    torch.testing.assert_close(loss(*scene.parts()), expected)


def test_flow_goes_from_each_mapped_layer_to_the_next() -> None:
    """Three layers have two flows; every student state is projected by its own projector first."""
    loss = FlowLoss()
    loss.bind(STUDENT, TEACHER)
    scene = toy_scene()
    ours = [loss.projectors[layer](scene.student.hidden_states[layer]) for layer in range(3)]
    theirs = [scene.teacher.hidden_states[layer] for layer in (0, 2, 4)]
    flows = [flow_of_solution(ours[at], ours[at + 1], theirs[at], theirs[at + 1], scene.batch.mask) for at in range(2)]
    torch.testing.assert_close(loss(*scene.parts()), torch.stack(flows).sum())
    itself = flow_of_solution(ours[0], ours[0], theirs[0], theirs[0], scene.batch.mask)
    torch.testing.assert_close(loss.compare(ours[0], theirs[0], scene.batch.mask), itself)
    with pytest.raises(ValueError, match=r"got the one pair \(2, 4\) of layers 'explicit.*at least two layers"):
        FlowLoss([(-1, -1)]).bind(STUDENT, TEACHER)


def test_gram_is_that_of_one_layer() -> None:
    """TextBrewer's common use: the tokens of a layer with each other."""
    loss = TokenGramLoss([(1, 2)])
    loss.bind(STUDENT, TEACHER)
    scene = toy_scene()
    ours, theirs = scene.student.hidden_states[1], scene.teacher.hidden_states[2]
    torch.testing.assert_close(loss(*scene.parts()), token_gram(ours, ours, theirs, theirs, scene.batch.mask))


@pytest.mark.parametrize(
    ("loss", "count"),
    [
        (ActivationAttentionLoss(), sum(LENGTHS)),
        (ActivationAttentionLoss(variant="paper"), 3),
        (FlowLoss(), 3),
        (NeuronSelectivityLoss(), 3),
        (TokenGramLoss(), sum(length**2 for length in LENGTHS)),
        (ChannelLoss(), 3),
        (TokenPairLoss(), 3),
        (VariationalLoss(), sum(LENGTHS)),
        (KnowledgeProjectionLoss(), sum(LENGTHS)),
    ],
)
def test_counts_are_what_the_means_are_over(loss: DistillationLoss, count: int) -> None:
    """Micro-batches are weighed by them."""
    assert loss.count(toy_scene().batch) == count


@pytest.mark.parametrize(
    "loss", [ActivationAttentionLoss(), NeuronSelectivityLoss(), TokenGramLoss(), VariationalLoss()]
)
def test_the_embeddings_are_no_stage(loss: VariationalLoss) -> None:
    """The methods compare the outputs of layers; a name of a map that includes layer 0 still may."""
    loss.bind(STUDENT, TEACHER)
    assert loss.pairs == ((1, 2), (2, 4))


def test_channels_of_logits_read_no_layer() -> None:
    """The classes are the channels: nothing is projected, and no hidden state is captured for it."""
    loss = ChannelLoss(knowledge="logits", temperature=2.0)
    student, teacher = (replace(side, head=TOKENS) for side in (STUDENT, TEACHER))
    loss.bind(student, teacher)
    assert loss.needs() == (Needs(logits=True), Needs(logits=True))
    assert not list(loss.parameters())
    scene = toy_scene(student, teacher)
    assert scene.student.logits is not None
    assert scene.teacher.logits is not None
    hidden = ChannelLoss([(1, 1)], temperature=2.0)
    hidden.bind(toy_anatomy(3), toy_anatomy(3))
    states = (
        Representations(hidden_states={1: side.logits})
        for side in (scene.student, scene.teacher)
        if side.logits is not None
    )
    torch.testing.assert_close(loss(*scene.parts()), hidden(*states, scene.batch))


def test_channels_of_a_rows_logits_are_refused_with_advice() -> None:
    """One distribution over one token is always 1: the loss would be 0 for ever."""
    advice = r"a row of logits \(B, K\) has none. Use knowledge='hidden', or SoftTargetLoss"
    loss = ChannelLoss(knowledge="logits")
    with pytest.raises(ValueError, match=rf"token-level heads, got 'ForSequenceClassification' \(student\).*{advice}"):
        loss.bind(STUDENT, TEACHER)
    unknown = replace(STUDENT, head="")
    loss.bind(unknown, unknown)
    scene = toy_scene()
    with pytest.raises(ValueError, match=rf"needs logits \(B, N, K\), got \(3, 3\).*{advice}"):
        loss(*scene.parts())
    with pytest.raises(ValueError, match=r"needs logits \(B, N, K\), got none"):
        loss(Representations(), scene.teacher, scene.batch)
    tokens = replace(STUDENT, head=TOKENS)
    with pytest.raises(ValueError, match=r"same classes on both sides, got 3 \(student\) and 5 \(teacher\).*labels=5"):
        loss.bind(tokens, replace(tokens, classes=5))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: ActivationAttentionLoss(variant="gradient"),
            r"variant must be one of 'code', 'paper', got 'gradient'",
        ),
        (lambda: ActivationAttentionLoss(power=0.5), r"power must be at least 1, got 0.5.*Use 2"),
        (lambda: NeuronSelectivityLoss(kernel="rbf"), r"kernel must be one of 'polynomial', .*got 'rbf'"),
        (lambda: NeuronSelectivityLoss(variance=0.5), r"for the gaussian kernel alone, got 0.5 for 'polynomial'"),
        (lambda: NeuronSelectivityLoss(kernel="gaussian", variance=0.0), r"variance must be above 0 .*got 0.0"),
        (lambda: ChannelLoss(knowledge="soft"), r"knowledge must be one of 'hidden', 'logits', got 'soft'"),
        (lambda: ChannelLoss(temperature=0.0), r"temperature must be above 0, got 0.0.*Use 1 to 4"),
        (lambda: TokenPairLoss(nodes=-1), r"nodes must be 0 \(no pooling\) or a side of at least 1, got -1"),
        (lambda: VariationalLoss(variance=0.0), r"expected a variance above 1e-05, got 0.0"),
    ],
)
def test_what_cannot_be_is_refused_when_it_is_written(make: Callable[[], DistillationLoss], message: str) -> None:
    """Not at the first batch, after the data was read."""
    with pytest.raises(ValueError, match=message):
        make()
