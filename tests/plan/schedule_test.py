"""Schedules of programs whose cycles follow from the chip: products, copies, loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl

from normjax.core.errors import UserError
from normjax.core.gelu import gelu
from normjax.devices.chips import chip_of
from normjax.plan.schedule import program_of, schedule, schedules
from normjax.plan.schedule_tables import save_chart, show_schedules

pytestmark = pytest.mark.slow

V5E = chip_of("TPU v5 lite")
SIZE = 2048
GRID, REPEATS = 24, 32


def array(*shape, dtype=jnp.bfloat16):
    return jax.ShapeDtypeStruct(shape, dtype)


def of_blocks(x):
    """A kernel of so many turns, each with so many exponentials of 64 registers."""

    def kernel(x, y):
        total = x[...]
        for _ in range(REPEATS):
            total = jnp.exp(total)
        y[...] = total

    block = pl.BlockSpec((64, 1024), lambda i: (i, 0))
    shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
    return pl.pallas_call(
        kernel, shape, grid=(GRID,), in_specs=[block], out_specs=block
    )(x)


def behind_a_product(activation):
    """The first layer of an MLP in Swin-T's first stage and what is behind it."""
    return lambda x, kernel, bias: activation(x @ kernel + bias)


def in_a_loop(x):
    def body(_, x):
        with jax.named_scope("optimizer"):
            return jnp.tanh(x @ x)

    return jax.lax.fori_loop(0, 7, body, x)


def one_of_two(flag, x):
    return jax.lax.cond(flag, lambda x: x @ x, lambda x: x + 1, x)


@pytest.fixture(scope="module")
def found():
    square = array(SIZE, SIZE)
    wide = array(64 * GRID, 1024, dtype=jnp.float32)
    small = array(512, 512)
    layer = array(200704, 96), array(96, 384), array(1, 384)
    return dict(
        schedules(
            {
                "product": program_of(jnp.matmul, square, square),
                "kernel": program_of(of_blocks, wide),
                "loop": program_of(in_a_loop, small),
                "once": program_of(lambda x: jnp.tanh(x @ x), small),
                "gelu": program_of(behind_a_product(gelu), *layer),
                "relu": program_of(behind_a_product(jax.nn.relu), *layer),
                "branches": program_of(one_of_two, array(dtype=jnp.bool), small),
            }
        )
    )


def test_a_matrix_product_runs_near_the_peak(found):
    assert V5E is not None
    least = 2 * SIZE**3 / V5E.flops * V5E.clock
    assert least < found["product"].cycles < 1.1 * least
    assert found["product"].flops == 2 * SIZE**3
    assert 0.9 < found["product"].mfu < 1


def test_a_kernel_takes_what_its_grid_says(found):
    """Of 8 x 128 numbers one exponential a cycle can be begun."""
    registers = GRID * 64 * 1024 / (8 * 128)
    (cost,) = [c for c in found["kernel"].costs if "pallas" in c.path]
    assert registers * REPEATS < cost.cycles < 1.2 * registers * REPEATS
    assert cost.limit == "transcendental unit" and cost.busy["EUP"] > 0.8
    assert cost.bytes == 2 * 4 * GRID * 64 * 1024


def test_bodies_of_loops_count_as_often_as_they_run(found):
    loop, once = found["loop"], found["once"]
    assert loop.flops == 7 * once.flops
    inside = [cost for cost in loop.costs if cost.times == 7]
    inner = sum(cost.cycles for cost in inside)
    assert inner == pytest.approx(7 * once.cycles, rel=0.3)
    assert loop.by_part()["optimizer"] > 0.8 * loop.cycles


def test_of_a_condition_the_dearest_branch_counts(found):
    product = found["once"].cycles
    assert 0.5 * product < found["branches"].cycles < 2 * product


def test_gelu_takes_little_longer_than_the_product_before_it(found):
    """Which waits for the memory; two exponentials fill the time meanwhile."""
    assert found["relu"].cycles == found["relu"].memory_cycles
    assert found["gelu"].cycles < 1.06 * found["relu"].cycles


def test_tables_and_chart(found, tmp_path, capsys):
    show_schedules({"a loop": found["loop"]})
    save_chart(found, tmp_path / "chart.png")
    printed = capsys.readouterr().out
    assert "a loop on v5e" in printed and "optimizer" in printed
    assert (tmp_path / "chart.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("topology", ["v4:2x2x1", "v6e:2x2"])
def test_products_of_other_chips(topology):
    each = schedule(jnp.matmul, array(SIZE, SIZE), array(SIZE, SIZE), topology=topology)
    assert 0.7 < each.mfu < 1.01  # the clock has three digits


def test_a_program_of_several_devices_is_that_of_one():
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:4]), ("data",))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    x = jax.ShapeDtypeStruct((SIZE, SIZE), jnp.bfloat16, sharding=rows)
    each = schedule(lambda x: (x @ x.T).sum(), x)
    assert each.flops == 2 * SIZE**3 / 4
    assert each.by_part()["collectives"] > 0


def test_other_devices_have_no_schedule():
    with pytest.raises(UserError, match="schedules are of TPUs"):
        schedule(jnp.sin, array(8), topology="cpu:1")


def test_what_does_not_compile_is_said_in_a_line():
    large = array(2**19, 2**15)
    with pytest.raises(UserError, match="libtpu does not compile it"):
        schedule(jnp.matmul, large, array(2**15, 2**19))
