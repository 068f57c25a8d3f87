"""Cross-attention: who takes a memory, and which layers read it."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from normjax.attention import MIXERS, build
from normjax.norms import build as norm

MEMORY = sorted(entry.name for entry in MIXERS if "memory" in entry.tags)
LENGTH, WIDTH, HEADS = 5, 8, 2
KEYS = np.arange(LENGTH) < np.array([2, 4])[:, None]


def inputs(seed=0):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.normal(size=(2, 2, LENGTH, WIDTH)))


def initial(mixer):
    x, memory = inputs()
    return mixer.init(jax.random.key(0), x, memory=memory)


def test_which_mixers_take_a_memory():
    def takes(entry):
        return "memory" in inspect.signature(entry.make.__call__).parameters

    assert sorted(entry.name for entry in MIXERS if takes(entry)) == MEMORY


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
    shared = {"shared_heads": 2} if name == "mixture_of_head" else {}
    mixer = build(name, num_heads=4 if shared else HEADS, **shared)()
    params = initial(mixer)["params"]
    (x, memory), (other_x, other_memory) = inputs(), inputs(1)
    mask = jnp.asarray(KEYS)

    @jax.jit
    def apply(variables, x, memory):
        return mixer.apply(variables, x, memory=memory, mask=mask)

    pairs = {"x": (other_x, memory), "memory": (x, other_memory)}
    readers = {"x": mixer.cross_reads, "memory": mixer.memory_reads}
    whole = apply({"params": params}, x, memory)
    for what, pair in pairs.items():
        assert np.abs(apply({"params": params}, *pair) - whole).max() > 1e-6
        deaf = silenced(params, readers[what])
        same = apply(deaf, *pair), apply(deaf, x, memory)
        np.testing.assert_allclose(*same, 1e-12, 1e-12)


def test_the_mask_of_keys_is_never_that_of_queries(x64):
    """Even where it has the shape: without `query_mask` all queries count."""
    mixer = build("softmax", num_heads=HEADS, qk_norm=norm("batch_norm"))()
    variables, (x, memory) = initial(mixer), inputs()
    known = {"memory": memory, "mask": jnp.asarray(KEYS)}
    _, new = mixer.apply(variables, x, **known, train=True, mutable=["batch_stats"])
    params = jax.tree.map(np.asarray, variables["params"]["q"])
    q = np.asarray(x) @ params["kernel"] + params["bias"]
    moved = 0.1 * q.reshape(-1, WIDTH // HEADS).mean(0)
    mean = new["batch_stats"]["q_norm"]["mean"]
    np.testing.assert_allclose(mean, moved, rtol=1e-6)
