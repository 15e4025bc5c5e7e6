"""An adapter that was trained through `peft_config` under its own base: saved alone, merged, and what cannot be."""

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from test_adapters import lora, virtual
from toy_models import text_inputs, toy_bert
from training_toys import trainer_of
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from hfdistill import DistillationTrainer
from hfdistill.publishing.folder import StudentFolder
from hfdistill.publishing.merging import merged_student

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
KINDS: dict[str, Any] = {
    "lora": lora(),
    "dora": lora(use_dora=True),
    "ia3": peft.IA3Config(task_type="SEQ_CLS", target_modules=["key", "value"], feedforward_modules=[]),
    "oft": peft.OFTConfig(task_type="SEQ_CLS", target_modules=["query"], r=0, oft_block_size=4),
    "tokens": lora(trainable_token_indices=[5, 6]),
}


def loaded(folder: Path) -> PreTrainedModel:
    """The classifier of a folder."""
    model: PreTrainedModel = AutoModelForSequenceClassification.from_pretrained(folder)
    return model.eval()


def trained(folder: Path, config: Any) -> DistillationTrainer:
    """A student with an adapter on a base that lies in a folder, taught by that base; saved in folder/student."""
    toy_bert().save_pretrained(folder / "base")
    base: Any = loaded(folder / "base")
    trainer = trainer_of(folder / "student", "kd", base, teacher=base, peft_config=config, max_steps=4)
    trainer.train()
    trainer.save_model()
    return trainer


@pytest.mark.parametrize("kind", KINDS)
def test_merged_it_answers_as_with_its_adapter(tmp_path: Path, kind: str) -> None:
    """The merged model is what people run: it must hold the head that was trained, not the one that taught."""
    trainer = trained(tmp_path, KINDS[kind])
    student: Any = trainer.model.eval()
    folder = StudentFolder.read(tmp_path / "student")
    assert {path.name for path in folder.published} >= {"adapter_config.json", "adapter_model.safetensors"}
    assert not any("base_layer" in name for name in load_file(folder.path / "adapter_model.safetensors"))
    merged = loaded(merged_student(folder, tmp_path / "merged").path)
    again = peft.PeftModel.from_pretrained(loaded(tmp_path / "base"), folder.path).eval()
    with torch.no_grad():
        answers = [model(**text_inputs()).logits for model in (student, merged, again, loaded(tmp_path / "base"))]
    torch.testing.assert_close(answers[1], answers[0], rtol=0, atol=1e-5)
    assert torch.equal(answers[2], answers[0]), "the adapter alone, on its base"
    assert (answers[3] - answers[0]).abs().max() > 1e-3


@pytest.mark.parametrize("in_memory", [True, False])
def test_virtual_tokens_cannot_be_merged(tmp_path: Path, in_memory: bool) -> None:
    """They are no weights of the base; PEFT only says that the base has no such attribute."""
    trainer = trained(tmp_path, virtual(peft.PromptTuningConfig))
    model: Any = trainer.model if in_memory else None
    with pytest.raises(ValueError, match=r"PROMPT_TUNING\) cannot be merged: puts virtual tokens"):
        merged_student(StudentFolder.read(tmp_path / "student"), tmp_path / "merged", model)


def test_a_kind_that_peft_cannot_merge_is_named(tmp_path: Path) -> None:
    """PEFT's own error is empty."""
    config = peft.PolyConfig(task_type="SEQ_CLS", target_modules=["query"], n_tasks=1, n_skills=2, r=2)
    toy_bert().save_pretrained(tmp_path / "base")
    model = peft.get_peft_model(loaded(tmp_path / "base"), config)
    model.save_pretrained(tmp_path / "student")
    with pytest.raises(ValueError, match=r"\(POLY\) cannot be merged: PEFT has no way"):
        merged_student(StudentFolder.read(tmp_path / "student"), tmp_path / "merged", model)
