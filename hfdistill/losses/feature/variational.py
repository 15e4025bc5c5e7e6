"""Variational information distillation: the student predicts the teacher's states (Ahn et al. 2019)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from hfdistill.anatomy import Anatomy
from hfdistill.functional.variational import initial_scale, variational_information
from hfdistill.losses.layerwise import Layers, LayerwiseLoss, pair_widths
from hfdistill.losses.method import Method, Paper
from hfdistill.representations import Batch, Representations
from hfdistill.schedules import Schedule


class VariationalLoss(LayerwiseLoss):
    """Keep the information that a student's layer has about the teacher's: predict it, with a variance per channel.

    L = sum over pairs of mean_tokens mean_D of ((g(h_s) - h_t)^2 / v + log v) / 2, with g a network of three linear
    maps without bias and ReLU between them, and v = softplus(a) + 1e-5 learnt for each channel, 5 at the start. It is
    a negative log-likelihood without its constant, so it falls below 0 where v < 1 and the prediction is good.

    Ahn et al. 2019, Variational Information Distillation for Knowledge Transfer, https://arxiv.org/abs/1904.05835;
    g and the start are those of RepDistiller's code.

    Shapes: hidden states (B, N, D_student) and (B, N, D_teacher); of images the patches only.

    Weight decay: the Trainer decays g, and leaves v alone, because its parameter has "bias" in its name
    (`get_decay_parameter_names`); an optimizer of your own must leave it alone too.

    Args:
        layers: which student layer learns from which teacher layer.
        variance: v at the start, above 1e-5.
        weight: see DistillationLoss.

    Raises:
        ValueError: a variance of at most 1e-5; a layer map that does not fit the two depths.
    """

    projects: ClassVar[bool] = False  # g is its projector, also where the widths agree
    places: ClassVar[bool] = True
    method: ClassVar[Method | None] = Method(
        papers=(
            Paper(
                "Ahn et al.",
                2019,
                "Variational Information Distillation for Knowledge Transfer",
                "https://arxiv.org/abs/1904.05835",
            ),
        ),
        evidence=("vid", "vid/init_scale"),
        restrictions=("the same places on both sides", "its value may be below 0"),
    )

    def __init__(
        self,
        layers: Layers = "uniform(embeddings=False)",
        variance: float = 5.0,
        weight: float | Schedule = 1.0,
    ) -> None:
        super().__init__(layers, weight=weight)
        self.scale = initial_scale(variance)
        self.predictors = nn.ModuleList()

    def bind(self, student: Anatomy, teacher: Anatomy) -> None:
        """Resolve the layer map and build a predictor for each pair."""
        super().bind(student, teacher)
        wanted = pair_widths(self.pairs, student, teacher)
        if [predictor.widths for predictor in self._built()] != wanted:
            self.predictors = nn.ModuleList(_Predictor(*widths, self.scale) for widths in wanted)

    def forward(self, student: Representations, teacher: Representations, batch: Batch) -> Tensor:
        """Sum over the mapped layers."""
        values = []
        for position, (predictor, (ours, theirs)) in enumerate(zip(self._built(), self.pairs, strict=True)):
            states = student.hidden_states[ours], teacher.hidden_states[theirs]
            state, target, mask = self.aligned(position, *states, batch.mask)
            values.append(variational_information(predictor(state), target, predictor.variance_bias, mask))
        return torch.stack(values).sum()

    def compare(self, student: Tensor, teacher: Tensor, mask: Tensor | None) -> Tensor:
        """One pair of layers at the variance of the start, the student's states predicted already."""
        return variational_information(student, teacher, student.new_full(student.shape[-1:], self.scale), mask)

    def _built(self) -> list[_Predictor]:
        return [module for module in self.predictors if isinstance(module, _Predictor)]


class _Predictor(nn.Module):
    """The mean g(h) of the teacher's states, and their variance as one unconstrained number per channel."""

    def __init__(self, student_width: int, teacher_width: int, scale: float) -> None:
        super().__init__()
        self.widths = (student_width, teacher_width)
        self.mean = nn.Sequential(
            nn.Linear(student_width, teacher_width, bias=False),
            nn.ReLU(),
            nn.Linear(teacher_width, teacher_width, bias=False),
            nn.ReLU(),
            nn.Linear(teacher_width, teacher_width, bias=False),
        )
        # "bias" in its name keeps it out of weight decay, by the Trainer's rule: decay pulls variances to softplus(0)
        self.variance_bias = nn.Parameter(torch.full((teacher_width,), scale))

    def forward(self, hidden: Tensor) -> Tensor:
        """Predict (B, N, D_teacher) from (B, N, D_student), in the precision of the parameters."""
        predicted: Tensor = self.mean(hidden.to(self.variance_bias.dtype))
        return predicted
