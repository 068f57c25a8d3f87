"""Adapters of methods around a trained network: saliency, defects, pruning, banks."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from normjax import activations, adapt, analysis, norms, prune, reparam, tasks
from normjax.analysis import saliency
from normjax.core.collections import PARAMS
from normjax.data.mix import one_hot_smooth
from normjax.models.osnet import OmniScaleBlock
from normjax.tasks import Classification
from tests.golden_adapters import registered
from tests.golden_adapters.compare import LAYERS
from tests.golden_adapters.methods_a import (
    LAST,
    STEPS,
    agree,
    host_runner,
    method_case,
    method_runner,
)
from tests.golden_adapters.run import Case, cast, check
from tests.golden_adapters.translate import (
    channels_last,
    conv,
    depthwise,
    of,
    pointwise,
    translated,
    transposed,
)


class Features(nn.Module):
    """Two convolutions, each with a ReLU."""

    widths: tuple[int, int]
    stride: int

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(self.widths[0], (3, 3), padding=1, name="conv1")(x))
        conv2 = nn.Conv(self.widths[1], (3, 3), self.stride, padding=1, name="conv2")
        return nn.relu(conv2(x))


class SmallNet(nn.Module):
    """`Features`, perhaps a third convolution with tanh, means, logits."""

    widths: tuple[int, int]
    stride: int
    last: int | None
    classes: int

    @nn.compact
    def __call__(self, x):
        x = Features(self.widths, self.stride, name="features")(x)
        if self.last:
            x = jnp.tanh(nn.Conv(self.last, (3, 3), padding=1, name="conv3")(x))
        return nn.Dense(self.classes, name="fc")(x.mean((1, 2)))


def small_net(data, meta, dtype):
    """The network of the file, its variables, and the keys of its parameters."""
    keys = [k for k in data if k.startswith("param_")]
    params = {"features": {}}
    for key in keys:
        layer, name = key.removeprefix("param_").split(".")
        array = data[key]
        ours = "kernel" if name == "weight" else "bias"
        axes = {4: (2, 3, 1, 0), 2: (1, 0), 1: (0,)}[array.ndim]
        inside = layer in ("conv1", "conv2")
        place = params["features"] if inside else params
        place.setdefault(layer, {})[ours] = array.transpose(axes)
    sizes = {k.split(".")[0].removeprefix("param_"): len(data[k]) for k in keys}
    net = SmallNet(
        (sizes["conv1"], sizes["conv2"]),
        meta["kwargs"]["stride"],
        sizes.get("conv3"),
        sizes["fc"],
    )
    return net, cast({"params": params}, dtype), keys


@method_runner("smoothgrad")
def smoothgrad(data, meta, tolerance):
    net, variables, keys = small_net(data, meta, tolerance.dtype)
    kwargs, (x, noise) = (
        meta["kwargs"],
        cast((data["x"], data["noise_unit"]), tolerance.dtype),
    )
    assert len(noise) == kwargs["nsamples"]

    def score(x):
        return net.apply(variables, x[None])[0, kwargs["class_index"]]

    made = analysis.smooth_grad(score, x, noise, kwargs["stdev_spread"])
    found = {
        "stdev": kwargs["stdev_spread"] * (x.max() - x.min()),
        "grad": jax.grad(score)(x),
        "smooth": made.mean,
        "smooth_squared": made.square,
        "vargrad": made.variance,
    }
    agree(data, found, tolerance, ("x", "noise_unit", *keys))


@host_runner("cam")
def class_activation_maps(data, meta, tolerance):
    net, variables, keys = small_net(data, meta, tolerance.dtype)
    x = cast(data["x"].transpose(LAST), tolerance.dtype)
    noise = cast(data["noise"].transpose(0, 1, 3, 4, 2), tolerance.dtype)
    assert len(noise) == meta["kwargs"]["num_samples"]
    classes = jnp.asarray(data["class_index"])

    @jax.jit
    def run(x):
        return analysis.activations_and_gradients(
            net, variables, "features", x, classes
        )

    (a, g), noisy = run(x), [run(x + n) for n in noise]
    many = jnp.stack([gradient for _, gradient in noisy])

    def theirs(maps):
        return jnp.moveaxis(maps, -1, -3)

    # The library takes its ReLU and its map from the last noisy image.
    second, third = (jnp.mean(many**power, 0) for power in (2, 3))
    below = 2 * second + jnp.sum(a * third, (1, 2), keepdims=True) + saliency.SMALL
    weights = jnp.sum(second / below * jax.nn.relu(many[-1]), (1, 2))
    shipped = saliency.activation_map(weights, noisy[-1][0])
    maps = analysis.grad_cam(a, g)
    smooth = partial(analysis.smooth_grad_cam_plus_plus, a, many)
    found = {
        "activations": theirs(a),
        "gradients": theirs(g),
        "noisy_gradients": theirs(many),
        "last_noisy_activations": theirs(noisy[-1][0]),
        "gradcam": maps,
        "gradcam_normalized": analysis.normalized_map(maps),
        "smoothgradcampp_as_shipped": shipped,
        "smoothgradcampp_as_shipped_normalized": analysis.normalized_map(shipped),
        "gradcampp_weights": saliency.plus_plus_weights(a, g),
        "gradcampp": analysis.grad_cam_plus_plus(a, g),
        "smoothgradcampp": smooth(),
        "smoothgradcampp_weights": saliency.smooth_weights(a, many),
        "smoothgradcampp_first_order_numerator": smooth(first_order=True),
    }
    agree(data, found, tolerance, ("x", "class_index", "noise", *keys))


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


KINDS = {"plain": "none", "in": "behind", "inin": "inside"}


def osnet_rows(data, kind):
    """(our path, reference's name, kind of layer) of a block."""
    units = [("reduce", "conv1"), ("expand", "conv3"), ("shortcut", "downsample")]
    rows = [(f"{o}/conv", f"{t}.conv", "conv") for o, t in units]
    rows += [(f"{o}/norm", f"{t}.bn", "norm") for o, t in units]
    rows += [(f"gate/{n}", f"gate.{n}", "pointwise") for n in ("fc1", "fc2")]
    rows.append(("expand/norm" if kind == "inin" else "instance_norm", "IN", "norm"))
    for t in range(4):
        for i in range(t + 1):
            lettered = "conv2" + "abcd"[t] + (f".{i}" if t else "")
            theirs = f"conv2.{t}.layers.{i}" if kind == "inin" else lettered
            ours = f"stream_{t}_{i}"
            rows.append((f"{ours}/pointwise", f"{theirs}.conv1", "pointwise"))
            rows.append((f"{ours}/conv", f"{theirs}.conv2", "depthwise"))
            rows.append((f"{ours}/norm", f"{theirs}.bn", "norm"))
    return [row for row in rows if f"param_{row[1]}.weight" in data]


@registered("osnet_block", by="variant", tolerances=LAYERS[:2])
def osnet_block(data, meta, tolerance):
    """In training and, by the statistics that were given, in evaluation."""
    kwargs = meta["kwargs"]
    # `y_eval` is of the same input and state: no further step.
    data = {"evaluated" if k == "y_eval" else k: v for k, v in data.items()}
    inputs, outputs, kind = (kwargs[k] for k in ("in_channels", "out_channels", "kind"))
    norm = norms.build(
        "batch_norm", momentum=0.9, epsilon=1e-5, unbiased_running_var=True
    )
    block = OmniScaleBlock(
        outputs,
        norm,
        activations.build("relu"),
        KINDS[kind],
        project=inputs != outputs,
    )
    params, state = {}, {}
    weights = {"conv": conv, "pointwise": pointwise, "depthwise": depthwise, "norm": of}
    for ours, theirs, what in osnet_rows(data, kind):
        name = "scale" if what == "norm" else "kernel"
        params[f"{ours}/{name}"] = weights[what](f"{theirs}.weight")
        params[f"{ours}/bias"] = of(f"{theirs}.bias")
        for k in ("mean", "var") if what == "norm" else ():
            state[f"batch_stats/{ours}/{k}"] = of(f"{theirs}.running_{k}")

    def apply(variables, x, *, train):
        y, new = block.apply(variables, x, True, mutable=["batch_stats"])
        return {"y": y, "evaluated": block.apply(variables, x, False)}, new

    last = channels_last(meta)
    case = Case(
        apply,
        params,
        state,
        inputs={"x": of("x", to=last)},
        outputs={k: of(v, to=last) for k, v in OSNET_OUTPUTS.items()},
        gradients={"y": ("d{}_train", "dparam_{}")},
        train=True,
        kept=("param_{}", "state_after_{}"),
    )
    check(case, data, meta, tolerance)


OSNET_OUTPUTS = {"y": "y_train", "evaluated": "evaluated"}
