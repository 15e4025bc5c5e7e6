"""The arguments that distillation adds, and what stands in for them in plain TrainingArguments."""

from pathlib import Path

import pytest
from training_toys import arguments
from transformers import HfArgumentParser, TrainingArguments

from hfdistill import DistillationTrainingArguments
from hfdistill.arguments import DistillationSettings
from hfdistill.images.mixing import ImageMixing
from hfdistill.mixup import UncertaintyMixup


def test_defaults_are_a_plain_trainers(tmp_path: Path) -> None:
    """Whoever only changes the class of the arguments must get the same run."""
    ours = DistillationTrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    plain = TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    assert ours.teacher_dtype is None  # as None is what a plain Trainer has for what it does not know
    added = {"teacher_torch_compile": False, "eval_objective": False, "embedding_perturbation": 0.0}
    added |= {"trust_remote_code": False, "teacher_placement": "auto", "on_nonfinite": "stop"}
    added |= {"teacher_cache_dtype": "auto"}
    added |= {
        "uncertainty_mixup": False,
        "mixup_alpha": 0.0,
        "cutmix_alpha": 0.0,
        "mix_probability": 1.0,
        "mix_switch": 0.5,
    }
    differing = {name: value for name, value in ours.to_dict().items() if plain.to_dict().get(name) != value}
    differing.pop("logging_dir", None)
    assert {name: value for name, value in differing.items() if name in added} == added
    assert differing.keys() == added.keys()


def test_settings_are_read_of_either_kind(tmp_path: Path) -> None:
    """Plain TrainingArguments are enough; an attribute that happens to be there is not an argument."""
    assert DistillationSettings.of(TrainingArguments(output_dir=str(tmp_path), use_cpu=True)) == DistillationSettings()
    chosen = arguments(tmp_path, teacher_dtype="auto", eval_objective=True, embedding_perturbation=0.5)
    assert DistillationSettings.of(chosen) == DistillationSettings("auto", True, 0.5)


def test_command_line_offers_them(tmp_path: Path) -> None:
    """HfArgumentParser is how scripts of the Trainer read their command line."""
    parser = HfArgumentParser(DistillationTrainingArguments)  # type: ignore[arg-type]
    line = ["--output_dir", str(tmp_path), "--use_cpu", "True", "--eval_objective", "--embedding_perturbation", "1.5"]
    (args,) = parser.parse_args_into_dataclasses(line)
    assert DistillationSettings.of(args) == DistillationSettings(None, True, 1.5)


def test_command_line_says_where_and_how_the_teacher_runs(tmp_path: Path) -> None:
    """Precision, device and compiling are what is tried out from run to run, so a flag must reach the trainer."""
    parser = HfArgumentParser(DistillationTrainingArguments)  # type: ignore[arg-type]
    line = ["--output_dir", str(tmp_path), "--use_cpu", "True", "--teacher_dtype", "bfloat16"]
    (args,) = parser.parse_args_into_dataclasses([*line, "--teacher_placement", "cuda:1", "--teacher_torch_compile"])
    settings = DistillationSettings.of(args)
    assert (settings.teacher_dtype, settings.teacher_placement) == ("bfloat16", "cuda:1")
    assert settings.teacher_torch_compile


@pytest.mark.parametrize("dtype", ["fp16", "half", "", "float64"])
def test_unknown_precisions_are_refused(tmp_path: Path, dtype: str) -> None:
    """Before hours of loading, and with the words that are understood."""
    with pytest.raises(ValueError, match="one of float32, bfloat16, float16, checkpoint, auto, got"):
        arguments(tmp_path, teacher_dtype=dtype)


@pytest.mark.parametrize("place", ["gpu", "cuda:one", "meta", "", 3.5])
def test_placements_that_are_no_device_are_refused(tmp_path: Path, place: str) -> None:
    """`meta` is a device to torch, and computes nothing: the student would learn from numbers that are not there."""
    with pytest.raises(ValueError, match=r"auto, replicated, sharded or the name of a device .*got"):
        arguments(tmp_path, teacher_placement=place)


def test_mixup_options_reach_the_trainer(tmp_path: Path) -> None:
    """As a dictionary from a script, and as JSON from a command line, like the Trainer's own options."""
    options = {"keep": 0.5, "strategy": "margin"}
    chosen = arguments(tmp_path, uncertainty_mixup=True, uncertainty_mixup_kwargs=options)
    assert DistillationSettings.of(chosen).uncertainty_mixup == UncertaintyMixup(keep=0.5, strategy="margin")
    line = ["--output_dir", str(tmp_path), "--use_cpu", "True", "--uncertainty_mixup"]
    parser = HfArgumentParser(DistillationTrainingArguments)  # type: ignore[arg-type]
    (args,) = parser.parse_args_into_dataclasses([*line, "--uncertainty_mixup_kwargs", '{"keep": 0.5}'])
    assert DistillationSettings.of(args).uncertainty_mixup == UncertaintyMixup(keep=0.5)


def test_image_mixing_reaches_the_trainer(tmp_path: Path) -> None:
    """From a command line as from a script; both ways at 0 is no mixing at all."""
    line = ["--output_dir", str(tmp_path), "--use_cpu", "True", "--mixup_alpha", "0.8", "--mix_switch", "0.3"]
    parser = HfArgumentParser(DistillationTrainingArguments)  # type: ignore[arg-type]
    (args,) = parser.parse_args_into_dataclasses(line)
    assert DistillationSettings.of(args).image_mixing == ImageMixing(0.8, 0.0, 1.0, 0.3)
    chosen = arguments(tmp_path, cutmix_alpha=1.0, mix_probability=0.5)
    assert DistillationSettings.of(chosen).image_mixing == ImageMixing(0.0, 1.0, 0.5, 0.5)
    assert DistillationSettings.of(arguments(tmp_path, mix_probability=0.5)).image_mixing is None


def test_mixup_that_cannot_work_is_refused(tmp_path: Path) -> None:
    """At construction, not after the models are loaded."""
    with pytest.raises(ValueError, match="shares of a batch"):
        arguments(tmp_path, uncertainty_mixup=True, uncertainty_mixup_kwargs={"keep": 2.0})
    with pytest.raises(TypeError, match="keap"):
        arguments(tmp_path, uncertainty_mixup=True, uncertainty_mixup_kwargs={"keap": 0.5})
    with pytest.raises(ValueError, match="labels of four rows"):
        arguments(tmp_path, uncertainty_mixup=True, mixup_alpha=0.2)
    with pytest.raises(ValueError, match=r"mixup_alpha and cutmix_alpha of 0 \(off\) or above"):
        arguments(tmp_path, mixup_alpha=-0.2)
    with pytest.raises(ValueError, match="Set one of them"):
        arguments(tmp_path, uncertainty_mixup=True, embedding_perturbation=1.0)


def test_negative_perturbation_is_refused(tmp_path: Path) -> None:
    """A step towards lower loss would make the training easier, not the student more robust."""
    with pytest.raises(ValueError, match=r"embedding_perturbation must be 0 .* got -1.0"):
        arguments(tmp_path, embedding_perturbation=-1.0)
