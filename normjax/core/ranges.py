"""Ranges of numbers, and those of arguments that mean the same in every component."""

import math
import numbers
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple


class Range(NamedTuple):
    """Numbers from `low` to `high`; `above` leaves `low` out, `open` leaves `high`."""

    low: float
    high: float = math.inf
    open: bool = False
    above: bool = False

    def holds(self, value: float) -> bool:
        if not self.low <= value <= self.high:
            return False
        return not (
            (self.open and value == self.high) or (self.above and value == self.low)
        )

    def __str__(self) -> str:
        if self.high == math.inf:
            return f"be {'above' if self.above else 'at least'} {self.low}"
        left, right = "(" if self.above else "[", ")" if self.open else "]"
        return f"lie in {left}{self.low}, {self.high}{right}"


POSITIVE, COUNT, ABOVE_ZERO = Range(1), Range(0), Range(0, above=True)
BELOW_ONE, FRACTION = Range(0, 1, open=True), Range(0, 1)

_POSITIVE = """
    block_size conv_width depth depths dim dims feature_dim features gate_rank
    group_size group_width hidden iterations kernel_size kernel_sizes last_width
    mlp_hidden neighbours num_classes num_heads num_kv_heads num_layers
    num_tokens patch_size pool_size position_features qkv_features rank split_size
    sr_ratio stem_stride stem_width stride strides token_dim value_features
    vocab_size widths window window_size
"""

OF_ARGUMENTS: Mapping[str, Range] = {
    **dict.fromkeys(_POSITIVE.split(), POSITIVE),
    **dict.fromkeys(("halo_size", "layer", "padding", "shift", "warmup_steps"), COUNT),
    "epsilon": COUNT,
    "momentum": FRACTION,
    "drop_path_rate": BELOW_ONE,
    "dropout_rate": BELOW_ONE,
    "mlp_ratio": ABOVE_ZERO,
    "attention_ratio": ABOVE_ZERO,
    "expand_k": ABOVE_ZERO,
    "expand_v": ABOVE_ZERO,
    "rotary_base": ABOVE_ZERO,
    **dict.fromkeys(("learning_rate", "weight_decay", "clip", "max_norm"), COUNT),
    **dict.fromkeys(("beta1", "beta2", "second_momentum"), BELOW_ONE),
    **dict.fromkeys(("gamma1", "gamma2", "gamma3"), BELOW_ONE),
    "decay_fraction": COUNT,
    "cooldown_fraction": BELOW_ONE,
    **dict.fromkeys(("annealing_fraction", "anneal_to", "tail_fraction"), FRACTION),
    **dict.fromkeys(("anneal_steps", "interval", "reweight", "dampening"), COUNT),
    **dict.fromkeys(("delta", "decay_ratio", "auxiliary_rate", "initial"), COUNT),
    "repeats": POSITIVE,
}
"""By the argument's name, of every component that has it. What one component alone has
stands in `ranges` of its class."""


def ranges_of(make: Any) -> Mapping[str, Range]:
    """The ranges of a component's arguments, those that its bases declare too."""
    declared = [
        vars(b).get("ranges", {}) for b in reversed(getattr(make, "__mro__", ()))
    ]
    return {**OF_ARGUMENTS, **{n: r for ranges in declared for n, r in ranges.items()}}


def numbers_in(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every number in a tree of dicts, lists and tuples, with its path."""
    if isinstance(value, Mapping):
        for name, part in value.items():
            yield from numbers_in(part, f"{path}.{name}" if path else name)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from numbers_in(part, path)
    elif isinstance(value, numbers.Real) and not isinstance(value, bool):
        yield path, value
