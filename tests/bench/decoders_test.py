"""The rows of the table of language models."""

import pytest

from normjax.bench import decoders
from normjax.core.errors import UserError


def test_tokens_a_second_and_ratios():
    seconds = {
        ("rms_norm", "read"): 2.0,
        ("rms_norm", "written"): 4.0,
        ("prepbn", "read"): 1.0,
        ("prepbn", "written"): 8.0,
    }
    written = decoders.WRITTEN * decoders.TEXTS
    assert decoders.rows_of(seconds) == [
        ("rms_norm", decoders.READ / 2, written / 4, 1, 1),
        ("prepbn", decoders.READ, written / 8, 2, pytest.approx(0.5)),
    ]


def test_only_decoders():
    with pytest.raises(UserError, match=r"decoder 'deit_tiny'.*lm_tiny"):
        decoders.decoders_command(["decoders", "deit_tiny"])
