"""The registry of activations."""

from normjax.core.registry import Registry

ACTIVATIONS = Registry("activation")
"""The activations by key: a row has `name`, `make` (the class) and `tags`.

`build` makes a factory of a key.

Example:
  >>> from normjax.activations import ACTIVATIONS
  >>> sorted(e.name for e in ACTIVATIONS if e.name.startswith("relu"))
  ['relu', 'relu6', 'relu_interpolation']
  >>> ACTIVATIONS["swish"].make.__name__
  'Swish'
"""
