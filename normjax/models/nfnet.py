"""NFNet: networks without norms, of standardized convolutions and weighed channels."""

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype

from normjax.core.broadcast import mean_over_positions
from normjax.core.dense import Dense
from normjax.core.errors import UserError, one_of
from normjax.core.folding import FoldSite
from normjax.models.base import MODELS
from normjax.models.layers import Factory, StochasticDepth
from normjax.models.norm_free_resnet import check_no_norm, fan_in_normal
from normjax.models.remat import recomputed
from normjax.reparam import standardize_weight


class StandardizedConv(nn.Module):
    """A convolution of g s (w - mean) / sqrt(n (var + 1e-5)), as timm has it.

    Mean and (biased) variance of the n weights of an output channel, its learned gain g
    and a constant s. Brock et al. (2021) divide by sqrt(max(n var, 1e-4)) instead.

    Attributes:
      features: channels of the result.
      kernel_size, stride, groups: of the convolution.
      weight_gain: s.
      same_padding: zeros where they make ceil(n / stride) positions, more of them
        behind than before; else half a kernel on each side.
      dtype: of the computation.  param_dtype: of the parameters.
    """

    features: int
    kernel_size: int = 1
    stride: int = 1
    groups: int = 1
    weight_gain: float = 1.0
    same_padding: bool = True
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x: [B, H, W, C] -> [B, ceil(H / stride), ceil(W / stride), features]."""
        size, width, ones = self.kernel_size, (self.features,), nn.initializers.ones
        shape = (size, size, x.shape[-1] // self.groups, self.features)
        kernel = self.param("kernel", fan_in_normal, shape, self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, width, self.param_dtype)
        gain = self.param("gain", ones, width, self.param_dtype)
        plain = {"epsilon": 1e-5, "epsilon_inside": True, "unbiased": False}
        scale = self.weight_gain * math.prod(shape[:-1]) ** -0.5
        kernel = standardize_weight(kernel, **plain) * (gain * scale).reshape(
            1, 1, 1, -1
        )
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        half = size // 2
        y = jax.lax.conv_general_dilated(
            x,
            kernel,
            (self.stride, self.stride),
            "SAME" if self.same_padding else ((half, half), (half, half)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=self.groups,
        )
        return y + bias.reshape(1, 1, 1, -1)


class SqueezeExcitation(nn.Module):
    """sigmoid(W2 relu(W1 mean(x))), a factor a channel (Hu et al., 2018).

    Attributes:
      ratio: of the width between to that of x.
      dtype: of the computation.
    """

    ratio: float = 0.5
    dtype: Dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x: [B, H, W, C] -> [B, C]."""
        width = x.shape[-1]
        h = Dense(round(width * self.ratio), dtype=self.dtype, name="fc1")(
            mean_over_positions(x)
        )
        return jax.nn.sigmoid(
            Dense(width, dtype=self.dtype, name="fc2")(jax.nn.relu(h))
        )


class EfficientChannel(nn.Module):
    """sigmoid(conv(mean(x))), a factor a channel (ECA; Wang et al., 2020).

    The convolution runs over the channels; its kernel [k] is the odd number next to
    (log2(C) + 1) / 2.

    Attributes:
      ratio: unused.
      dtype: of the computation.  param_dtype: of the kernel.
    """

    ratio: float = 0.5
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x: [B, H, W, C] -> [B, C]."""
        size = int((math.log2(x.shape[-1]) + 1) / 2)
        size += 1 - size % 2
        init = nn.initializers.uniform(size**-0.5)
        kernel = self.param("kernel", init, (size,), self.param_dtype)
        x, kernel = nn.dtypes.promote_dtype(
            mean_over_positions(x), kernel, dtype=self.dtype
        )
        half, width = size // 2, x.shape[-1]
        around = jnp.pad(x, ((0, 0), (half, half)))
        return jax.nn.sigmoid(
            sum(kernel[i] * around[:, i : i + width] for i in range(size))
        )


ATTENTIONS = {
    "squeeze_excitation": SqueezeExcitation,
    "efficient_channel": EfficientChannel,
}


class NFBlock(nn.Module):
    """shortcut + alpha gain 2 s(y) y, y = branch(beta activation(x)) (NFNet).

    The branch is conv1x1, two grouped conv3x3 and conv1x1, activations between them; s
    weighs channels. A shortcut that changes the shape is a 1x1 convolution of beta
    activation(x), averaged over 2x2 where the map shrinks; any other is x.

    Attributes:
      conv: factory of the convolutions.  activation: factory.
      width, hidden: of the result and inside.  groups: of the 3x3 convolutions.
      attention: factory of s.
      stride: of the first 3x3.  project: whether the shape changes.
      alpha: size of the branch.  beta: 1 / expected standard deviation of x.
      skip_init: learn the gain, a number that starts at 0.
      drop_path: rate of stochastic depth.
    """

    conv: Factory
    activation: Factory
    width: int
    hidden: int
    groups: int
    attention: Factory
    stride: int = 1
    project: bool = False
    alpha: float = 0.2
    beta: float = 1.0
    skip_init: bool = True
    drop_path: float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """x: [B, H, W, C] -> [B, ceil(H / stride), ceil(W / stride), width]."""
        wide = {"kernel_size": 3, "groups": self.groups}
        y = entry = self.activation(name="act")(x) * self.beta
        y = self.conv(self.hidden, name="conv1")(y)
        y = self.activation(name="act1")(y)
        y = self.conv(self.hidden, stride=self.stride, name="conv2", **wide)(y)
        y = self.activation(name="act2")(y)
        y = self.conv(self.hidden, name="conv2b", **wide)(y)
        y = self.activation(name="act2b")(y)
        y = self.conv(self.width, name="conv3")(y)
        factors = 2 * self.attention(name="attention")(y)
        y = y * factors.reshape(len(factors), 1, 1, -1).astype(y.dtype)
        y = StochasticDepth(self.drop_path)(y, train=train)
        if self.project:
            if self.stride > 1:
                steps = (self.stride, self.stride)
                entry = nn.avg_pool(entry, (2, 2), steps, "SAME", False)
            x = self.conv(self.width, name="shortcut")(entry)
        alpha: Any = self.alpha
        if self.skip_init:
            gain = self.param("gain", nn.initializers.zeros, ())
            alpha = (alpha * gain).astype(y.dtype)
        return alpha * y + x


@MODELS.register("nfnet", "grid")
class NFNet(nn.Module):
    """NFNet (Brock, De, Smith & Simonyan, 2021) and its light variants of timm.

    Like `norm_free_resnet` without norms, and with a standardization of weights in
    every convolution, so that the config needs none; blocks weigh their channels. It is
    trained with adaptive gradient clipping (`config.optim.adaptive_clip`), of all but
    the head.

    Attributes:
      num_classes: width of the logits.
      depths, widths: of the stages; all but the first start with stride 2.
      stem_width, last_width: before and behind the stages.
      bottleneck_ratio: of the width inside a block to that of its result.
      group_width: channels of a group of the 3x3 convolutions.
      attention: "squeeze_excitation" or "efficient_channel".
      attention_ratio: of the width inside the former.
      activation: factory (see `models.build`, which takes keys); one that keeps the
        variance, or any with a `weight_gain` that does.
      norm: none; there for the sake of configs.
      weight_gain: constant in the weights of every convolution.
      same_padding: as TensorFlow pads; else half a kernel on each side.
      skip_init: branches have a gain that starts at 0.
      alpha: size of a branch beside a stream of size 1.
      dropout_rate: before the logits.
      drop_path_rate: stochastic depth of the last block; rates rise linearly from 0.
      remat: compute each block again in the backward pass instead of storing it; True,
        or what is stored all the same: a key of `models.REMAT_POLICIES`.
      dtype: of the computation; parameters are float32.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from normjax import models
      >>> size = {"depths": (1, 1), "widths": (16, 32), "stem_width": 8}
      >>> model = models.build("nfnet", num_classes=10, group_width=4, **size)
      >>> images = jnp.zeros((2, 32, 32, 3))
      >>> variables = jax.eval_shape(model.init, jax.random.key(0), images)
      >>> jax.eval_shape(model.apply, variables, images).shape, sorted(variables)
      ((2, 10), ['params'])
    """

    num_classes: int
    depths: tuple[int, ...] = (1, 2, 6, 3)
    widths: tuple[int, ...] = (256, 512, 1536, 1536)
    stem_width: int = 128
    last_width: int = 3072
    bottleneck_ratio: float = 0.5
    group_width: int = 128
    attention: str = "squeeze_excitation"
    attention_ratio: float = 0.5
    activation: Any = "scaled_gelu"
    norm: Any = "none"
    weight_gain: float = 1.0
    same_padding: bool = True
    skip_init: bool = True
    alpha: float = 0.2
    dropout_rate: float = 0.0
    drop_path_rate: float = 0.0
    remat: bool | str = False
    dtype: Dtype | None = None

    @nn.nowrap
    def layouts(self) -> set[str]:
        """What norms would get to see."""
        check_no_norm(self.norm)
        if self.attention not in ATTENTIONS:
            raise UserError(one_of("attention", self.attention, ATTENTIONS))
        if len(self.depths) != len(self.widths):
            raise UserError(
                f"depths {self.depths} and widths {self.widths} are not of one length"
            )
        for hidden in map(self._hidden, self.widths):
            if hidden < 1 or hidden % self.group_width:
                raise UserError(
                    f"{hidden} channels do not split into groups of {self.group_width} "
                    "(group_width)"
                )
        return {"grid"}

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """images: [B, H, W, C], normalised -> logits [B, num_classes], float32."""
        x, conv = images, self._conv()
        for i, stride in enumerate((2, 1, 1, 2), 1):
            width = max(1, self.stem_width >> (4 - i))
            x = self.activation(name=f"act_{i}")(x) if i > 1 else x
            x = conv(width, kernel_size=3, stride=stride, name=f"stem_conv{i}")(x)
        kind = recomputed(NFBlock, self.remat)
        for name, arguments in self.blocks().items():
            x = kind(name=name, **arguments)(x, train)
        x = conv(self.last_width, name="last")(x)
        x = mean_over_positions(self.activation(name="act")(x))
        x = nn.Dropout(self.dropout_rate)(x, deterministic=not train)
        init = {"kernel_init": nn.initializers.normal(0.01), "dtype": self.dtype}
        logits = Dense(self.num_classes, name="head", **init)(x)
        return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))

    @nn.nowrap
    def _hidden(self, width: int) -> int:
        return round(self.bottleneck_ratio * width)

    @nn.nowrap
    def _conv(self) -> Factory:
        same, dtype = self.same_padding, self.dtype
        known = {"weight_gain": self.weight_gain, "same_padding": same, "dtype": dtype}
        return functools.partial(StandardizedConv, **known)

    @nn.nowrap
    def _attention(self) -> Factory:
        known = {"ratio": self.attention_ratio, "dtype": self.dtype}
        return functools.partial(ATTENTIONS[self.attention], **known)

    @nn.nowrap
    def blocks(self) -> dict[str, dict[str, Any]]:
        """Arguments of every block, by its name."""
        blocks, variance, before = {}, 1.0, self.stem_width
        last = max(sum(self.depths) - 1, 1)
        for stage, (depth, width) in enumerate(
            zip(self.depths, self.widths, strict=True)
        ):
            hidden = self._hidden(width)
            for i in range(depth):
                stride = 2 if stage and not i else 1
                blocks[f"blocks_{stage}_{i}"] = {
                    "conv": self._conv(),
                    "activation": self.activation,
                    "width": width,
                    "hidden": hidden,
                    "groups": hidden // self.group_width,
                    "attention": self._attention(),
                    "stride": stride,
                    "project": stride > 1 or width != before,
                    "alpha": self.alpha,
                    "beta": 1 / math.sqrt(variance),
                    "skip_init": self.skip_init,
                    "drop_path": self.drop_path_rate * len(blocks) / last,
                }
                variance = (variance if i else 1.0) + self.alpha**2
                before = width
        return blocks

    @nn.nowrap
    def fold_sites(self) -> list[FoldSite]:
        """There are no norms."""
        return []
