"""Presets of relations between the rows of a batch: distances, angles, similarities, graphs, categories.

All of them depend on which rows share a batch; 64 rows or more are usual. `gather=True` of their losses relates the
rows of all processes; gradient accumulation does not enlarge the batch.
"""

from __future__ import annotations

from hfdistill.losses import SoftTargetLoss, TaskLoss
from hfdistill.losses.relation.category_structure import CategoryStructureLoss
from hfdistill.losses.relation.correlation_congruence import CorrelationCongruenceLoss
from hfdistill.losses.relation.instance_graph import InstanceGraphLoss
from hfdistill.losses.relation.local_correlation import LocalCorrelationLoss
from hfdistill.losses.relation.probabilistic import ProbabilisticTransferLoss
from hfdistill.losses.relation.relational import AngleRelationLoss, DistanceRelationLoss
from hfdistill.losses.relation.similarity import SimilarityPreservingLoss
from hfdistill.objective import Objective


def rkd(distance: float = 25.0, angle: float = 50.0, hard: float = 1.0) -> Objective:
    """RKD: task + 25 distances + 50 angles between the rows' vectors of the last layer.

    Park et al. 2019, Relational Knowledge Distillation, https://arxiv.org/abs/1904.05068, equations 5 to 10. The
    weights are those of the RepDistiller benchmark; the paper has 1 and 2 for metric learning, without labels.

    Args:
        distance: weight of the distances.
        angle: weight of the angles.
        hard: weight of the labels.
    """
    return Objective(
        task=TaskLoss(weight=hard),
        distance=DistanceRelationLoss(weight=distance),
        angle=AngleRelationLoss(weight=angle),
    )


def stepwise_rkd(
    alpha: float = 1.0, temperature: float = 4.0, distance: float = 25.0, angle: float = 50.0, hard: float = 1.0
) -> Objective:
    """One hop of stepwise relational distillation: task + alpha T^2 KL + 25 distances + 50 angles.

    Liu and Zhang 2021, stepwise relational distillation (in Chinese, C.S.A. 30(12)), as its abstract has it: a
    teacher teaches an intermediate model, that one the student, each time with relations (Park et al. 2019,
    https://arxiv.org/abs/1904.05068) and what the teacher says of each row alone. Run it once for each hop; an
    intermediate model of half way between the two depths is usual. alpha and T are ours, the relations' weights those
    of `rkd`; the paper's are not verified.

    Args:
        alpha: weight of the soft targets.
        temperature: T > 0.
        distance: weight of the distances.
        angle: weight of the angles.
        hard: weight of the labels.
    """
    return Objective(
        task=TaskLoss(weight=hard),
        kd=SoftTargetLoss(temperature, weight=alpha),
        distance=DistanceRelationLoss(weight=distance),
        angle=AngleRelationLoss(weight=angle),
    )


def sp(weight: float = 3000.0, hard: float = 1.0) -> Objective:
    """SP: task + 3000 |G_s - G_t|_F^2 / B^2, G the similarities of the rows in the last layer.

    Tung and Mori 2019, Similarity-Preserving Knowledge Distillation, https://arxiv.org/abs/1907.09682. The weight is
    that of the RepDistiller benchmark.

    Args:
        weight: weight of the similarities.
        hard: weight of the labels.
    """
    return Objective(task=TaskLoss(weight=hard), similarity=SimilarityPreservingLoss(weight=weight))


def pkt(weight: float = 30000.0, hard: float = 1.0) -> Objective:
    """PKT: task + 30000 x the divergence of the rows' neighbourhoods in the last layer, divided by B^2.

    Passalis and Tefas 2018, Learning Deep Representations with Probabilistic Knowledge Transfer,
    https://arxiv.org/abs/1803.10837. The weight is that of the RepDistiller benchmark; another reference code has
    10000.

    Args:
        weight: weight of the neighbourhoods.
        hard: weight of the labels.
    """
    return Objective(task=TaskLoss(weight=hard), neighbours=ProbabilisticTransferLoss(weight=weight))


def cc(weight: float = 100.0, gamma: float = 0.4, hard: float = 1.0) -> Objective:
    """CC: task + 100 x the squared difference of a Gaussian kernel between the rows in the last layer.

    Peng et al. 2019, Correlation Congruence for Knowledge Distillation, https://arxiv.org/abs/1904.01802. weight,
    gamma and the order 2 are those of the code that has the kernel, Knowledge-Distillation-Zoo; the 0.02 of the
    RepDistiller benchmark is for another formula. The paper has soft targets too and draws its batches by class.

    Args:
        weight: weight of the kernel.
        gamma: of the kernel, above 0.
        hard: weight of the labels.
    """
    return Objective(task=TaskLoss(weight=hard), correlation=CorrelationCongruenceLoss(gamma=gamma, weight=weight))


def irg(
    vertices: float = 0.1, edges: float = 5.0, transformations: float = 5.0, layers: str = "uniform", hard: float = 1.0
) -> Objective:
    """IRG: task + 0.1 vertices + 5 edges + 5 transformations of the graph of the rows.

    Liu et al. 2019, Knowledge Distillation via Instance Relationship Graph, CVPR,
    https://openaccess.thecvf.com/CVPR2019. The weights are those of Knowledge-Distillation-Zoo; the authors' code has
    0.005 for each term, of sums.

    Args:
        vertices: weight of the logits.
        edges: weight of the distances between rows.
        transformations: weight of the rows' moves from layer to layer.
        layers: name of the layer map; at least two layers for the transformations.
        hard: weight of the labels.
    """
    graph = InstanceGraphLoss(layers, vertices=vertices, edges=edges, transformations=transformations)
    return Objective(task=TaskLoss(weight=hard), graph=graph)


def lcc(weight: float = 1.0, parts: int = 4, hard: float = 1.0) -> Objective:
    """LCC: task + the angles between parts of the rows, within a row, at one place, and at all.

    Li et al. 2020, Local Correlation Consistency for Knowledge Distillation, ECCV,
    https://doi.org/10.1007/978-3-030-58610-2_2. Reconstructed from its abstract, without its class-aware attention;
    the weights are not verified.

    Args:
        weight: weight of the three terms together.
        parts: parts of a text, or of the side of an image.
        hard: weight of the labels.
    """
    return Objective(task=TaskLoss(weight=hard), local=LocalCorrelationLoss(parts=parts, weight=weight))


def cskd(inter: float = 0.04, intra: float = 0.002, compactness: float = 0.1, hard: float = 0.9) -> Objective:
    """CSKD: 0.9 task + 1e-6 squared logits + the structure of the classes, of the last layer and of the logits.

    Chen et al. 2020, Improving Knowledge Distillation via Category Structure,
    https://www.ecva.net/papers/eccv_2020/papers_ECCV/html/6056_ECCV_2020_paper.php. All weights, and the reduction
    that they are made for, are those of the authors' code: 0.04 between classes, 0.002 within them, 0.1 for compact
    logits. As there, a feature's distance is taken from the centre of the rows that are classified right, a logit's
    from the centre of all. Its soft term sees the difference of the logits, 0.1 x 1e-5 of it.

    Args:
        inter: weight of the structure between classes.
        intra: weight of the structure within classes.
        compactness: weight of the student's logits around their centres.
        hard: weight of the labels.
    """
    return Objective(
        task=TaskLoss(weight=hard),
        kd=SoftTargetLoss(1.0, divergence="mse", weight=1e-6),
        features=CategoryStructureLoss(inter=inter, intra=intra, correct_only=True, reduction="paper"),
        logits=CategoryStructureLoss(
            target="logits", inter=inter, intra=intra, compactness=compactness, reduction="paper"
        ),
    )
