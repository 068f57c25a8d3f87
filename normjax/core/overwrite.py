"""State that the backward pass writes: its "gradient" is its next value.

Such state lives in the collection `_overwrite_with_gradient`. A module that owns some
uses it in exactly one `custom_vjp`, which gives the new value as the cotangent; the
training step differentiates with respect to the collection and stores the result in
its place. A path that leaves the state alone must say so with `keep`: without a use,
the cotangent, and so the next value, would be zero.
"""

from typing import Any

from normjax.core.backward import custom_backward


@custom_backward
def keep(x: Any, state: Any) -> Any:
    """`x`; the cotangent of `state` is `state` itself, so it stays as it is.

    Args:
      x: pytree that is passed through, gradient included.
      state: pytree of floating arrays.
    """
    del state
    return x


def _keep_forward(x, state):
    return x, state


def _keep_backward(state, cotangent):
    return cotangent, state


keep.defvjp(_keep_forward, _keep_backward)
