"""Pictures of what the answers of a run look at."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from normjax import analysis
from normjax.config.overrides import Override
from normjax.core.errors import UserError, one_of, printable
from normjax.core.files import whole_file
from normjax.evaluation.predict import opened_run, reader_of
from normjax.fusion.rewrite import unrolled

SEED = 0
TITLES = ("image", "SmoothGrad", "Grad-CAM", "Grad-CAM++", "Smooth Grad-CAM++")


class Saliency(NamedTuple):
    """Pictures of an image [H, W, C], in [0, 1].

    Attributes:
      name: of the class that is explained.  probability: of it.
      image: uint8 [H, W, C].  maps: by title, [h, w], of any size.
    """

    name: str
    probability: float
    image: np.ndarray
    maps: dict[str, np.ndarray]


class Explainer:
    """Explains the answers of a run.

    Args:
      layer: path of the layer whose maps are drawn; "" for `default_layer`.
      samples: noisy copies.  spread: their noise, of the range of an image.

    Attributes:
      names: of the classes.  layer: whose maps are drawn.

    Raises:
      UserError: no run of images in `workdir`, or no such layer.
    """

    def __init__(
        self,
        workdir: Path,
        *,
        layer: str = "",
        samples: int = 25,
        spread: float = 0.15,
        best: bool = False,
        overrides: Sequence[Override] = (),
    ):
        experiment, variables, spec = opened_run(
            workdir, best=best, overrides=overrides
        )
        self._model, self._variables = unrolled(experiment.model, variables)
        self._objective = experiment.task.objective
        self._shape = tuple(experiment.task.row()["image"].shape)
        self._samples, self._spread = samples, spread
        self.names = experiment.task.class_names()
        self._read = reader_of(self._shape, spec)
        places = self._places()
        self.layer = layer or default_layer(places)
        if self.layer not in places:
            raise UserError(one_of("--layer with a map", self.layer, places))
        self._grid = places[self.layer]
        self._explain = jax.jit(self._maps)

    def pictures(
        self, files: Sequence[Path], label: int | None = None
    ) -> Iterator[tuple[Path, Saliency | UserError]]:
        """Each file with its pictures, or why there are none.

        Args:
          label: class to explain; None for the likeliest.
        """
        for file in files:
            image = self._read(file)
            if isinstance(image, UserError):
                yield file, image
                continue
            chosen = jnp.asarray(-1 if label is None else label)
            found = self._explain(self._variables, image[None], chosen)
            k, probability, maps = jax.device_get(found)
            name = printable(self.names[int(k)]) if self.names else f"class {int(k)}"
            yield file, Saliency(name, float(probability), image, maps)

    def _places(self) -> dict[str, tuple[int, int]]:
        """(H, W) of every layer whose output is a map, in the order of the calls."""
        found: dict[str, tuple[int, int]] = {}

        def intercept(call, args, kwargs, context):
            y = call(*args, **kwargs)
            if context.method_name == "__call__" and isinstance(y, jax.Array):
                grid = _grid_of(y.shape, self._shape)
                if grid:
                    found["/".join(context.module.path)] = grid
            return y

        def run(variables, image):
            x, known = self._objective.inputs({"image": image})
            with nn.intercept_methods(intercept):
                return self._model.apply(variables, x, train=False, **known)

        row = jax.ShapeDtypeStruct((1, *self._shape), jnp.uint8)
        jax.eval_shape(run, self._variables, row)
        return found

    def _maps(self, variables, images, label):
        x, known = self._objective.inputs({"image": images})
        known = {"train": False, **known}

        def logits(x):
            y: Any = self._model.apply(variables, x, **known)
            return y

        first = logits(x)
        k = jnp.where(label < 0, jnp.argmax(first[0]), label)
        noise = jax.random.normal(jax.random.key(SEED), (self._samples, *x.shape[1:]))
        smooth = analysis.smooth_grad(
            lambda x: logits(x[None])[0, k], x[0], noise, self._spread
        )
        std = self._spread * (jnp.max(x) - jnp.min(x))

        def inside(x):
            call = (self._model, variables, self.layer, x, k[None])
            found = analysis.activations_and_gradients(*call, **known)
            return tuple(_as_map(v, self._grid) for v in found)

        a, g = inside(x)
        many = jax.lax.map(lambda n: inside(x + std * n[None])[1], noise)
        maps = (
            analysis.grad_cam(a, g),
            analysis.grad_cam_plus_plus(a, g),
            analysis.smooth_grad_cam_plus_plus(a, many),
        )
        pictures = [analysis.saliency_picture(smooth.mean)]
        pictures += [analysis.normalized_map(one)[0] for one in maps]
        named = dict(zip(TITLES[1:], pictures, strict=True))
        return k, jax.nn.softmax(first[0])[k], named


def _grid_of(shape: tuple[int, ...], image: tuple[int, ...]) -> tuple[int, int] | None:
    """(H, W) of a map [1, H, W, C], or of tokens of the shape of the image; or None."""
    if len(shape) == 4 and min(shape[1:3]) > 1:
        return shape[1], shape[2]
    if len(shape) != 3:
        return None
    for count in (shape[1], shape[1] - 1, shape[1] - 2):  # behind class tokens
        height = round((count * image[0] / image[1]) ** 0.5)
        if height > 1 and count % height == 0 and count // height > 1:
            width = count // height
            if height * image[1] == width * image[0]:
                return height, width
    return None


def _as_map(tokens: jax.Array, grid: tuple[int, int]) -> jax.Array:
    """[B, H, W, C] of a map or of tokens, class tokens first."""
    if tokens.ndim == 4:
        return tokens
    count = grid[0] * grid[1]
    return tokens[:, -count:].reshape(len(tokens), *grid, tokens.shape[-1])


def default_layer(places: Sequence[str] | dict[str, Any]) -> str:
    """The norm before the last mixer, or the last block on top of the model.

    What comes behind the last mixer of a class token gets no gradient at the others.

    Raises:
      UserError: neither is there.
    """
    paths = list(places)
    for ends in (lambda p: p.endswith("/norm1"), lambda p: p.startswith("blocks")):
        found = [p for p in paths if ends(p)]
        if found:
            return found[-1]
    raise UserError(f"no block with a map: name one by --layer, of {', '.join(paths)}")


def draw(saliency: Saliency, title: str, path: Path) -> None:
    """The image and its maps over it, side by side, as PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    image = saliency.image
    grey = image.mean(-1) if image.shape[-1] != 3 else image
    shape = image.shape[:2]
    columns = len(TITLES)
    size = {"figsize": (2.4 * columns, 2.9), "layout": "tight"}
    figure, axes = pyplot.subplots(1, columns, **size)
    extent = (0, shape[1], shape[0], 0)
    for axis, name in zip(axes, TITLES, strict=True):
        fill = {"cmap": "gray"} if grey.ndim == 2 else {}
        axis.imshow(grey, extent=extent, **fill)
        if name in saliency.maps:
            over = {"cmap": "inferno", "alpha": 0.65, "vmin": 0, "vmax": 1}
            smooth = "nearest" if name == "SmoothGrad" else "bilinear"
            axis.imshow(
                saliency.maps[name], extent=extent, interpolation=smooth, **over
            )
        axis.set_title(name, fontsize=10)
        axis.axis("off")
    percent = f"{100 * saliency.probability:.1f} %"
    figure.suptitle(f"{title}: {saliency.name}, {percent}", fontsize=11)
    with whole_file(path) as file:
        figure.savefig(file, format="png", dpi=110)
    pyplot.close(figure)
