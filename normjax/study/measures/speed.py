"""Time on this machine, in turns with what it is compared with; cycles of a TPU."""

import functools
import math
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from normjax import fusion, mixers, models
from normjax.bench import conv_bn
from normjax.core.timing import alternate
from normjax.mixers import decay
from normjax.plan.schedule import schedule

ROUNDS = 7
BATCH, SIDE = 8, 224
BASE = ("layer_norm", False)
WIDTH, HEADS = 64, 2
SHORT, LONG = 1024, 4096


def slope(seconds: Mapping[Any, float], short: Any, long: Any, factor: float) -> float:
    """The exponent p of seconds ~ size^p, where `long` is `factor` times `short`."""
    return math.log(seconds[long] / seconds[short]) / math.log(factor)


def fold_time(seed: int, folder: Path, norm: str, folded: bool) -> Mapping[str, float]:
    """`ratio`: seconds of a small DeiT, by those with LayerNorm, float32.

    Two layers of width 192, eight images of 224 pixels.

    Args:
      seed: of the images.  folder: not used.  norm: of the model, folded or not.
    """
    images = jax.random.uniform(jax.random.key(seed), (BATCH, SIDE, SIDE, 3))
    calls = {}
    for kind in (BASE, (norm, folded)):
        model, variables = _deit(*kind, jnp.float32)
        calls[kind] = functools.partial(jax.jit(model.apply), variables, images)
    seconds = alternate(calls, ROUNDS)
    return {"ratio": seconds[norm, folded] / seconds[BASE]}


def fold_cycles(
    seed: int, folder: Path, norm: str, folded: bool
) -> Mapping[str, float]:
    """`ratio`: cycles of a v5e of the same model in bfloat16, by those with LayerNorm.

    Args:
      seed, folder: not used.  norm: of the model, folded or not.
    """
    images = jax.ShapeDtypeStruct((BATCH, SIDE, SIDE, 3), jnp.float32)
    own, base = (
        schedule(model.apply, variables, images).cycles
        for model, variables in (
            _deit(norm, folded, jnp.bfloat16),
            _deit(*BASE, jnp.bfloat16),
        )
    )
    return {"ratio": own / base}


def _deit(norm: str, folded: bool, dtype: Any) -> tuple[Any, Any]:
    steps = {"decay_steps": 1} if norm == "prepbn" else {}
    size = {"num_classes": 1000, "depth": 2, "dtype": dtype}
    model = models.build("deit_tiny", norm={"name": norm, **steps}, **size)
    images = jax.ShapeDtypeStruct((1, SIDE, SIDE, 3), jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)
    variables = jax.tree.map(lambda s: jnp.full(s.shape, 0.01, s.dtype), shapes)
    if not folded:
        return model, variables
    with warnings.catch_warnings():
        # Nothing was trained: decays stand at their start.
        warnings.simplefilter("ignore", fusion.UnfinishedDecay)
        folded_model, variables, *_ = fusion.fold(model, variables)
    return folded_model, variables


def mixer_time(seed: int, folder: Path, mixer: str, side: int) -> Mapping[str, float]:
    """`ratio`: seconds of a mixer on side x side tokens, by those of softmax attention.

    `slope`: exponent of its time by tokens, from a quarter of them. Width 64, 2 heads,
    forward, float32.

    Args:
      seed: of the tokens.  folder: not used.  mixer: key of `normjax.mixers.MIXERS`.
    """
    half, softmax = (mixer, side // 2), ("softmax", side)
    kinds = {softmax, (mixer, side), half}
    calls = {(name, n): _mixer(name, n, seed) for name, n in kinds}
    seconds = alternate(calls, ROUNDS)
    ratio = seconds[mixer, side] / seconds[softmax]
    return {"ratio": ratio, "slope": slope(seconds, half, (mixer, side), 4)}


def _mixer(name: str, side: int, seed: int) -> Callable[[], Any]:
    x = jax.random.normal(jax.random.key(seed), (1, side, side, WIDTH))
    mixer = mixers.build(name, num_heads=HEADS)()
    tokens = x if "grid" in mixers.MIXERS[name].tags else x.reshape(1, -1, WIDTH)
    variables = jax.jit(mixer.init)(jax.random.key(1), tokens)
    return functools.partial(jax.jit(mixer.apply), variables, tokens)


def decay_form(seed: int, folder: Path, form: str) -> Mapping[str, float]:
    """`error` of a form of decayed linear attention, and `slope` of its time by tokens.

    o_t = q_t sum_{s <= t} decay^(t - s) k_s v_s^T, decays 0.9 and 0.99 of 2 heads of 32
    channels, in float32, with the gradients of the sum of o: without them all forms
    are recurrent on a CPU. Error: largest difference of o from float64, by the largest
    value, 256 tokens. Slope: exponent from 1,024 to 4,096 tokens.

    Args:
      seed: of the tokens.  folder: not used.
      form: function of `normjax.mixers.decay`: recurrent, parallel or chunked.
    """
    function, rng = getattr(decay, form), np.random.default_rng(seed)
    decays = np.array([0.9, 0.99])
    logs = np.log(decays).astype(np.float32)

    @jax.jit
    def run(qkv: Any) -> Any:
        o, vjp = jax.vjp(lambda qkv: function(*qkv, logs)[0], qkv)
        return o, vjp(jnp.ones_like(o))

    def drawn(length: int) -> np.ndarray:
        return rng.normal(size=(3, 1, length, 2, 32)).astype(np.float32)

    lengths = (SHORT, LONG)
    calls = {n: functools.partial(run, drawn(n)) for n in lengths}
    seconds = alternate(calls, ROUNDS)
    given = drawn(256)
    exact = _decayed(given.astype(np.float64), decays)
    error = np.abs(run(given)[0] - exact).max() / np.abs(exact).max()
    return {
        "error": float(error),
        "slope": slope(seconds, SHORT, LONG, LONG / SHORT),
    }


def _decayed(qkv: np.ndarray, decays: np.ndarray) -> np.ndarray:
    """The sum of `decay_form` position by position, in NumPy."""
    q, k, v = qkv
    state = np.zeros((*q.shape[:1], *q.shape[2:], v.shape[-1]))
    outputs = []
    for t in range(q.shape[1]):
        added = k[:, t, :, :, None] * v[:, t, :, None]
        state = decays[:, None, None] * state + added
        outputs.append(np.einsum("bhk,bhkv->bhv", q[:, t], state))
    return np.stack(outputs, 1)


def conv_bn_tune(seed: int, folder: Path) -> Mapping[str, float]:
    """`memory` and `time` of a step of ResNet-18 in ConvBN's mode tune, by mode eval.

    Eight images of 64 pixels, loss and gradients, float32 (You et al., 2023).

    Args:
      seed, folder: not used.
    """
    rows = {row[0]: row for row in conv_bn.measure("resnet18", 64, 8)}
    _, _, time, _, memory = rows["tune"]
    return {"memory": memory, "time": time}
