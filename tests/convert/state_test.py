"""State dicts against the published tables, there and back, and what is refused."""

import functools
import re
from collections import defaultdict

import jax
import numpy as np
import pytest

from normjax import convert, models
from normjax.convert.extras import extras_of
from normjax.convert.names import abstract_variables, entries_of, layouts_of
from normjax.core.errors import UserError
from normjax.families import family_of
from normjax.models import PRESETS
from tests.convert.published import KEYS, PARAMETERS, PLAIN_REPBN, TABLES

REPBN = ("alpha", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var")
LN = ("weight", "bias")
COUNTERS = ("warm", "iter", "total_step")
GROUPS = {
    "LN": LN,
    "REPBN": (*REPBN, "bn.num_batches_tracked"),
    "PREP": (
        *COUNTERS,
        *(f"norm1.{k}" for k in LN),
        *(f"norm2.{k}" for k in (*REPBN, "bn.num_batches_tracked")),
    ),
}
GROUPS["LLAMA"] = ("num_step", *(k for k in GROUPS["PREP"] if k != "norm1.bias"))
SCALARS = ("num_step", "num_batches_tracked", *COUNTERS)
DECODER = {"dim": 12, "depth": 2, "num_heads": 3, "mlp_hidden": 20, "vocab_size": 7}
TEXT = {"lm_tiny": DECODER, "slab_llama_350m": DECODER}
"""Presets that read tokens -> a small size."""

NUMBER = re.compile(
    r"(?<=\.)\d+(?=\.)|(?<=embed)\d|(?<=^block)\d|(?<=^stage)\d|(?<=^merge)\d"
)


@functools.cache
def shapes_of(preset, layout=None, norm=None):
    """Names and shapes of the preset's state dict at 224 pixels."""
    given = {"norm": norm} if norm else {}
    given |= {} if preset in TEXT else {"num_classes": 1000}
    model = models.build(preset, **given)
    variables = abstract_variables(model, (224, 224, 3))
    layout = layout or layouts_of(model, variables)[0]
    entries = entries_of(model, variables, layout)
    shapes = {n: s for e in entries for n, s in zip(e.names, e.shapes, strict=True)}
    extras = extras_of(model, shapes, layout, (224, 224))
    assert not shapes.keys() & extras.keys()
    return shapes | {name: extra.value.shape for name, extra in extras.items()}


def in_groups(shapes):
    """pattern -> [number, shapes]."""
    groups = defaultdict(lambda: [0, set()])
    for name, shape in shapes.items():
        group = groups[NUMBER.sub("#", name)]
        group[0] += 1
        group[1].add(shape)
    return dict(groups)


def expanded(table):
    """The same of a published table."""
    groups = {}
    for line in table.split("\n"):
        pattern, count, shapes = line.split(" | ")
        pattern, kind = NUMBER.sub("#", pattern), shapes.partition("(")[0]
        sizes = [eval(s.removeprefix(kind)) for s in shapes.split("; ")]
        sizes = {size if isinstance(size, tuple) else (size,) for size in sizes}
        for suffix in GROUPS.get(kind, ("",)):
            one = {(1,)} if suffix.endswith("alpha") else sizes
            scalar = suffix.rpartition(".")[2] in SCALARS
            name = f"{pattern}.{suffix}" if suffix else pattern
            group = groups.setdefault(name, [0, set()])
            group[0] += int(count)
            group[1] |= {()} if scalar else one
    return groups


LIKE = {
    "deit_tiny": ("deit_tiny_prepbn", "PREP", "LN"),
    "swin_tiny": ("swin_tiny_prepbn", "REPBN", "LN"),
    "flatten_cswin_tiny": ("slab_cswin_tiny", "PREP", "LN"),
}
"""Preset -> (preset with a table, its norm, the norm in its place)."""


def row(preset, *values):
    """A case; sizes other than tiny and cores other than ours repeat the same rows and
    are slow."""
    fast = preset in TEXT or ("tiny" in preset and "flatten" not in preset)
    return pytest.param(preset, *values, marks=() if fast else pytest.mark.slow)


@pytest.mark.parametrize("preset", [row(preset) for preset in (*TABLES, *LIKE)])
def test_keys_and_shapes(preset):
    other, old, new = LIKE.get(preset, (preset, "", ""))
    table = TABLES[other].strip().replace(old, new)
    norm = "repbn" if "REPBN" in table else None
    assert in_groups(shapes_of(preset, norm=norm)) == expanded(table)


@pytest.mark.parametrize("preset", [row(preset) for preset in KEYS])
def test_number_of_keys(preset):
    assert len(shapes_of(preset, norm=None)) == KEYS[preset]


@pytest.mark.parametrize(
    ("preset", "norm", "expected"),
    [row(preset, None, n) for preset, n in PARAMETERS.items()]
    + [row(preset, "repbn", n) for preset, n in PLAIN_REPBN.items()],
)
def test_number_of_parameters(preset, norm, expected):
    buffers = ("running_mean", "running_var", "inv_freq", "_index", "mask", *SCALARS)
    shapes = shapes_of(preset, norm=norm)
    sizes = [np.prod(s) for name, s in shapes.items() if not name.endswith(buffers)]
    assert sum(map(int, sizes)) == expected


def test_every_preset_has_the_layout_of_its_family():
    for preset in (name for name in FAMILIES if "tiny" in name or name in TEXT):
        family = family_of(preset)
        pyramid = PRESETS[preset]["name"] == "pyramid"
        short = {"depths": (1, 1, 1, 1)} if pyramid else {"depth": 1}
        sizes = {} if preset in TEXT else {"num_classes": 2}
        model = models.build(preset, **short, **sizes)
        variables = abstract_variables(model, (224, 224, 3))
        expected = ["llama"] if preset in TEXT else list(family.layouts)
        assert layouts_of(model, variables) == expected, preset


def test_layout_of_timm():
    shapes = shapes_of("swin_tiny", "swin_timm")
    assert len(shapes) == 173
    assert shapes["head.fc.weight"] == (1000, 768)
    merges = {name[:8] for name in shapes if "downsample" in name}
    assert merges == {f"layers.{i}" for i in (1, 2, 3)}


SMALL = {"dims": (4, 8, 8, 16), "num_heads": (2, 2, 4, 4), "depths": (1, 2, 3, 1)}
FAMILIES = {
    "deit_tiny": {},
    "deit_tiny_prepbn": {},
    "slab_deit_tiny": {},
    "swin_tiny": SMALL,
    "slab_swin_tiny": SMALL,
    "flatten_swin_tiny": SMALL,
    "pvt_tiny": SMALL,
    "pvt_tiny_prepbn": SMALL,
    "slab_pvt_tiny": SMALL,
    "flatten_pvt_tiny": SMALL,
    "cswin_tiny": SMALL,
    "slab_cswin_tiny": SMALL,
    "flatten_cswin_tiny": SMALL,
    **TEXT,
}
DEIT = {"depth": 2, "dim": 12, "num_heads": 3}


def small(preset, **arguments):
    sizes = FAMILIES[preset] or DEIT
    sizes = sizes if preset in TEXT else {**sizes, "num_classes": 5}
    return models.build(preset, **{**sizes, **arguments})


def random_variables(model, seed=0):
    """Random values for every array; counters of PRepBN in the middle of the decay."""
    rng = np.random.default_rng(seed)

    def value(leaf):
        if leaf.dtype == np.int32:
            return np.asarray(1234, np.int32)
        return rng.standard_normal(leaf.shape).astype(leaf.dtype)

    return jax.tree.map(value, abstract_variables(model, (224, 224, 3)))


def assert_same(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("preset", "layout", "norm"),
    [row(preset, None, None) for preset in FAMILIES]
    + [("swin_tiny", "swin_timm", None), ("slab_swin_tiny", None, "repbn")],
)
def test_there_and_back(preset, layout, norm):
    model = small(preset, **({"norm": norm} if norm else {}))
    variables = random_variables(model)
    state = convert.to_torch(model, variables, (224, 224), layout)
    converted = convert.from_torch(model, state)
    assert_same(converted.variables, variables)
    assert converted.used + len(converted.dropped) == len(state)
    assert not converted.filled
    back = convert.to_torch(model, converted.variables, (224, 224), converted.layout)
    assert_same(back, state)


def test_the_schedule_goes_on():
    """(warm, iter, total_step) are what is left of warmup and decay."""
    model = small("deit_tiny_prepbn")
    state = convert.to_torch(model, random_variables(model))
    assert [int(state[f"norm.{c}"]) for c in COUNTERS] == [0, 300_000 - 1234, 300_000]
    for name in state:
        if name.endswith(".warm"):
            state[name] = np.asarray(70)
        if name.endswith(".iter"):
            state[name] = np.asarray(300_000)
    norm = PRESETS["deit_tiny_prepbn"]["norm"]
    arguments = convert.arguments_of(state, norm)
    assert arguments["norm"] == {
        **norm,
        "warmup_steps": 70,
        "decay_steps": 300_000,
        "batch_norm": {"name": "repbn", "unbiased_running_var": True},
    }
    assert arguments["num_classes"] == 5
    model = small("deit_tiny_prepbn", norm=arguments["norm"])
    variables = convert.from_torch(model, state).variables
    assert variables["batch_stats"]["norm"]["step"] == 0


def test_single_values_with_an_axis():
    """As NumPy's ascontiguousarray makes of scalars."""
    model = small("deit_tiny_prepbn")
    state = convert.to_torch(model, random_variables(model))
    axes = {name: np.ascontiguousarray(array) for name, array in state.items()}
    assert axes["norm.warm"].shape == (1,)
    wanted = convert.from_torch(model, state).variables
    assert_same(convert.from_torch(model, axes).variables, wanted)


def test_norms_of_both_layouts_in_one_file():
    model = small("slab_deit_tiny")
    state = convert.to_torch(model, random_variables(model))
    wanted = convert.from_torch(model, state).variables
    for suffix in (*REPBN, "bn.num_batches_tracked"):
        state[f"norm.{suffix}"] = state.pop(f"norm.norm2.{suffix}")
    for suffix in ("norm1.weight", "norm1.bias", *COUNTERS):
        del state[f"norm.{suffix}"]
    converted = convert.from_torch(model, state)
    assert len(converted.filled) == 5
    actual = converted.variables
    ours, theirs = (v["params"]["norm"]["batch_norm"] for v in (actual, wanted))
    assert_same(ours, theirs)
    assert actual["batch_stats"]["norm"]["step"] == 60_000
    assert convert.arguments_of(state, {"name": "prepbn"})["norm"]["name"] == "prepbn"
    plain = {k: v for k, v in state.items() if k.startswith(("head", "norm"))}
    assert convert.arguments_of(plain, {"name": "prepbn"})["norm"]["name"] == "repbn"


def published_mask(grid, window, shift):
    """The mask as the published code builds it, region by region."""
    labels, bounds = np.zeros((grid, grid)), (0, grid - window, grid - shift, grid)
    for i in range(3):
        for j in range(3):
            area = slice(*bounds[i : i + 2]), slice(*bounds[j : j + 2])
            labels[area] = 3 * i + j
    n = grid // window
    tiles = [
        labels[r * window :][:window, c * window :][:, :window].reshape(-1)
        for r in range(n)
        for c in range(n)
    ]
    return np.stack([np.where(t[:, None] != t[None], -100, 0) for t in tiles])


def test_index_and_masks():
    model = small("swin_tiny")
    state = convert.to_torch(model, random_variables(model))
    masks = {name for name in state if name.endswith("attn_mask")}
    assert masks == {f"layers.{s}.blocks.1.attn_mask" for s in (1, 2)}
    for stage, grid in ((1, 28), (2, 14)):
        mask = state[f"layers.{stage}.blocks.1.attn_mask"]
        np.testing.assert_array_equal(mask, published_mask(grid, 7, 3))
    index = state["layers.0.blocks.0.attn.relative_position_index"]
    for i, j in ((0, 0), (0, 48), (48, 0), (10, 31)):
        dy, dx = i // 7 - j // 7, i % 7 - j % 7
        assert index[i, j] == (dy + 6) * 13 + dx + 6


def change(name, value):
    return lambda state: state.update({name: value})


@pytest.mark.parametrize(
    ("preset", "edit", "message"),
    [
        ("deit_tiny", lambda s: s.pop("norm.bias"), "the file lacks norm.bias"),
        ("deit_tiny", change("dist", np.zeros(1)), "the file holds unknown dist"),
        (
            "deit_tiny",
            change("pos_embed", np.zeros((1, 26, 12))),
            r"pos_embed has shape \(1, 26, 12\) instead of \(1, 197, 12\)",
        ),
        (
            "swin_tiny",
            change("layers.1.blocks.1.attn_mask", np.zeros((16, 49, 49))),
            "layers.1.blocks.1.attn_mask is not what the model computes",
        ),
    ],
)
def test_what_is_refused(preset, edit, message):
    model = small(preset)
    state = convert.to_torch(model, random_variables(model))
    edit(state)
    with pytest.raises(UserError, match=message) as caught:
        convert.from_torch(model, state)
    assert "\n" not in str(caught.value)


def test_refused_arguments():
    layer_norm = {"head.weight": np.zeros((5, 4)), "norm.weight": np.zeros(4)}
    with pytest.raises(
        UserError, match="without running statistics, those of the model prepbn"
    ):
        convert.arguments_of(layer_norm, {"name": "prepbn"})
    with pytest.raises(UserError, match=r"lacks .* or head\.weight: the size"):
        convert.arguments_of({}, {"name": "layer_norm"})
    with pytest.raises(UserError, match="are prepbn, those of the model rms_norm"):
        state = {"head.weight": np.zeros((5, 4)), "norm.norm2.alpha": np.zeros(1)}
        state["norm.norm1.weight"] = np.zeros(4)
        convert.arguments_of(state, {"name": "rms_norm"})
    with pytest.raises(UserError, match=r"no place for .*/stem/"):
        model = small("slab_deit_tiny", stem="conv")
        entries_of(model, abstract_variables(model, (32, 32, 3)), "deit")
    with pytest.raises(UserError, match="unknown layout 'timm'"):
        convert.to_torch(small("deit_tiny"), {}, layout="timm")
