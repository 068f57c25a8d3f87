"""What becomes of every array: taken, fitted, new or left out, and never unsaid."""

import re

import numpy as np
import pytest

from normjax.core.errors import UserError
from normjax.transfer.match import match
from normjax.transfer.source import Source
from normjax.transfer.wanted import Wanted

RNG = np.random.default_rng(0)
PLAIN = {
    "params/stem/proj/kernel": (4, 4, 3, 8),
    "params/pos_embed": (1, 17, 8),
    "params/cls_token": (1, 1, 8),
    "params/blocks_0/norm1/scale": (8,),
    "params/blocks_0/norm1/bias": (8,),
    "params/head/kernel": (8, 10),
    "params/head/bias": (10,),
}
PREPBN = {
    "params/n/layer_norm/scale": (8,),
    "params/n/batch_norm/scale": (8,),
    "params/n/batch_norm/alpha": (1,),
    "batch_stats/n/batch_norm/mean": (8,),
    "batch_stats/n/step": (),
}
REPBN = {
    "params/n/scale": (8,),
    "params/n/alpha": (1,),
    "batch_stats/n/mean": (8,),
}
LAYER_NORM = {"params/n/scale": (8,)}


def source(shapes, **known):
    arrays = {p: RNG.normal(size=s).astype(np.float32) for p, s in shapes.items()}
    for path in arrays:
        if path.endswith("/step"):
            arrays[path] = np.asarray(known.pop("step", 3), np.int32)
    return Source("there", arrays, **known)


def test_all_that_is_the_same_is_taken():
    there = source(PLAIN)
    found = match(there, Wanted(PLAIN))
    assert set(found.how.values()) == {"same"} and not found.new and not found.left
    for path, array in there.arrays.items():
        assert found.arrays[path] is array


def test_another_size_other_channels_other_classes():
    here = {
        **PLAIN,
        "params/stem/proj/kernel": (4, 4, 1, 8),
        "params/pos_embed": (1, 5, 8),
        "params/head/kernel": (8, 5),
        "params/head/bias": (5,),
    }
    there = source(PLAIN)
    found = match(there, Wanted(here))
    assert found.how["params/pos_embed"] == "1 + 4x4 positions to 1 + 2x2"
    assert found.how["params/stem/proj/kernel"] == "3 channels to 1"
    assert found.new == ["params/head/kernel", "params/head/bias"]
    assert found.how["params/head/bias"] == "10 classes there, 5 here"
    assert found.left["params/head/bias"] == "10 classes there, 5 here"
    for path in found.arrays:
        assert found.arrays[path].shape == here[path]
    table, old = found.arrays["params/pos_embed"], there.arrays["params/pos_embed"]
    np.testing.assert_array_equal(table[:, 0], old[:, 0])


def test_tokens_that_the_model_lacks_are_left_out():
    here = {k: v for k, v in PLAIN.items() if "cls" not in k}
    here["params/pos_embed"] = (1, 4, 4, 8)
    there = source(
        {**PLAIN, "params/dist_token": (1, 1, 8), "params/pos_embed": (1, 18, 8)}
    )
    found = match(there, Wanted(here))
    assert "averages" in found.left["params/cls_token"]
    assert "distillation" in found.left["params/dist_token"]
    old = there.arrays["params/pos_embed"][0, 2:].reshape(1, 4, 4, 8)
    np.testing.assert_array_equal(found.arrays["params/pos_embed"], old)


def test_images_that_are_not_square():
    there = source({"params/pos_embed": (1, 9, 8)}, aspect=0.5)
    found = match(there, Wanted({"params/pos_embed": (1, 3, 3, 8)}))
    assert found.how["params/pos_embed"] == "1 + 2x4 positions to 3x3"


NAMES = tuple("abcdefghij")


@pytest.mark.parametrize(
    ("there", "here", "head", "why"),
    [
        (NAMES, NAMES, "auto", "same"),
        ((), NAMES, "auto", "same"),
        (NAMES, NAMES[::-1], "auto", "classes of other names"),
        (NAMES, NAMES[::-1], "keep", "classes by their names"),
        (NAMES, NAMES[:4], "auto", "10 classes there, 4 here"),
        (NAMES, NAMES[2:4], "keep", "classes by their names"),
        (NAMES, NAMES, "new", "a new head"),
    ],
)
def test_heads(there, here, head, why):
    old = source(PLAIN, class_names=there)
    shapes = {
        **PLAIN,
        "params/head/kernel": (8, len(here)),
        "params/head/bias": (len(here),),
    }
    found = match(old, Wanted(shapes, class_names=here, head=head))
    assert found.how["params/head/bias"] == why
    if why.startswith("classes by"):
        columns = [there.index(name) for name in here]
        np.testing.assert_array_equal(
            found.arrays["params/head/kernel"],
            old.arrays["params/head/kernel"][:, columns],
        )


@pytest.mark.parametrize(
    ("names", "line"),
    [((), "10 classes without names, the data 2"), (NAMES, "no class 'x'")],
)
def test_heads_that_cannot_be_kept(names, line):
    here = {**PLAIN, "params/head/kernel": (8, 2), "params/head/bias": (2,)}
    with pytest.raises(UserError, match=line):
        match(
            source(PLAIN, class_names=names),
            Wanted(here, class_names=("x", "a"), head="keep"),
        )


@pytest.mark.parametrize(
    ("there", "here", "pairs", "new", "left"),
    [
        (LAYER_NORM, PREPBN, {"layer_norm/scale": "scale"}, 3, 0),
        (REPBN, PREPBN, {"batch_norm/scale": "scale", "batch_norm/mean": "mean"}, 1, 0),
        (PREPBN, LAYER_NORM, {"scale": "layer_norm/scale"}, 0, 4),
        (PREPBN, REPBN, {"scale": "batch_norm/scale", "mean": "batch_norm/mean"}, 0, 2),
    ],
)
def test_norms_that_replace_others(there, here, pairs, new, left):
    old = source(there)
    found = match(old, Wanted(here, end=10))
    for ours, theirs in pairs.items():
        path = next(p for p in here if p.endswith(f"n/{ours}"))
        other = next(p for p in there if p.endswith(f"n/{theirs}"))
        np.testing.assert_array_equal(found.arrays[path], old.arrays[other])
    assert (len(found.new), len(found.left)) == (new, left)


@pytest.mark.parametrize(
    ("schedule", "step", "end", "made"),
    [
        ("restart", 900, 1000, 0),
        ("continue", 0, 1000, 0),
        ("continue", 500, 1000, 40),
        ("continue", 999, 1000, 79),  # the last of it is still to come
        ("continue", 1000, 1000, 80),
        ("continue", 5000, 1000, 80),
        ("ended", 10, 1000, 80),
    ],
)
def test_schedules(schedule, step, end, made):
    old = source(PREPBN, step=step, end=end)
    found = match(old, Wanted(PREPBN, end=80, schedule=schedule))
    counter = found.arrays["batch_stats/n/step"]
    assert counter == made and counter.dtype == np.int32


@pytest.mark.parametrize(
    ("theirs", "ours", "asked", "line"),
    [
        ({"params/blocks_1/fc1/kernel": (8, 8)}, {}, {}, r"no place for blocks_1/fc1"),
        ({}, {"params/blocks_0/nrm1/scale": (8,)}, {}, r"lacks .*near: blocks_0/norm1"),
        (
            {"params/x/kernel": (8, 4)},
            {"params/x/kernel": (8, 5)},
            {},
            r"\(8, 4\).*8, 5",
        ),
        ({"params/pos_embed": (1, 16, 8)}, {}, {}, None),
        ({"params/pos_embed": (1, 22, 8)}, {}, {}, r"22 positions are no grid"),
        ({}, {}, {"exclude": "blokcs"}, r"finds no array"),
        ({}, {}, {"include": "("}, r"config.init.include '\('"),
    ],
)
def test_what_nothing_accounts_for_is_refused(theirs, ours, asked, line):
    old, wanted = source({**PLAIN, **theirs}), Wanted({**PLAIN, **ours}, **asked)
    if line is None:
        assert match(old, wanted).how["params/pos_embed"].endswith("new tokens 0")
        return
    with pytest.raises(UserError, match=line) as error:
        match(old, wanted)
    assert "\n" not in str(error.value)


def test_the_pattern_of_an_error_leaves_it_alone():
    there, here = source({**PLAIN, "params/a/b": (2,)}), {**PLAIN, "params/c/d": (3,)}
    with pytest.raises(UserError) as error:
        match(there, Wanted(here))
    first = re.findall(r"exclude='(.+)'", str(error.value))[0]
    with pytest.raises(UserError) as error:
        match(there, Wanted(here, exclude=first))
    second = re.findall(r"exclude='(.+)'", str(error.value))[0]
    found = match(there, Wanted(here, exclude=f"{first}|{second}"))
    assert found.new == ["params/c/d"] and found.left["params/a/b"] == "excluded"


def test_patterns_choose():
    found = match(source(PLAIN), Wanted(PLAIN, include="^stem|norm"))
    assert set(found.arrays) == {p for p in PLAIN if "stem" in p or "norm" in p}
    assert found.how["params/pos_embed"] == "not included"
