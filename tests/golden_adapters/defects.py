"""Adapters of dead neurons, and of singular defects and their repair."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from normjax import analysis, reparam
from tests.golden_adapters.methods import (
    agree,
    method_runner,
)
from tests.golden_adapters.run import cast


@method_runner("dead_neuron_rate")
def dead_neuron_rate(data, meta, tolerance):
    layers = [k for k in data if k.startswith("activations_")]
    arrays, found = [jnp.asarray(data[k]) for k in layers], {}
    rates = {
        f"_{k.split('_')[1]}": analysis.dead_neurons(jnp.asarray(data[k]))
        for k in layers
    }
    for suffix, rate in {**rates, "": analysis.dead_neurons(*arrays)}.items():
        found[f"dynamic{suffix}"], found[f"static{suffix}"] = rate
    agree(data, found, tolerance, layers)


@method_runner("sinder_directions")
def sinder_directions(data, meta, tolerance):
    kwargs, arrays = meta["kwargs"], cast(data, tolerance.dtype)
    depth, blocks, found = kwargs["depth"], [], {}
    given = [k for k in data if k.startswith(("param_", "mlp_samples_"))]
    for i in range(depth):
        p = {k.removeprefix(f"param_{i}."): v for k, v in arrays.items()}
        value = jnp.split(p["attn.qkv.weight"], 3)[2]
        scales = (p["norm1.weight"], p.get("ls1.gamma"))
        attention = analysis.attention_matrix(value.T, p["attn.proj.weight"].T, *scales)
        x = arrays[f"mlp_samples_{i}"]
        gate, up = jnp.split(
            x @ p["mlp.w12.weight"].T + p["mlp.w12.bias"][None], 2, axis=-1
        )
        scales = (p["norm2.weight"], p.get("ls2.gamma"))
        last = p["mlp.w3.weight"].T
        mlp = analysis.mlp_matrix(x, nn.silu(gate) * up, last, *scales)
        found[f"attn_matrix_{i}"], found[f"mlp_matrix_{i}"] = attention, mlp
        blocks.append(mlp @ attention)
    made = analysis.defect_directions(blocks)
    for i in range(depth):
        found[f"singular_values_{i}"] = made.singular_values[i]
        for name, v in (("block_direction", made.alone), ("direction", made.direction)):
            sign = np.sign(np.dot(v[i], data[f"{name}_{i}"]))
            found[f"{name}_{i}"] = sign * v[i]
    agree(data, found, tolerance, given)


@method_runner("sinder_neighbor_loss")
def sinder_neighbor_loss(data, meta, tolerance):
    kwargs = meta["kwargs"]
    (height, width), arrays = kwargs["grid"], cast(data, tolerance.dtype)

    def loss(x):
        assert len(x) == 1
        tokens = x[0, 1:].reshape(height, width, -1)
        names = {
            "mask_thr": "threshold",
            "temperature": "temperature",
            "kernel": "kernel",
        }
        given = {names[k]: v for k, v in kwargs.items() if k in names}
        made = analysis.neighbor_loss(tokens, arrays["direction"], **given)
        return made.loss, made

    gradient, made = jax.grad(loss, has_aux=True)(arrays["x"])
    rows, columns = np.nonzero(made.mask)
    found = {**made._asdict(), "dx": gradient, "rows": rows, "cols": columns}
    agree(data, found, tolerance, ("x", "direction"))


@method_runner("sinder_repair")
def sinder_repair(data, meta, tolerance):
    """A layer, and one of queries, keys and values."""
    arrays, found = cast(data, tolerance.dtype), {}
    for suffix, part, new, parts in (
        ("", "", "new_weight", 1),
        ("_qkv", "_v", "new_qkv_weight", 3),
    ):
        prefix = suffix[1:] + "_" if suffix else ""
        layer = {"kernel": arrays[f"{prefix}weight"].T}
        bias, x = arrays[f"{prefix}bias"], arrays[f"x{suffix}"]
        rule = reparam.SingularValues(splits=parts)
        _, state = rule.create(layer, jax.random.key(0))

        def run(shift, rule=rule, layer=layer, state=state, x=x, bias=bias):
            made, _ = rule.effective(layer, {"shift": shift}, state, train=True)
            return x @ made["kernel"] + bias[None], made["kernel"]

        y, vjp, kernel = jax.vjp(run, arrays[f"epsilon{part}"], has_aux=True)
        found[f"y{suffix}"], found[new] = y, kernel.T
        found[f"depsilon{part}"] = vjp(arrays[f"dy{suffix}"])[0]
    names = ("weight", "bias", "qkv_weight", "qkv_bias", "epsilon", "epsilon_v")
    agree(data, found, tolerance, (*names, "x", "x_qkv", "dy", "dy_qkv"))
