"""Terms of the loss that `config.penalties` adds, of layers by their paths.

No layer knows: what linear layers and convolutions read, and their kernels, is looked
at while the model is applied.
"""

import abc
import contextlib
import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import meta

from normjax.core.arguments import check_arguments, required_names
from normjax.core.collections import DIAGNOSTICS, LOSSES, PARAMS
from normjax.core.errors import UserError, one_line
from normjax.core.registry import Registry
from normjax.optim import prosparse_factor, sparsity_penalty
from normjax.reparam import orthogonal_conv_loss

PENALTIES = Registry("penalty")
"""The penalties by key: a row has `name` and `make`, the class.

Example:
  >>> from normjax.train.penalties import PENALTIES
  >>> [entry.name for entry in PENALTIES]
  ['prosparse', 'orthogonal_convolution']
"""

WHERE = "config.penalties"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Penalty(abc.ABC):
    """weight(t) times a sum over layers.

    Attributes:
      pattern: regular expression, searched in the path of a layer with a kernel
        ("blocks_0/mlp/fc2").
    """

    pattern: str

    def finds(self, path: Sequence[str]) -> bool:
        return re.search(self.pattern, "/".join(path)) is not None

    @abc.abstractmethod
    def weight(self, made: jax.Array) -> jax.Array | float:
        """Of the update after `made` ones."""

    @abc.abstractmethod
    def of(self, layer: nn.Module, kernel: jax.Array, x: jax.Array) -> jax.Array:
        """The term of one layer that reads x, a scalar."""

    def shown(self, x: jax.Array) -> Mapping[str, jax.Array]:
        """Scalars for the log, which are averaged over layers."""
        del x
        return {}


@PENALTIES.register("prosparse")
@dataclasses.dataclass(frozen=True, kw_only=True)
class ProSparse(Penalty):
    """The L1 norm of what layers read, in stages (Song et al., 2025).

    Of the last layers of gated MLPs ("mlp/fc2") with ReLU: mean over tokens of the sum
    over hidden units of |act(x W_s) * (x W_1)|. Logs "sparsity", the share of zeros.

    Attributes:
      start: updates before the first stage, without a penalty.
      ends: the last update of each stage.
      peaks: the weight there; see `optim.prosparse_factor`.
    """

    start: int
    ends: tuple[int, ...]
    peaks: tuple[float, ...]

    def __post_init__(self):
        self.weight(jnp.zeros([]))  # refuses other numbers of both

    def weight(self, made):
        stages = {"start": self.start, "ends": self.ends, "peaks": self.peaks}
        return prosparse_factor(made + 1, **stages)

    def of(self, layer, kernel, x):
        return sparsity_penalty(x.astype(jnp.float32))

    def shown(self, x):
        return {"sparsity": jnp.mean((x == 0).astype(jnp.float32))}


@PENALTIES.register("orthogonal_convolution")
@dataclasses.dataclass(frozen=True, kw_only=True)
class OrthogonalConvolution(Penalty):
    """L_orth of convolutions, of their own strides (Achour et al., 2022).

    Attributes:
      factor: constant; 0.1 in OCNN (Wang et al., 2020), which takes another loss.
    """

    factor: float = 0.1

    def weight(self, made):
        return self.factor

    def of(self, layer, kernel, x):
        strides = getattr(layer, "strides", 1) or 1
        strides = {strides} if isinstance(strides, int) else set(strides)
        groups = getattr(layer, "feature_group_count", 1)
        if kernel.ndim != 4 or len(strides) != 1 or groups != 1:
            raise UserError(
                f"{WHERE}: orthogonal_convolution takes square convolutions without "
                f"groups, not {'/'.join(layer.path)}"
            )
        return orthogonal_conv_loss(kernel, strides.pop())


def penalties_of(specs: Any) -> tuple[Penalty, ...]:
    """The penalties of a config.

    Args:
      specs: dicts with `name`, `pattern` and arguments.

    Raises:
      UserError: anything that is wrong with one of them.
    """
    specs = (specs,) if isinstance(specs, Mapping) else specs
    return tuple(_penalty(f"{WHERE}[{i}]", spec) for i, spec in enumerate(specs))


def _penalty(where: str, spec: Any) -> Penalty:
    if not isinstance(spec, Mapping) or not {"name", "pattern"} <= set(spec):
        raise UserError(f"{where} needs a name and a pattern, got {one_line(spec)}")
    make = PENALTIES[spec["name"]].make
    given = {name: value for name, value in spec.items() if name != "name"}
    check_arguments(where, make, given)
    lacking = [name for name in required_names(make) if name not in given]
    if lacking:
        raise UserError(f"{where}: {spec['name']} needs {' and '.join(lacking)}")
    try:
        re.compile(spec["pattern"])
    except re.error as error:
        raise UserError(f"{where}: pattern {spec['pattern']!r}: {error}") from None
    return make(**given)


@contextlib.contextmanager
def watched(penalties: Sequence[Penalty]) -> Iterator[None]:
    """What is applied meanwhile sows the terms of its layers into "losses"."""

    def call(call, args, kwargs, context):
        layer = context.module
        if context.method_name == "__call__" and layer.has_variable(PARAMS, "kernel"):
            kernel = meta.unbox(layer.get_variable(PARAMS, "kernel"))
            for name, penalty in _named(penalties):
                if penalty.finds(layer.path):
                    layer.sow(LOSSES, name, penalty.of(layer, kernel, args[0]))
                    for shown, value in penalty.shown(args[0]).items():
                        layer.sow(DIAGNOSTICS, shown, value)
        return call(*args, **kwargs)

    with nn.intercept_methods(call) if penalties else contextlib.nullcontext():
        yield


def weighed(
    penalties: Sequence[Penalty], made: jax.Array, losses: Any
) -> tuple[jax.Array, Any]:
    """The sum of all terms with their weights, and the other losses.

    Args:
      made: updates so far.  losses: the collection that was sown.

    Raises:
      UserError: a penalty that finds no layer.
    """
    leaves = jax.tree_util.tree_leaves_with_path(losses)
    total = jnp.zeros([])
    named = dict(_named(penalties))
    for name, penalty in named.items():
        own = [jnp.sum(x) for path, x in leaves if path[-2].key == name]
        if not own:
            raise UserError(
                f"{WHERE}: pattern {penalty.pattern!r} finds no layer with a kernel"
            )
        total += penalty.weight(made) * sum(own)
    return total, [x for path, x in leaves if path[-2].key not in named]


def _named(penalties: Sequence[Penalty]) -> list[tuple[str, Penalty]]:
    return [(f"penalty_{i}", penalty) for i, penalty in enumerate(penalties)]
