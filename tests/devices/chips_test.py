"""Peaks of accelerators."""

from normjax.devices.chips import CHIPS, chip_of


def test_chips_are_told_apart():
    assert [chip_of(chip.kind) for chip in CHIPS] == list(CHIPS)
    assert chip_of("cpu") is None
