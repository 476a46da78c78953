"""Rows of embeddings and output layers: which tensors have one for each token, and a model seen with other rows.

Shape suffixes: V rows of the child, M models, N rows that a model lacks.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from kinray.checkpoints.adapters import AdaptedModel
from kinray.checkpoints.folder import ModelView, WeightSource
from kinray.checkpoints.header import TensorInfo
from kinray.core.layers import layer_of
from kinray.errors import CheckpointError

if TYPE_CHECKING:
    import torch

Rows = npt.NDArray[np.int64]

_NAMED = re.compile(
    r"(.+\.)?(embed_tokens|tok_embeddings|word_embeddings|wte|embed_in|embed|embeddings?|lm_head|embed_out|output)\.(weight|bias)"
)
"""What tensors of the vocabulary are called, for models in which their size does not tell them."""


def vocabulary_tensors(model: WeightSource) -> frozenset[str]:
    """Name the tensors that have a row for each token: embeddings, and the weight and bias of the output layer.

    They are those outside of all layers whose first dimension is the config's vocab_size; where another setting or their width
    has the same value, so that a norm's weight looks like an output bias, their names must also say so.

    Raises:
        CheckpointError: when there is none.
    """
    plain = model.model if isinstance(model, AdaptedModel) else model
    for config in (plain.config, plain.config.get("text_config")):
        if not isinstance(config, dict) or type(size := config.get("vocab_size")) is not int:
            continue
        found = {
            name: info.shape
            for name, info in plain.tensors.items()
            if info.floating and len(info.shape) in (1, 2) and info.shape[0] == size and layer_of(name) is None
        }
        others = [value for key, value in config.items() if key != "vocab_size"]
        others += [shape[1] for shape in found.values() if len(shape) == 2]
        if any(type(value) is int and value == size for value in others):
            found = {name: shape for name, shape in found.items() if _NAMED.fullmatch(name)}
        if found:
            return frozenset(found)
    raise CheckpointError(
        f"Model '{model.name}': no embedding has as many rows as the vocab_size in its config.json. "
        "Correct vocab_size, or merge without tokenizer_source."
    )


def count_rows(model: WeightSource) -> int:
    """Return how many rows the tensors of a model's vocabulary have, which an adapter may have changed.

    Raises:
        CheckpointError: when they differ, as where an adapter brings a new embedding but no output layer.
    """
    first, *others = sorted(vocabulary_tensors(model))
    count = model.tensors[first].shape[0]
    for name in others:
        if model.tensors[name].shape[0] != count:
            raise CheckpointError(
                f"Model '{model.name}': '{first}' has {count} rows but '{name}' has {model.tensors[name].shape[0]}. "
                "Both must have a row for each token; save the adapter with both, or merge it with PEFT first."
            )
    return count


@dataclass
class ReindexedModel(ModelView):
    """A model whose embeddings and output layer have the child's rows; all other tensors are its own.

    Args:
        models: all models, whose rows fill gaps.
        number: which of them it is.
        rows: of each model, (V,) int64, its own row for each row of the child, -1 where it has none.
        base: number of the model that fills gaps first, if any.
        owner: number of the model whose mean row fills what no model has.
    """

    model: WeightSource = field(init=False)
    models: Sequence[WeightSource]
    number: int
    rows: Sequence[Rows]
    base: int | None
    owner: int

    def __post_init__(self) -> None:
        self.model = self.models[self.number]

    @cached_property
    def tensors(self) -> dict[str, TensorInfo]:
        """Its tensors, those of the vocabulary with the child's number of rows."""
        size = len(self.rows[self.number])
        return {
            name: replace(info, shape=(size, *info.shape[1:])) if name in self._reindexed else info
            for name, info in self.model.tensors.items()
        }

    @cached_property
    def _reindexed(self) -> frozenset[str]:
        return vocabulary_tensors(self.model)

    def load(self, name: str) -> "torch.Tensor":
        """Return a tensor in the model's own dtype; one of the vocabulary is made anew each time."""
        tensor = self.model.load(name)
        if name not in self._reindexed:
            return tensor
        import torch

        rows_V = torch.from_numpy(self.rows[self.number])
        result = tensor[rows_V.clamp(min=0)]
        del tensor
        lacking_N = (rows_V < 0).nonzero().flatten()
        if len(lacking_N):
            filled = self._filled(name, lacking_N, torch.promote_types(result.dtype, torch.float32))
            result[lacking_N] = filled.to(result.dtype)
        return result

    def _filled(self, name: str, lacking_N: "torch.Tensor", dtype: "torch.dtype") -> "torch.Tensor":
        """Return what stands in for the rows that this model lacks, (N, width) or for a bias (N,)."""
        import torch

        rows_MN = torch.from_numpy(np.stack(self.rows))[:, lacking_N]
        gives_MN = rows_MN >= 0
        if self.base is not None:
            from_base_N = gives_MN[self.base].clone()
            gives_MN &= ~from_base_N
            gives_MN[self.base] = from_base_N
        total = torch.zeros(len(lacking_N), *self.model.tensors[name].shape[1:], dtype=dtype)
        for model, rows_N, gives_N in zip(self.models, rows_MN, gives_MN, strict=True):
            if gives_N.any():
                total[gives_N] += model.load(name)[rows_N[gives_N]].to(dtype)
        givers_N = gives_MN.sum(0)
        if not givers_N.all():
            total[givers_N == 0] = _mean_row(self.models[self.owner].load(name), dtype)
        return total / givers_N.clamp(min=1).view(-1, *[1] * (total.dim() - 1))


def _mean_row(tensor: "torch.Tensor", dtype: "torch.dtype", block: int = 1 << 14) -> "torch.Tensor":
    """Return the mean over all rows, in blocks, so that no large tensor is converted as a whole."""
    import torch

    sums = [tensor[start : start + block].to(torch.float64).sum(0) for start in range(0, len(tensor), block)]
    return (torch.stack(sums).sum(0) / len(tensor)).to(dtype)
