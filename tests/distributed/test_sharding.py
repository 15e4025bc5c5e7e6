"""Models in shards are told apart and counted, and what is loaded beside them is loaded whole."""

import os

import pytest
import torch
from toy_models import toy_bert
from training_toys import largest_difference
from transformers.integrations import deepspeed

from hfdistill.distributed.sharding import (
    class_of,
    clear_gradients,
    element_count,
    is_sharded,
    loaded_whole,
    whole_state,
)
from hfdistill.measurement import parameter_count


def test_a_whole_model_is_left_alone() -> None:
    """The path of one process must be the same with and without all this."""
    model = toy_bert()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model(torch.tensor([[5, 6]]), labels=torch.tensor([0])).loss.backward()
    gradients = [None if own.grad is None else own.grad.clone() for own in model.parameters()]
    clear_gradients(model)
    assert not is_sharded(model)
    assert class_of(model) is type(model)
    assert largest_difference(whole_state(model), before) == 0.0
    for own, kept in zip(model.parameters(), gradients, strict=True):
        assert (own.grad is None) == (kept is None)
        assert own.grad is None or torch.equal(own.grad, kept)


def test_parameters_are_counted_whole() -> None:
    """ZeRO-3 leaves empty parameters behind: a report would say that the student has none."""
    model = toy_bert()
    count = parameter_count(model)
    for own in model.parameters():
        vars(own)["ds_numel"] = own.numel()
        own.data = torch.empty(0)
    assert element_count(next(model.parameters())) > 0
    assert parameter_count(model) == count
    assert is_sharded(model)


def test_models_are_loaded_whole_whatever_the_run_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """The student may be loaded in pieces; the teacher may not, and the student still must be afterwards."""

    class Config:
        def is_zero3(self) -> bool:
            return True

    config = Config()
    monkeypatch.setattr(deepspeed, "_hf_deepspeed_config_weak_ref", lambda: config)
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "true")
    with loaded_whole():
        assert not deepspeed.is_deepspeed_zero3_enabled()
        assert "FSDP_CPU_RAM_EFFICIENT_LOADING" not in os.environ
    assert deepspeed.is_deepspeed_zero3_enabled()
    assert os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] == "true"
