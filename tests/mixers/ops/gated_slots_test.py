"""The recurrence whose decays are those of the values, against its definition."""

import jax
import jax.numpy as jnp
import numpy as np

from normjax.mixers.ops.gated_slots import value_decayed


def test_values_and_gradients_equal_position_by_position():
    """Over blocks that hand on their state, from one, with a decay of exactly 0."""
    rng = np.random.default_rng(0)
    q, k = rng.normal(size=(2, 2, 11, 2, 3))
    v = rng.normal(size=(2, 11, 2, 4))
    decays = rng.uniform(0.1, 1, (2, 11, 2, 4))
    decays[0, 5] = decays[1, 8, 1, 2] = 0
    state = rng.normal(size=(2, 2, 3, 4))

    def expected(q, k, v, state):
        out = []
        for t in range(11):
            added = k[:, t, :, :, None] * v[:, t, :, None]
            state = state * decays[:, t, :, None] + added
            out.append((state * q[:, t, :, :, None]).sum(2))
        return jnp.stack(out, 1), state

    def ours(q, k, v, state):
        return value_decayed(q, k, v, jnp.log(decays), state, chunk=4)

    with jax.enable_x64(True):
        arrays = tuple(map(jnp.asarray, (q, k, v, state)))

        @jax.jit
        def both(*arrays):
            runs = (jax.vjp(f, *arrays) for f in (ours, expected))
            return [(y, pull(y)) for y, pull in runs]

        actual, wanted = both(*arrays)
    jax.tree.map(
        lambda a, e: np.testing.assert_allclose(a, e, rtol=1e-9, atol=1e-12),
        (tuple(actual[0]), actual[1]),
        wanted,
    )
