"""The catalogue of losses: one class per method, one file per paper or family.

The folders are the kinds of knowledge of the surveys: response (what a model answers), feature (what it computes on
the way), relation (how tokens, heads and samples relate). `CATALOGUE` maps each name that a configuration may use to
its class; Python names are the registry.
"""

from __future__ import annotations

from hfdistill.losses.base import DistillationLoss
from hfdistill.losses.batch_relation import BatchRelationLoss
from hfdistill.losses.bilevel import BilevelLoss
from hfdistill.losses.feature.activation_attention import ActivationAttentionLoss
from hfdistill.losses.feature.adaptive import PrimeAwareLoss
from hfdistill.losses.feature.attended_layer import AttendedLayerLoss
from hfdistill.losses.feature.attention_map import AttentionMapLoss
from hfdistill.losses.feature.attentive_channel import AttentiveChannelLoss
from hfdistill.losses.feature.channel import ChannelLoss
from hfdistill.losses.feature.channel_matching import ChannelMatchingLoss
from hfdistill.losses.feature.feature_map import FeatureMapLoss
from hfdistill.losses.feature.flow import FlowLoss
from hfdistill.losses.feature.hidden_state import HiddenStateLoss
from hfdistill.losses.feature.kernel_alignment import KernelAlignmentLoss
from hfdistill.losses.feature.knowledge_projection import KnowledgeProjectionLoss
from hfdistill.losses.feature.learned_transfer import LearnedTransferLoss
from hfdistill.losses.feature.neuron_selectivity import NeuronSelectivityLoss
from hfdistill.losses.feature.patience import PatienceLoss
from hfdistill.losses.feature.review import ReviewLoss
from hfdistill.losses.feature.stage_by_stage import StageByStageLoss
from hfdistill.losses.feature.task_oriented import TaskOrientedLoss
from hfdistill.losses.feature.token_gram import TokenGramLoss
from hfdistill.losses.feature.variational import VariationalLoss
from hfdistill.losses.layerwise import AttentionLoss, LayerwiseLoss
from hfdistill.losses.logits import LogitLoss, SoftenedLogitLoss
from hfdistill.losses.relation.attention_relation import AttentionRelationLoss
from hfdistill.losses.relation.category_structure import CategoryStructureLoss
from hfdistill.losses.relation.context import LayerRelationLoss, TokenRelationLoss
from hfdistill.losses.relation.contrastive_memory import ContrastiveMemoryLoss
from hfdistill.losses.relation.contrastive_relation import ContrastiveRelationLoss
from hfdistill.losses.relation.contrastive_representation import ContrastiveRepresentationLoss
from hfdistill.losses.relation.correlation_congruence import CorrelationCongruenceLoss
from hfdistill.losses.relation.holistic import HolisticLoss
from hfdistill.losses.relation.in_batch_contrast import InBatchContrastLoss
from hfdistill.losses.relation.instance_graph import InstanceGraphLoss
from hfdistill.losses.relation.local_correlation import LocalCorrelationLoss
from hfdistill.losses.relation.probabilistic import ProbabilisticTransferLoss
from hfdistill.losses.relation.relational import AngleRelationLoss, DistanceRelationLoss
from hfdistill.losses.relation.similarity import SimilarityPreservingLoss
from hfdistill.losses.relation.token_pairs import TokenPairLoss
from hfdistill.losses.response.conditional import ConditionalTeacherLoss
from hfdistill.losses.response.correlation import CorrelationLoss
from hfdistill.losses.response.cross_vocabulary import UniversalLogitLoss
from hfdistill.losses.response.decoupled import DecoupledLoss
from hfdistill.losses.response.divergence import JensenShannonLoss, ReverseKLLoss, SkewedKLLoss, TotalVariationLoss
from hfdistill.losses.response.hard_label import HardLabelLoss
from hfdistill.losses.response.knowledge_adjustment import AdjustedTargetLoss
from hfdistill.losses.response.lightweight_teacher import LightweightTeacherLoss
from hfdistill.losses.response.soft_target import SoftTargetLoss
from hfdistill.losses.response.standardized import StandardizedLoss
from hfdistill.losses.response.top_classes import TopKLoss
from hfdistill.losses.response.triplet import TripletLoss
from hfdistill.losses.response.vocabulary import VocabularyDivergenceLoss, VocabularyTaskLoss
from hfdistill.losses.task import TaskLoss

CATALOGUE: dict[str, type[DistillationLoss]] = {
    loss.__name__: loss
    for loss in (
        TaskLoss,
        ConditionalTeacherLoss,
        CorrelationLoss,
        UniversalLogitLoss,
        DecoupledLoss,
        ReverseKLLoss,
        TotalVariationLoss,
        JensenShannonLoss,
        SkewedKLLoss,
        HardLabelLoss,
        AdjustedTargetLoss,
        LightweightTeacherLoss,
        SoftTargetLoss,
        StandardizedLoss,
        TopKLoss,
        TripletLoss,
        VocabularyDivergenceLoss,
        VocabularyTaskLoss,
        ActivationAttentionLoss,
        PrimeAwareLoss,
        AttendedLayerLoss,
        AttentionMapLoss,
        AttentiveChannelLoss,
        ChannelLoss,
        ChannelMatchingLoss,
        FeatureMapLoss,
        FlowLoss,
        HiddenStateLoss,
        KernelAlignmentLoss,
        KnowledgeProjectionLoss,
        LearnedTransferLoss,
        NeuronSelectivityLoss,
        PatienceLoss,
        ReviewLoss,
        StageByStageLoss,
        TaskOrientedLoss,
        TokenGramLoss,
        VariationalLoss,
        AttentionRelationLoss,
        CategoryStructureLoss,
        TokenRelationLoss,
        LayerRelationLoss,
        ContrastiveMemoryLoss,
        ContrastiveRelationLoss,
        ContrastiveRepresentationLoss,
        CorrelationCongruenceLoss,
        HolisticLoss,
        InBatchContrastLoss,
        InstanceGraphLoss,
        LocalCorrelationLoss,
        ProbabilisticTransferLoss,
        DistanceRelationLoss,
        AngleRelationLoss,
        SimilarityPreservingLoss,
        TokenPairLoss,
    )
}
"""Class name -> class, for configurations and for the generated documentation."""

__all__ = [
    "CATALOGUE",
    "ActivationAttentionLoss",
    "AdjustedTargetLoss",
    "AngleRelationLoss",
    "AttendedLayerLoss",
    "AttentionLoss",
    "AttentionMapLoss",
    "AttentionRelationLoss",
    "AttentiveChannelLoss",
    "BatchRelationLoss",
    "BilevelLoss",
    "CategoryStructureLoss",
    "ChannelLoss",
    "ChannelMatchingLoss",
    "ConditionalTeacherLoss",
    "ContrastiveMemoryLoss",
    "ContrastiveRelationLoss",
    "ContrastiveRepresentationLoss",
    "CorrelationCongruenceLoss",
    "CorrelationLoss",
    "DecoupledLoss",
    "DistanceRelationLoss",
    "DistillationLoss",
    "FeatureMapLoss",
    "FlowLoss",
    "HardLabelLoss",
    "HiddenStateLoss",
    "HolisticLoss",
    "InBatchContrastLoss",
    "InstanceGraphLoss",
    "JensenShannonLoss",
    "KernelAlignmentLoss",
    "KnowledgeProjectionLoss",
    "LayerRelationLoss",
    "LayerwiseLoss",
    "LearnedTransferLoss",
    "LightweightTeacherLoss",
    "LocalCorrelationLoss",
    "LogitLoss",
    "NeuronSelectivityLoss",
    "PatienceLoss",
    "PrimeAwareLoss",
    "ProbabilisticTransferLoss",
    "ReverseKLLoss",
    "ReviewLoss",
    "SimilarityPreservingLoss",
    "SkewedKLLoss",
    "SoftTargetLoss",
    "SoftenedLogitLoss",
    "StageByStageLoss",
    "StandardizedLoss",
    "TaskLoss",
    "TaskOrientedLoss",
    "TokenGramLoss",
    "TokenPairLoss",
    "TokenRelationLoss",
    "TopKLoss",
    "TotalVariationLoss",
    "TripletLoss",
    "UniversalLogitLoss",
    "VariationalLoss",
    "VocabularyDivergenceLoss",
    "VocabularyTaskLoss",
]
