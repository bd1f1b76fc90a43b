"""Binding transformers models to tree attention, and loading them."""

from treeshare.models.adapter import ModelAdapter
from treeshare.models.cache import cache_dir
from treeshare.models.cuda import make_adapter
from treeshare.models.extras import ModelExtras
from treeshare.models.loaded import LoadedModel
from treeshare.models.loading import EMBEDDED, describe_model, load_model, weights_with_adapter
from treeshare.models.step import AttentionCall, NoAttention, StepAttention, TreeStep

__all__ = [
    "EMBEDDED",
    "AttentionCall",
    "LoadedModel",
    "ModelAdapter",
    "ModelExtras",
    "NoAttention",
    "StepAttention",
    "TreeStep",
    "cache_dir",
    "describe_model",
    "load_model",
    "make_adapter",
    "weights_with_adapter",
]
