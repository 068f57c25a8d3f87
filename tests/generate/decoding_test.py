"""Generation against one whole forward pass per token."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from normjax.core.errors import UserError
from normjax.generate import generate
from tests.generate.models import VOCABULARY, decoder, drawn

MODEL = decoder(depth=1)
VARIABLES = drawn(MODEL, seed=22)  # with texts that do not settle soon
PROMPT = np.array([[3, 1, 4, 1], [5, 9, 2, 6]], np.int32)
LENGTH = 12


@functools.cache
def compiled(**arguments):
    return jax.jit(
        functools.partial(generate, MODEL, VARIABLES, **{"length": LENGTH, **arguments})
    )


def run(tokens, seed=0, mask=None, **arguments):
    write = compiled(**arguments)
    return np.asarray(write(jnp.asarray(tokens), key=jax.random.key(seed), mask=mask))


@functools.cache
def greedy(prompt=4):
    """The most probable tokens behind so many of PROMPT, by a whole pass for each: rows
    are filled up with zeros, which no earlier position sees."""
    whole = jax.jit(functools.partial(MODEL.apply, VARIABLES))
    rows = np.pad(PROMPT[:, :prompt], ((0, 0), (0, 4 - prompt + LENGTH)))
    for at in range(prompt, prompt + LENGTH):
        rows[:, at] = np.asarray(whole(jnp.asarray(rows)))[:, at - 1].argmax(-1)
    return rows[:, prompt : prompt + LENGTH]


def test_most_probable_tokens():
    expected = greedy()
    assert len(np.unique(expected)) > 5
    for arguments in ({"temperature": 0.0}, {"top_p": 1e-6}):
        text = run(PROMPT, **arguments)
        assert text.dtype == np.int32
        np.testing.assert_array_equal(text, expected)


def test_one_token_of_prompt():
    text = run(PROMPT[:, :1], temperature=0.0)
    np.testing.assert_array_equal(text, greedy(1))


@pytest.mark.parametrize("places", [(2, 3), (0, 1), (0, 2)])
def test_padding_changes_nothing(places):
    """In front of a prompt, behind it or inside."""
    tokens, mask = np.stack((np.full(4, 7), PROMPT[1])), np.ones((2, 4), bool)
    tokens[0, list(places)] = PROMPT[0, :2]
    mask[0] = np.isin(np.arange(4), places)
    padded = run(tokens, mask=jnp.asarray(mask), temperature=0.0)
    np.testing.assert_array_equal(padded[1], greedy()[1])
    np.testing.assert_array_equal(padded[0], greedy(2)[0])
    assert (padded[0] != greedy()[0]).any()


def test_rows_stop_at_the_end():
    expected = greedy()
    in_both, in_one = 7, 4
    assert [(expected == end).any(1).sum() for end in (in_both, in_one)] == [2, 1]
    for end in (in_both, in_one):
        text = run(PROMPT, temperature=0.0, end_token=end)
        for row, free in zip(text, expected, strict=True):
            stop = np.append(np.flatnonzero(free == end), LENGTH)[0]
            np.testing.assert_array_equal(row[: stop + 1], free[: stop + 1])
            assert (row[stop:] == end).all()


def test_an_end_in_the_prompt_is_no_end():
    text = run(PROMPT, temperature=0.0, end_token=int(PROMPT[0, -1]))
    assert text[0, 0] == greedy()[0, 0]


def test_seeds():
    first, again, other = (run(PROMPT, seed, temperature=2.0) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    # Rows and positions have randomness of their own.
    twins = run(np.tile(PROMPT[:1], (2, 1)), temperature=50.0)
    assert (twins[0] != twins[1]).any() and len(np.unique(twins[0])) > 2
    assert ((twins >= 0) & (twins < VOCABULARY)).all()


def test_one_program_for_all_prompts_of_a_shape():
    @jax.jit
    @functools.partial(chex.assert_max_traces, n=1)
    def write(tokens, key):
        return generate(MODEL, VARIABLES, tokens, length=2, key=key)

    for seed in range(2):
        write(jnp.asarray(PROMPT + seed), key=jax.random.key(seed))


@pytest.mark.parametrize(
    ("tokens", "length"), [(PROMPT[:, :0], 3), (PROMPT, 0), (PROMPT, -1)]
)
def test_what_it_refuses(tokens, length):
    with pytest.raises(UserError, match="tokens of prompt"):
        generate(
            MODEL, VARIABLES, jnp.asarray(tokens), length=length, key=jax.random.key(0)
        )
