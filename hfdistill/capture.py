"""Run a model once and show the losses what they need, and nothing else.

Hidden states come from transformers' own selection (`output_hidden_states=[i, j]`). Attention comes from the
AttentionInterface: for the time of one forward pass the attention modules look up a function that notes queries, keys,
values and mask of the wanted layers and then calls the backend the user chose, so every layer still runs what it ran.
Layers are told apart by the order of their calls, which is right for shared layers (ALBERT) too; of a stage with
several blocks (Swin) the last one counts. Maps of convolutional models are shown as tokens. Families outside the
interface (DeBERTa) show eager probabilities through `output_attentions=True`; note that transformers gives these after
dropout when the model is in training mode.

This module does not compare anything, and does not know what a teacher is.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from functools import partial
from types import TracebackType
from typing import Any

from torch import Tensor, nn

from hfdistill.anatomy import Anatomy, attention_modules, base_model, eager_attention
from hfdistill.attention_inputs import read_attention
from hfdistill.output_head import OutputHeadView
from hfdistill.representations import Attention, Needs, Representations

_IMPLEMENTATION = "hfdistill_capture"
_NOT_REBUILT = ("softcap", "s_aux", "sinks", "indices", "block_indices", "cu_seq_lens_q")
"""Arguments of attention functions that shape the distribution in ways which queries, keys and mask do not show."""


class Capture:
    """One forward pass under observation.

    Use it as a context manager, call the model inside with `arguments` added, and read the output::

        with Capture(model, Needs(logits=True, hidden_states=frozenset({0, 3}))) as view:
            output = model(**inputs, **view.arguments)
        representations = view.representations(output)

    Args:
        model: a PreTrainedModel, or a PeftModel around one.
        needs: what to show.
        anatomy: the model's anatomy where it is already known.
        at_last: called as soon as the attention of all wanted layers is noted; it may raise to end the pass.

    Raises:
        ValueError: attention is needed of a model that cannot show it; the message says what it can show.
    """

    def __init__(
        self,
        model: nn.Module,
        needs: Needs,
        anatomy: Anatomy | None = None,
        at_last: Callable[[], None] | None = None,
    ) -> None:
        self.model = model
        self.needs = needs
        self.anatomy = Anatomy.of(model) if anatomy is None else anatomy
        check_attention(self.anatomy, needs, model)
        calls = {self.anatomy.attention_calls(layer): layer for layer in needs.attention_layers}
        self._recorder = _Recorder(calls, at_last)
        self._unmarked: list[tuple[nn.Module, Any]] = []
        self._head = OutputHeadView(model, whole=needs.logits) if needs.output_head else None

    @property
    def arguments(self) -> dict[str, Any]:
        """Keyword arguments that the forward call must be given."""
        arguments: dict[str, Any] = {}
        if self.needs.hidden_states:
            arguments["output_hidden_states"] = sorted(self.needs.hidden_states)
        if self.needs.attention_layers and self.anatomy.attention == "outputs":
            arguments["output_attentions"] = True
        return arguments

    def given(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """All that the forward call is given: `arguments`, and the inputs without labels where no logits are made."""
        kept = {name: value for name, value in inputs.items() if name != "labels" or not self._without_logits}
        return {**kept, **self.arguments}

    def __enter__(self) -> Capture:
        if self._head is not None:
            self._head.__enter__()
        if self.needs.hidden_states:
            _install_recording(base_model(self.model))
        if self.needs.attention_layers and self.anatomy.attention == "interface":
            _register()
            marked: dict[int, Any] = {}  # one marked copy per configuration object
            for module in attention_modules(self.model):
                config: Any = module.config
                if id(config) not in marked:
                    marked[id(config)] = _MarkedConfig.mark(config, self._recorder)
                self._unmarked.append((module, config))
                module.config = marked[id(config)]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for module, config in self._unmarked:
            module.config = config
        self._unmarked.clear()
        if self._head is not None:
            self._head.__exit__(kind, error, traceback)

    def representations(self, output: Mapping[str, Any]) -> Representations:
        """What `output` and the recorder show.

        Raises:
            ValueError: the model returned something else than it was asked for.
        """
        if not isinstance(output, Mapping):
            raise ValueError(
                f"expected a ModelOutput, got {type(output).__name__}. Losses read logits and states by name; load "
                "the model with return_dict=True (the default of transformers 5)."
            )
        return Representations(
            logits=None if self._without_logits else output.get("logits"),
            class_logits=output.get("cls_logits"),
            distillation_logits=output.get("distillation_logits"),
            hidden_states=self._hidden_states(output),
            attentions=self._attentions(output),
            loss=output.get("loss"),
            output_head=None if self._head is None else self._head.shown(),
        )

    def plain(self, output: Any) -> Any:
        """`output` without what only the losses asked for, and without logits of no tokens."""
        added = {"output_hidden_states": "hidden_states", "output_attentions": "attentions"}
        surplus = {added[name] for name in self.arguments} | ({"logits"} if self._without_logits else set())
        if not surplus:
            return output
        surplus.add("reshaped_hidden_states")  # Swin's second form of the same states
        return type(output)(**{key: value for key, value in output.items() if key not in surplus})

    @property
    def _without_logits(self) -> bool:
        return self.needs.output_head and not self.needs.logits

    def _hidden_states(self, output: Mapping[str, Any]) -> dict[int, Tensor]:
        states: dict[int, Tensor] = {}
        given = output.get("hidden_states") or () if self.needs.hidden_states else ()
        for layer in self.needs.hidden_states:
            state = given[layer] if layer < len(given) else None
            if state is None:
                raise ValueError(
                    f"hidden state {layer} of {self.anatomy.family} was asked for, but the model returned "
                    f"{len(given)} hidden states without it. Its layers may be counted differently from its "
                    f"configuration ({self.anatomy.depth}); choose other layers, or a loss on logits."
                )
            states[layer] = self.as_tokens(layer, state)
        return states

    def as_tokens(self, layer: int, state: Tensor) -> Tensor:
        """A map (B, C, rows, columns) as the states of its places, (B, N, C), row by row."""
        if state.dim() != 4:
            return state
        rows, columns = state.shape[2:]
        side = math.isqrt(rows * columns)
        if rows != columns and side * side == rows * columns and self.anatomy.grid_of(layer) != (rows, columns):
            raise ValueError(
                f"{self.anatomy.family} made a map of {rows} x {columns} places of these images, which as "
                f"{rows * columns} tokens cannot be told from one of {side} x {side}, and places would be mistaken. "
                "Give it square images, or those of its configuration's image_size."
            )
        return state.flatten(2).transpose(1, 2)  # (B, C, rows, columns) -> (B, rows * columns, C)

    def _attentions(self, output: Mapping[str, Any]) -> dict[int, Attention]:
        layers = self.needs.attention_layers
        if not layers:
            return {}
        if self.anatomy.attention == "outputs":
            given = output.get("attentions") or ()
            if len(given) != self.anatomy.depth:
                raise ValueError(
                    f"{self.anatomy.family} returned {len(given)} attention maps for {self.anatomy.depth} layers. It "
                    "shows attention only under eager attention: load it with attn_implementation='eager'."
                )
            return {layer: Attention(given_probabilities=given[layer - 1]) for layer in layers}
        if self._recorder.calls != self.anatomy.attention_calls(self.anatomy.depth):
            raise ValueError(
                f"{self.anatomy.family} called its attention {self._recorder.calls} times for {self.anatomy.depth} "
                "layers, so layers cannot be told apart. Attention knowledge is not available for this family; use "
                "hidden states or logits."
            )
        return self.noted_attentions()

    def noted_attentions(self) -> dict[int, Attention]:
        """The attention that was noted on the way; of a pass that went to its end ask `representations`."""
        return {layer: attention() for layer, attention in self._recorder.noted.items()}


def capture(model: nn.Module, inputs: Mapping[str, Any], needs: Needs) -> tuple[Any, Representations]:
    """Run `model` on `inputs` once: its ordinary output, and what `needs` asked for.

    Args:
        model: a PreTrainedModel or a PeftModel.
        inputs: keyword arguments of its forward.
        needs: what to show.

    Raises:
        ValueError: the model cannot show it.
    """
    with Capture(model, needs) as view:
        output = model(**view.given(inputs))
    representations = view.representations(output)  # first: it refuses what is no ModelOutput
    return view.plain(output), representations


def check_attention(anatomy: Anatomy, needs: Needs, model: nn.Module | None = None) -> None:
    """Refuse attention knowledge that a family cannot show.

    Raises:
        ValueError: with what the family can show instead.
    """
    if not needs.attention_layers:
        return
    advice = "Use losses on hidden states, relations or logits with it."
    implementation = None if model is None else _implementation(base_model(model))
    if anatomy.attention == "none":
        raise ValueError(f"{anatomy.family} has no attention that could be compared. {advice}")
    if anatomy.encoder_decoder:
        raise ValueError(
            f"{anatomy.family} has an encoder and a decoder, whose attention layers one number cannot name. {advice}"
        )
    if anatomy.attention == "outputs":
        if needs.projections:
            raise ValueError(
                f"{anatomy.family} shows attention probabilities only, not raw scores or queries, keys and values "
                "(it does not go through transformers' AttentionInterface). Use AttentionMapLoss with "
                f"target='probabilities', or: {advice}"
            )
        if implementation not in ("eager", None):
            raise ValueError(
                f"{anatomy.family} shows attention only under eager attention, but runs {implementation!r}. Load it "
                "with attn_implementation='eager'."
            )
    if implementation == "flex_attention":
        raise ValueError(
            f"{anatomy.family} runs flex_attention, whose mask is a program and not a tensor, so attention cannot be "
            "rebuilt from it. Load it with attn_implementation='sdpa'."
        )
    outside = sorted(layer for layer in needs.attention_layers if not 1 <= layer <= anatomy.depth)
    if outside:
        raise ValueError(
            f"attention of layers {outside} was asked for, but {anatomy.family} has layers 1 to {anatomy.depth}. "
            "Layer 0 is the embedding output, which has hidden states but no attention. Choose other layers."
        )


def _implementation(model: nn.Module) -> str | None:
    config: Any = model.config
    name: str | None = config._attn_implementation
    return name


class _MarkedConfig:
    """Makes the copies of a configuration that send attention modules to the recorder."""

    @staticmethod
    def mark(config: Any, recorder: _Recorder) -> Any:
        marked = copy.copy(config)
        marked.hfdistill_recorder = recorder
        # inside another capture of the same model the backend is the one that the outer capture delegates to
        marked.hfdistill_base = vars(config).get("hfdistill_base", config._attn_implementation)
        marked._attn_implementation_internal = _IMPLEMENTATION  # the setter would reach into sub-configurations
        return marked


class _Recorder:
    """Counts attention calls and keeps what the wanted ones were given, by the layer that each belongs to."""

    def __init__(self, wanted: Mapping[int, int], at_last: Callable[[], None] | None = None) -> None:
        self.wanted = wanted  # number of a call -> layer
        self.at_last = at_last
        self.calls = 0
        self.noted: dict[int, Callable[[], Attention]] = {}

    def record(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, kwargs: dict[str, Any]
    ) -> None:
        self.calls += 1
        layer = self.wanted.get(self.calls)
        if layer is None:
            return
        refused = [name for name in _NOT_REBUILT if kwargs.get(name) is not None]
        if refused:
            raise ValueError(
                f"{type(module).__name__} shapes its attention by {refused}, which scores rebuilt from queries and "
                "keys would miss. Use losses on hidden states or logits with this family."
            )
        # made after the pass: what was computed here would be missing where a checkpointed layer is computed again
        eager = module.config.hfdistill_base == "eager"  # type: ignore[union-attr]
        self.noted[layer] = partial(read_attention, module, query, key, value, mask, kwargs, eager)
        if self.at_last is not None and len(self.noted) == len(self.wanted):
            self.at_last()


def _record_and_delegate(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    config: Any = module.config
    config.hfdistill_recorder.record(module, query, key, value, attention_mask, kwargs)
    eager = config.hfdistill_base == "eager"
    backend = eager_attention(module) if eager else ALL_ATTENTION_FUNCTIONS[config.hfdistill_base]
    result: tuple[Tensor, Tensor | None] = backend(module, query, key, value, attention_mask, **kwargs)
    return result


def _install_recording(model: Any) -> None:
    """Let transformers hang its recording of states on the layers now: a compiled pass would be broken by it."""
    from transformers.utils.output_capturing import maybe_install_capturing_hooks

    # once: it would hang the recording on a part that has it already a second time, and each layer would count twice
    if not any("_output_capturing_hooks_installed" in vars(module) for module in model.modules()):
        maybe_install_capturing_hooks(model)


def _register() -> None:
    from transformers import AttentionInterface

    AttentionInterface.register(_IMPLEMENTATION, _record_and_delegate)
