"""Reproducibility: two runs whose weights at the start differ in one bit.

    python -m normjax.study smooth_activations --workdir=runs/smooth_activations

A residual network on scanned digits without norms' noise in the data: the same batches
in the same order. *Disagreement*: test images on whose class the two runs differ, and
the mean |difference| of the largest probability.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from configs.studies.common import resnet
from normjax.study.claims import Claim

SOURCE = "SmeLU (Shamir et al., 2022)"
ACTIVATIONS = ("relu", "smelu", "gelu")


def get_study() -> dict[str, Any]:
    """The fields of `normjax.study.study.Study`."""
    relu, smelu, gelu = ((name, "ResNet") for name in ACTIVATIONS)
    return {
        "title": "digits: mean difference of the predictions of two runs",
        "rows": "activation",
        "metric": "difference",
        "percent": False,
        "runs": {(name, "ResNet"): _twice(name) for name in ACTIVATIONS},
        "claims": (
            Claim(
                "SmeLU's runs agree more than ReLU's.",
                SOURCE,
                "a third to a half less prediction difference",
                relu,
                smelu,
            ),
            Claim(
                "GELU's too.",
                SOURCE,
                "smooth activations all do",
                relu,
                gelu,
            ),
        ),
    }


def _twice(activation: str) -> Any:
    def measure(seed: int, folder: Path) -> Mapping[str, float]:
        import jax
        import jax.numpy as jnp
        import numpy as np

        from normjax.train.experiment import build_experiment
        from normjax.train.programs import jit_train_step

        config = resnet(steps=150, activation=activation)
        config.seed = seed
        experiment = build_experiment(config)
        step = jit_train_step(experiment, donate=False)
        answers = []
        for bit in range(2):
            state = experiment.create_state()
            if bit:
                leaves, structure = jax.tree.flatten(state.params)
                first = leaves[0]
                other = jnp.nextafter(first.ravel()[0], jnp.inf)
                leaves[0] = first.ravel().at[0].set(other).reshape(first.shape)
                state = state.replace(params=jax.tree.unflatten(structure, leaves))
            batches = experiment.train_batches()
            for _ in range(config.total_steps):
                state, _ = step(state, next(batches))
            variables = state.eval_variables()
            found = []
            for batch in experiment.eval_batches(config.data.eval_split):
                x, known = experiment.task.objective.inputs(batch)
                logits = experiment.model.apply(variables, x, **known)
                found.append(jax.nn.softmax(logits))
            answers.append(np.concatenate(found))
        gap = np.abs(answers[0] - answers[1]).sum(-1).mean() / 2
        differ = answers[0].argmax(-1) != answers[1].argmax(-1)
        return {"difference": float(gap), "disagreement": float(differ.mean())}

    return measure
