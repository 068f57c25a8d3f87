"""Adapters of the blocks of OSNet."""

from normjax import activations, norms
from normjax.models.osnet import OmniScaleBlock
from tests.golden_adapters import registered
from tests.golden_adapters.compare import LAYERS
from tests.golden_adapters.run import Case, check
from tests.golden_adapters.translate import (
    channels_last,
    conv,
    depthwise,
    of,
    pointwise,
)

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
