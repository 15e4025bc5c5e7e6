"""Comparisons of runs on one's own models: sound trainers pass, with figures, and each broken one is found."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import equivalence_runs
import numpy as np
import pytest
import torch
from datasets import Dataset
from equivalence_runs import DROPOUT, MAKERS, ROWS, maker
from PIL import Image
from test_text_classification import body as body
from test_text_classification import write_glue
from toy_models import toy_bert, toy_deberta, toy_vit
from training_toys import collate, largest_difference, text_rows, weights_of
from transformers import ViTImageProcessorPil
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from hfdistill import (
    DistillationTrainer,
    FrozenTeacher,
    Needs,
    Objective,
    Representations,
    SimilarityPreservingLoss,
    TaskLoss,
    equivalences,
)
from hfdistill.equivalence.differences import Difference, Differences
from hfdistill.equivalence.processes import serve
from hfdistill.equivalence.recipes import arm_equivalences
from hfdistill.images.batches import ImageCollator
from hfdistill.recipe_arguments import prepared_recipe

ALL = ["repeat", "resume", "accumulation", "processes", "cached teacher", "attention"]
TESTS = Path(__file__).parents[1]


def by_name(differences: Differences) -> dict[str, Difference]:
    """The comparisons, each of which must be made or say why not."""
    assert [one.name for one in differences] == ALL
    return {one.name: one for one in differences}


@pytest.fixture
def tests_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a second process finds as pytest does."""
    monkeypatch.setenv("PYTHONPATH", ":".join(map(str, (TESTS.parent, TESTS, TESTS / "equivalence"))))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


# ---- what is sound passes ----


@pytest.mark.slow
@pytest.mark.usefixtures("tests_on_path")
def test_a_sound_trainer_passes_every_comparison() -> None:
    """A check that cries wolf is switched off; one without figures is not believed."""
    differences = equivalences(MAKERS["relational"], command=[equivalence_runs.__file__, "relational"])
    print(differences)
    found = by_name(differences)
    assert {row: one.holds for row, one in found.items()} == dict.fromkeys(ALL, True)
    assert found["repeat"].largest == found["resume"].largest == 0.0
    assert all(one.largest < 1e-4 for one in differences)
    assert all(one.update > 1e-4 for one in differences), "nothing was learnt, so nothing was compared"
    assert "set aside, as they depend on how rows are batched: relation" in found["accumulation"].note
    assert "2 rows x 2 against" in found["processes"].compared, "relations need the micro-batches of the processes"


@pytest.mark.parametrize("precision", ["float64", "bfloat16"])
def test_the_tolerance_follows_the_precision(precision: str) -> None:
    """Half precision rounds a thousand times more coarsely: one tolerance would miss errors, or invent them."""
    models = {"model": lambda: toy_bert(width=8, **DROPOUT), "teacher": lambda: toy_bert(layers=4, seed=1)}
    tolerance = {"float64": 1e-6, "bfloat16": 5e-2}[precision]

    def make_trainer(**changes: Any) -> DistillationTrainer:
        kept = {name: make().double() if precision == "float64" else make() for name, make in models.items()}
        args = {"bf16": precision == "bfloat16"}
        trainer: DistillationTrainer = maker(objective=lambda: "kd", args=args, **kept)(**changes)
        return trainer

    found = by_name(equivalences(make_trainer))
    assert all(one.holds for name, one in found.items() if name != "processes")
    for name in ("accumulation", "cached teacher", "attention"):
        assert found[name].tolerance == tolerance
        assert precision in found[name].note


def test_images_are_compared_without_what_changes_them_at_random() -> None:
    """Augmentation and mixing go by the rows of a batch: cut in another way, they make other images by definition."""
    pixels = np.random.default_rng(0).integers(0, 256, (ROWS, 8, 8, 3), dtype=np.uint8)
    images = Dataset.from_dict({"image": [Image.fromarray(image) for image in pixels], "labels": [0, 1, 2, 0] * 4})
    collator = ImageCollator(ViTImageProcessorPil(size={"height": 8, "width": 8}), "crop_flip", 0.5)
    own = {"train_dataset": images, "data_collator": collator, "teacher": toy_vit(layers=4, seed=1)}
    args = {"remove_unused_columns": False, "mixup_alpha": 0.8}

    def make_trainer(**changes: Any) -> DistillationTrainer:
        trainer: DistillationTrainer = maker(model=toy_vit(width=8), args=args, **own)(**changes)
        return trainer

    found = by_name(equivalences(make_trainer))
    assert {name: one.holds for name, one in found.items()} == {**dict.fromkeys(ALL, True), "processes": None}


def test_objects_that_are_handed_out_again_and_again_stay_as_they_were() -> None:
    """A user may write a maker around one student: its weights, and how its attention is computed, are hers."""
    student, teacher, objective = toy_bert(width=8, **DROPOUT), toy_bert(layers=4, seed=1), equivalence_runs.plain()
    student.set_attn_implementation("eager")
    make_trainer = maker(objective=lambda: objective, model=student, teacher=teacher)
    make_trainer()
    kept = weights_of(student), weights_of(teacher), weights_of(objective)
    found = by_name(equivalences(make_trainer))
    assert all(one.holds for name, one in found.items() if name != "processes")
    for model, before in zip((student, teacher, objective), kept, strict=True):
        assert largest_difference(weights_of(model), before) == 0.0
    assert [model.config._attn_implementation for model in (student, teacher)] == ["eager", "sdpa"]
    assert [objective[name].weight(0.0) for name in objective] == [1.0, 1.0, 1.0]
    assert not student._forward_pre_hooks


def test_nothing_is_left_in_the_output_folder(tmp_path: Path) -> None:
    """A check before a run must not put checkpoints where the run will look for its own."""
    equivalences(maker(folder=tmp_path))
    assert list(tmp_path.iterdir()) == []


# ---- what is broken is found ----


class Unscaled(DistillationTrainer):
    """Returns a sum over micro-batches where the Trainer expects a mean, as the stock Trainer does of some models."""

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        return super().compute_loss(*args, **kwargs) * self.args.gradient_accumulation_steps


class ForgetsDraws(DistillationTrainer):
    """Resumes with the random numbers of a new run, so with other dropout."""

    def _load_rng_state(self, checkpoint: str | None) -> None: ...


class ForgetsProjectors(DistillationTrainer):
    """Resumes the student without its projectors."""

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        fresh = weights_of(self.objective)
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        self.objective.load_state_dict(fresh)


class ReadsPadding(FrozenTeacher):
    """Takes padding for words."""

    def represent(self, inputs: Mapping[str, Any], needs: Needs) -> Representations:
        return super().represent({**inputs, "attention_mask": torch.ones_like(inputs["attention_mask"])}, needs)


def drawn(rows: Any) -> dict[str, torch.Tensor]:
    """A collator with random numbers of its own, which no seed reaches."""
    batch = collate(rows)
    batch["input_ids"][:, 0] = int(np.random.default_rng().integers(5, 64))
    return batch


class DrawnLoss(TaskLoss):
    """Weighs each batch at random."""

    def forward(self, *given: Any) -> torch.Tensor:
        return super().forward(*given) * (0.5 + torch.rand(()))


def masked(rows: Any) -> dict[str, torch.Tensor]:
    """A collator that masks tokens at random, as for a masked language model."""
    batch = collate(rows)
    batch["input_ids"] = batch["input_ids"].masked_fill(torch.rand(batch["input_ids"].shape) < 0.3, 4)
    return batch


def differing(make_trainer: Any) -> set[str]:
    """The comparisons that do not hold; each must say what to do."""
    differences = equivalences(make_trainer)
    for one in differences:
        assert not one.failed, one.failed
        assert one.holds is not False or one.advice
    return {one.name for one in differences if one.holds is False}


def test_a_loss_that_grows_with_accumulation_is_found() -> None:
    """A loss twice as large teaches twice as fast and says nothing."""
    found = by_name(equivalences(maker(Unscaled)))
    assert not found["accumulation"].holds
    assert found["accumulation"].weights > 0.5
    assert {name for name, one in found.items() if one.holds is False} == {"accumulation"}


@pytest.mark.parametrize("kind", [ForgetsProjectors, ForgetsDraws])
def test_what_is_not_restored_is_found(kind: type[DistillationTrainer]) -> None:
    """The resumed run would go on, with a projector that knows nothing, or with another dropout."""
    assert differing(maker(kind)) == {"resume"}


def test_a_teacher_that_reads_padding_is_found() -> None:
    """What it showed of a row must not be kept for later, and its student depends on who shares a batch."""
    make_trainer = maker()

    def broken(**changes: Any) -> DistillationTrainer:
        trainer: DistillationTrainer = make_trainer(**changes)
        trainer.teacher = trainer._teaching.teacher = ReadsPadding(toy_bert(layers=4, seed=1))
        return trainer

    found = differing(broken)
    assert "cached teacher" in found
    assert found <= {"cached teacher", "accumulation"}


def test_random_numbers_that_no_seed_reaches_are_found() -> None:
    """A run that cannot be repeated cannot be resumed either."""
    assert {"repeat", "resume"} <= differing(maker(data_collator=drawn))


def test_wrong_kernels_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that forgets to scale trains another model under the same name."""
    sdpa = ALL_ATTENTION_FUNCTIONS["sdpa"]

    def unscaled(*given: Any, scaling: float | None = None, **options: Any) -> Any:
        return sdpa(*given, scaling=1.0, **options)

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "sdpa", unscaled)
    assert differing(maker()) == {"attention"}


@pytest.mark.slow
@pytest.mark.usefixtures("tests_on_path")
def test_a_mean_of_means_is_found_between_processes_too() -> None:
    """Ragged counts of labels differ between processes as between micro-batches."""
    found = by_name(equivalences(MAKERS["mean of means"], command=[equivalence_runs.__file__, "mean of means"]))
    assert {name for name, one in found.items() if one.holds is False} == {"accumulation", "processes"}


def test_a_program_that_does_not_start_is_told(tmp_path: Path) -> None:
    """A failure of the second process is no reason to lose the other comparisons, nor to call it skipped."""
    program = tmp_path / "program.py"
    program.write_text("raise ValueError('no data here')\n")
    differences = equivalences(MAKERS["sound"], command=[str(program)])
    found = by_name(differences)
    assert found["processes"].holds is False
    assert "ValueError: no data here" in found["processes"].failed
    assert not differences.holds
    assert found["attention"].holds


def test_processes_that_are_not_connected_are_found(tmp_path: Path) -> None:
    """Two processes that each think they are alone agree with one, and prove nothing."""
    (tmp_path / "request.json").write_text(json.dumps({"changes": {"max_steps": 1}, "aside": []}))
    with pytest.raises(RuntimeError, match="not connected"):
        serve(MAKERS["sound"], tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["request.json"]


# ---- what cannot be compared says why ----


@pytest.mark.parametrize(
    ("own", "name", "reason"),
    [
        ({"objective": lambda: Objective(sp=SimilarityPreservingLoss())}, "accumulation", "share a micro-batch"),
        ({"objective": lambda: Objective(task=TaskLoss()), "teacher": None}, "cached teacher", "no teacher"),
        ({"model": toy_deberta(), "teacher": toy_deberta()}, "attention", "in both ways"),
        ({"objective": lambda: Objective(task=DrawnLoss())}, "accumulation", "draws random numbers"),
        ({"data_collator": masked}, "accumulation", "draws random numbers"),
        ({"data_collator": masked}, "cached teacher", "made at random"),
        ({"train_dataset": text_rows(6)}, "accumulation", "need 8 rows"),
        ({}, "processes", "command"),
    ],
)
def test_what_cannot_be_compared_says_why(own: dict[str, Any], name: str, reason: str) -> None:
    """A difference that is one by definition is no error, and a missing row would pass for a passed one."""
    differences = equivalences(maker(**own))
    one = by_name(differences)[name]
    assert one.holds is None
    assert reason in one.skipped
    assert differences.holds
    assert one.finding().level == "note"


def test_runs_that_begin_apart_are_refused() -> None:
    """Two students of other seeds differ by more than any mistake."""
    seeds = iter(range(100))

    def make_trainer(**changes: Any) -> DistillationTrainer:
        trainer: DistillationTrainer = maker(model=toy_bert(width=8, seed=next(seeds)))(**changes)
        return trainer

    found = by_name(equivalences(make_trainer))
    assert "Set the seed before" in found["repeat"].failed


def test_a_run_of_one_step_is_refused() -> None:
    """It has no middle to stop in."""
    with pytest.raises(ValueError, match="at least 2"):
        equivalences(maker(), steps=1)


def test_several_devices_of_one_process_are_not_used() -> None:
    """DataParallel would cut the batch once more, and is not what two processes are held to."""
    make_trainer, made = maker(), []

    def make_for_two(**changes: Any) -> DistillationTrainer:
        trainer: DistillationTrainer = make_trainer(**changes)
        trainer.args._n_gpu = 2
        trainer._train_batch_size = trainer.args.train_batch_size
        made.append(trainer)
        return trainer

    equivalences(make_for_two, steps=2)
    assert made
    assert all(trainer.args.n_gpu == 1 for trainer in made)
    assert all(trainer._train_batch_size == trainer.args.per_device_train_batch_size for trainer in made)


# ---- a recipe ----


@pytest.mark.slow
@pytest.mark.usefixtures("tests_on_path")
def test_an_arm_of_a_recipe_is_compared_with_the_words_of_its_training(body: Path, tmp_path: Path) -> None:
    """The command line must need nothing but what `train` was given; two processes are started with the same words."""
    write_glue(tmp_path / "glue", "sst2", ("sentence",), ["negative", "positive"])
    words = ["--task", "sst2", "--data_dir", str(tmp_path / "glue"), "--teacher", str(body), "--same_label_order"]
    words += ["--student_layers", "2", "--student_hidden_size", "8", "--arms", "tinybert", "--use_cpu"]
    words += ["--per_device_train_batch_size", "4", "--output_dir", str(tmp_path / "out")]
    recipe, experiment = prepared_recipe(words)
    differences = arm_equivalences(recipe, experiment, "tinybert", words)
    assert {one.name: one.holds for one in differences} == dict.fromkeys(ALL, True), str(differences)
    assert by_name(differences)["processes"].largest > 0, "one run was compared with itself"
    assert not any((tmp_path / "out").glob("**/checkpoint-*"))
