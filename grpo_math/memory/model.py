"""The recipe's model with random weights, from its configuration: precision, quantization, adapter, host embeddings."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import bitsandbytes as bnb
import torch
from bitsandbytes.functional import QuantState
from peft import PeftConfig, get_peft_model
from torch._subclasses.fake_tensor import unset_fake_temporarily
from transformers import AutoModelForCausalLM
from transformers.initialization import no_init_weights
from transformers.quantizers import AutoHfQuantizer
from trl import get_quantization_config

from grpo_math import models
from grpo_math.recipe import Recipe
from grpo_math.trainer import host_embeddings


def build_model(recipe: Recipe, config: Any, dtype: torch.dtype, device: torch.device) -> torch.nn.Module:
    """
    A model of the recipe's shape, precision and quantization with random weights.

    Args:
        recipe: It sets quantization, attention and host embeddings.
        config: The model's configuration.
        dtype: Type of the weights that are not quantized.
        device: Where the weights are. Under a `FakeTensorMode` quantized weights are fakes of the same sizes.
    """
    config = type(config).from_dict(config.to_dict())
    if recipe.model.attn_implementation:
        config._attn_implementation = recipe.model.attn_implementation
    quantization = get_quantization_config(recipe.model)
    fake = torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.FAKE) is not None
    if quantization is None or fake:
        with torch.device(device):
            model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    else:  # like a real load, this never holds the whole unquantized model on the card
        with no_init_weights():
            model = AutoModelForCausalLM.from_config(config, dtype=dtype)
        model.tie_weights()
    if recipe.training.embeddings_on_host:
        host_embeddings.embeddings_to_host(model)
    if quantization is not None:
        _quantize(model, quantization, dtype, device, fake)
    return model


def _quantize(model: torch.nn.Module, quantization: Any, dtype: torch.dtype, device: torch.device, fake: bool) -> None:
    quantizer = AutoHfQuantizer.from_config(quantization, pre_quantized=False)
    with unset_fake_temporarily():  # the quantizer chooses the 4-bit layers and makes them on the meta device
        quantizer.preprocess_model(model=model, device_map={"": device}, dtype=dtype)
    for module in model.modules():
        if not isinstance(module, bnb.nn.Linear4bit):
            continue
        shape, like = (module.out_features, module.in_features), module.weight
        if fake:
            module.weight = fake_4bit_weight(shape, dtype, like)
        else:
            values = torch.empty(shape, dtype=dtype, device=device).normal_(std=0.02)
            module.weight = bnb.nn.Params4bit(
                values, compress_statistics=like.compress_statistics, quant_type=like.quant_type, module=module
            ).to(device)
            del values
        module.quant_state = module.weight.quant_state
        if module.bias is not None:
            module.bias = torch.nn.Parameter(torch.zeros(module.out_features, dtype=dtype, device=device))
    models.keep_4bit_trainable(model)
    if not fake:
        _fill_on(model, device)
    model.hf_quantizer = quantizer
    quantizer.postprocess_model(model)


@torch.no_grad()
def _fill_on(model: torch.nn.Module, device: torch.device) -> None:
    """Moves unquantized tensors to the device. Matrices become random, norms one and biases zero."""
    for name, parameter in model.named_parameters():
        if not hasattr(parameter, "quant_state"):
            parameter.data = parameter.data.to(device)
            if parameter.ndim > 1:
                parameter.normal_(std=0.02)
            else:
                parameter.fill_(0.0 if name.endswith("bias") else 1.0)
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(device))
        if isinstance(module, host_embeddings.HostEmbedding):
            module.weight.normal_(std=0.02)


def fake_4bit_weight(shape: tuple[int, int], dtype: torch.dtype, like: Any) -> torch.nn.Parameter:
    """
    A 4-bit weight as bitsandbytes stores it, made of fake tensors, which `Params4bit` cannot wrap.

    A byte holds two weights, and 64 weights share a scale. The scale is a float32, or one byte with double quantization
    (`compress_statistics`), where 256 scales share a float32 (QLoRA, arXiv 2305.14314, section 3). Every layer has code
    tables of its own.

    Args:
        shape: `(out_features, in_features)`.
        dtype: Type that the weight is dequantized to.
        like: The quantizer's own weight on the meta device, with its settings.
    """

    def table(size, dtype=torch.float32):
        return torch.empty(size, dtype=dtype)

    count, blocksize = math.prod(shape), 64
    blocks = math.ceil(count / blocksize)
    nested = like.compress_statistics
    state2 = QuantState(table(math.ceil(blocks / 256)), code=table(256), blocksize=256, dtype=torch.float32)
    weight = torch.nn.Parameter(table((math.ceil(count / 2), 1), torch.uint8), requires_grad=False)
    weight.quant_state = QuantState(
        table(blocks, torch.uint8 if nested else torch.float32),
        shape=torch.Size(shape),
        code=table(16),
        blocksize=blocksize,
        quant_type=like.quant_type,
        dtype=dtype,
        offset=table(()) if nested else None,
        state2=state2 if nested else None,
    )
    weight.compress_statistics, weight.quant_type, weight.bnb_quantized = nested, like.quant_type, True
    weight.blocksize, weight.quant_storage = blocksize, torch.uint8
    return weight


def quantization_tensors(model: torch.nn.Module) -> Iterator[torch.Tensor]:
    """The scales and code tables of a model's 4-bit weights."""
    for parameter in model.parameters():
        state = getattr(parameter, "quant_state", None)
        for part in (state, getattr(state, "state2", None)):
            if part is not None:
                yield from (t for t in (part.absmax, part.code, part.offset) if t is not None)


def add_saved_adapter(model: torch.nn.Module, folder: str) -> torch.nn.Module:
    """The model with a trainable adapter that has the shape of the saved one in `folder`, and random weights."""
    adapter = PeftConfig.from_pretrained(folder)
    adapter.inference_mode = False
    return get_peft_model(model, adapter)


def weights_dtype(recipe: Recipe, config: Any) -> torch.dtype:
    """Type of the unquantized weights; with `dtype: auto` the type that the checkpoint was saved in."""
    name = recipe.model.dtype or "float32"
    if name == "auto":
        name = getattr(config, "dtype", None) or "float32"
    return name if isinstance(name, torch.dtype) else getattr(torch, name)


def base_model(model: torch.nn.Module) -> torch.nn.Module:
    """The model without its adapter."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def vocabulary_size(model: torch.nn.Module) -> int:
    """Rows of the model's token embedding, as its configuration states them."""
    return model.config.get_text_config().vocab_size
