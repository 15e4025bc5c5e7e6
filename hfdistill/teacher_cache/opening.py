"""Whether a run may use a teacher's cache, and which part of it is this teacher's."""

from __future__ import annotations

from dataclasses import asdict
from hashlib import blake2b
from typing import Any

from hfdistill.arguments import DistillationSettings
from hfdistill.objective import Objective
from hfdistill.shared_base import SharedBaseTeacher
from hfdistill.teacher_cache.cache import TeacherCache
from hfdistill.teacher_cache.entries import Entries
from hfdistill.teacher_cache.keys import teacher_key
from hfdistill.teacher_cache.store import Layout, Store
from hfdistill.teacher_cache.teacher import CachedTeacher
from hfdistill.teachers import FrozenTeacher, Teacher


def settled_cache(
    settings: DistillationSettings,
    teacher: Teacher | None,
    objective: Objective,
    label_name: str,
    conversion: object = None,
    precision: str = "no",
    sharded: bool = False,
) -> TeacherCache | None:
    """The cache that a run asks for; None where it asks for none, or nothing of a teacher is learnt.

    Args:
        settings: say where it lies, and how precisely it is kept.
        teacher: settled.
        objective: bound.
        label_name: what labels are called.
        conversion: of the student's images into the teacher's, or None.
        precision: of autocast, in which the teacher answers.
        sharded: whether the teacher's weights are spread over the processes.

    Raises:
        ValueError: what the teacher shows cannot be kept, or not be used again.
        OSError: the folder cannot be used; see Store.open.
    """
    wanted = settings.teacher_cache is not None or isinstance(teacher, CachedTeacher)
    if teacher is None or not wanted or not objective.needs()[1]:
        return None
    _check_rows_stay(settings)
    entries = Entries(objective.cached_needs(), teacher.anatomy)
    if isinstance(teacher, CachedTeacher):
        if settings.teacher_cache:
            raise ValueError(
                f"teacher_cache={settings.teacher_cache!r} keeps what a teacher's model shows, and this teacher is "
                f"itself what was kept ({teacher.folder}). Leave teacher_cache out."
            )
        return TeacherCache(teacher.opened(entries), [entries], None, label_name)
    if not isinstance(teacher, FrozenTeacher):
        raise ValueError(
            f"teacher_cache keeps what a model shows under the digest of its weights, and a {type(teacher).__name__} "
            "tells none: another one's answers could be taken for its own. Pass the teacher as a model, or leave "
            "teacher_cache out."
        )
    _check_cuttable(teacher, sharded)
    label_map = None if teacher.label_map is None else teacher.label_map.tolist()
    own = teacher.base_parameters() if isinstance(teacher, SharedBaseTeacher) else None
    key = run_key(teacher_key(teacher.model, label_map, own), conversion, precision)
    about: dict[str, Any] = {"anatomy": asdict(teacher.anatomy), "label_map": label_map, "precision": precision}
    dtype: Any = settings.teacher_cache_dtype
    layout = Layout(entries.kinds, dtype)
    store = Store.open(str(settings.teacher_cache), key, layout, about)
    return TeacherCache(store, [entries], objective.needs()[1], label_name)


def run_key(teacher: str, conversion: object, precision: str) -> str:
    """The key under which a run keeps what its teacher shows: of the teacher, as this run lets it see and answer.

    Args:
        teacher: its own key.
        conversion: what stands between the rows, of which their keys are, and the teacher.
        precision: of autocast.
    """
    if conversion is None and precision == "no":
        return teacher
    return blake2b(f"{teacher} {conversion!r} {precision}".encode(), digest_size=len(teacher) // 2).hexdigest()


def _check_rows_stay(settings: DistillationSettings) -> None:
    """Refuse rows that are never seen twice."""
    mixed = "mixup_alpha or cutmix_alpha" if settings.image_mixing is not None else "uncertainty_mixup"
    if settings.image_mixing is not None or settings.uncertainty_mixup is not None:
        raise ValueError(
            f"{mixed} mixes each row with another at random, so that the teacher never sees a row twice, and what was "
            "kept of it would be of another one. Leave it off, or learn from a live teacher, without a cache."
        )


def _check_cuttable(teacher: FrozenTeacher, sharded: bool) -> None:
    if teacher.anatomy.encoder_decoder:
        raise ValueError(
            f"{teacher.anatomy.family} has an encoder and a decoder with tokens of their own, and one mask does not "
            "say which of what it shows is padding. Leave teacher_cache out with it."
        )
    if sharded:
        raise ValueError(
            "the teacher's weights are spread over the processes, which must all ask it at once, and with a cache "
            "each asks for its own missing rows only: they would wait for each other forever. Fill the cache by a "
            "run without FSDP or ZeRO-3 (fill_cache), and train with teacher=CachedTeacher(folder); or set "
            "teacher_placement='replicated'."
        )
