"""Kinds of decoders at equal parameters and at equal operations.

    python -m normjax.study text_decoders --workdir=runs/text_decoders

Byte-level decoders of width 64 on Python's standard library, 400 steps of 16 rows of 64
bytes by one recipe, that of the plain one: nothing is tuned for a kind. Where a kind
costs more or less than the plain decoder, depth and the width inside the MLP make up
for it, to 1 % of its 231,104 parameters or its 15,798,272 multiply-adds a row, as a run
prints them. What a recurrence does element by element is not among these.

The norm-free decoder is equal in both. Liger, here trained from scratch, has the plain
one's parameters by itself. The WideNet shares one layer of attention, 4 experts and
norms over its depth; as no token may see a later one, no expert is ever full, and all
compute every token.
"""

from typing import Any

from configs.studies.common import decoder

SEEDS = 0, 1
PARAMETERS, OPERATIONS = "equal parameters", "equal operations"
STEPS = 400

_LOOPS = {"name": "recursive_decoder", "loops": 2, "rank": 4}
_STREAMS = {
    "name": "parallel_decoder",
    "streams": 2,
    "mixer": {"name": "prefix_attention", "prefix_length": 8},
}
_EXPERTS = {"name": "mixture_of_experts", "top_k": 2, "capacity_factor": None}
_WIDENET = {"name": "recursive_decoder", "loops": 4, "mlp": _EXPERTS}
_LIGER = {"mixer": {"name": "liger", "window": 16}}
_PARARNN = {"mixer": {"name": "pararnn"}}
_NORM_FREE = {"mlp": "mlp", "activation": "prelu", "placement": "final"}

SIZES: dict[tuple[str, str], dict[str, Any]] = {
    ("plain", PARAMETERS): {"mlp_hidden": 172},
    ("norm-free", PARAMETERS): {**_NORM_FREE, "mlp_hidden": 257},
    ("Liger", PARAMETERS): {**_LIGER, "mlp_hidden": 172},
    ("Liger", OPERATIONS): {**_LIGER, "mlp_hidden": 151},
    ("ParaRNN", PARAMETERS): {**_PARARNN, "mlp_hidden": 157},
    ("ParaRNN", OPERATIONS): {**_PARARNN, "mlp_hidden": 204},
    ("recursive", PARAMETERS): {**_LOOPS, "depth": 8, "mlp_hidden": 127},
    ("recursive", OPERATIONS): {**_LOOPS, "mlp_hidden": 148},
    ("ParScale", PARAMETERS): {**_STREAMS, "mlp_hidden": 177},
    ("ParScale", OPERATIONS): {**_STREAMS, "depth": 2, "mlp_hidden": 177},
    ("WideNet", PARAMETERS): {**_WIDENET, "mlp_hidden": 351},
    ("WideNet", OPERATIONS): {**_WIDENET, "mlp_hidden": 64},
}
"""Fields of `config.model` that a cell has beside 4 layers of width 64."""


def get_study() -> dict[str, Any]:
    """The fields of `normjax.study.study.Study`."""
    return {
        "title": "pytext: bits per byte of held-out files, mean of 2 seeds",
        "rows": "decoder",
        "seeds": SEEDS,
        "metric": "bits_per_byte",
        "percent": False,
        "runs": {cell: _config(fields) for cell, fields in SIZES.items()},
    }


def _config(fields: dict[str, Any]) -> Any:
    config = decoder(steps=STEPS, **{"depth": 4, **fields})
    config.auxiliary_loss_weight = 0.01  # of the balance of experts
    return config
