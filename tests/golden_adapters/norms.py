"""Adapters of the normalizations."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from normjax import fusion, norms
from normjax.core.folding import FoldSite
from tests.golden_adapters import norm_runner
from tests.golden_adapters.compare import close

STATS = "batch_stats"

# Reference name -> path of our variable.
BN = {"weight": "scale", "bias": "bias"}
BN_STATE = {"running_mean": "mean", "running_var": "var"}
REPBN = {"alpha": "alpha", "bn_weight": "scale", "bn_bias": "bias"}
REPBN_STATE = {f"bn_{k}": v for k, v in BN_STATE.items()}
PREPBN = {
    "norm1_weight": "layer_norm/scale",
    "norm1_bias": "layer_norm/bias",
    **{f"norm2_{k}": f"batch_norm/{v}" for k, v in REPBN.items()},
}
PREPBN_STATE = {f"norm2_{k}": f"batch_norm/{v}" for k, v in REPBN_STATE.items()}


def tree_of(data, prefix: str, names: dict[str, str], suffix: str = "") -> dict:
    """The nested dict of those arrays `prefix + reference name + suffix` that exist."""
    tree: dict = {}
    for reference, path in names.items():
        key = f"{prefix}{reference}{suffix}"
        if key in data:
            *parents, last = path.split("/")
            node = tree
            for parent in parents:
                node = node.setdefault(parent, {})
            node[last] = np.asarray(data[key])
    return tree


def leaf(tree, path: str):
    for name in path.split("/"):
        tree = tree[name]
    return tree


def channels_last(x: np.ndarray, layout: str) -> np.ndarray:
    """From "B C H W" to [B, H, W, C]; the other layouts have channels last already."""
    return np.moveaxis(x, 1, -1) if layout.split(",")[0].split() == list("BCHW") else x


def run_steps(data, meta, tolerance, norm, params, state, *, held=None):
    """T training steps with parameters held fixed, then one evaluation.

    Returns the variables as the last step left them.

    Args:
      norm: the module.  params, state: names of its variables (see the tables above).
      held: function of the step number giving leaves of `batch_stats` that are set
        before that step, by name: the schedule counters of the reference.
    """
    layout = meta["layout"]["x"]

    def array(key, dtype=tolerance.dtype):
        return jnp.asarray(channels_last(data[key], layout), dtype)

    def cast(tree):
        return jax.tree.map(lambda a: jnp.asarray(a, tolerance.dtype), tree)

    variables = {
        "params": cast(tree_of(data, "param_", params)),
        STATS: cast(tree_of(data, "state0_", state)),
    }
    assert len(jax.tree.leaves(variables["params"])) == sum(
        k.startswith("param_") for k in data
    ), "a parameter of the reference was left out"

    def step(variables, x, dy, mask):
        def forward(params, x):
            return norm.apply(
                {**variables, "params": params},
                x,
                mask=mask,
                train=True,
                mutable=[STATS],
            )

        y, vjp, new = jax.vjp(forward, variables["params"], x, has_aux=True)
        return y, vjp(dy), new.get(STATS, {})

    step = jax.jit(step)
    for t in range(meta["steps"]):
        if held is not None:
            variables = {**variables, STATS: {**variables[STATS], **held(t)}}
        mask = data[f"mask_{t}"].astype(bool) if f"mask_{t}" in data else None
        y, (dparams, dx), stats = step(
            variables, array(f"x_{t}"), array(f"dy_{t}"), mask
        )
        close(f"y_{t}", y, channels_last(data[f"y_{t}"], layout), tolerance.value)
        close(f"dx_{t}", dx, channels_last(data[f"dx_{t}"], layout), tolerance.gradient)
        largest = max(
            (
                np.abs(data[f"dparam_{k}_{t}"]).max()
                for k in params
                if f"dparam_{k}_{t}" in data
            ),
            default=0.0,
        )
        for reference, path in params.items():
            if f"dparam_{reference}_{t}" in data:
                expected = data[f"dparam_{reference}_{t}"]
                name, limit = f"dparam_{reference}_{t}", tolerance.gradient
                close(name, leaf(dparams, path), expected, limit, largest)
        for reference, path in state.items():
            expected = data[f"state_{reference}_{t}"]
            close(f"{path}_{t}", leaf(stats, path), expected, tolerance.value)
        variables = {**variables, STATS: stats}
    if "x_eval" in data:
        mask = data["mask_eval"].astype(bool) if "mask_eval" in data else None
        x = array("x_eval")
        y, _ = norm.apply(variables, x, mask=mask, train=False, mutable=[STATS])
        close("y_eval", y, channels_last(data["y_eval"], layout), tolerance.value)
    return variables


def batch_arguments(kwargs: dict, eps: str = "eps") -> dict:
    """PyTorch's momentum is the weight of the new value, ours of the old one."""
    return {
        "epsilon": kwargs[eps],
        "momentum": 1 - kwargs["momentum"],
        "unbiased_running_var": True,
    }


@norm_runner("layernorm")
def layer_norm(data, meta, tolerance):
    affine = "param_weight" in data
    norm = norms.build(
        "layer_norm", epsilon=meta["kwargs"]["eps"], use_scale=affine, use_bias=affine
    )()
    run_steps(data, meta, tolerance, norm, BN, {})


@norm_runner("rmsnorm")
def rms_norm(data, meta, tolerance):
    affine = "param_weight" in data
    norm = norms.build("rms_norm", epsilon=meta["kwargs"]["eps"], use_scale=affine)()
    run_steps(data, meta, tolerance, norm, BN, {})


@norm_runner("maskedbn")
def masked_batch_norm(data, meta, tolerance):
    norm = norms.build("batch_norm", **batch_arguments(meta["kwargs"]))()
    run_steps(data, meta, tolerance, norm, BN, BN_STATE)


@norm_runner("repbn")
def repbn(data, meta, tolerance):
    if meta["steps"] is None:
        return repbn_fold(data, meta, tolerance)
    # Masked positions pass through in the language form, the only one with a mask.
    norm = norms.build("repbn", **batch_arguments(meta["kwargs"]), skip_masked=True)()
    run_steps(data, meta, tolerance, norm, REPBN, REPBN_STATE)


@norm_runner("prepbn")
def prepbn(data, meta, tolerance):
    kwargs = meta["kwargs"]
    layer = "layer_norm" if "param_norm1_bias" in data else "rms_norm"
    layer_eps = kwargs.get("ln_eps", kwargs.get("eps"))
    batch = batch_arguments(kwargs, "bn_eps" if "bn_eps" in kwargs else "eps")
    warm, total = int(data["state0_warm"]), int(data["state0_total_step"])
    norm = norms.build(
        "prepbn",
        warmup_steps=warm,
        decay_steps=total,
        start=kwargs["r0"],
        layer_norm={"name": layer, "epsilon": layer_eps},
        batch_norm={"name": "repbn", "skip_masked": True, **batch},
    )()

    def ticks(t):
        """Updates that the reference's counters have made before step t."""
        get = (
            (lambda k: data[f"state0_{k}"])
            if t == 0
            else (lambda k: data[f"state_{k}_{t - 1}"])
        )
        return int(warm - get("warm") + total - get("iter"))

    def held(t):
        return {"step": jnp.int32(ticks(t))}

    run_steps(data, meta, tolerance, norm, PREPBN, PREPBN_STATE, held=held)


class ThenLinear(nn.Module):
    """A norm and the linear layer that reads it."""

    norm: nn.Module
    features: int
    use_bias: bool

    @nn.compact
    def __call__(self, x):
        h = self.norm.copy(name="bn")(x, train=False)
        return nn.Dense(self.features, use_bias=self.use_bias, name="linear")(h)

    @nn.nowrap
    def fold_sites(self):
        return [FoldSite("bn", self.norm, readers=("linear",))]


class AfterConv(nn.Module):
    """A convolution and the norm that reads it."""

    norm: nn.Module
    features: int
    kernel_size: tuple[int, int]
    padding: int

    @nn.compact
    def __call__(self, x):
        h = nn.Conv(self.features, self.kernel_size, padding=self.padding, name="conv")(
            x
        )
        return self.norm.copy(name="bn")(h, train=False)

    @nn.nowrap
    def fold_sites(self):
        return [FoldSite("bn", self.norm, writer="conv")]


def repbn_fold(data, meta, tolerance):
    """A merged RepBN, forward and weights."""
    norm = norms.build("repbn", epsilon=meta["kwargs"]["eps"])()
    cast = lambda a: jnp.asarray(a, tolerance.dtype)  # noqa: E731
    params = {"bn": tree_of(data, "param_", REPBN)}
    after_conv = "conv_weight" in data
    if after_conv:
        weight, bias, layer = data["conv_weight"], data["conv_bias"], "conv"
        to_ours = lambda w: w.transpose(2, 3, 1, 0)  # noqa: E731
        model = AfterConv(
            norm, len(weight), weight.shape[2:], meta["kwargs"]["padding"]
        )
    else:
        weight, bias, layer = data["linear_weight"], data.get("linear_bias"), "linear"
        to_ours = np.transpose
        model = ThenLinear(norm, len(weight), bias is not None)
    params[layer] = {"kernel": to_ours(weight)}
    if bias is not None:
        params[layer]["bias"] = bias
    stats = {"bn": tree_of(data, "state_", BN_STATE)}
    variables = jax.tree.map(cast, {"params": params, STATS: stats})
    x = cast(np.moveaxis(data["x"], 1, -1) if after_conv else data["x"])
    back = (lambda y: np.moveaxis(y, -1, 1)) if after_conv else (lambda y: y)
    folded, folded_variables = fusion.fold(model, variables)
    assert list(folded_variables) == ["params"]
    unfused, fused = model.apply(variables, x), folded.apply(folded_variables, x)
    close("y_unfused", back(unfused), data["y_unfused"], tolerance.value)
    close("y_fused", back(fused), data["y_fused"], tolerance.value)
    merged = folded_variables["params"][layer]
    close(
        "fused_weight", merged["kernel"], to_ours(data["fused_weight"]), tolerance.value
    )
    close("fused_bias", merged["bias"], data["fused_bias"], tolerance.value)
