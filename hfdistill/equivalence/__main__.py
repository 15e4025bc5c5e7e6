"""`python -m hfdistill.equivalence ARM WORDS`: what `hfdistill check --equivalence` starts in two processes."""

import sys

from hfdistill.equivalence.recipes import arm_equivalences
from hfdistill.recipe_arguments import prepared_recipe

if __name__ == "__main__":
    arm, *words = sys.argv[1:]
    found = arm_equivalences(*prepared_recipe(words), arm, words)
    print(found)
    raise SystemExit(0 if found.holds else 1)
