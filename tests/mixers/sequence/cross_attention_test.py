"""Attention to other tokens: who takes them, which layers read them, what masks count.

Against attention to one's own tokens, and statistics from the equations.
"""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from normjax.core.errors import UserError
from normjax.mixers import MIXERS
from normjax.norms import NORMS

MEMORY = [entry.name for entry in MIXERS if "memory" in entry.tags]
ROWS, QUERIES, KEYS, WIDTH = 2, 4, 6, 16


def build(name, num_heads=2, **arguments):
    return MIXERS.factory(name)(num_heads=num_heads, **arguments)


def tokens(length, seed):
    shape = ROWS, length, WIDTH
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def drawn(mixer, *arguments, **known):
    """Parameters that are nowhere 0, in float64."""
    rng = np.random.default_rng(2)
    shapes = jax.eval_shape(mixer.init, jax.random.key(0), *arguments, **known)
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) / leaf.shape[0] ** 0.5),
        shapes["params"],
    )


def crossing(params):
    """The weights of self-attention, where queries have a projection of their own."""
    if "qkv" not in params:
        return params
    rest = {name: part for name, part in params.items() if name != "qkv"}
    q, kv = {}, {}
    for name, weights in params["qkv"].items():
        q[name], kv[name] = jnp.split(weights, [WIDTH], -1)
    return {**rest, "q": q, "kv": kv}


def test_which_mixers_take_a_memory():
    def takes(entry):
        return "memory" in inspect.signature(entry.make.__call__).parameters

    assert [entry.name for entry in MIXERS if takes(entry)] == MEMORY


def silenced(params, paths):
    """With zeros for the kernels at `paths`."""
    params = jax.tree.map(np.array, params)
    for path in paths:
        layer = params
        for name in path.split("/"):
            layer = layer[name]
        layer["kernel"][:] = 0
    return {"params": params}


@pytest.mark.parametrize("name", MEMORY)
def test_reads_are_all_that_reads(name, x64):
    """Without one kind of them nothing depends on what it reads."""
    shared = {"num_heads": 4, "shared_heads": 2} if name == "mixture_of_head" else {}
    mixer = build(name, **shared)
    x, memory = tokens(QUERIES, 0), tokens(KEYS, 1)
    params = drawn(mixer, x, memory=memory)
    mask = jnp.asarray(np.arange(KEYS) < np.array([[KEYS], [3]]))

    @jax.jit
    def apply(variables, x, memory):
        return mixer.apply(variables, x, memory=memory, mask=mask)

    pairs = {"x": (tokens(QUERIES, 2), memory), "memory": (x, tokens(KEYS, 3))}
    readers = {"x": mixer.cross_reads, "memory": mixer.memory_reads}
    whole = apply({"params": params}, x, memory)
    for what, pair in pairs.items():
        assert np.abs(apply({"params": params}, *pair) - whole).max() > 1e-6
        deaf = silenced(params, readers[what])
        same = apply(deaf, *pair), apply(deaf, x, memory)
        np.testing.assert_allclose(*same, 1e-12, 1e-12)


@pytest.mark.parametrize("name", MEMORY)
def test_attention_to_oneself_is_self_attention(name, x64):
    """To the first rows of it, when the memory holds more, behind a mask."""
    mixer, x = build(name), tokens(KEYS, 0)
    params = drawn(mixer, x)
    mask = jnp.asarray(np.arange(KEYS) < np.array([[KEYS], [3]]))
    apply = jax.jit(mixer.apply)
    expected = apply({"params": params}, x, mask=mask)
    memory = jnp.where(mask[..., None], x, jnp.nan)
    crossed = {"params": crossing(params)}
    actual = apply(crossed, x[:, :QUERIES], memory=memory, mask=mask)
    np.testing.assert_allclose(actual, expected[:, :QUERIES], 1e-10, 1e-10)


def test_statistics_of_queries_and_keys_are_of_their_own_tokens():
    """Batch norms of queries and keys, each with padding of its own."""
    mixer = build("softmax", qk_norm=NORMS.factory("batch_norm"))
    x, memory = (jnp.float32(tokens(n, n)) for n in (QUERIES, KEYS))
    mask = jnp.asarray(np.arange(KEYS) < np.array([[KEYS], [3]]))
    query_mask = jnp.asarray(np.arange(QUERIES) < np.array([[1], [QUERIES]]))
    variables = mixer.init(jax.random.key(0), x, memory=memory)
    _, new = mixer.apply(
        variables,
        x,
        memory=memory,
        mask=mask,
        query_mask=query_mask,
        train=True,
        mutable=["batch_stats"],
    )
    params = jax.tree.map(np.float64, variables["params"])
    q = np.float64(x) @ params["q"]["kernel"] + params["q"]["bias"]
    kv = np.float64(memory) @ params["kv"]["kernel"] + params["kv"]["bias"]
    for name, heads, valid in (
        ("q_norm", q, query_mask),
        ("k_norm", kv[..., :WIDTH], mask),
    ):
        counted = heads[np.asarray(valid)].reshape(-1, WIDTH // 2)
        moved = 0.1 * counted.mean(0)
        np.testing.assert_allclose(new["batch_stats"][name]["mean"], moved, 1e-5, 1e-6)


def test_the_mask_of_keys_is_never_that_of_queries(x64):
    """Even where it has the shape: without `query_mask` all queries count."""
    mixer = build("softmax", qk_norm=NORMS.factory("batch_norm"))
    x, memory = tokens(KEYS, 0), tokens(KEYS, 1)
    mask = jnp.asarray(np.arange(KEYS) < np.array([[2], [4]]))
    variables = mixer.init(jax.random.key(0), x, memory=memory)
    known = {"memory": memory, "mask": mask}
    _, new = mixer.apply(variables, x, **known, train=True, mutable=["batch_stats"])
    params = jax.tree.map(np.asarray, variables["params"]["q"])
    q = np.asarray(x) @ params["kernel"] + params["bias"]
    moved = 0.1 * q.reshape(-1, WIDTH // 2).mean(0)
    mean = new["batch_stats"]["q_norm"]["mean"]
    np.testing.assert_allclose(mean, moved, rtol=1e-5)


def test_the_load_of_experts_is_that_of_queries_that_count(x64):
    mixer, memory = build("mixture_of_head", active_heads=1), tokens(KEYS, 1)
    x, query_mask = tokens(QUERIES, 0), np.arange(QUERIES) < np.array([[1], [3]])
    params = drawn(mixer, x, memory=memory)

    @jax.jit
    def load(x):
        seen = {"memory": memory, "query_mask": jnp.asarray(query_mask)}
        _, new = mixer.apply(
            {"params": params}, x, train=True, mutable=["losses"], **seen
        )
        (value,) = new["losses"]["load"]
        return value

    logits = np.asarray(x)[query_mask] @ np.asarray(params["routed_gate"]["kernel"])
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    kept = p == p.max(-1, keepdims=True)
    expected = 4 * np.mean(p.mean(0) * kept.mean(0))
    np.testing.assert_allclose(load(x), expected, 1e-9)
    np.testing.assert_allclose(
        load(jnp.where(query_mask[..., None], x, 9.0)), expected, 1e-9
    )


def test_tokens_of_two_sequences_have_no_distance():
    mixer, x = build("softmax", relative_bias="alibi"), jnp.float32(tokens(QUERIES, 0))
    with pytest.raises(UserError, match=r"knows no relative_bias: .* no distance"):
        mixer.init(jax.random.key(0), x, memory=x)


@pytest.mark.parametrize("known", [{"causal": True}, {"rotary_base": 100.0}])
def test_order_means_nothing_to_other_tokens(known):
    mixer, x = build("softmax", **known), jnp.float32(tokens(QUERIES, 0))
    with pytest.raises(UserError, match="knows neither order nor packed documents"):
        mixer.init(jax.random.key(0), x, memory=x)
