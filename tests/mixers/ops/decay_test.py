"""The linear recurrence with decay: all its forms against a loop in float64 NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from normjax.mixers.ops import decay, decay_narrow

B, H, K, V = 2, 3, 4, 5
KINDS = ("none", "fixed", "head", "channel", "resets", "strong")


def marked(*fast):
    """All kinds, the others than `fast` among the slow tests."""
    slow = pytest.mark.slow
    marks = {kind: () if kind in fast else slow for kind in KINDS}
    return [pytest.param(kind, marks=mark) for kind, mark in marks.items()]


def inputs(kind, length, seed=0):
    """q, k, v, log decays and a state."""
    rng = np.random.default_rng(seed)
    q, k = rng.normal(size=(2, B, length, H, K))
    v, state = rng.normal(size=(B, length, H, V)), rng.normal(size=(B, H, K, V))
    channel = -rng.exponential(0.5, (B, length, H, K))
    chosen = rng.random(channel.shape)
    log_decay = {
        "none": None,
        "fixed": -rng.exponential(0.5, H),
        "head": channel[..., :1],
        "channel": channel,
        "resets": np.where(chosen < 0.3, -np.inf, channel),
        "strong": np.where(chosen < 0.3, -1e4, np.where(chosen < 0.6, -1e-4, channel)),
    }[kind]
    return q, k, v, log_decay, state


def loop(q, k, v, log_decay=None, state=None):
    """S_t = diag(d_t) S_{t-1} + k_t v_t^T and o_t = S_t^T q_t."""
    if state is None:
        state = np.zeros((len(q), q.shape[2], q.shape[3], v.shape[3]))
    if log_decay is None:
        log_decay = np.zeros(1)
    if np.ndim(log_decay) == 1:
        log_decay = log_decay.reshape(1, 1, -1, 1)
    d, out = np.exp(np.broadcast_to(log_decay, k.shape)), []
    for t in range(q.shape[1]):
        state = d[:, t, ..., None] * state + k[:, t, ..., None] * v[:, t, :, None]
        out.append((q[:, t, ..., None] * state).sum(2))
    return np.stack(out, 1), state


def chunks(size):
    return lambda *operands: decay.chunked(*operands, chunk=size)


def blocks(size):
    """The same on the way of gradients, which always goes block by block."""
    return lambda *operands: jax.vjp(chunks(size), *operands)[0]


def by_steps(q, k, v, log_decay, state):
    out = []
    for t in range(q.shape[1]):
        g = log_decay
        if g is not None:
            g = g.reshape(1, -1, 1) if g.ndim == 1 else g[:, t]
        o, state = decay.step(state, q[:, t], k[:, t], v[:, t], g)
        out.append(o)
    return jnp.stack(out, 1), state


def pulled(form, operands, cotangents):
    """Value and gradients of a form."""
    value, pull = jax.vjp(form, *operands)
    return value, pull(cotangents)


def close(actual, expected, tolerance=1e-12):
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        size = np.abs(e).max() + 1e-300
        np.testing.assert_allclose(a, e, rtol=tolerance, atol=tolerance * size)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("kind", marked("none", "resets", "strong"))
def test_all_forms_agree(kind):
    """Values with a state, and the gradients of everything, of 11 positions."""
    operands = jax.tree.map(jnp.asarray, inputs(kind, 11))
    rng = np.random.default_rng(1)
    expected = loop(*inputs(kind, 11))
    cotangents = tuple(jnp.asarray(rng.normal(size=e.shape)) for e in expected)

    @jax.jit
    def run(operands, cotangents):
        forms = (decay.recurrent, chunks(4))
        values = [form(*operands) for form in (decay.parallel, chunks(4))]
        return values, [pulled(form, operands, cotangents) for form in forms]

    values, pairs = run(operands, cotangents)
    (by_position, gradients), (by_block, others) = pairs
    for value in (*values, by_position, by_block):
        close(value, expected)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradients))
    close(others, gradients, 1e-11)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("kind", marked("fixed", "channel"))
def test_steps_and_no_state(kind):
    q, k, v, log_decay, state = inputs(kind, 5)
    operands = jax.tree.map(jnp.asarray, (q, k, v, log_decay, state))
    close(by_steps(*operands), loop(q, k, v, log_decay, state))
    operands = jax.tree.map(jnp.asarray, (q, k, v, log_decay))
    for form in (decay.recurrent, chunks(2), blocks(2)):
        close(jax.jit(form)(*operands), loop(q, k, v, log_decay))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("kind", marked("none", "head", "resets"))
def test_blocks_for_bfloat16(kind):
    """Here in float64: values, and the gradients of everything, of 75 positions."""
    q, k, v, log_decay, state = inputs(kind, 75)
    if np.ndim(log_decay) == 1:
        log_decay = np.broadcast_to(log_decay[:, None], (B, 75, H, 1))
    operands = jax.tree.map(jnp.asarray, (q, k, v, log_decay, state))
    rng = np.random.default_rng(1)
    expected = loop(*operands)
    cotangents = tuple(jnp.asarray(rng.normal(size=e.shape)) for e in expected)

    def form(*operands):
        return decay_narrow.blocks(*operands, chunk=32, dtype=jnp.float64)

    value, gradients = jax.jit(lambda *g: pulled(form, *g))(operands, cotangents)
    others = jax.jit(lambda *g: pulled(decay.recurrent, *g))(operands, cotangents)[1]
    close(value, expected, 1e-10)
    # Where nothing is left, a stronger decay changes nothing.
    close(gradients, others, 1e-9)


@pytest.mark.parametrize("channels", [1, K])
def test_bfloat16_takes_its_own_blocks_elsewhere(channels):
    """One product of pairs a block, of bfloat16; a CPU goes on as in float32."""
    q, k, v, log_decay, _ = inputs("channel", 64)
    operands = [jnp.asarray(t, jnp.bfloat16) for t in (q, k, v)]
    operands.append(jnp.asarray(log_decay[..., :channels], jnp.float32))
    traced = jax.jit(lambda *t: decay.chunked(*t)[0]).trace(*operands)
    lines = traced.lower(lowering_platforms=("cuda",)).as_text().splitlines()
    products = [line for line in lines if "stablehlo.dot_general" in line]
    (sums,) = (line for line in products if "bf16" not in line)
    assert "HIGHEST" in sums  # of logarithms of decays
    products.remove(sums)
    assert len(products) == (4 if channels == 1 else 6)
    assert all(line.count("bf16>") == 2 and "f32>" in line for line in products)
    cpu = traced.lower(lowering_platforms=("cpu",)).as_text()
    assert not [i for i in cpu.splitlines() if "dot_general" in i and "bf16" in i]


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", [1, 16, 131])
def test_lengths_and_chunks(kind, length):
    """Blocks that divide the length and blocks that do not, one block, many."""
    operands = jax.tree.map(jnp.asarray, inputs(kind, length))
    expected = loop(*inputs(kind, length))
    for size in (3, 16, 64):
        for form in (chunks(size), blocks(size)):
            close(jax.jit(form)(*operands), expected)


@pytest.mark.usefixtures("x64")
def test_a_sequence_in_pieces():
    """The state that one call returns continues the sequence in the next."""
    q, k, v, log_decay, state = jax.tree.map(jnp.asarray, inputs("channel", 9))
    run, out = jax.jit(chunks(4)), []
    for piece in (slice(0, 5), slice(5, 9)):
        o, state = run(
            q[:, piece], k[:, piece], v[:, piece], log_decay[:, piece], state
        )
        out.append(o)
    close((jnp.concatenate(out, 1), state), loop(*inputs("channel", 9)))


@pytest.mark.usefixtures("x64")
def test_a_decay_of_zero_forgets_everything():
    q, k, v, log_decay, state = inputs("channel", 8)
    log_decay[:, 5] = -np.inf
    operands = tuple(map(jnp.asarray, (q, k, v, log_decay, state)))
    o, last = jax.jit(blocks(4))(*operands)
    close((o[:, 5:], last), loop(*(t[:, 5:] for t in (q, k, v, log_decay))))


@pytest.mark.parametrize(
    "rate,gradients",
    [
        (None, False),
        (1e-3, True),
        pytest.param(None, True, marks=pytest.mark.slow),
        pytest.param(1e-3, False, marks=pytest.mark.slow),
    ],
)
def test_long_sequences_in_bfloat16(rate, gradients):
    """16,384 positions: sums in float32, so nothing is lost after a few hundred."""
    rng, length = np.random.default_rng(3), 1 << 14
    q, k, v = (
        jnp.asarray(rng.normal(0.5, 1.0, (1, length, 1, 2)), jnp.bfloat16)
        for _ in range(3)
    )
    log_decay = None if rate is None else -jnp.full((1,), rate)

    form = blocks(64) if gradients else decay.chunked
    o, state = jax.jit(form)(q, k, v, log_decay)
    assert o.dtype == state.dtype == jnp.float32
    rounded = None if rate is None else np.float64(log_decay)
    expected = loop(np.float64(q), np.float64(k), np.float64(v), rounded)
    for a, e in zip((o, state), expected, strict=True):
        assert np.abs(np.float64(a) - e).max() <= 1e-4 * np.abs(e).max()


def test_gradients_of_long_bfloat16_sequences_are_finite():
    length = 1 << 14
    q, k, v, g = jnp.asarray(
        np.random.default_rng(4).normal(size=(4, 1, length, 1, 2)), jnp.bfloat16
    )

    def loss(q, k, v, g):
        return jnp.mean(decay.chunked(q, k, v, -jnp.exp(5 * g))[0] ** 2)

    for gradient in jax.jit(jax.grad(loss, (0, 1, 2, 3)))(q, k, v, g):
        assert gradient.dtype == jnp.bfloat16
        assert np.isfinite(np.float32(gradient)).all()


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("kind", ["none", "fixed", "channel"])
def test_causal_linear_attention(kind):
    """Both sums by a loop over the queries."""
    q, k, v, log_decay, _ = inputs(kind, 7)
    q, k = np.abs(q), np.abs(k)
    rate = np.zeros(1) if log_decay is None else log_decay
    rate = rate.reshape(1, 1, -1, 1) if rate.ndim == 1 else rate
    since = np.cumsum(np.broadcast_to(rate, k.shape), 1)
    expected = np.zeros(v.shape)
    for i in range(7):
        old = np.exp(since[:, i, None] - since[:, : i + 1])
        weights = (q[:, i, None] * old * k[:, : i + 1]).sum(-1, keepdims=True)
        total = (weights * v[:, : i + 1]).sum(1)
        expected[:, i] = total / (weights.sum(1) + 1e-3)
    operands = jax.tree.map(jnp.asarray, (q, k, v, log_decay))
    attend = jax.jit(lambda *t: decay.causal_linear_attention(*t, epsilon=1e-3))
    close(attend(*operands), expected)
    filled = jax.jit(functools.partial(decay._divided, 1e-3, 3))  # as TPUs have it
    close(filled(*operands), expected)


def test_documents_and_padding():
    """Where a document starts nothing is left; at padding nothing decays."""
    mask = jnp.asarray([[True, True, False, True], [True, True, True, True]])
    positions = jnp.asarray([[0, 1, 2, 3], [0, 1, 0, 1]])
    rates = jnp.asarray([-1.0, -2.0])
    assert decay.within_documents(rates, (2, 4)) is rates
    both = decay.within_documents(rates, (2, 4), mask, positions)
    none = -np.inf
    expected = [[none, -1, 0, -1], [none, -1, none, -1]]
    np.testing.assert_array_equal(both[..., 0, 0], expected)
    channels = jnp.broadcast_to(rates.reshape(1, 1, 2, 1), (2, 4, 2, 3))
    only = decay.within_documents(channels, (2, 4), mask)
    np.testing.assert_array_equal(only[0, :, 1, 2], [-2, -2, 0, -2])


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("with_state", [False, True])
def test_diagonal(with_state):
    """h_t = a_t h_{t-1} + b_t, with decays of 0 and 1 among them."""
    rng = np.random.default_rng(5)
    a, b = rng.random((2, 13, 3)), rng.normal(size=(2, 13, 3))
    a[0, 4], a[1, 5:8] = 0, 1
    state = rng.normal(size=(2, 3)) if with_state else None
    h, expected = np.zeros((2, 3)) if state is None else state, []
    for t in range(13):
        h = a[:, t] * h + b[:, t]
        expected.append(h)
    operands = jax.tree.map(jnp.asarray, (a, b, state))
    close(jax.jit(decay.diagonal)(*operands), (np.stack(expected, 1), h))
