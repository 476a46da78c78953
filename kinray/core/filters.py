"""Which tensors the filters ``attention`` and ``mlp`` mean, by words of their names: no list of architectures.

A tensor belongs to the first filter that has a word in its name. The words end with a dot, since what stands before the last
dot is the module that a weight is of: ``attention.`` is in ``layers.0.attention.dense.weight`` and not in
``layers.0.post_attention_layernorm.weight``, which is a norm and belongs to the rest.
"""

from collections.abc import Iterable, Mapping

FILTERS: Mapping[str, tuple[str, ...]] = {
    "attention": ("attn.", "attention.", "Attention."),
    "mlp": ("mlp.", "feed_forward.", "ffn.", "moe.", "experts.", "fc1.", "fc2.", "DenseReluDense."),
    "rest": ("",),
}
"""Words of each filter, the filters in the order in which they are tried."""


def words_in(names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Return ``FILTERS`` with those words alone that are in one of the names of a model's tensors."""
    everything = "\n".join(names)
    return {name: tuple(word for word in words if word in everything) for name, words in FILTERS.items()}
