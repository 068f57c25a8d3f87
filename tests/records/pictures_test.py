"""Pictures of what a classifier answers: which cell is dark, what is red."""

import numpy as np
import pytest

from normjax.records import pictures

confusion, guesses = pictures.confusion, pictures.guesses  # before they are blank
NAMES = ["cat", "$x^2$", "猫"]


@pytest.mark.parametrize(("label", "answer"), [(0, 2), (2, 0)])
def test_rows_are_classes_and_columns_answers(label, answer):
    picture = confusion(np.full(9, label), np.full(9, answer), NAMES).astype(int)
    height, width, _ = picture.shape
    cells = picture[: height * 4 // 5, : width * 3 // 4]  # without the colors' bar
    dark = np.abs(cells - (8, 48, 107)).sum(-1) < 9
    y, x = np.argwhere(dark).mean(0) / dark.shape
    assert dark.sum() > 1000
    assert (y > 0.5, x > 0.5) == (label > 1, answer > 1)


def test_what_is_wrong_is_red_and_says_what_is_true():
    images = np.zeros((1, 4, 4, 1), np.uint8)

    def colors(truth):
        picture = guesses(images, [truth], ["$x^2$"], [0.25]).astype(int)
        red, green, blue = picture[..., 0], picture[..., 1], picture[..., 2]
        return (red > green + 60).any(), (green > np.maximum(red, blue) + 20).any()

    assert colors("$x^2$") == (False, True)
    assert colors("猫") == (True, False)
