"""The configuration of a search: its schema (``schema``, ``hyperparameters``), read from YAML and ``--set`` (``loading``)."""

from kinray.config.hyperparameters import Filters, LayeredRange, Layers, PerModel, Range
from kinray.config.loading import load_config, parse_config
from kinray.config.schema import (
    ClusterConfig,
    Config,
    EvaluationConfig,
    FounderSpec,
    MergeConfig,
    SearchConfig,
    TaskSpec,
)

__all__ = [
    "ClusterConfig",
    "Config",
    "EvaluationConfig",
    "Filters",
    "FounderSpec",
    "LayeredRange",
    "Layers",
    "MergeConfig",
    "PerModel",
    "Range",
    "SearchConfig",
    "TaskSpec",
    "load_config",
    "parse_config",
]
