"""What studies measure: closed forms, and small runs."""

import json
import math

import numpy as np
import pytest

from configs.studies.common import changed
from normjax.core.errors import UserError
from normjax.study.measures import MEASURES, attention_maps, speed
from normjax.train.loop import train
from tests.train.tiny import tiny_config, untrained_run


def measured(name, seed=0, folder=None, **arguments):
    return MEASURES[name](seed, folder, **arguments)


def test_ranks_of_attention():
    softmax, linear, repaired = (
        measured("attention_rank", attention=kind)["rank"]
        for kind in attention_maps.KINDS
    )
    assert linear == 32 / 196 < softmax <= 1 == repaired
    with pytest.raises(UserError, match="unknown attention 'sofmax'"):
        measured("attention_rank", attention="sofmax")


def test_the_convolution_is_that_of_the_map():
    from scipy.signal import correlate2d

    rng = np.random.default_rng(0)
    kernel, values = rng.normal(size=(5, 5)), rng.normal(size=(14, 14))
    found = attention_maps._convolution(kernel) @ values.ravel()
    expected = correlate2d(values, kernel, mode="same")
    np.testing.assert_allclose(found.reshape(14, 14), expected, rtol=1e-12)


def test_slopes():
    cubic = {n: 7.0 * n**3 for n in (10, 40)}
    assert math.isclose(speed.slope(cubic, 10, 40, 4), 3.0)


@pytest.mark.parametrize("norm", ["rms_norm", "crms_norm"])
def test_conversions_change_nothing(norm):
    found = measured("pre_norm_conversion", norm=norm)["difference"]
    assert 0 < found < 1e-5


def test_last_layers(tmp_path):
    (tmp_path / "layers.jsonl").write_text(
        '{"step": 1, "activation_variance": {"blocks_0": 9.0, "blocks_1": 9.0}}\n'
        '{"step": 2, "activation_variance": {"blocks_10": 6.0, "blocks_2": 2.0}}\n'
    )
    found = measured("last_layers", folder=tmp_path, quantity="activation_variance")
    assert found == {
        "activation_variance_first": 2.0,
        "activation_variance_last": 6.0,
        "activation_variance_mean": 4.0,
        "activation_variance_growth": 3.0,
    }


@pytest.mark.slow
def test_forms_of_decay_are_exact():
    for form in ("recurrent", "parallel", "chunked"):
        found = measured("decay_form", form=form)
        assert 0 < found["error"] < 1e-5
        assert math.isfinite(found["slope"])


@pytest.mark.slow
def test_outliers_hurt():
    norm = {"name": "batch_norm"}
    clean = measured("outliers", norm=norm, factor=1.0)["top1"]
    assert measured("outliers", norm=norm)["top1"] < clean
    assert clean > 0.9


@pytest.mark.slow
def test_one_bit():
    found = measured("one_bit", config=tiny_config(optim__lr=0.1))
    assert 0 < found["difference"] < 1
    assert 0 <= found["disagreement"] <= 1
    still = measured("one_bit", config=tiny_config(optim__lr=0.0))
    assert still["difference"] < 1e-6


@pytest.mark.slow
def test_the_best_of_three_rates(tmp_path):
    config = tiny_config("norm=none,mixer=softmax", optim__clip_norm=0.0)
    rates = (1e30, 0.0, 3e-3)

    def found(seed, rates=rates):
        folder = tmp_path / str(seed)
        return measured("best_rate", seed, folder, config=config, rates=rates)

    with pytest.raises(UserError, match="seed 0 chooses the rate"):
        found(1)
    best = found(0)
    assert best["lr"] == 3e-3
    lines = (tmp_path / "0/metrics.jsonl").read_text().splitlines()
    curve = [(r["step"], r["eval_nll"]) for r in map(json.loads, lines)]
    assert [step for step, _ in curve] == [3, 6]
    # The run that a command trains, at that rate.
    trained = train(changed(config, optim__lr=3e-3), tmp_path / "run")
    assert best["nll"] == curve[-1][1] == pytest.approx(trained["nll"], rel=1e-5)
    # Another seed takes that rate and tries no other.
    second = found(1, rates=(1e30,))
    assert second["lr"] == 3e-3 and second["nll"] != best["nll"]
    nothing = {"config": config, "rates": (1e30,), "folder": tmp_path / "x/0"}
    assert measured("best_rate", **nothing) == {"error": "diverged at every rate"}


@pytest.mark.slow
def test_longer_rows_and_streams(tmp_path):
    from configs.studies.common import decoder

    text = decoder(dim=16, depth=1, num_heads=1, mlp_hidden=16)
    text.data.text.length = 16
    run = untrained_run(text, tmp_path / "text")
    found = measured("longer_rows", folder=run, factor=2)
    # Nothing was learned: a byte costs 8 bits, whatever the length.
    assert abs(found["long"] - math.log2(257)) < 0.5
    assert abs(found["loss_of_length"]) < 0.1
    images = untrained_run(tiny_config("norm=batch_norm"), tmp_path / "images")
    for method in ("source", "batch_stats"):
        found = measured(
            "adapted",
            folder=images,
            method=method,
            order="correlated",
            corruption="gaussian_noise",
        )
        assert 0 <= found["adapted"] <= 1


@pytest.mark.slow
def test_times_are_ratios():
    # Nothing is said of how fast: softmax beside itself is 1.
    assert measured("mixer_time", mixer="softmax", side=8)["ratio"] == 1
    found = measured("fold_time", norm="layer_norm", folded=False)
    assert found["ratio"] == 1


@pytest.mark.slow
def test_changes_behind_switches_of_tasks(tmp_path):
    """Twenty updates, the same every time; a part that is not there is refused."""
    given = {"optim__name": "sgd", "optim__weight_decay": 0.0, "total_steps": 20}
    config = tiny_config("norm=layer_norm,mixer=softmax", **given)
    found = measured("task_switch", folder=tmp_path, config=config, part="head")
    assert 0.1 < found["switch"] < 10
    again = measured("task_switch", folder=tmp_path, config=config, part="head")
    assert again == found
    with pytest.raises(UserError, match="unknown part 'heads'"):
        measured("task_switch", config=config, part="heads")
