"""Kept configs: what a run may go on with, and what older ones meant."""

import json
from pathlib import Path

import pytest

from configs import common, transduction
from normjax.config.fields import fields_of
from normjax.config.overrides import split
from normjax.core.errors import UserError
from normjax.train.config import keep_config, kept_config
from tests.train.tiny import tiny_config

CONFIGS = {
    "image_classification": common.image_config,
    "language_modeling": common.language_config,
    "transduction": transduction.get_config,
}


def leaves(node, path=""):
    if not isinstance(node, dict):
        return {path: node}
    return {
        name: value
        for key, child in node.items()
        for name, value in leaves(child, f"{path}.{key}".lstrip(".")).items()
    }


@pytest.mark.parametrize("task", CONFIGS)
def test_every_field_has_a_row(task):
    config = {k: v for k, v in CONFIGS[task]().to_dict().items() if k != "model"}
    assert set(leaves(config)) == set(fields_of(task))


@pytest.mark.parametrize(
    "changes",
    [
        {"log_every": 7, "eval_every": 5, "checkpoint__every": 4, "profile_steps": 2},
        {"checkpoint__keep_last": 9, "checkpoint__keep_best": 3},
        {"data__workers": 3, "data__path": "/elsewhere", "data__data_dir": "/cache"},
        {"mesh__fsdp": 4, "sharding__mlp": "fsdp", "nonfinite__policy": "skip"},
        {"model__remat": True, "diagnostics_every": 5, "data__test_split": "test"},
    ],
)
def test_what_changes_nothing_in_the_training_may_change(tmp_path, changes):
    keep_config(tiny_config(), tmp_path)
    keep_config(tiny_config(**changes), tmp_path)
    kept = leaves(kept_config(tmp_path).to_dict())
    for name, value in changes.items():
        assert kept[name.replace("__", ".")] == value


@pytest.mark.parametrize(
    "changes",
    [
        {"optim__lr": 0.5},
        {"total_steps": 60},
        {"seed": 3},
        {"parallelism": "pmap"},
        {"batch_size": 8},
        {"recalibrate_batches": 3},
        {"data__augment__flip": True},
        {"model__norm__decay_fraction": 0.5},
        {"model__drop_path_rate": 0.5},
    ],
)
def test_what_is_learned_may_not(tmp_path, changes):
    keep_config(tiny_config(), tmp_path)
    before = (tmp_path / "config.json").read_bytes()
    (name,) = (name.replace("__", ".") for name in changes)
    with pytest.raises(UserError) as caught:
        keep_config(tiny_config(log_every=9, **changes), tmp_path)
    assert f"config.{name} is " in str(caught.value)
    assert "log_every" not in str(caught.value) and "\n" not in str(caught.value)
    assert "--workdir alone" in str(caught.value)
    assert (tmp_path / "config.json").read_bytes() == before


def test_the_same_model_said_otherwise(tmp_path):
    config = tiny_config("norm=layer_norm")
    keep_config(config, tmp_path)
    config.model.norm = {"name": "layer_norm", "epsilon": 1e-6}
    config.model.update(mlp="mlp", share_layers=False)
    keep_config(config, tmp_path)
    config.model.share_layers = True
    with pytest.raises(UserError, match=r"share_layers is False there and True here"):
        keep_config(config, tmp_path)


def remove(path: Path, *names: str) -> None:
    """Fields of a kept config, as if it were from before them."""
    config = json.loads(path.read_text())
    for name in names:
        *sections, last = name.split(".")
        node = config
        for section in sections:
            node = node[section]
        del node[last]
    path.write_text(json.dumps(config))


def test_fields_that_older_runs_lack(tmp_path):
    config = tiny_config(dtype="float32", auxiliary_loss_weight=0.0)
    keep_config(config, tmp_path)
    path = tmp_path / "config.json"
    later = ("task", "dtype", "auxiliary_loss_weight", "reparam", "mesh", "sharding")
    remove(path, *later, "nonfinite", "data.undecodable", "optim.project_weights")
    kept = kept_config(tmp_path)
    assert (kept.task, kept.dtype) == ("image_classification", "float32")
    assert (kept.mesh.data, kept.nonfinite.policy) == (-1, "stop")
    keep_config(config, tmp_path)
    remove(path, "dtype")
    with pytest.raises(UserError, match=r"config\.dtype is float32 there and auto"):
        keep_config(tiny_config(auxiliary_loss_weight=0.0), tmp_path)


def test_commands_set_what_they_read_and_no_more(tmp_path):
    keep_config(tiny_config(), tmp_path)

    def kept(*fields, reads=("data",)):
        _, overrides = split([f"--config.{field}" for field in fields])
        return kept_config(tmp_path, overrides, reads)

    assert kept("data.path=/new").data.path == "/new"
    assert kept("batch_size=4", reads=("batch_size",)).batch_size == 4
    for field in ("batch_size=4", "optim.lr=1", "data.eval_split=x", "eval_every=1"):
        name = field.partition("=")[0]
        with pytest.raises(UserError, match=f"config field of this command: '{name}'"):
            kept(field)
    with pytest.raises(UserError, match=r"did you mean 'data\.path'"):
        kept("data.pth=/new")
