"""Pieces that several tests share: tiny models, recipes, and a search without models."""

from tests.helpers.models import ARCHITECTURE, family, make_model, random_tensors, spec, step_by_step
from tests.helpers.recipes import founder, merge

__all__ = ["ARCHITECTURE", "family", "founder", "make_model", "merge", "random_tensors", "spec", "step_by_step"]
