"""Metrics against a NumPy oracle that walks over the examples."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from normjax.core.errors import UserError
from normjax.tasks import TASKS, Classification
from normjax.tasks.classification import metric_sums, summarize
from normjax.tasks.scores import evaluate, make_noted_step
from tests.train.tiny import tiny_config

BINS = 15


def oracle(logits, labels, mask):
    """top1, top5, nll and ece, example by example in float64."""
    logits = np.asarray(logits, np.float64)
    hits, hits5, nll, confidence = [], [], [], []
    for row, label, real in zip(logits, labels, mask, strict=True):
        if not real:
            continue
        p = np.exp(row - row.max())
        p /= p.sum()
        others = np.delete(row, label)
        hits.append(bool((row[label] > others).all()))
        hits5.append(int((others >= row[label]).sum()) < 5)
        nll.append(-np.log(p[label]))
        confidence.append(p.max())
    ece, confidence, hits = 0.0, np.array(confidence), np.array(hits)
    for b in range(BINS):
        inside = (confidence > b / BINS) & (confidence <= (b + 1) / BINS)
        if inside.any():
            gap = abs(hits[inside].mean() - confidence[inside].mean())
            ece += inside.mean() * gap
    return {
        "top1": hits.mean(),
        "top5": np.mean(hits5),
        "nll": np.mean(nll),
        "ece": ece,
    }


def sample(rows=64, classes=10, scale=3.0, seed=0):
    rng = np.random.default_rng(seed)
    logits = (scale * rng.normal(size=(rows, classes))).astype(np.float32)
    return logits, rng.integers(0, classes, rows), rng.random(rows) < 0.7


@pytest.mark.parametrize("scale", [0.1, 1.0, 3.0, 20.0])
@pytest.mark.parametrize("classes", [3, 10])
def test_metrics(scale, classes):
    logits, labels, mask = sample(scale=scale, classes=classes)
    ours = summarize(metric_sums(*map(jnp.asarray, (logits, labels, mask))))
    theirs = oracle(logits, labels, mask)
    assert set(ours) == set(theirs)
    for name, value in theirs.items():
        np.testing.assert_allclose(ours[name], value, rtol=1e-5, err_msg=name)


def test_ties_count_against_the_model():
    logits, labels = jnp.zeros((4, 10)), jnp.arange(4)
    scores = summarize(metric_sums(logits, labels, jnp.ones(4, bool)))
    assert scores["top1"] == scores["top5"] == 0.0
    np.testing.assert_allclose(scores["nll"], np.log(10), rtol=1e-6)
    np.testing.assert_allclose(scores["ece"], 0.1, rtol=1e-6)


def test_fewer_than_six_classes_are_all_in_the_top_five():
    logits, labels, mask = sample(classes=5)
    sums = metric_sums(*map(jnp.asarray, (logits, labels, mask)))
    assert summarize(sums)["top5"] == 1.0


def test_certain_and_right():
    logits = jnp.eye(4) * 1e4
    scores = summarize(metric_sums(logits, jnp.arange(4), jnp.ones(4, bool)))
    assert scores == {"top1": 1.0, "top5": 1.0, "nll": 0.0, "ece": 0.0}


def test_masked_rows_may_hold_anything():
    logits, labels, mask = sample()
    clean = metric_sums(*map(jnp.asarray, (logits, labels, mask)))
    spoiled = np.where(mask[:, None], logits, 1e6).astype(np.float32)
    dirty = metric_sums(*map(jnp.asarray, (spoiled, labels * mask, mask)))
    for name, value in clean.items():
        np.testing.assert_array_equal(dirty[name], value)


def test_all_masked_batch_adds_nothing():
    logits, labels, _ = sample()
    sums = metric_sums(jnp.asarray(logits), jnp.asarray(labels), jnp.zeros(64, bool))
    for value in sums.values():
        np.testing.assert_array_equal(value, np.zeros(value.shape))


def test_evaluate_sums_over_batches_of_normalised_pixels():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (20, 1, 2, 3), dtype=np.uint8)
    labels = rng.integers(0, 6, 20)
    mask = np.arange(20) < 17

    def apply(variables, images, train):
        assert not train
        return variables["scale"] * images.reshape(-1, 6)

    mean, std = (0.1, 0.2, 0.3), (0.3, 0.2, 0.1)
    step = jax.jit(make_noted_step(apply, Classification(6, mean, std)))
    batches = [
        {
            "image": images[i : i + 5],
            "label": labels[i : i + 5],
            "mask": mask[i : i + 5],
        }
        for i in range(0, 20, 5)
    ]
    rows = []
    variables = {"scale": jnp.float32(2.0)}
    scores = summarize(evaluate(step, variables, batches, note=rows.append))
    logits = 2 * ((images / 255 - np.array(mean)) / np.array(std)).reshape(20, 6)
    for name, value in oracle(logits, labels, mask).items():
        np.testing.assert_allclose(scores[name], value, rtol=1e-5, err_msg=name)
    found = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
    np.testing.assert_array_equal(found["label"], labels)
    np.testing.assert_array_equal(found["counted"], mask)
    np.testing.assert_array_equal(found["answer"], logits.argmax(-1))
    sure = 1 / np.exp(logits - logits.max(-1, keepdims=True)).sum(-1)
    np.testing.assert_allclose(found["probability"], sure, rtol=1e-5)


def test_bfloat16_logits_are_judged_in_float32():
    logits, labels, mask = sample()
    logits = jnp.asarray(logits, jnp.bfloat16)
    ours = summarize(metric_sums(logits, jnp.asarray(labels), jnp.asarray(mask)))
    theirs = oracle(logits.astype(jnp.float32), labels, mask)
    np.testing.assert_allclose(ours["nll"], theirs["nll"], rtol=1e-5)


def test_logits_that_are_not_numbers_are_no_prediction():
    logits = jnp.full((4, 10), jnp.nan).at[:2].set(jnp.eye(2, 10))
    labels, mask = jnp.asarray([0, 1, 2, 3]), jnp.ones(4, bool)
    scores = summarize(metric_sums(logits, labels, mask))
    assert (scores["top1"], scores["top5"]) == (0.5, 0.5)


def test_erasing_comes_before_mixing_and_off_changes_no_stream():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (8, 16, 16, 3), dtype=np.uint8)
    batch = {"image": jnp.asarray(image), "label": jnp.arange(8) % 3}
    plain = Classification(3, (0.5,), (0.25,))

    @functools.partial(jax.jit, static_argnums=0)
    def examples(objective, batch):
        return objective.examples(batch, jax.random.key(0))

    (known, _), _ = examples(plain, batch)
    (erased, _), targets = examples(plain._replace(erase_probability=1.0), batch)
    changed = np.asarray(erased != known).all(-1)
    assert changed.any((1, 2)).all() and not changed.all((1, 2)).any()
    np.testing.assert_array_equal(targets, np.eye(3)[np.arange(8) % 3])
    mixed = plain._replace(mixup_alpha=1.0, erase_probability=1.0)
    (both, _), _ = examples(mixed, batch)
    partners = np.asarray(erased).reshape(4, 2, -1)[:, ::-1].reshape(erased.shape)
    difference = np.asarray(erased) - partners
    lam = np.sum((both - partners) * difference) / np.sum(difference**2)
    np.testing.assert_allclose(both, partners + lam * difference, atol=1e-4)


def test_an_evaluation_without_a_split_is_refused():
    config = tiny_config(data__eval_split="")
    with pytest.raises(UserError, match=r"config\.data\.eval_split is empty"):
        TASKS[config.task].make(config)
