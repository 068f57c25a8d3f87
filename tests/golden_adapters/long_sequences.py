"""Adapters of mixers of sequences that are no attention, of tasks and of graphs."""

import functools

import flax.linen as nn
import numpy as np

from normjax import mixers, norms
from normjax.activations import ACTIVATIONS
from normjax.core.dense import BlockDiagonalDense
from normjax.mixers.sequence.task_convolved import TaskConvolvedDense
from normjax.models.block import Block, feeding, mixing
from normjax.models.mlps import MLP
from normjax.models.placement import BranchPlacement
from tests.golden_adapters import layer_case
from tests.golden_adapters.run import Case, applied, pure
from tests.golden_adapters.translate import (
    flat,
    inside,
    linear,
    of,
    translated,
    transposed,
)

NORM = {"scale": of("weight"), "bias": of("bias")}


@layer_case("monarch_op")
def monarch_product(data, meta):
    inputs = {name: of(name) for name in ("x", "w1", "w2")}

    def apply(params, x, first, second):
        return mixers.monarch_product(x, first, second)

    return Case(pure(apply), inputs=inputs)


@layer_case("m2_blockdiag")
def block_diagonal(data, meta):
    bias = "param_bias" in data
    checked = {"in_features": data["x"].shape[-1], "bias": bias}
    names = {"out_features": "features", "nblocks": "blocks"}
    layer = BlockDiagonalDense(
        **translated(meta["kwargs"], names, checked), use_bias=bias
    )
    kernel = of("weight", to=lambda w: w.swapaxes(1, 2))
    return Case(applied(layer), {"kernel": kernel, "bias": of("bias")})


def long_convolution(name, prefix):
    """The filters of the reference as ours at `name`."""
    layout = {
        "positions": of("pos_emb.z", to=lambda z: z[0]),
        "frequency": flat("implicit_filter.1.freq"),
        "skip": of("bias"),
    }
    for ours, theirs in (("forward", ""), ("reverse", "_rev")):
        for i in range(4):
            layout |= linear(f"implicit_filter{theirs}.{2 * i}", f"{ours}_{i}")
    return inside(name, layout, f"{prefix}.")


class AfterNorm(nn.Module):
    """A mixer of normalised tokens, without a residual connection."""

    inner: nn.Module

    @nn.compact
    def __call__(self, x, train=False):
        norm = norms.build("layer_norm", epsilon=1e-5)(name="norm")
        return self.inner(norm(x, train=train))


@layer_case("m2_sequence")
def monarch(data, meta):
    kwargs = dict(meta["kwargs"])
    normed = kwargs.pop("hyena_training_additions", False)
    names = {
        "l_max": "max_length",
        "bidirectional": "bidirectional",
        "residual_long_conv": "residual",
        "hyena_emb_dim": "position_features",
        "hyena_filter_order": "filter_width",
        "hyena_w": "frequency",
    }
    settings = ("hyena_kernel_lr", "hyena_lr_pos_emb", "hyena_wd", "hyena_w_mod")
    checked = {k: kwargs.get(k) for k in settings} | {"d_model": data["x"].shape[-1]}
    checked |= {"hyena_filter_dropout": 0, "dropout": 0}
    mixer = mixers.build("monarch", **translated(kwargs, names, checked))()
    kernel = of("short_filter.weight", to=lambda w: w[:, 0].T)
    layout = {
        **linear("in_linear", "in_proj"),
        "short_kernel": kernel,
        "short_bias": of("short_filter.bias"),
        **long_convolution("conv", "filter_fn"),
        **long_convolution("residual_conv", "filter_fn2"),
        **linear("out_linear", "proj"),
    }
    tables = {}
    for ours, theirs in (("conv", "filter_fn"), ("residual_conv", "filter_fn2")):
        if f"buffer_{theirs}.pos_emb.t" in data:
            times = data[f"buffer_{theirs}.pos_emb.t"].ravel()
            rates = data[f"buffer_{theirs}.modulation.deltas"].ravel()
            tables[ours] = {"times": times, "rates": rates}
    if normed:
        layout = {**inside("inner", layout), **inside("norm", NORM, "layernorm.")}
        start = {"constants": {"inner": tables}}
        return Case(applied(AfterNorm(mixer)), layout, start=start)
    return Case(applied(mixer), layout, start={"constants": tables})


def of_task(name):
    """One of the projections, whose convolutions the reference has head by head."""
    heads = range(4)
    kernels = (f"Mtx_fc.conv_list.{i}.weight" for i in heads)
    biases = (f"Mtx_fc.conv_list.{i}.bias" for i in heads)
    layout = {
        "kernel": transposed("fc.weight"),
        "task_convolution": of(*kernels, to=lambda *ws: np.stack(ws, -1)[0]),
        "task_shift": of(*biases, to=lambda *bs: np.stack(bs, -1)),
        "task_gate": of("Mtx_fc.sk_wt", to=lambda s: s.reshape(1, -1)),
    }
    return inside(name, layout) if name else layout


TASK = {"task": 1, "num_tasks": 2}


@layer_case("contracon_weight")
def task_convolved_dense(data, meta):
    names = {"fout": "features", "num_heads": "num_heads", "ker_sz": "kernel_size"}
    checked = {"fin": data["x"].shape[-1]}
    arguments = translated(meta["kwargs"], names, checked) | TASK
    return Case(applied(TaskConvolvedDense(**arguments)), of_task(""))


@layer_case("contracon_attention")
def task_convolved(data, meta):
    kwargs, width = meta["kwargs"], data["x"].shape[-1]
    names = {"num_heads": "num_heads", "ker_sz": "kernel_size"}
    checked = {"dim": width, "head_dim": kwargs.get("head_dim")}
    arguments = translated(kwargs, names, checked)
    inner = kwargs["num_heads"] * kwargs.get("head_dim", width // kwargs["num_heads"])
    mixer = mixers.build("task_convolved", qkv_features=inner, **arguments, **TASK)()
    layout = {"proj/kernel": transposed("proj.weight")}
    for ours, theirs in (("q", "query"), ("k", "key"), ("v", "value")):
        layout |= {
            path: (tuple(f"{theirs}.{n}" for n in names), to)
            for path, (names, to) in of_task(ours).items()
        }
    return Case(applied(mixer), layout)


@layer_case("graph_transformer")
def graph_transformer(data, meta):
    given = {**meta, **meta.get("kwargs", {})}
    heads = given.get("num_heads", given.get("heads"))
    if heads is not None:
        return graph_block(data, meta, heads)
    # Nothing in the file says how many: the number with which y comes out.
    width = data["x"].shape[-1]
    divisors = [n for n in range(1, width + 1) if not width % n]
    errors = [np.abs(graph_output(data, meta, n) - data["y"]).max() for n in divisors]
    return graph_block(data, meta, divisors[int(np.argmin(errors))])


def graph_output(data, meta, heads):
    """What the block gives, in NumPy."""
    x, there, norm = data["x"], data["adj"], "layer_norm"
    p = {k.removeprefix("param_"): a for k, a in data.items() if k.startswith("param_")}
    if "batch_norm1.weight" in p:
        norm = "batch_norm"

    def dense(x, name):
        return x @ p[f"{name}.weight"].T + p.get(f"{name}.bias", 0)

    def normalized(x, name):
        axis = 0 if norm == "batch_norm" else -1
        mean, var = x.mean(axis, keepdims=True), x.var(axis, keepdims=True)
        if norm == "batch_norm" and meta["mode"] != "train":
            mean, var = (data[f"buffer_{name}.running_{k}"] for k in ("mean", "var"))
        return (x - mean) / np.sqrt(var + 1e-5) * p[f"{name}.weight"] + p[
            f"{name}.bias"
        ]

    q, k, v = (dense(x, name).reshape(len(x), heads, -1) for name in "QKV")
    scores = np.einsum("ihk,jhk->hij", q, k) / np.sqrt(q.shape[-1])
    weights = np.exp(np.clip(scores, -5, 5)) * there
    weights /= weights.sum(-1, keepdims=True)
    o = np.einsum("hij,jhk->ihk", weights, v).reshape(x.shape)
    x = normalized(x + dense(o, "O"), f"{norm}1")
    h = np.maximum(dense(x, "FFN_layer1"), 0)
    return normalized(x + dense(h, "FFN_layer2"), f"{norm}2")


def graph_block(data, meta, heads):
    """Attention along the edges of one graph and an MLP, each with a norm behind."""
    width, kind = data["x"].shape[-1], "layer_norm"
    if "param_batch_norm1.weight" in data:
        kind = "batch_norm"
    settings = {"unbiased_running_var": True} if kind == "batch_norm" else {}
    norm = norms.build(kind, epsilon=1e-5, **settings)
    mixer = mixers.build("graph_transformer", num_heads=heads)
    post = BranchPlacement(post=True)
    relu = ACTIVATIONS.factory("relu")
    mlp = functools.partial(MLP, hidden=2 * width, activation=relu)
    known = (("train", "train"), ("adjacency", "adjacency"))
    first = mixing(norm, mixer, post)._replace(takes=known)
    block = Block((first, feeding(norm, mlp, post)))

    def apply(variables, x, adjacency, train):
        states = [k for k in variables if k != "params"]
        context = {"adjacency": adjacency[None] != 0}
        y, new = block.apply(variables, x[None], train, context, mutable=states)
        return y[0], new

    layout = {
        "mixer/qkv/kernel": transposed("Q.weight", "K.weight", "V.weight"),
        **linear("O", "mixer/proj"),
        **linear("FFN_layer1", "mlp/fc1"),
        **linear("FFN_layer2", "mlp/fc2"),
    }
    state, training = {}, meta["mode"] == "train"
    for name in ("norm1", "norm2"):
        layout |= inside(name, NORM, f"{kind}{name[4:]}.")
        running = {"mean": of("running_mean"), "var": of("running_var")}
        state |= inside(f"batch_stats/{name}", running, f"batch_{name}.")
    zeros = {"mean": np.zeros(width), "var": np.ones(width)}
    # A file of training has the averages behind the step alone, not those before it.
    start = {"batch_stats": {"norm1": zeros, "norm2": zeros}} if training else {}
    return Case(
        apply,
        layout,
        {} if training or kind == "layer_norm" else state,
        fixed={"adjacency": of("adj")},
        start=start,
        train=training,
        kept=("buffer_{}", "buffer_after_{}"),
    )
