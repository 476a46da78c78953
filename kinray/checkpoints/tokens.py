"""Which token has which id in a model: its tokenizer files, read and checked."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kinray.checkpoints.adapters import AdaptedModel
from kinray.checkpoints.folder import Checkpoint, WeightSource, read_json
from kinray.errors import CheckpointError

MAX_ID = (1 << 24) - 1
"""Far above the largest vocabulary in use; a larger id is damage, and rows for it would fill the memory."""

_AGAIN = "Copy or download the tokenizer again."


@dataclass(frozen=True)
class Tokens:
    """The tokens of one model.

    Args:
        name: what errors call the model.
        folder: where its tokenizer files lie.
        ids: token -> id, at least one.
    """

    name: str
    folder: Path
    ids: Mapping[str, int]


def read_tokens(model: WeightSource) -> Tokens:
    """Read the vocabulary of a model from tokenizer.json, else from vocab.json and added_tokens.json.

    Raises:
        CheckpointError: when there is neither, or a file is damaged: not JSON, ids that are no whole numbers from 0 to
            ``MAX_ID``, one id for two tokens, two ids for one token.
    """
    folder, name = tokenizer_folder(model), model.name
    if (folder / "tokenizer.json").is_file() or not (folder / "vocab.json").is_file():
        data = read_tokenizer(folder, name)
        vocabulary = data["model"]["vocab"]
        pairs = list(vocabulary.items()) if isinstance(vocabulary, dict) else [(p[0], at) for at, p in enumerate(vocabulary)]
        pairs += [(token["content"], token["id"]) for token in data["added_tokens"]]
    else:
        files = [file for file in (folder / "vocab.json", folder / "added_tokens.json") if file.is_file()]
        pairs = [pair for file in files for pair in read_json(file, name).items()]
    return Tokens(name, folder, _checked(pairs, folder, name))


def read_tokenizer(folder: Path, name: str) -> dict[str, Any]:
    """Read tokenizer.json, with ``model.vocab`` a mapping or list of (piece, score) and ``added_tokens`` a list of tokens.

    Raises:
        CheckpointError: when it is not there, or these parts of it are something else.
    """
    file = folder / "tokenizer.json"
    if not file.is_file():
        found = next((other for other in ("tokenizer.model", "vocab.json", "vocab.txt") if (folder / other).is_file()), None)
        raise CheckpointError(
            f"Model '{name}': {folder} has no tokenizer.json{f', only {found}' if found else ''}. Write one with "
            "AutoTokenizer.from_pretrained(SRC).save_pretrained(SRC)."
        )
    data = read_json(file, name)
    model = data.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if not isinstance(vocabulary, dict) and not (isinstance(vocabulary, list) and all(map(_is_piece, vocabulary))):
        raise CheckpointError(f"Model '{name}': {file} has no vocabulary under model.vocab. {_AGAIN}")
    added = data["added_tokens"] = data.get("added_tokens") or []
    if not isinstance(added, list) or not all(isinstance(token, dict) and {"content", "id"} <= token.keys() for token in added):
        raise CheckpointError(f"Model '{name}': {file} has added_tokens that lack 'content' or 'id'. {_AGAIN}")
    return data


def tokenizer_folder(model: WeightSource) -> Path:
    """Return the folder of a model's tokenizer: the adapter's where that has one, as it has when it adds tokens."""
    if isinstance(model, AdaptedModel):
        own = model.adapter.folder
        return (
            own if any((own / file).is_file() for file in ("tokenizer.json", "vocab.json")) else tokenizer_folder(model.model)
        )
    return model_folder(model)


def model_folder(model: WeightSource) -> Path:
    """Return the folder of a model, or of the model under its adapter."""
    if isinstance(model, AdaptedModel):
        return model_folder(model.model)
    assert isinstance(model, Checkpoint), f"{model.name} is a {type(model).__name__}, not a model as it was opened"
    return model.folder


def _is_piece(piece: object) -> bool:
    return isinstance(piece, list) and len(piece) == 2 and isinstance(piece[1], int | float)


def _checked(pairs: Iterable[tuple[Any, Any]], folder: Path, name: str) -> dict[str, int]:
    """Return token -> id; a token may come twice, as added tokens of many tokenizers do, but with one id."""

    def damaged(what: str) -> CheckpointError:
        return CheckpointError(f"Model '{name}': the tokenizer in {folder} {what}. {_AGAIN}")

    ids: dict[str, int] = {}
    tokens: dict[int, str] = {}
    for token, index in pairs:
        if not isinstance(token, str):
            raise damaged(f"has a {type(token).__name__} where a token should be")
        if type(index) is not int or not 0 <= index <= MAX_ID:
            got = f"{index!r:.40}" if isinstance(index, int | float | str) else type(index).__name__
            raise damaged(f"gives {token!r:.60} the id {got}, which is no whole number from 0 to {MAX_ID}")
        if ids.setdefault(token, index) != index:
            raise damaged(f"gives {token!r:.60} two ids, {ids[token]} and {index}")
        if tokens.setdefault(index, token) != token:
            raise damaged(f"gives the id {index} to {tokens[index]!r:.60} and to {token!r:.60}")
    if not ids:
        raise damaged("holds no tokens")
    return ids
