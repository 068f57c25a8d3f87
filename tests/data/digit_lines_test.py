"""Lines of digits: every digit is a scan of its split, and the string says which."""

import numpy as np
import pytest

from normjax.core.errors import UserError
from normjax.data import augment, eval_batches, open_images, open_lines, train_batches

LENGTH, COUNT = 4, 24


def read(image, scans):
    """The digits of a line, by looking for each scan from the left."""
    digits, x = [], 0
    while True:
        found = [
            (x + gap, scans[key])
            for gap in range(9)
            for y in range(17)
            if (key := image[y : y + 16 : 2, x + gap : x + gap + 16 : 2].tobytes())
            in scans
        ]
        if not found:
            return digits
        start, digit = found[0]
        digits.append(digit)
        x = start + 16


@pytest.mark.parametrize("split", ["train", "test"])
def test_lines_are_what_they_say(split):
    source, scanned = (
        open_lines("digit_lines", split, LENGTH),
        open_images("digits", split),
    )
    images, labels = scanned.gather(np.arange(len(scanned)))
    scans = {
        image[..., 0].tobytes(): int(label)
        for image, label in zip(images, labels, strict=True)
    }
    batch = source.load(np.arange(COUNT), np.empty((COUNT, 0)))
    assert batch["image"].shape == (COUNT, 32, 24 * LENGTH, 1)
    lengths = set()
    for image, tokens in zip(batch["image"], batch["tokens"], strict=True):
        n = int((tokens > 0).sum())
        lengths.add(n)
        assert (tokens[:n] > 0).all()
        assert read(image[..., 0], scans) == [token - 1 for token in tokens[:n]]
    assert lengths == set(range(1, LENGTH + 1))
    assert set(batch["tokens"].ravel()) == set(range(11))


def test_batches():
    source = open_lines("digit_lines", "test", 2)
    batch = next(train_batches(source, batch_size=3, seed=0))
    again = next(train_batches(source, batch_size=3, seed=0))
    assert all((rows == again[name]).all() for name, rows in batch.items())
    *_, last = eval_batches(source, batch_size=300)
    assert (last["tokens"].any(1) == (np.arange(300) < 100)).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("digit_line", "train"), "unknown set of lines 'digit_line'; did you mean"),
        (("digit_lines", "validation"), "split of 'digit_lines': 'validation'"),
        (("digit_lines", "test", 0), "data.length=0 must be at least 1"),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(UserError) as caught:
        open_lines(*arguments)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_they_are_not_augmented():
    transform = augment.build({"flip": True}, train=True)
    with pytest.raises(UserError, match="'digit_lines' is lines of text"):
        train_batches(
            open_lines("digit_lines", "test"), batch_size=2, seed=0, augment=transform
        )
