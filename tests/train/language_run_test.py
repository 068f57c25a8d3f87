"""Runs of language models: layouts, resuming, folding, what a run leaves."""

import math

import chex
import jax
import numpy as np
import pytest

from configs import lm_bytes
from normjax.evaluation.run import evaluate_run
from normjax.records.report import read_metrics
from normjax.tasks.scores import make_eval_step
from normjax.train.experiment import build_experiment
from normjax.train.loop import train
from tests.train.loop_test import state_of

pytestmark = pytest.mark.usefixtures("compiled_once")
DOCUMENTS = {"train": (37, 5, 64, 90, 16, 3), "validation": (21, 40), "test": (33,)}


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """A folder with documents of repeated words, by split."""
    root, rng = tmp_path_factory.mktemp("texts"), np.random.default_rng(0)
    for split, lengths in DOCUMENTS.items():
        for i, length in enumerate(lengths):
            words = b" ".join(rng.choice([b"one", b"two", b"six"], length))
            (root / f"{split}{i}.txt").write_bytes(words[:length])
    return root


def config_of(texts, arg="", **text):
    config = lm_bytes.get_config(f"runlocal,{arg}")
    config.batch_size, config.total_steps, config.log_every = 4, 6, 1
    config.eval_every = config.checkpoint.every = 3
    config.model.update(dim=16, depth=1, num_heads=2, mlp_hidden=24)
    config.data.update(name="text_file", data_dir=str(texts / "cache"))
    paths = {f"{s}_path": str(texts / f"{s}*.txt") for s in DOCUMENTS}
    config.data.text.update(length=16, **paths, **text)
    return config


@pytest.fixture(scope="module")
def undisturbed(texts, tmp_path_factory, compiled_once):
    """The workdir and scores of a run with BatchNorm."""
    workdir = tmp_path_factory.mktemp("run")
    return workdir, train(config_of(texts, "norm=repbn"), workdir)


def test_what_a_run_leaves(undisturbed, texts):
    workdir, scores = undisturbed
    names = {"nll", "perplexity", "bits_per_byte", "accuracy"}
    assert set(scores) == names | {f"test_{name}" for name in names}
    np.testing.assert_allclose(scores["perplexity"], math.exp(scores["nll"]), rtol=1e-6)
    tokens, size = 21 + 40 + 2, 21 + 40  # an end after each document
    bits = scores["nll"] * tokens / size / math.log(2)
    np.testing.assert_allclose(scores["bits_per_byte"], bits, rtol=1e-6)
    last = read_metrics(workdir)[-1]
    assert last["step"] == 6 and last["test_nll"] == scores["test_nll"]
    rates = [r["tokens_per_second"] for r in read_metrics(workdir) if "loss" in r]
    assert len(rates) == 6 and min(rates) > 0


@pytest.mark.slow
def test_a_stopped_run_goes_on_bit_for_bit(undisturbed, texts, tmp_path, monkeypatch):
    from normjax.train import loop

    config, advance = config_of(texts, "norm=repbn"), loop.Run.advance

    def stop_after_four(run, log, interrupt, until):
        advance(run, log, interrupt, 4)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Run, "advance", stop_after_four)
        assert train(config, tmp_path) is None
    assert train(config, tmp_path) == undisturbed[1]
    chex.assert_trees_all_equal(state_of(tmp_path), state_of(undisturbed[0]))


def test_folded(undisturbed, capsys):
    scores = evaluate_run(undisturbed[0], split="test", fold=True)
    np.testing.assert_allclose(
        scores["folded"]["nll"], scores["unfolded"]["nll"], rtol=1e-5
    )
    assert scores["unfolded"]["nll"] == undisturbed[1]["test_nll"]
    assert "equal predictions 34 of 34" in capsys.readouterr().out


SLOW = pytest.mark.slow


@pytest.mark.parametrize("norm", [pytest.param("rms_norm", marks=SLOW), "repbn"])
def test_padded_and_packed_rows_give_the_same_loss(texts, tmp_path, norm):
    """Of documents that no packed row cuts: with their ends 32, 16, 48, 96 tokens."""
    text = (texts / "train3.txt").read_bytes() * 2
    for i, length in enumerate((31, 15, 47, 95)):
        (tmp_path / f"{i}.txt").write_bytes(text[i : i + length])
    scores = {}
    for layout in ("packed", "padded"):
        config = config_of(texts, f"norm={norm}", layout=layout)
        config.data.text.update(length=96, train_path=str(tmp_path / "*.txt"))
        experiment = build_experiment(config)
        state = experiment.create_state()
        objective = experiment.task.objective
        step = jax.jit(make_eval_step(experiment.model.apply, objective))
        scores[layout] = experiment.evaluate(step, state.eval_variables(), "train")
    chex.assert_trees_all_close(scores["packed"], scores["padded"], rtol=1e-6)
    assert scores["packed"]["nll"] > 1
