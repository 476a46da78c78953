"""Write a recipe in mergekit's YAML: one document for each merge, earlier ones named by later ones.

Every step but the last is float32 and unrounded; the last one is cast once, as in the search. What mergekit has no words for
stands under ``kinray``, which mergekit passes over: the seed of random masks, and the models that the search measured together.
``kinray merge`` makes the same bits of it.
"""

from collections.abc import Mapping
from typing import Any

import yaml

from kinray.core.methods import Parameter, method_named
from kinray.core.parameters import ParamValue, Varied
from kinray.core.recipe import Founder, Merge, Recipe, topological


def recipe_yaml(recipe: Recipe, places: Mapping[str, str], names: Mapping[str, str], dtype: str) -> str:
    """Write a recipe.

    Args:
        recipe: the model.
        places: path or hub id of the base and the founders, by digest, in the order of the search.
        names: of children, by digest; others are named by their digest.
        dtype: of the weights at the end.
    """
    merges = [node for node in topological([recipe]) if isinstance(node, Merge)] or [Merge("passthrough", (recipe,))]
    labels = {**{node.digest: names.get(node.digest, f"m-{node.digest[:12]}") for node in merges}, **places}
    documents = []
    for node in merges:
        document = {"name": labels[node.digest]} | _document(node, labels) | {"dtype": "float32"}
        own: dict[str, Any] = {"seed": node.seed or node.digest} if method_named(node.method).random else {}
        if node is merges[-1]:
            document["out_dtype"] = dtype
            own["family"] = list(places.values())
        documents.append(yaml.safe_dump(document | ({"kinray": own} if own else {}), sort_keys=False, allow_unicode=True))
    return "---\n".join(documents)


def _document(merge: Merge, labels: Mapping[str, str]) -> dict[str, Any]:
    method = method_named(merge.method)
    params = method.resolve(merge.params, len(merge.parents))
    per_model = {parameter.name for parameter in method.parameters if parameter.per_model}
    models = []
    for number, parent in enumerate(merge.parents):
        own = {
            name: _setting(value[number], method.parameter(name))
            for name, value in params.items()
            if name in per_model and isinstance(value, tuple)
        }
        models.append({"model": labels[parent.digest]} | ({"parameters": own} if own else {}))
    document: dict[str, Any] = {"merge_method": merge.method, "models": models}
    # Methods on deltas name the pretrained model; in slerp and others the first model has its part.
    if merge.base is not None:
        document["base_model"] = labels[merge.base.digest]
    elif method.first_is_base:
        document["base_model"] = labels[merge.parents[0].digest]
    shared = {name: _setting(value, method.parameter(name)) for name, value in params.items() if name not in per_model}
    return document | ({"parameters": shared} if shared else {})


def _setting(value: ParamValue, parameter: Parameter) -> Any:
    """Write a value as mergekit does: what varies as a list of filters, or as a bare gradient where it has none.

    The default stands last where no case fits all tensors, since mergekit has other defaults, or none.
    """
    if not isinstance(value, Varied):
        return value
    every = any(not word for word, _ in value.cases)
    cases = [
        ({"filter": word} if word else {}) | {"value": knots[0] if len(knots) == 1 else list(knots)}
        for word, knots in (*value.cases, *([] if every else [("", (parameter.default,))]))
    ]
    return cases if "filter" in cases[0] else cases[0]["value"]


def founders_of(recipe: Recipe) -> list[Founder]:
    """List the founders that a recipe merges, the base apart unless it is a parent itself."""
    parents = {p.digest: p for node in topological([recipe]) if isinstance(node, Merge) for p in node.parents}
    return [node for node in parents.values() if isinstance(node, Founder)] or [n for n in [recipe] if isinstance(n, Founder)]
