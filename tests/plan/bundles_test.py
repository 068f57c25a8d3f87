"""Bundles counted by hand, in the form in which libtpu writes them."""

import pytest

from normjax.plan.bundles import read_kernel

NESTED = """= control target key start
LB: loop body
= control target key end

     0   :  { %s7_s1 = smov 0 /* copy */ }
   0x1 LB: > { %s9_s2 = sadd.s32 1, %s8_s1  ;;  %s8_s1 = sphi %s7_s1, %s6_s1 /* phi */ }
   0x2   : > { %s3_s5 = smov 2  ;;  %s6_s1 = smov %s9_s2 /* a copy */ }
   0x3 LB: >> { %s4_s5 = sphi %s3_s5, %s5_s6  ;;  %s5_s6 = sadd.s32 3, %s4_s5 }
   0x4   :  {}
   0x5   : >> { %p2_p1 = scmp.ge.s32.totalorder %s5_s6, BOUND  ;;  %v1 = vadd.f32 %v0 }
   0x6   : > { %p1_p0 = scmp.ge.s32.totalorder %s9_s2, 6 /* loop exit test */ }
   0x7   :  { %10 = sbr.rel (!%p1_p0) target = $region3 }
   0x8   :  {} /* exit bundle */
"""

UTILIZATION = """== CAPACTIY:
MXU, XLU, VALU, VPOP, EUP, VLOAD, VLOAD:FILL, VSTORE, VSTORE:SPILL, SALU
    4     3     4     2     1     3     3     1     1     2
== UTILIZATION:
0 0 0 0 0 0 0 0 0 1
0 0 0 0 0 0 0 0 0 2
0 0 0 0 0 0 0 0 0 1
0 3 0 0 0 0 0 0 0 2
0 0 0 0 0 0 0 0 0 0
0 0 2 0 0 0 0 0 0 1
0 0 0 0 0 0 0 0 0 1
0 0 0 0 0 0 0 0 0 0
0 0 0 0 0 0 0 0 0 0
"""
INNER = 3  # bundles 0x3 to 0x5: from 2 in steps of 3 to 11 are 3 turns
OUTER = 3  # bundles 0x1, 0x2 and 0x6, 6 turns
REST = 3


@pytest.mark.parametrize("written", ["LB: >>", "LB:"])
def test_loops_run_by_their_trips(written):
    text = NESTED.replace("BOUND", "11").replace("LB: >>", written)
    kernel = read_kernel(text, UTILIZATION)
    inner = 6 * 3
    assert kernel.cycles == REST + 6 * OUTER + inner * INNER
    assert kernel.unknown_loops == 0
    assert kernel.busy["XLU"] == pytest.approx(inner * 3 / 3 / kernel.cycles)
    assert kernel.busy["VALU"] == pytest.approx(inner * 2 / 4 / kernel.cycles)
    assert kernel.busy["MXU"] == kernel.busy["EUP"] == 0


@pytest.mark.parametrize(("turns", "trips"), [(4, 4), (5, 5), (6, 6), (3, 6), (7, 6)])
def test_pipelined_loops_compute_in_their_turns(turns, trips):
    """The outer loop runs one or two trips more to fill and to drain."""
    kernel = read_kernel(NESTED.replace("BOUND", "11"), "", turns)
    assert kernel.cycles == REST + trips * (OUTER + 3 * INNER)


@pytest.mark.parametrize(("grid", "trips"), [("2, 2", 4), ("5, 1", 5), ("3, 3", 6)])
def test_copies_say_the_grid_of_a_pipelined_loop(grid, trips):
    copy = (
        f"   0x9   :  {{ %1 = dma.hbm_to_vmem /*\niteration_bounds: ({grid})\n */ }}\n"
    )
    kernel = read_kernel(NESTED.replace("BOUND", "11") + copy, "")
    assert kernel.cycles == REST + 1 + trips * (OUTER + 3 * INNER)


def test_stages_say_how_many_trips_only_move_blocks():
    stage = "{ %s1_s3 = sadd.s32 %s8_s1, 1 /* iteration index, stage = 2 */ }"
    line = f"   0x2   : > {stage}\n   0x2   : >"
    bundles = NESTED.replace("   0x2   : >", line, 1).replace("BOUND", "11")
    assert read_kernel(bundles, "").cycles == REST + 4 * (OUTER + 1 + 3 * INNER)


def test_loops_whose_bound_is_a_register_count_once():
    kernel = read_kernel(NESTED.replace("BOUND", "%s6_s7"), UTILIZATION)
    assert kernel.unknown_loops == 1
    assert kernel.cycles == REST + 6 * (OUTER + INNER)


def test_products_take_the_time_of_their_rows():
    """16 rows of bfloat16 or 8 of float32 each; the units work side by side."""
    bundles = (
        "     0   :  { %1 = vmatmul.bf16.gmra.mxu0 %v1  ;;"
        "  %2 = vmatmul.mubr.f32.gmra.mxu1 %v2 }\n"
        "   0x1   :  { %3 = vmatmul.bf16.vlgmr.msra.gmra.mxu0 %v3  ;;"
        "  %4 = vmatpush.bf16.msra.mxu0 %v4 }\n"
    )
    assert read_kernel(bundles, "").cycles == 32
    assert read_kernel(bundles, "", rows=2).cycles == 16


def test_an_operation_of_the_loop_around_ends_no_loop():
    """It may issue amid the bundles of the inner one, of which it counts as one."""
    line = "   0x4   :  {}\n   0x4   : > { %s6_s1 = smov (%p2_p1), %s9_s2 }\n"
    text = NESTED.replace("BOUND", "11").replace("   0x4   :  {}\n", line)
    assert read_kernel(text, "").cycles == REST + 6 * (OUTER + 3 * (INNER + 1))


def test_predicates_of_the_loop_around_hide_no_trips():
    text = NESTED.replace("BOUND", "11").replace("sadd.s32 1", "sadd.s32 (%p2_p1), 1")
    text = text.replace("totalorder %s9_s2", "totalorder (%p2_p1), %s9_s2")
    assert read_kernel(text, "").cycles == REST + 6 * (OUTER + 3 * INNER)
