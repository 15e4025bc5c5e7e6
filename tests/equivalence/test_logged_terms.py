"""What the log shows of the objective must add up to the loss that was trained on."""

from pathlib import Path

import pytest
from toy_models import toy_bert
from training_toys import logged, trainer_of

from hfdistill import Constant, preset, preset_names

STEPS = 5


@pytest.mark.parametrize("width", [16, 8])
@pytest.mark.parametrize("name", preset_names())
def test_weighted_terms_sum_to_the_loss(tmp_path: Path, name: str, width: int) -> None:
    """A curve of a term is only worth reading if it is the term that was trained on, at the weight it had then."""
    objective = preset(name) if name != "minilm" else preset(name, relation_heads=2)
    trainer = trainer_of(tmp_path, objective, toy_bert(width=width), max_steps=STEPS)
    trainer.train()
    lines = logged(trainer)
    assert len(lines) == STEPS
    for step, line in enumerate(lines):
        weights = objective.weights(step / STEPS)
        active = {name for name, weight in weights.items() if weight}
        assert {key.removeprefix("loss/") for key in line if key.startswith("loss/")} == active
        assert sum(weights[name] * line[f"loss/{name}"] for name in active) == pytest.approx(line["loss"], rel=1e-5)


def test_log_shows_scheduled_weights_as_they_were(tmp_path: Path) -> None:
    """The weight beside a term is the one the step was made with, not the next step's."""
    objective = preset("lrc_bert", switch=0.6)
    trainer = trainer_of(tmp_path, objective, max_steps=STEPS)
    trainer.train()
    scheduled = {name for name in objective.weights(0.0) if not isinstance(objective[name].weight, Constant)}
    assert scheduled == {"task", "kd"}
    for step, line in enumerate(logged(trainer)):
        shown = {key.removeprefix("weight/"): value for key, value in line.items() if key.startswith("weight/")}
        expected = objective.weights(step / STEPS)
        assert shown == {name: expected[name] for name in scheduled}
