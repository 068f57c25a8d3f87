"""Pruning by hand, and runs that train a part of their parameters."""

import chex
import jax
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict

from configs import perp
from normjax import optim, reparam
from normjax.cli.main import run, train_command
from normjax.core.errors import UserError
from normjax.evaluation.run import evaluate_run
from normjax.prune import magnitude_pruned
from normjax.prune.__main__ import _prune, prune_command
from normjax.train.config import kept_config
from normjax.train.start import saved_variables
from tests.train.tiny import tiny_config, untrained_run

PARAMS = {
    "a": {"kernel": np.float32([[3.0, -0.2], [0.1, -4.0]]), "bias": np.zeros(2)},
    "norm": {"scale": np.float32([1e-3, 1e-3])},
    "b": {"kernel": np.float32([[[[-0.15]]], [[[5.0]]]])},
    "odd": {"kernel": np.float32([1e-9])},
}


def test_the_smallest_entries_of_each_kernel():
    pruned, zeros = magnitude_pruned(PARAMS, 0.5)
    np.testing.assert_array_equal(pruned["a"]["kernel"], [[3, 0], [0, -4]])
    np.testing.assert_array_equal(pruned["b"]["kernel"].ravel(), [0, 5])
    assert zeros == {"a/kernel": (2, 4), "b/kernel": (1, 2)}
    for path in (("a", "bias"), ("norm", "scale"), ("odd", "kernel")):
        assert flatten_dict(pruned)[path] is flatten_dict(PARAMS)[path]
    assert PARAMS["a"]["kernel"][0, 1] == np.float32(-0.2)
    assert pruned["a"]["kernel"].dtype == np.float32


@pytest.mark.parametrize(("sparsity", "zeros"), [(0, 0), (0.2, 1), (0.6, 3), (0.9, 6)])
def test_how_many(sparsity, zeros):
    pruned = magnitude_pruned(PARAMS, sparsity)
    assert sum(n for n, _ in pruned.zeros.values()) == zeros
    kernels = (pruned.params["a"]["kernel"], pruned.params["b"]["kernel"])
    assert sum((k == 0).sum() for k in kernels) == zeros


def test_equal_entries_are_pruned_to_the_number_too():
    params = {"a": {"kernel": np.ones((2, 5))}}
    assert (magnitude_pruned(params, 0.3).params["a"]["kernel"] == 0).sum() == 3


@pytest.mark.parametrize("sparsity", [1.0, -0.1])
def test_refused_sparsities(sparsity):
    with pytest.raises(UserError, match=r"must lie in \[0, 1\)"):
        magnitude_pruned(PARAMS, sparsity)


def test_a_model_without_kernels():
    with pytest.raises(UserError, match="no kernels"):
        magnitude_pruned({"norm": {"scale": np.ones(2)}}, 0.5)


def test_zeros_of_kernels_stay():
    """AdamW with decay: other weights go the same way as without."""
    rng = np.random.default_rng(0)
    params = {"fc": {"kernel": rng.normal(size=(3, 4)), "bias": np.zeros(4)}}
    params["cls_token"] = np.zeros((1, 1, 4))  # no kernel, and begins at 0
    params = magnitude_pruned(params, 0.5).params
    zero = params["fc"]["kernel"] == 0
    found = []
    for transformations in ((), ("keep_zeros",)):
        config = {"transformations": transformations, "clip_norm": 0.0}
        optimizer = optim.build({"lr": 0.1, "warmup_fraction": 0.0, **config}, 10)
        own, state = params, optimizer.init(params)
        for seed in range(3):
            draw = np.random.default_rng(seed).normal
            grads = jax.tree.map(lambda x: draw(size=x.shape), params)  # noqa: B023
            updates, state = optimizer.update(grads, state, own)
            own = optax.apply_updates(own, updates)
        found.append(own)
    plain, kept = found
    assert zero.sum() == 6 and np.all(np.asarray(kept["fc"]["kernel"])[zero] == 0)
    assert np.all(np.asarray(plain["fc"]["kernel"])[zero] != 0)
    kept["fc"]["kernel"] = np.where(zero, plain["fc"]["kernel"], kept["fc"]["kernel"])
    chex.assert_trees_all_equal(kept, plain)


def test_adapters_of_a_pruned_run_are_new(tmp_path):
    """They begin as none, and leave zeros zeros whatever they are."""
    from normjax.train.experiment import build_experiment

    plain = "norm=layer_norm,mixer=softmax"
    dense = untrained_run(tiny_config(plain), tmp_path / "dense")
    config = perp.get_config(f"train=adapters,{plain}")
    config.model.update(tiny_config(plain).model)
    _prune(dense, config, 0.5, tmp_path / "sparse")
    start = saved_variables(tmp_path / "sparse")
    fc1 = start["params"]["blocks_0"]["mlp"]["fc1"]
    zero = np.asarray(fc1["kernel"]) == 0
    assert zero.mean() == 0.5 and not np.any(fc1["lora_b"]) and np.any(fc1["lora_a"])
    rules = build_experiment(config).model.rules
    for value in (0.0, 1.0):
        fc1["lora_b"] = np.full_like(fc1["lora_b"], value)
        kernel = reparam.effective(rules, start, train=False)
        made = np.asarray(kernel.params["blocks_0"]["mlp"]["fc1"]["kernel"])
        assert np.all(made[zero] == 0)
        same = np.array_equal(made, fc1["kernel"])
        assert same == (value == 0.0)


NARROW = "--config.model.widths=(8, 16)"
SMALL = [
    "--config.model.depths=(1, 1)",
    "--config.batch_size=64",
    "--config.recalibrate_batches=0",
    "--config.eval_every=1000",
    "--config.checkpoint.every=1000",
]


def trained(config, workdir, steps, *more):
    """Scores of a run, which must end."""
    argv = ["train.py", f"--config={config}", f"--workdir={workdir}", *SMALL, *more]
    assert run(train_command, [*argv, f"--config.total_steps={steps}"]) == 0
    return evaluate_run(workdir)["unfolded"]


def changes(before, after):
    """Paths of parameters that changed, and of those that are bitwise the same."""
    old, new = (flatten_dict(dict(v["params"]), sep="/") for v in (before, after))
    assert old.keys() == new.keys()
    same = {k for k in old if np.array_equal(np.asarray(old[k]), np.asarray(new[k]))}
    return old.keys() - same, same


@pytest.mark.slow
def test_retraining_norms_and_biases_after_pruning(tmp_path, capfd):
    arguments, steps = "model=resnet,norm=batch_norm", 120
    dense, sparse = tmp_path / "dense", tmp_path / "sparse"
    full = trained(f"configs/digits.py:{arguments}", dense, steps, NARROW)
    config = f"configs/perp.py:{arguments}"
    argv = ["prune", f"--workdir={dense}", f"--config={config}", *SMALL, NARROW]
    argv += [f"--config.total_steps={steps}", "--sparsity=0.8", str(sparse)]
    assert run(prune_command, argv) == 0
    pruned, start = evaluate_run(sparse)["unfolded"], saved_variables(sparse)
    kernels = [
        np.asarray(x).ravel()
        for path, x in jax.tree_util.tree_leaves_with_path(start["params"])
        if path[-1].key == "kernel"
    ]
    assert abs((np.concatenate(kernels) == 0).mean() - 0.8) < 1e-3
    retrained = trained(config, sparse, steps, NARROW)
    changed, same = changes(start, saved_variables(sparse))
    assert changed and all("norm" in path or "bias" in path for path in changed)
    assert same == {path for path in same if path.endswith("kernel")}
    accuracy = [scores["top1"] for scores in (pruned, retrained, full)]
    assert accuracy[0] + 0.1 < accuracy[1] <= accuracy[2] + 0.02
    # Another model is refused before anything is written.
    wrong = [a.replace("(8, 16)", "(8, 8)") for a in argv[:-1]]
    assert run(prune_command, [*wrong, str(tmp_path / "other")]) == 2
    assert "is not of the model of --config" in capfd.readouterr().err
    assert not (tmp_path / "other").exists()


@pytest.mark.slow
def test_training_scales_and_offsets_of_norms_only(tmp_path):
    run_dir, steps = tmp_path / "bn_only", 120
    scores = trained("configs/bn_only.py", run_dir, steps)
    from normjax.train.experiment import build_experiment

    state = build_experiment(kept_config(run_dir)).create_state()
    changed, same = changes({"params": state.params}, saved_variables(run_dir))
    assert {path.split("/")[-2] for path in changed} == {"norm"}
    assert all("norm" not in path for path in same)
    assert scores["top1"] > 0.3  # chance is 0.1
