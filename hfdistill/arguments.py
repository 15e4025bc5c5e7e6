"""TrainingArguments with what distillation adds."""

from __future__ import annotations

from dataclasses import dataclass, field

from transformers import TrainingArguments


@dataclass
class DistillationTrainingArguments(TrainingArguments):
    """The Trainer's arguments and a few of distillation; plain TrainingArguments work too, with these at their
    defaults.

    Args:
        teacher_dtype: precision in which a teacher given by name is loaded: "float32", "bfloat16", "float16", or
            "auto" for what its checkpoint was saved in.
        eval_objective: also evaluate every term of the objective, as `eval_loss/<name>`; needs the teacher, and one
            more pass of the student, for each evaluation batch.
        embedding_perturbation: length epsilon of LRC-BERT's gradient perturbation of the embedding output; 0 is off.
            Costs one more forward and backward pass of the student per step.

    Raises:
        ValueError: a negative perturbation.
    """

    teacher_dtype: str = field(
        default="float32",
        metadata={"help": "Precision of a teacher given by name: float32, bfloat16, float16 or auto."},
    )
    eval_objective: bool = field(
        default=False, metadata={"help": "Also evaluate every term of the objective, as eval_loss/<name>."}
    )
    embedding_perturbation: float = field(
        default=0.0, metadata={"help": "Epsilon of LRC-BERT's gradient perturbation of the embeddings; 0 is off."}
    )

    def __post_init__(self) -> None:
        """Check what distillation adds, then everything else."""
        super().__post_init__()  # type: ignore[no-untyped-call]
        if self.embedding_perturbation < 0:
            raise ValueError(
                f"embedding_perturbation must be 0 (off) or above, got {self.embedding_perturbation}: it is the "
                "length of a step against the student. LRC-BERT's order of magnitude is 1."
            )


@dataclass(frozen=True)
class DistillationSettings:
    """What the trainer reads of either kind of arguments; see DistillationTrainingArguments."""

    teacher_dtype: str = "float32"
    eval_objective: bool = False
    embedding_perturbation: float = 0.0

    @classmethod
    def of(cls, args: TrainingArguments) -> DistillationSettings:
        """The settings in `args`, or the defaults where these are plain TrainingArguments."""
        if not isinstance(args, DistillationTrainingArguments):
            return cls()
        return cls(args.teacher_dtype, args.eval_objective, args.embedding_perturbation)
