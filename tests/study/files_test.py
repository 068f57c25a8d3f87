"""The files of studies: what they claim is about cells that they have."""

import pytest

from normjax.config.check import check_config
from normjax.config.recipes import load_module
from normjax.core.errors import UserError
from normjax.study.__main__ import study_files
from normjax.study.cells import Measure
from normjax.study.measures import MEASURES
from normjax.study.study import as_study

STUDIES = study_files()


@pytest.mark.parametrize("name", STUDIES)
def test_claims_are_about_cells(name):
    study = as_study(load_module(STUDIES[name], "get_study"))
    for claim in study.claims:
        sides = [side for side in (claim.more, claim.less) if isinstance(side, tuple)]
        assert sides and set(sides) <= set(study.runs), claim.statement
        assert claim.source and claim.published and claim.statement.endswith(".")
    assert len(study.seeds) >= 3 or not study.claims
    for cell in study.runs.values():
        assert not isinstance(cell, Measure) or cell.name in MEASURES


@pytest.mark.parametrize("name", STUDIES)
def test_configs_are_right(name):
    study = as_study(load_module(STUDIES[name], "get_study"))
    for cell in study.runs.values():
        configs = [cell]
        if isinstance(cell, Measure):
            configs = [cell.config, cell.arguments.get("config")]
        try:
            for config in configs:
                if config is not None:
                    check_config(config)
        except UserError as error:
            raise AssertionError(f"{name}: {error}") from error
