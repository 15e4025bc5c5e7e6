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
    from hfdistill.experiment import Comparison as Comparison
    from hfdistill.experiment import Experiment as Experiment
    from hfdistill.layer_map import LayerMap as LayerMap
    from hfdistill.losses import AttentionLoss as AttentionLoss
    from hfdistill.losses import AttentionMapLoss as AttentionMapLoss
    from hfdistill.losses import AttentionRelationLoss as AttentionRelationLoss
    from hfdistill.losses import ContrastiveRepresentationLoss as ContrastiveRepresentationLoss
    from hfdistill.losses import DistillationLoss as DistillationLoss
    from hfdistill.losses import HiddenStateLoss as HiddenStateLoss
    from hfdistill.losses import LayerwiseLoss as LayerwiseLoss
    from hfdistill.losses import PatienceLoss as PatienceLoss
    from hfdistill.losses import SoftTargetLoss as SoftTargetLoss
    from hfdistill.losses import TaskLoss as TaskLoss
    from hfdistill.objective import Objective as Objective
    from hfdistill.presets import preset as preset
    from hfdistill.presets import preset_names as preset_names
    from hfdistill.projector import Projector as Projector
    from hfdistill.recipe_arguments import parse_recipe as parse_recipe
    from hfdistill.representations import Attention as Attention
    from hfdistill.representations import Batch as Batch
    from hfdistill.representations import Needs as Needs
    from hfdistill.representations import Representations as Representations
    from hfdistill.schedules import Constant as Constant
    from hfdistill.schedules import Cosine as Cosine
    from hfdistill.schedules import Linear as Linear
    from hfdistill.schedules import Piecewise as Piecewise
    from hfdistill.schedules import Ramp as Ramp
    from hfdistill.schedules import Schedule as Schedule
    from hfdistill.students import StudentNote as StudentNote
    from hfdistill.students import describe_student as describe_student
    from hfdistill.students import student_from as student_from
    from hfdistill.teachers import FrozenTeacher as FrozenTeacher
    from hfdistill.teachers import Teacher as Teacher
    from hfdistill.text_classification import TextClassification as TextClassification
    from hfdistill.text_classification import distil_text_classifier as distil_text_classifier
    from hfdistill.trainer import DistillationTrainer as DistillationTrainer

_SUBMODULE_OF = {
    "Anatomy": "anatomy",
    "Attention": "representations",
    "AttentionLoss": "losses",
    "AttentionMapLoss": "losses",
    "AttentionRelationLoss": "losses",
    "Batch": "representations",
    "Capture": "capture",
    "Comparison": "experiment",
    "Constant": "schedules",
    "ContrastiveRepresentationLoss": "losses",
    "Cosine": "schedules",
    "describe_student": "students",
    "distil_text_classifier": "text_classification",
    "DistillationLoss": "losses",
    "DistillationTrainer": "trainer",
    "DistillationTrainingArguments": "arguments",
    "Experiment": "experiment",
    "FrozenTeacher": "teachers",
    "HiddenStateLoss": "losses",
    "LayerMap": "layer_map",
    "LayerwiseLoss": "losses",
    "Linear": "schedules",
    "Needs": "representations",
    "Objective": "objective",
    "parse_recipe": "recipe_arguments",
    "PatienceLoss": "losses",
    "Piecewise": "schedules",
    "preset": "presets",
    "preset_names": "presets",
    "Projector": "projector",
    "Ramp": "schedules",
    "Representations": "representations",
    "Schedule": "schedules",
    "SoftTargetLoss": "losses",
    "student_from": "students",
    "StudentNote": "students",
    "TaskLoss": "losses",
    "Teacher": "teachers",
    "TextClassification": "text_classification",
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
