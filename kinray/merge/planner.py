"""Plan one merge: open its models, fit them to each other, choose parents and parameters; all checked before any work."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kinray.checkpoints.folder import WeightSource
from kinray.checkpoints.models import Models, ModelSpec, fit, weight_names
from kinray.checkpoints.renamed import config_with_layers, layers_of
from kinray.checkpoints.vocabulary import Vocabulary, config_with_vocabulary, plan_vocabulary, with_vocabulary
from kinray.checkpoints.writer import CODES
from kinray.core.layers import depths, layer_of
from kinray.core.methods import Method, method_named
from kinray.core.recipe import Founder, Merge, Recipe
from kinray.engine.materialise import Materialiser
from kinray.errors import ConfigError, KinrayError, did_you_mean
from kinray.merge.document import Document, Parameters, Reference
from kinray.merge.open import Shelf
from kinray.merge.output import MergedModel, Output, Section
from kinray.merge.settings import params_of


@dataclass(frozen=True)
class _Source:
    """One model of a slice, with its own parameters."""

    reference: Reference
    view: WeightSource
    parameters: Parameters = field(default_factory=dict)


class Planner:
    """Plans one merge, or a chain of them that is one recipe.

    Args:
        document: the merge that is the output.
        chain: all merges that are one recipe, ``document`` the last of them.
        shelf: opens models.
        earlier: results of other merges, by name.
        device: where to compute.
        seed: what random masks follow from, where a document does not say.
    """

    def __init__(
        self,
        document: Document,
        chain: Sequence[Document],
        shelf: Shelf,
        earlier: Mapping[str, MergedModel],
        device: str,
        seed: int,
    ) -> None:
        self._document, self._chain, self._shelf, self._device, self._seed = document, chain, shelf, device, seed
        self._within = {one.name: one for one in chain if one is not document}
        self._earlier = earlier
        self._notices: list[str] = []
        bases = [one.base_model for one in chain if one.base_model and method_named(one.merge_method).against_base(True)]
        named = [ref for one in chain for ref in one.references if str(ref) not in self._within]
        self._references = list(dict.fromkeys([*document.kinray.family, *bases, *named]))
        self._opened = {ref: earlier.get(str(ref)) or shelf.open(ref) for ref in self._references}
        self._donor = self._donor_of(document)
        self._vocabulary = self._plan_vocabulary()

    def _donor_of(self, document: Document) -> Reference:
        """Return the model that config and tokenizer come from: the base, else the first; of a merge in the chain its own."""
        if document.kinray.family:
            return document.kinray.family[0]
        donor = document.base_model or document.references[0]
        while str(donor) in self._within:
            inner = self._within[str(donor)]
            donor = inner.base_model or inner.references[0]
        return donor

    def _plan_vocabulary(self) -> Vocabulary | None:
        asked = self._document.vocabulary
        if asked is None:
            return None
        source: Any = asked.source
        words = [str(reference) for reference in self._references]
        if source not in ("base", "union"):
            wanted = str(Reference.model_validate(source))
            if wanted not in words:
                raise ConfigError(f"tokenizer_source '{source}' is none of the merge's models.{did_you_mean(source, words)}")
            source = words.index(wanted)
        if merged := [model.name for model in self._opened.values() if isinstance(model, MergedModel)]:
            raise ConfigError(
                f"tokenizer_source cannot be used with '{merged[0]}', the result of another merge. Merge that by itself first."
            )
        models = list(self._opened.values())
        base = words.index(str(self._donor))
        if source == "base":
            source = base
        vocabulary = plan_vocabulary(models, base, source, asked.pad_to_multiple_of)
        self._notices += vocabulary.notices
        self._opened = dict(zip(self._references, with_vocabulary(models, vocabulary), strict=True))
        return vocabulary

    def output(self) -> Output:
        """Plan the output."""
        copied: dict[str, WeightSource] = {}
        if self._document.slices:
            sections, config = self._slices(copied)
        else:
            sections, config = (self._whole(copied),), self._opened[self._donor].config
        source = self._opened[self._donor]
        merged = self._earlier.get(str(self._donor))
        folder = self._shelf.folder(self._donor) if merged is None else merged.output.folder
        if self._vocabulary is not None:
            owner = list(self._opened.values())[self._vocabulary.owner]
            config = config_with_vocabulary(config, owner.config, self._vocabulary.size)
        return Output(
            name=self._document.name or "merge",
            sections=sections,
            copied=copied,
            dtype=self._document.out_dtype or self._document.dtype or _usual_dtype(source),
            config=dict(config),
            source=source,
            folder=folder,
            vocabulary=self._vocabulary,
            notices=list(dict.fromkeys(self._notices)),
        )

    # -- whole models

    def _whole(self, copied: dict[str, WeightSource]) -> Section:
        base = self._opened[self._donor]
        names = weight_names(base)
        self._copy(copied, base, [model for model in self._opened.values() if model is not base])
        sources = {
            ref: model if model is base else fit(model, base, names, self._notices, fill=True)
            for ref, model in self._opened.items()
        }
        founders = self._founders(list(sources))
        made: dict[str, Recipe] = {str(ref): founder for ref, founder in founders.items()}
        for one in self._chain:
            own = [(str(model.model), model.parameters) for model in one.models]
            recipe = self._merge(one, one.base_model, own, [one.parameters], made)
            made[one.name or "the output"] = recipe
        models = self._models(founders, sources, names)
        depth = depths(names)
        labels = {model.digest: label for label, model in made.items()}
        return Section(Materialiser(models, device=self._device), recipe, depth, labels)

    def _copy(self, copied: dict[str, WeightSource], base: WeightSource, others: Sequence[WeightSource]) -> None:
        """Choose the tensors that are taken as they are: of the base what holds no weights, and what only others have."""
        copied.update({name: base for name, info in base.tensors.items() if not info.floating})
        tied = base.config.get("tie_word_embeddings") is True
        for model in others:
            extra = [name for name in weight_names(model) if name not in base.tensors and name not in copied]
            taken = [name for name in extra if not (tied and name.endswith("lm_head.weight"))]
            copied.update(dict.fromkeys(taken, model))
            if taken:
                more = f" and {len(taken) - 1} more" if len(taken) > 1 else ""
                self._notices.append(f"Only '{model.name}' has '{taken[0]}'{more}: taken as they are.")

    # -- slices

    def _slices(self, copied: dict[str, WeightSource]) -> tuple[tuple[Section, ...], Mapping[str, Any]]:
        document, sections, kept, start = self._document, [], [], 0
        for number, part in enumerate(document.slices):
            first, last = number == 0, number == len(document.slices) - 1
            views = [
                _Source(
                    source.model,
                    layers_of(self._opened[source.model], *source.layer_range, start, front=first, back=last),
                    source.parameters,
                )
                for source in part.sources
            ]
            base = part.base_model or document.base_model
            leading = next((view for view in views if view.reference == base), views[0])
            names = weight_names(leading.view)
            if first:
                self._copy(copied, leading.view, [])
            sources: dict[Reference, WeightSource] = {}
            for view in views:
                if view.reference in sources:
                    raise ConfigError(
                        f"Slice {number} of the merge takes '{view.reference}' twice. Take it once, or in two slices."
                    )
                sources[view.reference] = (
                    view.view if view is leading else fit(view.view, leading.view, names, self._notices, fill=True)
                )
            founders = self._founders([leading.reference, *(ref for ref in sources if ref != leading.reference)])
            known: dict[str, Recipe] = {str(ref): founder for ref, founder in founders.items()}
            own = [(str(view.reference), view.parameters) for view in views]
            try:
                recipe = self._merge(document, base, own, [part.parameters, document.parameters], known)
            except KinrayError as error:
                raise type(error)(f"Slice {number}: {error}") from error
            depth = _depths_of_slice(names, start, part.sources[0].count)
            models = self._models(founders, sources, names)
            labels = {founder.digest: label for label, founder in known.items()}
            sections.append(Section(Materialiser(models, device=self._device, tensor_depths=depth), recipe, depth, labels))
            kept += list(range(*next(s for s in part.sources if s.model == leading.reference).layer_range))
            start += part.sources[0].count
        return tuple(sections), config_with_layers(self._opened[self._donor].config, kept)

    # -- recipes

    def _merge(
        self,
        document: Document,
        base: Reference | None,
        own: Sequence[tuple[str, Parameters]],
        shared: Sequence[Parameters],
        known: Mapping[str, Recipe],
    ) -> Merge:
        method = method_named(document.merge_method)
        names = [name for name, _ in own]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ConfigError(f"'{twice[0]}' is among the models twice. Name it once, with the sum of its weights.")
        ordered = _parents(method, None if base is None else str(base), dict(own))
        for name in [*ordered, *([str(base)] if base else [])]:
            if name not in known:
                where = "among the sources of the slice" if document.slices else "among the models"
                raise ConfigError(f"'{name}' is not {where}.{did_you_mean(name, known)}")
        against = known[str(base)] if base is not None and method.against_base(True) else None
        if against is not None and not isinstance(against, Founder):
            raise ConfigError(f"'{base}' cannot be the base of this merge and a merge of the same recipe.")
        params = params_of(method, shared, list(ordered.values()))
        recipe = Merge(
            method.name,
            tuple(known[name] for name in ordered),
            params,
            against,
            document.kinray.seed or (str(self._seed) if self._seed else None),
        )
        method.resolve(recipe.params, len(recipe.parents))
        return recipe

    def _founders(self, references: Sequence[Reference]) -> dict[Reference, Founder]:
        """Number the models; the base of deltas comes first, so it is what weighted sums start from."""
        return {reference: Founder(f"{at:064x}", str(reference)) for at, reference in enumerate(references)}

    def _models(
        self, founders: Mapping[Reference, Founder], sources: Mapping[Reference, WeightSource], names: Sequence[str]
    ) -> Models:
        specs = tuple(ModelSpec(founder, Path(founder.name)) for founder in founders.values())
        return Models(specs, {founders[ref].digest: source for ref, source in sources.items()}, tuple(names))


def _parents(method: Method, base: str | None, models: dict[str, Parameters]) -> dict[str, Parameters]:
    """Return the parents of a merge in their order, with their own parameters, as mergekit chooses them.

    Raises:
        ConfigError: when a base is needed and missing, or given and without a part.
    """
    if method.uses_base and base is None:
        raise ConfigError(f"Merge method '{method.name}' merges changes of a base. Add base_model.")
    if method.first_is_base:
        if base is None:
            raise ConfigError(f"Merge method '{method.name}' starts from one of its models. Name it as base_model.")
        return {base: models.get(base, {})} | models
    if base is None or not method.against_base(True):
        if base is not None and base not in models:
            raise ConfigError(
                f"base_model '{base}' is not among the models, and '{method.name}' has no other part for it. "
                "Add it to the models, or remove base_model."
            )
        return models
    return {name: parameters for name, parameters in models.items() if name != base}


def _depths_of_slice(names: Sequence[str], start: int, count: int) -> dict[str, float]:
    """Say how deep tensors lie in a slice: 0 in its first layer, 1 in its last, 0 outside of layers, as mergekit has it."""

    def depth(name: str) -> float:
        layer = layer_of(name)
        if layer is None or not start <= layer[1] < start + count:
            return 0.0
        return (layer[1] - start) / (count - 1) if count > 1 else 1.0

    return {name: depth(name) for name in names}


def _usual_dtype(model: WeightSource) -> str:
    """Return the dtype that most weights of a model have, of those that can be written."""
    sizes: Counter[str] = Counter()
    for info in model.tensors.values():
        if info.floating:
            sizes[info.dtype] += info.numel
    found = sizes.most_common(1)[0][0]
    return next((name for name, code in CODES.items() if code == found), "float32")
