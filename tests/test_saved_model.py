"""A saved classifier comes back as what it was saved as, ready for inference."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from toy_models import image_inputs, text_inputs, toy_bert, toy_deit, toy_gpt2, toy_resnet, with_lora
from transformers import AutoModelForImageClassification, AutoModelForSequenceClassification

from hfdistill.saved_model import auto_class_of, load_saved

SEQUENCES, IMAGES = AutoModelForSequenceClassification, AutoModelForImageClassification


@pytest.mark.parametrize(
    ("model", "auto", "inputs"),
    [
        (toy_bert(), SEQUENCES, text_inputs()),
        (toy_gpt2(), SEQUENCES, text_inputs()),
        (toy_resnet(), IMAGES, image_inputs()),
        (toy_deit(head="ForImageClassificationWithTeacher"), IMAGES, image_inputs()),
    ],
    ids=["bert", "gpt2", "resnet", "deit with two heads"],
)
def test_a_model_comes_back_with_its_own_head(model: torch.nn.Module, auto: type, inputs: dict, tmp_path: Path):
    """Another head of the same family loads too, with random weights, and would be measured in its place."""
    model.save_pretrained(tmp_path)
    found = load_saved(tmp_path)
    assert auto_class_of(tmp_path) is auto
    assert type(found) is type(model)
    assert not any(module.training for module in found.modules())
    assert torch.equal(found(**inputs).logits, model(**inputs).logits)


def test_full_precision_unless_told_otherwise(tmp_path: Path):
    """A student saved in bfloat16 is measured beside others in float32."""
    toy_bert().to(torch.bfloat16).save_pretrained(tmp_path)
    assert load_saved(str(tmp_path)).dtype == torch.float32
    assert load_saved(tmp_path, dtype="auto").dtype == torch.bfloat16


def test_what_holds_no_whole_model_is_refused(tmp_path: Path):
    """Transformers would ask the hub for a model of that name, or load a base without its adapter."""
    with pytest.raises(ValueError, match=r"found no config\.json"):
        load_saved(tmp_path)
    with_lora(toy_bert(), ["query"]).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="holds an adapter"):
        load_saved(tmp_path)


def test_a_model_without_its_class_is_refused(tmp_path: Path):
    """Any class of the family would fit; which head was trained is not to be guessed."""
    toy_bert().config.save_pretrained(tmp_path)  # a configuration alone names no class
    with pytest.raises(ValueError, match="a model without `architectures`"):
        load_saved(tmp_path)
