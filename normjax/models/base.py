"""The registry of models."""

from normjax.core.registry import Registry

MODELS = Registry("model")
