"""Adapters of test-time adaptation and of a convolution with its frozen norm."""

import jax

from normjax import adapt, reparam
from normjax.core.collections import PARAMS
from tests.golden_adapters import weight_case, weight_runner
from tests.golden_adapters.compare import close
from tests.golden_adapters.run import Case, cast
from tests.golden_adapters.translate import channels_last, inside, maps, of, ordered


@weight_case("alphabn")
def alpha_batch_norm(data, meta):
    kwargs = meta["kwargs"]

    def apply(variables, x, *, train, mean, var):
        scale, bias = (variables[PARAMS][k] for k in ("scale", "bias"))
        weight, epsilon = kwargs["weight_of_test_batch"], kwargs["eps"]
        given = {"batch_weight": weight, "epsilon": epsilon}
        return adapt.alpha_batch_normalize(x, mean, var, scale, bias, **given), {}

    return Case(
        apply,
        {"scale": of("layer_weight"), "bias": of("layer_bias")},
        fixed={k: of(f"source_running_{k}") for k in ("mean", "var")},
        **maps(channels_last(meta)),
    )


@weight_case("unmixtns")
def unmix_tns(data, meta):
    """Its state moves in evaluation, too."""
    kwargs, names = meta["kwargs"], ("means", "vars")

    def apply(variables, x, *, train):
        y, state = adapt.unmix_normalize(
            x,
            *(variables["components"][k] for k in names),
            *(variables[PARAMS][k] for k in ("scale", "bias")),
            momentum=kwargs["momentum"],
            temperature=kwargs["temperature"],
            epsilon=kwargs["eps"],
        )
        return y, {"components": dict(zip(names, state, strict=True))}

    return Case(
        apply,
        {"scale": of("weight"), "bias": of("bias")},
        inside("components", {k: of(f"running_{k}_mat") for k in names}),
        unused=("state*_source_*",),
        **maps(channels_last(meta)),
    )


@weight_runner("lame")
def lame(data, meta, tolerance):
    kwargs, arrays = meta["kwargs"], cast(data, tolerance.dtype)
    kernel = adapt.affinity(
        arrays["feats"],
        kwargs["affinity"].lower(),
        neighbours=kwargs["knn"],
        symmetric=kwargs["force_symmetry"],
    )
    close("kernel", kernel, data["kernel"], tolerance.value)
    for name, steps in (("y_1step", 1), ("y_3steps", 3), ("y", kwargs["max_steps"])):
        given = {"weight": kwargs["bound_lambda"], "max_steps": steps}
        y = adapt.laplacian_adjusted(arrays["probas"], kernel, **given)
        close(name, y, data[name], tolerance.value)


@weight_case("convbn")
def conv_bn(data, meta):
    kwargs = meta["kwargs"]

    def apply(variables, x, *, train, mean, var):
        params = variables[PARAMS]
        own = (params.get(k) for k in ("kernel", "bias", "bn_scale", "bn_bias"))
        kernel, bias = reparam.tuned_conv_bn(*own, mean, var, epsilon=kwargs["eps"])
        y = jax.lax.conv_general_dilated(
            x,
            kernel.astype(x.dtype),
            (kwargs.get("stride", 1),) * 2,
            [(kwargs["padding"],) * 2] * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=x.shape[-1] // kernel.shape[2],
        )
        return {"y": y + bias.reshape(1, 1, 1, -1), "kernel": kernel}, {}

    feature_maps = maps(channels_last(meta))
    hwio = ordered(meta["layout"]["param_conv_weight"], "kh kw I O")
    return Case(
        apply,
        {
            "kernel": of("conv_weight", to=hwio),
            "bias": of("conv_bias"),
            "bn_scale": of("bn_weight"),
            "bn_bias": of("bn_bias"),
        },
        inputs=feature_maps["inputs"],
        outputs=feature_maps["outputs"] | {"kernel": of("fused_weight", to=hwio)},
        fixed={k: of(f"state0_running_{k}") for k in ("mean", "var")},
    )
