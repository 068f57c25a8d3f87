"""The table of presets."""

import subprocess
import sys

import pytest

from normjax.core.errors import UserError
from normjax.families import FAMILIES, PRESETS
from normjax.families.listing import COLUMNS, rows
from normjax.models.__main__ import models_command


def test_every_preset_has_a_row_of_all_columns():
    found = rows()
    assert [row[0] for row in found] == list(PRESETS)
    assert {len(row) for row in found} == {len(COLUMNS)}
    known = {row[0]: row[2:] for row in found if row[2] != ""}
    assert known["tiny_vit_21m_384"] == (
        *(21_230_488, 13.698, 384, 86.2),
        "authors, 22k distilled",
    )
    assert known["davit_large"][-2:] == ("", "")  # nobody has its weights


def test_filters_hold_together():
    small = rows("nfnet", "eca", at_most=50)
    assert [row[0] for row in small] == ["eca_nfnet_l0", "eca_nfnet_l1"]
    assert {row[1] for row in rows("swin")} == {"swin"}
    assert all(row[2] >= 300e6 for row in rows(at_least=300))
    assert len(rows("davit")) == len(FAMILIES["davit"].presets)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--family=gcvt"], "unknown family 'gcvt'; did you mean 'gcvit'"),
        (["--name=davit_tny"], "unknown preset 'davit_tny'; did you mean 'davit_tiny'"),
        (["--family=davit", "--at_most=1"], "no preset is of that family"),
    ],
)
def test_what_is_not_there_is_refused(flags, message):
    with pytest.raises(UserError, match=message):
        models_command(["models", *flags])


def test_the_data_need_no_jax():
    code = "import sys, normjax.families.listing as l; l.rows(); "
    code += "sys.exit('jax' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
