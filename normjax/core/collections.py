"""Names of the Flax variable collections, in one place.

`batch_stats` holds running statistics and, under the leaf name `step`, the counters of
schedules that live inside a module (PRepBN). A counter ticks once per optimizer update:
a module adds one on every training call, and a loop that splits an update into
microbatches keeps the counters still until the last one (see `hold_counters`).
"""

from typing import Any

import jax

PARAMS = "params"
BATCH_STATS = "batch_stats"
CACHE = "cache"  # what the tokens before leave behind, see mixers.cache
DIAGNOSTICS = "diagnostics"  # scalars sown for the log, keyed by what they mean
CONSTANTS = "constants"  # tables of a model that are drawn or given, and never trained
INTERMEDIATES = "intermediates"
DETAILS = "details"  # costly scalars, sown where the caller asks for them
SPECTRAL_STATS = "spectral_stats"  # singular vectors of reparameterized weights
LOSSES = "losses"  # terms sown for the loss, by name
DEFERRED = "deferred"  # moments of a part of a batch, sown where the caller asks
TRAINING = "training"  # what only training reads: a branch of params, and a memory
TRANSIENT = (
    DEFERRED,
    DETAILS,
    DIAGNOSTICS,
    INTERMEDIATES,
    LOSSES,
)  # sown anew in every call
OVERWRITE = "_overwrite_with_gradient"  # state whose gradient is its next value

COUNTER = "step"


def hold_counters(previous: Any, current: Any) -> Any:
    """`current` with every schedule counter set back to its value in `previous`.

    Args:
      previous, current: model states (dicts of collections) of one structure.
    """

    def pick(path, old, new):
        return old if getattr(path[-1], "key", None) == COUNTER else new

    return jax.tree_util.tree_map_with_path(pick, previous, current)
