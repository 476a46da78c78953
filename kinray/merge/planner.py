"""Plan one merge: open its models, fit them to each other, choose parents and parameters; all checked before any work."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kinray.checkpoints.folder import OUTPUT_LAYER, WeightSource
from kinray.checkpoints.models import Models, ModelSpec, check_alike, fit, weight_names
from kinray.checkpoints.renamed import RenamedModel, config_with_layers, layers_of, main_stack
from kinray.checkpoints.vocabulary import Vocabulary, config_with_vocabulary, plan_vocabulary, with_vocabulary
from kinray.checkpoints.writer import CODES
from kinray.core.layers import depths, layer_of
from kinray.core.methods import method_named
from kinray.core.recipe import Founder, Merge, Recipe
from kinray.engine.materialise import Materialiser
from kinray.errors import ConfigError, KinrayError, did_you_mean
from kinray.merge.document import Document, Layers, Parameters, Reference, Slice
from kinray.merge.open import Shelf
from kinray.merge.output import MergedModel, Output, Section
from kinray.merge.settings import params_of, parents_of
from kinray.merge.slices import check_depth, check_ends, check_filters, depths_of_slice


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

    def _dtype(self) -> str:
        """Return the dtype that is asked for, else that of the model that the config comes from."""
        document = self._document
        while True:
            if asked := document.out_dtype or document.dtype:
                return asked
            donor = document.base_model or document.references[0]
            if str(donor) not in self._within:
                break
            document = self._within[str(donor)]
        merged = self._earlier.get(str(self._donor))
        return _usual_dtype(self._opened[self._donor]) if merged is None else merged.output.dtype

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
        vocabulary = self._vocabulary if merged is None else merged.output.vocabulary
        if self._vocabulary is not None:
            owner = list(self._opened.values())[self._vocabulary.owner]
            config = config_with_vocabulary(config, owner.config, self._vocabulary.size)
        return Output(
            name=self._document.name or "the output",
            sections=sections,
            copied=copied,
            dtype=self._dtype(),
            config=dict(config),
            source=source,
            folder=folder,
            vocabulary=vocabulary,
            notices=list(dict.fromkeys(self._notices)),
            earlier={str(ref): self._earlier[str(ref)].output for ref in self._references if str(ref) in self._earlier},
        )

    # -- whole models

    def _whole(self, copied: dict[str, WeightSource]) -> Section:
        base = self._opened[self._donor]
        names = weight_names(base)
        for model in self._opened.values():
            check_depth(model, base)
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
        ours = base.tensors
        copied.update({name: base for name, info in ours.items() if not info.floating})
        for model in others:
            taken = [name for name in weight_names(model) if name not in ours and name not in copied]
            if surplus := [name for name in taken if name.endswith(OUTPUT_LAYER)]:
                self._notices.append(f"'{model.name}' has an output layer, '{base.name}' has none but its embedding: left out.")
            taken = [name for name in taken if name not in surplus]
            copied.update(dict.fromkeys(taken, model))
            if taken:
                more = f" and {len(taken) - 1} more" if len(taken) > 1 else ""
                self._notices.append(f"'{base.name}' has no '{taken[0]}'{more}: taken from '{model.name}' as they are.")

    # -- slices

    def _slices(self, copied: dict[str, WeightSource]) -> tuple[tuple[Section, ...], Mapping[str, Any]]:
        sections, kept, start = [], [], 0
        donor, ends = self._opened[self._donor], dict[str, WeightSource]()
        last = len(self._document.slices) - 1
        for number, part in enumerate(self._document.slices):
            try:
                section, leading = self._slice(part, start, copied, ends, front=number == 0, back=number == last)
            except KinrayError as error:
                raise type(error)(f"Slice {number}: {error}") from error
            sections.append(section)
            kept += list(range(*leading.layer_range))
            start += leading.count
        check_ends(ends, donor)
        return tuple(sections), config_with_layers(donor.config, kept)

    def _slice(
        self,
        part: Slice,
        start: int,
        copied: dict[str, WeightSource],
        ends: dict[str, WeightSource],
        *,
        front: bool,
        back: bool,
    ) -> tuple[Section, Layers]:
        """Plan the layers from number ``start``, and tell which source the others are fitted to."""
        document, donor = self._document, self._opened[self._donor]
        stack = main_stack(donor)[0]
        views: dict[Reference, RenamedModel] = {}
        for source in part.sources:
            if source.model in views:
                raise ConfigError(f"It takes '{source.model}' twice. Take it once, or in two slices.")
            model = self._opened[source.model]
            views[source.model] = layers_of(model, *source.layer_range, start, front=front, back=back)
        base = self._base_of(part)
        leading = next((source for source in part.sources if source.model == base), part.sources[0])
        view = views[leading.model]
        check_alike(view, donor, self._notices)
        outside = [name for name in view.tensors if (layer := layer_of(name)) is None or layer[0] != stack]
        ends.update(dict.fromkeys(outside, view))
        names = tuple(name for name in weight_names(view) if name in donor.tensors or not name.endswith(OUTPUT_LAYER))
        self._copy(copied, view, [other for other in views.values() if other is not view])
        sources: dict[Reference, WeightSource] = {
            reference: other if other is view else fit(other, view, names, self._notices, fill=True)
            for reference, other in views.items()
        }
        founders = self._founders([leading.model, *(reference for reference in sources if reference != leading.model)])
        known: dict[str, Recipe] = {str(reference): founder for reference, founder in founders.items()}
        own = [(str(source.model), source.parameters) for source in part.sources]
        recipe = self._merge(document, base, own, [part.parameters, document.parameters], known)
        check_filters(recipe, {str(reference): other.own for reference, other in views.items()})
        depth = depths_of_slice(names, stack, start, leading.count)
        labels = {founder.digest: label for label, founder in known.items()}
        materialiser = Materialiser(self._models(founders, sources, names), device=self._device, tensor_depths=depth)
        return Section(materialiser, recipe, depth, labels), leading

    def _base_of(self, part: Slice) -> Reference | None:
        """Return the base of a slice; the merge's may be there to give the output its config and tokenizer alone."""
        base, method = part.base_model or self._document.base_model, method_named(self._document.merge_method)
        needed = method.first_is_base or method.against_base(True) or part.base_model is not None
        return base if needed or any(source.model == base for source in part.sources) else None

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
        ordered = parents_of(method, None if base is None else str(base), dict(own))
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
            self._seed_of(document),
        )
        method.resolve(recipe.params, len(recipe.parents))
        return recipe

    def _seed_of(self, document: Document) -> str | None:
        asked = [document.kinray.seed, str(self._seed) if self._seed else None]
        return "/".join(word for word in asked if word) or None

    def _founders(self, references: Sequence[Reference]) -> dict[Reference, Founder]:
        """Number the models; the base of deltas comes first, so it is what weighted sums start from."""
        return {reference: Founder(f"{at:064x}", str(reference)) for at, reference in enumerate(references)}

    def _models(
        self, founders: Mapping[Reference, Founder], sources: Mapping[Reference, WeightSource], names: Sequence[str]
    ) -> Models:
        specs = tuple(ModelSpec(founder, Path(founder.name)) for founder in founders.values())
        return Models(specs, {founders[ref].digest: source for ref, source in sources.items()}, tuple(names))


def _usual_dtype(model: WeightSource) -> str:
    """Return the dtype that most weights of a model have, of those that can be written."""
    sizes: Counter[str] = Counter()
    for info in model.tensors.values():
        if info.floating:
            sizes[info.dtype] += info.numel
    found = sizes.most_common(1)[0][0]
    return next((name for name, code in CODES.items() if code == found), "float32")
