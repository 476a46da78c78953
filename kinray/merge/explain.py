"""What a merge does to which tensors: its effective parameters, and how much of each parent is in the result."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, pairwise
from typing import Any

from kinray.core.layers import layer_of
from kinray.core.methods import Params, method_named
from kinray.core.parameters import ParamValue
from kinray.core.recipe import Merge, topological
from kinray.merge.output import Output, Section
from kinray.merge.shares import Measured, effective_params, measure, shares
from kinray.merge.words import aligned, short_names

SHARES = (
    "A parent's share is its weight in the result: of its change from the base where the merge has one, else of its weights.\n"
    "Where a method is no weighted sum, it is the sum of the parents that comes closest to the result (by least squares).\n"
    "What has an arrow goes from the first of the layers to the last."
)


@dataclass(frozen=True)
class Group:
    """Tensors of one layer or of several, or of no layer, that have the same parameters.

    Args:
        stack: name of the stack of layers; None outside of layers.
        layers: numbers of the first and the last layer.
        what: which tensors of the layers, for a person; empty for all.
        names: of the tensors.
        params: their effective parameters.
    """

    stack: str | None
    layers: tuple[int, int]
    what: str
    names: tuple[str, ...]
    params: Params

    def where(self, last: int) -> str:
        """Say where they lie, from their first layer to a last one."""
        if self.stack is None:
            return self.what
        place = f"{self.stack}.{self.layers[0]}" + (f" to {last}" if last > self.layers[0] else "")
        return f"{place}: {self.what}" if self.what else place


def explain(output: Output) -> str:
    """Describe an output: for each merge and each group of tensors the effective parameters and the parents' shares.

    Reads weights as far as the shares depend on them.
    """
    known = short_names([*output.models, *_merges_of(output)])
    longer = [f"  {short} is {name}" for name, short in known.items() if short != name]
    parts = ["\n".join(["models", *longer])] if longer else []
    return "\n\n".join([*parts, *_tables(output, known, set()), SHARES])


def _merges_of(output: Output) -> list[str]:
    own = [label for section in output.sections for label in section.labels.values()]
    return [*(name for earlier in output.earlier.values() for name in _merges_of(earlier)), *own]


def _tables(output: Output, known: Mapping[str, str], done: set[str]) -> list[str]:
    """Describe the merges in the order in which they are made, each once."""
    parts: list[str] = []
    for name, earlier in output.earlier.items():
        if name not in done:
            parts += _tables(earlier, known, done)
            done.add(name)
    for section in output.sections:
        measured = measure(section)
        merges = [node for node in topological([section.recipe]) if isinstance(node, Merge)]
        parts += [_table(output, section, merge, measured[merge.digest], known) for merge in merges]
    copied: dict[str, list[str]] = {}
    for name, source in output.copied.items():
        copied.setdefault(known.get(source.name, source.name), []).append(name)
    return parts + [f"as they are, from {name}\n  {_listed(names)}" for name, names in copied.items()]


def _table(output: Output, section: Section, merge: Merge, measured: Mapping[str, Measured], known: Mapping[str, str]) -> str:
    method, groups = method_named(merge.method), groups_of(section, merge)
    parents = [known[section.labels[parent.digest]] for parent in merge.parents]
    base = f" on {known[section.labels[merge.base.digest]]}" if merge.base is not None else ""
    result = output.name if merge is section.recipe else section.labels[merge.digest]
    fixed = {p.name for p in method.parameters if len({group.params[p.name] for group in groups}) == 1}
    shown = [p.name for p in method.parameters if p.name not in fixed]
    settings = ", ".join(
        f"{p.name} {_value(groups[0].params[p.name], split=_differ(groups[0].params[p.name]))}"
        for p in method.parameters
        if p.name in fixed
    )
    title = f"{result} = {merge.method} of {', '.join(parents)}{base}" + (f"; {settings}" if settings else "")
    split = {name for name in shown if any(_differ(group.params[name]) for group in groups)}
    rows = [["tensors", *shown, *(f"share of {parent}" for parent in parents)]]
    for run in _runs(groups, shown):
        ends = [run[0]] if len(run) == 1 else [run[0], run[-1]]
        weights = [shares([measured[name] for name in group.names], len(parents)) for group in ends]
        row = [run[0].where(run[-1].layers[1])]
        row += [_from_to([_value(group.params[name], split=name in split) for group in ends]) for name in shown]
        row += [_from_to([f"{round(weight[at], 3) + 0.0:.3f}" for weight in weights]) for at in range(len(parents))]
        rows.append(row)
    return title + "\n" + aligned(rows)


def groups_of(section: Section, merge: Merge) -> list[Group]:
    """Group tensors by where they lie and their effective parameters; layers in a row with the same ones are one group.

    Kinds of tensors that have the same parameters in all layers go together, layer by layer.
    """
    params = effective_params(section, merge)
    places: dict[tuple[str | None, str], dict[int, str]] = {}  # of each kind of tensors, where it is
    for name in section.models.names:
        stack, number = layer_of(name) or (None, 0)
        places.setdefault((stack, _kind(name)), {})[number] = name
    bundles: dict[Any, list[str]] = {}
    for (stack, kind), names in places.items():
        alike = tuple((number, repr(sorted(params[name].items()))) for number, name in sorted(names.items()))
        bundles.setdefault((stack, alike), []).append(kind)
    groups: list[Group] = []
    for (stack, alike), kinds in sorted(bundles.items(), key=lambda bundle: bundle[0][0] is not None):
        what = _listed(kinds) if stack is None else _within(kinds, [kind for at, kind in places if at == stack])
        own: list[Group] = []
        for number, _ in alike:
            names_here = tuple(places[stack, kind][number] for kind in kinds)
            here = Group(stack, (number, number), what, names_here, params[names_here[0]])
            if own and own[-1].params == here.params:
                before = own.pop()
                here = replace(here, layers=(before.layers[0], number), names=before.names + names_here)
            own.append(here)
        groups += own
    return groups


def _follow(before: Group, group: Group) -> bool:
    return group.stack is not None and (before.stack, before.what) == (group.stack, group.what)


def _runs(groups: Sequence[Group], shown: Sequence[str]) -> list[list[Group]]:
    """Fold groups that follow each other and whose parameters only rise, or only fall."""
    runs: list[list[Group]] = []
    for group in groups:
        numbers = _numbers(group, shown)
        if runs and _follow(runs[-1][-1], group) and numbers is not None:
            run = [*(_numbers(one, shown) or () for one in runs[-1]), numbers]
            ways = [{(b > a) - (b < a) for a, b in pairwise(column)} for column in zip(*run, strict=True)]
            if all(not {1, -1} <= way for way in ways):
                runs[-1].append(group)
                continue
        runs.append([group])
    return runs


def _numbers(group: Group, shown: Sequence[str]) -> tuple[float, ...] | None:
    """Return the parameters that are shown as numbers; None where one is a truth value."""
    values = [group.params[name] for name in shown]
    flat = [one for value in values for one in (value if isinstance(value, tuple) else (value,))]
    numbers = tuple(one for one in flat if isinstance(one, float))
    return numbers if len(numbers) == len(flat) else None


# -- words


def _kind(name: str) -> str:
    """Return what a tensor is within its layer, or its whole name outside of layers."""
    layer = layer_of(name)
    return name if layer is None else name.removeprefix(f"{layer[0]}.{layer[1]}.").removeprefix(f"{layer[1]}.")


def _within(kinds: Sequence[str], every: Sequence[str]) -> str:
    """Say which of all kinds of tensors in a layer are meant, whole modules by their name; nothing where it is all."""
    if len(kinds) == len(every):
        return ""
    words = []
    for kind in kinds:
        module = kind.split(".")[0]
        whole = {one for one in every if one.split(".")[0] == module} <= set(kinds)
        words.append(module if whole else kind.removesuffix(".weight"))
    return _listed(list(dict.fromkeys(words)))


def _listed(words: Sequence[str]) -> str:
    return ", ".join(words[:3]) + (f" and {len(words) - 3} more" if len(words) > 3 else "")


def _from_to(values: Sequence[str]) -> str:
    return " → ".join(value for value, _ in groupby(values))


def _differ(value: ParamValue) -> bool:
    return isinstance(value, tuple) and len(set(value)) > 1


def _value(value: ParamValue, *, split: bool = True) -> str:
    """Write a value; of a per-model one each parent's, or without ``split`` the one that they share."""
    if isinstance(value, tuple):
        return ", ".join(_value(one) for one in (value if split else value[:1]))
    return str(value).lower() if isinstance(value, bool) else f"{value:.4g}"
