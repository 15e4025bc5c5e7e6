"""Short runs of a user's trainer: made, trained for a few steps, and its objects given back as they were.

A run is "still" where two runs must draw the same random numbers though they draw them in another order: then dropout,
augmentation and mixing are off, and the optimizer is plain SGD without clipping. Adam would turn the rounding error of
a gradient that is 0 into a step of full size, and clipping would hide a gradient that is too large.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PrinterCallback, ProgressCallback, set_seed

from hfdistill.attachment import SUBMODULE
from hfdistill.equivalence.differences import Difference
from hfdistill.images.batches import ImageCollator
from hfdistill.schedules import Constant
from hfdistill.trainer import DistillationTrainer

STUDENT, OBJECTIVE = "student.", "objective."
"""What names of weights begin with."""

SHORT: dict[str, Any] = {
    "logging_strategy": "steps",
    "logging_steps": 1,
    "logging_nan_inf_filter": False,
    "eval_strategy": "no",
    "eval_on_start": False,
    "save_strategy": "no",
    "load_best_model_at_end": False,
    "push_to_hub": False,
    "report_to": "none",
    "disable_tqdm": True,
    "warmup_steps": 0,
    "auto_find_batch_size": False,
}
"""Changed arguments of every run."""

STILL: dict[str, Any] = {
    "optim": "sgd",
    "optim_args": None,
    "lr_scheduler_type": "constant",
    "max_grad_norm": 0.0,
    "train_sampling_strategy": "sequential",
}
"""Changed arguments of still runs."""

Weights = Mapping[str, Tensor]
MakeTrainer = Callable[..., DistillationTrainer]
Within = Callable[[DistillationTrainer], AbstractContextManager[Any]]


class NotComparableError(ValueError):
    """Two runs differ by definition, or one cannot be made here; the message says why."""


@dataclass(frozen=True)
class Outcome:
    """What a run came to.

    Args:
        weights: name -> value on the CPU, of the student and of the objective, after the last step.
        log: of each step, the loss and its terms.
        norms: of each step, the length of the gradient.
    """

    weights: Weights
    log: Sequence[Mapping[str, float]]
    norms: Sequence[float] = ()


@dataclass(frozen=True)
class Beginning:
    """Where every run begins.

    Args:
        weights: name -> value on the CPU, of the student and of the objective.
        trained: names of those that learn.
    """

    weights: Weights
    trained: Collection[str]

    @classmethod
    def of(cls, trainer: DistillationTrainer) -> Beginning:
        """The beginning of a trainer that has not run."""
        named = [(STUDENT, trainer.student), (OBJECTIVE, trainer.objective)]
        trained = {
            prefix + name
            for prefix, part in named
            for name, parameter in part.named_parameters()
            if parameter.requires_grad
        }
        return cls(weights_of(trainer), trained)

    def check(self, other: Beginning) -> None:
        """Refuse a run that begins elsewhere.

        Raises:
            ValueError: what differs.
        """
        ours, theirs = self.weights, other.weights
        apart = [name for name in ours if name not in theirs or not torch.equal(ours[name], theirs[name])]
        if apart or len(ours) != len(theirs):
            raise ValueError(
                f"make_trainer must make the same student and objective each time, but {len(apart)} of {len(ours)} "
                f"weights differ, {apart[0] if apart else 'others are new'} among them. Runs that begin apart end "
                "apart. Set the seed before the student is made: transformers.set_seed(0)."
            )


def short_run(
    make_trainer: MakeTrainer,
    changes: Mapping[str, Any],
    *,
    still: bool = False,
    aside: Collection[str] = (),
    within: Within = nullcontext,
    resume: str | None = None,
) -> tuple[Beginning, Outcome]:
    """Make a trainer, train, and give its student and objective back as they began.

    Args:
        make_trainer: of changed training arguments.
        changes: training arguments beside those of every run.
        still: see this module.
        aside: names of the objective's terms that get the weight 0.
        within: of the trainer, a context in which it trains.
        resume: checkpoint to resume from.

    Raises:
        NotComparableError: no term is left.
        ValueError: it is not one process, or is sharded.
    """
    trainer = make_trainer(**{**SHORT, **(STILL if still else {}), **changes})
    _settle(trainer)
    beginning = Beginning.of(trainer)
    set_seed(trainer.args.seed)
    with _given_back(trainer, beginning), stillness(trainer) if still else nullcontext(), within(trainer):
        _set_aside(trainer, aside)
        trainer.train(resume_from_checkpoint=resume)
        lines = [line for line in trainer.state.log_history if "loss" in line]
        log = [{name: value for name, value in line.items() if name.startswith("loss")} for line in lines]
        norms = [float(line.get("grad_norm", math.nan)) for line in lines]
        return beginning, Outcome(weights_of(trainer), log, norms)


def weights_of(trainer: DistillationTrainer) -> dict[str, Tensor]:
    """Copies on the CPU of the weights of student and objective."""
    parts = ((STUDENT, trainer.student), (OBJECTIVE, trainer.objective))
    return {prefix + name: value.detach().cpu().clone() for prefix, part in parts for name, value in _state(part)}


def difference(name: str, one: Outcome, other: Outcome, beginning: Beginning, exact: bool = False) -> Difference:
    """How far apart two runs ended.

    Args:
        name: of the comparison.
        one: what the other is held to.
        other: must be the same.
        beginning: of both.
        exact: whether what does not learn (running averages, memory banks) counts too.

    Raises:
        NotComparableError: nothing was learnt.
    """
    names = set(beginning.weights) if exact else beginning.trained
    relative, absolute, update = 0.0, 0.0, 0.0
    for part in (STUDENT, OBJECTIVE):
        own = [name for name in names if name.startswith(part)]
        apart = _largest(one.weights, other.weights, own)
        moved = _largest(one.weights, beginning.weights, own)
        relative = max(relative, _share(apart, moved, math.inf))
        absolute, update = max(absolute, apart), max(update, moved)
    if update == 0.0:
        raise NotComparableError("no weight changed in these steps, so that any two runs would be the same.")
    curves = {term: _curve(one.log, other.log, term) for line in one.log for term in line}
    worst = max(curves, key=lambda term: curves[term]) if any(curves.values()) else ""
    return Difference(name, "", relative, curves["loss"], absolute, update, worst)


@contextmanager
def stillness(trainer: DistillationTrainer) -> Iterator[None]:
    """Dropout, augmentation and mixing are off in this context, and batches are normalised by running averages."""

    def quiet(student: nn.Module, *_: object) -> None:
        for name, child in student.named_children():  # the root stays in training mode: the trainer goes by that
            if name != SUBMODULE:
                child.eval()

    trainer.settings = replace(trainer.settings, image_mixing=None, uncertainty_mixup=None)
    if isinstance(trainer.data_collator, ImageCollator):
        trainer.data_collator = replace(trainer.data_collator, augmentation="none", random_erasing=0.0)
    handle = trainer.student.register_forward_pre_hook(quiet)
    try:
        yield
    finally:
        handle.remove()


def _settle(trainer: DistillationTrainer) -> None:
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        raise ValueError(
            "the comparisons are made with whole models, but the arguments shard them (FSDP or DeepSpeed). Leave fsdp "
            "and deepspeed out for this check."
        )
    if trainer.args.n_gpu > 1:  # else nn.DataParallel would cut each batch
        trainer.args._n_gpu = 1
        trainer._train_batch_size = trainer.args.train_batch_size
    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
    trainer._teaching.cache = None  # else all runs but the first would learn from what that kept


def _set_aside(trainer: DistillationTrainer, names: Collection[str]) -> None:
    for name in names:
        trainer.objective[name].weight = Constant(0.0)
    steps = trainer.args.max_steps
    if names and not all(trainer.objective.active(step / steps) for step in range(steps)):
        raise NotComparableError(
            f"{', '.join(map(repr, sorted(names)))} of the objective by definition depends on which rows share a "
            "micro-batch, and in some steps nothing else is learnt."
        )


@contextmanager
def _given_back(trainer: DistillationTrainer, beginning: Beginning) -> Iterator[None]:
    """A maker may hand out one and the same student, or objective, every time."""
    weights = {name: trainer.objective[name].weight for name in trainer.objective}
    try:
        yield
    finally:
        for name, weight in weights.items():
            trainer.objective[name].weight = weight
        for prefix, part in ((STUDENT, trainer.student), (OBJECTIVE, trainer.objective)):
            for name, value in _state(part):
                if prefix + name in beginning.weights:
                    value.detach().copy_(beginning.weights[prefix + name])


def _state(part: nn.Module) -> Iterator[tuple[str, Tensor]]:
    return ((name, value) for name, value in part.state_dict().items() if isinstance(value, Tensor))


def _largest(one: Weights, other: Weights, names: Collection[str]) -> float:
    """Largest absolute difference; infinite where one is no number."""
    gaps = ((one[name].double() - other[name].double()).abs() for name in names if one[name].numel())
    return max((float(gap.nan_to_num(math.inf, math.inf).max()) for gap in gaps), default=0.0)


def _share(apart: float, size: float, of_nothing: float) -> float:
    """A difference relative to a size; where that is 0, `of_nothing`."""
    if apart == 0.0 or not math.isfinite(apart):
        return apart
    return apart / size if size else of_nothing


def _curve(one: Sequence[Mapping[str, float]], other: Sequence[Mapping[str, float]], name: str) -> float:
    """Largest difference of an entry of two logs, relative to the largest value."""
    if len(one) != len(other):
        return math.inf
    ours, theirs = (torch.tensor([line.get(name, 0.0) for line in log], dtype=torch.float64) for log in (one, other))
    apart = _largest({name: ours}, {name: theirs}, [name])
    return _share(apart, float(ours.abs().max()), apart)
