"""Names, layouts and arguments of the references as ours.

A layout gives, for what is ours, (names of the reference's arrays, function of them).
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

Layout = Mapping[str, tuple[tuple[str, ...], Callable]]


def same(array):
    return array


def of(*names: str, to: Callable = same):
    """An entry of a layout: what a function makes of those arrays."""
    return names, to


def transposed(*names: str):
    """One or more torch Linear weights as the kernel of one layer of ours."""
    return of(*names, to=lambda *ws: np.concatenate(ws).T)


def flat(*names: str):
    """One or more arrays as one vector, after each other."""
    return of(
        *names, to=lambda *arrays: np.concatenate([a.reshape(-1) for a in arrays])
    )


def scalar(name: str):
    return of(name, to=lambda a: a.reshape(()))


def conv(name: str):
    """[O, I, H, W] -> [H, W, I, O]."""
    return of(name, to=lambda w: w.transpose(2, 3, 1, 0))


def pointwise(name: str):
    """[O, I, 1, 1] -> [I, O]."""
    return of(name, to=lambda w: w[:, :, 0, 0].T)


def depthwise(name: str):
    """[C, 1, H, W] -> [H, W, C]."""
    return of(name, to=lambda w: w[:, 0].transpose(1, 2, 0))


def linear(name: str, path: str) -> Layout:
    """A torch Linear `name` as our Dense at `path`."""
    return inside(
        path, {"kernel": transposed("weight"), "bias": of("bias")}, f"{name}."
    )


def inside(path: str, layout: Layout, prefix: str = "") -> Layout:
    """The layout of a submodule: our path and the reference's prefix before names."""
    return {
        f"{path}/{ours}": (tuple(prefix + name for name in names), to_ours)
        for ours, (names, to_ours) in layout.items()
    }


def maps(to_ours: Callable) -> dict[str, Any]:
    """Layouts of x and y, which change in the same way."""
    return {"inputs": {"x": of("x", to=to_ours)}, "outputs": {"y": of("y", to=to_ours)}}


def ordered(layout: str, wanted: str) -> Callable:
    """Function from a layout like "O I kh kw, ..." to one with the axes as wanted."""
    axes = [axis for axis in layout.split(",")[0].split() if axis in wanted.split()]
    order = [axes.index(axis) for axis in wanted.split() if axis in axes]
    return lambda array: np.transpose(array, order)


def channels_last(meta) -> Callable:
    """Function from the feature maps of a file to [B, ..., C]."""
    return ordered(meta["layout"]["x"], "B T N H W C")


def grid_of(data, meta):
    """(H, W), which some files keep in the meta and some among the arrays."""
    given = {**(meta.get("kwargs") or {}), **meta, **data}
    return int(given["H"]), int(given["W"])


def as_grid(height: int, width: int) -> Callable:
    """Function from [B, H * W, C] to [B, H, W, C]."""
    return lambda t: t.reshape(-1, height, width, t.shape[-1])


WITHOUT_EFFECT = {
    "attn_drop": 0,
    "proj_drop": 0,
    "drop": 0,
    "drop_path": 0,
    "qk_scale": None,
    "norm_layer": None,
    "act_layer": None,
}
"""Arguments of the references that change nothing at these values."""


def translated(kwargs, names, checked=()):
    """The arguments of ours that the reference's stand for; none is left over.

    Args:
      names: argument of the reference -> of ours.
      checked: other arguments and the only value that they may have.
    """
    checked = {**WITHOUT_EFFECT, **dict(checked)}
    assert not set(kwargs) - set(names) - set(checked), (kwargs, names)
    for name in set(kwargs) & set(checked) - set(names):
        assert kwargs[name] == checked[name], (name, kwargs[name], checked[name])
    return {ours: kwargs[name] for name, ours in names.items() if name in kwargs}
