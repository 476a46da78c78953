"""What can be configured, with every default beside its field. Unknown keys are errors."""

import math
import re
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, PlainValidator, Tag, field_validator, model_validator

from kinray.config.hyperparameters import ParamSpec
from kinray.config.section import Section

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_NOT_A_FOUNDER = re.compile(r"g\d+-.*|base|average|.*\.holdout")


def _auto_or(low: int, high: int) -> PlainValidator:
    def check(value: Any) -> Any:
        if value == "auto" or (isinstance(value, int) and not isinstance(value, bool) and low <= value <= high):
            return value
        raise ValueError(f"expected auto or a whole number from {low} to {high}")

    return PlainValidator(check)


def _gigabytes(value: Any) -> Any:
    if value == "auto":
        return value
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1e6:
        return float(value)
    raise ValueError("expected auto or a number of GB from 0 (none) to 1000000")


Count = Annotated[Any, _auto_or(1, 4096)]
BatchTokens = Annotated[Any, _auto_or(16, 1 << 20)]
Items = Annotated[Any, _auto_or(1, 1 << 20)]
Gigabytes = Annotated[Any, PlainValidator(_gigabytes)]


class FounderSpec(Section):
    """A fine-tune to start from. A bare string means its model."""

    model: str = ""
    """Folder or hub id. With an adapter it defaults to the base."""
    name: str = ""
    """What to call it; by default the last part of its path."""
    revision: str | None = None
    """Commit, tag or branch, for a hub id."""
    adapter: str | None = None
    """Folder or hub id of a LoRA adapter (PEFT) that is applied to the model."""

    @model_validator(mode="before")
    @classmethod
    def _from_string(cls, value: Any) -> Any:
        return {"model": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _named(self) -> Self:
        if not self.model and not self.adapter:
            raise ValueError("a founder needs a model or an adapter")
        name = self.name or PurePosixPath((self.adapter or self.model).rstrip("/")).name
        if not NAME.fullmatch(name) or _NOT_A_FOUNDER.fullmatch(name):
            raise ValueError(
                f"'{name[:80]}' cannot be a founder's name. Give it a 'name' of letters a to z, digits, '.', '_' and '-' (at "
                "most 64) that is not like a child's (g1-1), not base or average, and does not end in .holdout"
            )
        object.__setattr__(self, "name", name)
        return self


class TaskSpec(Section):
    """An lm-eval task, tag or group to score children on. A bare string means its name."""

    name: str = Field(min_length=1, max_length=200)
    """As lm-eval lists it, or as a file in task_paths defines it."""
    metric: str | None = None
    """Metric, or metric,filter; by default the task's first one."""
    weight: float = Field(default=1.0, gt=0)
    """Weight in the mean over tasks."""
    num_fewshot: int | None = Field(default=None, ge=0)
    """Examples in the prompt; by default what the task says."""
    limit: int | None = Field(default=None, ge=2)
    """Items that the search scores, drawn once at random; by default all that are not held out."""
    scale: tuple[float, float] | None = None
    """[worst, best] of a metric without natural bounds; scores are mapped to 0..1 between them."""
    floor: float | None = Field(default=None, ge=-100, le=0)
    """Points (hundredths of the score of 0..1) that a child may lose on it, such as -2.0; one that loses more is refused."""
    fewshot_seed: int | None = Field(default=None, ge=0)
    """Draws the few-shot examples; by default the run's seed."""
    gen_kwargs: dict[str, Any] | None = None
    """Settings of generation, over those that the task gives: until, max_gen_toks, temperature …"""
    metadata: dict[str, Any] | None = None
    """What some tasks want to know to make their data, such as max_seq_lengths."""
    batch_size: int | None = Field(default=None, ge=1)
    """Prompts that are generated for at once; this and the following are by default what evaluation says."""
    apply_chat_template: bool | str | None = None
    """Whether to put prompts into the tokenizer's chat template, or the name of one of its templates."""
    fewshot_as_multiturn: bool | None = None
    """Whether few-shot examples are turns of their own in a chat template."""
    system_instruction: str | None = None
    """System prompt."""
    confirm_run_unsafe_code: bool | None = None
    """Consent to run code which models write for this task."""

    @model_validator(mode="before")
    @classmethod
    def _from_string(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @field_validator("name")
    @classmethod
    def _no_path(cls, value: str) -> str:
        if "/" in value or not value.isprintable():
            raise ValueError("a task is named as lm-eval lists it, not by a path; its file's folder is named in task_paths")
        return value

    @model_validator(mode="after")
    def _scale_has_length(self) -> Self:
        if self.scale and math.isclose(*self.scale):
            raise ValueError(f"scale of task '{self.name}' is [{self.scale[0]:g}, {self.scale[1]:g}]: worst and best are equal")
        return self


Held = Annotated[
    Annotated[Annotated[float, Field(ge=0, lt=1)], Tag("(share)")] | Annotated[list[TaskSpec], Tag("(tasks)")],
    Discriminator(lambda value: "(tasks)" if isinstance(value, list) else "(share)"),
]
"""A share, or tasks. Errors leave out the tags in brackets."""


class SearchConfig(Section):
    """How the population evolves."""

    policy: Literal["kinship", "greedy", "random"] = "kinship"
    """kinship: Top-k Greedy Merging with exploration; greedy: without; random: random pairs."""
    k: int = Field(default=3, ge=2, le=64)
    """Size of the set of best models that are merged pairwise."""
    objective: Literal["mean", "pareto"] = "mean"
    """What models rank by: the mean over tasks, or (pareto) fronts of what no other dominates, then how far apart they are."""
    kinship: Literal["pcc", "cs", "ed"] = "pcc"
    """Metric: Pearson correlation, signed cosine or Euclidean distance of deltas."""
    mate_pool: Literal["population", "top-k", "generation"] = "population"
    """Where the distant mate of an exploration comes from.

    All pairs of the top k are merged anyway, so that pool leaves nothing to explore."""
    children_per_mating: int = Field(default=1, ge=1, le=1000)
    """Children of each pair; they differ in hyperparameters."""
    stop_kinship: float | None = Field(default=None, gt=-1, lt=1)
    """Stop when the mean kinship within the top k is above this; the paper suggests 0.9."""
    max_children: int | None = Field(default=None, ge=1)
    """Budget in children; failed ones count, founders do not."""
    max_generations: int | None = Field(default=None, ge=1, le=256)
    """Budget in generations."""
    max_hours: float | None = Field(default=None, gt=0)
    """Budget in hours of wall time of one session; children in flight are finished."""

    @model_validator(mode="after")
    def _saturation_is_similarity(self) -> Self:
        if self.stop_kinship is not None and self.kinship == "ed":
            raise ValueError("stop_kinship needs kinship pcc or cs: ed is a distance, it has no point of saturation")
        return self


class MergeConfig(Section):
    """How children are made."""

    methods: dict[str, dict[str, ParamSpec]] = Field(default={"slerp": {"t": 0.5}}, min_length=1)
    """Merge methods and their hyperparameters; of several methods Optuna picks one for each child."""
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    """In which children are scored and exported; merges themselves are float32."""

    @model_validator(mode="before")
    @classmethod
    def _no_slices(cls, value: Any) -> Any:
        methods = value.get("methods") if isinstance(value, dict) else None
        places = {"": value, "methods": methods, **(methods if isinstance(methods, dict) else {})}
        for place, keys in places.items():
            if word := next((word for word in ("slices", "layer_range") if isinstance(keys, dict) and word in keys), None):
                raise ValueError(
                    f"'{word}'{place and f' in {place!r}'}: a search merges whole models, not slices of layers. Remove it; "
                    "what differs from layer to layer is written {low: 0.2, high: 0.8, layers: 4} or {layers: [0.2, 0.5, 0.8]}"
                )
        return value

    @field_validator("methods", mode="before")
    @classmethod
    def _bare_methods(cls, value: Any) -> Any:
        if isinstance(value, list) and all(isinstance(name, str) for name in value):
            return {name: {} for name in value}
        return {name: params or {} for name, params in value.items()} if isinstance(value, dict) else value


class EvaluationConfig(Section):
    """How children are scored."""

    backend: str = Field(default="resident", min_length=1)
    """resident: kinray's own, which writes nothing. Or an lm-eval model class that loads a child from a folder, like vllm."""
    backend_args: dict[str, Any] = Field(default={})
    """Arguments of that class, as lm-eval's model_args."""
    batch_size: int = Field(default=16, ge=1)
    """Prompts in one forward pass, where they share nothing."""
    batch_tokens: BatchTokens = "auto"
    """Tokens in one forward pass of prompts that share. auto: 512 on a CPU, where more only adds padding; 8192 on a GPU."""
    share_prompts: bool = True
    """Whether the answers to one question share the computation of their prompt, for models whose attention allows it."""
    pack: Items = "auto"
    """Items that are asked together, apart from all others. auto: all; with racing 32 on a CPU, 128 on a GPU, 256 of another
    backend."""
    racing: bool | Literal["asha", "median"] = False
    """Whether a child that cannot reach the k-th best of S is stopped early; then only what entered S is bred from, and it pays
    from some thousand items on. asha, median: Ray Tune's rules, which may err."""
    racing_error: float = Field(default=0.05, gt=0, lt=1)
    """Greatest probability that a search stops a child which would have entered S."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: a GPU for each evaluator if there are any."""
    holdout: Held = 0.5
    """What the search never sees: a share of each task's items, or named tasks. The best is compared with others on it."""
    max_length: int | None = Field(default=None, ge=8)
    """Longest prompt in tokens; by default the model's."""
    apply_chat_template: bool | str = False
    """Whether to put prompts into the tokenizer's chat template, or the name of one of its templates."""
    fewshot_as_multiturn: bool = True
    """Whether few-shot examples are turns of their own in a chat template."""
    system_instruction: str | None = None
    """System prompt."""
    trust_remote_code: bool = False
    """Whether code that comes with a model may run. Say yes only to models that you trust."""
    confirm_run_unsafe_code: bool = False
    """Consent to tasks that run code which models write."""
    score_cache: str | None = Field(default=None, min_length=1)
    """Folder in which scores are remembered from run to run, on a path that all nodes see; by default each run has its own."""

    @model_validator(mode="after")
    def _arguments_have_a_class(self) -> Self:
        if self.backend_args and self.backend == "resident":
            raise ValueError("backend_args are for a model class of lm-eval: name it as backend, or leave them out")
        if "pretrained" in self.backend_args:
            raise ValueError("backend_args cannot name 'pretrained': that is each child's folder")
        return self

    @field_validator("holdout", mode="before")
    @classmethod
    def _one_task(cls, value: Any) -> Any:
        return [value] if isinstance(value, str | dict) else value

    @property
    def held_share(self) -> float:
        """The share of each task's items that is held out."""
        return self.holdout if isinstance(self.holdout, float) else 0.0

    @property
    def held_tasks(self) -> list[TaskSpec]:
        """The tasks that are held out."""
        return self.holdout if isinstance(self.holdout, list) else []

    def pack_items(self, device: str) -> int:
        """Return how many items are asked together: all of them where no child is to be stopped early."""
        if self.pack != "auto":
            return int(self.pack)
        if not self.racing:
            return 1 << 20
        if self.backend != "resident":
            return 256
        return 128 if device == "cuda" else 32

    def token_budget(self, device: str) -> int:
        """Return the tokens of one forward pass on a device."""
        if self.batch_tokens == "auto":
            return 8192 if device == "cuda" else 512
        return int(self.batch_tokens)


class ClusterConfig(Section):
    """Where the work is done."""

    address: str | None = None
    """Ray cluster to join (auto, or host:port); by default a private one on this machine."""
    evaluators: Count = "auto"
    """Models scored at once. auto: as many as there are GPUs for; without GPUs one for each 2 cores. Nodes that join later
    add to it."""
    gpus_per_evaluator: int = Field(default=1, ge=1, le=64)
    """GPUs of one node that each evaluator has, for models that do not fit on one."""
    wait_minutes: float = Field(default=0, ge=0)
    """How long to wait, at an address, for the first GPU of evaluation.device cuda. Then more evaluators may be asked for than
    fit at first; an autoscaler brings their nodes."""
    shards: Count = "auto"
    """Actors that hold the founders' tensors for kinship. auto: one for each GPU; without GPUs one for each node."""
    retries: int = Field(default=2, ge=0, le=100)
    """How often a child whose evaluation broke is tried again."""
    max_failures: int | None = Field(default=5, ge=1)
    """The run stops when this many children fail in a row with one error, or all of a generation break. null: it goes on."""
    parent_cache_gb: Gigabytes = "auto"
    """Disk in each node's temporary folder for the weights of children that are parents. auto: a quarter of what is free."""


class Config(Section):
    """A whole search."""

    base: str = ""
    """The pretrained model that all founders were tuned from: a folder or a hub id."""
    base_revision: str | None = None
    """Commit, tag or branch of the base, for a hub id."""
    founders: list[FounderSpec] = Field(default=[], max_length=64)
    """The fine-tunes to start from, at least two."""
    demo: bool = False
    """Make the built-in tiny models and tasks and use them as base, founders and tasks."""
    tasks: list[TaskSpec] = Field(default=[])
    """What children are scored on."""
    task_paths: list[str] = Field(default=[])
    """Folders with lm-eval task files of your own."""
    search: SearchConfig = SearchConfig()
    merge: MergeConfig = MergeConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    cluster: ClusterConfig = ClusterConfig()
    loggers: list[Literal["mlflow", "wandb"]] = Field(default=[])
    """Where else every child's scores are logged, through Ray Tune; their own environment variables configure them."""
    output: str = "runs/search"
    """The run folder: a path, or the URI of a folder in a store, such as s3://bucket/runs/first."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Everything random in a run follows from it."""

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if not self.demo:
            if not self.base:
                raise ValueError("base is missing: name the folder or hub id of the model that the founders were tuned from")
            if len(self.founders) < 2:
                raise ValueError(f"founders: a search needs at least 2 founders, not {len(self.founders)}")
        if not self.tasks:
            raise ValueError("tasks is missing: name at least one lm-eval task")
        if self.search.objective == "pareto" and len(self.tasks) == 1:
            raise ValueError("search.objective pareto sets tasks against each other, but there is one: use mean, or add a task")
        _distinct("founders", [founder.name for founder in self.founders], "Give one of them another 'name'")
        held = self.evaluation.held_tasks
        _distinct(
            "tasks", [task.name for task in (*self.tasks, *held)], "Name each task once, of all that are searched and held out"
        )
        if floored := next((task.name for task in held if task.floor is not None), None):
            raise ValueError(
                f"evaluation.holdout: no child is scored on '{floored}' while the search goes on, so it has no floor"
            )
        return self


def _distinct(where: str, names: list[str], remedy: str) -> None:
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{where}: '{name}' is there {names.count(name)} times. {remedy}")
