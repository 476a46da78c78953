"""mergekit's YAML: what a recipe file may hold, checked strictly. A key that kinray does not support is an error."""

from collections.abc import Mapping
from os.path import expanduser, isdir
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from kinray.config.loading import read_all_yaml, read_text
from kinray.core.recipe import MAX_PARENTS
from kinray.errors import ConfigError, did_you_mean

MAX_DOCUMENTS = 1024
_ELSEWHERE = {
    "modules": "Parts of a model cannot be merged in different ways. Merge the whole model, or use filters",
    "residual_weight": "mergekit does not use it either. Remove it",
    "chat_template": "The child has the chat template of the model whose tokenizer it has. Remove it",
    "tokens": "Embeddings of single tokens cannot be chosen. Remove it",
}
"""Keys of mergekit's that kinray does not support, and what to do."""


class Part(BaseModel):
    """A mapping of the file: immutable, and strict about its keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Reference(Part):
    """A model: a folder or hub id, its revision, and a LoRA adapter on it if any; written MODEL@REVISION+ADAPTER@REVISION."""

    model: str
    revision: str | None = None
    adapter: str | None = None
    adapter_revision: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_string(cls, value: Any) -> Any:
        if isinstance(value, Reference):
            return value
        if not isinstance(value, str) or not value.strip():
            raise ValueError("a model is written as a word: MODEL, MODEL@REVISION or MODEL+ADAPTER")
        if isdir(expanduser(value)):  # whose name may hold any sign
            return {"model": value}
        model, plus, adapter = value.partition("+")
        if plus and (not model or not adapter or "+" in adapter):
            raise ValueError("a model with an adapter is written MODEL+ADAPTER, with one adapter")
        name, revision = _place(model)
        parts = {"model": name, "revision": revision}
        if plus:
            adapter, revision = _place(adapter)
            parts |= {"adapter": adapter, "adapter_revision": revision}
        return parts

    def __str__(self) -> str:
        """The word that it is written as."""
        one, other = (
            f"{place}@{revision}" if revision else f"{place}"
            for place, revision in ((self.model, self.revision), (self.adapter, self.adapter_revision))
        )
        return f"{one}+{other}" if self.adapter else one


def _place(word: str) -> tuple[str, str | None]:
    """Split PLACE@REVISION; a folder's name may hold an @."""
    if isdir(expanduser(word)):
        return word, None
    place, _, revision = word.partition("@")
    return place, revision or None


Parameters = Annotated[dict[str, Any], BeforeValidator(lambda value: {} if value is None else value)]
"""Values by name: numbers, truth values, gradients (lists of numbers), or lists of {filter, value}; may be blank."""


class Input(Part):
    """A model that is merged whole."""

    model: Reference
    parameters: Parameters = {}


class Layers(Part):
    """Some layers of a model: from the first of the range up to, and without, the last."""

    model: Reference
    layer_range: tuple[int, int]
    parameters: Parameters = {}

    @field_validator("layer_range")
    @classmethod
    def _in_order(cls, value: tuple[int, int]) -> tuple[int, int]:
        if not 0 <= value[0] < value[1]:
            raise ValueError("a layer range goes from a layer to a later one, such as [0, 16]")
        return value

    @property
    def count(self) -> int:
        """Number of layers."""
        return self.layer_range[1] - self.layer_range[0]


class Slice(Part):
    """Layers of the output, merged from as many layers of each source."""

    sources: list[Layers] = Field(min_length=1, max_length=MAX_PARENTS)
    base_model: Reference | None = None
    parameters: Parameters = {}

    @model_validator(mode="after")
    def _of_one_length(self) -> Self:
        counts = sorted({source.count for source in self.sources})
        if len(counts) > 1:
            raise ValueError(f"the sources of a slice have {counts[0]} and {counts[-1]} layers; they must have equally many")
        return self


class Tokenizer(Part):
    """Which tokenizer the output has."""

    source: str = "union"
    pad_to_multiple_of: int | None = Field(default=None, ge=1, le=1 << 20)


class Metadata(Part):
    """What kinray adds to mergekit's format; mergekit passes over it."""

    seed: str | None = None
    """What random masks follow from."""
    family: list[Reference] = []
    """Base and founders of a search, in its order, so that angles between models are measured to the same bits."""


class Document(Part):
    """One merge."""

    merge_method: str
    name: str | None = None
    models: list[Input] = Field(default=[], max_length=MAX_PARENTS + 1)
    slices: list[Slice] = Field(default=[], max_length=4096)
    base_model: Reference | None = None
    parameters: Parameters = {}
    dtype: str | None = None
    out_dtype: str | None = None
    tokenizer_source: str | None = None
    tokenizer: Tokenizer | None = None
    kinray: Metadata = Metadata()

    @field_validator("dtype", "out_dtype")
    @classmethod
    def _known_dtype(cls, value: str | None) -> str | None:
        known = ("bfloat16", "float16", "float32")
        short = None if value is None else value.removeprefix("torch.")
        if short is not None and short not in known:
            raise ValueError(f"expected one of {', '.join(known)}")
        return short

    @model_validator(mode="after")
    def _one_kind_of_input(self) -> Self:
        if bool(self.models) == bool(self.slices):
            raise ValueError("a merge has either 'models' or 'slices'" + (", not both" if self.models else ""))
        if self.tokenizer_source and self.tokenizer:
            raise ValueError("give either 'tokenizer_source' or 'tokenizer', not both")
        return self

    @property
    def vocabulary(self) -> Tokenizer | None:
        """Which tokenizer is asked for, if any."""
        return Tokenizer(source=self.tokenizer_source) if self.tokenizer_source else self.tokenizer

    @property
    def references(self) -> list[Reference]:
        """All models that it names, the base first, each once."""
        named = [self.base_model] if self.base_model else []
        named += [one.model for one in self.models]
        for part in self.slices:
            named += [part.base_model] if part.base_model else []
            named += [source.model for source in part.sources]
        return list(dict.fromkeys(named))


def read_recipe(path: Path) -> tuple[list[Document], str]:
    """Read a recipe file: one document, or several of which later ones name earlier ones (mergekit-multi).

    Returns:
        the documents in order, and the text.

    Raises:
        ConfigError: with what is wrong and where; for an unknown key the likely one.
    """
    text = read_text(path, "recipe")
    contents = [content for content in read_all_yaml(text, str(path)) if content is not None]
    if not 1 <= len(contents) <= MAX_DOCUMENTS:
        raise ConfigError(f"{path} holds {len(contents)} merges. A recipe has 1 to {MAX_DOCUMENTS}.")
    several = len(contents) > 1
    return [
        _document(content, f"{path}, merge {at + 1}" if several else str(path)) for at, content in enumerate(contents)
    ], text


def _document(content: Any, where: str) -> Document:
    if not isinstance(content, Mapping):
        raise ConfigError(f"{where} must hold a mapping such as 'merge_method: linear', not {type(content).__name__}.")
    try:
        return Document.model_validate(content)
    except ValidationError as error:
        lines = [_explain(dict(problem)) for problem in error.errors(include_url=False)]
        raise ConfigError(f"{where}: {' '.join(dict.fromkeys(lines))}") from error


def _explain(problem: dict[str, Any]) -> str:
    """Turn one of pydantic's problems into a sentence."""
    path = [str(part) for part in problem["loc"]]
    key, message = ".".join(path), str(problem["msg"]).removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        if path[-1] in _ELSEWHERE:
            return f"'{key}' is not supported. {_ELSEWHERE[path[-1]]}."
        return f"unknown key '{key}'.{did_you_mean(path[-1], _keys_at(path[:-1]))}"
    if problem["type"] == "missing":
        return f"'{key}' is missing."
    return f"'{key}' is {problem['input']!r:.80}: {message}." if path else f"{message}."


def _keys_at(path: list[str]) -> list[str]:
    """List the keys that are known at a place of a document."""
    kinds: dict[str, type[BaseModel]] = {"sources": Layers, "models": Input, "slices": Slice, "tokenizer": Tokenizer}
    named = [kinds[part] for part in path if part in kinds]
    return list((named[-1] if named else Metadata if path[:1] == ["kinray"] else Document).model_fields)
