"""DeiT, Swin and their SLAB forms in plain PyTorch, to time ours beside.

Written from the papers, with the names and shapes of the published state dicts, so
that what `convert.to_torch` makes of our variables loads strictly. Needs torch.
"""

import functools
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
import torch._inductor.config  # pyright: ignore[reportMissingImports]
from torch import nn  # pyright: ignore[reportMissingImports]
from torch.nn import functional as F  # pyright: ignore[reportMissingImports]

from normjax.bench import peers

WAYS = ("torch", "torch.compile")

# Its fusion of reductions along rows and columns fails an assertion at PRepBN (2.11).
if hasattr(torch._inductor.config.triton, "mix_order_reduction"):
    torch._inductor.config.triton.mix_order_reduction = False

_MASKED = -100.0
_DECAY = 60_000


class RepBN(nn.Module):
    """BatchNorm(x) + alpha x over the last axis (SLAB; Guo et al., 2024)."""

    def __init__(self, dim: int):
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(1))
        self.bn = nn.BatchNorm1d(dim)

    def forward(self, x):
        """x: [..., C] -> same."""
        normed = self.bn(x.reshape(-1, x.shape[-1])).reshape(x.shape)
        return normed + self.alpha * x


class PRepBN(nn.Module):
    """w LayerNorm(x) + (1 - w) RepBN(x), w falling from 1 to 0 (Guo et al., 2024).

    RepBN alone at evaluation. w = iter / total_step; each training call takes 1 from
    iter. The warmup that `warm` counts is left out: none of these models has one.
    """

    def __init__(self, dim: int, epsilon: float):
        super().__init__()
        for name, count in (("warm", 0), ("iter", _DECAY), ("total_step", _DECAY)):
            self.register_buffer(name, torch.tensor(count))
        self.norm1, self.norm2 = nn.LayerNorm(dim, epsilon), RepBN(dim)

    def forward(self, x):
        """x: [..., C] -> same."""
        if not self.training:
            return self.norm2(x)
        # Tensors throughout: a Python number would need the host and break the graph.
        weight = (self.iter / self.total_step).to(x.dtype)
        self.iter.copy_((self.iter - 1).clamp(min=0))
        return torch.lerp(self.norm2(x), self.norm1(x), weight)


class Attention(nn.Module):
    """What the attentions share: projections, x [B, N, C] -> same."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x, mask=None):
        """mask: of `attend`."""
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind()
        o = self.attend(q, k, v, mask)
        return self.proj(o.transpose(1, 2).flatten(2))

    def attend(self, q, k, v, mask):
        """softmax(q k^T / sqrt(K)) v; q, k, v [B, heads, N, K] -> same."""
        return F.scaled_dot_product_attention(q, k, v, mask)


class WindowAttention(Attention):
    """Softmax attention with a bias by offset (Swin; Liu et al., 2021)."""

    def __init__(self, dim: int, heads: int, side: int):
        super().__init__(dim, heads)
        place = torch.arange(side)
        offsets = place[:, None] - place + side - 1
        index = offsets[:, None, :, None] * (2 * side - 1) + offsets[None, :, None, :]
        table = torch.zeros((2 * side - 1) ** 2, heads)
        self.relative_position_bias_table = nn.Parameter(table)
        self.register_buffer("relative_position_index", index.flatten(2).flatten(0, 1))

    def attend(self, q, k, v, mask):
        """mask: [windows, N, N], 0 or -100, or None; batches are image by image."""
        bias = self.relative_position_bias_table[self.relative_position_index]
        bias = bias.permute(2, 0, 1)[None]
        if mask is not None:
            bias = bias + mask[:, None]
            bias = bias.repeat(len(q) // len(bias), 1, 1, 1)
        return super().attend(q, k, v, bias)


class LinearAttention(Attention):
    """Simplified linear attention (SLAB; Guo et al., 2024) on a map of side**2 tokens.

    With q' = relu(q), k' = relu(k + P),

        o_i = (q'_i . sum_j k'_j v_j^T) / (q'_i . sum_j k'_j + 1e-6)

    per head, plus a 5x5 depthwise convolution of v whose kernel all heads share.
    """

    def __init__(self, dim: int, heads: int, side: int):
        super().__init__(dim, heads)
        width = dim // heads
        self.side = side
        self.positional_encoding = nn.Parameter(torch.zeros(1, side * side, dim))
        self.dwc = nn.Conv2d(width, width, 5, padding=2, groups=width)

    def attend(self, q, k, v, mask):
        """mask: ignored, as published."""
        del mask
        table = self.positional_encoding.unflatten(-1, (self.heads, -1))
        q, k = F.relu(q), F.relu(k + table.transpose(1, 2))
        scale = 1 / (q @ k.sum(2)[..., None] + 1e-6)
        o = q @ (k.transpose(2, 3) @ v) * scale
        maps = v.flatten(0, 1).transpose(1, 2).unflatten(2, (self.side, self.side))
        return o + self.dwc(maps).flatten(2).transpose(1, 2).reshape(o.shape)


class MLP(nn.Module):
    """Linear, exact GELU, Linear."""

    def __init__(self, dim: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x):
        """x: [..., C] -> same."""
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """x + attention(norm(x)), then x + MLP(norm(x)), on tokens [B, N, C]."""

    def __init__(self, dim: int, norm: Callable[[int], nn.Module], attention):
        super().__init__()
        self.norm1, self.norm2 = norm(dim), norm(dim)
        self.attn, self.mlp = attention, MLP(dim)

    def forward(self, x):
        """x: [B, N, C] or [B, H, W, C] -> same."""
        x = x + self.mix(self.norm1(x))
        return x + self.mlp(self.norm2(x))

    def mix(self, x):
        """The attention on what the norm gives."""
        return self.attn(x)


class WindowBlock(Block):
    """A block on maps [B, H, W, C], its attention inside windows.

    Args:
      grid: side of the map.  window: side of a window.
      shift: rows and columns by which the windows are moved, cyclically.
    """

    def __init__(self, dim, norm, attention, grid: int, window: int, shift: int):
        super().__init__(dim, norm, attention)
        self.window, self.shift = window, shift
        mask = _shift_mask(grid, window, shift) if shift else None
        self.register_buffer("attn_mask", mask)

    def mix(self, x):
        """Windows become batches and a map again; x: [B, H, W, C] -> same."""
        batch, height, width, channels = x.shape
        shift, side = self.shift, self.window
        if shift:
            x = x.roll((-shift, -shift), (1, 2))
        split = (batch, height // side, side, width // side, side, channels)
        x = x.reshape(split).transpose(2, 3).reshape(-1, side * side, channels)
        x = self.attn(x, self.attn_mask)
        split = (batch, height // side, width // side, side, side, channels)
        x = x.reshape(split).transpose(2, 3).reshape(batch, height, width, channels)
        return x.roll((shift, shift), (1, 2)) if shift else x


def _shift_mask(grid: int, window: int, shift: int):
    """[windows, N, N]: -100 between positions that only the cyclic shift joins."""
    place = torch.arange(grid)
    part = (place >= grid - window).int() + (place >= grid - shift).int()
    region = 3 * part[:, None] + part
    count = grid // window
    region = region.reshape(count, window, count, window).transpose(1, 2)
    region = region.reshape(count * count, window * window)
    return torch.where(region[:, :, None] == region[:, None], 0.0, _MASKED)


class PatchEmbed(nn.Module):
    """Patches [B, 3, S, S] -> [B, S / patch, S / patch, C], and their norm."""

    def __init__(self, dim: int, patch: int, norm: Callable[[int], nn.Module]):
        super().__init__()
        self.proj = nn.Conv2d(3, dim, patch, patch)
        self.norm = norm(dim)

    def forward(self, images):
        """See the class."""
        return self.norm(self.proj(images).permute(0, 2, 3, 1))


class PatchMerge(nn.Module):
    """norm([x_00 | x_10 | x_01 | x_11]) W (Swin); indices row and column."""

    def __init__(self, dim: int, features: int, norm: Callable[[int], nn.Module]):
        super().__init__()
        self.norm = norm(4 * dim)
        self.reduction = nn.Linear(4 * dim, features, bias=False)

    def forward(self, x):
        """x: [B, H, W, C] -> [B, H / 2, W / 2, features]."""
        batch, height, width, channels = x.shape
        x = x.reshape(batch, height // 2, 2, width // 2, 2, channels)
        x = x.permute(0, 1, 3, 4, 2, 5)
        x = x.reshape(batch, height // 2, width // 2, 4 * channels)
        return self.reduction(self.norm(x))


class DeiT(nn.Module):
    """DeiT (Touvron et al., 2021); with `linear`, SLAB-DeiT (Guo et al., 2024).

    SLAB-DeiT reads the mean of the tokens and leaves its class token unused.
    """

    def __init__(
        self,
        norm: Callable[[int], nn.Module],
        linear: bool = False,
        dim: int = 192,
        depth: int = 12,
        num_heads: int = 3,
        num_classes: int = 1000,
        side: int = 224,
    ):
        super().__init__()
        grid, self.linear = side // 16, linear
        tokens = grid * grid + (not linear)
        self.patch_embed = PatchEmbed(dim, 16, lambda dim: nn.Identity())
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, tokens, dim))
        attention: Any = Attention
        if linear:
            attention = functools.partial(LinearAttention, side=grid)
        self.blocks = nn.Sequential(
            *(Block(dim, norm, attention(dim, num_heads)) for _ in range(depth))
        )
        self.norm, self.head = norm(dim), nn.Linear(dim, num_classes)

    def forward(self, images):
        """images: [B, 3, side, side] -> logits [B, num_classes]."""
        x = self.patch_embed(images).flatten(1, 2)
        if not self.linear:
            x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1)
        x = self.norm(self.blocks(x + self.pos_embed))
        return self.head(x.mean(1) if self.linear else x[:, 0])


class Swin(nn.Module):
    """Swin (Liu et al., 2021), windows of 7; with `linear`, SLAB-Swin.

    `linear` is the number of first stages with linear attention on the whole map.
    """

    def __init__(
        self,
        norm: Callable[[int], nn.Module],
        linear: int = 0,
        dims: Sequence[int] = (96, 192, 384, 768),
        depths: Sequence[int] = (2, 2, 6, 2),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        num_classes: int = 1000,
        side: int = 224,
    ):
        super().__init__()
        self.patch_embed = PatchEmbed(dims[0], 4, norm)
        stages = []
        for s, (dim, depth, heads) in enumerate(
            zip(dims, depths, num_heads, strict=True)
        ):
            grid = side // 4 >> s
            blocks = [
                _swin_block(dim, heads, norm, grid, i % 2 == 1, s < linear)
                for i in range(depth)
            ]
            stage = nn.Sequential()
            stage.add_module("blocks", nn.Sequential(*blocks))
            if s < len(dims) - 1:
                stage.add_module("downsample", PatchMerge(dim, dims[s + 1], norm))
            stages.append(stage)
        self.layers = nn.Sequential(*stages)
        self.norm, self.head = norm(dims[-1]), nn.Linear(dims[-1], num_classes)

    def forward(self, images):
        """images: [B, 3, side, side] -> logits [B, num_classes]."""
        x = self.norm(self.layers(self.patch_embed(images)))
        return self.head(x.mean((1, 2)))


def _swin_block(dim, heads, norm, grid: int, odd: bool, linear: bool) -> WindowBlock:
    window = grid if linear else min(grid, 7)
    kind = LinearAttention if linear else WindowAttention
    shift = window // 2 if odd and window < grid else 0
    return WindowBlock(dim, norm, kind(dim, heads, window), grid, window, shift)


def _layer_norm(epsilon: float) -> Callable[[int], nn.Module]:
    return functools.partial(nn.LayerNorm, eps=epsilon)


def _prepbn(epsilon: float) -> Callable[[int], nn.Module]:
    return functools.partial(PRepBN, epsilon=epsilon)


MODELS: dict[str, Callable[..., nn.Module]] = {
    "deit_tiny": functools.partial(DeiT, _layer_norm(1e-6)),
    "slab_deit_tiny": functools.partial(DeiT, _prepbn(1e-6), linear=True),
    "swin_tiny": functools.partial(Swin, _layer_norm(1e-5)),
    "slab_swin_tiny": functools.partial(Swin, _prepbn(1e-5), linear=2),
}
"""By the names of our presets; further arguments are sizes, named as ours."""


def calls(
    way: str,
    name: str,
    images: np.ndarray,
    batches: Sequence[int],
    dtype: str = "float32",
) -> dict[str, Callable[[], Any]]:
    """What to time of a model by its kind.

    Forward passes at evaluation for each number of images, and for all of them the
    forward pass in training with the gradient of every parameter. A thread per core;
    on a GPU where there is one. All calls wait for their result.

    Args:
      way: of `WAYS`.  name: of `MODELS`.  images: [B, H, W, 3].
      dtype: of the computation. Inference has its weights in it, training by autocast.
    """
    device, narrow = peers.torch_device(), getattr(torch, dtype)
    torch.set_num_threads(os.cpu_count() or 1)
    # Channels last in memory: the patch convolutions of torch take half the time.
    given = torch.from_numpy(np.array(images)).permute(0, 3, 1, 2)
    given = given.to(device, narrow)
    evaluated = MODELS[name]().eval().to(device, narrow)
    trained = MODELS[name]().train().to(device)
    # Graphs of fixed shapes: the second batch would make its size a variable.
    compiled = functools.partial(torch.compile, fullgraph=True, dynamic=False)
    made = compiled if way == "torch.compile" else (lambda function: function)
    found: dict[str, Callable[[], Any]] = {
        f"forward {batch}": functools.partial(_forward, made(evaluated), given[:batch])
        for batch in batches
    }

    def loss_of(images):
        with torch.autocast(device, narrow, enabled=narrow != torch.float32):
            return trained(images).float().square().mean()

    loss = made(loss_of)
    found[f"train {len(given)}"] = functools.partial(_step, loss, trained, given)
    return found


def _forward(function: Callable, images: Any) -> Any:
    with torch.inference_mode():
        return _waited(function(images))


def _waited(value: Any) -> Any:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return value


def _step(loss: Callable, module: nn.Module, images: Any) -> dict[str, Any]:
    module.zero_grad(set_to_none=True)
    loss(images).backward()
    return _waited({name: p.grad for name, p in module.named_parameters()})
