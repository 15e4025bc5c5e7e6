"""From the student's width to the teacher's."""

from __future__ import annotations

from torch import Tensor, nn

INITIAL_STD = 0.02  # BERT's, which TinyBERT's projection starts from too


class Projector(nn.Module):
    """A linear map that brings student states to the width of the teacher's, so that the two can be compared.

    r(h) = W h + b, learned with the student and thrown away after training; where the widths agree there is nothing to
    learn and the state passes through untouched. No activation follows: transformer states are signed.

    Romero et al. 2015, FitNets, https://arxiv.org/abs/1412.6550, equation 3 (the regressor); Jiao et al. 2020,
    TinyBERT, https://arxiv.org/abs/1909.10351, equations 8 and 9 (the linear W, initialised as BERT is).

    Runs in the dtype of its own parameters, so float32 parameters lift a half-precision student; under autocast,
    autocast decides.

    Args:
        student_width: D of the student, at least 1.
        teacher_width: D of the teacher, at least 1.
        bias: Whether to learn b.
        force: Learn a map even where the widths agree.

    Raises:
        TypeError: A width is not an integer.
        ValueError: A width is below 1.
    """

    def __init__(self, student_width: int, teacher_width: int, bias: bool = True, force: bool = False) -> None:
        super().__init__()
        for side, width in (("student", student_width), ("teacher", teacher_width)):
            if isinstance(width, bool) or not isinstance(width, int):
                raise TypeError(
                    f"Projector needs the {side}'s width as an integer, got {width!r}. Pass its config's hidden_size."
                )
            if width < 1:
                raise ValueError(
                    f"Projector needs a {side} width of at least 1, got {width}: a state without entries has nothing "
                    "to project. Pass its config's hidden_size."
                )
        self.student_width = student_width
        self.teacher_width = teacher_width
        identity = student_width == teacher_width and not force
        self.linear = None if identity else nn.Linear(student_width, teacher_width, bias=bias)
        self.reset_parameters()

    @property
    def is_identity(self) -> bool:
        """Whether states pass through untouched, without a parameter."""
        return self.linear is None

    def reset_parameters(self) -> None:
        """Draw the weights from normal(0, 0.02) and set the bias to zero."""
        if self.linear is None:
            return
        nn.init.normal_(self.linear.weight, mean=0.0, std=INITIAL_STD)
        if self.linear.bias is not None:
            nn.init.zeros_(self.linear.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """Project student states.

        Args:
            hidden: Student states, (..., D of the student).

        Returns:
            The states in the teacher's space, (..., D of the teacher); `hidden` itself where this is the identity.

        Raises:
            ValueError: The last dimension of `hidden` is not the student's width.
        """
        if hidden.ndim == 0 or hidden.shape[-1] != self.student_width:
            raise ValueError(
                f"Projector expected states of shape (..., {self.student_width}), got {tuple(hidden.shape)}: it was "
                f"built for a student of width {self.student_width} and a teacher of {self.teacher_width}. Pass the "
                "student's states, or build it with the width of the ones you have."
            )
        if self.linear is None:
            return hidden
        projected: Tensor = self.linear(hidden.to(self.linear.weight.dtype))
        return projected

    def extra_repr(self) -> str:
        """What `print` shows of the module."""
        return f"{self.student_width} -> {self.teacher_width}" + (", identity" if self.is_identity else "")
