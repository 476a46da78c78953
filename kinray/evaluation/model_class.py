"""lm-eval's model classes: found by name, and what they are made with."""

import inspect
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

from kinray.config import EvaluationConfig
from kinray.errors import ConfigError, did_you_mean

_NEEDS = {"sglang": "sglang", "mamba_ssm": "mamba_ssm", "openvino": "optimum", "habana": "optimum"}
"""Packages of classes that only miss them when they are made; all others miss theirs when they are imported."""

_LENGTHS = ("max_length", "max_model_len")
"""What classes call the longest prompt."""


def model_class(name: str) -> Any:
    """Find a class that loads a child from its folder.

    Raises:
        ConfigError: for a name that lm-eval does not know, a package that is missing, or a class that loads no folder.
    """
    import lm_eval.models  # noqa: F401 (it fills the registry)
    from lm_eval.api.registry import get_model, model_registry

    key = f"evaluation.backend is {name}"
    if name not in model_registry:
        raise ConfigError(f"{key}, which is no model class of lm-eval.{did_you_mean(name, ['resident', *model_registry])}")
    try:
        found = get_model(name)
    except ImportError as error:
        package = (error.name or name).partition(".")[0]
        raise ConfigError(_missing(key, package, str(error))) from error
    except Exception as error:  # some classes of lm-eval cannot even be imported
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ConfigError(f"{key}, which lm-eval cannot load: {reason[0][:300]}") from error
    if name in _NEEDS and find_spec(_NEEDS[name]) is None:
        raise ConfigError(_missing(key, _NEEDS[name], f"No module named '{_NEEDS[name]}'"))
    if _asks_a_server(found) or "pretrained" not in named(found):
        raise ConfigError(
            f"{key}, which loads no model from a folder, so it would never see a child (kinray starts no server for each "
            "child). Use resident, or a class that takes 'pretrained', such as hf, vllm or sglang."
        )
    return found


def named(kind: Any) -> set[str]:
    """List the arguments that a class and those it comes from take by name."""
    own = [vars(one)["__init__"] for one in kind.__mro__[:-1] if "__init__" in vars(one)]
    return {name for init in own for name in inspect.signature(init).parameters} - {"self"}


def arguments(kind: Any, folder: str, config: EvaluationConfig, device: str, dtype: str) -> dict[str, Any]:
    """Say what a class is made with for a child: what the configuration says in its own words, and over that ``backend_args``.

    Args:
        kind: the class.
        folder: of the child.
        config: evaluation settings.
        device: ``cpu`` or ``cuda``.
        dtype: of the child's weights.

    Raises:
        ConfigError: when the class has no word for ``evaluation.max_length``.
    """
    known = named(kind)
    ours = {
        "pretrained": folder,
        "dtype": dtype,
        "device": device,
        "batch_size": config.batch_size,
        "trust_remote_code": config.trust_remote_code,
    }
    made = {name: value for name, value in ours.items() if name in known}
    if config.max_length is not None and not set(_LENGTHS) & set(config.backend_args):
        name = next((name for name in _LENGTHS if name in known), None)
        if name is None:
            raise ConfigError(
                f"evaluation.max_length is {config.max_length}, but {kind.__name__} has no such argument. Leave it out, "
                "and say it among evaluation.backend_args in the class's own words."
            )
        made[name] = config.max_length
    return made | config.backend_args


@contextmanager
def batched(lm: Any, batch: int) -> Iterator[None]:
    """Let a model of lm-eval's take so many prompts at once while the block runs."""
    name = "batch_size_per_gpu" if hasattr(lm, "batch_size_per_gpu") else "batch_size"
    before = getattr(lm, name, None)
    setattr(lm, name, batch)
    try:
        yield
    finally:
        setattr(lm, name, before)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep what libraries say of each loaded model out of kinray's output while the block runs."""
    before = {name: logging.getLogger(name).level for name in ("lm_eval", "transformers")}
    for name in before:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)


def _asks_a_server(kind: Any) -> bool:
    from lm_eval.models.api_models import TemplateAPI

    return issubclass(kind, TemplateAPI)


def _missing(key: str, package: str, reason: str) -> str:
    first = (reason.strip().splitlines() or ["no message"])[0][:200]
    return f"{key}, but {package} is not installed ({first}). Install it on every node, or use another backend."
