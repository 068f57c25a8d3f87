"""Terms of the loss that `config.penalties` adds, of layers by their paths.

No layer knows: what linear layers and convolutions read, and their kernels, is looked
at while the model is applied, and the masks of activations as well.
"""

import abc
import contextlib
import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import meta

from normjax.activations import straight_mask
from normjax.core.arguments import check_arguments, required_names
from normjax.core.collections import BATCH_STATS, DIAGNOSTICS, LOSSES, PARAMS
from normjax.core.errors import UserError, one_line
from normjax.core.registry import Registry
from normjax.optim import prosparse_factor, sparsity_penalty
from normjax.reparam import orthogonal_conv_loss

PENALTIES = Registry("penalty")
"""The penalties by key: a row has `name` and `make`, the class.

Example:
  >>> from normjax.train.penalties import PENALTIES
  >>> [entry.name for entry in PENALTIES]
  ['prosparse', 'orthogonal_convolution', 'relu_budget']
"""

WHERE = "config.penalties"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Penalty(abc.ABC):
    """weight(t) times what its layers have together, their sum.

    Attributes:
      parameter: of the layers that it is about.
      pattern: regular expression, searched in the path of such a layer
        ("blocks_0/mlp/fc2").
    """

    parameter: ClassVar[str] = "kernel"
    pattern: str

    def finds(self, layer: nn.Module) -> bool:
        found = re.search(self.pattern, "/".join(layer.path))
        return found is not None and layer.has_variable(PARAMS, self.parameter)

    @abc.abstractmethod
    def weight(self, made: jax.Array) -> jax.Array | float:
        """Of the update after `made` ones."""

    @abc.abstractmethod
    def of(self, layer: nn.Module, parameter: jax.Array, x: jax.Array) -> jax.Array:
        """The term of one layer that has read x, a scalar."""

    def together(self, terms: Sequence[jax.Array]) -> jax.Array:
        """Of all layers; those that are scanned are in one array, layers first."""
        return sum((jnp.sum(x) for x in terms), jnp.zeros([]))

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


@PENALTIES.register("relu_budget")
@dataclasses.dataclass(frozen=True, kw_only=True)
class ReLUBudget(Penalty):
    """relu(share of positions that are ReLU - share) of activations (AutoReP, 2023).

    Of "autorep"; all that the pattern finds have one budget.

    Attributes:
      share: that may stay ReLU.  factor: 80 to 240 in the authors' runs.
    """

    parameter = "alpha"
    share: float
    factor: float = 80.0

    def __post_init__(self):
        if not 0 <= self.share <= 1:
            raise UserError(f"{WHERE}: share={self.share} must lie in [0, 1]")

    def weight(self, made):
        return self.factor

    def of(self, layer, parameter, x):
        if not layer.has_variable(BATCH_STATS, "relay_mask"):
            raise UserError(
                f"{WHERE}: relu_budget takes the activation autorep, "
                f"not {'/'.join(layer.path)}"
            )
        mask = straight_mask(parameter, layer.get_variable(BATCH_STATS, "relay_mask"))
        return jnp.stack([jnp.sum(mask), jnp.asarray(mask.size, mask.dtype)])

    def together(self, terms):
        pairs = jnp.concatenate([x.reshape(-1, 2) for x in terms])
        left, size = jnp.sum(pairs, axis=0)
        return jax.nn.relu(left / size - self.share)


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
        layer, made = context.module, call(*args, **kwargs)
        if context.method_name == "__call__":
            for name, penalty in _named(penalties):
                if penalty.finds(layer):
                    parameter = layer.get_variable(PARAMS, penalty.parameter)
                    term = penalty.of(layer, meta.unbox(parameter), args[0])
                    layer.sow(LOSSES, name, term)
                    for shown, value in penalty.shown(args[0]).items():
                        layer.sow(DIAGNOSTICS, shown, value)
        return made

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
        own = [x for path, x in leaves if path[-2].key == name]
        if not own:
            raise UserError(
                f"{WHERE}: pattern {penalty.pattern!r} finds no layer with "
                f"a parameter {penalty.parameter!r}"
            )
        total += penalty.weight(made) * penalty.together(own)
    return total, [x for path, x in leaves if path[-2].key not in named]


def _named(penalties: Sequence[Penalty]) -> list[tuple[str, Penalty]]:
    return [(f"penalty_{i}", penalty) for i, penalty in enumerate(penalties)]
