"""Where a teacher may lie is settled before the first step, and refused with what would do."""

from pathlib import Path

import pytest
from toy_models import toy_bert, toy_distilbert, toy_llama, toy_roberta, toy_vit, with_lora
from training_toys import arguments, text_rows, trainer_of

from hfdistill.anatomy import Anatomy
from hfdistill.distributed.placement import layer_classes
from hfdistill.distributed.sharding import is_sharded
from hfdistill.teachers import FrozenTeacher


def test_unknown_placements_are_refused(tmp_path: Path) -> None:
    """A misspelt placement would otherwise be one of the others, without a word."""
    with pytest.raises(ValueError, match="teacher_placement must be one of auto, replicated, sharded, got 'shared'"):
        arguments(tmp_path, teacher_placement="shared")


def test_one_process_shares_out_nothing(tmp_path: Path) -> None:
    """Who asks for shards is short of memory, and would get none of it."""
    with pytest.raises(ValueError, match=r"under FSDP2 or DeepSpeed ZeRO-3.*this one is NO with 1 process\."):
        trainer_of(tmp_path, teacher_placement="sharded")


def test_a_teacher_of_ones_own_places_itself(tmp_path: Path) -> None:
    """What is not a model has no layers to shard, and `prepare` is all that it is told."""

    class Served:
        anatomy = Anatomy.of(toy_bert(layers=4))
        prepared = 0

        def prepare(self, device: object) -> None:
            self.prepared += 1

        def represent(self, inputs: object, needs: object) -> object:
            return FrozenTeacher(toy_bert(layers=4)).represent(inputs, needs)  # type: ignore[arg-type]

    with pytest.raises(ValueError, match="needs a teacher that is a model, got a Served"):
        trainer_of(tmp_path, teacher=Served(), teacher_placement="sharded")
    teacher = Served()
    trainer = trainer_of(tmp_path, teacher=teacher)
    trainer.train()
    assert teacher.prepared == 1
    assert not trainer.placement.sharded


def test_a_teacher_that_is_partitioned_is_refused(tmp_path: Path) -> None:
    """Its parameters are empty outside of DeepSpeed's engine: it would fail in the middle of its first layer."""
    teacher = toy_bert(layers=4)
    vars(next(teacher.parameters()))["ds_numel"] = 1024
    with pytest.raises(ValueError, match=r"the teacher is in shards.*Pass the teacher's name or folder"):
        trainer_of(tmp_path, teacher=teacher)


def test_a_plain_run_holds_the_teacher_whole(tmp_path: Path) -> None:
    """The default is the fastest that works: nothing is sharded where the student isn't."""
    trainer = trainer_of(tmp_path, rows=text_rows(4), max_steps=1)
    trainer.train()
    assert isinstance(trainer.teacher, FrozenTeacher)
    assert not trainer.placement.sharded
    assert not is_sharded(trainer.teacher.model)


@pytest.mark.parametrize(
    ("model", "layers"),
    [
        (toy_bert(), ["BertLayer"]),
        (toy_roberta(), ["RobertaLayer"]),
        (with_lora(toy_bert(), ["query"]), ["BertLayer"]),
        (toy_vit(), ["ViTLayer"]),
        (toy_llama(), ["LlamaDecoderLayer"]),
        (toy_distilbert(), None),
    ],
    ids=lambda value: type(value).__name__,
)
def test_layers_are_sharded_one_by_one(model: object, layers: list[str] | None) -> None:
    """Accelerate shards the input embeddings by themselves, and fails where what holds them is sharded already."""
    found = layer_classes(model)  # type: ignore[arg-type]
    assert found == layers or (layers is None and "Embeddings" not in found)
