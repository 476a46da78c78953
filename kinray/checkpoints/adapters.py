"""LoRA adapters (Hu et al., arXiv 2106.09685) as founders: the model plus scale·B·A, tensor by tensor, in float32."""

import math
import re
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kinray.checkpoints.folder import (
    ADAPTER_WEIGHTS,
    EMBEDDINGS,
    OUTPUT_LAYER,
    Checkpoint,
    WeightSource,
    check_links,
    open_checkpoint,
    read_json,
)
from kinray.checkpoints.header import TensorInfo, read_header
from kinray.core.parameters import FLOAT32_MAX, is_finite_number
from kinray.errors import CheckpointError

if TYPE_CHECKING:
    import torch

_PREFIX = "base_model.model."
_LORA = re.compile(r"(.+)\.lora_(embedding_)?([AB])(?:\.weight)?")
_SAVED = re.compile(r"\.(?:base_layer|modules_to_save(?:\.default)?)\.")
_PATIENCE = 1.0
"""Seconds for a regular expression of an adapter's config; some take forever."""
_UNSUPPORTED = {
    "use_dora": "DoRA",
    "lora_bias": "LoRA with biases",
    "layer_replication": "layer replication",
    "alora_invocation_tokens": "activated LoRA",
}
_CHANGES_ITS_MODEL = ("pissa", "olora", "corda", "lora_ga")
"""Ways to begin an adapter that take something from the model's own weights, which PEFT does again when it loads them."""


@dataclass
class AdaptedModel:
    """A model with a LoRA adapter applied; tensors that the adapter leaves alone are the model's own.

    Args:
        name: what errors call it.
        model: what the adapter is applied to.
        factors: adapted tensor -> (A, B, whether the weight is the transpose of B·A, scale).
        saved: tensors that the adapter replaces whole (modules_to_save, and embeddings that it has factors for).
    """

    name: str
    model: WeightSource
    adapter: Checkpoint
    factors: dict[str, tuple[str, str, bool, float]]
    saved: dict[str, str]

    @property
    def config(self) -> dict[str, Any]:
        """config.json of the model."""
        return self.model.config

    @cached_property
    def tensors(self) -> dict[str, TensorInfo]:
        """The model's tensors; where the adapter replaces one, its shape."""
        return {
            name: replace(info, shape=self.adapter.tensors[self.saved[name]].shape) if name in self.saved else info
            for name, info in self.model.tensors.items()
        }

    def load(self, name: str) -> "torch.Tensor":
        """Return a tensor, in float32 where the adapter changes it."""
        weight = self.adapter.load(self.saved[name]) if name in self.saved else self.model.load(name)
        if name not in self.factors:
            return weight
        import torch

        a_name, b_name, turned, scale = self.factors[name]
        a, b = self.adapter.load(a_name).float(), self.adapter.load(b_name).float()
        left, right = (a.T, b.T) if turned else (b, a)
        return weight.to(torch.float32, copy=True).addmm_(left, right, alpha=scale)


def open_adapter(folder: Path, model: WeightSource, name: str) -> AdaptedModel:
    """Open a PEFT folder on top of a model.

    Raises:
        CheckpointError: when it is no LoRA adapter that can be merged, or does not fit the model.
    """
    if not folder.is_dir():
        raise CheckpointError(f"Model '{name}': there is no folder {folder}.")
    check_links(folder, name)
    config = read_json(folder / "adapter_config.json", name)
    if config.get("peft_type") != "LORA":
        raise CheckpointError(f"Model '{name}': {folder} is an adapter of type {config.get('peft_type')!r}, not LORA.")
    for key, what in _UNSUPPORTED.items():
        if config.get(key):
            raise CheckpointError(f"Model '{name}': {folder} uses {what}. Merge it into its model with PEFT first.")
    if (begun := str(config.get("init_lora_weights")).lower()).startswith(_CHANGES_ITS_MODEL):
        raise CheckpointError(
            f"Model '{name}': {folder} was begun by {begun[:40]}, which changes the model's own weights. Let PEFT convert it "
            "to plain LoRA (save_pretrained with path_initial_model_for_weight_conversion), or merge it with PEFT first."
        )
    if config.get("bias", "none") != "none":
        raise CheckpointError(f"Model '{name}': {folder} trains biases. Merge it with PEFT first.")
    adapter = _adapter_file(folder, name)
    factors: dict[str, tuple[str, str, bool, float]] = {}
    saved: dict[str, str] = {}
    for key in adapter.tensors:
        bare = key.removeprefix(_PREFIX)
        match = _LORA.fullmatch(bare)
        if match is None:
            saved[_SAVED.sub(".", bare)] = key
        elif match[3] == "A":
            target = _target(f"{match[1]}.weight", model, folder, name)
            if target in factors:
                raise CheckpointError(f"Model '{name}': adapter {folder} changes '{target}' twice, by '{key}' too.")
            partner = key.replace(f"lora_{match[2] or ''}A", f"lora_{match[2] or ''}B")
            turned = bool(match[2]) or bool(config.get("fan_in_fan_out"))
            factors[target] = (key, partner, turned, _scale(config, match[1], adapter.tensors[key], name))
    if model.config.get("tie_word_embeddings") is True:
        _tie(saved, adapter, config, name)
    for tensor in saved:
        _target(tensor, model, folder, name)
    adapted = AdaptedModel(name, model, adapter, factors, saved)
    tensors = adapted.tensors
    for target, factor in factors.items():
        _check_factors(adapter, factor, tensors[target], name)
    return adapted


def _tie(saved: dict[str, str], adapter: Checkpoint, config: dict[str, Any], name: str) -> None:
    """Leave out an output layer that is the embedding, which PEFT saves too.

    PEFT trains a saved embedding apart from the output layer, unless it is told to tie them; then the result is no tied model.

    Raises:
        CheckpointError: when they differ, in the adapter or by leaving the output layer as it was.
    """
    embedding = next((tensor for tensor in saved if tensor.endswith(EMBEDDINGS)), None)
    if embedding is None:
        return
    if OUTPUT_LAYER in saved:
        output, input_ = adapter.load(saved[OUTPUT_LAYER]), adapter.load(saved[embedding])
        alike = output.shape == input_.shape and bool((output == input_).all())
    else:
        module = embedding.removesuffix(".weight")
        named = config.get("modules_to_save")
        trained = any(module == one or module.endswith(f".{one}") for one in (named if isinstance(named, list) else []))
        alike = not trained or bool(config.get("ensure_weight_tying"))
    if not alike:
        raise CheckpointError(
            f"Model '{name}': the adapter {adapter.folder} trains '{embedding}' apart from the output layer, which the model's "
            "config ties to it. Merge it with PEFT first and set tie_word_embeddings to false."
        )
    saved.pop(OUTPUT_LAYER, None)


def _adapter_file(folder: Path, name: str) -> Checkpoint:
    file = folder / ADAPTER_WEIGHTS
    if not file.is_file():
        raise CheckpointError(f"Model '{name}': {folder} has no {ADAPTER_WEIGHTS} (pickles are not read).")
    tensors = {info.name: info for info in read_header(file)}
    if odd := next((info for info in tensors.values() if not info.floating), None):
        raise CheckpointError(f"Model '{name}': the adapter's '{odd.name}' is {odd.dtype}, which holds no weights.")
    return Checkpoint(name, folder, {}, tensors)


def _target(tensor: str, model: WeightSource, folder: Path, name: str) -> str:
    if tensor not in model.tensors:
        raise CheckpointError(f"Model '{name}': adapter {folder} changes '{tensor}', which '{model.name}' does not have.")
    return tensor


def _scale(config: dict[str, Any], module: str, a: TensorInfo, name: str) -> float:
    """Return the scale of a module's factors.

    Raises:
        CheckpointError: when its rank is 0, or the config gives no number for alpha.
    """
    rank = a.shape[0] if len(a.shape) == 2 else 0
    if not rank:
        raise CheckpointError(f"Model '{name}': the adapter's factor '{a.name}' has shape {a.shape}, which is of no rank.")
    alpha = _alpha(config, module, rank, name)
    if not is_finite_number(alpha) or abs(alpha) > FLOAT32_MAX:
        raise CheckpointError(
            f"Model '{name}': the adapter's config gives '{module}' the alpha {alpha!r:.80}, no finite number of float32."
        )
    return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _alpha(config: dict[str, Any], module: str, rank: int, name: str) -> Any:
    patterns = config.get("alpha_pattern") or {}
    if not isinstance(patterns, dict):
        raise CheckpointError(f"Model '{name}': the adapter's alpha_pattern is {patterns!r:.80}. It must be a mapping.")
    if patterns:
        import regex  # unlike re, it can be told to give up
    for suffix, value in patterns.items():
        try:
            if regex.fullmatch(rf"(.*\.)?({suffix})", module, timeout=_PATIENCE):
                return value
        except (regex.error, TimeoutError, RecursionError) as error:
            raise CheckpointError(
                f"Model '{name}': the adapter's alpha_pattern has '{suffix:.80}', a regular expression that cannot be used: "
                f"{error or 'it takes too long'}."
            ) from error
    return config.get("lora_alpha", rank)


def _check_factors(adapter: Checkpoint, factor: tuple[str, str, bool, float], target: TensorInfo, name: str) -> None:
    a_name, b_name, turned, _ = factor
    if b_name not in adapter.tensors:
        raise CheckpointError(f"Model '{name}': adapter has '{a_name}' but not '{b_name}'.")
    a, b = adapter.tensors[a_name].shape, adapter.tensors[b_name].shape
    change = (b[0], a[1]) if len(b) == 2 else ()
    if (change[::-1] if turned else change) != target.shape or a[0] != b[1]:
        raise CheckpointError(
            f"Model '{name}': the adapter's factors {b} and {a} do not give '{target.name}' of shape {target.shape}."
        )


def open_model(folder: Path, adapter: Path | None, name: str) -> WeightSource:
    """Open a model folder, with an adapter on top if one is named."""
    checkpoint = open_checkpoint(folder, name)
    return checkpoint if adapter is None else open_adapter(adapter, checkpoint, name)
