"""Where a transformers model keeps its layers and attention, and the sizes that losses must agree on.

The only module that may look at a model by attribute names. Paths move between releases, so it goes by what modules do
(they look up transformers' AttentionInterface) and by what configurations declare, never by a hard-coded path.
It does not run a model (see `capture`; for stages it lets `vision_stages` look at shapes), and does not import
transformers.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import nn

from hfdistill.vision_stages import VisionStages, Window, read_stages

AttentionAccess = Literal["interface", "outputs", "none"]
"""How attention can be seen: through the AttentionInterface (any backend), as eager `attentions`, or not at all."""

_QUERY = re.compile(r"(^|\.)(q|query)(_|$)")
_QUERY_KEY_VALUE = re.compile(r"(^|\.)(q|k|v|query|key|value)(_|$)")
_DEPTH = ("num_hidden_layers", "n_layers", "n_layer", "num_layers")
_WIDTH = ("hidden_size", "dim", "n_embd", "d_model")
_HEADS = ("num_attention_heads", "n_heads", "n_head", "encoder_attention_heads")
_INTERMEDIATE = ("intermediate_size", "hidden_dim", "n_inner", "ffn_dim", "d_inner")


@dataclass(frozen=True)
class Anatomy:
    """The sizes of one model that decide which knowledge can flow.

    Args:
        family: transformers' `model_type`, for messages.
        depth: number of layers L; stages, where a model has these (Swin, ConvNeXt, ResNet).
        width: width D of the hidden states; of the last one, where they differ (see `width_of`).
        heads: number of attention heads H, of the last layer; 0 where the family has no attention.
        attention: how attention can be seen.
        vocabulary: size of the input vocabulary; 0 for models without one.
        classes: number of labels K of the head.
        label_names: class index -> name, as in `config.id2label`.
        encoder_decoder: two stacks; one layer number cannot name a layer of both.
        head: the kind of task head, as transformers names its loss ("ForSequenceClassification"); "" where unknown.
        distillation_head: beside the head for the labels stands one for the teacher alone (DeiT), and the answer is
            the mean of both.
        input_names: argument names of `forward`.
        prefix_tokens: tokens of an image model before its first patch (class, distillation, register tokens).
        grid: rows and columns of an image model's patches, of the last layer (see `grid_of`); None for text.
        stages: what differs between the layers of a model with stages; None for all others.
    """

    family: str
    depth: int
    width: int
    heads: int = 0
    attention: AttentionAccess = "none"
    vocabulary: int = 0
    classes: int = 0
    label_names: Mapping[int, str] = field(default_factory=dict)
    encoder_decoder: bool = False
    head: str = ""
    input_names: tuple[str, ...] = ()
    prefix_tokens: int = 0
    grid: tuple[int, int] | None = None
    distillation_head: bool = False
    stages: VisionStages | None = None

    @classmethod
    def of(cls, model: nn.Module) -> Anatomy:
        """Read the anatomy of a transformers model (a PeftModel is read through to its base).

        Raises:
            TypeError: `model` has no transformers configuration.
        """
        base = base_model(model)
        config = getattr(base, "config", None)
        if config is None or not hasattr(config, "model_type"):
            raise TypeError(
                f"expected a transformers model, got {type(model).__name__} without a configuration. Depth, widths "
                "and label names are read from it; pass a PreTrainedModel or a PeftModel."
            )
        text = config.get_text_config() if hasattr(config, "get_text_config") else config
        attention = _attention_access(base, text)
        stages = read_stages(type(base), config, attention != "none") if _has_stages(config) else None
        return cls(
            family=str(config.model_type),
            depth=int(_first(text, _DEPTH, len(getattr(text, "depths", ())))),
            width=int(_first(text, _WIDTH, 0) if stages is None else stages.widths[-1]),
            heads=int(_heads(text)),
            attention=attention,
            vocabulary=int(getattr(text, "vocab_size", 0) or 0),
            classes=int(getattr(config, "num_labels", 0) or 0),
            label_names={int(index): str(name) for index, name in (getattr(config, "id2label", None) or {}).items()},
            encoder_decoder=bool(getattr(config, "is_encoder_decoder", False)),
            head=_head(base),
            distillation_head=type(base).__name__.endswith("WithTeacher"),
            input_names=tuple(inspect.signature(base.forward).parameters),
            prefix_tokens=0 if _has_stages(config) else _prefix_tokens(base),
            grid=_grid(config) if stages is None else stages.grids[-1],
            stages=stages,
        )

    @property
    def class_token(self) -> bool:
        """Whether a first token stands for the whole row; image models may have places alone (Swin, ConvNeXt)."""
        return self.prefix_tokens > 0 or (self.grid is None and "pixel_values" not in self.input_names)

    def width_of(self, layer: int) -> int:
        """Width D of the hidden state of a layer, 0 the embedding output.

        Raises:
            ValueError: the family does not tell.
        """
        width = self.width if self.stages is None else self.stages.widths[layer]
        if width < 1:
            raise ValueError(
                f"how wide the hidden states of {self.family} are is not known: neither its configuration nor a pass "
                "without numbers tells. Use losses on logits with it, which look at no layer."
            )
        return width

    def attended_width(self, layer: int) -> int:
        """Width of a layer's queries over all heads: of the state that it is given."""
        return self.width_of(layer if self.stages is None else layer - 1)

    def grid_of(self, layer: int) -> tuple[int, int] | None:
        """Rows and columns of the places of a layer, 0 the embedding output; None for text."""
        return self.grid if self.stages is None else self.stages.grids[layer]

    def heads_of(self, layer: int) -> int:
        """Attention heads of a layer, 1 the first."""
        return self.stages.heads[layer - 1] if self.stages is not None and self.stages.heads else self.heads

    def window_of(self, layer: int) -> Window | None:
        """Which places attend to each other in a layer, 1 the first; None for text."""
        if self.stages is not None and self.stages.windows:
            return self.stages.windows[layer - 1]
        return None if self.grid is None else Window(1, math.prod(self.grid))

    def attention_calls(self, layer: int) -> int:
        """How often attention was called when a layer, 1 the first, is done: once a layer, or once a stage's block."""
        return self.stages.calls[layer - 1] if self.stages is not None and self.stages.calls else layer


def base_model(model: nn.Module) -> nn.Module:
    """The transformers model inside a PeftModel, or the model itself."""
    get_base_model = getattr(model, "get_base_model", None)
    if callable(get_base_model) and hasattr(model, "peft_config"):
        inner = get_base_model()
        if isinstance(inner, nn.Module):
            return inner
    return model


def attention_modules(model: nn.Module) -> list[nn.Module]:
    """The modules that look up transformers' AttentionInterface when they run, in the order of definition.

    One module may be called several times in a pass (ALBERT), so a position in this list is not a layer number.
    """
    return [module for module in model.modules() if _uses_attention_interface(type(module))]


def eager_attention(module: nn.Module) -> Callable[..., Any]:
    """The eager function that an attention module falls back to; each modelling file defines its own.

    Args:
        module: one of `attention_modules`.
    """
    forward = inspect.unwrap(type(module).forward)
    # through the function itself, since a class derived at run time (FSDP2) carries the name of another module
    name = next(name for name in forward.__code__.co_names if name.endswith("eager_attention_forward"))
    function: Callable[..., Any] = forward.__globals__[name]
    return function


def encoder_layers(model: nn.Module) -> nn.ModuleList:
    """The list of a model's layers: the largest ModuleList of equal modules as long as the configured depth.

    Raises:
        ValueError: no such list, as for ALBERT, whose layers are one shared module.
    """
    base = base_model(model)
    depth = Anatomy.of(base).depth
    lists = [
        module
        for module in base.modules()
        if isinstance(module, nn.ModuleList) and len(module) == depth and len({type(item) for item in module}) == 1
    ]
    if not lists:
        raise ValueError(
            f"no list of {depth} equal layers was found in {type(base).__name__}. Its layers may be one shared module "
            "(ALBERT), or of several kinds; choose layers by their outputs (hidden_states) instead."
        )
    return max(lists, key=lambda layers: sum(parameter.numel() for parameter in layers.parameters()))


def depth_groups(model: nn.Module) -> list[list[nn.Module]]:
    """A model's modules by depth: embeddings, each layer, and what stands after the layers (final norm, pooler, head).

    Together they hold every parameter once. A module that holds the list of layers is looked into.

    Raises:
        ValueError: no list of layers was found; see `encoder_layers`.
    """
    layers = encoder_layers(model)
    before: list[nn.Module] = []
    after: list[nn.Module] = []
    passed = _around(base_model(model), layers, before, after)
    if not passed:
        raise ValueError(f"the layers of {type(model).__name__} are not among its own modules: this is a bug.")
    return [before, *([layer] for layer in layers), after]


def _around(module: nn.Module, layers: nn.ModuleList, before: list[nn.Module], after: list[nn.Module]) -> bool:
    """Sort the children of `module` by whether they stand before or after `layers`; False if these are not inside."""
    passed = False
    for child in module.children():
        if child is layers:
            passed = True
        elif any(inner is layers for inner in child.modules()):
            passed = _around(child, layers, before, after)
        else:
            (after if passed else before).append(child)
    return passed


def output_projections(layer: nn.Module) -> dict[str, nn.Linear]:
    """The linear modules of one layer that write into its residual stream: the outputs of attention and of the MLP.

    They are those as wide as the layer that are not named after queries, keys or values; name -> module, in order.
    """
    linear = {name: module for name, module in layer.named_modules() if isinstance(module, nn.Linear)}
    width = min((module.out_features for name, module in linear.items() if _QUERY.search(name)), default=0)
    return {
        name: module
        for name, module in linear.items()
        if module.out_features == width and not _QUERY_KEY_VALUE.search(name)
    }


def first_layer(model: nn.Module) -> nn.Module:
    """The module whose first input is the embedding output.

    Raises:
        ValueError: neither a list of layers nor a shared layer was found.
    """
    base = base_model(model)
    if getattr(base, "config", None) is not None and getattr(base.config, "model_type", "") == "albert":
        groups = [m for name, m in base.named_modules() if name.endswith("albert_layer_groups")]
        if groups and isinstance(groups[0], nn.ModuleList):
            return groups[0][0]
    return encoder_layers(base)[0]


def dropout_fields(config: Any) -> list[str]:
    """Names of the configuration's dropout shares (hidden_dropout_prob, attention_dropout, ...) that are set."""
    return [name for name, value in vars(config).items() if "dropout" in name and isinstance(value, int | float)]


def _head(model: nn.Module) -> str:
    name = type(model).__name__
    if name.endswith("LMHeadModel"):  # GPT-2's and its kin's names do not say that they predict the next token
        return "ForCausalLM"
    return str(getattr(model, "loss_type", None) or "")


def _prefix_tokens(model: nn.Module) -> int:
    names = ("cls_token", "distillation_token", "register_tokens")
    found = {name.rpartition(".")[2]: parameter for name, parameter in model.named_parameters()}
    return sum(found[name].shape[1] for name in names if name in found and found[name].dim() == 3)


def _has_stages(config: Any) -> bool:
    return isinstance(getattr(config, "depths", None), list | tuple)


def _grid(config: Any) -> tuple[int, int] | None:
    image, patch = getattr(config, "image_size", None), getattr(config, "patch_size", None)
    if image is None or patch is None or _has_stages(config):
        return None
    images, patches = (tuple(size) if isinstance(size, list | tuple) else (size, size) for size in (image, patch))
    return int(images[0]) // int(patches[0]), int(images[1]) // int(patches[1])


def _first(config: Any, names: tuple[str, ...], default: int) -> Any:
    values = (getattr(config, name, None) for name in names)
    return next((value for value in values if isinstance(value, int) and value > 0), default)


def _heads(config: Any) -> int:
    for name in (*_HEADS, "num_heads"):
        value = getattr(config, name, None)
        if isinstance(value, int):
            return value
        if isinstance(value, list | tuple) and value:  # one count per stage (Swin)
            return int(value[-1])
    return 0


def _uses_attention_interface(kind: type) -> bool:
    forward = inspect.unwrap(kind.forward) if hasattr(kind, "forward") else None
    code = getattr(forward, "__code__", None)
    return code is not None and "ALL_ATTENTION_FUNCTIONS" in code.co_names


def _attention_access(model: nn.Module, config: Any) -> AttentionAccess:
    if attention_modules(model):
        return "interface"
    heads = _heads(config)
    names = {type(module).__name__ for module in model.modules()}
    if heads and any("Attention" in name for name in names):
        return "outputs"
    return "none"


def size_fields(config: Any) -> Mapping[str, str]:
    """What a family's configuration calls its sizes.

    Args:
        config: a transformers configuration of one stack of layers.

    Returns:
        "depth", "width", "heads" and "intermediate" (the width inside the MLP) -> the name of the field; a size that
        the configuration does not hold, such as the MLP's width where it is always 4 D, is left out.
    """
    names = {"depth": _DEPTH, "width": _WIDTH, "heads": (*_HEADS, "num_heads"), "intermediate": _INTERMEDIATE}
    held = config.to_dict()
    found = {size: next((name for name in known if name in held), "") for size, known in names.items()}
    return {size: name for size, name in found.items() if name}


def plain_settings(module: nn.Module) -> dict[str, bool | int | float | str | None]:
    """The plain values that a module holds beside its weights: attention kind, number of heads, scale, epsilon.

    Left out are dropout and stochastic-depth rates and the numbers that a layer has as its own index: two layers that
    agree in what is returned and in their weights compute the same in evaluation.
    """
    skipped = ("drop", "idx", "index", "layer_id", "layer_number", "training")
    return {
        name: value
        for name, value in vars(module).items()
        if isinstance(value, bool | int | float | str | None)
        and not name.startswith("_")
        and not any(word in name for word in skipped)
    }
