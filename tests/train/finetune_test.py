"""Fine-tuning is worth it: half of the classes, larger images, in color."""

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from normjax.train.loop import train
from tests.train.tiny import tiny_config

NET = "norm=prepbn,mixer=sla"
SMALL = {
    "batch_size": 64,
    "log_every": 50,
    "eval_every": 1000,
    "checkpoint__every": 1000,
    "recalibrate_batches": 10,
    "model__dim": 32,
    "model__depth": 2,
    "model__mlp_ratio": 2.0,
}


def write_half(folder):
    """Digits 0 to 4 in blue, 16 x 16 pixels: 20 of each to train on, others to test."""
    digits = load_digits()
    for label in range(5):
        found = digits.images[digits.target == label]
        for split, chosen in (("train", found[:20]), ("test", found[20:80])):
            (folder / split / str(label)).mkdir(parents=True)
            for i, plane in enumerate(chosen):
                gray = Image.fromarray((plane * 15).astype(np.uint8)).resize((16, 16))
                pixels = np.stack([np.asarray(gray) * w for w in (0.2, 0.5, 1.0)], -1)
                image = Image.fromarray(pixels.astype(np.uint8))
                image.save(folder / split / str(label) / f"{i}.png")


@pytest.mark.slow
def test_better_than_from_scratch(tmp_path):
    write_half(tmp_path / "half")
    old = tiny_config(NET, seed=0, total_steps=400, **SMALL)
    train(old, tmp_path / "old")
    half = {"name": "image_folder", "path": str(tmp_path / "half")}
    half |= {"mean": (0.3,) * 3, "std": (0.3,) * 3}
    scores = {}
    for name, path in (("scratch", ""), ("tuned", tmp_path / "old")):
        config = tiny_config(NET, seed=10, total_steps=40, **SMALL)
        config.data.update(half)
        config.init.path = str(path)
        scores[name] = train(config, tmp_path / name)
    print({k: (round(v["top1"], 4), round(v["nll"], 3)) for k, v in scores.items()})
    assert scores["tuned"]["top1"] > scores["scratch"]["top1"] + 0.02
    assert scores["tuned"]["nll"] < scores["scratch"]["nll"]
