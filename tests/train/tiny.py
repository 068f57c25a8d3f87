"""What the tests train: the digits config, shrunk, and bare models for the step."""

import functools
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from configs import digits
from normjax.records.checkpoint import Checkpoints
from normjax.train.config import keep_config
from normjax.train.experiment import build_experiment
from normjax.train.state import TrainState, state_of


def progressive_config(**changes) -> ml_collections.ConfigDict:
    """`tiny_config` with PRepBN, whose schedule a run has to keep."""
    return tiny_config("norm=prepbn", **changes)


def tiny_config(arg: str = "", **changes) -> ml_collections.ConfigDict:
    """ViT of width 16 and depth 1, six steps of 16 digits.

    Its norm has a state and folds, as that of the config itself, which takes four times
    as long to compile: its three phases are as many programs.

    Args:
      arg: of configs/digits.py.
      **changes: dotted fields with "__" for the dot, as in optim__lr=0.1.
    """
    choice = {"norm": "repbn", "mixer": "softmax"}
    choice |= dict(part.split("=") for part in arg.split(",") if part)
    config = digits.get_config(",".join(f"{k}={v}" for k, v in choice.items()))
    config.batch_size, config.total_steps = 16, 6
    config.model.update(dim=16, depth=1, num_heads=2, mlp_ratio=1.0)
    config.log_every = 1
    config.eval_every = config.checkpoint.every = 3
    for name, value in changes.items():
        *sections, field = name.split("__")
        node = config
        for section in sections:
            node = node[section]
        node[field] = value
    return config


def untrained_run(config: ml_collections.ConfigDict, workdir: Path) -> Path:
    """`workdir` as a run leaves it that stopped before its first step."""
    keep_config(config, workdir)
    checkpoints = Checkpoints(workdir)
    checkpoints.save(build_experiment(config).create_state())
    checkpoints.close()
    return workdir


class Linear(nn.Module):
    """A linear classifier of the pixels: logits = x W + b."""

    num_classes: int = 4

    @nn.compact
    def __call__(self, images, train=False):
        x = images.reshape(images.shape[0], -1)
        return nn.Dense(self.num_classes, name="head")(x)


@functools.cache
def _initializer(model):
    return jax.jit(functools.partial(model.init, train=False))


def toy_state(model, optimizer, shape=(2, 2, 1), ema=False, seed=0) -> TrainState:
    """The state of `model` before the first step."""
    key = jax.random.key(seed)
    variables = _initializer(model)(key, jnp.zeros((1, *shape)))
    return state_of(variables, optimizer, jax.random.key(seed + 1), use_ema=ema)


def toy_batch(rows=8, shape=(2, 2, 1), num_classes=4, seed=0):
    """{"image": uint8 [B, H, W, C], "label": int32 [B]}."""
    rng = np.random.default_rng(seed)
    return {
        "image": rng.integers(0, 256, (rows, *shape), dtype=np.uint8),
        "label": rng.integers(0, num_classes, rows).astype(np.int32),
    }
