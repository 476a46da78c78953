"""Tiny models with a tokenizer: a row of embedding and output layer for each word."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor

from kinray.checkpoints.folder import Checkpoint, open_checkpoint
from tests.helpers import ARCHITECTURE, make_model, random_tensors

WIDTH = 3
SHAPE = {"model.norm.weight": (WIDTH,), "model.layers.0.mlp.weight": (4, WIDTH)}


def word_level(ids: Mapping[str, int]) -> Tokenizer:
    """Make a tokenizer that cuts at blanks; the first word stands for unknown ones."""
    tokenizer = Tokenizer(models.WordLevel(dict(ids), unk_token=next(iter(ids))))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer


def byte_bpe(text: str, special: Sequence[str] = ("<s>",)) -> Tokenizer:
    """Train a byte-level BPE tokenizer that makes a token of every word of ``text``."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1000, special_tokens=list(special), initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator([text], trainer)
    return tokenizer


def unigram(scores: Mapping[str, float]) -> Tokenizer:
    """Make a Unigram tokenizer over whole text; the first piece stands for unknown characters."""
    return Tokenizer(models.Unigram(list(scores.items()), unk_id=0))


def special(tokenizer: Tokenizer, *tokens: str) -> Tokenizer:
    """Add special tokens."""
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in tokens])
    return tokenizer


def model_with(
    folder: Path,
    tokenizer: Tokenizer | Mapping[str, int],
    rows: int | None = None,
    seed: int = 0,
    tied: bool = False,
    dtype: torch.dtype = torch.float32,
    **config: Any,
) -> Checkpoint:
    """Write a model with random weights, as many rows as there are ids unless told, and open it under its folder's name."""
    tokenizer = word_level(tokenizer) if isinstance(tokenizer, Mapping) else tokenizer
    rows = 1 + max(tokenizer.get_vocab().values()) if rows is None else rows
    ends = {"model.embed_tokens.weight": (rows, WIDTH)} | (
        {} if tied else {"lm_head.weight": (rows, WIDTH), "lm_head.bias": (rows,)}
    )
    settings = {"architectures": [ARCHITECTURE], "vocab_size": rows, "hidden_size": WIDTH, **config}
    make_model(folder, random_tensors(seed, ends | SHAPE, dtype), settings)
    tokenizer.save(str(folder / "tokenizer.json"))
    return open_checkpoint(folder, folder.name)


def tensors_of(model: Checkpoint) -> dict[str, Tensor]:
    return {name: model.load(name) for name in model.tensors}


def edit(file: Path, **changes: Any) -> None:
    """Change top-level keys of a JSON file."""
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
