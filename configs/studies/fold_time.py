"""What folding saves: PRepBN against LayerNorm, by time on a CPU and cycles of a TPU.

    python -m normjax.study fold_time --workdir=runs/fold_time

A vision transformer of 2 layers of width 192 at 224 pixels, nothing trained. Time of
the float32 model in turns with that of LayerNorm; cycles of a v5e in bfloat16 by the
schedule of the compiler, which libtpu brings.
"""

from typing import Any

from normjax.study.cells import Measure
from normjax.study.claims import Claim

ROWS = {"prepbn": False, "prepbn, folded": True}
COLUMNS = {"CPU": "fold_time", "v5e": "fold_cycles"}


def get_study() -> dict[str, Any]:
    """The fields of `normjax.study.study.Study`."""
    claim = Claim(
        "Folded, a model with PRepBN is faster than one with LayerNorm (CPU).",
        "SLAB (Guo et al., 2024)",
        "SLAB-Swin 16.2 ms, 2.4 ms less than FLatten-Swin (GPU)",
        1.0,
        ("prepbn, folded", "CPU"),
    )
    by_cycles = claim._replace(
        statement="The same, by the cycles of a TPU v5e.",
        less=("prepbn, folded", "v5e"),
    )
    return {
        "title": "inference: time or cycles / those with LayerNorm",
        "rows": "norm",
        "metric": "ratio",
        "percent": False,
        "runs": {
            (row, column): Measure(name, {"norm": "prepbn", "folded": folded})
            for row, folded in ROWS.items()
            for column, name in COLUMNS.items()
        },
        "claims": (claim, by_cycles),
    }
