"""Relations between the rows of a batch: golden values through the classes, and what these draw, weigh and refuse."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import golden
import pytest
import torch
from toy_representations import STUDENT, TEACHER, TOKENS, toy_anatomy, toy_scene

from hfdistill.functional.relation import angle_relation, instance_edges, layer_transformation
from hfdistill.functional.response import logit_mse
from hfdistill.losses import DistillationLoss
from hfdistill.losses.pooling import pooled_vector
from hfdistill.losses.relation.correlation_congruence import CorrelationCongruenceLoss
from hfdistill.losses.relation.instance_graph import InstanceGraphLoss
from hfdistill.losses.relation.probabilistic import ProbabilisticTransferLoss
from hfdistill.losses.relation.relational import AngleRelationLoss, DistanceRelationLoss
from hfdistill.losses.relation.similarity import SimilarityPreservingLoss
from hfdistill.representations import Batch, Representations

GOLDEN: dict[str, Callable[[], DistillationLoss]] = {
    "rkd/distance": DistanceRelationLoss,
    "rkd/angle": AngleRelationLoss,
    "sp": SimilarityPreservingLoss,
    "pkt": ProbabilisticTransferLoss,
    "cc_gauss": CorrelationCongruenceLoss,
}


@pytest.mark.data
@pytest.mark.parametrize("name", GOLDEN)
def test_golden_values(shared: Path, name: str) -> None:
    """Through pooling and the layer map, with the defaults: these are the published losses."""
    (case,) = (case for case in golden.read_cases(shared / "methods" / "golden.json") if case["id"] == name)
    loss = GOLDEN[name]()
    loss.bind(toy_anatomy(depth=1), toy_anatomy(depth=3))
    student, teacher = (
        Representations(hidden_states={layer: torch.tensor(case["inputs"][side], dtype=torch.float64)[:, None]})
        for side, layer in (("s", 1), ("t", 3))
    )
    assert loss(student, teacher, Batch(5)).item() == pytest.approx(case["expected"], rel=1e-9)


def test_centring_reaches_the_formula() -> None:
    """The common part of all rows is most of a language model's vector."""
    plain, centred = SimilarityPreservingLoss(), SimilarityPreservingLoss(centre=True)
    scene = toy_scene(lengths=(3, 3, 3))
    for loss in (plain, centred):
        loss.bind(STUDENT, TEACHER)
    before = [loss(*scene.parts()) for loss in (plain, centred)]
    scene.student.hidden_states[2].add_(10.0)
    after = [loss(*scene.parts()) for loss in (plain, centred)]
    assert abs(after[0] - before[0]) > 1e-2
    torch.testing.assert_close(after[1], before[1])


def test_vertices_are_drawn_among_the_rows_that_count() -> None:
    """The generator decides, so that a run can be repeated; each row gets its turn, one of padding alone does not."""
    loss = AngleRelationLoss(vertices=1)
    loss.bind(STUDENT, TEACHER)
    scene = toy_scene(lengths=(5, 0, 4, 2, 3))
    rows = torch.tensor([True, False, True, True, True])
    sides = [
        pooled_vector(shown.hidden_states[layer], scene.batch.mask, "mean")
        for shown, layer in ((scene.student, 2), (scene.teacher, 4))
    ]
    possible = [angle_relation(*sides, rows, torch.tensor([vertex])).item() for vertex in (0, 2, 3, 4)]
    drawn = set()
    for seed in range(40):
        torch.manual_seed(seed)
        value = loss(*scene.parts()).item()
        torch.manual_seed(seed)
        assert loss(*scene.parts()).item() == value
        drawn.add(next(place for place, expected in enumerate(possible) if value == pytest.approx(expected, rel=1e-4)))
    assert drawn == {0, 1, 2, 3}


def test_as_many_vertices_as_rows_are_all_of_them() -> None:
    """Then there is nothing to draw, and the loss is the paper's."""
    scene = toy_scene()
    for vertices in (3, 99):
        few, every = AngleRelationLoss(vertices=vertices), AngleRelationLoss()
        for loss in (few, every):
            loss.bind(STUDENT, TEACHER)
        torch.testing.assert_close(few(*scene.parts()), every(*scene.parts()), rtol=0.0, atol=0.0)
    with pytest.raises(ValueError, match="at least 1 vertex, got 0"):
        AngleRelationLoss(vertices=0)


@pytest.mark.parametrize(("gamma", "order"), [(0.0, 2), (-1.0, 2), (0.4, 0)])
def test_a_constant_kernel_is_refused(gamma: float, order: int) -> None:
    """It would be 0 for ever and look learnt."""
    with pytest.raises(ValueError, match="the kernel is constant"):
        CorrelationCongruenceLoss(gamma=gamma, order=order)


def test_the_graph_is_its_three_terms() -> None:
    """Edges averaged over layers, moves over the steps between them, all within one network."""
    loss = InstanceGraphLoss([(0, 0), (1, 2), (2, 4)], embeddings=True, vertices=2.0, edges=3.0, transformations=4.0)
    loss.bind(STUDENT, TEACHER)
    scene = toy_scene()
    ours, theirs = (
        [pooled_vector(shown.hidden_states[layer], scene.batch.mask, "mean") for layer in layers]
        for shown, layers in ((scene.student, (0, 1, 2)), (scene.teacher, (0, 2, 4)))
    )
    edges = [instance_edges(*sides) for sides in zip(ours, theirs, strict=True)]
    moves = [layer_transformation(ours[i], ours[i + 1], theirs[i], theirs[i + 1]) for i in (0, 1)]
    assert scene.student.logits is not None
    assert scene.teacher.logits is not None
    vertices = logit_mse(scene.student.logits, scene.teacher.logits)
    expected = 2 * vertices + 3 * sum(edges) / 3 + 4 * sum(moves) / 2
    torch.testing.assert_close(loss(*scene.parts()), expected)


def test_a_graph_needs_what_its_terms_need() -> None:
    """Refused when the models are known, not after the first batch; and each refusal says which weight to set to 0."""
    with pytest.raises(ValueError, match=r"3 classes \(student\) and 2 \(teacher\).*vertices=0"):
        InstanceGraphLoss().bind(STUDENT, replace(TEACHER, classes=2))
    with pytest.raises(ValueError, match=r"the map \(\(2, 4\),\).*transformations=0"):
        InstanceGraphLoss([(-1, -1)]).bind(STUDENT, TEACHER)
    edges = InstanceGraphLoss([(-1, -1)], vertices=0.0, transformations=0.0)
    edges.bind(STUDENT, replace(TEACHER, classes=2))
    assert not edges.needs()[0].logits
    tokens = [replace(side, head=TOKENS) for side in (STUDENT, TEACHER)]
    scene, loss = toy_scene(*tokens), InstanceGraphLoss()
    loss.bind(*tokens)
    with pytest.raises(ValueError, match=r"one vector of logits per row.*\(3, 5, 3\).*vertices=0"):
        loss(*scene.parts())


def test_the_embedding_output_can_be_kept_in_the_graph() -> None:
    """It is left out by default: vectors that have not met yet have no relations worth a graph."""
    for embeddings, expected in ((False, ((1, 2), (2, 4))), (True, ((0, 0), (1, 2), (2, 4)))):
        loss = InstanceGraphLoss(embeddings=embeddings)
        loss.bind(STUDENT, TEACHER)
        assert loss.pairs == expected
