"""The registry of activations."""

from normjax.core.registry import Registry

ACTIVATIONS = Registry("activation")
