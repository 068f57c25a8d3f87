"""Adapters of losses, targets and activations that change the training."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from normjax import activations, adapt, reparam, tasks
from normjax.data.mix import one_hot_smooth
from normjax.tasks import Classification
from tests.golden_adapters import registered
from tests.golden_adapters.methods import (
    STEPS,
    agree,
    host_runner,
    method_runner,
)
from tests.golden_adapters.run import cast
from tests.golden_adapters.translate import (
    translated,
)


@registered("orth_conv", by="variant", tolerances=STEPS)
def orthogonal_convolutions(data, meta, tolerance):
    found, kinds = {}, meta["kwargs"]
    for kind, sizes in kinds.items():
        stride = sizes["stride"]
        kernel = cast(data[f"kernel_{kind}"].transpose(2, 3, 1, 0), tolerance.dtype)
        loss = partial(reparam.orthogonal_conv_loss, stride=stride)
        found[f"l_orth_{kind}"], gradient = jax.value_and_grad(loss)(kernel)
        found[f"dkernel_{kind}"] = gradient.transpose(3, 2, 0, 1)
        values = reparam.conv_singular_values(kernel, sizes["N"], stride)
        found[f"singular_values_{kind}"] = values
        low, high = reparam.singular_value_bounds(kernel, stride)
        assert low <= values[-1] and values[0] <= high
        gram = reparam.conv_gram(kernel, stride, 1)
        middle = len(gram) // 2
        gap = gram.at[middle, middle].add(-jnp.eye(gram.shape[-1]))
        found[f"ocnn_norm_padding1_{kind}"] = jnp.linalg.norm(gap.ravel())
        found[f"matrix_orth_norm_{kind}"] = reparam.orthogonal_matrix_norm(kernel)
    agree(data, found, tolerance, [f"kernel_{kind}" for kind in kinds])


@method_runner("relu_interpolation")
def relu_interpolation(data, meta, tolerance):
    names = {
        "interpolate_factor": "factor",
        "scaling_factor": "scale",
        "alpha": "slope",
    }
    given = translated(meta["kwargs"], names)
    arrays, found = cast(data, tolerance.dtype), {}
    for kind in ("gelu", "silu"):
        module = activations.build("relu_interpolation", smooth=kind, **given)()
        found[f"y_{kind}"], vjp = jax.vjp(partial(module.apply, {}), arrays["x"])
        found[f"dx_{kind}"] = vjp(arrays["dy"])[0]
    agree(data, found, tolerance, ("x", "dy"))


@method_runner("dbnorm")
def dual_banks(data, meta, tolerance):
    kwargs, arrays = meta["kwargs"], cast(data, tolerance.dtype)
    names = ("sims", "query_bank_sims", "gallery_bank_sims")
    sims, *banks = (arrays[k] for k in names)
    k, found, products = kwargs["k"], {}, {"dual_is": 1, "dual_dis": 1, "raw": 1}
    shipped = 1
    for kind, bank, beta in zip(
        ("query", "gallery"), banks, (kwargs["beta1"], kwargs["beta2"]), strict=True
    ):
        made = adapt.inverted_softmax(sims, bank, beta)
        dynamic = partial(adapt.dynamic_inverted_softmax, bank=bank, beta=beta, k=k)
        found[f"is_{kind}"] = made
        found[f"dis_{kind}"] = dynamic(sims, raw=True)
        found[f"activated_{kind}"] = adapt.is_activated(sims, bank, k)
        items = adapt.activation_set(bank, k)
        found[f"activation_set_{kind}"] = np.flatnonzero(items)
        products["dual_is"] *= made
        products["dual_dis"] *= dynamic(sims)
        products["raw"] *= dynamic(sims, raw=True)
        shipped *= adapt.inverted_softmax(banks[1], bank, beta)
    found["dual_is"], found["dual_dis"] = products["dual_is"], products["dual_dis"]
    found["dual_dis_as_code"] = products["raw"]
    found["db_norm_as_shipped"] = shipped
    counts = adapt.k_occurrence(sims, kwargs["skew_topk"])
    found["k_occurrence"] = counts
    found["skewness"] = adapt.skewness(counts)
    found["skewness_as_code"] = adapt.skewness(counts[counts > 0])
    found["dsl"] = adapt.dual_softmax(sims, kwargs["beta1"])
    agree(data, found, tolerance, names)


@method_runner("conadv")
def concurrent_adversaries(data, meta, tolerance):
    kwargs, arrays = meta["kwargs"], cast(data, tolerance.dtype)
    x, classes = arrays["x"], len(data["param_w2"])

    def tree(prefix):
        found = {k: v for k, v in arrays.items() if k.startswith(prefix)}
        return {k.removeprefix(prefix): v for k, v in found.items()}

    def loss(p, x, kind, labels, smoothing=0.0):
        norm = nn.BatchNorm(False, epsilon=kwargs["bn_eps"])
        own = {k: p[f"{kind}_{k}"] for k in ("scale", "bias")}
        h, _ = norm.apply({"params": own}, x @ p["w1"].T, mutable=["batch_stats"])
        logits = nn.relu(h) @ p["w2"].T + p["b2"][None]
        targets = one_hot_smooth(labels, classes, smoothing)
        return Classification(classes, (0.0,), (1.0,)).loss(logits, targets)[0]

    start = x + arrays["start_noise"] if kwargs["start_from_noise"] else x
    stale, attacked = tree("stale_"), arrays["attack_labels"]
    gradient = len(x) * jax.grad(loss, 1)(stale, start, "adv", attacked)
    given = {k: kwargs[k] for k in ("epsilon", "step", "targeted")}
    adversarial = tasks.adversarial_examples(x, start, gradient, **given)

    def both(p):
        kinds = (("clean", x), ("adv", adversarial))
        given = arrays["labels"], kwargs["label_smoothing"]
        return sum(loss(p, x, kind, *given) for kind, x in kinds) / 2

    value, slopes = jax.value_and_grad(both)(tree("param_"))
    found = {f"dparam_{k}": v for k, v in slopes.items()}
    found |= {"loss": value, "x_adv": adversarial, "input_gradient": gradient}
    used = [k for k in data if k.startswith(("stale_", "param_"))]
    agree(data, found, tolerance, [*used, *GIVEN_TO_CONADV])


GIVEN_TO_CONADV = ("x", "labels", "attack_labels", "start_noise")


@method_runner("pskd_targets")
def own_predictions(data, meta, tolerance):
    kwargs, arrays, found = meta["kwargs"], cast(data, tolerance.dtype), {}
    epochs, labels, used = kwargs["epochs"], arrays["labels"], ["labels"]
    classes = arrays["logits_0"].shape[-1]
    table = jax.nn.one_hot(labels, classes, dtype=tolerance.dtype)
    objective = Classification(classes, (0.0,), (1.0,))
    for e in range(epochs):
        order, logits = data[f"order_{e}"], arrays[f"logits_{e}"]
        weight = tasks.progressive_weight(e, epochs, kwargs["alpha_T"])
        targets = tasks.progressive_targets(labels[order], table[order], weight)
        value, slope = jax.value_and_grad(lambda z, t=targets: objective.loss(z, t)[0])(
            logits
        )
        table = table.at[order].set(jax.nn.softmax(logits))
        results = {"alpha": weight, "targets": targets, "loss": value, "dlogits": slope}
        results["stored_predictions"] = table
        found |= {f"{k}_{e}": v for k, v in results.items()}
        used += [f"order_{e}", f"logits_{e}"]
    agree(data, found, tolerance, used)


@host_runner("tinyvit_distill")
def stored_predictions(data, meta, tolerance):
    k, classes = meta["kwargs"]["topk"], meta["kwargs"]["classes"]
    values, index = tasks.largest_probabilities(jnp.asarray(data["teacher_logits"]), k)
    records = tasks.pack_records(data["seed"], index, values)
    for ours, name in zip(
        tasks.unpack_records(records), ("seed", "index", "value"), strict=True
    ):
        np.testing.assert_array_equal(ours, data[name])
    targets = tasks.dense_targets(values, index, classes)
    objective = Classification(classes, (0.0,), (1.0,))
    loss, slope = jax.value_and_grad(lambda z: objective.loss(z, targets)[0])(
        jnp.asarray(data["student_logits"])
    )
    found = {
        "index": index,
        "value": values,
        "records": records,
        "dense_targets": targets,
        "loss": loss,
        "dlogits": slope,
    }
    uniforms = data["first_uniforms_of_seed"].shape[-1]
    draws = [
        np.random.Generator(np.random.PCG64(s)).random(uniforms) for s in data["seed"]
    ]
    found["first_uniforms_of_seed"] = draws
    agree(data, found, tolerance, ("teacher_logits", "student_logits", "seed"))
