"""A failed pass is called too long where it is, and nowhere else."""

import pytest
import torch
from toy_models import toy_bert, toy_roberta
from transformers import PreTrainedModel

from hfdistill.row_checks import explained_inputs


def tokens(length: int) -> dict[str, torch.Tensor]:
    """Two rows."""
    return {"input_ids": torch.full((2, length), 7), "attention_mask": torch.ones(2, length, dtype=torch.long)}


@pytest.mark.parametrize(("make", "beyond"), [(toy_bert, 1), (toy_roberta, -1)], ids=["bert", "roberta"])
def test_rows_beyond_the_last_position_are_told(make, beyond: int) -> None:  # type: ignore[no-untyped-def]
    """RoBERTa has two positions less than its configuration says."""
    model: PreTrainedModel = make()
    inputs = tokens(model.config.max_position_embeddings + beyond)
    with (
        pytest.raises(ValueError, match=r"positions, got rows of \d+ tokens.*max_length"),
        explained_inputs(model, inputs, "student"),
    ):
        model(**inputs)
    shorter = tokens(model.config.max_position_embeddings + beyond - 1)
    with explained_inputs(model, shorter, "student"):
        model(**shorter)


FAULTS = [
    torch.OutOfMemoryError("CUDA out of memory"),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    RuntimeError("[gloo] Connection closed by peer"),
]


@pytest.mark.parametrize("fault", FAULTS, ids=["accelerator", "processor", "process"])
@pytest.mark.parametrize("more", [0, 9])
def test_other_faults_keep_their_kind(fault: RuntimeError, more: int) -> None:
    """Rows of exactly as many tokens as there are positions are the usual ones: cutting them would mend nothing."""
    model = toy_bert()
    inputs = tokens(model.config.max_position_embeddings + more)
    with pytest.raises(type(fault)) as told, explained_inputs(model, inputs, "student"):
        raise fault
    assert told.value is fault
