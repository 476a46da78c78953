"""The merge methods, by name.

To add one, write its function, declare it and name it here; tests/core/test_method_laws.py holds it to the laws of all methods.
"""

from kinray.core.methods.declaration import LinearForm, Method, Parameter, Params, combine, gram_of
from kinray.core.methods.linear import LINEAR, SLERP, TASK_ARITHMETIC
from kinray.core.methods.sparse import DARE_TIES, TIES
from kinray.errors import RecipeError, did_you_mean

METHODS = {method.name: method for method in (LINEAR, SLERP, TASK_ARITHMETIC, TIES, DARE_TIES)}


def method_named(name: str) -> Method:
    """Return a merge method, or raise RecipeError with a suggestion and the list."""
    if name not in METHODS:
        raise RecipeError(f"There is no merge method '{name}'.{did_you_mean(name, METHODS)}")
    return METHODS[name]


__all__ = ["METHODS", "LinearForm", "Method", "Parameter", "Params", "combine", "gram_of", "method_named"]
