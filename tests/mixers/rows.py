"""One row per configuration of a mixer; the contracts in contracts_test.py run on all.

A new mixer adds one row (or more) and inherits every contract.
"""

from normjax.norms import RMSNorm
from tests.mixers import oracles
from tests.mixers.grid import mixing, visual_rows, visual_rows_merged
from tests.mixers.grid import rows as grid_rows
from tests.mixers.row import Row
from tests.mixers.sequence import rows as sequence_rows

GRID = (2, 3, 4, 6)

ROWS = [
    Row("softmax", oracles.softmax, {"num_heads": 2}),
    Row("softmax", oracles.softmax, {"num_heads": 2, "causal": True}, causal=True),
    Row("softmax", oracles.softmax, {"num_heads": 3, "qkv_bias": False}, GRID),
    Row("softmax", oracles.softmax, {"num_heads": 2, "qk_norm": RMSNorm}),
    Row("sla", oracles.sla, {"num_heads": 2, "kernel_size": 3}, GRID),
    Row("sla", oracles.sla, {"num_heads": 3, "qkv_bias": False}, GRID),
    *grid_rows.ROWS,
    *mixing.ROWS,
    *visual_rows.ROWS,
    *visual_rows_merged.ROWS,
    *sequence_rows.ROWS,
]
