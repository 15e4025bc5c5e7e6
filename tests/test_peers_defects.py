"""What goes wrong in other distillation kits, end to end through our own trainer, where it must not.

One test for each defect that was found by reading them, and for each of their users' complaints that is of an encoder
or of a loss. Larger tests of the same things: accumulation, two processes and resuming in tests/equivalence, sharded
teachers there too, tokenizers and label order in test_compatibility, presets in tests/equivalence/test_every_preset.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from broken_input import experiment
from datasets import Dataset
from safetensors.torch import load_file
from source_tree import PACKAGE, sources
from test_compatibility import WORDS, tokenizer
from torch import nn
from torch.nn import functional as F
from toy_models import toy_bert, toy_distilbert, toy_vit
from training_toys import collate, image_rows, largest_difference, logged, text_rows, trainer_of, weights_of

from hfdistill import (
    AttentionMapLoss,
    DistillationTrainer,
    FrozenTeacher,
    HiddenStateLoss,
    Linear,
    Objective,
    SoftTargetLoss,
    TaskLoss,
    preset,
)
from hfdistill.glue import metrics, task_named
from hfdistill.objective_state import OBJECTIVE_STATE
from hfdistill.recipe_arguments import parse_recipe
from hfdistill.representations import Needs, Representations

ONE_STEP: dict[str, Any] = {"max_steps": 1, "per_device_train_batch_size": 8}


def ran(folder: Path, objective: Any = "kd", *given: Any, **changes: Any) -> DistillationTrainer:
    """A trainer after its run."""
    trainer = trainer_of(folder, objective, *given, **changes)
    trainer.train()
    return trainer


def update(folder: Path, objective: Any, **changes: Any) -> dict[str, torch.Tensor]:
    """The student's weights after one step on all eight rows."""
    return weights_of(ran(folder, objective, **ONE_STEP | changes).model)


def answers(model: nn.Module, rows: Dataset) -> torch.Tensor:
    """Logits of rows (B, K), without dropout and gradients."""
    with torch.no_grad():
        logits: torch.Tensor = model.eval()(**collate(list(rows))).logits
    return logits


def test_a_match_of_ones_own_runs(tmp_path: Path) -> None:
    """A misspelt key inside the kit made the documented way to match modules of one's own impossible to run."""
    trainer = ran(tmp_path, {"mine": {"loss": "my_loss:MyLoss", "layers": [[1, 2]], "scale": 2.0, "weight": 0.5}})
    assert logged(trainer)[0]["loss"] == pytest.approx(0.5 * logged(trainer)[0]["loss/mine"])


def test_alpha_changes_what_is_learnt(tmp_path: Path) -> None:
    """In a published recipe alpha was read, and ignored: 0.1 and 0.9 gave the same loss to the last digit."""
    runs = [ran(tmp_path, {"preset": "kd", "alpha": alpha}, **ONE_STEP) for alpha in (0.1, 0.9)]
    for trainer, alpha in zip(runs, (0.1, 0.9), strict=True):
        line = logged(trainer)[0]
        assert line["loss"] == pytest.approx(alpha * line["loss/kd"] + (1 - alpha) * line["loss/task"], rel=1e-5)
    assert largest_difference(*(weights_of(trainer.model) for trainer in runs)) > 1e-3


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("classes", [3, 300])
def test_the_temperature_is_in_the_loss_with_its_square(temperature: float, classes: int, tmp_path: Path) -> None:
    """It changed only how a kit sampled; its square was forgotten; the mean was over classes, too: 300 times less."""
    models = toy_bert(classes=classes), toy_bert(layers=4, classes=classes, seed=1)
    ours, theirs = (answers(model, text_rows()) / temperature for model in models)
    expected = F.kl_div(ours.log_softmax(-1), theirs.softmax(-1), reduction="batchmean") * temperature**2
    trainer = ran(tmp_path, Objective(kd=SoftTargetLoss(temperature)), models[0], teacher=models[1], **ONE_STEP)
    assert logged(trainer)[0]["loss/kd"] == pytest.approx(expected.item(), rel=1e-4)


def test_cutting_the_batch_changes_nothing(tmp_path: Path) -> None:
    """The same rows in four micro-batches gave four times the gradient."""
    cut = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4, "train_sampling_strategy": "sequential"}
    for objective in (lambda: preset("kd"), lambda: preset("kd", alpha=1.0)):
        difference = largest_difference(update(tmp_path, objective()), update(tmp_path, objective(), **cut))
        assert difference < 1e-6


def test_the_forward_goes_through_the_wrapper(tmp_path: Path) -> None:
    """A loss of `model.module(...)` is that of one process: DDP sees no forward and synchronises no gradient."""

    class Wrapper(nn.Module):
        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.module, self.passes = module, 0

        def forward(self, **inputs: Any) -> Any:
            self.passes += 1
            return self.module(**inputs)

    trainer = trainer_of(tmp_path, Objective(kd=SoftTargetLoss(), hidden=HiddenStateLoss()), toy_bert(width=8))
    passes: list[nn.Module] = []
    trainer.model.register_forward_hook(lambda module, _, __: passes.append(module))
    wrapper = Wrapper(trainer.model).train()
    trainer.compute_loss(wrapper, collate(list(text_rows()))).backward()
    assert (wrapper.passes, len(passes)) == (1, 1)


def test_a_schedule_scales_the_weight(tmp_path: Path) -> None:
    """A schedule replaced the weight that was configured: 5 became a number from 0 to 1."""
    trainer = ran(tmp_path, Objective(task=TaskLoss(), kd=SoftTargetLoss(weight=Linear(5.0, 0.0))))
    assert [line["weight/kd"] for line in logged(trainer)] == [5.0, 2.5]


def test_projectors_are_clipped_saved_and_kept_apart(tmp_path: Path) -> None:
    """They were left out of clipping and of checkpoints, or saved inside the student, which then did not load."""
    limits: dict[str, Any] = {"max_grad_norm": 1e-2, "learning_rate": 1.0, "save_strategy": "steps", "save_steps": 1}
    trainer = trainer_of(tmp_path, Objective(hidden=HiddenStateLoss()), toy_bert(width=8), max_steps=1, **limits)
    before = weights_of(trainer.model), weights_of(trainer.objective)
    trainer.train()
    after = weights_of(trainer.model), weights_of(trainer.objective)
    steps = [(new[name] - old[name]).flatten() for old, new in zip(before, after, strict=True) for name in old]
    assert torch.cat(steps).norm().item() == pytest.approx(1e-2, rel=1e-2)
    checkpoint = tmp_path / "checkpoint-1"
    assert largest_difference(load_file(checkpoint / OBJECTIVE_STATE), after[1]) == 0.0
    assert set(load_file(checkpoint / "model.safetensors")) <= set(toy_bert(width=8).state_dict())


class Labelling(FrozenTeacher):
    """Notes the tokens that it is asked about."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.asked: list[torch.Tensor] = []

    def represent(self, inputs: Mapping[str, Any], needs: Needs) -> Representations:
        self.asked.append(inputs["input_ids"].clone())
        return super().represent(inputs, needs)


def test_the_teacher_speaks_of_the_rows_that_the_student_sees(tmp_path: Path) -> None:
    """Teacher logits fetched by step number belong to other rows as soon as rows are shuffled or accumulated."""
    student, seen = toy_bert(), []
    student.register_forward_pre_hook(lambda _, __, inputs: seen.append(inputs["input_ids"].clone()), with_kwargs=True)
    teacher = Labelling(toy_bert(layers=4, seed=1))
    shuffled = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "num_train_epochs": 2}
    trainer = ran(tmp_path, "kd", student, teacher=teacher, max_steps=-1, **shuffled)
    assert trainer.state.global_step == 4
    assert len(seen) == len(teacher.asked) == 8
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(seen, teacher.asked, strict=True))
    epochs = [[row.tolist() for batch in seen[half : half + 4] for row in batch] for half in (0, 4)]
    assert epochs[0] != epochs[1], "nothing was shuffled, and this test shows nothing"


def test_every_row_is_evaluated_once(tmp_path: Path) -> None:
    """The last batch, filled up with rows seen before, counted these twice."""
    trainer = trainer_of(tmp_path, eval_dataset=text_rows(7))
    predicted = trainer.predict(text_rows(7))
    assert predicted.predictions.shape == (7, 3)
    assert list(predicted.label_ids) == text_rows(7)["labels"]
    assert np.abs(predicted.predictions - answers(trainer.model, text_rows(7)).numpy()).max() < 1e-6


def test_a_second_evaluation_split_replaces_nothing(tmp_path: Path) -> None:
    """MNLI's mismatched rows took the place of the matched ones after the first save."""
    assert task_named("mnli").evaluation_splits == ("validation_matched", "validation_mismatched")
    splits = {"matched": text_rows(5, seed=1), "mismatched": text_rows(6, seed=2)}
    experiment(evaluation=splits)(tmp_path)
    told = json.loads((tmp_path / "kd" / "seed-0" / "results.json").read_text(encoding="utf-8"))
    found = next(arm for arm in told["arms"] if arm["name"] == "kd")["metrics"][0]
    logits = load_file(tmp_path / "kd" / "seed-0" / "predictions.safetensors")
    for key, split in (("accuracy", "matched"), ("mismatched/accuracy", "mismatched")):
        labels = torch.tensor(splits[split]["labels"])
        assert found[key] == pytest.approx((logits[split].argmax(-1) == labels).float().mean().item())


def test_a_regression_learns_from_its_teacher(tmp_path: Path) -> None:
    """STS-B's student was taught the labels, whatever its teacher said."""
    rows = Dataset.from_list([{**row, "labels": 0.5} for row in text_rows()])
    students = [
        update(tmp_path, "kd", student=toy_bert(classes=1), teacher=toy_bert(4, classes=1, seed=seed), rows=rows)
        for seed in (1, 2)
    ]
    assert largest_difference(*students) > 1e-4


def test_an_argument_that_is_never_read_is_refused() -> None:
    """`--max_seq_len` set a default that no code looked at."""
    with pytest.raises(ValueError, match=r"no flag '--max_seq_len'.*"):
        parse_recipe(["--task", "sst2", "--teacher", "t", "--student_layers", "3", "--max_seq_len", "64"])


@pytest.mark.parametrize("name", ["use_fp16", "max_model_input_sizes", "evaluation_strategy", "overwrite_output_dir"])
def test_no_name_that_libraries_gave_up(name: str) -> None:
    """Whole recipes stop on the first line with an attribute that a library has dropped since."""
    found = [source.place for source in sources(PACKAGE, "recipes") if name in "\n".join(source.lines)]
    assert not found


@pytest.mark.parametrize("backend", ["sdpa", "eager"])
@pytest.mark.parametrize("images", [False, True])
def test_attention_is_there_under_the_default_backend(backend: str, images: bool, tmp_path: Path) -> None:
    """In transformers 5 there is an empty tuple of attentions under SDPA: losses on them fail, or see nothing."""
    make, rows = (toy_vit, image_rows()) if images else (toy_bert, text_rows())
    models = [make(layers=layers, seed=seed, attn_implementation=backend) for layers, seed in ((2, 0), (4, 1))]
    trainer = ran(tmp_path, Objective(attention=AttentionMapLoss()), models[0], rows, teacher=models[1], **ONE_STEP)
    assert logged(trainer)[0]["loss/attention"] > 1e-4
    assert logged(trainer)[0]["grad_norm"] > 1e-6


def test_vocabularies_that_differ_are_told_in_words(tmp_path: Path) -> None:
    """The shapes of two tensors deep in a loss were all that users were told."""
    with pytest.raises(ValueError, match=r"vocabularies of different size, 64 and 80.*student's tokenizer"):
        trainer_of(tmp_path, teacher=toy_bert(layers=4, vocabulary=80))


def test_other_ids_of_one_size_are_found(tmp_path: Path) -> None:
    """Two vocabularies of one size trained in silence on ids that meant other words."""
    pair = tokenizer(WORDS), tokenizer([WORDS[0], *reversed(WORDS[1:])])
    with pytest.raises(ValueError, match=r"gives other ids: .* for the student and"):
        trainer_of(tmp_path, processing_class=pair[0], teacher_processing_class=pair[1])


def test_a_teacher_with_its_own_tokens_reads_these(tmp_path: Path) -> None:
    """The teacher received the student's ids, and the only way out was to rewrite the loop."""
    read: list[set[int]] = []
    teacher = toy_bert(layers=4, vocabulary=100, seed=1)
    teacher.register_forward_pre_hook(
        lambda _, __, given: read.append(set(given["input_ids"].flatten().tolist())), with_kwargs=True
    )
    rows = [{**row, "teacher_input_ids": [99, 98], "teacher_attention_mask": [1, 1]} for row in text_rows()]
    ran(tmp_path, "uld", rows=Dataset.from_list(rows), teacher=teacher)
    assert read == [{98, 99}] * 2


def test_what_both_models_read_is_given_to_both(tmp_path: Path) -> None:
    """Of the batch only ids and mask were handed on; positions and token types were dropped."""
    models, read = (toy_bert(), toy_bert(layers=4, seed=1)), []
    for model in models:
        model.register_forward_pre_hook(lambda _, __, given: read.append(set(given)), with_kwargs=True)
    rows = [{**row, "position_ids": list(range(5))} for row in text_rows(tokens=(5, 5), token_types=True)]
    ran(tmp_path, "kd", models[0], Dataset.from_list(rows), teacher=models[1], **ONE_STEP)
    assert len(read) == 2
    assert all({"input_ids", "attention_mask", "token_type_ids", "position_ids"} <= names for names in read)


def test_a_student_that_takes_no_token_types_trains(tmp_path: Path) -> None:
    """A BERT's rows have token types; DistilBERT's forward refuses them."""
    trainer = ran(tmp_path, "kd", toy_distilbert(), text_rows(token_types=True))
    assert np.isfinite(logged(trainer)[-1]["loss/kd"])


def test_labels_in_another_order_are_refused(tmp_path: Path) -> None:
    """MNLI's teachers on the hub number their classes in three ways, and students collapsed."""
    ours, theirs = {0: "yes", 1: "maybe", 2: "no"}, {0: "no", 1: "yes", 2: "maybe"}
    with pytest.raises(ValueError, match=r"another order.*label_map=\[1, 2, 0\]"):
        trainer_of(tmp_path, "kd", toy_bert(id2label=ours), teacher=toy_bert(4, seed=1, id2label=theirs))


def test_a_teacher_that_was_not_fine_tuned_is_refused(tmp_path: Path) -> None:
    """RTE at 30.7: the teacher's head was as random as it was made."""
    toy_bert(layers=4, head="Model").save_pretrained(tmp_path / "teacher")
    with pytest.raises(ValueError, match=r"no trained weights for classifier.*would learn noise"):
        trainer_of(tmp_path, teacher=str(tmp_path / "teacher"))


def test_several_labels_per_row_are_learnt_one_by_one(tmp_path: Path) -> None:
    """A softmax over labels that are true together teaches to choose one; the patch was never merged."""
    rows = Dataset.from_list([{**row, "labels": [1.0, 0.0, 1.0]} for row in text_rows()])
    line = logged(
        ran(tmp_path, Objective(task=TaskLoss(), kd=SoftTargetLoss(divergence="mse")), rows=rows, **ONE_STEP)
    )[0]
    logits = answers(toy_bert(), rows.remove_columns("labels"))
    expected = F.binary_cross_entropy_with_logits(logits, torch.tensor(rows["labels"]))
    assert line["loss/task"] == pytest.approx(expected.item(), rel=1e-5)
    with pytest.raises(ValueError, match=r"'kd' classes exclude each other"):
        ran(tmp_path, "kd", rows=rows)


def test_metrics_have_names_of_their_own() -> None:
    """MRPC's F1 was compared with the mean of F1 and accuracy, and could not be reproduced."""
    found = metrics("mrpc", [1, 1, 1, 0], [1, 0, 1, 1])
    assert found == {"accuracy": 0.5, "f1": pytest.approx(2 / 3)}


def test_there_is_a_control_unless_one_leaves_it_out() -> None:
    """Without the same student trained on the labels nobody can say what distillation gave."""
    recipe, _ = parse_recipe(["--task", "sst2", "--teacher", "t", "--student_layers", "3", "--use_cpu"])
    assert recipe.arms == ["control", "kd"]


def test_layers_that_a_map_cannot_pair_are_told(tmp_path: Path) -> None:
    """Which layer teaches which was a guess: a deeper student was mapped onto layers that do not exist."""
    with pytest.raises(ValueError, match=re.escape("depth 6 with a teacher of depth 4")):
        trainer_of(tmp_path, Objective(hidden=HiddenStateLoss()), toy_bert(layers=6))
