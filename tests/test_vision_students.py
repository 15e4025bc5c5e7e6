"""Students of image models: cut, with other patches, for other images; the same tokens wherever that can be had."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from test_students import hidden, logits, trained, weights
from torch import Tensor, nn
from toy_models import image_inputs, toy_bert, toy_resnet, toy_swin, toy_vit
from training_toys import arguments, collate, image_rows
from transformers import (
    AutoModelForImageClassification,
    ConvNextConfig,
    ConvNextForImageClassification,
    VideoMAEConfig,
    VideoMAEModel,
)
from transformers import PreTrainedModel as Model

from hfdistill import DistillationTrainer
from hfdistill.patches import Size, resized_positions
from hfdistill.students import describe_student, student_from

BIASES = {"use_relative_position_bias": True}
SHARED = {"use_shared_relative_position_bias": True, "use_absolute_position_embeddings": True}
CLASSIFIERS: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": ("ViT", {}),
    "deit": ("DeiT", {}),
    "vit_msn": ("ViTMSN", {}),
    "ijepa": ("IJepa", {}),
    "beit": ("Beit", BIASES),
    "beit with shared biases": ("Beit", SHARED),
    "data2vec-vision": ("Data2VecVision", BIASES),
    "dinov2": ("Dinov2", {}),
    "dinov2_with_registers": ("Dinov2WithRegisters", {"num_register_tokens": 2}),
}
ENCODERS = {"dinov3_vit": "DINOv3ViT", "siglip_vision_model": "SiglipVision", "clip_vision_model": "CLIPVision"}
ANY_SHAPE = ("vit", "deit", "vit_msn", "ijepa", "dinov3_vit")
# whose own code interpolates positions on demand only, not whenever an image is larger
WHEN_ASKED = ("vit", "deit", "vit_msn", "ijepa", "siglip_vision_model", "clip_vision_model")
# of DINOv2 with registers the own code interpolates by another cubic
AS_THE_FAMILY_DOES = [family for family in (*CLASSIFIERS, *ENCODERS) if family != "dinov2_with_registers"]
every_family = pytest.mark.parametrize("family", [*CLASSIFIERS, *ENCODERS])


def vision_teacher(family: str, layers: int = 2) -> Model:
    """An image model on images of 8 by 8 pixels in patches of 4 by 4, with every weight moved."""
    name, more = CLASSIFIERS.get(family) or (ENCODERS[family], {})
    head = "ForImageClassification" if family in CLASSIFIERS else "Model"
    sizes = {"hidden_size": 16, "num_hidden_layers": layers, "num_attention_heads": 2, "intermediate_size": 32}
    images = {"image_size": 8, "patch_size": 4, "num_labels": 3, "initializer_range": 0.2}
    config = getattr(transformers, f"{name}Config")(**sizes, **images, **more)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: Model = getattr(transformers, name + head)(config)
    return trained(model.eval())


def answer(model: Model, images: Tensor, **more: bool) -> Tensor:
    with torch.no_grad():
        output = model(images, **more)
    found: Tensor = output.logits if "logits" in output else output.last_hidden_state
    return found


def images(rows: int, columns: int) -> Tensor:
    return torch.randn(3, 3, rows, columns, generator=torch.Generator().manual_seed(5))


def enlarged(batch: Tensor, patch: Size, new: Size) -> Tensor:
    """Images with each patch resized apart from the others, so that no pixel of a neighbour gets into it."""
    rows, columns = batch.shape[2] // patch[0], batch.shape[3] // patch[1]
    apart = batch.unflatten(2, (rows, -1)).unflatten(4, (columns, -1)).permute(0, 2, 4, 1, 3, 5)
    larger = nn.functional.interpolate(apart.flatten(0, 2), size=new, mode="bilinear")  # (B x rows x columns, C, *new)
    return larger.unflatten(0, apart.shape[:3]).permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)


@every_family
def test_first_layers_compute_what_they_did(family: str) -> None:
    """Backbones name their layers in the configuration, too; a cut one must be built, of the same layers."""
    teacher = vision_teacher(family, layers=4)
    student = student_from(teacher, num_layers=2, layers="first")
    note = describe_student(student)
    assert (note.fresh, note.left_out, note.resized) == ((), (), ())
    ours, theirs = hidden(student, image_inputs()), hidden(teacher, image_inputs())
    assert torch.equal(ours[1], theirs[1])
    full = student_from(teacher)
    assert torch.equal(answer(full, images(8, 8)), answer(teacher, images(8, 8)))


@pytest.mark.parametrize("family", AS_THE_FAMILY_DOES)
def test_larger_images_are_seen_as_the_family_itself_would_see_them(family: str) -> None:
    """Every family has code for images larger than it was trained on; a student for them must agree with it."""
    teacher = vision_teacher(family)
    own = {"interpolate_pos_encoding": True} if family in WHEN_ASKED else {}
    for size in (16, *([(8, 16), (12, 8)] if family in ANY_SHAPE else [])):
        student = student_from(teacher, image_size=size)
        assert student.config.image_size == (list(size) if isinstance(size, tuple) else size)
        batch = images(*(size if isinstance(size, tuple) else (size, size)))
        torch.testing.assert_close(answer(student, batch), answer(teacher, batch, **own), rtol=1e-6, atol=1e-6)


@every_family
def test_larger_patches_of_larger_images_are_the_same_tokens(family: str) -> None:
    """With each patch enlarged, image and kernel cancel out: the student must answer as its teacher does."""
    teacher, batch = vision_teacher(family), images(8, 8)
    for patch in (8, 6, *([(4, 7)] if family in ANY_SHAPE else [])):
        new = patch if isinstance(patch, tuple) else (patch, patch)
        student = student_from(teacher, patch_size=patch, image_size=(2 * new[0], 2 * new[1]))
        larger = enlarged(batch, (4, 4), new)
        torch.testing.assert_close(answer(student, larger), answer(teacher, batch), rtol=1e-4, atol=1e-4)


@every_family
def test_fewer_patches_of_the_same_image(family: str) -> None:
    """The usual wish: a student with larger patches sees the teacher's images as fewer tokens, and starts from it."""
    teacher = vision_teacher(family, layers=4)
    student = student_from(teacher, num_layers=2, patch_size=8)
    note, own = describe_student(student), student.state_dict()
    assert note.fresh == note.left_out == note.doubled == ()
    assert sorted((*note.copied, *note.resized)) == sorted(own)
    changed = ("position_embedding", "bias_table")
    assert all("patch_embed" in name or any(word in name for word in changed) for name in note.resized)
    assert any("patch_embed" in name for name in note.resized)
    assert answer(student, images(8, 8)).isfinite().all()


def test_a_grid_of_another_shape_is_interpolated_even_where_it_has_as_many_patches() -> None:
    """Eight patches in one row and eight in two rows fit the same table; copied as it is, it would be scrambled."""
    wide = student_from(vision_teacher("vit"), image_size=(4, 32))
    tall = student_from(wide, image_size=(8, 16))
    [name] = describe_student(tall).resized
    positions = wide.state_dict()[name]
    assert tall.state_dict()[name].shape == positions.shape
    assert torch.equal(tall.state_dict()[name], resized_positions(positions, (1, 8), (2, 4)))
    assert not torch.equal(tall.state_dict()[name], positions)


def test_the_note_tells_what_was_resized(caplog: pytest.LogCaptureFixture) -> None:
    """What was asked for is no warning, and the names are there to be read."""
    with caplog.at_level(logging.INFO, logger="hfdistill.students"):
        student = student_from(toy_vit(), patch_size=2)
    embeddings = "vit.embeddings."
    resized = (f"{embeddings}position_embeddings", f"{embeddings}patch_embeddings.projection.weight")
    assert describe_student(student).resized == resized
    assert f"resized: {resized[0]}" in str(describe_student(student)).splitlines()
    [record] = caplog.records
    assert record.levelno == logging.INFO
    assert f"resized: {resized[1]}" in record.getMessage()


def test_fields_of_the_configuration_are_resized_alike() -> None:
    """`config` is the way to any field, and must not be a way to lose the positions."""
    teacher = vision_teacher("vit")
    one, other = student_from(teacher, image_size=16), student_from(teacher, config={"image_size": 16})
    assert describe_student(one) == describe_student(other)
    assert torch.equal(answer(one, images(16, 16)), answer(other, images(16, 16)))


def test_a_narrower_student_with_other_patches_is_fresh_there() -> None:
    """Of another width nothing of the embeddings fits, resized or not; the note must not say otherwise."""
    student = student_from(toy_vit(), hidden_size=8, patch_size=2, image_size=16, seed=0)
    note = describe_student(student)
    assert note.resized == ()
    assert {"vit.embeddings.position_embeddings", "vit.embeddings.patch_embeddings.projection.weight"} < {*note.fresh}
    assert answer(student, images(16, 16)).isfinite().all()


def test_half_precision_teachers_have_half_precision_students() -> None:
    """What is computed in wider precision must come back in the teacher's."""
    student = student_from(toy_vit().to(torch.bfloat16), patch_size=2)
    assert {parameter.dtype for parameter in student.parameters()} == {torch.bfloat16}


@every_family
def test_teachers_stay_as_they_were(family: str) -> None:
    """Resizing must not write into the teacher, nor leave the student a view of it."""
    teacher = vision_teacher(family)
    before = weights(teacher)
    student = student_from(teacher, image_size=16)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.zero_()
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())


@pytest.mark.parametrize("family", CLASSIFIERS)
def test_a_saved_student_is_an_ordinary_checkpoint(family: str, tmp_path: Path) -> None:
    """Sizes are in the configuration, so whoever loads the student gets the same model without this package."""
    student = student_from(vision_teacher(family), num_layers=1, patch_size=2, image_size=12)
    student.save_pretrained(tmp_path)
    loaded, report = AutoModelForImageClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert (loaded.config.patch_size, loaded.config.image_size) == (2, 12)
    assert torch.equal(answer(loaded, images(12, 12)), answer(student, images(12, 12)))


def test_a_shape_of_two_numbers_is_saved(tmp_path: Path) -> None:
    """JSON knows no pairs; a size that comes back as something else would be another model."""
    student = student_from(toy_vit(), patch_size=(4, 2), image_size=(8, 12))
    student.save_pretrained(tmp_path)
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path)
    assert (loaded.config.patch_size, loaded.config.image_size) == ([4, 2], [8, 12])
    assert (student.config.patch_size, student.config.image_size) == ([4, 2], [8, 12])
    assert torch.equal(answer(loaded, images(8, 12)), answer(student, images(8, 12)))


def test_students_with_other_patches_learn_from_their_teacher(tmp_path: Path) -> None:
    """The point of it all: one batch of images, two patch sizes, and the resized weights move."""
    teacher = toy_vit(layers=3)
    student = student_from(teacher, num_layers=2, patch_size=2)
    before = weights(student)
    run = {"args": arguments(tmp_path), "train_dataset": image_rows(), "data_collator": collate}
    DistillationTrainer(model=student, teacher=teacher, objective="kd", **run).train()
    resized = describe_student(student).resized
    assert len(resized) == 2
    assert not any(torch.equal(student.state_dict()[name], before[name]) for name in resized)
    assert logits(student, image_inputs()).isfinite().all()


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"patch_size": 3}, "8 pixels cannot be cut into patches of 3.*patch_size that fit: 2, 4, 1, 8; .*: 6, 9"),
        ({"image_size": 6}, "6 pixels cannot be cut into patches of 4.*nearest image_size for patches of 4: 4, 8"),
        ({"patch_size": 16}, "8 pixels cannot be cut into patches of 16.*nearest image_size for patches of 16: 16"),
        ({"image_size": (8, 9)}, "9 pixels cannot be cut into patches of 4"),
        ({"patch_size": 0}, "8 pixels cannot be cut into patches of 0"),
        ({"image_size": 0}, "0 pixels cannot be cut into patches of 4"),
        ({"image_size": -8}, "-8 pixels cannot be cut"),
        ({"image_size": 16, "config": {"image_size": 16}}, "which arguments of student_from set"),
    ],
)
def test_sizes_that_cannot_be_are_refused_with_advice(given: dict[str, Any], told: str) -> None:
    """A convolution drops the pixels that do not fill a patch without a word; the message has the sizes that fit."""
    with pytest.raises(ValueError, match=told):
        student_from(toy_vit(), **given)


@pytest.mark.parametrize("size", [4.0, "4", (4, 4, 4), (4.0, 4), ()])
def test_sizes_of_a_wrong_type_are_refused(size: object) -> None:
    """A wrong size is told by its name, not by the convolution that gets it."""
    with pytest.raises(TypeError, match=r"needs patch_size as a number of pixels or as \(rows, columns\), got"):
        student_from(toy_vit(), patch_size=size)


def toy_videomae() -> Model:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    return VideoMAEModel(VideoMAEConfig(image_size=8, patch_size=4, num_frames=2, **sizes))


@pytest.mark.parametrize("make", [toy_bert, toy_videomae])
@pytest.mark.parametrize("given", [{"patch_size": 8}, {"image_size": 16}])
def test_models_without_patches_of_an_image_are_refused(make: Callable[[], Model], given: dict[str, int]) -> None:
    """Text has no patches, and a video's are cut through time, too: a wish that cannot be met is not ignored."""
    with pytest.raises(ValueError, match=f"cannot set {next(iter(given))} of a {type(make()).__name__}"):
        student_from(make(), **given)


@pytest.mark.parametrize("family", [family for family in (*CLASSIFIERS, *ENCODERS) if family not in ANY_SHAPE])
def test_families_that_take_every_grid_for_square_are_refused_others(family: str) -> None:
    """Their code takes the root of the number of patches: positions would be scrambled, or fail in the first pass."""
    for given in ({"image_size": (8, 16)}, {"patch_size": (4, 2)}):
        with pytest.raises(ValueError, match="grid and patches for square"):
            student_from(vision_teacher(family), **given)


def toy_convnext() -> Model:
    return ConvNextForImageClassification(ConvNextConfig(hidden_sizes=[4, 8], depths=[1, 1], num_stages=2))


@pytest.mark.parametrize("make", [toy_swin, toy_resnet, toy_convnext])
@pytest.mark.parametrize("given", [{"num_layers": 1}, {"patch_size": 2}, {"distillation_token": True}])
def test_staged_teachers_are_refused_with_what_to_do(make: Callable[[], Model], given: dict[str, Any]) -> None:
    """Stages differ in width, so no layer can take another's place; a student of one's own is the way."""
    with pytest.raises(ValueError, match=r"stages of different widths .*pass it to DistillationTrainer as model"):
        student_from(make(), **given)


def test_backbones_that_give_out_inner_layers_say_which() -> None:
    """The names of the layers given out mean others in a cut model, so they are not guessed."""
    teacher = vision_teacher("dinov2", layers=4)
    teacher.config.out_features = ["stage2", "stage4"]
    with pytest.raises(ValueError, match=r"gives out the states of \['stage2', 'stage4'\]"):
        student_from(teacher, num_layers=2)
    student = student_from(teacher, num_layers=2, config={"out_features": ["stage1", "stage2"]})
    assert student.config.out_indices == [1, 2]
    assert student_from(teacher).config.out_features == ["stage2", "stage4"]
