"""Read a configuration from YAML and ``--set`` into a validated ``Config``, with errors that a person can act on."""

import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from kinray.config.hyperparameters import FORM_KEYS
from kinray.config.schema import Config, FounderSpec, TaskSpec
from kinray.errors import ConfigError, did_you_mean

MAX_BYTES = 1 << 20
MAX_NODES = 50_000
"""Values in a document, as reading more takes seconds."""
MAX_DIGITS = 400
"""Signs in a number; the largest float has 309 digits."""
_BARE = {"founders": "model", "tasks": "name"}
"""What a bare string in a list of the configuration is the value of."""


class _Loader(yaml.SafeLoader):
    """Plain YAML: no tags, no key twice in a mapping, no aliases (they can grow without bound), finite numbers only."""

    _nodes = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event: Any = self.peek_event()
        self._nodes += 1
        if self.check_event(yaml.AliasEvent):
            raise yaml.composer.ComposerError(None, None, "aliases (*name) are not supported", event.start_mark)
        if event.tag is not None:
            tag = event.tag.replace("tag:yaml.org,2002:", "!!")
            raise yaml.composer.ComposerError(None, None, f"tags ({tag}) are not supported", event.start_mark)
        if self._nodes > MAX_NODES:
            raise yaml.composer.ComposerError(None, None, f"more than {MAX_NODES} values", event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is not a word", key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key '{key}' is there twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)

    def construct_number(self, node: Any) -> Any:
        if ":" in node.value:  # YAML 1.1 counts 1:30 in sixties
            return node.value
        whole = node.tag.endswith("int")
        try:
            if len(node.value) > MAX_DIGITS:
                raise ValueError
            number = self.construct_yaml_int(node) if whole else self.construct_yaml_float(node)
            finite = math.isfinite(number)
        except (ValueError, OverflowError):
            finite = False
        if not finite:
            raise yaml.constructor.ConstructorError(None, None, f"{node.value:.80} is no finite number", node.start_mark)
        return number


class _Dumper(yaml.SafeDumper):
    """Writes what ``_Loader`` reads back as it was."""


# YAML 1.1 takes 1e-3 (without a dot) for a word.
_FLOAT = re.compile(r"^[-+]?[0-9][0-9_]*(?:\.[0-9_]*)?[eE][-+]?[0-9]+$")
for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789"))
for _kind in ("int", "float"):
    yaml.add_constructor(f"tag:yaml.org,2002:{_kind}", _Loader.construct_number, Loader=_Loader)
yaml.add_constructor("tag:yaml.org,2002:timestamp", _Loader.construct_yaml_str, Loader=_Loader)


def read_yaml(text: str, where: str) -> Any:
    """Parse one YAML document.

    Raises:
        ConfigError: with line and column of what cannot be read.
    """
    with _readable(where):
        return yaml.load(text, _Loader)  # noqa: S506 (a SafeLoader)


def read_all_yaml(text: str, where: str) -> list[Any]:
    """Parse all documents of a YAML text.

    Raises:
        ConfigError: with line and column of what cannot be read.
    """
    with _readable(where):
        return list(yaml.load_all(text, _Loader))


@contextmanager
def _readable(where: str) -> Iterator[None]:
    try:
        yield
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ConfigError(f"{where}{place}: {error.problem or error.context}.") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{where} is not readable as YAML: {str(error).splitlines()[0][:200]}.") from error


def read_text(path: Path, what: str) -> str:
    """Read a YAML file of at most 1 MiB.

    Raises:
        ConfigError: when it cannot be read, is too large, or is no text.
    """
    try:
        with path.open("rb") as stream:
            return as_text(stream.read(MAX_BYTES + 1), what, str(path))
    except OSError as error:
        raise ConfigError(f"Cannot read the {what} {path}: {error.strerror}.") from error


def as_text(data: bytes, what: str, where: str) -> str:
    """Decode what was read of a YAML file, or raise ConfigError when there are more than ``MAX_BYTES`` or they are no text."""
    if len(data) > MAX_BYTES:
        raise ConfigError(f"{where} is too large: a {what} has at most {MAX_BYTES} bytes.")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{where} is not text in UTF-8 (byte {error.start}).") from error


def write_yaml(data: Mapping[str, Any]) -> str:
    """Write settings so that ``read_yaml`` gives them back: a word that looks like a number is quoted."""
    return str(yaml.dump(dict(data), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120))


def load_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Read and validate a configuration file.

    Args:
        path: a YAML file.
        overrides: ``key.path=value`` as given to ``--set``; values are YAML.

    Raises:
        ConfigError: for a file or a value that cannot be used.
    """
    text = read_text(path, "configuration")
    data = read_yaml(text, str(path))
    if not isinstance(data, dict):
        raise ConfigError(f"{path} must hold a mapping of settings, not {type(data).__name__}.")
    for override in overrides:
        _override(data, override)
    return parse_config(data, str(path))


def changed(config: Config, overrides: Sequence[str]) -> Config:
    """Return a configuration with settings changed as ``--set`` does.

    Raises:
        ConfigError: for a setting that there is not, or a value that cannot be used.
    """
    data = config.model_dump(mode="json")
    for override in overrides:
        _override(data, override)
    return parse_config(data)


def parse_config(data: Mapping[str, Any], where: str = "configuration") -> Config:
    """Validate settings, after replacing ``$NAME`` and ``${NAME}`` in paths by environment variables.

    Raises:
        ConfigError: one line for each problem, naming the key, what was found, and for an unknown key the likely one.
    """
    try:
        return _expand(Config.model_validate(data))
    except ValidationError as error:
        lines = [_explain(dict(problem)) for problem in error.errors(include_url=False)]
        raise ConfigError(f"{where}: {' '.join(dict.fromkeys(lines))}") from error


def _override(data: dict[str, Any], text: str) -> None:
    key, equals, value = text.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise ConfigError(f"--set {text!r} is not of the form key=value, such as search.k=4.")
    target: Any = data
    for number, part in enumerate(parts[:-1]):
        if isinstance(target, list):
            place = _index(target, part, key)
            if isinstance(target[place], str) and parts[0] in _BARE:  # a bare string stands for a mapping
                target[place] = {_BARE[parts[0]]: target[place]}
            target = target[place]
        else:
            if target.get(part) is None:
                target[part] = {}
            target = target[part]
        if not isinstance(target, dict | list):
            raise ConfigError(f"--set {key}: '{'.'.join(parts[: number + 1])}' is a value, it has no keys of its own.")
    parsed = read_yaml(value, f"--set {key}")
    if isinstance(target, list):
        target[_index(target, parts[-1], key)] = parsed
    else:
        target[parts[-1]] = parsed


def _index(items: list[Any], part: str, key: str) -> int:
    if not part.isdecimal() or int(part) >= len(items):
        raise ConfigError(f"--set {key}: '{part}' is no place in a list of {len(items)}; they are counted from 0.")
    return int(part)


def _expand(config: Config) -> Config:
    def text(value: str, where: str) -> str:
        expanded = os.path.expanduser(os.path.expandvars(value))
        if unset := re.search(r"\$(\w+|\{\w*\})", expanded):
            name = unset[1].strip("{}")
            raise ConfigError(f"{where} is '{value}', but the environment variable {name} is not set. Set it, or use --set.")
        if "\0" in value or any("\ud800" <= sign <= "\udfff" for sign in value):
            raise ConfigError(f"{where} is '{value}', which no path can be: it holds a character that is no text.")
        return expanded

    def founder(number: int, spec: FounderSpec) -> FounderSpec:
        where = f"founders.{number}"
        return spec.model_copy(
            update={
                "model": text(spec.model, f"{where}.model"),
                "adapter": spec.adapter and text(spec.adapter, f"{where}.adapter"),
            }
        )

    evaluation = config.evaluation
    if evaluation.score_cache is not None:
        evaluation = evaluation.model_copy(update={"score_cache": text(evaluation.score_cache, "evaluation.score_cache")})
    return config.model_copy(
        update={
            "evaluation": evaluation,
            "base": text(config.base, "base"),
            "founders": [founder(number, spec) for number, spec in enumerate(config.founders)],
            "task_paths": [text(path, f"task_paths.{number}") for number, path in enumerate(config.task_paths)],
            "output": text(config.output, "output"),
        }
    )


def _explain(problem: dict[str, Any]) -> str:
    """Turn one of pydantic's problems into a sentence."""
    path = [str(part) for part in problem["loc"] if not str(part).startswith("(")]
    key = ".".join(path)
    message = str(problem["msg"]).removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        return f"unknown key '{key}'.{did_you_mean(path[-1], _keys_at(path[:-1]))}"
    if problem["type"] == "missing":
        return f"'{key}' is missing."
    if not path or isinstance(problem["input"], dict):
        return f"{key}: {message}.".removeprefix(": ")
    return f"'{key}' is {problem['input']!r:.80}: {message[0].lower()}{message[1:]}."


def _keys_at(path: Sequence[str]) -> list[str]:
    """List the keys that are known at a place of the configuration."""
    if path[:2] == ["merge", "methods"]:
        return FORM_KEYS
    if path[:2] == ["evaluation", "holdout"]:
        return list(TaskSpec.model_fields)
    sections: dict[str, type[BaseModel]] = {"founders": FounderSpec, "tasks": TaskSpec}
    for name, field in Config.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            sections[name] = field.annotation
    return list((sections.get(path[0], Config) if path else Config).model_fields)
