"""A recipe examined before it is run: every arm's trainer, and where asked what must not change its student."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import Any

from hfdistill.checks.doctor import examine
from hfdistill.checks.findings import Finding, Findings
from hfdistill.experiment import CONTROL, Experiment
from hfdistill.recipe_arguments import prepared_recipe

_TRAINER = "trainer"
"""The check that an arm can be made at all."""


@dataclass(frozen=True)
class Examined:
    """What was found of a recipe.

    Args:
        arms: name of an arm -> what the doctor found.
        equivalences: name of an arm -> what the comparisons found; empty where none was asked for.
    """

    arms: Mapping[str, Findings]
    equivalences: Mapping[str, Any]

    @property
    def sound(self) -> bool:
        """Whether no error was found, and no comparison failed."""
        found = [*self.arms.values(), *(differences.findings() for differences in self.equivalences.values())]
        return all(findings.worst != "error" for findings in found)

    def __str__(self) -> str:
        parts = [f"{arm}\n{findings}" for arm, findings in self.arms.items()]
        parts += [f"{arm}: equivalences\n{differences}" for arm, differences in self.equivalences.items()]
        return "\n\n".join(parts)

    def as_json(self) -> str:
        """JSON: whether it is sound, and the findings of each arm."""
        arms = {arm: json.loads(findings.as_json()) for arm, findings in self.arms.items()}
        compared = {arm: json.loads(differences.as_json()) for arm, differences in self.equivalences.items()}
        return json.dumps({"sound": self.sound, "arms": arms, "equivalences": compared}, indent=2)


def examine_recipe(words: Sequence[str], equivalence: bool = False) -> Examined:
    """Load a recipe's data and teacher, and examine the trainer of each arm with its first seed; none is trained.

    Args:
        words: as `run_recipe` takes them. A teacher that is to be fine-tuned first (teacher_body) is.
        equivalence: also make short runs that must end alike, and compare them; see arm_equivalences.

    Raises:
        FileNotFoundError, ValueError, TypeError: see run_recipe; what is wrong with an arm alone is a finding.
    """
    recipe, experiment = prepared_recipe(words)
    arms = [arm for arm in recipe.arms if arm != CONTROL] or recipe.arms
    found = {arm: _examined(experiment, arm, recipe.objective_of(arm), recipe.seeds[0]) for arm in arms}
    compared = {}
    if equivalence:
        from hfdistill.equivalence.recipes import arm_equivalences

        made = [arm for arm in arms if not any(one.check == _TRAINER and one.level == "error" for one in found[arm])]
        compared = {arm: arm_equivalences(recipe, experiment, arm, words) for arm in made}
    return Examined(found, compared)


def _examined(experiment: Experiment, arm: str, objective: Any, seed: int) -> Findings:
    with TemporaryDirectory(prefix="hfdistill-") as folder:  # a trainer makes its output folder at once
        try:
            trainer = experiment.trainer(arm, objective, seed, output_dir=folder)
        except ValueError as error:  # student, teacher and objective do not fit together: what a doctor is asked
            advice = "Mend this first: the arm cannot be trained."
            return Findings([Finding(_TRAINER, "error", str(error), advice)])
        return examine(trainer)
