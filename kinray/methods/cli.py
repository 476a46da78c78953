"""List the merge methods: how many models they take, their parameters with default and range, their papers."""

import argparse
import math
import sys
from collections.abc import Sequence

from kinray.core.methods import METHODS, Method, Parameter, method_named
from kinray.core.recipe import MAX_PARENTS
from kinray.errors import KinrayError


def main(argv: Sequence[str] | None = None) -> int:
    """Print the declarations of all methods or of those named; return 2 for an unknown name."""
    parser = argparse.ArgumentParser(prog="kinray methods", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="METHOD", help="only these")
    names = parser.parse_args(argv).names
    try:
        chosen = [method_named(name) for name in names] if names else list(METHODS.values())
    except KinrayError as error:
        print(f"kinray methods: {error}", file=sys.stderr)
        return 2
    print("\n\n".join(describe(method) for method in chosen))
    return 0


def describe(method: Method) -> str:
    """Describe one method in lines of plain text."""
    lines = [f"{method.name}: {_models(method)}", f"  {method.source}"]
    return "\n".join(
        lines + [f"  {_left(parameter):<34} {parameter.text}{_range(parameter)}" for parameter in method.parameters]
    )


def _models(method: Method) -> str:
    count = f"{method.min_parents} or more models" if method.max_parents == MAX_PARENTS else method.takes
    if method.uses_base:
        return f"{count} and their base"
    if method.optional_base:
        return f"{count}, and a base or none"
    return f"{count}, the first as the base" if method.first_is_base else count


def _left(parameter: Parameter) -> str:
    value = str(parameter.default).lower() if isinstance(parameter.default, bool) else f"{parameter.default:g}"
    return f"{parameter.name} = {value}{', per model' if parameter.per_model else ''}"


def _range(parameter: Parameter) -> str:
    if isinstance(parameter.default, bool) or (parameter.low, parameter.high) == (-math.inf, math.inf):
        return ""
    return f" ({parameter.low:g} or more)" if parameter.high == math.inf else f" ({parameter.low:g} to {parameter.high:g})"
