"""Adapters of the token mixers."""

import jax
import jax.numpy as jnp
import numpy as np

from normjax import mixers
from tests.golden_adapters import layer_runner
from tests.golden_adapters.compare import close


def linear(name: str, path: str) -> dict:
    """A torch Linear `name` as our Dense at `path`."""
    return {
        f"{name}.weight": (f"{path}/kernel", np.transpose),
        f"{name}.bias": (f"{path}/bias", np.asarray),
    }


def run_once(data, meta, tolerance, mixer, names, *, grid: bool):
    """Forward and every gradient of sum(y * dy).

    Args:
      names: reference parameter -> (path of ours, function to our layout).
      grid: whether the mixer wants [B, H, W, C].
    """
    shape = (-1, meta["H"], meta["W"], data["x"].shape[-1]) if grid else data["x"].shape

    def cast(a):
        return jnp.asarray(a, tolerance.dtype)

    given = {k.removeprefix("param_") for k in data if k.startswith("param_")}
    assert given == {n for n in names if n in given}, sorted(given - set(names))
    params: dict = {}
    for name in given:
        path, translate = names[name]
        *parents, last = path.split("/")
        node = params
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = cast(translate(data[f"param_{name}"]))

    @jax.jit
    def run(params, x, dy):
        def forward(params, x):
            return mixer.apply({"params": params}, x, train=False)

        y, vjp = jax.vjp(forward, params, x)
        return y, *vjp(dy)

    y, dparams, dx = run(
        params,
        cast(data["x"]).reshape(shape),
        cast(data["dy"]).reshape(*shape[:-1], data["dy"].shape[-1]),
    )
    close("y", y.reshape(data["y"].shape), data["y"], tolerance.value)
    close("dx", dx.reshape(data["dx"].shape), data["dx"], tolerance.gradient)
    largest = max((np.abs(data[f"dparam_{name}"]).max() for name in given), default=0)
    for name in given:
        path, translate = names[name]
        ours = dparams
        for part in path.split("/"):
            ours = ours[part]
        expected = translate(data[f"dparam_{name}"])
        close(f"d{name}", ours, expected, tolerance.gradient, largest)


@layer_runner("sla_deit")
def sla_deit(data, meta, tolerance):
    kwargs = meta["kwargs"]
    mixer = mixers.build(
        "sla", num_heads=kwargs["num_heads"], qkv_bias=kwargs["qkv_bias"]
    )()
    names = {
        **linear("qkv", "qkv"),
        **linear("proj", "proj"),
        "positional_encoding": (
            "positional_encoding",
            lambda p: p.reshape(meta["H"], meta["W"], -1),
        ),
        "dwc.weight": ("dwc_kernel", lambda w: w[:, 0].transpose(1, 2, 0)),
        "dwc.bias": ("dwc_bias", np.asarray),
    }
    run_once(data, meta, tolerance, mixer, names, grid=True)
