"""TrainingArguments with what distillation adds."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from transformers import TrainingArguments

from hfdistill.distributed.placement import own_device
from hfdistill.images.mixing import ImageMixing
from hfdistill.mixup import UncertaintyMixup
from hfdistill.teacher_precision import PRECISIONS, CachePrecision


@dataclass
class DistillationTrainingArguments(TrainingArguments):
    """The Trainer's arguments and a few of distillation; plain TrainingArguments work too, with these at their
    defaults.

    Args:
        trust_remote_code: run the code that the repository of a model, tokenizer or image processor brings with it, of
            those that are given by name. Off: these are refused, and nobody is asked.
        teacher_dtype: precision of the teacher's weights: "float32", "bfloat16", "float16"; "checkpoint", what it was
            saved in; "auto", bfloat16 where the device multiplies in it (see fast_bfloat16), else float32, as the log
            says. A teacher that is passed as a model is converted in place. None: such a model stays as it is, and one
            that is given by name is loaded in float32.
        teacher_placement: where the teacher's weights lie in a run of many processes: "replicated", a whole copy in
            each; "sharded", spread over them as the student's are by FSDP2 or ZeRO-3; "auto", sharded where the
            student's parameters are, else replicated; or a device ("cpu", "cuda:1"): a whole copy there, to which each
            batch is sent, with what it shows sent back. A teacher that is no transformers model places itself.
        teacher_torch_compile: compile the teacher by torch.compile: a few percent faster for tens of seconds at the
            first batch, and again at new lengths.
        teacher_cache: folder in which what the teacher shows of each row is kept, so that later epochs, seeds and runs
            do not ask it again; made and filled as training goes, or ahead by `hfdistill cache`. Rows that are drawn
            anew in each epoch (masking, augmentation, mixing) are refused.
        teacher_cache_dtype: how precisely it is kept: "float32", "bfloat16", "float16", or "auto", as the teacher
            shows it.
        eval_objective: also evaluate every term of the objective, as `eval_loss/<name>`; needs the teacher, and one
            more pass of the student, for each evaluation batch.
        embedding_perturbation: length epsilon of LRC-BERT's gradient perturbation of the embedding output; 0 is off.
            Costs one more forward and backward pass of the student per step.
        mixup_alpha: blend each image of a batch with another, in shares drawn from Beta(alpha, alpha); 0 is off.
        cutmix_alpha: paste a piece of another image into each, of an area drawn in the same way; 0 is off. Both models
            see the mixed images, and TaskLoss learns the labels of both; see ImageMixing.
        mix_probability: share of the batches that are mixed.
        mix_switch: where both are on, share of the mixed batches that CutMix gets.
        uncertainty_mixup: teach only the rows that the student is least sure of, the others mixed in (UNIX); costs one
            more forward pass of the student without gradients, and saves a share of the teacher's and the student's
            training pass. The objective's terms are means over the kept rows.
        uncertainty_mixup_kwargs: options of UncertaintyMixup: keep, unmixed, sharpness, strategy.
        on_nonfinite: what becomes of an update with NaN or inf in a term of the objective or in the gradient norm:
            "stop" ends the run with the term, step and rows; "skip" leaves the update out on all processes, and logs
            how many since the last line (`skipped_updates`).

    Raises:
        ValueError: an unknown precision or placement; a file as output folder; a negative perturbation; options of
            mixing that do not fit; two kinds of mixing at once, or uncertainty_mixup and a perturbation.
        TypeError: an unknown option of mixup.
    """

    trust_remote_code: bool = field(
        default=False, metadata={"help": "Run code that a model's repository brings with it."}
    )
    teacher_dtype: str | None = field(
        default=None,
        metadata={"help": "Precision of the teacher: float32, bfloat16, float16, checkpoint, auto; None: as given."},
    )
    teacher_placement: str = field(
        default="auto",
        metadata={"help": "Where the teacher's weights lie: auto, replicated, sharded, or a device."},
    )
    teacher_torch_compile: bool = field(
        default=False,
        metadata={"help": "Compile the teacher by torch.compile; the first batch takes tens of seconds."},
    )
    teacher_cache: str | None = field(
        default=None, metadata={"help": "Folder in which what the teacher shows of each row is kept."}
    )
    teacher_cache_dtype: str = field(
        default="auto", metadata={"help": "How precisely it is kept: auto, float32, bfloat16 or float16."}
    )
    eval_objective: bool = field(
        default=False, metadata={"help": "Also evaluate every term of the objective, as eval_loss/<name>."}
    )
    embedding_perturbation: float = field(
        default=0.0, metadata={"help": "Epsilon of LRC-BERT's gradient perturbation of the embeddings; 0 is off."}
    )
    mixup_alpha: float = field(
        default=0.0, metadata={"help": "Blend images in pairs, in shares from Beta(alpha, alpha); 0 is off."}
    )
    cutmix_alpha: float = field(
        default=0.0, metadata={"help": "Paste a piece of another image into each, of such an area; 0 is off."}
    )
    mix_probability: float = field(default=1.0, metadata={"help": "Share of the batches whose images are mixed."})
    mix_switch: float = field(default=0.5, metadata={"help": "Where mixup and CutMix are on, the share of CutMix."})
    uncertainty_mixup: bool = field(
        default=False, metadata={"help": "Teach only the rows that the student is least sure of, others mixed in."}
    )
    uncertainty_mixup_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Options of uncertainty_mixup: keep, unmixed, sharpness, strategy."}
    )
    on_nonfinite: str = field(
        default="stop", metadata={"help": "What NaN or inf in a term does: stop the run, or skip the update."}
    )
    _VALID_DICT_FIELDS = [*TrainingArguments._VALID_DICT_FIELDS, "uncertainty_mixup_kwargs"]  # noqa: RUF012 the base's

    def __post_init__(self) -> None:
        """Check what distillation adds, then everything else."""
        super().__post_init__()  # type: ignore[no-untyped-call]
        if self.uncertainty_mixup:
            UncertaintyMixup(**(self.uncertainty_mixup_kwargs or {}))  # type: ignore[arg-type]
        if _image_mixing(self) is not None and self.uncertainty_mixup:
            raise ValueError(
                "uncertainty_mixup mixes the rows of a batch, and so do mixup_alpha and cutmix_alpha: mixtures of "
                "mixtures would have labels of four rows. Set one of them."
            )
        if self.uncertainty_mixup and self.embedding_perturbation:
            raise ValueError(
                "uncertainty_mixup and embedding_perturbation both change the embeddings of one pass, and which comes "
                "first is not defined. Set one of them."
            )
        if self.on_nonfinite not in ("stop", "skip"):
            raise ValueError(
                f"on_nonfinite must be 'stop' or 'skip', got {self.on_nonfinite!r}: a NaN that is let through makes "
                "every weight of the student NaN."
            )
        if not str(self.output_dir).strip() or Path(str(self.output_dir)).is_file():
            raise ValueError(
                f"output_dir must be a folder, there already or not, got {self.output_dir!r}: nothing could be saved "
                "there. Name another place."
            )
        _check_teacher(self)
        if not 0 <= self.embedding_perturbation < math.inf:
            raise ValueError(
                f"embedding_perturbation must be 0 (off) or above, got {self.embedding_perturbation}: it is the "
                "length of a step against the student. LRC-BERT's order of magnitude is 1."
            )


def _check_teacher(args: DistillationTrainingArguments) -> None:
    if args.teacher_dtype is not None and args.teacher_dtype not in PRECISIONS:
        raise ValueError(
            f"teacher_dtype must be one of {', '.join(PRECISIONS)}, got {args.teacher_dtype!r}. It is the precision "
            "of the teacher's weights; 'auto' takes the one that is fastest here, 'checkpoint' the one that it was "
            "saved in."
        )
    own_device(args.teacher_placement)
    if args.teacher_cache_dtype not in get_args(CachePrecision):
        raise ValueError(
            f"teacher_cache_dtype must be one of {', '.join(get_args(CachePrecision))}, got "
            f"{args.teacher_cache_dtype!r}. It is how precisely the cache keeps what the teacher shows; 'auto' keeps "
            "it as it is shown."
        )


def _image_mixing(args: DistillationTrainingArguments) -> ImageMixing | None:
    """How images are mixed; None where both ways are off."""
    if args.mixup_alpha == 0 and args.cutmix_alpha == 0:
        return None
    return ImageMixing(args.mixup_alpha, args.cutmix_alpha, args.mix_probability, args.mix_switch)


@dataclass(frozen=True)
class DistillationSettings:
    """What the trainer reads of either kind of arguments; see DistillationTrainingArguments."""

    teacher_dtype: str | None = None
    eval_objective: bool = False
    embedding_perturbation: float = 0.0
    uncertainty_mixup: UncertaintyMixup | None = None
    image_mixing: ImageMixing | None = None
    trust_remote_code: bool = False
    on_nonfinite: str = "stop"
    teacher_placement: str = "auto"
    teacher_torch_compile: bool = False
    teacher_cache: str | None = None
    teacher_cache_dtype: str = "auto"

    @property
    def running(self) -> tuple[str, bool]:
        """Where the teacher runs, and whether it is compiled."""
        return self.teacher_placement, self.teacher_torch_compile

    @classmethod
    def of(cls, args: TrainingArguments) -> DistillationSettings:
        """The settings in `args`, or the defaults where these are plain TrainingArguments."""
        if not isinstance(args, DistillationTrainingArguments):
            return cls()
        options: Any = args.uncertainty_mixup_kwargs or {}
        mixup = UncertaintyMixup(**options) if args.uncertainty_mixup else None
        plain = (args.teacher_dtype, args.eval_objective, args.embedding_perturbation)
        mixing = (mixup, _image_mixing(args))
        place = (args.teacher_placement, args.teacher_torch_compile)
        kept = (args.teacher_cache or None, args.teacher_cache_dtype)
        return cls(*plain, *mixing, args.trust_remote_code, args.on_nonfinite, *place, *kept)
