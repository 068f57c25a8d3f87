"""Retrieval against loops in NumPy, over a split and with the pairs of a bank."""

import jax
import numpy as np
import pytest

from configs import digit_pairs
from normjax.core.errors import UserError
from normjax.tasks import ContrastivePairs, PairContrast, dual_bank, ranks
from normjax.tasks.scores import Gathered, evaluate
from normjax.train.experiment import build_experiment
from normjax.train.growth import check_growth
from normjax.train.programs import jit_train_step

RNG = np.random.default_rng(0)


def recall_by_hand(s, texts, depth):
    """An item is right that has the text of the query; ties are lost."""
    hits = 0
    for i, row in enumerate(s):
        right = [j for j, text in enumerate(texts) if text == texts[i]]
        best = max(row[j] for j in right)
        hits += sum(row[j] >= best for j in range(len(row)) if j not in right) < depth
    return hits / len(s)


def banked_by_hand(s, queries, items):
    """DualDIS in float64."""
    found = np.ones_like(s)
    for bank, beta in ((queries, 1 / 1.99), (items, 3.0)):
        hubs = set(bank.argmax(1))
        made = np.exp(beta * s)
        for i, row in enumerate(s):
            if row.argmax() in hubs:
                made[i] = np.exp(beta * row) / np.exp(beta * bank).sum(0)
        found *= made
    return found


def unit(rows, dim=8):
    x = RNG.normal(size=(rows, dim))
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def test_ranks_and_banks():
    s, queries, items = (unit(n) @ unit(12).T for n in (12, 20, 20))
    texts = RNG.integers(0, 9, 12)
    rank = np.asarray(ranks(s, texts[:, None] == texts[None]))
    for depth in (1, 5):
        assert np.mean(rank <= depth) == recall_by_hand(s, texts, depth)
    expected = banked_by_hand(s, queries, items)
    np.testing.assert_allclose(dual_bank(s, queries, items), expected, rtol=1e-5)


def test_one_point_for_all_finds_nothing():
    assert (np.asarray(ranks(np.ones((3, 3)), np.eye(3, dtype=bool))) == 3).all()


def config_of(**data):
    config = digit_pairs.get_config("length=2,runlocal")
    config.batch_size = 8
    config.data.update(data)
    size = {"dim": 8, "depth": 1, "num_heads": 1}
    config.model.image_tower.update(size)
    config.model.text_tower.update(size)
    return config


def test_scores_are_of_the_split_and_the_bank_comes_behind():
    """Rows that fill a batch up count nowhere."""
    task = ContrastivePairs(config_of(bank=20))
    size, bank = len(task.source("test")), 24  # whole batches
    real = np.r_[np.ones(size, bool), np.zeros(3, bool), np.ones(bank, bool)]
    texts = RNG.integers(0, 400, len(real)) + 1
    a, b = unit(len(real)), unit(len(real))
    b[: size // 2] += 2 * a[: size // 2]
    sums = {"image": a, "text": b, "tokens": texts[:, None], "counted": real}
    scores = task.summarize(sums, "test")
    own, other = slice(size), slice(size + 3, None)
    for way, x, y in (("text_of_image", a, b), ("image_of_text", b, a)):
        s = x[own] @ y[own].T
        found = {"": s}
        banks = x[other] @ y[own].T, y[other] @ y[own].T
        found["_banks"] = banked_by_hand(s, *banks)
        for suffix, similarities in found.items():
            expected = recall_by_hand(similarities, texts[own], 5)
            assert scores[f"{way}_5{suffix}"] == pytest.approx(expected, abs=2e-3)
    assert task.rank(scores) == scores["text_of_image_1"] + scores["image_of_text_1"]


def test_rows_are_gathered_in_order_where_others_are_sums():
    def step(variables, batch):
        return {"rows": Gathered(batch), "sum": batch.sum()}

    found = evaluate(step, None, [np.arange(3), np.arange(3, 5)])
    np.testing.assert_array_equal(found["rows"], np.arange(5))
    assert found["sum"] == 10


def test_batches_of_evaluation_are_the_split_and_whole_batches_of_the_bank():
    config = config_of(bank=9, bank_split="test", eval_split="test")
    batches = list(ContrastivePairs(config).eval_batches("test", batch_size=512))
    assert [int(PairContrast().rows(b).sum()) for b in batches] == [512, 488, 512]
    np.testing.assert_array_equal(batches[2]["tokens"], batches[0]["tokens"])
    without = ContrastivePairs(config_of(bank=0))
    assert len(list(without.eval_batches("test", batch_size=500))) == 2
    nothing = {"image": unit(1000), "text": unit(1000), "counted": np.ones(1000, bool)}
    scores = without.summarize({**nothing, "tokens": np.arange(1000)[:, None]}, "test")
    assert not any("banks" in name for name in scores)


def test_batches_that_grow_are_refused_for_rows_that_meet():
    config = config_of(bank=0)
    config.batch_growth.update(test="norm", largest=64)
    with pytest.raises(UserError, match="compares the rows of a batch"):
        check_growth(build_experiment(config))


@pytest.mark.slow
def test_a_whole_update_is_the_same_in_parts():
    """Of the towers of the config, over four devices; loss of the first batch."""
    found = []
    for microbatches in (1, 4):
        config = config_of(bank=0)
        config.batch_size, config.microbatches = 16, microbatches
        experiment = build_experiment(config)
        state, batches = experiment.create_state(), experiment.train_batches()
        batch = next(batches)
        batches.close()
        variables = jax.device_get({"params": state.params})
        _, metrics = jit_train_step(experiment)(state, batch)
        found.append(metrics)
    x, known = PairContrast().inputs(jax.device_get(batch))
    out = experiment.model.apply(variables, x, **known)
    s = np.asarray(out["image"] @ out["text"].T, np.float64) / 0.07
    rows, columns = np.log(np.exp(s).sum(1)), np.log(np.exp(s).sum(0))
    loss = np.mean((rows + columns) / 2 - np.diag(s))
    for metrics in found:
        assert float(metrics["loss"]) == pytest.approx(loss, rel=1e-5)
    norms = [float(metrics["grad_norm"]) for metrics in found]
    assert norms[0] == pytest.approx(norms[1], rel=1e-5)
