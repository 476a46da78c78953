"""Everything that a child's score depends on, in one hash: with equal keys, scoring again would give the same."""

import dataclasses
import functools
import hashlib
import inspect
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kinray.checkpoints.models import ModelSpec
from kinray.checkpoints.writer import TOKENIZER_FILES
from kinray.config import Config
from kinray.core.recipe import Recipe, canonical_json
from kinray.evaluation.backend import RESIDENT
from kinray.evaluation.sharing import Sharing
from kinray.evaluation.tasks import Leaf, TaskSet
from kinray.versions import installed

FORMAT = 2
"""Version of the parts below and of the files that are named by them."""

_PACKAGES = ("kinray", "lm-eval", "transformers", "tokenizers", "torch", "evaluate")


@dataclasses.dataclass(frozen=True)
class Scope:
    """All that a score depends on besides the recipe.

    Args:
        parts: by name, as JSON.
    """

    parts: Mapping[str, Any]

    def of(self, recipe: Recipe) -> dict[str, Any]:
        """Return all parts of a recipe's key. Its digest holds those of its founders, so paths and names are no part of it."""
        return {"recipe": recipe.digest, **self.parts}


def key_of(parts: Mapping[str, Any]) -> str:
    """Hash the parts of a key, 64 hex digits."""
    return hashlib.sha256(canonical_json(parts).encode()).hexdigest()


def scope_of(
    base: ModelSpec, config: Config, tasks: TaskSet, instances: Sequence[Sequence[Any]], sharing: Sharing, device: str
) -> Scope:
    """Collect what scores of a split depend on.

    Prompts are taken as they were built, so a change of a task's data, its few-shot examples or a chat template is seen
    whatever it came from. What judges the answers is in the tasks' configurations and in the files of their functions.

    Args:
        base: whose tokenizer and config all children have.
        config: of the run.
        tasks: with their items split.
        instances: lm-eval's requests of each leaf.
        sharing: what requests share; it decides what goes through the model together.
        device: ``cpu`` or ``cuda``.
    """
    evaluation = config.evaluation
    requests = dict(zip((leaf.name for leaf in tasks.leaves), instances, strict=True))
    packing = {"reach": sharing.reach, "prefix": sharing.prefix, "tokens": evaluation.token_budget(device)}
    asked = {
        "backend": evaluation.backend,
        "backend_args": plain(evaluation.backend_args),
        "batch_size": evaluation.batch_size,
        "max_length": evaluation.max_length,
        "pack": evaluation.pack_items(device),
        "packing": packing if evaluation.backend == RESIDENT and evaluation.share_prompts else None,
        "trust_remote_code": evaluation.trust_remote_code,
    }
    listed = [
        {
            "spec": plain(task.spec.model_dump(exclude={"confirm_run_unsafe_code", "limit"})),
            "leaves": [_leaf(leaf, requests[leaf.name]) for leaf in task.leaves],
        }
        for task in tasks.tasks
        if any(requests[leaf.name] for leaf in task.leaves)
    ]
    return Scope(
        {
            "format": FORMAT,
            "versions": {name: installed(name) for name in (*_PACKAGES, evaluation.backend)},
            "base": {"weights": base.founder.digest, "files": _files_beside(base.folder)},
            "dtype": config.merge.dtype,
            "device": device,
            "seed": config.seed,
            "evaluation": asked,
            "tasks": listed,
        }
    )


def plain(value: Any) -> Any:
    """Put what may be in a task's configuration or data into JSON that is the same in every process.

    Functions become their names with a hash of the Python files in their folder.
    """
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else repr(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        # before mappings: lm-eval's configurations are both, and empty as mappings
        return plain(vars(value))
    if isinstance(value, Mapping):
        return {str(name): plain(one) for name, one in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        return [plain(one) for one in value]
    if callable(value):
        return {"function": _name_of(value), "files": _files_of(value)}
    return repr(value)


def _leaf(leaf: Leaf, instances: Sequence[Any]) -> dict[str, Any]:
    """Describe a task: what asks and judges in words, what is asked by its hash."""
    asked = hashlib.sha256()
    seen: set[int] = set()
    for instance in instances:
        own = [instance.request_type, instance.doc_id, instance.idx, instance.repeats, plain(instance.args)]
        document = [] if instance.doc_id in seen else [plain(instance.doc)]
        seen.add(instance.doc_id)
        asked.update(canonical_json(own + document).encode() + b"\n")
    return {
        "name": leaf.name,
        "class": plain(type(leaf.task)),
        "config": plain(leaf.task.config),
        "metric": [leaf.metric, leaf.filter],
        "prompts": plain(leaf.prompts),
        "items": sorted({instance.doc_id for instance in instances}),
        "requests": asked.hexdigest(),
    }


def _name_of(function: Any) -> str:
    while isinstance(function, functools.partial):
        return f"{_name_of(function.func)}{plain(function.args)}{plain(function.keywords)}"
    named = function if hasattr(function, "__qualname__") else type(function)
    return str(named.__qualname__)


def _files_of(function: Callable[..., Any]) -> str | None:
    """Hash the Python files in the folder of a function: those that it may call lie beside it."""
    while isinstance(function, functools.partial):
        function = function.func
    named = function if hasattr(function, "__qualname__") else type(function)
    try:
        file = inspect.getsourcefile(named)
    except TypeError:
        file = getattr(sys.modules.get(named.__module__), "__file__", None)
    return None if file is None else _hash(sorted(Path(file).parent.glob("*.py")))


def _files_beside(folder: Path) -> str:
    """Hash what a model folder holds besides weights and what decides how it is asked."""
    names = ("config.json", *TOKENIZER_FILES)
    return _hash([*(folder / name for name in names if (folder / name).is_file()), *sorted(folder.glob("*.py"))])


def _hash(files: Sequence[Path]) -> str:
    whole = hashlib.sha256()
    for file in files:
        whole.update(f"{file.name} {hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    return whole.hexdigest()
