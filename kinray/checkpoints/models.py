"""The base and the founders of a search, opened together and checked to fit each other from their headers alone."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kinray.checkpoints.adapters import open_model
from kinray.checkpoints.folder import EMBEDDINGS, OUTPUT_LAYER, ModelView, WeightSource
from kinray.checkpoints.header import TensorInfo
from kinray.core.recipe import Founder
from kinray.errors import CheckpointError

if TYPE_CHECKING:
    import torch

_CACHES = ("rotary_emb.inv_freq", "rotary_emb.cos_cached", "rotary_emb.sin_cached", ".masked_bias")
"""Ends of the names of buffers that old checkpoints hold though they follow from the config."""

_SAME = ("num_attention_heads", "num_key_value_heads", "head_dim", "hidden_size", "hidden_act")
"""Settings without which equal shapes do not mean equal use."""

_ABSENT = "absent"
_FEW = 10
"""A model that has less than this part of the base's tensors is another one, or names them otherwise."""

_NOTED = ("rope_theta", "rope_scaling", "sliding_window", "rms_norm_eps", "tie_word_embeddings")
"""Settings that change what a model computes; children have the base's."""


@dataclass(frozen=True)
class ModelSpec:
    """Which model, and where it lies on this node; small, so that it travels to workers.

    Args:
        founder: digest and name.
        folder: of the model.
        adapter: of a LoRA adapter on top of it, if any.
    """

    founder: Founder
    folder: Path
    adapter: Path | None = None


@dataclass
class FittedModel(ModelView):
    """A model seen with the base's tensors.

    Surplus rows of its vocabulary are left out; missing rows and missing tensors are the base's, so that their delta is zero.

    Args:
        model: as it was opened.
        base: what it is fitted to.
        rows: of tensors with more or fewer rows than the base's, how many the model has.
        missing: tensors that the model lacks.
        tied: its embedding, where that is its output layer too and the base's is not: by the name of the output layer.
    """

    base: WeightSource
    rows: dict[str, int]
    missing: frozenset[str] = frozenset()
    tied: dict[str, str] = field(default_factory=dict)

    @cached_property
    def tensors(self) -> dict[str, TensorInfo]:
        """Its tensors, with the base's shapes."""
        own = {
            name: replace(info, shape=self.base.tensors[name].shape) if name in self.rows else info
            for name, info in self.model.tensors.items()
        }
        return own | {name: self.base.tensors[name] for name in (*self.missing, *self.tied)}

    def load(self, name: str) -> "torch.Tensor":
        """Return a tensor with the base's shape."""
        if name in self.missing:
            return self.base.load(name)
        tensor = self.model.load(self.tied.get(name, name))
        if name not in self.rows:
            return tensor
        import torch

        wanted = self.base.tensors[name].shape[0]
        if wanted <= tensor.shape[0]:
            return tensor[:wanted]
        return torch.cat([tensor, self.base.load(name)[tensor.shape[0] :].to(tensor.dtype)])


@dataclass
class Models:
    """A base and founders that fit each other.

    Args:
        specs: the base's first.
        sources: their weights by digest.
        names: the tensors that merging is about, in file order: all that hold weights, tied ones once.
        notices: what a person should know of how they were made to fit.
    """

    specs: tuple[ModelSpec, ...]
    sources: dict[str, WeightSource]
    names: tuple[str, ...]
    notices: list[str] = field(default_factory=list)

    @property
    def base(self) -> WeightSource:
        """The weights of the base."""
        return self.sources[self.specs[0].founder.digest]

    @property
    def digests(self) -> tuple[str, ...]:
        """The base's digest, then the founders'."""
        return tuple(spec.founder.digest for spec in self.specs)

    @property
    def parameters(self) -> int:
        """Weights in one model, tied ones counted once."""
        return sum(self.base.tensors[name].numel for name in self.names)

    def nbytes(self) -> int:
        """Bytes of all models' weights."""
        return sum(source.tensors[name].nbytes for source in self.sources.values() for name in self.names)


def open_models(specs: Sequence[ModelSpec]) -> Models:
    """Open the base and the founders and check that they fit.

    Args:
        specs: the base's first.

    Raises:
        CheckpointError: for a damaged folder, another architecture, a tensor that one model lacks, or a shape that
            differs in more than the number of vocabulary rows; all before any data is read.
    """
    base = open_model(specs[0].folder, specs[0].adapter, specs[0].founder.name)
    names = weight_names(base)
    sources: dict[str, WeightSource] = {specs[0].founder.digest: base}
    notices: list[str] = []
    for spec in specs[1:]:
        model = open_model(spec.folder, spec.adapter, spec.founder.name)
        sources[spec.founder.digest] = fit(model, base, names, notices)
    return Models(tuple(specs), sources, names, notices)


def weight_names(base: WeightSource) -> tuple[str, ...]:
    """List the tensors that hold weights: no integer buffers, no rotary caches, an output layer that is tied left out."""
    tied = _is_tied(base)
    return tuple(
        name
        for name, info in base.tensors.items()
        if info.floating
        and not name.endswith(_CACHES)
        and not (
            name.endswith((".attn.bias", ".attention.bias")) and len(info.shape) == 4
        )  # causal masks of old GPT-2, GPT-NeoX
        and not (tied and name.endswith(OUTPUT_LAYER) and len(base.tensors) > 1)
    )


def fit(
    model: WeightSource, base: WeightSource, names: Sequence[str], notices: list[str], *, fill: bool = False
) -> WeightSource:
    """Check a founder against the base, tensor by tensor, and fit its vocabulary.

    Args:
        model: the founder.
        base: the base.
        names: the base's tensors that hold weights.
        notices: gets what a person should know.
        fill: whether tensors may be missing; they are the base's. Those that the base lacks are not looked at.

    Raises:
        CheckpointError: naming the first tensor that does not fit, and both shapes.
    """
    check_alike(model, base, notices)
    extra = [] if fill else [name for name in weight_names(model) if name not in base.tensors]
    if extra:
        raise CheckpointError(f"Model '{model.name}' has tensor '{extra[0]}', which the base '{base.name}' does not have.")
    has, wanted = model.tensors, base.tensors
    if fill and _FEW * sum(name in has for name in names) < len(names):
        own, lacking = (min(set(one) - set(other), default="none") for one, other in ((has, names), (names, has)))
        raise CheckpointError(
            f"Model '{model.name}' has few of the tensors of '{base.name}': it has '{own}', not '{lacking}'. Are its tensors "
            "named in another way, or is it an adapter (name it 'model+adapter')?"
        )
    rows: dict[str, int] = {}
    missing: set[str] = set()
    tied: dict[str, str] = {}
    for name in names:
        own = name
        if name not in has and fill:
            untied = _setting(model, "tie_word_embeddings") is False
            embedding = _embedding(model) if name.endswith(OUTPUT_LAYER) and not untied else None
            if embedding is None:
                missing.add(name)
                continue
            own = tied[name] = embedding
        if own not in has:
            raise CheckpointError(f"Model '{model.name}' has no tensor '{name}', which the base '{base.name}' has.")
        if not has[own].floating:
            raise CheckpointError(f"Tensor '{own}' of '{model.name}' is {has[own].dtype}, which holds no weights.")
        got, expected = has[own].shape, wanted[name].shape
        if got == expected:
            continue
        if got[1:] != expected[1:] or got[0] != _vocabulary(model) or expected[0] != _vocabulary(base):
            raise CheckpointError(
                f"Tensor '{name}' has shape {got} in '{model.name}' but {expected} in '{base.name}'. Founders must share one "
                "architecture; remove one of them."
            )
        rows[name] = got[0]
    if rows:
        surplus = _vocabulary(model) - _vocabulary(base)
        what = f"the last {surplus} are left out" if surplus > 0 else f"the missing {-surplus} are taken from the base"
        notices.append(f"'{model.name}' has {_vocabulary(model)} vocabulary rows, the base has {_vocabulary(base)}: {what}.")
    if missing:
        some = next(name for name in names if name in missing)
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        notices.append(f"'{model.name}' lacks '{some}'{more}: taken from '{base.name}'.")
    return FittedModel(model, base, rows, frozenset(missing), tied) if rows or missing or tied else model


def check_alike(model: WeightSource, base: WeightSource, notices: list[str]) -> None:
    """Check from the configs that two models compute in the same way.

    Args:
        model: the one.
        base: the other, whose settings count where they may differ.
        notices: gets which they are.

    Raises:
        CheckpointError: for another architecture, or a setting without which equal shapes do not mean equal use.
    """
    ours, theirs = base.config["architectures"][0], model.config["architectures"][0]
    if ours != theirs:
        raise CheckpointError(
            f"Model '{model.name}' is a {theirs}, but the base '{base.name}' is a {ours}. All must share one architecture."
        )
    _compare_configs(model, base, notices)


def _embedding(model: WeightSource) -> str | None:
    """Name the embedding of a model by its usual names."""
    return next((name for name in model.tensors if name.endswith(EMBEDDINGS)), None)


def _is_tied(model: WeightSource) -> bool:
    return _setting(model, "tie_word_embeddings") is True


def _compare_configs(model: WeightSource, base: WeightSource, notices: list[str]) -> None:
    """Refuse a founder that computes otherwise than the base, and note settings that children take from the base.

    Raises:
        CheckpointError: when heads or the activation differ, for then equal shapes do not mean the same.
    """
    for key in (*_SAME, *_NOTED):
        ours, theirs = _setting(base, key), _setting(model, key)
        if ours == theirs or _ABSENT in (ours, theirs) or (key in _SAME and None in (ours, theirs)):  # null: as others imply
            continue
        if key in _SAME:
            raise CheckpointError(
                f"Model '{model.name}' has {key} {theirs!r} but the base '{base.name}' has {ours!r}. Weights that are used in "
                "different ways cannot be merged; remove one of them."
            )
        notices.append(f"'{model.name}' has {key} {theirs!r}; children have the base's {ours!r}.")


def _setting(model: WeightSource, key: str) -> Any:
    """Look a setting up in the config, in that of its text part, and where transformers 5 keeps those of rotary embeddings."""
    for part in (model.config, model.config.get("text_config"), model.config.get("rope_parameters")):
        if isinstance(part, dict) and key in part:
            return part[key]
    return _ABSENT


def _vocabulary(model: WeightSource) -> int:
    size = _setting(model, "vocab_size")
    return size if isinstance(size, int) else -1
