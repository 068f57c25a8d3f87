"""Traffic of programs that were counted by hand, and of compiled loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from normjax.plan.hlo import parse
from normjax.plan.traffic import traffic

PLAIN = """
HloModule plain

ENTRY %main (p0: f32[8,16], p1: f32[8,16]) -> f32[8,16] {
  %p0 = f32[8,16]{1,0:T(8,128)} parameter(0)
  %p1 = f32[8,16]{1,0:T(8,128)S(1)} parameter(1)
  %add.1 = f32[8,16]{1,0:T(8,128)S(1)} add(%p0, %p1), metadata={op_name="a(b)"}
  ROOT %neg = bf16[8,16]{1,0:T(8,128)(2,1)} negate(%add.1)
}
"""


def test_memory_on_the_chip_is_free():
    """Only p0 is read from the main memory, 512 bytes; 256 are written."""
    assert traffic(PLAIN, 1).memory == 512 + 256


COPIES = """
HloModule copies

ENTRY %main (p0: f32[8,16]) -> f32[8,16] {
  %p0 = f32[8,16]{1,0} parameter(0)
  %s1 = ((f32[8,16]{1,0}), f32[2,16]{1,0:S(1)}, s32[]{:S(2)}) slice-start(%p0), slice={}
  %d1 = f32[2,16]{1,0:S(1)} slice-done(%s1)
  %s2 = (f32[8,16]{1,0:S(1)}, f32[8,16]{1,0}, u32[]{:S(2)}) copy-start(%p0)
  %d2 = f32[8,16]{1,0:S(1)} copy-done(%s2)
  %s3 = (f32[8,16]{1,0}, f32[8,16]{1,0:S(1)}, u32[]{:S(2)}) copy-start(%d2)
  ROOT %d3 = f32[8,16]{1,0} copy-done(%s3)
}
"""


def test_copies_on_the_side():
    """A quarter and all of p0 onto the chip, all of it back."""
    assert traffic(COPIES, 1).memory == 128 + 512 + 512


LOOP = """
HloModule loop

%slice_one (q0: f32[10,16], q1: s32[]) -> f32[16] {
  %q0 = f32[10,16]{1,0} parameter(0)
  %q1 = s32[] parameter(1)
  %zero = s32[] constant(0)
  %row = f32[1,16]{1,0} dynamic-slice(%q0, %q1, %zero), dynamic_slice_sizes={1,16}
  ROOT %flat = f32[16]{0} bitcast(%row)
}

%write_one (w0: f32[10,16], w1: f32[16], w2: s32[]) -> f32[10,16] {
  %w0 = f32[10,16]{1,0} parameter(0)
  %w1 = f32[16]{0} parameter(1)
  %w2 = s32[] parameter(2)
  %none = s32[] constant(0)
  %as_row = f32[1,16]{1,0} bitcast(%w1)
  ROOT %put = f32[10,16]{1,0} dynamic-update-slice(%w0, %as_row, %w2, %none)
}

%body (arg: (s32[], f32[10,16], f32[10,16])) -> (s32[], f32[10,16], f32[10,16]) {
  %arg = (s32[]{:S(6)}, f32[10,16]{1,0}, f32[10,16]{1,0}) parameter(0)
  %i = s32[]{:S(6)} get-tuple-element(%arg), index=0
  %x = f32[10,16]{1,0} get-tuple-element(%arg), index=1
  %y = f32[10,16]{1,0} get-tuple-element(%arg), index=2
  %read = f32[16]{0} fusion(%x, %i), kind=kLoop, calls=%slice_one
  %sum = f32[16]{0} all-reduce(%read), channel_id=3, replica_groups=[2,4]<=[8]
  %wrote = f32[10,16]{1,0} fusion(%y, %sum, %i), kind=kLoop, calls=%write_one
  ROOT %out = (s32[]{:S(6)}, f32[10,16]{1,0}, f32[10,16]{1,0}) tuple(%i, %x, %wrote)
}

%condition (c: (s32[], f32[10,16], f32[10,16])) -> pred[] {
  %c = (s32[]{:S(6)}, f32[10,16]{1,0}, f32[10,16]{1,0}) parameter(0)
  %j = s32[]{:S(6)} get-tuple-element(%c), index=0
  %end = s32[]{:S(6)} constant(END)
  ROOT %lt = pred[]{:S(6)} compare(%j, %end), direction=LT
}

ENTRY %main (p0: f32[10,16], p1: f32[10,16]) -> f32[10,16] {
  %p0 = f32[10,16]{1,0} parameter(0)
  %p1 = f32[10,16]{1,0} parameter(1)
  %begin = s32[]{:S(6)} constant(3)
  %start = s32[]{:S(6)} copy(%begin)
  %all = (s32[]{:S(6)}, f32[10,16]{1,0}, f32[10,16]{1,0}) tuple(%start, %p0, %p1)
  %loop = (s32[]{:S(6)}, f32[10,16]{1,0}, f32[10,16]{1,0}) while(%all), condition=%condition, body=%body
  ROOT %result = f32[10,16]{1,0} get-tuple-element(%loop), index=2
}
"""  # noqa: E501


def test_bodies_of_loops_count_as_often_as_they_run():
    """A turn: a row of 64 bytes read and written, summed, and written in place."""
    moved = traffic(LOOP.replace("END", "10"), 8)
    assert moved.memory == 7 * ((64 + 64) + (64 + 64) + (64 + 64))
    assert moved.collectives == {"all-reduce": 7 * 64}
    assert moved.sent == 7 * 2 * 3 / 4 * 64
    assert moved.unknown_loops == 0


def test_loops_of_unknown_length_count_once_and_are_told():
    unknown = LOOP.replace("constant(END)", "add(%j, %j)")
    moved = traffic(unknown, 8)
    assert (moved.collectives, moved.unknown_loops) == ({"all-reduce": 64}, 1)


ASYNCHRONOUS = """
HloModule asynchronous

%start (s: f32[4]) -> f32[16] {
  %s = f32[4]{0} parameter(0)
  ROOT %g1 = f32[16]{0} all-gather(%s), channel_id=7, replica_groups={{0,1,2,3}}
}

%done (d: f32[4]) -> f32[16] {
  %d = f32[4]{0} parameter(0)
  ROOT %g2 = f32[16]{0} all-gather(%d), channel_id=7, replica_groups={{0,1,2,3}}
}

%cheap (a: f32[4]) -> f32[4] {
  %a = f32[4]{0} parameter(0)
  ROOT %r1 = f32[4]{0} negate(%a)
}

%dear (b: f32[4]) -> f32[4] {
  %b = f32[4]{0} parameter(0)
  %r2 = f32[4]{0} all-reduce(%b), channel_id=8, replica_groups=mesh['x'=2,'y'=4] {'x'}
  ROOT %r3 = f32[4]{0} negate(%r2)
}

ENTRY %main (p0: f32[4], i: s32[]) -> f32[4] {
  %p0 = f32[4]{0} parameter(0)
  %i = s32[] parameter(1)
  %f1 = f32[16]{0} fusion(%p0), kind=kCustom, calls=%start
  %f2 = f32[16]{0} fusion(%p0), kind=kCustom, calls=%done
  ROOT %c = f32[4]{0} conditional(%i, %p0, %p0), branch_computations={%cheap, %dear}
}
"""


def test_channels_count_once_and_of_branches_the_dearest():
    moved = traffic(ASYNCHRONOUS, 8)
    assert moved.collectives == {"all-gather": 64, "all-reduce": 16}
    assert moved.sent == 3 / 4 * 64 + 2 / 2 * 16
    assert moved.memory == 2 * (16 + 64) + 2 * (16 + 16)


SCATTER = """
HloModule scatter

%all-reduce-scatter.5 (q: f32[8,16]) -> f32[2,16] {
  %q = f32[8,16]{1,0} parameter(0)
  %sum = f32[8,16]{1,0} all-reduce(%q), channel_id=1, replica_groups={{0,1,2,3}}
  %id = u32[] partition-id()
  %two = u32[] constant(2)
  %begin = u32[] multiply(%id, %two)
  %zero = u32[] constant(0)
  ROOT %part = f32[2,16]{1,0} dynamic-slice(%sum, %begin, %zero)
}

ENTRY %main (p0: f32[8,16]) -> f32[2,16] {
  %p0 = f32[8,16]{1,0} parameter(0)
  ROOT %f = f32[2,16]{1,0} fusion(%p0), kind=kCustom, calls=%all-reduce-scatter.5
}
"""


def test_an_all_reduce_of_which_a_part_is_kept_is_a_reduce_scatter():
    moved = traffic(SCATTER, 4)
    assert moved.collectives == {"reduce-scatter": 2 * 16 * 4}
    assert moved.sent == 3 / 4 * 8 * 16 * 4


@pytest.mark.parametrize("length", [3, 5])
def test_a_compiled_scan(length):
    """Rows are split over 4 devices; a layer sums its products over them."""
    mesh = Mesh(np.array(jax.devices()[:4]), ("data",))
    split = NamedSharding(mesh, PartitionSpec(None, "data"))

    def layer(x, _):
        mean = jnp.mean(x, axis=1, keepdims=True)
        return jnp.tanh(x - mean), None

    def step(x):
        return jax.lax.scan(layer, x, length=length)[0]

    x = jax.ShapeDtypeStruct((6, 16), jnp.float32, sharding=split)
    text = jax.jit(step, out_shardings=split).lower(x).compile().as_text()
    moved = traffic(text, 4)
    assert moved.collectives == {"all-reduce": length * 6 * 4}
    assert moved.unknown_loops == 0
    assert parse(text).entry in text
