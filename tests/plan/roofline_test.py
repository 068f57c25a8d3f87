"""The roofline on numbers made by hand, and what is sent for collectives."""

import pytest

from normjax.devices.chips import Chip
from normjax.plan.roofline import roofline, utilisation
from normjax.plan.traffic import sent_bytes

CHIP = Chip("toy", "Toy", 100, flops=1000.0, bandwidth=10.0, interconnect=2.0)


def test_the_slowest_of_three_bounds_the_step():
    bound = roofline(CHIP, flops=500.0, moved=30.0, sent=1.0)
    assert bound == (0.5, 3.0, 0.5)
    assert (bound.seconds, bound.limit) == (3.0, "memory")
    assert roofline(CHIP, flops=500.0, moved=1.0, sent=2.0).limit == "interconnect"
    assert roofline(CHIP, flops=500.0, moved=1.0, sent=0.0).limit == "compute"


def test_utilisation_counts_what_the_model_needs():
    assert utilisation(CHIP, model_flops=300.0, seconds=0.6) == pytest.approx(0.5)


def test_what_a_ring_sends():
    """Simulated: in a ring of 4, 3 turns of a quarter each way."""
    assert sent_bytes("all-reduce", 400, 4) == 2 * 3 * 100
    assert sent_bytes("all-gather", 400, 4) == 3 * 100
    assert sent_bytes("reduce-scatter", 100, 4) == 3 * 100
    assert sent_bytes("all-to-all", 400, 4) == 3 * 100
    assert sent_bytes("collective-permute", 400, 4) == 400
    assert sent_bytes("all-reduce", 400, 1) == 0
    assert sent_bytes("collective-permute", 400, 1) == 0
