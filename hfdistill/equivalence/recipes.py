"""The comparisons for an arm of a recipe, as it is written on a command line or in a configuration file."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from hfdistill.classification import Classification
from hfdistill.equivalence.comparisons import STEPS, equivalences
from hfdistill.equivalence.differences import Differences
from hfdistill.experiment import Experiment


def arm_equivalences(
    recipe: Classification, experiment: Experiment, arm: str, words: Sequence[str], steps: int = STEPS
) -> Differences:
    """Compare runs of an arm with the recipe's first seed; see equivalences.

    Args:
        recipe: what the words describe.
        experiment: of the recipe; see prepared_recipe.
        arm: its name.
        words: as `hfdistill train` takes them; two processes are started with them.
        steps: of each run.

    Raises:
        ValueError: see equivalences.
    """
    make_trainer = partial(experiment.trainer, arm, recipe.objective_of(arm), recipe.seeds[0])
    return equivalences(make_trainer, steps=steps, command=["-m", "hfdistill.equivalence", arm, *words])
