"""The watch over the teacher's numbers: what stops a run, what passes, and what the message says."""

from __future__ import annotations

import pytest
import torch
from toy_representations import toy_scene

from hfdistill.representations import Attention, Representations
from hfdistill.teacher_watch import TeacherWatch


def shown() -> Representations:
    """A teacher's representations, sound."""
    return toy_scene().teacher


def test_sound_numbers_pass() -> None:
    """Including -inf, which is how classes are switched off."""
    watch, teacher = TeacherWatch(), shown()
    assert teacher.logits is not None
    teacher.logits[0, 1] = -torch.inf
    for step in range(3):
        watch.look(teacher, step)
    watch.look(Representations(), 3)
    watch.check()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_broken_logits_stop_with_step_key_and_rows(bad: float) -> None:
    """What a user needs to find the input."""
    watch, teacher = TeacherWatch(), shown()
    assert teacher.logits is not None
    teacher.logits[1:, 0] = bad
    watch.look(shown(), 6)
    with pytest.raises(
        ValueError,
        match=r"logits held NaN or inf in the batch of step 7 \(rows: 1, 2\).*float16.*teacher_dtype",
    ):
        watch.look(teacher, 7)


def test_broken_hidden_states_name_their_layer() -> None:
    """The layer at which a float16 teacher overflows."""
    watch, teacher = TeacherWatch(), shown()
    teacher.hidden_states[3][0, 1, 2] = torch.nan
    with pytest.raises(ValueError, match=r"the teacher's hidden_states\[3\] held NaN or inf.*\(rows: 0\)"):
        watch.look(teacher, 0)


@pytest.mark.parametrize("name", ["query", "key", "value", "given_probabilities"])
def test_broken_attention_is_seen_too(name: str) -> None:
    """MiniLM looks at nothing else."""
    bad = torch.zeros(2, 1, 3, 3)
    bad[1, 0, 2, 1] = torch.nan
    teacher = Representations(attentions={2: Attention(**{name: bad})})
    with pytest.raises(ValueError, match=rf"the teacher's attentions\[2\].{name} held NaN or inf.*\(rows: 1\)"):
        TeacherWatch().look(teacher, 0)


def test_on_an_accelerator_looking_reads_nothing() -> None:
    """No step may wait for the device. The meta device has no values: reading one raises."""
    TeacherWatch().look(Representations(torch.zeros(2, 3, device="meta")), 4)


def test_the_first_bad_step_is_told_when_the_trainer_logs(monkeypatch: pytest.MonkeyPatch) -> None:
    """On an accelerator the finding waits; later steps must not hide where it began."""
    watch = TeacherWatch()
    with monkeypatch.context() as patched:
        patched.setattr(watch, "check", lambda shown: None)  # a CPU that, like an accelerator, does not look at once
        for step, number in enumerate((0.0, torch.nan, torch.inf)):
            watch.look(Representations(torch.full((2, 3), number)), step)
    with pytest.raises(ValueError, match=r"in the batch of step 1 \(rows: see that batch\)"):
        watch.check()
    watch.check()


@pytest.mark.gpu
def test_a_cuda_teacher_is_checked_when_asked() -> None:
    """The real device: `look` notes, `check` tells."""
    watch = TeacherWatch()
    watch.look(Representations(torch.full((2, 3), torch.nan, device="cuda")), 5)
    with pytest.raises(ValueError, match="step 5"):
        watch.check()


def test_who_goes_on_starts_anew() -> None:
    """An error that was caught must not be raised again for a sound batch."""
    watch, teacher = TeacherWatch(), shown()
    assert teacher.logits is not None
    teacher.logits[0] = torch.nan
    with pytest.raises(ValueError, match="step 3"):
        watch.look(teacher, 3)
    watch.look(shown(), 4)
