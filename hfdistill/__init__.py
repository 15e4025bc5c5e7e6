"""Knowledge distillation inside the Hugging Face Trainer.

The public names below are loaded on first use (PEP 562): `import hfdistill` alone imports neither torch nor
transformers, so a command line or an editor does not wait for them.

To make a name public, add it twice: to `_SUBMODULE_OF`, for the interpreter, and to the `TYPE_CHECKING` block, for
mypy and editors. tests/test_package.py keeps the two equal, and refuses a name that a submodule bears: importing that
submodule would put it in the name's place.
"""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from hfdistill.anatomy import Anatomy as Anatomy
    from hfdistill.arguments import DistillationTrainingArguments as DistillationTrainingArguments
    from hfdistill.capture import Capture as Capture
    from hfdistill.checkpoints.folders import last_complete_checkpoint as last_complete_checkpoint
    from hfdistill.checks.doctor import examine as examine
    from hfdistill.checks.findings import Finding as Finding
    from hfdistill.checks.findings import Findings as Findings
    from hfdistill.equivalence.comparisons import equivalences as equivalences
    from hfdistill.experiment import Comparison as Comparison
    from hfdistill.experiment import Experiment as Experiment
    from hfdistill.export import export_onnx as export_onnx
    from hfdistill.faults.processes import LostProcessError as LostProcessError
    from hfdistill.faults.record import NonFiniteError as NonFiniteError
    from hfdistill.faults.workers import DataWorkerError as DataWorkerError
    from hfdistill.few_sample import Recovery as Recovery
    from hfdistill.few_sample import recover_from_few_samples as recover_from_few_samples
    from hfdistill.image_classification import ImageClassification as ImageClassification
    from hfdistill.image_classification import distil_image_classifier as distil_image_classifier
    from hfdistill.images.augmentation import Augmentation as Augmentation
    from hfdistill.images.batches import ImageCollator as ImageCollator
    from hfdistill.images.mixing import ImageMixing as ImageMixing
    from hfdistill.images.pixels import PixelConversion as PixelConversion
    from hfdistill.images.pixels import PixelStandard as PixelStandard
    from hfdistill.images.rows import ImageRows as ImageRows
    from hfdistill.images.rows import load_images as load_images
    from hfdistill.layer_map import LayerMap as LayerMap
    from hfdistill.losses import ActivationAttentionLoss as ActivationAttentionLoss
    from hfdistill.losses import AdjustedTargetLoss as AdjustedTargetLoss
    from hfdistill.losses import AngleRelationLoss as AngleRelationLoss
    from hfdistill.losses import AttendedLayerLoss as AttendedLayerLoss
    from hfdistill.losses import AttentionLoss as AttentionLoss
    from hfdistill.losses import AttentionMapLoss as AttentionMapLoss
    from hfdistill.losses import AttentionRelationLoss as AttentionRelationLoss
    from hfdistill.losses import AttentiveChannelLoss as AttentiveChannelLoss
    from hfdistill.losses import BatchRelationLoss as BatchRelationLoss
    from hfdistill.losses import BilevelLoss as BilevelLoss
    from hfdistill.losses import CategoryStructureLoss as CategoryStructureLoss
    from hfdistill.losses import ChannelLoss as ChannelLoss
    from hfdistill.losses import ChannelMatchingLoss as ChannelMatchingLoss
    from hfdistill.losses import ConditionalTeacherLoss as ConditionalTeacherLoss
    from hfdistill.losses import ContrastiveMemoryLoss as ContrastiveMemoryLoss
    from hfdistill.losses import ContrastiveRelationLoss as ContrastiveRelationLoss
    from hfdistill.losses import ContrastiveRepresentationLoss as ContrastiveRepresentationLoss
    from hfdistill.losses import CorrelationCongruenceLoss as CorrelationCongruenceLoss
    from hfdistill.losses import CorrelationLoss as CorrelationLoss
    from hfdistill.losses import DecoupledLoss as DecoupledLoss
    from hfdistill.losses import DistanceRelationLoss as DistanceRelationLoss
    from hfdistill.losses import DistillationLoss as DistillationLoss
    from hfdistill.losses import FeatureMapLoss as FeatureMapLoss
    from hfdistill.losses import FlowLoss as FlowLoss
    from hfdistill.losses import HardLabelLoss as HardLabelLoss
    from hfdistill.losses import HiddenStateLoss as HiddenStateLoss
    from hfdistill.losses import HolisticLoss as HolisticLoss
    from hfdistill.losses import InBatchContrastLoss as InBatchContrastLoss
    from hfdistill.losses import InstanceGraphLoss as InstanceGraphLoss
    from hfdistill.losses import JensenShannonLoss as JensenShannonLoss
    from hfdistill.losses import KernelAlignmentLoss as KernelAlignmentLoss
    from hfdistill.losses import KnowledgeProjectionLoss as KnowledgeProjectionLoss
    from hfdistill.losses import LayerRelationLoss as LayerRelationLoss
    from hfdistill.losses import LayerwiseLoss as LayerwiseLoss
    from hfdistill.losses import LearnedTransferLoss as LearnedTransferLoss
    from hfdistill.losses import LightweightTeacherLoss as LightweightTeacherLoss
    from hfdistill.losses import LocalCorrelationLoss as LocalCorrelationLoss
    from hfdistill.losses import LogitLoss as LogitLoss
    from hfdistill.losses import NeuronSelectivityLoss as NeuronSelectivityLoss
    from hfdistill.losses import PatienceLoss as PatienceLoss
    from hfdistill.losses import PrimeAwareLoss as PrimeAwareLoss
    from hfdistill.losses import ProbabilisticTransferLoss as ProbabilisticTransferLoss
    from hfdistill.losses import ReverseKLLoss as ReverseKLLoss
    from hfdistill.losses import ReviewLoss as ReviewLoss
    from hfdistill.losses import SimilarityPreservingLoss as SimilarityPreservingLoss
    from hfdistill.losses import SkewedKLLoss as SkewedKLLoss
    from hfdistill.losses import SoftenedLogitLoss as SoftenedLogitLoss
    from hfdistill.losses import SoftTargetLoss as SoftTargetLoss
    from hfdistill.losses import StageByStageLoss as StageByStageLoss
    from hfdistill.losses import StandardizedLoss as StandardizedLoss
    from hfdistill.losses import TaskLoss as TaskLoss
    from hfdistill.losses import TaskOrientedLoss as TaskOrientedLoss
    from hfdistill.losses import TokenGramLoss as TokenGramLoss
    from hfdistill.losses import TokenPairLoss as TokenPairLoss
    from hfdistill.losses import TokenRelationLoss as TokenRelationLoss
    from hfdistill.losses import TopKLoss as TopKLoss
    from hfdistill.losses import TotalVariationLoss as TotalVariationLoss
    from hfdistill.losses import TripletLoss as TripletLoss
    from hfdistill.losses import UniversalLogitLoss as UniversalLogitLoss
    from hfdistill.losses import VariationalLoss as VariationalLoss
    from hfdistill.losses import VocabularyDivergenceLoss as VocabularyDivergenceLoss
    from hfdistill.losses import VocabularyTaskLoss as VocabularyTaskLoss
    from hfdistill.losses.method import Method as Method
    from hfdistill.losses.method import Paper as Paper
    from hfdistill.mixup import UncertaintyMixup as UncertaintyMixup
    from hfdistill.objective import Objective as Objective
    from hfdistill.presets import preset as preset
    from hfdistill.presets import preset_names as preset_names
    from hfdistill.projector import Projector as Projector
    from hfdistill.publishing.card import write_model_card as write_model_card
    from hfdistill.publishing.push import push_student as push_student
    from hfdistill.recipe_arguments import parse_recipe as parse_recipe
    from hfdistill.recipe_arguments import run_recipe as run_recipe
    from hfdistill.report.analysis import analyse as analyse
    from hfdistill.report.analysis import write_report as write_report
    from hfdistill.representations import Attention as Attention
    from hfdistill.representations import Batch as Batch
    from hfdistill.representations import Needs as Needs
    from hfdistill.representations import OutputHead as OutputHead
    from hfdistill.representations import Representations as Representations
    from hfdistill.schedules import Constant as Constant
    from hfdistill.schedules import Cosine as Cosine
    from hfdistill.schedules import Linear as Linear
    from hfdistill.schedules import Piecewise as Piecewise
    from hfdistill.schedules import Ramp as Ramp
    from hfdistill.schedules import Schedule as Schedule
    from hfdistill.shared_base import SharedBaseTeacher as SharedBaseTeacher
    from hfdistill.students import StudentNote as StudentNote
    from hfdistill.students import describe_student as describe_student
    from hfdistill.students import student_from as student_from
    from hfdistill.teacher_cache.collator import UnknownRowsError as UnknownRowsError
    from hfdistill.teacher_cache.filling import Filled as Filled
    from hfdistill.teacher_cache.filling import expected_bytes as expected_bytes
    from hfdistill.teacher_cache.filling import fill_cache as fill_cache
    from hfdistill.teacher_cache.teacher import CachedTeacher as CachedTeacher
    from hfdistill.teacher_precision import fast_bfloat16 as fast_bfloat16
    from hfdistill.teacher_tokens import TeacherTokensCollator as TeacherTokensCollator
    from hfdistill.teachers import FrozenTeacher as FrozenTeacher
    from hfdistill.teachers import Teacher as Teacher
    from hfdistill.text_classification import TextClassification as TextClassification
    from hfdistill.text_classification import distil_text_classifier as distil_text_classifier
    from hfdistill.trainer import DistillationTrainer as DistillationTrainer

_SUBMODULE_OF = {
    "ActivationAttentionLoss": "losses",
    "AdjustedTargetLoss": "losses",
    "analyse": "report.analysis",
    "Anatomy": "anatomy",
    "AngleRelationLoss": "losses",
    "AttendedLayerLoss": "losses",
    "Attention": "representations",
    "AttentionLoss": "losses",
    "AttentionMapLoss": "losses",
    "AttentionRelationLoss": "losses",
    "AttentiveChannelLoss": "losses",
    "Augmentation": "images.augmentation",
    "Batch": "representations",
    "BatchRelationLoss": "losses",
    "BilevelLoss": "losses",
    "CachedTeacher": "teacher_cache.teacher",
    "Capture": "capture",
    "CategoryStructureLoss": "losses",
    "ChannelLoss": "losses",
    "ChannelMatchingLoss": "losses",
    "Comparison": "experiment",
    "ConditionalTeacherLoss": "losses",
    "Constant": "schedules",
    "ContrastiveMemoryLoss": "losses",
    "ContrastiveRelationLoss": "losses",
    "ContrastiveRepresentationLoss": "losses",
    "CorrelationCongruenceLoss": "losses",
    "CorrelationLoss": "losses",
    "Cosine": "schedules",
    "DataWorkerError": "faults.workers",
    "DecoupledLoss": "losses",
    "describe_student": "students",
    "DistanceRelationLoss": "losses",
    "distil_image_classifier": "image_classification",
    "distil_text_classifier": "text_classification",
    "DistillationLoss": "losses",
    "DistillationTrainer": "trainer",
    "DistillationTrainingArguments": "arguments",
    "equivalences": "equivalence.comparisons",
    "examine": "checks.doctor",
    "Experiment": "experiment",
    "expected_bytes": "teacher_cache.filling",
    "export_onnx": "export",
    "FeatureMapLoss": "losses",
    "fast_bfloat16": "teacher_precision",
    "fill_cache": "teacher_cache.filling",
    "Filled": "teacher_cache.filling",
    "Finding": "checks.findings",
    "Findings": "checks.findings",
    "FlowLoss": "losses",
    "FrozenTeacher": "teachers",
    "HardLabelLoss": "losses",
    "HiddenStateLoss": "losses",
    "HolisticLoss": "losses",
    "ImageClassification": "image_classification",
    "ImageCollator": "images.batches",
    "ImageMixing": "images.mixing",
    "ImageRows": "images.rows",
    "InBatchContrastLoss": "losses",
    "InstanceGraphLoss": "losses",
    "JensenShannonLoss": "losses",
    "KernelAlignmentLoss": "losses",
    "KnowledgeProjectionLoss": "losses",
    "last_complete_checkpoint": "checkpoints.folders",
    "LayerMap": "layer_map",
    "LayerRelationLoss": "losses",
    "LayerwiseLoss": "losses",
    "LearnedTransferLoss": "losses",
    "LightweightTeacherLoss": "losses",
    "Linear": "schedules",
    "load_images": "images.rows",
    "LocalCorrelationLoss": "losses",
    "LogitLoss": "losses",
    "LostProcessError": "faults.processes",
    "Method": "losses.method",
    "Needs": "representations",
    "NeuronSelectivityLoss": "losses",
    "NonFiniteError": "faults.record",
    "Objective": "objective",
    "OutputHead": "representations",
    "Paper": "losses.method",
    "parse_recipe": "recipe_arguments",
    "PatienceLoss": "losses",
    "Piecewise": "schedules",
    "PixelConversion": "images.pixels",
    "PixelStandard": "images.pixels",
    "preset": "presets",
    "preset_names": "presets",
    "PrimeAwareLoss": "losses",
    "ProbabilisticTransferLoss": "losses",
    "Projector": "projector",
    "push_student": "publishing.push",
    "Ramp": "schedules",
    "recover_from_few_samples": "few_sample",
    "Recovery": "few_sample",
    "Representations": "representations",
    "ReverseKLLoss": "losses",
    "ReviewLoss": "losses",
    "run_recipe": "recipe_arguments",
    "Schedule": "schedules",
    "SharedBaseTeacher": "shared_base",
    "SimilarityPreservingLoss": "losses",
    "SkewedKLLoss": "losses",
    "SoftenedLogitLoss": "losses",
    "SoftTargetLoss": "losses",
    "StageByStageLoss": "losses",
    "StandardizedLoss": "losses",
    "student_from": "students",
    "StudentNote": "students",
    "TaskLoss": "losses",
    "TaskOrientedLoss": "losses",
    "Teacher": "teachers",
    "TeacherTokensCollator": "teacher_tokens",
    "TextClassification": "text_classification",
    "TokenGramLoss": "losses",
    "TokenPairLoss": "losses",
    "TokenRelationLoss": "losses",
    "TopKLoss": "losses",
    "TotalVariationLoss": "losses",
    "TripletLoss": "losses",
    "UncertaintyMixup": "mixup",
    "UniversalLogitLoss": "losses",
    "UnknownRowsError": "teacher_cache.collator",
    "VariationalLoss": "losses",
    "VocabularyDivergenceLoss": "losses",
    "VocabularyTaskLoss": "losses",
    "write_model_card": "publishing.card",
    "write_report": "report.analysis",
}

__all__ = ["__version__", *_SUBMODULE_OF]

if not TYPE_CHECKING:  # seen by mypy, it would make every misspelt name a valid one

    def __getattr__(name: str) -> object:
        """Load a public name from its submodule and keep it, so that this runs once for each name."""
        if name not in _SUBMODULE_OF:
            raise AttributeError(
                f"hfdistill has no public name {name!r}. Its public names are {', '.join(sorted(_SUBMODULE_OF))}."
            )
        value = getattr(import_module(f"hfdistill.{_SUBMODULE_OF[name]}"), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    """List the public names, also those not loaded yet, for completion in shells and editors."""
    return sorted({*globals(), *__all__})
