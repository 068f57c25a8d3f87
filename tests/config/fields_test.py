"""Kept configs: what a run may go on with, and what older ones meant."""

import dataclasses
import json
import re
from pathlib import Path

import pytest

from configs import (
    common,
    communities,
    digit_lines,
    digit_pairs,
    masked_text,
    transduction,
)
from normjax.config.check import check_config
from normjax.config.fields import default_config, fields_of
from normjax.config.overrides import split
from normjax.config.recipes import load_config
from normjax.config.reference import reference
from normjax.core.errors import UserError
from normjax.data import augment, text
from normjax.train.config import keep_config, kept_config
from normjax.train.experiment import DTYPES
from tests.train.tiny import tiny_config

ROOT = Path(__file__).parents[2]
CONFIGS = {
    "image_classification": common.image_config,
    "language_modeling": common.language_config,
    "transduction": transduction.get_config,
    "masked_language_modeling": masked_text.get_config,
    "line_recognition": digit_lines.get_config,
    "contrastive_pairs": digit_pairs.get_config,
    "node_classification": communities.get_config,
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


@pytest.mark.parametrize("stages", [False, True])
def test_names_that_arguments_had_in_older_runs(tmp_path, stages):
    """Read and resumed as what they are called today; commands are told."""
    mixer = {"name": "softmax", "relative_bias": {"name": "alibi"}}
    mixer = (mixer, mixer) if stages else mixer
    config = tiny_config()
    del config.model.mixer
    with config.unlocked():
        config.model.mixer = mixer
    keep_config(config, tmp_path)
    path = tmp_path / "config.json"
    path.write_text(path.read_text().replace("relative_bias", "distance"))
    assert kept_config(tmp_path).to_dict()["model"]["mixer"] == mixer
    keep_config(config, tmp_path)
    place = "mixer[0]" if stages else "mixer"
    _, overrides = split([f"--config.model.{place}.distance=alibi"])
    now = re.escape(f"is config.model.{place}.relative_bias now")
    with pytest.raises(UserError, match=now):
        kept_config(tmp_path, overrides)


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


def test_the_page_of_the_fields_is_what_they_declare():
    """`python -m normjax.config > docs/config.md` writes it."""
    assert (ROOT / "docs" / "config.md").read_text() == reference()


def test_every_field_is_declared_in_words():
    for task in (*CONFIGS, ""):
        for name, field in fields_of(task).items():
            assert field.meaning and "\n" not in field.meaning, name
        check_config(default_config(task))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("eval_every", 0, "config.eval_every must be at least 1, got 0"),
        ("optim.beta1", 1.0, "config.optim.beta1 must lie in [0, 1), got 1.0"),
        ("data.workers", 513, "config.data.workers must lie in [0, 512], got 513"),
        ("seed", 2**63, "config.seed is beyond 64 bits"),
        ("optim.lr", float("nan"), "config.optim.lr must be finite in float32, got"),
        ("data.std", (1e39,), "config.data.std must be finite in float32"),
        ("parallelism", "pmep", "unknown config.parallelism 'pmep'; did you mean"),
        ("nonfinite.policy", "skp", "unknown config.nonfinite.policy 'skp'; did you"),
        ("model.depth", 10_001, "config.model.depth must lie in [1, 10000], got"),
        ("model.norm.epsilon", -1.0, "config.model.norm.epsilon must be at least 0"),
        ("model.stem.size", -1, "config.model.stem.size must be at least 0, got -1"),
    ],
)
def test_values_that_are_not_allowed(name, value, message):
    config = common.image_config()
    *sections, last = name.split(".")
    node = config
    for section in sections:
        node = node[section]
    node[last] = value
    with pytest.raises(UserError) as caught:
        check_config(config)
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("config.checkpoint.keep = 1", r"field of config\.checkpoint: 'keep'"),
        ("config.total_step = 5", r"'total_step'; did you mean 'total_steps'"),
        (
            "config.data.augment.flips = True",
            r"config\.data\.augment: 'flips'; did",
        ),
        ("config.data.text = {}", r"unknown field of config\.data: 'text'"),
        ("config.model.whatever = 1; config.task = 'mine'; config.mine = 1", None),
    ],
)
def test_fields_that_nobody_reads_are_refused_in_recipes(tmp_path, line, message):
    """Those of a task that is not ours, and of models, others know."""
    file = tmp_path / "recipe.py"
    file.write_text(
        "from configs.common import image_config\n"
        f"def get_config():\n    config = image_config()\n    {line}\n"
        "    return config\n"
    )
    if message is None:
        assert load_config(str(file)).mine == 1
        return
    with pytest.raises(UserError, match=message) as caught:
        load_config(str(file))
    assert str(caught.value).startswith(f"config file {file}: unknown field of config")


def test_what_libraries_say_of_their_own_fields():
    """Data know no configs, and say themselves what they can be told."""
    names = {field.name for field in dataclasses.fields(text.Fields)}
    assert names == set(common.language_config().data.text)
    fields = common.image_config().data.augment.to_dict()
    assert augment.Fields(**fields) == augment.Fields()
    assert set(fields) == {field.name for field in dataclasses.fields(augment.Fields)}
    assert tuple(DTYPES) == fields_of("")["dtype"].allowed


def test_fields_that_a_recipe_leaves_out_have_their_defaults(tmp_path):
    """A section of its own is whole again, so that it is the same when it goes on."""
    file = tmp_path / "recipe.py"
    file.write_text(
        "from configs.common import image_config\n"
        "def get_config():\n    config = image_config()\n"
        "    config.optim = {'name': 'adamw', 'beta2': 0.5, 'epsilon': 1e-6}\n"
        "    del config.nonfinite\n    return config.lock()\n"
    )
    config = load_config(str(file))
    whole = common.image_config()
    whole.optim.beta2 = 0.5
    assert config.is_locked
    assert config.nonfinite.to_dict() == whole.nonfinite.to_dict()
    assert config.optim.to_dict() == {**whole.optim.to_dict(), "epsilon": 1e-6}
