"""The configuration of a search: its schema (``schema``) and how it is read from YAML and ``--set`` (``loading``)."""

from kinray.config.loading import load_config, parse_config
from kinray.config.schema import (
    ClusterConfig,
    Config,
    EvaluationConfig,
    FounderSpec,
    MergeConfig,
    PerModel,
    Range,
    SearchConfig,
    TaskSpec,
)

__all__ = [
    "ClusterConfig",
    "Config",
    "EvaluationConfig",
    "FounderSpec",
    "MergeConfig",
    "PerModel",
    "Range",
    "SearchConfig",
    "TaskSpec",
    "load_config",
    "parse_config",
]
