"""The merge methods, by name.

To add one, write its function, declare it and name it here; tests/core/test_method_laws.py holds it to the laws of all methods.
"""

from kinray.core.methods.adaptive import MODEL_STOCK, RAM, RAMPLUS_TL, SCE
from kinray.core.methods.blocks import read_blocks, write_blocks
from kinray.core.methods.declaration import LinearForm, Method, Parameter, Params
from kinray.core.methods.linear import LINEAR, PASSTHROUGH, SLERP, TASK_ARITHMETIC
from kinray.core.methods.pairs import ARCEE_FUSION, NEARSWAP
from kinray.core.methods.sparse import (
    BREADCRUMBS,
    BREADCRUMBS_TIES,
    DARE_LINEAR,
    DARE_TIES,
    DELLA,
    DELLA_LINEAR,
    TIES,
)
from kinray.core.methods.spherical import KARCHER, MULTISLERP, NUSLERP
from kinray.errors import RecipeError, did_you_mean

_ALL = (
    *(LINEAR, SLERP, NUSLERP, MULTISLERP, KARCHER, TASK_ARITHMETIC),
    *(TIES, DARE_LINEAR, DARE_TIES, DELLA, DELLA_LINEAR, BREADCRUMBS, BREADCRUMBS_TIES),
    *(SCE, MODEL_STOCK, NEARSWAP, ARCEE_FUSION, RAM, RAMPLUS_TL, PASSTHROUGH),
)
METHODS = {method.name: method for method in _ALL}


def method_named(name: str) -> Method:
    """Return a merge method, or raise RecipeError with a suggestion and the list."""
    if name not in METHODS:
        raise RecipeError(f"There is no merge method '{name}'.{did_you_mean(name, METHODS)}")
    return METHODS[name]


__all__ = ["METHODS", "LinearForm", "Method", "Parameter", "Params", "method_named", "read_blocks", "write_blocks"]
