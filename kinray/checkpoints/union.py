"""One tokenizer made of several (mergekit's ``tokenizer_source: union``), so that new tokens come out of text.

The tokenizers library numbers an added token itself, whatever its file says, unless the token is in the vocabulary proper. So a
union lists every token there with its id, and then checks what the library makes of it.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from kinray.checkpoints.folder import read_json
from kinray.checkpoints.tokens import Tokens, read_tokenizer
from kinray.errors import CheckpointError

_INSTEAD = "Set tokenizer_source to base or to one of the models."
_FLAGS = ("content", "single_word", "lstrip", "rstrip", "normalized", "special")


def united(owner: Tokens, new: Iterable[tuple[Tokens, Mapping[str, int]]]) -> dict[str, dict[str, Any]]:
    """Add tokens of other models to a tokenizer.

    An added token is added as what it is there, special or not. Any other goes into the vocabulary proper: a BPE token with the
    merges that make it, after all merges there are, so that text is cut as before unless a new token comes of it; a Unigram
    token with its score.

    Args:
        owner: the tokenizer that is added to.
        new: (model, its tokens that the owner lacks -> their new ids), ids above all of the owner's.

    Returns:
        file name -> contents, of the files that differ from the owner's.

    Raises:
        CheckpointError: when a model has no tokenizer.json, when tokenizers of two kinds (such as BPE and Unigram) would have
            to be made one, or the library does not load the result as planned.
    """
    data = read_tokenizer(owner.folder, owner.name)
    model, ids = data["model"], dict(owner.ids)
    scores: dict[str, float] = {}
    for tokens, wanted in new:
        ids |= wanted
        theirs = read_tokenizer(tokens.folder, tokens.name)
        added = [token | {"id": wanted[token["content"]]} for token in theirs["added_tokens"] if token["content"] in wanted]
        data["added_tokens"] += added
        plain = wanted.keys() - {token["content"] for token in added}
        if plain and _kind(theirs["model"]) != _kind(model):
            raise CheckpointError(
                f"Model '{tokens.name}' has a {_kind(theirs['model'])} tokenizer but '{owner.name}' has a {_kind(model)} one: "
                f"they cannot be made one. {_INSTEAD}"
            )
        if plain and _kind(model) == "BPE":
            model["merges"] = _merges(model, owner) + _merges_making(plain, theirs["model"], tokens, ids)
        if isinstance(theirs["model"]["vocab"], list):
            scores |= {piece: score for piece, score in theirs["model"]["vocab"] if piece in plain}
    if isinstance(model["vocab"], list):
        _extend_pieces(model["vocab"], ids, scores)
    else:
        model["vocab"] |= ids
    _check(data, ids, owner)
    return {"tokenizer.json": data} | _tokenizer_config(owner, data["added_tokens"])


def _kind(model: Mapping[str, Any]) -> str:
    """Name the kind of a tokenizer, which old files leave to be guessed."""
    if isinstance(model["vocab"], list):
        return "Unigram"
    return str(model.get("type", "BPE" if "merges" in model else "WordPiece"))


def _merges(model: Mapping[str, Any], tokens: Tokens) -> list[list[str]]:
    """List the merges of a BPE model, which files write as pairs or, older ones, as 'left right'."""
    merges = model.get("merges")
    pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in merges] if isinstance(merges, list) else [[]]
    if not all(isinstance(pair, list) and len(pair) == 2 and all(isinstance(part, str) for part in pair) for pair in pairs):
        raise CheckpointError(
            f"Model '{tokens.name}': {tokens.folder / 'tokenizer.json'} has merges that are no pairs of tokens. "
            "Copy or download the tokenizer again."
        )
    return pairs


def _merges_making(
    wanted: Iterable[str], model: Mapping[str, Any], tokens: Tokens, known: Mapping[str, int]
) -> list[list[str]]:
    """List the merges that make one of the ``wanted`` tokens out of ``known`` ones, in the order of their model."""
    wanted = set(wanted)
    prefix = len(str(model.get("continuing_subword_prefix") or ""))
    return [
        [left, right]
        for left, right in _merges(model, tokens)
        if left + right[prefix:] in wanted and left in known and right in known
    ]


def _extend_pieces(pieces: list[Any], ids: Mapping[str, int], scores: Mapping[str, float]) -> None:
    """Lengthen a Unigram's list, in which the place is the id, to the last token.

    What has no score (added tokens, which are found before pieces are, and ids without a token) gets the lowest there is: the
    library derives the cost of unknown characters from the lowest score, so that one must stay.
    """
    lowest = min((score for _, score in pieces), default=0.0)
    tokens = {index: token for token, index in ids.items()}
    for index in range(len(pieces), max(tokens) + 1):
        token = tokens.get(index, f"<unused id {index}>")
        pieces.append([token, max(lowest, scores.get(token, lowest))])


def _tokenizer_config(owner: Tokens, added: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return tokenizer_config.json with all added tokens, if there is one that lists them."""
    file = owner.folder / "tokenizer_config.json"
    config = read_json(file, owner.name) if file.is_file() else {}
    listed = config.get("added_tokens_decoder")
    if not isinstance(listed, dict):
        return {}
    flags = {str(token["id"]): {key: token.get(key, False) for key in _FLAGS} for token in added}
    return {file.name: config | {"added_tokens_decoder": flags | listed}}


def _check(data: Mapping[str, Any], ids: Mapping[str, int], owner: Tokens) -> None:
    """Raise CheckpointError unless the tokenizers library gives every token its id."""
    from tokenizers import Tokenizer

    try:
        loaded = Tokenizer.from_str(json.dumps(data)).get_vocab(with_added_tokens=True)
        wrong = next((token for token, index in ids.items() if loaded.get(token) != index), None)
        reason = "" if wrong is None else f"it gives {wrong!r:.60} the id {loaded.get(wrong)}, not {ids[wrong]}"
    except Exception as error:  # the library raises nothing more special
        reason = " ".join(str(error).split())[:200]
    if reason:
        raise CheckpointError(
            f"The tokens of all models do not fit into the tokenizer of '{owner.name}' in {owner.folder}: {reason}. {_INSTEAD}"
        )
