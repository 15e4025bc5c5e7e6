"""Stage by stage, as a preset."""

from __future__ import annotations

from hfdistill.presets.stages import sskd


def test_the_head_learns_when_the_stages_are_done() -> None:
    """Hints without a task leave the head untrained; both at once are another method."""
    objective = sskd(finish=0.6)
    assert objective.weights(0.0) == {"task": 0.0, "stages": 1.0}
    assert objective.weights(0.59) == {"task": 0.0, "stages": 1.0}
    assert objective.weights(0.6) == objective.weights(1.0) == {"task": 1.0, "stages": 0.0}
    assert objective.staged
