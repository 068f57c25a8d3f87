"""Hidden tokens: how many, by what, which count, and what they cost."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from normjax.config.recipes import load_config
from normjax.core.errors import UserError
from normjax.tasks import MaskedLanguageModeling, MaskedToken

VOCABULARY, ROWS, LENGTH = 50, 64, 256


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    weights = (np.arange(LENGTH) < rng.integers(200, LENGTH, (ROWS, 1))).astype("f4")
    tokens = rng.integers(0, VOCABULARY, (ROWS, LENGTH))
    batch = {"targets": tokens, "weights": weights, "mask": weights > 0}
    return jax.tree.map(jnp.asarray, batch)


def objective(**changes):
    return MaskedToken(
        **{"vocab_size": VOCABULARY, "mask_token": VOCABULARY, **changes}
    )


def shares(hidden, batch, chosen):
    """Of the chosen: those that are hidden, changed and kept."""
    hidden, tokens = np.asarray(hidden)[chosen], np.asarray(batch["targets"])[chosen]
    mask, same = hidden == VOCABULARY, hidden == tokens
    return mask.mean(), (~mask & ~same).mean(), same.mean()


@pytest.mark.parametrize("training", [True, False])
def test_what_is_hidden(batch, training):
    if training:
        (hidden, known), targets = objective().examples(batch, jax.random.key(0))
        chosen = np.asarray(targets["weights"]) > 0
        assert np.mean(targets["weights"]) == pytest.approx(1, abs=1e-6)
    else:
        hidden, known = objective().inputs(batch)
        chosen = np.asarray(objective().answers(jnp.zeros(()), batch)[1])
    counted = np.asarray(batch["weights"]) > 0
    assert known == {} and not chosen[~counted].any()
    n = counted.sum()
    assert abs(chosen.sum() - 0.15 * n) < 5 * np.sqrt(0.15 * 0.85 * n)
    found = shares(hidden, batch, chosen)
    expected = (0.8, 0.1 * (1 - 1 / VOCABULARY), 0.1 * (1 + 1 / VOCABULARY))
    np.testing.assert_allclose(found, expected, atol=5 * (0.16 / chosen.sum()) ** 0.5)
    same = np.asarray(hidden) == np.asarray(batch["targets"])
    assert same[~chosen].all()


def test_training_draws_anew_and_evaluation_by_the_row(batch):
    drawn = [objective().examples(batch, jax.random.key(i))[0][0] for i in (0, 1)]
    assert (drawn[0] != drawn[1]).any()
    hidden, _ = objective().inputs(batch)
    some = jax.tree.map(lambda x: x[5:8], batch)
    np.testing.assert_array_equal(objective().inputs(some)[0], hidden[5:8])
    chosen = objective().answers(jnp.zeros(()), batch)[1]
    assert (np.asarray(chosen[:-1]) != np.asarray(chosen[1:])).any(1).all()
    assert objective(padded=True).inputs(batch)[1]["mask"] is batch["mask"]


def test_loss_and_scores(batch):
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(ROWS, LENGTH, VOCABULARY + 1))
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    targets = np.asarray(batch["targets"])
    own = np.take_along_axis(p, targets[..., None], -1)[..., 0]
    _, given = objective().examples(batch, jax.random.key(2))
    chosen = np.asarray(given["weights"]) > 0
    loss, scalars = objective().loss(jnp.asarray(logits, "float32"), given)
    np.testing.assert_allclose(loss, -np.log(own[chosen]).mean(), rtol=1e-5)
    right = logits.argmax(-1) == targets
    np.testing.assert_allclose(scalars["accuracy"], right[chosen].mean(), rtol=1e-5)

    chosen = np.asarray(objective().answers(jnp.zeros(()), batch)[1])
    sums = objective().sums(jnp.asarray(logits, "float32"), batch)
    assert (float(sums["count"]), float(sums["hits"])) == (
        chosen.sum(),
        right[chosen].sum(),
    )
    np.testing.assert_allclose(sums["nll"], -np.log(own[chosen]).sum(), rtol=1e-5)
    scores = MaskedLanguageModeling.summarize(None, sums, "test")
    expected = -np.log(own[chosen]).mean()
    np.testing.assert_allclose(scores["nll"], expected, rtol=1e-5)
    np.testing.assert_allclose(scores["perplexity"], np.exp(expected), rtol=1e-4)


def test_the_task(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("To be, or not to be.\n\n" * 300)
    config = load_config(f"masked_text:path={text}")
    task = MaskedLanguageModeling(config)
    assert task.model_arguments() == {"vocab_size": 258}
    assert (task.objective.mask_token, task.objective.vocab_size) == (257, 257)
    config.mask_token = 0
    task = MaskedLanguageModeling(config)
    assert task.model_arguments() == {"vocab_size": 257}
    assert task.objective.mask_token == 0
    with pytest.raises(UserError, match="unknown variant 'm2_bert_80'"):
        load_config("masked_text:variant=m2_bert_80")
