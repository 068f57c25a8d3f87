"""The layouts of all families, and what is common to their files."""

from normjax.families import FAMILIES

LAYOUTS = {
    name: rows for family in FAMILIES.values() for name, rows in family.layouts.items()
}
"""Rows of published state dicts by name (see `families.layout`)."""

FAMILY = {name: family for family in FAMILIES.values() for name in family.layouts}
"""The family of each."""

ANCHORS = tuple(dict.fromkeys(name for f in FAMILIES.values() for name in f.anchors))
"""Arrays of which every model has one, whatever stands before its names."""

STEMS = tuple(
    dict.fromkeys(
        name for f in FAMILIES.values() if f.classes for name in f.stems or f.anchors
    )
)
"""First convolutions."""

TIED = {head: table for f in FAMILIES.values() for head, table in f.tied.items()}
"""Arrays that repeat another one where it serves twice."""

SIZES = {
    "vocab_size": (
        tuple(dict.fromkeys(name for f in FAMILIES.values() for name in f.tokens)),
        "embed",
        0,
    ),
    "num_classes": (
        tuple(dict.fromkeys(name for f in FAMILIES.values() for name in f.classes)),
        "head/kernel",
        -1,
    ),
}
"""Arguments that the data fix of a model: the arrays of theirs that have as many rows,
the parameter of ours and its axis."""
