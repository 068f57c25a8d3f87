"""Decoding with a cache gives what the whole forward pass gives; sizes of caches."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from normjax import fusion, mixers
from normjax.core.arguments import field_names
from normjax.core.errors import UserError
from normjax.generate import cache_bytes, extend, init_cache
from normjax.mixers import MIXERS
from tests.generate.models import VOCABULARY, decoder, drawn

CAUSAL = [entry.name for entry in MIXERS if "causal" in entry.tags]
TAKES = {name: field_names(MIXERS[name].make) for name in CAUSAL}
TURNING = [name for name in CAUSAL if "rotary_base" in TAKES[name]]
PAIRWISE = [name for name in TURNING if "window" not in TAKES[name]]
WINDOW = {"name": "local_attention", "window": 3}

NORMED = [name for name in CAUSAL if "qk_norm" in TAKES[name]]


def distant(bias):
    return {"mixer": {"name": "softmax", "relative_bias": bias}, "rotary_base": None}


# Pairwise mixers turn queries and keys unless told otherwise.
CASES = [
    *({"mixer": {"name": name, "qk_norm": "rms_norm"}} for name in NORMED),
    *({"mixer": name} for name in CAUSAL if name not in NORMED),
    *map(distant, ("alibi", "kerple_power_both")),
    {"mixer": WINDOW},
    {"max_length": 20, "rotary_base": None},
    {"model": "parallel_decoder", "streams": 2},
]
FURTHER = [
    *({"mixer": name, "rotary_base": None} for name in NORMED),
    *map(distant, ("kerple_log", "kerple_power", "kerple_power_gain")),
    {"mixer": {"name": "mixture_of_head", "shared_heads": 1}},
    {"mixer": {"name": "transnormer", "lrpe": False}},
    {"mixer": {"name": "rg_lru", "conv_width": 1}},
    {"mixer": {"name": "softmax", "value_bias": False}, "placement": "final"},
    {"model": "recursive_decoder", "loops": 2, "rank": 2, "depth": 4},
    *(
        {"mixer": {"name": "liger", "window": 3, "num_kv_heads": 1, **more}}
        for more in ({}, {"recurrence": "hgrn2"}, {"recurrence": "gsa", "num_slots": 3})
    ),
    {"mixer": {"name": "pararnn", "cell": "lstm", "conv_width": 1}},
]

ONE_OF_A_KIND = [
    *(case for case in CASES if "softmax" in str(case) and "qk_norm" in str(case)),
    *(
        case
        for case in CASES
        if case.get("mixer") in ("gated_linear", "rg_lru", WINDOW)
    ),
]
"""Of caches: keys and values, states, inputs of a convolution, a window."""

LENGTH, PADS, CUTS = 13, np.array([0, 3]), (2, 8)
TOKENS = np.random.default_rng(1).integers(0, VOCABULARY, (2, LENGTH))


def padded():
    """The tokens behind other numbers of padding, and the mask."""
    columns = np.arange(LENGTH) - PADS[:, None]
    tokens = np.take_along_axis(TOKENS, columns % LENGTH, 1)
    return jnp.asarray(tokens), jnp.asarray(columns >= 0)


def decoded(model, variables, tokens, mask):
    """Logits [B, L, V] by two calls with several tokens and further ones with one."""
    cache, parts = init_cache(model, variables, *tokens.shape), []
    for start, end in ((0, CUTS[0]), CUTS):
        own = None if mask is None else mask[:, start:end]
        logits, cache = extend(model, variables, cache, tokens[:, start:end], own)
        parts.append(logits)

    def one(cache, token):
        logits, cache = extend(model, variables, cache, token[:, None])
        return cache, logits[:, 0]

    _, rest = jax.lax.scan(one, cache, tokens[:, CUTS[1] :].T)
    return jnp.concatenate((*parts, jnp.swapaxes(rest, 0, 1)), 1)


def both(model, variables, tokens, mask):
    """Logits of `tokens` by parts, and of TOKENS as a whole; compiled together."""

    def run(variables, tokens, mask, alone):
        parts = decoded(model, variables, tokens, mask)
        return parts, model.apply(variables, alone)

    return jax.tree.map(np.asarray, jax.jit(run)(variables, tokens, mask, TOKENS))


def assert_equal(model, variables, tolerance):
    """Behind padding, logits are those of the tokens alone: by the whole pass, in
    which no position sees a later one."""
    logits, whole = both(model, variables, *padded())
    for row, pad in enumerate(PADS):
        expected, actual = whole[row, : LENGTH - pad], logits[row, pad:]
        assert np.ptp(expected) > 0.5
        np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance)


def name_of(case):
    return ",".join(f"{k}={v}" for k, v in case.items())


def test_every_causal_mixer_decodes():
    assert all("decode" in MIXERS[name].tags for name in CAUSAL)


SAME_CACHE = (
    "prefix_attention",
    "mixture_of_head",
    "pattention",
    "rela",
    "lightning",
    "differential",
)
"""Mixers whose caches are those of others, but for what they make of them."""


def marked(case):
    further = case in FURTHER or any(name in str(case) for name in SAME_CACHE)
    marks = pytest.mark.slow if further else ()
    return pytest.param(case, id=name_of(case), marks=marks)


@pytest.mark.parametrize("case", [marked(case) for case in [*CASES, *FURTHER]])
def test_parts_equal_the_whole(case):
    model = decoder(**{"depth": 1, **case})
    assert_equal(model, drawn(model), 1e-4)


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("mixer", ["softmax", "gated_linear", "transnormer"])
def test_parts_equal_the_whole_to_rounding(mixer):
    model = decoder(mixer=mixer, dtype=jnp.float64)
    assert_equal(model, drawn(model, "float64"), 1e-10)


LIGER = {"name": "liger", "window": 64}


@pytest.mark.slow
@pytest.mark.parametrize(
    "mixer",
    [
        {**LIGER, "recurrence": "gsa"},
        *(
            pytest.param(mixer, marks=pytest.mark.long)
            for mixer in (
                {**LIGER, "recurrence": "gla"},
                {**LIGER, "recurrence": "hgrn2"},
                {"name": "pararnn", "cell": "lstm"},
            )
        ),
        {"name": "pararnn", "cell": "gru"},
    ],
    ids=lambda mixer: "-".join(map(str, mixer.values())),
)
def test_long_rows_by_parts_equal_the_whole(mixer):
    """1,024 tokens: a prompt of most of them, then one by one, past every window."""
    model = decoder(depth=1, mixer=mixer)
    variables, (length, prompt) = drawn(model), (1024, 700)
    tokens = np.random.default_rng(2).integers(0, VOCABULARY, (1, length))

    @jax.jit
    def both(tokens):
        cache = init_cache(model, variables, 1, length)
        first, cache = extend(model, variables, cache, tokens[:, :prompt])

        def one(cache, token):
            logits, cache = extend(model, variables, cache, token[:, None])
            return cache, logits[:, 0]

        _, rest = jax.lax.scan(one, cache, tokens[:, prompt:].T)
        parts = jnp.concatenate((first, jnp.swapaxes(rest, 0, 1)), 1)
        return parts, model.apply(variables, tokens)

    np.testing.assert_allclose(*both(tokens), rtol=0, atol=1e-4)


PLACES = np.array(
    [
        [1, 1, 0, 0, 1, 0, 1, 1, 1, 0, 0, 1, 1, 0],  # behind and between
        [0, 0, 1, 1, 0, 1, 0, 0, 0, 0, 1, 0, 0, 1],  # a call without any token
    ],
    bool,
)
"""Where the tokens of two rows stand; the calls end at 6 and 10, then one by one."""


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(
            case,
            id=name_of(case),
            marks=() if case in ONE_OF_A_KIND else pytest.mark.slow,
        )
        for case in CASES
    ],
)
def test_padding_may_stand_anywhere(case):
    """Every token as in its row alone, by the whole pass."""
    model, ends = decoder(**{"depth": 1, **case}), (6, 10, 11, 12, 13, 14)
    variables, counts = drawn(model), PLACES.sum(1)
    rows = [TOKENS[i, :n] for i, n in enumerate(counts)]
    tokens = np.full(PLACES.shape, VOCABULARY - 1)
    for i, row in enumerate(rows):
        tokens[i, PLACES[i]] = row

    @jax.jit
    def run(tokens, mask, alone):
        cache, parts = init_cache(model, variables, *tokens.shape), []
        for start, end in zip((0, *ends), ends, strict=False):
            part = slice(start, end)
            logits, cache = extend(
                model, variables, cache, tokens[:, part], mask[:, part]
            )
            parts.append(logits)
        return jnp.concatenate(parts, 1), model.apply(variables, alone)

    logits, whole = run(jnp.asarray(tokens), jnp.asarray(PLACES), TOKENS)
    for i, count in enumerate(counts):
        expected, actual = whole[i, :count], logits[i][PLACES[i]]
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-4)


def test_without_padding_and_with_recomputed_blocks():
    model = decoder(depth=1, remat=True, tied=True, placement="peri")
    logits, whole = both(model, drawn(model), jnp.asarray(TOKENS), None)
    np.testing.assert_allclose(logits, whole, rtol=0, atol=1e-4)


def test_folded_norms():
    model = decoder(depth=1, norm="batch_norm")
    folded, variables = fusion.fold(model, drawn(model))
    assert set(variables) == {"params"}
    assert_equal(folded, variables, 1e-4)


def test_padding_may_be_anything():
    """Not even NaN reaches a token."""
    mixer = mixers.build("softmax", num_heads=2, causal=True)()
    x = jax.random.normal(jax.random.key(0), (1, 6, 8))
    variables = jax.jit(mixer.init)(jax.random.key(1), x)
    dirty = jnp.concatenate((jnp.full((1, 2, 8), jnp.nan), x), 1)
    decode = functools.partial(mixer.apply, decode=True, mutable=["cache"])
    y, cache = jax.jit(decode)(variables, dirty, mask=(jnp.arange(8) >= 2)[None])
    whole = jax.jit(mixer.apply)(variables, x)
    np.testing.assert_allclose(y[:, 2:], whole, 1e-5, 1e-6)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(cache))


def sizes(mixer, lengths=(1024, 8192), **arguments):
    """Bytes of the cache of one row."""
    model = decoder(mixer=mixer, depth=1, **arguments)
    tokens = jax.ShapeDtypeStruct((1, 2), jnp.int32)
    variables = jax.eval_shape(model.init, jax.random.key(0), tokens)
    return [
        cache_bytes(
            jax.eval_shape(
                lambda v, n=length: init_cache(model, v, 1, n),
                variables,
            )
        )
        for length in lengths
    ]


@pytest.mark.parametrize("mixer", PAIRWISE)
def test_keys_and_values_grow_with_the_length(mixer):
    """Two numbers a channel and position, and the count of tokens."""
    one = mixer in ("grouped_query", "prefix_attention")
    width = 8 if one else 16  # one of two heads
    assert sizes(mixer) == [4 * (2 * width * length + 1) for length in (1024, 8192)]


@pytest.mark.parametrize(
    ("mixer", "numbers"),
    [
        ("gated_linear", 2 * 4 * 8),  # heads, keys of half the width, values
        ("lightning", 2 * 8 * 8),
        ("transnormer", 2 * 16 * 8),  # positions double the keys
        ("rg_lru", 16 + 3 * 16),  # the state, what the convolution reads again
        ({"name": "local_attention", "window": 256}, 256 * 2 * 8),  # one head
        ({"name": "liger", "window": 256}, 2 * 8 * 8 + 256 * 2 * 16),
        (
            {"name": "liger", "window": 4, "recurrence": "gsa", "num_slots": 3},
            2 * 2 * 8 * 3 + 4 * 2 * 16,
        ),
        ("pararnn", 16 + 3 * 16),
        ("identity", -1),  # nothing, not even a count
    ],
)
def test_states_do_not_grow(mixer, numbers):
    assert sizes(mixer) == [4 * (numbers + 1)] * 2


def test_a_window_is_no_longer_than_the_rows():
    assert sizes("local_attention", (32, 1024, 8192)) == [
        4 * (2 * 8 * length + 1) for length in (32, 1024, 1024)
    ]


def test_states_are_float32_where_tokens_are_bfloat16():
    kept = {}
    for mixer in ("softmax", "gated_linear", "rg_lru"):
        model = decoder(depth=1, mixer=mixer, dtype=jnp.bfloat16)
        make = functools.partial(init_cache, model, batch_size=1, length=4)
        cache = jax.eval_shape(make, drawn(model))["blocks_0"]["mixer"]
        kept |= {name: leaf.dtype for name, leaf in cache.items()}
    narrow = {"key": "bfloat16", "value": "bfloat16", "inputs": "bfloat16"}
    assert kept == {**narrow, "state": "float32", "count": "int32"}


@pytest.mark.parametrize(
    ("arguments", "known", "message"),
    [
        ({}, {}, "causal=True"),
        ({"causal": True}, {"positions": jnp.zeros((1, 3), int)}, "positions"),
    ],
)
def test_what_cannot_be_decoded(arguments, known, message):
    mixer = mixers.build("softmax", num_heads=2, **arguments)()
    with pytest.raises(UserError, match=message):
        mixer.init(jax.random.key(0), jnp.zeros((1, 3, 8)), decode=True, **known)


def test_training_makes_no_cache():
    assert set(drawn(decoder())) == {"params"}
