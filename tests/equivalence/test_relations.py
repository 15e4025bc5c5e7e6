"""Which losses relate the rows of a batch, so that cutting it in another way makes another run by definition."""

from dataclasses import replace
from pathlib import Path

import pytest
from loss_variants import VARIANTS
from toy_representations import STUDENT, TEACHER
from training_toys import trainer_of

from hfdistill import InBatchContrastLoss, Objective, TaskLoss, preset
from hfdistill.equivalence.relations import gathering, relates_rows, relating, remembering

# Not the mean over rows for other reasons than what shares a batch, or learning in another way than by its value.
OTHERWISE = {"lightweight, drawn": "draws for each row", "learned transfer": "its meta networks see a micro-batch"}


@pytest.mark.parametrize("name", VARIANTS)
def test_losses_that_relate_rows_are_known(name: str) -> None:
    """One that is not known is called broken; one that is known wrongly is never looked at."""
    variant = VARIANTS[name]
    loss = variant.make()
    loss.bind(*(replace(side, head=variant.head, classes=variant.classes) for side in (STUDENT, TEACHER)))
    assert relates_rows(loss) == (not variant.additive) or name in OTHERWISE


def test_terms_are_named(tmp_path: Path) -> None:
    """What is set aside is said by the names that the user gave."""
    objective = trainer_of(tmp_path, preset("crd")).objective
    assert relating(objective) == remembering(objective) == {"crd"}
    assert gathering(objective) == frozenset()
    contrast = Objective(task=TaskLoss(), contrast=InBatchContrastLoss(gather=True))
    assert relating(contrast) == gathering(contrast) == {"contrast"}
    assert remembering(contrast) == frozenset()
