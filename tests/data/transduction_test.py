"""Pairs of strings: their rule, splits that never meet, rows, order."""

import itertools
import pickle
import string

import numpy as np
import pytest

from normjax.core.errors import UserError
from normjax.data import augment, eval_batches, open_transduction, train_batches

LENGTH, END = 9, 52
SPLITS = ("train", "validation", "test")


def opened(split="train", length=LENGTH):
    return open_transduction("reversed_case", split, length)


def text(tokens):
    return "".join((string.ascii_lowercase + string.ascii_uppercase)[t] for t in tokens)


def rows_of(source, count=300):
    return source.load(np.arange(count), np.empty((count, 0)))


@pytest.mark.parametrize("split", SPLITS)
def test_rows_say_what_a_pair_is(split):
    """Source, END; END, target; target, END, in both cases of every letter."""
    source = opened(split)
    batch, lengths = rows_of(source), set()
    for i in range(300):
        n = list(batch["source"][i]).index(END)
        lengths.add(n)
        read, behind = text(batch["source"][i, :n]), slice(n + 1, None)
        written = "".join(
            c.lower() if c.isupper() else c.upper() for c in reversed(read)
        )
        assert (batch["tokens"][i, 0], batch["targets"][i, n]) == (END, END)
        assert text(batch["tokens"][i, 1 : n + 1]) == written
        assert text(batch["targets"][i, :n]) == written
        assert source.pair(i) == (read, written)
        assert all(not rows[i, behind].any() for rows in batch.values())
        for name in ("source_mask", "mask", "weights"):
            assert batch[name][i, : n + 1].all() and batch[name][i].sum() == n + 1
    assert lengths == set(range(4, LENGTH + 1))
    assert source.vocab_size == END + 1


def test_the_known_first_pairs():
    """On any machine, with any version of NumPy."""
    first = {split: opened(split).pair(0)[0] for split in SPLITS}
    assert first == {"train": "gGFcFa", "validation": "EMxuT", "test": "KUHFULYXl"}


def test_no_source_of_one_split_is_of_another():
    """By the sum of letters, which tells the split of each."""
    sums = {}
    for split in SPLITS:
        batch = rows_of(opened(split))
        letters = np.where(batch["source"] < END, batch["source"], 0)
        sums[split] = set(letters.sum(1) % 26)
    assert sums == {"validation": {0}, "test": {1}, "train": set(range(2, 26))}


def test_lengths_and_letters_are_equally_probable():
    batch = rows_of(opened(), 8000)
    lengths = batch["source_mask"].sum(1) - 1
    counts = np.bincount(lengths, minlength=LENGTH + 1)[4:]
    assert (abs(counts - 8000 / 6) < 5 * np.sqrt(8000 / 6)).all()
    for place in range(4):
        counts = np.bincount(batch["source"][:, place], minlength=END)
        assert counts.shape == (END,)
        assert (abs(counts - 8000 / END) < 5 * np.sqrt(8000 / END)).all()
    # The shortest are drawn from 7 million strings.
    assert len({tuple(row) for row in batch["source"]}) > 7990


def test_a_longer_limit_is_another_set_and_a_split_another_stream():
    first = [opened(length=n).pair(3)[0] for n in (9, 16)]
    assert first[0] != first[1]
    assert len({opened(split).pair(3)[0] for split in SPLITS}) == 3


def test_batches_resume_and_evaluation_is_one_pass():
    source = opened()
    whole = train_batches(source, batch_size=6, seed=1)
    expected = list(itertools.islice(whole, 5))[3:]
    rest = train_batches(source, batch_size=6, seed=1, start_step=3)
    halves = [
        train_batches(source, batch_size=6, seed=1, process_index=i, process_count=2)
        for i in (0, 1)
    ]
    for batch in expected:
        again = next(rest)
        assert all((again[name] == rows).all() for name, rows in batch.items())
    parts = [next(half) for half in halves]
    first = next(train_batches(source, batch_size=6, seed=1))
    for name, rows in first.items():
        np.testing.assert_array_equal(np.concatenate([p[name] for p in parts]), rows)
    held_out = pickle.loads(pickle.dumps(opened("test")))
    batches = list(eval_batches(held_out, batch_size=300))
    assert len(held_out) == 2000 and len(batches) == 7
    counted = np.concatenate([b["weights"].any(1) for b in batches])
    assert counted[:2000].all() and not counted[2000:].any()
    assert (
        not batches[-1]["mask"][-1].any() and not batches[-1]["source_mask"][-1].any()
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("reversed_cas", "train"), "unknown set of pairs 'reversed_cas'; did you"),
        (("reversed_case", "trian"), "split of 'reversed_case': 'trian'; did you mean"),
        (("reversed_case", "train", 3), "data.length=3 must be at least 4"),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(UserError) as caught:
        open_transduction(*arguments)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_images_are_augmented_and_pairs_are_not():
    transform = augment.build({"flip": True}, train=True)
    with pytest.raises(UserError, match="'reversed_case' is text"):
        train_batches(opened(), batch_size=2, seed=0, augment=transform)
