"""The cache of a recipe, as it is written on a command line or in a configuration file, filled before it is run."""

from __future__ import annotations

from collections.abc import Sequence
from tempfile import TemporaryDirectory

from hfdistill.experiment import CONTROL
from hfdistill.recipe_arguments import parse_recipe, prepared_recipe
from hfdistill.teacher_cache.filling import expected_bytes, fill_cache


def cache_recipe(words: Sequence[str], estimate: bool = False) -> str:
    """Keep what a recipe's teacher shows of its training rows, all that any of its arms learns from.

    Args:
        words: as `run_recipe` takes them, with `teacher_cache`. A teacher that is to be fine-tuned first is.
        estimate: say how much room that takes, and keep no more than a few rows.

    Returns:
        What was done, in a line.

    Raises:
        FileNotFoundError, ValueError, TypeError: see run_recipe; no `teacher_cache`, or no arm with a teacher.
        OSError: see fill_cache.
    """
    described, args = parse_recipe(words)
    arms = [arm for arm in described.arms if arm != CONTROL]
    if not args.teacher_cache or not arms:
        raise ValueError(
            f"a cache needs a folder and an arm that learns from the teacher, got teacher_cache={args.teacher_cache} "
            f"and arms {described.arms}. Name the folder (--teacher_cache DIR) here and for `hfdistill train`."
        )
    recipe, experiment = prepared_recipe(words)
    with TemporaryDirectory(prefix="hfdistill-") as folder:  # a trainer makes its output folder at once
        trainers = [
            experiment.trainer(arm, recipe.objective_of(arm), recipe.seeds[0], output_dir=folder) for arm in arms
        ]
        taught = [trainer for trainer in trainers if trainer.objective.needs()[1]]
        if not taught:
            raise ValueError(f"none of the arms {arms} learns from the teacher, so there is nothing to keep of it.")
        if estimate:
            size = expected_bytes(taught[0], taught[1:])
            return f"about {size / 1e6:.1f} MB are still to be written to {args.teacher_cache}"
        return str(fill_cache(taught[0], taught[1:]))
