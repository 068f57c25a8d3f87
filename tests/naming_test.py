"""Who knows a key of a registry opens the right file."""

import inspect
from pathlib import Path

import pytest

from normjax.activations import ACTIVATIONS
from normjax.norms import NORMS
from normjax.reparam import REPARAMS

FAMILIES = {
    "standard": {
        "gelu",
        "identity",
        "relu",
        "leaky_relu",
        "relu6",
        "sigmoid",
        "silu",
        "tanh",
    },
    "expanded": {"xatlu", "xgelu", "xsilu"},
}
"""Files of several, by other names than those that all their keys share."""


@pytest.mark.parametrize(
    "entry", [*NORMS, *ACTIVATIONS, *REPARAMS], ids=lambda entry: entry.name
)
def test_a_file_has_the_name_of_its_key(entry):
    file = Path(inspect.getfile(entry.make)).stem
    shared = entry.name.startswith(f"{file}_") or entry.name.endswith(f"_{file}")
    assert entry.name == file or shared or entry.name in FAMILIES.get(file, ())
