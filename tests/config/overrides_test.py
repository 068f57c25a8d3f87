"""Overrides of a config: every field by its dotted name, at its type, or one line."""

import pytest
from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from normjax.cli import flags
from normjax.config.overrides import override, split
from normjax.core.errors import UserError

DIGITS, SWIN = "digits:runlocal", "imagenet_swin:variant=slab_tiny,runlocal"


def config_of(spec, *fields):
    argv = ["train.py", f"--config={spec}", *(f"--config.{field}" for field in fields)]
    return flags.parse_flags(argv, flags.define_config, "", overrides=True).config()


def overridden(values, *fields):
    _, overrides = split([f"--config.{field}" for field in fields])
    return override(ConfigDict(values), overrides)


@pytest.mark.parametrize(
    ("old", "text", "new"),
    [
        (1, "7", 7),
        (1.0, "7", 7.0),
        (True, "false", False),
        ("a", "7", "7"),
        ("a", "", ""),
        ((1, 2), "(3,)", (3,)),
        ((1, 2), "[3, 4.5]", (3, 4.5)),
        ((), "({'pattern': 'x'},)", ({"pattern": "x"},)),
        (None, "7", 7),
        (None, "word", "word"),
        (None, "None", None),
        (placeholder(int), "7", 7),
        (placeholder(str), "7", "7"),
    ],
)
def test_a_value_has_the_type_of_what_it_replaces(old, text, new):
    config = overridden({"field": old}, f"field={text}")
    assert config.field == new and type(config.field) is type(new)


def test_switches_and_entries():
    config = overridden(
        {"on": False, "off": True, "many": (1, 2, 3)}, "on", "off=0", "many[1]=7"
    )
    assert (config.on, config.off, config.many) == (True, False, (1, 7, 3))
    _, overrides = split(["--noconfig.off"])
    assert not override(ConfigDict({"off": True}), overrides).off


def test_a_field_of_all_components_that_have_it():
    sla = config_of("finetune:davit_tiny,path=X", "model.mixer[*].core=sla").model.mixer
    assert len(sla) == 4
    assert [(w["core"], w["window_size"], c) for w, c in sla] == [
        ("sla", 7, "channel")
    ] * 4
    one = config_of("finetune:swin_tiny,path=X", "model.mixer[*].core=sla").model.mixer
    assert one.to_dict() == {"name": "window", "window_size": 7, "core": "sla"}


def test_patterns_of_stages_and_layers_are_written_as_python():
    pattern = (("window", {"name": "channel"}), "softmax", "softmax", "pooling")
    given = f"model.mixer={pattern!r}"
    assert config_of("finetune:davit_tiny,path=X", given).model.mixer == pattern


def test_references_follow():
    config = ConfigDict({"steps": 10})
    config.warmup = config.get_ref("steps") * 2
    _, overrides = split(["--config.steps=30"])
    assert override(config, overrides).warmup == 60


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("seed", "config.seed takes a value"),
        ("optim=sgd", "config.optim has fields"),
        ("optim.lr.x=1", "config.optim.lr is a value and has no field 'x'"),
        ("data.mean[9]=1", "config.data.mean has 1 entries"),
        ("data.mean[x]=1", "config.data.mean[x] is no name of a field"),
        ("seed[0]=1", "config.seed is no list"),
        ("data.mean[*]=1", "config.data.mean[*] stands for components"),
        ("model.mixer[*]=sla", "config.model.mixer[*] stands for components"),
        ("model.mixer[*][0].core=sla", "config.model.mixer[*] stands for components"),
        ("model.mixer[*].cores=sla", "unknown field of config.model.mixer: 'cores'"),
        (".seed=1", "is no name of a field"),
        ("data.mean=word", "config.data.mean takes a value of type tuple: 'word'"),
        ("model.norm=bach_norm", "did you mean 'batch_norm'"),
        ("model.norm.momentun=1", "unknown field of config.model.norm: 'momentun'"),
        (
            "model.num_classes=5",
            "num_classes cannot be set here: the data",
        ),
        ("model.dtype=bfloat16", "set config.dtype"),
        ("model.depht=5", "did you mean 'depth'"),
    ],
)
def test_refusals(field, message):
    with pytest.raises(UserError) as caught:
        config_of(DIGITS, field)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_component_by_its_name_has_the_schedule_that_recipes_give_it():
    model = config_of(DIGITS, "model.norm=batch_norm", "model.mixer=softmax").model
    assert model.norm.to_dict() == {"name": "batch_norm"}
    assert model.mixer.to_dict() == {"name": "softmax"}
    wanted = config_of("digits:norm=prepbn").model.norm
    model = config_of("digits:norm=layer_norm", "model.norm=prepbn").model
    assert model.norm.to_dict() == wanted.to_dict()


def test_recomputation_by_name_or_not_at_all():
    given = {"projections": "projections", "true": True, "false": False}
    for text, value in given.items():
        model = config_of(DIGITS, f"model.remat={text}").model
        assert model.remat == value and type(model.remat) is type(value)


def test_what_preset_and_class_leave_out():
    model = config_of(
        "imagenet_deit:variant=tiny",
        "model.remat",
        "model.depth=2",
        "model.mlp=gated_mlp",
        "model.activation.approximate=true",
        "model.mixer.qk_norm=rms_norm",
    ).model
    assert model.remat is True and model.depth == 2
    assert model.mlp == "gated_mlp"
    assert model.activation.to_dict() == {"name": "gelu", "approximate": True}
    assert model.mixer.to_dict() == {"name": "softmax", "qk_norm": {"name": "rms_norm"}}
    model = config_of("lm_bytes", "model.rotary_base=None", "model.mlp_hidden=8").model
    assert model.rotary_base is None and model.mlp_hidden == 8


def test_arguments_of_the_optimizer():
    optim = config_of(DIGITS, "optim.epsilon=1e-6", "optim.lr=1").optim
    assert (optim.epsilon, optim.lr) == (1e-6, 1.0) and type(optim.lr) is float
    rule = "optim.groups=({'pattern': 'head', 'learning_rate': 2.0},)"
    optim = config_of(DIGITS, "optim.name=sgd", rule, "optim.groups[0].pattern=x").optim
    assert optim.groups == ({"pattern": "x", "learning_rate": 2.0},)
    for field in ("optim.name=sgd optim.epsilon=1", "optim.epsilom=1"):
        with pytest.raises(UserError, match=r"unknown field of config\.optim: 'epsilo"):
            config_of(DIGITS, *field.split())


def test_mixers_of_stages_are_set_one_by_one():
    model = config_of(SWIN, "model.mixer[2].window_size=14").model
    assert [mixer["window_size"] for mixer in model.mixer] == [56, 56, 14, 7]
    with pytest.raises(UserError, match=r"one of each stage \(config\.model\.mixer\[0"):
        config_of(SWIN, "model.mixer.window_size=14")
    swin = SWIN.replace("slab_", "")
    one = config_of(swin, "model.mixer.window_size=8").model
    assert one.mixer.to_dict() == {"name": "window", "window_size": 8}


def test_cores_of_mixers_and_their_arguments():
    window = "model.mixer=window", "model.mixer.core=sla"
    mixer = config_of(DIGITS, *window, "model.mixer.core.kernel_size=3").model.mixer
    core = {"name": "sla", "kernel_size": 3}
    assert mixer.to_dict() == {"name": "window", "core": core}
    own = "model.mixer=window_sla", "model.mixer.kernel_size=3"
    mixer = config_of(DIGITS, *own).model.mixer
    assert mixer.to_dict() == {"name": "window_sla", "kernel_size": 3}


def test_steps_and_fractions_take_each_others_place():
    norm = config_of("digits:norm=prepbn", "model.norm.decay_steps=5").model.norm
    assert norm.decay_steps == 5 and "decay_fraction" not in norm
    spec = "imagenet_deit:variant=slab_tiny"
    norm = config_of(spec, "model.norm.decay_fraction=0.5").model.norm
    assert norm.decay_fraction == 0.5 and "decay_steps" not in norm


def test_fields_of_a_preset_that_a_config_names_itself():
    norm = config_of(SWIN, "model.norm.layer_norm.epsilon=1e-3").model.norm
    assert norm.layer_norm.epsilon == 1e-3
    assert norm.batch_norm.name == "repbn"
