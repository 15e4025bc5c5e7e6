"""A teacher too small to call one: a tiny network trained on synthetic data (Liu et al. 2020)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from hfdistill.anatomy import Anatomy
from hfdistill.functional.reductions import product, softened
from hfdistill.functional.response import soft_target_kl
from hfdistill.functional.supervision import deception, discrimination
from hfdistill.losses.logits import SoftenedLogitLoss, Targets
from hfdistill.losses.method import Method, Paper
from hfdistill.representations import Batch, Needs, Representations
from hfdistill.schedules import Schedule

_POINT, _INNER = 32, 64  # widths of a synthetic point, and inside the virtual teacher
_SPREAD = 1.0  # of the classes' centres around 0, in units of the noise around each: far apart in 32 dimensions
_STEPS, _ROWS, _RATE = 100, 512, 1e-2  # of the virtual teacher's training
_CRITIC = 128  # width inside the discriminator


class VirtualTeacher(nn.Module):
    """A two-layer network that has learnt to tell Gaussian blobs apart, one per class, and its answers to them.

    The same seed gives the same teacher, wherever the global generator is, which stays there. Kept are its last layer
    and, for each class, the inner activations of synthetic points that it gets right: buffers, so it is saved with
    the objective, moves with it, and is never trained again.

    Args:
        classes: K.
        items: M, points kept per class.
        seed: of the blobs and the training.

    Raises:
        ValueError: the network gets every point of a class wrong.
    """

    inner: Tensor
    readout: Tensor
    bias: Tensor

    def __init__(self, classes: int, items: int, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.default_generator.manual_seed(seed)  # not torch.manual_seed, which would seed accelerators too
            centres = _SPREAD * torch.randn(classes, _POINT)  # (K, d)
            first, last = nn.Linear(_POINT, _INNER), nn.Linear(_INNER, classes)
            optimizer = torch.optim.Adam([*first.parameters(), *last.parameters()], lr=_RATE)
            for _ in range(_STEPS):
                labels = torch.randint(classes, (_ROWS,))
                points = centres[labels] + torch.randn(_ROWS, _POINT)
                optimizer.zero_grad()
                torch.autograd.backward(F.cross_entropy(last(first(points).relu()), labels))
                optimizer.step()
            with torch.no_grad():
                kept = [self._right(first, last, centres[label], label, items) for label in range(classes)]
        self.register_buffer("inner", torch.stack(kept))  # (K, M, h)
        self.register_buffer("readout", last.weight.detach())  # (K, h)
        self.register_buffer("bias", last.bias.detach())  # (K,)

    def forward(self, labels: Tensor) -> Tensor:
        """Logits (..., K) for a random point of each row's class; labels: (...), any logits where negative."""
        drawn = torch.randint(self.inner.shape[1], labels.shape, device=labels.device)
        return product(self.inner[labels.clamp(min=0), drawn], self.readout.T) + self.bias

    @staticmethod
    def _right(first: nn.Linear, last: nn.Linear, centre: Tensor, label: int, items: int) -> Tensor:
        """Inner activations of `items` points that the network takes for what they are, (M, h)."""
        inner: Tensor = first(centre + torch.randn(4 * items, _POINT)).relu()
        inner = inner[last(inner).argmax(-1) == label]
        if not len(inner):
            raise ValueError(
                f"the virtual teacher gets every synthetic point of class {label} wrong, so it has nothing to teach "
                "about it. Use another seed, or fewer classes."
            )
        return inner[torch.arange(items) % len(inner)]


class LightweightTeacherLoss(SoftenedLogitLoss):
    """Soft targets without a teacher model: from a tiny network that knows synthetic data of as many classes.

    L = T^2 mean_rows KL(softmax(q / T) || softmax(student / T)), q the virtual teacher's logits for a random synthetic
    point of the row's label, one that it gets right. In effect a label smoothing that varies from row to row. With
    `adversarial` a discriminator D learns to tell the softened q from the softened student, and the student to pass:
    L + adversarial_weight mean_rows -log D(student) for the student, and mean_rows [-log D(q) - log(1 - D(student))]
    for D, whose gradients do not mix.

    Liu et al. 2020, Learning from a Lightweight Teacher for Efficient Knowledge Distillation,
    https://arxiv.org/abs/2005.09163. Read in the abstract only: the form of both parts, D (K -> 128 -> 1), which is
    trained with the student's optimizer, and the blobs, where the paper has a LeNet on synthesised images, are ours.

    Shapes: student logits (B, K) or (B, N, K); labels without K. Nothing of a teacher is read.

    Args:
        temperature: T > 0, or a Schedule.
        items: synthetic points per class; 1 gives each class one fixed target.
        seed: of the virtual teacher.
        adversarial: train a discriminator too.
        adversarial_weight: of the student's part in it.
        weight: see DistillationLoss.

    Raises:
        ValueError: T <= 0, no items, fewer than 2 classes, a language model, a batch without labels.
        TypeError: `temperature` is neither a number nor a Schedule.
    """

    method = Method(
        papers=(
            Paper(
                "Liu et al.",
                2020,
                "Learning from a Lightweight Teacher for Efficient Knowledge Distillation",
                "https://arxiv.org/abs/2005.09163",
            ),
        ),
        evidence=("tests/losses/test_supervision_losses.py: with one item it is KD with a fixed target per class",),
        restrictions=("needs class labels", "no language models: their classes are a vocabulary"),
        unverified="form of the loss, discriminator, synthetic data and weights: only the abstract was read",
    )
    labelled: ClassVar[bool] = True
    same_classes: ClassVar[bool] = False

    def __init__(
        self,
        temperature: float | Schedule = 4.0,
        items: int = 32,
        seed: int = 0,
        adversarial: bool = False,
        adversarial_weight: float = 1.0,
        weight: float | Schedule = 1.0,
    ) -> None:
        super().__init__(temperature, weight)
        if items < 1:
            raise ValueError(f"items must be at least 1, got {items}: the targets of a class are answers to them.")
        self.items = items
        self.seed = seed
        self.adversarial = adversarial
        self.adversarial_weight = adversarial_weight
        self.virtual: VirtualTeacher | None = None
        self.discriminator = nn.Sequential()

    def bind(self, student: Anatomy, teacher: Anatomy) -> None:
        """Train the virtual teacher for the student's number of classes, in a second or less."""
        super().bind(student, teacher)
        if student.classes < 2 or (self.token_level and student.head != "ForTokenClassification"):
            raise ValueError(
                f"LightweightTeacherLoss needs a classifier, got {student.family} with the head "
                f"{student.head or 'of an unknown kind'} and {student.classes} classes. Its teacher invents data for "
                "each class; for language models use SoftTargetLoss with a teacher."
            )
        if self.virtual is not None and len(self.virtual.bias) == student.classes:
            return
        self.virtual = VirtualTeacher(student.classes, self.items, self.seed)
        if self.adversarial:
            self.discriminator = nn.Sequential(nn.Linear(student.classes, _CRITIC), nn.ReLU(), nn.Linear(_CRITIC, 1))

    def needs(self) -> tuple[Needs, Needs]:
        """The student's logits, nothing of the teacher."""
        return Needs(logits=True), Needs()

    def forward(self, student: Representations, teacher: Representations, batch: Batch) -> Tensor:
        """The student's logits against the virtual teacher's."""
        return super().forward(student, student, batch)  # there is no teacher whose logits could be checked

    def compare(self, student: Tensor, teacher: Tensor, targets: Targets) -> Tensor:
        """The divergence from the virtual teacher's logits, and the adversarial parts."""
        if targets.labels is None or self.virtual is None:  # forward has refused the one, bind made the other
            raise ValueError("LightweightTeacherLoss reads the class labels, and must be bound to a student first.")
        temperature = self.temperature(targets.progress)
        shut_out = student == -torch.inf  # what the student can never give must not be asked for
        virtual = self.virtual(targets.labels).masked_fill(shut_out, -torch.inf)
        value = soft_target_kl(student, virtual, temperature, targets.mask)
        return value + self._adversary(student, virtual, temperature, targets.mask) if self.adversarial else value

    def _adversary(self, student: Tensor, virtual: Tensor, temperature: float, mask: Tensor | None) -> Tensor:
        soft_student, soft_virtual, valid = softened(student, virtual, temperature, mask)
        ours, theirs = soft_student.softmax(-1), soft_virtual.softmax(-1)
        fixed = {name: parameter.detach() for name, parameter in self.discriminator.named_parameters()}
        passed: Tensor = functional_call(self.discriminator, fixed, (ours,))  # (..., 1)
        own = discrimination(self._scores(theirs), self._scores(ours.detach()), valid)
        return self.adversarial_weight * deception(passed.squeeze(-1), valid) + own

    def _scores(self, probabilities: Tensor) -> Tensor:
        scores: Tensor = self.discriminator(probabilities).squeeze(-1)  # (...)
        return scores
