"""One row per configuration of a norm; the contracts in contracts_test.py run on all.

A new norm adds one row (or more) and inherits every contract.
"""

from tests.norms import (
    example_rows,
    grid_rows,
    oracles,
    part_rows,
    power_rows,
    unified_rows,
)
from tests.norms.row import Row

ROWS = [
    Row("layer_norm", oracles.layer_norm),
    Row("layer_norm", oracles.layer_norm, {"use_bias": False, "epsilon": 1e-3}),
    Row("rms_norm", oracles.rms_norm, large_mean=False),
    Row("rms_norm", oracles.rms_norm, {"use_scale": False}, large_mean=False),
    Row("none", oracles.none, large_mean=False),
    Row("batch_norm", oracles.batch_norm),
    Row("batch_norm", oracles.batch_norm, {"unbiased_running_var": True}),
    Row("batch_norm", oracles.batch_norm, {"momentum": 0.5}, shape=(4, 3, 5, 6)),
    Row("repbn", oracles.repbn, large_mean=False),
    Row("repbn", oracles.repbn, {"skip_masked": True}, large_mean=False),
    *(
        Row(
            "prepbn",
            oracles.prepbn,
            {"warmup_steps": 2, "decay_steps": 4, **extra},
            stats={"step": step},
            large_mean=False,
        )
        for step, extra in (
            (3, {"start": 0.8}),
            (0, {}),
            (4, {"layer_norm": "rms_norm"}),
            (9, {}),
        )
    ),
    *example_rows.ROWS,
    *grid_rows.ROWS,
    *part_rows.ROWS,
    *power_rows.ROWS,
    *unified_rows.ROWS,
]
