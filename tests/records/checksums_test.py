"""Checksums against Python integers, on one device and split over four."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from normjax.records.checksums import checksums


def expected(x):
    """The sum in Python's unbounded integers, element by element."""
    raw = np.ascontiguousarray(x).tobytes()
    width = max(x.dtype.itemsize, 1)
    total = 0
    for i in range(x.size):
        element = raw[i * width : (i + 1) * width]
        words = [element[k : k + 4] for k in range(0, width, 4)]
        bits = sum(int.from_bytes(word, "little") for word in words)
        total += (2 * i + 1) * bits
    return total % 2**32


@pytest.mark.parametrize(
    "dtype", ["float32", "bfloat16", "float16", "int32", "uint32", "uint8", "bool"]
)
def test_the_equation(dtype):
    values = np.random.default_rng(0).normal(scale=100, size=(5, 3, 7))
    x = np.asarray(jnp.asarray(np.abs(values).astype(np.float32)).astype(dtype))
    for array in (x, x[0, 0, 0], x[:, :0]):
        assert checksums({"a": jnp.asarray(array)}) == {"a": expected(array)}


def test_sixty_four_bits(x64):
    x = np.random.default_rng(0).normal(size=(3, 5))
    assert checksums({"a": jnp.asarray(x)}) == {"a": expected(x)}


def test_paths():
    tree = {
        "params": {"head": {"bias": jnp.ones(2)}},
        "ema": None,
        "opt": (jnp.ones(1),),
    }
    assert set(checksums(tree)) == {"params/head/bias", "opt/0"}


@pytest.mark.parametrize(
    "spec",
    [(), ("a",), (None, "b"), ("a", "b"), (("a", "b"),), ("b", None, "a")],
    ids=str,
)
def test_however_it_is_split(spec):
    x = np.random.default_rng(1).normal(size=(8, 6, 10)).astype(np.float32)
    mesh = Mesh(np.asarray(jax.devices()[:4]).reshape(2, 2), ("a", "b"))
    split = jax.device_put(x, NamedSharding(mesh, PartitionSpec(*spec)))
    assert checksums({"x": split}) == {"x": expected(x)}


def test_every_flipped_bit_shows():
    x = np.random.default_rng(2).normal(size=(4,)).astype(np.float32)
    sums = set()
    for bit in range(32 * x.size):
        raw = bytearray(x.tobytes())
        raw[bit // 8] ^= 1 << bit % 8
        flipped = np.frombuffer(bytes(raw), np.float32)
        sums.add(checksums({"x": jnp.asarray(flipped)})["x"])
    assert checksums({"x": jnp.asarray(x)})["x"] not in sums


def test_an_exchange_of_elements_shows():
    x = np.arange(1, 7, dtype=np.float32)
    found = {checksums({"x": jnp.asarray(np.roll(x, n))})["x"] for n in range(6)}
    assert len(found) == 6
