"""Tiny transformers models from configurations, for all tests: no hub, no files, a few thousand random parameters.

One function per family; a model comes seeded, without dropout and in evaluation mode. Beside the sizes each takes
entries of its configuration, `attn_implementation`, `seed` (of the weights, 0) and `head` (the end of the class name,
"ForSequenceClassification"). `FAMILIES` lists the families whose hidden states and attention can be captured, each
with a maker of inputs. Nothing here is trained.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
import transformers
from peft import LoraConfig, PeftModel
from torch import Tensor
from transformers import PreTrainedModel

PAD = 1
"""Padding token of every toy text model; token ids from 5 on are free."""

Inputs = dict[str, Tensor]


def text_inputs(rows: int = 3, tokens: int = 9, vocabulary: int = 64, shorter: int = 2, seed: int = 0) -> Inputs:
    """Random token ids padded on the right: the first row is full, each next one is `shorter` tokens shorter."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.tensor([max(1, tokens - shorter * row) for row in range(rows)])
    mask = torch.arange(tokens) < lengths[:, None]  # (B, N)
    ids = torch.randint(5, vocabulary, (rows, tokens), generator=generator)
    return {"input_ids": ids.masked_fill(~mask, PAD), "attention_mask": mask.long()}


def image_inputs(rows: int = 3, size: int = 8, seed: int = 0) -> Inputs:
    """Random images with three channels."""
    return {"pixel_values": torch.randn(rows, 3, size, size, generator=torch.Generator().manual_seed(seed))}


def toy_bert(
    layers: int = 2, width: int = 16, heads: int = 2, vocabulary: int = 64, classes: int = 3, **config: Any
) -> PreTrainedModel:
    """BERT."""
    return _text("Bert", layers, width, heads, vocabulary, classes, config)


def toy_roberta(
    layers: int = 2, width: int = 16, heads: int = 2, vocabulary: int = 64, classes: int = 3, **config: Any
) -> PreTrainedModel:
    """RoBERTa."""
    return _text("Roberta", layers, width, heads, vocabulary, classes, config)


def toy_electra(
    layers: int = 2, width: int = 16, heads: int = 2, vocabulary: int = 64, classes: int = 3, **config: Any
) -> PreTrainedModel:
    """ELECTRA, with embeddings narrower than the layers."""
    return _text("Electra", layers, width, heads, vocabulary, classes, {"embedding_size": width // 2} | config)


def toy_albert(
    layers: int = 2, width: int = 16, heads: int = 2, vocabulary: int = 64, classes: int = 3, **config: Any
) -> PreTrainedModel:
    """ALBERT: one layer, called `layers` times; its embeddings are narrower."""
    narrow = {"embedding_size": width // 2, "classifier_dropout_prob": 0.0}
    return _text("Albert", layers, width, heads, vocabulary, classes, narrow | config)


def toy_mobilebert(
    layers: int = 2, width: int = 16, heads: int = 2, vocabulary: int = 64, classes: int = 3, **config: Any
) -> PreTrainedModel:
    """MobileBERT: each layer works at half the width of what it takes and gives."""
    half = width // 2
    config = {"embedding_size": half, "true_hidden_size": half, "intra_bottleneck_size": half} | config
    return _text("MobileBert", layers, width, heads, vocabulary, classes, config)


def toy_deberta(
    layers: int = 2, width: int = 16, heads: int = 2, vocabulary: int = 64, classes: int = 3, **config: Any
) -> PreTrainedModel:
    """DeBERTa-v2 with the relative positions of v3."""
    relative = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 4}
    config = relative | {"share_att_key": True, "norm_rel_ebd": "layer_norm", "pooler_dropout": 0.0} | config
    return _text("DebertaV2", layers, width, heads, vocabulary, classes, config)


def toy_distilbert(
    layers: int = 2, width: int = 16, heads: int = 2, vocabulary: int = 64, classes: int = 3, **config: Any
) -> PreTrainedModel:
    """DistilBERT."""
    sizes = {"dim": width, "n_layers": layers, "n_heads": heads, "hidden_dim": 2 * width}
    dropout = {"dropout": 0.0, "attention_dropout": 0.0, "seq_classif_dropout": 0.0}
    return _build("DistilBert", classes, sizes | dropout | _tokens(vocabulary) | config)


def toy_modernbert(
    layers: int = 2, width: int = 16, heads: int = 2, vocabulary: int = 64, classes: int = 3, **config: Any
) -> PreTrainedModel:
    """ModernBERT; layers alternate between global attention and a window of two tokens to each side."""
    window = {"local_attention": 4, "global_attn_every_n_layers": 2}
    special = {"bos_token_id": 2, "cls_token_id": 2, "eos_token_id": 3, "sep_token_id": 3}
    return _text("ModernBert", layers, width, heads, vocabulary, classes, window | special | config)


def toy_gpt2(
    layers: int = 2, width: int = 16, heads: int = 2, vocabulary: int = 64, classes: int = 3, **config: Any
) -> PreTrainedModel:
    """GPT-2."""
    sizes = {"n_embd": width, "n_layer": layers, "n_head": heads, "n_positions": 64}
    dropout = {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0, "summary_first_dropout": 0.0}
    special = {"bos_token_id": None, "eos_token_id": None}
    return _build("GPT2", classes, sizes | dropout | special | _tokens(vocabulary) | config)


def toy_llama(
    layers: int = 2, width: int = 16, heads: int = 4, vocabulary: int = 64, classes: int = 3, **config: Any
) -> PreTrainedModel:
    """Llama, where every two heads share their keys and values."""
    return _text("Llama", layers, width, heads, vocabulary, classes, {"num_key_value_heads": heads // 2} | config)


def toy_qwen2(
    layers: int = 2, width: int = 16, heads: int = 4, vocabulary: int = 64, classes: int = 3, **config: Any
) -> PreTrainedModel:
    """Qwen2 with grouped keys; its last layer looks back over a window of four tokens."""
    window = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": layers - 1}
    config = {"num_key_value_heads": heads // 2} | window | config
    return _text("Qwen2", layers, width, heads, vocabulary, classes, config)


def toy_vit(layers: int = 2, width: int = 16, heads: int = 2, classes: int = 3, **config: Any) -> PreTrainedModel:
    """ViT on images of 8 by 8 pixels."""
    return _image("ViT", layers, width, heads, classes, config)


def toy_deit(layers: int = 2, width: int = 16, heads: int = 2, classes: int = 3, **config: Any) -> PreTrainedModel:
    """DeiT on images of 8 by 8 pixels, with its distillation token."""
    return _image("DeiT", layers, width, heads, classes, config)


def toy_deit_with_teacher(**config: Any) -> PreTrainedModel:
    """DeiT with a head for the labels and one for the teacher, whose answer is the mean of both."""
    return toy_deit(head="ForImageClassificationWithTeacher", **config)


def toy_swin(classes: int = 3, **config: Any) -> PreTrainedModel:
    """Swin of three stages with two blocks each, on images of 8 by 8 pixels; states 8, 16, 32 and 32 wide."""
    sizes = {"embed_dim": 8, "depths": [2, 2, 2], "num_heads": [1, 2, 4], "window_size": 2}
    pixels = {"image_size": 8, "patch_size": 1, "drop_path_rate": 0.0, "head": "ForImageClassification"}
    return _build("Swin", classes, sizes | pixels | config)


def toy_convnext(classes: int = 3, **config: Any) -> PreTrainedModel:
    """ConvNeXt of three stages on images of 8 by 8 pixels; states 8, 8, 16 and 24 wide."""
    sizes = {"hidden_sizes": [8, 16, 24], "depths": [1, 2, 1], "num_stages": 3, "layer_scale_init_value": 1.0}
    pixels = {"image_size": 8, "patch_size": 1, "head": "ForImageClassification"}
    return _build("ConvNext", classes, sizes | pixels | config)


def toy_resnet(classes: int = 3, **config: Any) -> PreTrainedModel:
    """ResNet of three stages, of no image size: no attention at all; states 8, 12, 16 and 24 wide."""
    sizes = {"embedding_size": 8, "hidden_sizes": [12, 16, 24], "depths": [1, 2, 1], "layer_type": "basic"}
    return _build("ResNet", classes, sizes | {"head": "ForImageClassification"} | config)


def toy_t5(layers: int = 2, width: int = 16, heads: int = 2, vocabulary: int = 64, **config: Any) -> PreTrainedModel:
    """T5: an encoder and a decoder."""
    sizes = {"d_model": width, "num_layers": layers, "num_heads": heads, "d_kv": width // heads, "d_ff": 2 * width}
    special = {"decoder_start_token_id": 2, "dropout_rate": 0.0, "head": "ForConditionalGeneration"}
    return _build("T5", 2, sizes | special | _tokens(vocabulary) | config)


def toy_falcon(layers: int = 2, width: int = 16, heads: int = 2, classes: int = 3, **config: Any) -> PreTrainedModel:
    """Falcon: SDPA and eager code of its own, outside transformers' AttentionInterface."""
    return _text("Falcon", layers, width, heads, 64, classes, {"bos_token_id": 2, "eos_token_id": 3} | config)


def toy_gemma2(layers: int = 2, width: int = 16, heads: int = 2, classes: int = 3, **config: Any) -> PreTrainedModel:
    """Gemma 2, which bends its attention scores by tanh."""
    config = {"num_key_value_heads": heads, "head_dim": width // heads} | config
    return _text("Gemma2", layers, width, heads, 64, classes, config)


def with_lora(model: PreTrainedModel, targets: list[str]) -> PeftModel:
    """`model` wrapped by PEFT, with LoRA adapters that do something (PEFT starts them at zero)."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
        wrapped = PeftModel(model, LoraConfig(target_modules=targets, r=2))  # type: ignore[arg-type]
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.1)
    return wrapped


FAMILIES: dict[str, tuple[Callable[..., PreTrainedModel], Callable[..., Inputs]]] = {
    "bert": (toy_bert, text_inputs),
    "roberta": (toy_roberta, text_inputs),
    "distilbert": (toy_distilbert, text_inputs),
    "electra": (toy_electra, text_inputs),
    "albert": (toy_albert, text_inputs),
    "mobilebert": (toy_mobilebert, text_inputs),
    "modernbert": (toy_modernbert, text_inputs),
    "deberta-v2": (toy_deberta, text_inputs),
    "gpt2": (toy_gpt2, text_inputs),
    "llama": (toy_llama, text_inputs),
    "qwen2": (toy_qwen2, text_inputs),
    "vit": (toy_vit, image_inputs),
    "deit": (toy_deit, image_inputs),
}
"""transformers' `model_type` -> (factory of a model, maker of its inputs)."""

STAGES: dict[str, Callable[..., PreTrainedModel]] = {
    "swin": toy_swin,
    "convnext": toy_convnext,
    "resnet": toy_resnet,
}
"""transformers' `model_type` -> factory of an image model with stages."""


def _text(
    family: str, layers: int, width: int, heads: int, vocabulary: int, classes: int, config: dict[str, Any]
) -> PreTrainedModel:
    positions = {"max_position_embeddings": 64}
    return _build(family, classes, _encoder(layers, width, heads) | positions | _tokens(vocabulary) | config)


def _image(family: str, layers: int, width: int, heads: int, classes: int, config: dict[str, Any]) -> PreTrainedModel:
    pixels = {"image_size": 8, "patch_size": 4, "head": "ForImageClassification"}
    return _build(family, classes, _encoder(layers, width, heads) | pixels | config)


def _encoder(layers: int, width: int, heads: int) -> dict[str, Any]:
    sizes = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads}
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return sizes | dropout | {"intermediate_size": 2 * width}


def _tokens(vocabulary: int) -> dict[str, Any]:
    return {"vocab_size": vocabulary, "pad_token_id": PAD}


def _build(family: str, classes: int, config: dict[str, Any]) -> PreTrainedModel:
    head = config.pop("head", "ForSequenceClassification")
    seed = config.pop("seed", 0)
    # the usual 0.02 makes all attention uniform at these widths, and wrong maps would pass for right ones
    settings = {"initializer_range": 0.2, "num_labels": classes} | config
    configuration = getattr(transformers, f"{family}Config")(**settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: PreTrainedModel = getattr(transformers, family + head)(configuration)
        for parameter in model.parameters():
            if not parameter.any():  # biases and class tokens start at zero, where errors of theirs do not show
                torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()
