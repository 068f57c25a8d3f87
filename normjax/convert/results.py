"""What is found in a state dict."""

from typing import Any, NamedTuple

import numpy as np


class Converted(NamedTuple):
    """What became of a state dict.

    Attributes:
      variables: of the model, NumPy arrays.
      layout: of the file.
      used: number of arrays that they came from.
      dropped: other arrays of the file -> why they are not needed.
      filled: arrays that the file lacks -> what stands for them.

    Example:
      >>> import jax
      >>> from normjax import convert, models
      >>> model = models.build("lm_tiny", vocab_size=7, dim=8, depth=1, num_heads=2)
      >>> tokens = jax.numpy.array([[6, 3, 1, 4]])
      >>> state = convert.to_torch(model, model.init(jax.random.key(0), tokens))
      >>> converted = convert.from_torch(model, state)
      >>> converted.layout, converted.used, converted.filled
      ('llama', 12, {})
    """

    variables: dict[str, Any]
    layout: str
    used: int
    dropped: dict[str, str]
    filled: dict[str, str]


class Loose(NamedTuple):
    """What a state dict holds of a model, however large its arrays are.

    Attributes:
      arrays: ours by "params/blocks_0/mlp/fc1/kernel", as the file has them: tables of
        positions are [1, L, C], those of offsets [rows * columns, heads].
      layout: of the file.
      dropped: other arrays of it -> why they are not needed.
      foreign: arrays without a place in the model -> why models of the family may lack
        them, or "".

    Example:
      >>> import jax
      >>> from normjax import convert, models
      >>> model = models.build("lm_tiny", vocab_size=7, dim=8, depth=1, num_heads=2)
      >>> tokens = jax.numpy.array([[6, 3, 1, 4]])
      >>> state = convert.to_torch(model, model.init(jax.random.key(0), tokens))
      >>> found = convert.loosely_from_torch(model, state)
      >>> found.arrays["params/head/kernel"].shape, found.foreign
      ((8, 7), {})
    """

    arrays: dict[str, np.ndarray]
    layout: str
    dropped: dict[str, str]
    foreign: dict[str, str]
