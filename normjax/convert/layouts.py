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

STEMS = {
    name: f.patches.get(name, (1,))
    for f in FAMILIES.values()
    if f.classes
    for name in f.patches or f.stems or f.anchors
}
"""First layers, and how many positions may stand beside each other in what they read:
one for convolutions, those of a patch for linear layers."""

TIED = tuple(dict.fromkeys(pair for f in FAMILIES.values() for pair in f.tied.items()))
"""Pairs (array, the one that it repeats) where one serves twice."""

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
