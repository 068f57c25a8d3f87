"""Adapters of the normalizations."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from normjax import fusion, norms
from normjax.core.collections import BATCH_STATS
from normjax.core.folding import FoldSite
from tests.golden_adapters import norm_case
from tests.golden_adapters.run import Case, applied
from tests.golden_adapters.translate import (
    channels_last,
    conv,
    inside,
    maps,
    of,
    ordered,
    transposed,
)

BN = {"scale": of("weight"), "bias": of("bias")}
BN_STATE = {"mean": of("running_mean"), "var": of("running_var")}
REPBN = {"alpha": of("alpha"), "scale": of("bn_weight"), "bias": of("bn_bias")}
REPBN_STATE = {"mean": of("bn_running_mean"), "var": of("bn_running_var")}
PREPBN = {
    **inside("layer_norm", BN, "norm1_"),
    **inside("batch_norm", REPBN, "norm2_"),
}
PREPBN_STATE = inside("batch_norm", REPBN_STATE, "norm2_")


def mask_of(meta):
    """The layout of the mask, which is ours [B, ...] and True for what is real."""
    described = meta["layout"].get("mask", "B N")
    sort, padding = ordered(described, "B T N H W 1"), "True = padding" in described
    return of("mask", to=lambda a: sort(a.astype(bool)) ^ padding)


def norm_of(meta, module, params, state=(), others=(), **more) -> Case:
    """A norm on feature maps.

    Args:
      params: layout.  state: of `batch_stats`.  others: of other collections.
      more: arguments of `Case`.
    """
    given = {
        **maps(channels_last(meta)),
        "params": params,
        "state": {**inside(BATCH_STATS, dict(state)), **dict(others)},
        "fixed": {"mask": mask_of(meta)},
    }
    return Case(**{"apply": applied(module), **given, **more})


def batch_arguments(kwargs: dict, eps: str = "eps") -> dict:
    """PyTorch's momentum is the weight of the new value, ours of the old one."""
    return {
        "epsilon": kwargs[eps],
        "momentum": 1 - kwargs["momentum"],
        "unbiased_running_var": True,
    }


@norm_case("layernorm")
def layer_norm(data, meta):
    affine = {"use_scale": "param_weight" in data, "use_bias": "param_bias" in data}
    norm = norms.build("layer_norm", epsilon=meta["kwargs"]["eps"], **affine)()
    return norm_of(meta, norm, BN)


@norm_case("rmsnorm")
def rms_norm(data, meta):
    affine = "param_weight" in data
    norm = norms.build("rms_norm", epsilon=meta["kwargs"]["eps"], use_scale=affine)()
    return norm_of(meta, norm, BN)


@norm_case("maskedbn")
def masked_batch_norm(data, meta):
    norm = norms.build("batch_norm", **batch_arguments(meta["kwargs"]))()
    return norm_of(meta, norm, BN, BN_STATE)


@norm_case("repbn")
def repbn(data, meta):
    if meta["steps"] is None:
        return repbn_fold(data, meta)
    # Masked positions pass through in the language form, the only one with a mask.
    norm = norms.build("repbn", **batch_arguments(meta["kwargs"]), skip_masked=True)()
    return norm_of(meta, norm, REPBN, REPBN_STATE)


@norm_case("prepbn")
def prepbn(data, meta):
    """The counters of the reference move with every `counter_period`-th call."""
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
    run, period = applied(norm), kwargs.get("counter_period", 1)

    def apply(variables, x, *, train, **fixed):
        y, new = run(variables, x, train=train, **fixed)
        if train:
            stats, call = new[BATCH_STATS], variables["calls"]["number"]
            ticked = jnp.minimum(stats["step"], warm + total)
            held = variables[BATCH_STATS]["step"]
            step = jnp.where(call % period == 0, ticked, held)
            new = {BATCH_STATS: {**stats, "step": step}}
            new["calls"] = {"number": (call + 1) % period}
        return y, new

    def ticks(warm_left, total_left):
        return np.int32(warm - warm_left + total - total_left)

    return norm_of(
        meta,
        norm,
        PREPBN,
        {**PREPBN_STATE, "step": of("warm", "iter", to=ticks)},
        {"calls/number": of("num_step")},
        apply=apply,
        start={"calls": {"number": np.int32(0)}},
        unused=("state*_total_step*",),
    )


class ThenLinear(nn.Module):
    """A norm and the linear layer that reads it."""

    norm: nn.Module
    features: int
    use_bias: bool

    @nn.compact
    def __call__(self, x):
        h = self.norm.copy(name="bn")(x, train=False)
        return nn.Dense(self.features, use_bias=self.use_bias, name="layer")(h)

    @nn.nowrap
    def fold_sites(self):
        return [FoldSite("bn", self.norm, readers=("layer",))]


class AfterConv(nn.Module):
    """A convolution and the norm that reads it."""

    norm: nn.Module
    features: int
    kernel_size: tuple[int, int]
    padding: int

    @nn.compact
    def __call__(self, x):
        layer = nn.Conv(
            self.features, self.kernel_size, padding=self.padding, name="layer"
        )
        return self.norm.copy(name="bn")(layer(x), train=False)

    @nn.nowrap
    def fold_sites(self):
        return [FoldSite("bn", self.norm, writer="layer")]


def repbn_fold(data, meta):
    """A merged RepBN, forward and weights."""
    norm = norms.build("repbn", epsilon=meta["kwargs"]["eps"])()
    after_conv = "conv_weight" in data
    kind, kernel = ("conv", conv) if after_conv else ("linear", transposed)
    weight = data[f"{kind}_weight"]
    if after_conv:
        padding = meta["kwargs"]["padding"]
        model = AfterConv(norm, len(weight), weight.shape[2:], padding)
    else:
        model = ThenLinear(norm, len(weight), "linear_bias" in data)

    def apply(variables, x, *, train, mean, var, **layer):
        variables = {
            "params": {**variables["params"], "layer": layer},
            BATCH_STATS: {"bn": {"mean": mean, "var": var}},
        }
        folded, merged = fusion.fold(model, variables)
        assert list(merged) == ["params"]
        return {
            "unfused": model.apply(variables, x),
            "fused": folded.apply(merged, x),
            **merged["params"]["layer"],
        }, {}

    feature_maps = channels_last(meta)
    return Case(
        apply,
        inside("bn", REPBN),
        inputs={"x": of("x", to=feature_maps)},
        outputs={
            "unfused": of("y_unfused", to=feature_maps),
            "fused": of("y_fused", to=feature_maps),
            "kernel": kernel("fused_weight"),
            "bias": of("fused_bias"),
        },
        fixed={
            "mean": of("state_running_mean"),
            "var": of("state_running_var"),
            "kernel": kernel(f"{kind}_weight"),
            "bias": of(f"{kind}_bias"),
        },
        gradients={},
    )
