"""What others offer for the same computation, to time ours beside.

A peer makes, of NumPy inputs, a pair of calls: the forward pass, and that with the
gradients of all inputs. Both return at once; what they return can be waited for.
"""

import functools
import importlib.util
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from normjax.core.collections import OVERWRITE, PARAMS
from normjax.core.compiler import jit

Calls = tuple[Callable[[], Any], Callable[[], Any]]


class Peer(NamedTuple):
    """One implementation.

    Attributes:
      library: whose it is; without it there is no such peer.
      make: (inputs, dy, dtype) -> the two calls; arrays are float32 NumPy.
      gpu: whether it runs on NVIDIA GPUs alone.
    """

    library: str
    make: Callable[..., Calls]
    gpu: bool = False


def peers_of(registry: dict[str, Sequence[Peer]], name: str) -> list[Peer]:
    """Those of `name` whose library is installed and runs here."""
    gpu = jax.default_backend() == "gpu"
    return [
        peer
        for peer in registry.get(name, ())
        if importlib.util.find_spec(peer.library) and (gpu or not peer.gpu)
    ]


def of_jax(function: Callable, inputs: Sequence[Any], dy: Any, dtype: Any) -> Calls:
    """The calls of a function of arrays."""
    arrays, dy = [jnp.asarray(a, dtype) for a in inputs], jnp.asarray(dy, dtype)

    def both(arrays, dy):
        y, vjp = jax.vjp(function, *arrays)
        return y, vjp(dy.astype(y.dtype))

    forward = functools.partial(jit(lambda arrays: function(*arrays)), arrays)
    return forward, functools.partial(jit(both), arrays, dy)


class Pending:
    """What torch returned; JAX waits for it by this name."""

    def __init__(self, value: Any):
        self.value = value

    def block_until_ready(self) -> "Pending":
        """See the class."""
        import torch  # pyright: ignore[reportMissingImports]

        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return self

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        del copy
        return np.asarray(self.value.detach().float().cpu().numpy(), dtype)


def torch_device() -> str:
    """Where torch computes."""
    import torch  # pyright: ignore[reportMissingImports]

    return "cuda" if torch.cuda.is_available() else "cpu"


def of_torch(function: Callable, inputs: Sequence[Any], dy: Any, dtype: Any) -> Calls:
    """The calls of a function of tensors."""
    import torch  # pyright: ignore[reportMissingImports]

    place: Any = {"device": torch_device(), "dtype": getattr(torch, str(dtype))}
    tensors = [torch.tensor(a, **place).requires_grad_() for a in inputs]
    cotangent = torch.tensor(np.asarray(dy), **place)

    def forward():
        with torch.no_grad():
            return Pending(function(*tensors))

    def both():
        for tensor in tensors:
            tensor.grad = None
        y = function(*tensors)
        y.backward(cotangent.to(y.dtype))
        return Pending(y)

    return forward, both


def of_module(module: nn.Module, x: Any, dy: Any, **arguments: Any) -> Calls:
    """The calls of a Flax module, with gradients of its parameters too.

    Args:
      x, dy: input and cotangent, in the type of the computation.
    """
    variables = module.init(jax.random.key(2), x, **arguments)
    trained = {k: v for k, v in variables.items() if k in (PARAMS, OVERWRITE)}
    state = {k: v for k, v in variables.items() if k not in trained}

    def apply(trained, state, x):
        variables = {**trained, **state}
        return module.apply(variables, x, mutable=list(state), **arguments)

    def both(trained, state, x, dy):
        y, vjp, new = jax.vjp(
            lambda trained, x: apply(trained, state, x), trained, x, has_aux=True
        )
        return y, vjp(dy.astype(y.dtype)), new

    forward = functools.partial(jit(apply), trained, state, x)
    return forward, functools.partial(jit(both), trained, state, x, dy)


def _flax(module: Callable[..., nn.Module]) -> Peer:
    def make(inputs, dy, dtype):
        x, dy = (jnp.asarray(a, dtype) for a in (inputs[0], dy))
        return of_module(module(dtype=dtype), x, dy)

    return Peer("flax", make)


def _tokamax(subtract_mean: bool) -> Peer:
    def make(inputs, dy, dtype):
        import tokamax  # pyright: ignore[reportMissingImports]

        def norm(x, scale, offset):
            return tokamax.layer_norm(x, scale, offset, subtract_mean=subtract_mean)

        ones = np.ones(np.shape(inputs[0])[-1:], np.float32)
        given = (inputs[0], ones, 0 * ones)
        return of_jax(norm, given, dy, dtype)

    return Peer("tokamax", make, gpu=True)


def _torch_norm(name: str, channels_last: bool, **arguments: Any) -> Peer:
    def make(inputs, dy, dtype):
        import torch  # pyright: ignore[reportMissingImports]

        channels = np.shape(inputs[0])[-1]
        sizes = (32, channels) if name == "GroupNorm" else (channels,)
        module = getattr(torch.nn, name)(*sizes, **arguments).to(torch_device())
        module = module.to(getattr(torch, str(dtype)))

        def placed(a):
            flat = np.reshape(a, (np.shape(a)[0], -1, channels))
            return flat if channels_last else np.swapaxes(flat, 1, 2)

        return of_torch(module, [placed(inputs[0])], placed(dy), dtype)

    return Peer("torch", make)


def _torch(function: Callable) -> Peer:
    return Peer("torch", functools.partial(of_torch, function))


def _fla(name: str, **arguments: Any) -> Peer:
    def make(inputs, dy, dtype):
        from fla import ops  # pyright: ignore[reportMissingImports]

        function = getattr(ops, name)

        def called(q, k, v, *decay):
            return function(q, k, v, *decay, **arguments)[0]

        return of_torch(called, inputs, dy, dtype)

    return Peer("fla", make, gpu=True)


def _attention(causal: bool) -> Peer:
    def attend(q, k, v):
        from torch.nn import functional as F  # pyright: ignore[reportMissingImports]

        heads = (t.transpose(1, 2) for t in (q, k, v))
        o = F.scaled_dot_product_attention(*heads, is_causal=causal)
        return o.transpose(1, 2)

    return _torch(attend)


NORMS: dict[str, Sequence[Peer]] = {
    "layer_norm": (
        _flax(nn.LayerNorm),
        _tokamax(True),
        _torch_norm("LayerNorm", True),
    ),
    "rms_norm": (_flax(nn.RMSNorm), _tokamax(False), _torch_norm("RMSNorm", True)),
    "batch_norm": (
        _flax(functools.partial(nn.BatchNorm, use_running_average=False)),
        _torch_norm("BatchNorm1d", False),
    ),
    "group_norm": (_flax(nn.GroupNorm), _torch_norm("GroupNorm", False)),
    "instance_norm": (
        _flax(nn.InstanceNorm),
        _torch_norm("InstanceNorm1d", False, affine=True),
    ),
}
"""By the names of our norms; inputs: (x,), channels last."""

CORES: dict[str, Sequence[Peer]] = {
    "softmax": (_attention(False),),
    "softmax, causal": (_attention(True),),
    "linear": (_attention(False),),
    "linear, causal": (_fla("chunk_linear_attn", scale=1.0, normalize=True),),
    "decay per head": (_fla("chunk_simple_gla", scale=1.0),),
    "decay per channel": (_fla("chunk_gla", scale=1.0),),
}
"""By the names of `cores.CORES`; inputs: q, k, v [B, L, H, K] and log decays."""
