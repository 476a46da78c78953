"""One vocabulary for models that number their tokens differently (mergekit's ``tokenizer_source``).

Rows of embeddings and output layers are matched by token, not by number. A token that a model lacks gets the base's row; if the
base lacks it too, the mean of the rows of all models that have it (of a single one: its row); a row that no model has gets the
mean of the rows of the model whose tokenizer it is, for a row of zeros would be a likely token in an output layer. All models
that lack a token are given the same row for it.

Rows without a token, by which embeddings are often padded, keep their numbers and are matched by number.
"""

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from kinray.checkpoints.folder import WeightSource
from kinray.checkpoints.rows import ReindexedModel, Rows, count_rows
from kinray.checkpoints.tokens import model_folder, read_tokens
from kinray.checkpoints.union import united
from kinray.checkpoints.writer import copy_tokenizer

_TOKEN_ID = re.compile(r".*token_(id|ids|index)")
_BEFORE_UNION = ("tokenizer.model", "vocab.json", "vocab.txt", "merges.txt", "added_tokens.json")
"""Files that would say the vocabulary without the tokens that a union adds."""


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """Which token each row of the child stands for, and where each model keeps it.

    Args:
        size: V, rows of the child's embeddings and output layer.
        rows: of each model, (V,) int64, its own row for each row of the child, -1 where it has none.
        base: number of the model whose rows fill gaps first, if any.
        owner: number of the model whose tokenizer and token ids the child has.
        tokenizer: folder of its tokenizer files.
        generation_config: its file of that name, which need not exist.
        changed: contents of JSON files that differ from those in ``tokenizer``; a union has some.
        notices: what a person should know of it.
    """

    size: int
    rows: tuple[Rows, ...]
    base: int | None
    owner: int
    tokenizer: Path
    generation_config: Path
    changed: Mapping[str, Mapping[str, Any]]
    notices: tuple[str, ...]


def plan_vocabulary(
    models: Sequence[WeightSource],
    base: int | None,
    source: Literal["base", "union"] | int,
    pad_to_multiple_of: int | None = None,
) -> Vocabulary:
    """Decide which tokens the child has and in which rows.

    Args:
        models: as they were opened, not yet fitted to each other.
        base: number of the base model among them, if there is one.
        source: ``base``, the tokenizer of the base, else of the first model; ``union``, the same and, behind its last token,
            those that only others have a row for, in the order of models and ids; or the number of a model.
        pad_to_multiple_of: the number of rows is rounded up to it, at least 1.

    Raises:
        CheckpointError: when a tokenizer cannot be read, a union cannot be made, or no tensor of a model has its vocabulary's
            size.
    """
    owner = source if isinstance(source, int) else base or 0
    counts = [count_rows(model) for model in models]
    read = [read_tokens(model) for model in models]
    held = [{token: at for token, at in own.ids.items() if at < count} for own, count in zip(read, counts, strict=True)]
    new = _new_tokens(read[owner].ids, held) if source == "union" else {}
    tokens = dict(read[owner].ids)
    for more in new.values():
        tokens |= more
    last = max((at for token, at in tokens.items() if any(token in own for own in held)), default=-1)
    size = max(counts[owner], last + 1)
    if pad_to_multiple_of is not None:
        size = -(-size // pad_to_multiple_of) * pad_to_multiple_of
    rows = tuple(_match_rows(tokens, own, count, size) for own, count in zip(held, counts, strict=True))
    added = f" and {len(tokens) - len(read[owner].ids)} that only others have" if new else ""
    notices = [f"The child has {size} vocabulary rows: the {len(read[owner].ids)} tokens of '{read[owner].name}'{added}."]
    for own, count, row in zip(read, counts, rows, strict=True):
        notices += _notices(own.name, own.ids, tokens, count, row)
    if without := int((np.stack(rows) < 0).all(0).sum()):
        notices.append(f"Rows that no model has: {without}; each is the mean of the rows of '{read[owner].name}'.")
    return Vocabulary(
        size=size,
        rows=rows,
        base=base,
        owner=owner,
        tokenizer=read[owner].folder,
        generation_config=model_folder(models[owner]) / "generation_config.json",
        changed=united(read[owner], [(read[number], more) for number, more in new.items()]) if new else {},
        notices=tuple(notices) if new or len(notices) > 1 else (),
    )


def with_vocabulary(models: Sequence[WeightSource], vocabulary: Vocabulary) -> list[WeightSource]:
    """Show models with the child's vocabulary; one that has it already is returned as it is, its tensors mapped from files.

    Args:
        models: those that the vocabulary was planned for.
        vocabulary: the child's.
    """
    same = np.arange(vocabulary.size)
    return [
        model
        if count_rows(model) == vocabulary.size and np.array_equal(rows, same)
        else ReindexedModel(models, number, vocabulary.rows, vocabulary.base, vocabulary.owner)
        for number, (model, rows) in enumerate(zip(models, vocabulary.rows, strict=True))
    ]


def config_with_vocabulary(config: Mapping[str, Any], owner: Mapping[str, Any], size: int) -> dict[str, Any]:
    """Return config.json with the child's vocab_size and with the token ids (bos, eos, pad …) of the tokenizer's model.

    Args:
        config: what else the child's config says.
        owner: config.json of the model whose tokenizer the child has; an id that it does not name is left out.
        size: rows of the child.
    """
    result = {key: value for key, value in config.items() if key in owner or not _TOKEN_ID.fullmatch(key)}
    result |= {key: value for key, value in owner.items() if _TOKEN_ID.fullmatch(key)}
    if "vocab_size" in result:
        result["vocab_size"] = size
    if isinstance(text := config.get("text_config"), dict):
        theirs = owner.get("text_config")
        result["text_config"] = config_with_vocabulary(text, theirs if isinstance(theirs, dict) else owner, size)
    return result


def write_tokenizer(vocabulary: Vocabulary, folder: Path) -> None:
    """Write the child's tokenizer files and generation config into its folder."""
    copy_tokenizer(vocabulary.tokenizer, folder)
    if vocabulary.generation_config.is_file():
        shutil.copyfile(vocabulary.generation_config, folder / vocabulary.generation_config.name)
    if vocabulary.changed:
        for name in _BEFORE_UNION:
            (folder / name).unlink(missing_ok=True)
    for name, contents in vocabulary.changed.items():
        (folder / name).write_text(json.dumps(contents, indent=2) + "\n", encoding="utf-8")


def _new_tokens(owner: Mapping[str, int], held: Sequence[Mapping[str, int]]) -> dict[int, dict[str, int]]:
    """Number the tokens that only others have: model -> token -> new id, after the owner's last."""
    known = set(owner)
    place = max(owner.values()) + 1
    new: dict[int, dict[str, int]] = {}
    for number, own in enumerate(held):
        for token in sorted(own.keys() - known, key=own.__getitem__):
            new.setdefault(number, {})[token] = place
            place += 1
        known |= own.keys()
    return new


def _match_rows(tokens: Mapping[str, int], held: Mapping[str, int], count: int, size: int) -> Rows:
    """Find a model's row for each row of the child: by token, and by number where neither has a token."""
    rows_V = np.full(size, -1, np.int64)
    unnamed = np.ones(max(size, count), bool)
    unnamed[list(held.values())] = False
    for token, place in tokens.items():
        if place < size:
            unnamed[place] = False
            rows_V[place] = held.get(token, -1)
    by_number = np.flatnonzero(unnamed[: min(size, count)])
    rows_V[by_number] = by_number
    return rows_V


def _notices(name: str, ids: Mapping[str, int], tokens: Mapping[str, int], count: int, rows_V: Rows) -> list[str]:
    """Say what becomes of a model's tokens, unless it keeps all of them and lacks none."""
    dropped = sum(token not in tokens for token in ids)
    filled = int((rows_V < 0).sum())
    if not dropped and not filled:
        return []
    return [f"'{name}' ({len(ids)} tokens, {count} rows): tokens left out: {dropped}; rows filled in: {filled}."]
