"""Adapters of norm placement and of the conversion of Pre-LN models."""

import jax
import jax.numpy as jnp
import numpy as np

from normjax import fusion, models, norms
from normjax.models.placement import PLACEMENTS, BranchPlacement, mix, residual
from tests.golden_adapters import norm_case, norm_runner
from tests.golden_adapters.compare import close
from tests.golden_adapters.run import Case, cast, pure
from tests.golden_adapters.translate import of

# Variant of the reference -> our placement; Mix-LN counts its layers.
STACKS = {
    "preln": "pre",
    "postln": "post",
    "lnscaling": "scaled",
    "periln": "sandwich",
}
# What the reference calls the norms of both branches, by the norm's suffix here.
INPUT = ("input_layernorm", "post_attention_layernorm")
STREAM = ("post_attention_layernorm", "post_feedforward_layernorm")
BOTH = {
    "": ("input_layernorm", "pre_feedforward_layernorm"),
    "_out": ("post_attention_layernorm", "post_feedforward_layernorm"),
}


def running_mean(x):
    count = jnp.arange(1, x.shape[1] + 1, dtype=x.dtype)
    return jnp.cumsum(x, 1) / count[None, :, None]


def placements_of(meta) -> list[BranchPlacement]:
    kwargs = {k: v for k, v in meta["kwargs"].items() if k != "note"}
    layers = kwargs.pop("layers")
    post = kwargs.pop("num_post_layers", None)
    assert not kwargs, f"unknown arguments {sorted(kwargs)}"
    if post is None:
        placement = PLACEMENTS[STACKS[meta["variant"]]]
    else:
        placement = mix((post + 0.5) / layers)
    return [placement.layer(i, layers) for i in range(layers)]


@norm_case("preln", "postln", "mixln", "lnscaling", "periln")
def stack(data, meta):
    placements, norm = placements_of(meta), norms.RMSNorm(epsilon=1e-6)

    def forward(params, x):
        for i, place in enumerate(placements):

            def apply_norm(branch, suffix, h, i=i, place=place):
                names = STREAM if place.post else INPUT
                name = (BOTH[suffix] if place.output else names)[branch]
                scale = params[f"{i}_{name}_weight"]
                return norm.apply({"params": {"scale": scale}}, h)

            branches = (
                lambda h, i=i: running_mean(h) @ params[f"{i}_attn_w"],
                lambda h, i=i: (
                    jnp.tanh(h @ params[f"{i}_mlp_w1"]) @ params[f"{i}_mlp_w2"]
                ),
            )
            for n, branch in enumerate(branches):
                x = residual(
                    x, branch, lambda s, h, n=n, f=apply_norm: f(n, s, h), place
                )
        return x

    names = (k.removeprefix("param_") for k in data if k.startswith("param_"))
    return Case(pure(forward), {name: of(name) for name in names})


def vit_params(data, prefix: str, fallback: str, kwargs) -> dict:
    """One of the three weight sets in our layout; the norms have no parameters."""

    def get(name):
        key = f"param_{prefix}_{name}"
        return np.asarray(data[key if key in data else f"param_{fallback}_{name}"])

    def dense(name, index=...):
        kernel, bias = (get(f"{name}_linear_{k}")[index] for k in ("weight", "bias"))
        return {"kernel": kernel.T, "bias": bias}

    side = kwargs["patch_size"]
    patch = dense("patch")
    channels = patch["kernel"].shape[0] // side**2
    patch["kernel"] = patch["kernel"].reshape(side, side, channels, -1)
    token, table = get("cls_token"), get("pos_embedding")
    params = {
        "stem": {"proj": patch},
        "cls_token": token,
        # Only patches have a position there.
        "pos_embed": np.concatenate([np.zeros_like(token), table], axis=1),
        "head": dense("cls_head"),
    }
    for i in range(kwargs["depth"]):
        params[f"blocks_{i}"] = {
            "mixer": {"qkv": dense("att_in", i), "proj": dense("att_out", i)},
            "mlp": {"fc1": dense("mlp_in", i), "fc2": dense("mlp_out", i)},
        }
    return params


@norm_runner("prenorm_convert")
def prenorm_convert(data, meta, tolerance):
    """Outputs and weights of the Pre-RMSNorm and Pre-CRMSNorm models."""
    kwargs = meta["kwargs"]
    assert meta["case"] == "vit", f"unknown case {meta['case']!r}"
    model = models.build(
        "vit",
        num_classes=kwargs["num_classes"],
        dim=kwargs["dim"],
        depth=kwargs["depth"],
        num_heads=kwargs["heads"],
        mlp_ratio=data["param_orig_mlp_in_linear_bias"].shape[-1] / kwargs["dim"],
        norm=dict(
            name="layer_norm", epsilon=kwargs["eps"], use_scale=False, use_bias=False
        ),
        stem=dict(name="patch", patch_size=kwargs["patch_size"]),
        pool="cls",
    )

    side, grid = kwargs["patch_size"], kwargs["image_size"] // kwargs["patch_size"]
    patches = data["x_0"].reshape(
        -1, grid, grid, side, side, data["x_0"].shape[-1] // side**2
    )
    shape = (len(patches), kwargs["image_size"], kwargs["image_size"], -1)
    images = cast(patches.swapaxes(2, 3).reshape(shape), tolerance.dtype)
    params = vit_params(data, "orig", "orig", kwargs)
    variables = cast({"params": params}, tolerance.dtype)
    close(
        "pre_ln",
        jax.jit(model.apply)(variables, images),
        data["y_pre_ln_result"],
        tolerance.value,
    )
    for norm, weights, output in (
        ("rms_norm", "zm", "y_pre_rms_result"),
        ("crms_norm", "compressed", "y_pre_crms_result"),
    ):
        converted = fusion.convert_pre_norm(model, variables, norm)
        y = jax.jit(converted.model.apply)(converted.variables, images)
        close(norm, y, data[output], tolerance.value)
        expected = vit_params(data, weights, "orig", kwargs)
        expected["pos_embed"] = expected["pos_embed"][:, 1:]
        ours = converted.variables["params"]
        ours["pos_embed"] = ours["pos_embed"][:, 1:]
        for (path, a), b in zip(
            jax.tree_util.tree_leaves_with_path(ours),
            jax.tree.leaves(expected),
            strict=True,
        ):
            close(f"{norm}{jax.tree_util.keystr(path)}", a, b, tolerance.value)
