"""From the merges of a recipe file to one output: which are one recipe, which are models of their own, in which order."""

from collections.abc import Sequence
from dataclasses import replace

from kinray.core.methods import method_named
from kinray.errors import ConfigError, KinrayError
from kinray.merge.document import Document
from kinray.merge.open import Shelf
from kinray.merge.output import MergedModel, Output
from kinray.merge.planner import Planner

MAX_NESTED = 48
"""Results of merges that are computed within each other, at most."""


def plan_merges(documents: Sequence[Document], shelf: Shelf, *, device: str = "cpu", seed: int = 0) -> Output:
    """Open and check everything that a recipe needs.

    Merges that all take the same base and whole models become one recipe, whose weighted sums collapse; results of other
    merges are models of their own. Neither is ever rounded.

    Args:
        documents: the merges, in any order; the output is the one without a name, else the last.
        shelf: opens models.
        device: where to compute.
        seed: what random masks follow from, where a document does not say.

    Raises:
        KinrayError: for the first thing that is wrong, naming the merge.
    """
    ordered = _in_order(documents)
    notices: list[str] = []
    results: dict[str, MergedModel] = {}
    chain = _chain(ordered)
    nested: dict[str | None, int] = {}
    for document in ordered if chain is None else ordered[-1:]:
        try:
            nested[document.name] = 1 + max((nested.get(str(reference), 0) for reference in document.references), default=0)
            if nested[document.name] > MAX_NESTED:
                raise ConfigError(
                    f"It is made of {MAX_NESTED} merges one behind the other that cannot be one recipe. Merge some of them by "
                    "themselves first."
                )
            output = Planner(document, chain or [document], shelf, results, device, seed).output()
        except KinrayError as error:
            if len(documents) == 1:
                raise
            raise type(error)(f"Merge '{document.name or 'without a name'}': {error}") from error
        notices += output.notices
        if document.name is not None:
            results[document.name] = MergedModel(output)
    made = {document.name for document in ordered}
    if unused := [document.name for document in documents if document.name not in made]:
        notices.append(f"The output does not need the merge {', '.join(map(repr, unused))}: not made.")
    return replace(output, notices=list(dict.fromkeys(notices)))


def _in_order(documents: Sequence[Document]) -> list[Document]:
    """Return the output and all merges that it needs, each behind those that it refers to.

    Raises:
        ConfigError: for two merges of one name or without a name, and for merges that refer to each other in a circle.
    """
    names = [document.name for document in documents]
    for name in names:
        if names.count(name) > 1:
            which = "are without a name" if name is None else f"are called '{name}'"
            raise ConfigError(
                f"{names.count(name)} merges of the recipe {which}. Only the output may be without; name the others."
            )
    named = {document.name: document for document in documents}
    for reference in (reference for document in documents for reference in document.references):
        if reference.model in named and str(reference) not in named:
            raise ConfigError(
                f"'{reference}' names the merge '{reference.model}' with a revision or an adapter. Neither can be had of a "
                "result; apply the adapter to one of its models."
            )
    needed = {
        document.name: [word for reference in document.references if (word := str(reference)) in named]
        for document in documents
    }
    order: dict[str | None, Document] = {}
    open_: dict[str | None, None] = {}
    stack: list[str | None] = [None if None in named else documents[-1].name]
    while stack:
        name = stack[-1]
        missing = [other for other in needed[name] if other not in order]
        if name in order or not missing:
            order.setdefault(stack.pop(), named[name])
            open_.pop(name, None)
            continue
        if name in open_:
            raise ConfigError(f"The merges {', '.join(map(repr, open_))} refer to each other in a circle. Break it.")
        open_[name] = None
        stack.extend(missing)
    return list(order.values())


def _chain(documents: Sequence[Document]) -> list[Document] | None:
    """Return the documents if they can be one recipe of whole models with one base, else None."""
    if len(documents) < 2:
        return None
    named = {document.name for document in documents}
    bases = {
        document.base_model
        for document in documents
        if document.base_model is not None and method_named(document.merge_method).against_base(True)
    }
    alike = len(bases) <= 1 and not any(str(base) in named for base in bases)
    plain = not any(document.slices for document in documents) and not any(d.vocabulary for d in documents[:-1])
    return list(documents) if alike and plain else None
