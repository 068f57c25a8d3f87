"""Arguments with which mixers stand in models of maps of 4 x 4 or 2 x 2."""

from normjax.core.arguments import field_names
from normjax.mixers import MIXERS

SMALL = {
    "window_size": 2,
    "split_size": 2,
    "block_size": 2,
    "halo_size": 1,
    "group_sizes": (2, 1),
}
OWN = {
    "aggregated": {"window_size": 3},
    "aggregated_mixture_of_head": {"window_size": 3},
    "inception": {"pool_size": 2},
    "factorization": {"num_heads": 1},
}
"""What single ones need besides, or instead."""


def small(name, **more):
    """The arguments of a mixer among `SMALL` and `more`."""
    fields = field_names(MIXERS[name].make)
    given = {**SMALL, **more}
    return {k: v for k, v in given.items() if k in fields} | OWN.get(name, {})
