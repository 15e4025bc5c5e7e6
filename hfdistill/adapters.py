"""Students that learn by an adapter of PEFT: wrapped, and held to what distillation can do with them.

Of all that PEFT can put around a model only two things are looked at here: what would not be trained although it was
asked for, and what of an adapted model cannot be compared with another model. The base below the adapter as a teacher
is `shared_base`'s.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Mapping
from functools import wraps
from typing import Any

from torch import nn

from hfdistill.anatomy import Anatomy, base_model
from hfdistill.keywords import check_keywords, nearest
from hfdistill.representations import Needs

logger = logging.getLogger(__name__)

_ROW_HEADS = ("ForSequenceClassification", "ForImageClassification", "ForMultipleChoice")
_TASK_HEADS = (*_ROW_HEADS, "ForTokenClassification", "ForQuestionAnswering")
_KEYS_ONLY = ("PREFIX_TUNING", "CARTRIDGE")
"""Their virtual tokens are keys and values, without places of their own among the hidden states."""


def adapted(model: nn.Module | None, peft_config: Any) -> Any:
    """A student wrapped by PEFT: the base is frozen, the adapter learns.

    The model itself is changed: it becomes the base inside the PeftModel that is returned.

    Args:
        model: a model without an adapter; None stays None.
        peft_config: any PeftConfig, which is not changed, or a mapping with its `peft_type` and fields; with None the
            model stays as it is.

    Raises:
        ImportError: PEFT is not installed.
        TypeError: `peft_config` is neither, or a field of it is of another type.
        ValueError: the model has an adapter already; the configuration has an unknown field, names modules that are
            not there, or trains nothing.
    """
    if model is None or peft_config is None:
        return model
    try:
        import peft
        from peft.tuners.tuners_utils import BaseTunerLayer
    except ImportError as error:
        raise ImportError(
            "peft_config needs PEFT, which is not installed. Install it: pip install 'hfdistill[peft]'."
        ) from error
    config = copy.deepcopy(_configuration(peft_config))  # PEFT writes into it, and model_init uses it again
    if base_model(model) is not model or any(isinstance(part, BaseTunerLayer) for part in model.modules()):
        raise ValueError(
            f"expected a student without an adapter, got a {type(model).__name__} that PEFT has wrapped already, and "
            "peft_config besides: one adapter would sit on the other. Leave peft_config out, or pass the base."
        )
    if config.inference_mode:
        raise ValueError(
            "peft_config has inference_mode=True, with which PEFT freezes the adapter too: nothing of the student "
            "would learn. Set inference_mode=False."
        )
    _check_modules(model, config)
    with warnings.catch_warnings():  # PEFT asks transformers under an old name; no user can change that
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
        try:
            return peft.get_peft_model(model, config)
        except (KeyError, ValueError) as error:
            told = f"no task_type {config.task_type!r}" if isinstance(error, KeyError) else str(error)
            raise ValueError(
                f"PEFT cannot put {config.peft_type.value} on {type(model).__name__} as peft_config says: {told}. "
                f"target_modules may name {', '.join(_linear(model))}; task_type what it answers (SEQ_CLS, TOKEN_CLS)."
            ) from error


def adapting(arguments: Mapping[str, Any], peft_config: Any) -> dict[str, Any]:
    """Arguments of a Trainer in which the students of a `model_init` are wrapped by PEFT; see `adapted`.

    Args:
        arguments: of a Trainer.
        peft_config: see `adapted`.
    """
    make = arguments.get("model_init")
    if make is None or peft_config is None:
        return dict(arguments)

    @wraps(make)  # the Trainer looks at the signature: with a trial, or without
    def adapted_init(*trial: Any) -> Any:
        return adapted(make(*trial), peft_config)

    return {**arguments, "model_init": adapted_init}


def check_adapter(model: nn.Module | None, needs: Needs, role: str) -> None:
    """Refuse to compare what an adapter moves to other places, and warn of what does not learn.

    Args:
        model: student or teacher, or None where it is no model; without an adapter all is well.
        needs: what the losses must see of it.
        role: "student" or "teacher".

    Raises:
        ValueError: virtual tokens stand before the text in what is to be compared.
    """
    wrapped: Any = model
    if model is None or base_model(model) is model:
        return
    config, anatomy = wrapped.active_peft_config, Anatomy.of(model)
    kind = config.peft_type.value
    if config.is_prompt_learning:
        states = bool(needs.hidden_states) or ((needs.logits or needs.output_head) and anatomy.head not in _ROW_HEADS)
        if needs.attention_layers or (states and kind not in _KEYS_ONLY):
            raise ValueError(
                f"the {role}'s adapter ({kind}) puts {config.num_virtual_tokens} virtual tokens before the text, so "
                f"that its {'attention' if needs.attention_layers else 'hidden states and answers per token'} and the "
                "other model's belong to different places. Learn from logits of whole rows (SoftTargetLoss), "
                "or use an adapter inside the layers (LoRA)."
            )
    if role == "student" and kind == "ADALORA":
        logger.warning(
            "AdaLoRA adds its orthogonality term to the loss that the model returns, which the objective does not "
            "use, and moves its ranks only where model.base_model.update_and_allocate(step) is called after each "
            "step: it learns as a LoRA of rank %s here. Use LoRA.",
            config.init_r,
        )
    if role == "student" and anatomy.head in _TASK_HEADS:
        _warn_of_new_head(base_model(model))


def looks_new(head: Mapping[str, nn.Parameter]) -> str:
    """What speaks for it that nobody has trained a head; "" where something speaks against it.

    Args:
        head: its parameters by name.
    """
    biases = {name: own for name, own in head.items() if name.endswith("bias")}
    new = bool(biases) and all(own.numel() > 0 and not own.any() for own in biases.values())
    return f"{next(iter(biases))} is exactly 0, as new ones are" if new else ""


def head_parameters(base: Any) -> dict[str, nn.Parameter]:
    """What stands beside the body of a transformers model, by name.

    Args:
        base: a PreTrainedModel.
    """
    return {name: own for name, own in base.named_parameters() if not name.startswith(f"{base.base_model_prefix}.")}


def _warn_of_new_head(base: nn.Module) -> None:
    head = head_parameters(base)
    if any(own.requires_grad for own in head.values()):
        return
    told = looks_new(head)
    if head and not any(name.endswith("bias") for name in head):
        told = f"whether {next(iter(head))} was ever trained cannot be told"
    if told:
        logger.warning(
            "the student's head is frozen, and %s: a new one would answer at random to the end. Unless it was trained "
            "before, let it learn: task_type='SEQ_CLS', or modules_to_save=[%r], in the adapter's configuration.",
            told,
            next(iter(head)).partition(".")[0],
        )


def _configuration(peft_config: Any) -> Any:
    from peft import PeftConfig
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    if isinstance(peft_config, PeftConfig) and peft_config.peft_type is not None:
        return peft_config
    if not isinstance(peft_config, Mapping):
        raise TypeError(
            "peft_config must be the configuration of one of PEFT's methods (peft.LoraConfig(...)), or a mapping with "
            f"its peft_type and fields, got {type(peft_config).__name__}. It says what of the student learns."
        )
    fields, kinds = dict(peft_config), {str(kind.value): own for kind, own in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    name = str(fields.pop("peft_type", "")).upper()
    if name not in kinds:
        close = ", ".join(nearest(name, kinds)[:6])
        raise ValueError(f"peft_config needs a peft_type that PEFT has, got {name!r}. Nearest: {close}.")
    check_keywords(f"peft_config ({name})", kinds[name], fields)
    return kinds[name](**fields)


def _check_modules(model: nn.Module, config: Any) -> None:
    """One name that matches is enough for PEFT; a misspelt one beside it would be left out without a word."""
    held = [name for name, _ in model.named_modules()]
    for field in ("target_modules", "modules_to_save"):
        names = vars(config).get(field) or ()
        for name in () if isinstance(names, str) else names:
            if not any(module == name or module.endswith(f".{name}") for module in held):
                known = {module.rpartition(".")[2] for module in held}
                close = ", ".join(nearest(name, sorted(part for part in known if part and not part.isdigit()))[:6])
                raise ValueError(
                    f"peft_config names {name!r} among its {field}, but {type(model).__name__} has no module of that "
                    f"name, so it would not learn. Nearest of those it has: {close}."
                )


def _linear(model: nn.Module) -> list[str]:
    return sorted({name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, nn.Linear)})
