"""The coordinate check of muP: what updates change does not grow with the width."""

import pytest

from normjax.study.coordinates import draw_coordinates
from tests.train.tiny import tiny_config

BASE = 8


def config(width, base):
    made = tiny_config("norm=layer_norm", optim__lr=0.02, optim__warmup_fraction=0.0)
    made.optim.mup_base_width = base
    made.model.update(dim=width, num_heads=width // BASE)
    return made


@pytest.mark.slow
def test_only_without_mup_do_updates_grow(tmp_path):
    widths, kinds = (BASE, 16 * BASE), {"muP": BASE, "standard": 0}
    configs = {(k, n): config(n, base) for k, base in kinds.items() for n in widths}
    plot = tmp_path / "coordinates.png"
    found = draw_coordinates(configs, plot, updates=3)
    assert plot.stat().st_size > 5000
    for name in ("blocks_0", "logits"):
        grown = {k: found[k, 128][name] / found[k, 8][name] for k in kinds}
        assert 0.4 < grown["muP"] < 2 and grown["standard"] > 3, (name, grown)
    assert found["muP", BASE] == found["standard", BASE]
