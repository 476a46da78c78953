"""One model that stays in memory while children's weights are copied into it."""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from kinray.checkpoints.folder import WeightSource
from kinray.checkpoints.models import Models
from kinray.checkpoints.renamed import layer_count
from kinray.config import EvaluationConfig, TaskSpec
from kinray.core.layers import layer_of
from kinray.engine.export import DTYPES
from kinray.errors import CheckpointError, RunError, did_you_mean
from kinray.evaluation.sharing import unfit
from kinray.evaluation.spread import blocks_of, spread


class ResidentModel:
    """A transformers model whose weights are replaced in place.

    Args:
        folder: of the base: config, tokenizer and, where allowed, code.
        models: the base and founders, whose tensor names the model must have.
        dtype: of the weights.
        devices: where it lives, on several of them in parts.
        config: evaluation settings.

    Raises:
        CheckpointError: when it cannot live in parts, or the model class and the checkpoint do not have the same tensors.
    """

    def __init__(self, folder: Path, models: Models, dtype: str, devices: Sequence[str], config: EvaluationConfig) -> None:
        from transformers import GenerationConfig

        self.dtype = DTYPES[dtype]
        self.tokenizer = open_tokenizer(folder, config)
        model = _skeleton(folder, config, self.dtype)
        model.tie_weights()
        if (folder / "generation_config.json").is_file():
            model.generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)
        self.model: Any = model.eval().requires_grad_(False)
        if len(devices) > 1:
            spread(self.model, devices)
        else:
            self.model.to(devices[0])
        self._places = _places(self.model, models)

    @torch.inference_mode()
    def load(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> dict[str, float]:
        """Replace all weights.

        Args:
            tensors: name and contents of every tensor, each once.

        Returns:
            seconds spent in making the tensors (``merge``) and in copying them (``copy``).

        Raises:
            RunError: when a weight is NaN or infinite in the model's dtype.
        """
        seconds = {"merge": 0.0, "copy": 0.0}
        missing = set(self._places)
        started = perf_counter()
        for name, tensor in tensors:
            made = perf_counter()
            if not torch.isfinite(tensor).all():
                raise RunError(
                    f"tensor '{name}' of the child holds NaN or infinity in {str(self.dtype).removeprefix('torch.')}"
                )
            assert name in missing, f"tensor {name} was written twice"
            missing.remove(name)
            self._places[name].copy_(tensor)
            seconds["merge"] += made - started
            started = perf_counter()
            seconds["copy"] += started - made
        assert not missing, f"tensors not written: {sorted(missing)[:3]}"
        return seconds


def check_buildable(models: Models, config: EvaluationConfig, tasks: Sequence[TaskSpec] = (), gpus: int = 1) -> list[str]:
    """Check that transformers can build the base's model class and its tokenizer; no memory is taken.

    Args:
        models: the base and founders.
        config: evaluation settings.
        tasks: which may ask for chat templates of their own.
        gpus: that the model is to be spread over.

    Returns:
        what a person might not expect of how the model is asked.

    Raises:
        CheckpointError: when it cannot, it cannot be spread, or the tokenizer has not the chat template that is asked for.
    """
    folder, name = models.specs[0].folder, models.base.name
    _check_layers(models.base)
    try:
        tokenizer = open_tokenizer(folder, config)
        with torch.device("meta"):
            model = _skeleton(folder, config, torch.bfloat16)
    except Exception as error:  # whatever a config or a tokenizer file provokes
        if "auto_map" in models.base.config and not config.trust_remote_code:
            raise CheckpointError(
                f"Model '{name}': its config.json asks to run Python of its own (auto_map), which kinray does not do unasked. "
                f"Read the code in {folder}; if you trust it, set evaluation.trust_remote_code: true."
            ) from error
        reason = str(error).strip().splitlines() or ["no message"]
        raise CheckpointError(f"Model '{name}': transformers cannot build it: {reason[0][:300]}") from error
    templates = {"evaluation": config.apply_chat_template} | {
        f"task '{task.name}'": task.apply_chat_template for task in tasks if task.apply_chat_template is not None
    }
    for where, wanted in templates.items():
        _check_template(name, tokenizer, where, wanted)
    model.tie_weights()
    _state(model, models)
    if gpus > 1 and config.backend == "resident":
        blocks_of(model)
    single = unfit(model) if config.share_prompts and config.backend == "resident" else ""
    return [f"{single}, so the answers to a question are scored one by one, as in lm-eval."] if single else []


def _check_layers(base: WeightSource) -> None:
    """Refuse a config with more layers than the weights have before transformers builds them all."""
    layers = {layer_of(name) for name in base.tensors}
    counts = Counter(layer[0] for layer in layers if layer is not None)
    named, found = layer_count(base.config), max(counts.values(), default=0)
    if named is not None and named > found:
        raise CheckpointError(f"Model '{base.name}': its config.json names {named} layers, but its weights have {found}.")


def _check_template(name: str, tokenizer: Any, where: str, wanted: bool | str) -> None:
    given = getattr(tokenizer, "chat_template", None)
    model = f"Model '{name}': its tokenizer has no chat template"
    if wanted and not given:
        raise CheckpointError(f"{model}, which apply_chat_template of {where} needs.")
    if isinstance(wanted, str) and not (isinstance(given, dict) and wanted in given):
        remedy = did_you_mean(wanted, given) if isinstance(given, dict) else " Its only one has no name: say true."
        raise CheckpointError(f"{model} '{wanted}', which apply_chat_template of {where} names.{remedy}")


def open_tokenizer(folder: Path, config: EvaluationConfig) -> Any:
    """Open the tokenizer of a model folder."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, trust_remote_code=config.trust_remote_code, local_files_only=True)


def _skeleton(folder: Path, config: EvaluationConfig, dtype: torch.dtype) -> Any:
    """Build the model class without initialising its weights."""
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.initialization import no_init_weights

    trust = config.trust_remote_code
    model_config = AutoConfig.from_pretrained(folder, trust_remote_code=trust, local_files_only=True)
    with no_init_weights():
        return AutoModelForCausalLM.from_config(model_config, dtype=dtype, trust_remote_code=trust)


def _places(model: Any, models: Models) -> dict[str, torch.Tensor]:
    """Find the parameter or buffer that each tensor of the checkpoints goes to, and check that none is left over."""
    state = _state(model, models)
    places = {name: state[name].data for name in models.names}
    filled = {tensor.data_ptr() for tensor in places.values()}
    for name, tensor in state.items():
        if isinstance(tensor, torch.nn.Parameter) and tensor.data_ptr() not in filled:
            raise CheckpointError(f"'{models.base.name}' has no tensor '{name}', which {type(model).__name__} needs.")
    return places


def _state(model: Any, models: Models) -> dict[str, torch.Tensor]:
    """Return the model's tensors by the checkpoints' names, after checking that each of these is there in its shape."""
    state: dict[str, torch.Tensor] = model.state_dict(keep_vars=True)
    # Old checkpoints (GPT-2's) name the tensors of the body without its prefix.
    prefix = f"{model.base_model_prefix}."
    state = {name.removeprefix(prefix): state[name] for name in state if name.removeprefix(prefix) in models.names} | state
    for name in models.names:
        if name not in state or tuple(state[name].shape) != models.base.tensors[name].shape:
            got = tuple(state[name].shape) if name in state else "no such tensor"
            raise CheckpointError(
                f"Tensor '{name}' of '{models.base.name}' has shape {models.base.tensors[name].shape}, but transformers' "
                f"{type(model).__name__} has {got}. Save the model with this version of transformers first."
            )
    return state
