"""Adapters of pruning, and of what is trained again behind it."""

import jax
import jax.numpy as jnp
import numpy as np

from normjax import prune, reparam
from normjax.core.collections import PARAMS
from tests.golden_adapters.methods import (
    agree,
    host_runner,
    method_case,
)
from tests.golden_adapters.run import Case
from tests.golden_adapters.translate import (
    of,
    transposed,
)


@method_case("perp_lora_prune", "perp_mask_lora", "perp_scale_lora")
def perp_adapters(data, meta):
    """In training, and merged."""
    kwargs = meta["kwargs"]
    key = meta["variant"].removeprefix("perp_")
    spec = {"name": key, "rank": kwargs["r"]}
    if kwargs["scaling"] is not None:
        spec["alpha"] = kwargs["scaling"] * kwargs["r"]
    rule = reparam.REPARAMS.factory(spec)()
    biased = "param_bias" in data

    def apply(variables, x, *, train, weight):
        del train
        own = {k: variables[PARAMS][k] for k in ("lora_a", "lora_b")}
        bias = variables[PARAMS].get("bias", jnp.zeros(()))
        layer, found = {"kernel": weight}, {}
        for name, trains in (("y", True), ("y_merged", False)):
            made, _ = rule.effective(layer, own, {}, train=trains)
            found[name] = x @ made["kernel"] + bias.reshape(1, -1)
        found["merged"] = made["kernel"]
        first, _ = rule.create(layer, jax.random.key(0))
        return found | {f"init_{k}": first[k] for k in ("lora_a", "lora_b")}, {}

    params = {"lora_a": transposed("lora_A"), "lora_b": transposed("lora_B")}
    return Case(
        apply,
        params | ({"bias": of("bias")} if biased else {}),
        fixed={"weight": transposed("param_weight")},
        outputs={
            "y": of("y"),
            "y_merged": of("y_merged"),
            "merged": transposed("merged_weight"),
            "init_lora_a": transposed("init_lora_A"),
            "init_lora_b": transposed("init_lora_B"),
        },
    )


@host_runner("perp_masks")
def perp_masks(data, meta, tolerance):
    kernel, sparsity = data["weight"].T, meta["kwargs"]["sparsity"]
    batches = [k for k in data if k.startswith("x_")]
    squares = prune.input_squares(data[k] for k in batches)
    wanda = prune.wanda_scores(kernel, squares)
    found = {"wanda_norms": squares, "wanda_metric": wanda.T}
    for key in (k for k in data if k.startswith("pruned_")):
        kind, *pattern = key.removeprefix("pruned_").split("_")
        scores = {"magnitude": np.abs(kernel), "wanda": wanda}[kind]
        if pattern:
            found[key] = prune.smallest_in_groups(scores, *map(int, pattern)).T
        else:
            found[key] = prune.smallest(scores, sparsity).T
    agree(data, found, tolerance, ("weight", *batches))


@host_runner("ap_prune")
def activate_while_pruning(data, meta, tolerance):
    kwargs = meta["kwargs"]

    def tree(prefix):
        return {
            k.removeprefix(prefix): v for k, v in data.items() if k.startswith(prefix)
        }

    initial, start, trained = (tree(f"{k}_") for k in ("initial", "start", "trained"))
    masks = tree("mask_before_")
    magnitude = prune.globally_pruned(trained, masks, kwargs["percent_magnitude"])
    count = prune.activation_count(masks, kwargs["percent_ap"])
    assert count == kwargs["num_ap"]
    after = prune.activated(trained, start, magnitude, count)
    found = {}
    for name in trained:
        found[f"mask_magnitude_{name}"] = magnitude[name]
        found[f"mask_after_{name}"] = after[name]
        found[f"final_{name}"] = initial[name] * after[name]
    given = [
        k
        for k in data
        if k.startswith(("initial_", "start_", "trained_", "mask_before_"))
    ]
    agree(data, found, tolerance, given)
