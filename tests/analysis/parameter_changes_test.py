"""Changes of parameters by hand."""

import numpy as np

from normjax.analysis import parameter_changes

PARTS = {"norm": "norm", "bias": "bias$", "rest": "fc", "nothing": "conv"}


def test_means_over_the_entries_of_a_part():
    """The first pattern counts, every entry as much as another; signs do not cancel."""
    rng = np.random.default_rng(0)
    moments = [
        {
            "norm": {"scale": rng.normal(size=3), "bias": rng.normal(size=3)},
            "fc": {"kernel": rng.normal(size=(2, 3)), "bias": rng.normal(size=3)},
            "other": rng.normal(size=2),
        }
        for _ in range(3)
    ]
    found = parameter_changes(moments, PARTS)
    assert list(found) == ["norm", "bias", "rest"]
    for e in range(2):
        old, new = moments[e], moments[e + 1]
        norm = [*(new["norm"]["scale"] - old["norm"]["scale"])]
        norm += [*(new["norm"]["bias"] - old["norm"]["bias"])]
        np.testing.assert_allclose(found["norm"][e], np.abs(norm).mean())
        bias = new["fc"]["bias"] - old["fc"]["bias"]
        np.testing.assert_allclose(found["bias"][e], np.abs(bias).mean())
        kernel = new["fc"]["kernel"] - old["fc"]["kernel"]
        np.testing.assert_allclose(found["rest"][e], np.abs(kernel).mean())
