"""Task files of the user's own: their Python must lie where they do.

lm-eval follows ``!function`` and ``include`` anywhere: upwards, to absolute paths, and to every module that can be imported,
such as ``os.system``.
"""

import re
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

import yaml

from kinray.errors import TaskError

_FUNCTION = re.compile(r"\w+(?:\.\w+)+")
_OWN = "lm_eval."
"""What modules of lm-eval begin with; tasks may use its functions."""
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""What lm-eval reads task files with."""


def check_task_files(paths: Sequence[Path]) -> None:
    """Check all task files of some folders, and those that they include, without running any of their code.

    What is no YAML is passed over: lm-eval does not read it either.

    Raises:
        TaskError: for one that takes a function or another file from outside of these folders and of lm-eval.
    """
    own = Path(str(find_spec("lm_eval").origin)).parent  # type: ignore[union-attr]
    homes = [path.resolve() for path in paths]
    stack = [file.resolve() for home in homes for file in sorted(home.rglob("*.yaml"))]
    seen: set[Path] = set()
    while stack:
        file = stack.pop()
        if file in seen or not file.is_file() or file.is_relative_to(own):
            continue
        seen.add(file)
        try:
            document = yaml.compose(file.read_bytes(), _Loader)
        except (yaml.YAMLError, OSError):
            continue
        for node in _nodes(document):
            if isinstance(node, yaml.ScalarNode) and node.tag == "!function":
                _check_function(file, node.value, [*homes, own])
        for other in _included(document):
            _check_place(file, f"include: {other}", file.parent / other, [*homes, own])
            stack.append((file.parent / other).resolve())


def _included(document: yaml.Node | None) -> list[str]:
    """Return the files that a task file includes."""
    pairs = document.value if isinstance(document, yaml.MappingNode) else []
    values = [value for key, value in pairs if key.value == "include"]
    return [str(one.value) for value in values for one in (value.value if isinstance(value, yaml.SequenceNode) else [value])]


def _nodes(document: yaml.Node | None) -> Iterator[yaml.Node]:
    """Walk through a document; a node that is there by several names comes once."""
    seen: set[int] = set()
    stack = [document] if document else []
    while stack:
        node = stack.pop()
        if id(node) not in seen:
            seen.add(id(node))
            yield node
            if isinstance(node, yaml.SequenceNode):
                stack.extend(node.value)
            elif isinstance(node, yaml.MappingNode):
                stack.extend(part for pair in node.value for part in pair)


def _check_function(file: Path, name: str, allowed: list[Path]) -> None:
    module = name.rpartition(".")[0]
    place = file.parent / f"{module.replace('.', '/')}.py"
    if not _FUNCTION.fullmatch(name) or not (place.is_file() or module.startswith(_OWN)):
        raise TaskError(
            f"task_paths: {file} has '!function {name[:200]}', which is in no Python file beside it. Put the function into "
            "one, and write FILE.FUNCTION."
        )
    if place.is_file():
        _check_place(file, f"!function {name}", place, allowed)


def _check_place(file: Path, what: str, place: Path, allowed: list[Path]) -> None:
    if not any(place.resolve().is_relative_to(home) for home in allowed):
        raise TaskError(
            f"task_paths: {file} has '{what[:200]}', which lies outside of task_paths. Name its folder there too, if you "
            "trust it."
        )
