"""A teacher's forward pass, ended as soon as everything that was asked for has been shown.

A loss on layer 6 of 12 needs neither layers 7 to 12 nor the head, and one on the attention of the last layer nothing
after its queries, keys and values. A pass is ended from within, by an exception that leaves the model's forward, so
the layers that run are given what they are always given, and compute the same to the last bit.

How a family hands its states from layer to layer is not taken on trust: the first pass for each need runs to its end,
and what was noted on the way is held against what the model returned. Only where both are equal are later passes cut.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hfdistill.anatomy import Anatomy, base_model, encoder_layers, first_layer
from hfdistill.capture import Capture
from hfdistill.distributed.sharding import is_sharded
from hfdistill.representations import Needs, Representations

End = Literal["layer", "body", "answer"]
"""Where a pass ends: with the layer that shows the last of what is needed, before the head, or with its answer."""


class TeacherPass:
    """The passes of one frozen model.

    Args:
        model: a PreTrainedModel, or a PeftModel around one; its weights and its mode are the caller's business.
        anatomy: the model's.
    """

    def __init__(self, model: nn.Module, anatomy: Anatomy) -> None:
        self.model = model
        self.anatomy = anatomy
        self._ends: dict[Needs, End] = {}
        # decoders would copy the keys and values of all their layers, for a next token that nobody asks for
        self._settings = {"use_cache": False} if "use_cache" in anatomy.input_names else {}

    def show(self, inputs: Mapping[str, Any], needs: Needs) -> Representations:
        """What `needs` asks for of one batch; call it under `torch.no_grad`.

        Args:
            inputs: keyword arguments of the model's forward.
            needs: what to show.

        Raises:
            ValueError: the model cannot show it; see Capture.
        """
        inputs = {**inputs, **self._settings}
        end = "answer" if self._compiled else self._ends.get(needs)
        if end is None:
            shown, self._ends[needs] = self._tried(inputs, needs)
        else:
            cut = None if end == "answer" else self._cut(inputs, needs, end)
            shown = self._whole(inputs, needs) if cut is None else cut
        if not _answered(needs):  # nor in a whole pass: what is shown must not depend on where a pass ended
            shown.logits = shown.class_logits = shown.distillation_logits = shown.loss = None
        return shown

    @property
    def _compiled(self) -> bool:
        return vars(self.model).get("_compiled_call_impl") is not None

    def _tried(self, inputs: Mapping[str, Any], needs: Needs) -> tuple[Representations, End]:
        """A pass to its end, and where the next one may end."""
        if _answered(needs) or not can_end_early(self.model, self.anatomy):
            return self._whole(inputs, needs), "answer"
        with Capture(self.model, needs, self.anatomy) as view, _Watch(self.model, needs) as watch:
            output = self.model(**view.given(inputs))
        shown = view.representations(output)
        own_attention = bool(needs.attention_layers) and self.anatomy.attention == "outputs"
        if not own_attention:
            states = {layer: view.as_tokens(layer, state) for layer, state in watch.states.items()}
            if _equal(states, shown.hidden_states):
                return shown, "layer"
        if isinstance(watch.output, Mapping) and _answers_alike(watch.output, output, view.arguments):
            return shown, "body"
        return shown, "answer"

    def _whole(self, inputs: Mapping[str, Any], needs: Needs) -> Representations:
        with Capture(self.model, needs, self.anatomy) as view:
            output = self.model(**view.given(inputs))
        return view.representations(output)

    def _cut(self, inputs: Mapping[str, Any], needs: Needs, end: End) -> Representations | None:
        """A pass that ends early; None where, against all that the first one showed, it did not get there."""
        watch = _Watch(self.model, needs, end)
        with Capture(self.model, needs, self.anatomy, watch.attention_shown) as view, watch:
            try:
                self.model(**(view.given(inputs) if end == "body" else inputs))
            except _PassEnded:
                pass
            else:
                return None
        if end == "body":
            return view.representations(watch.output)
        return Representations(
            hidden_states={layer: view.as_tokens(layer, state) for layer, state in watch.states.items()},
            attentions=view.noted_attentions(),
        )


def can_end_early(model: nn.Module, anatomy: Anatomy) -> bool:
    """Whether a pass of this model may be left in the middle, so that nothing waits for its end.

    Shards of FSDP2 and ZeRO-3, and weights that Accelerate brings to the device for a call, are put away when a module
    is done; a compiled module cannot be left; and of two stacks (T5) the second begins when the first is through.

    Args:
        model: the model.
        anatomy: its own.
    """
    hooked = any("_hf_hook" in vars(module) for module in model.modules())
    compiled = any(vars(module).get("_compiled_call_impl") is not None for module in model.modules())
    return not (anatomy.encoder_decoder or hooked or compiled or is_sharded(model))


class _PassEnded(BaseException):
    """Leaves a forward pass; no Exception, which a model's own code might take for a failure of its own."""


class _Watch:
    """Notes what the layers and the head are given in one pass, and ends it where this is asked for."""

    def __init__(self, model: nn.Module, needs: Needs, end: End | None = None) -> None:
        self.states: dict[int, Tensor] = {}
        self.output: Any = None
        self._model = model
        self._wanted = needs.hidden_states
        self._end = end
        self._calls = 0
        self._attention_missing = bool(needs.attention_layers)
        self._handles: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> _Watch:
        inner: Any = base_model(self._model)
        if self._wanted and self._end != "body":
            for layer in _layers(inner):
                self._handles.append(layer.register_forward_pre_hook(self._before_layer, with_kwargs=True))
        if inner.base_model is not inner and self._end != "layer":
            self._handles.append(inner.base_model.register_forward_hook(self._after_body))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()

    def attention_shown(self) -> None:
        """Take note that the attention of all wanted layers was seen."""
        self._attention_missing = False
        self._end_where_all_is_shown()

    def _before_layer(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        number, self._calls = self._calls, self._calls + 1  # a layer is given the state of the number before its own
        if number not in self._wanted:
            return
        state = args[0] if args else kwargs.get("hidden_states")
        if isinstance(state, Tensor):
            # while it is tried, a copy: a layer that changes its input in place would change what is compared
            self.states[number] = state.clone() if self._end is None else state
        self._end_where_all_is_shown()

    def _after_body(self, body: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self.output = output
        if self._end == "body":
            raise _PassEnded

    def _end_where_all_is_shown(self) -> None:
        if self._end == "layer" and not self._attention_missing and len(self.states) == len(self._wanted):
            raise _PassEnded


def _answered(needs: Needs) -> bool:
    """Whether something of the head is needed."""
    return needs.logits or needs.output_head or bool(needs.top_classes)


def _layers(model: nn.Module) -> list[nn.Module]:
    """The modules that are called once for each layer; one alone where it is shared (ALBERT), none where not found."""
    try:
        return list(encoder_layers(model))
    except ValueError:
        try:
            return [first_layer(model)]
        except ValueError:
            return []


def _equal(ours: Mapping[int, Tensor], theirs: Mapping[int, Tensor]) -> bool:
    """Whether both hold the same layers with the same bits."""
    return ours.keys() == theirs.keys() and all(_same(state, theirs[layer]) for layer, state in ours.items())


def _same(ours: Tensor, theirs: Tensor) -> bool:
    return ours.shape == theirs.shape and torch.allclose(ours, theirs, rtol=0.0, atol=0.0, equal_nan=True)


def _answers_alike(body: Mapping[str, Any], whole: Mapping[str, Any], arguments: Mapping[str, Any]) -> bool:
    """Whether the model without its head returns the same states and attention maps as the whole model."""
    for name in (argument.removeprefix("output_") for argument in arguments):
        ours, theirs = body.get(name) or (), whole.get(name) or ()
        if len(ours) != len(theirs) or any(one is not other for one, other in zip(ours, theirs, strict=True)):
            return False
    return True
