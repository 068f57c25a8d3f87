"""Files and folders as people have them: wrapped, prefixed, in shards, cut off."""

import json
import struct

import ml_dtypes
import numpy as np
import pytest

from normjax import convert
from normjax.convert.settings import published_settings
from normjax.core.errors import UserError

STATE = {
    "patch_embed.proj.weight": np.ones((2, 3, 4, 4), np.float32),
    "head.weight": np.full((5, 2), 2, np.float32),
}
OTHER = {name: array + 1 for name, array in STATE.items()}


def prefixed(prefix, state=STATE):
    return {prefix + name: array for name, array in state.items()}


def assert_state(found, expected=STATE):
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)


PREFIXES = (
    *("", "module.", "_orig_mod.", "model.", "encoder.", "student.", "backbone."),
    *("module._orig_mod.", "_orig_mod.module.", "model.encoder.", "net.module.model."),
    *("student.module.backbone.", "_fsdp_wrapped_module.", "visual.trunk."),
)


@pytest.mark.parametrize("prefix", PREFIXES)
def test_prefixes_come_off(prefix):
    assert_state(convert.unwrapped(prefixed(prefix)))


def test_names_inside_lose_what_torch_puts_around_modules():
    inner = {"patch_embed._orig_mod.proj.weight": STATE["patch_embed.proj.weight"]}
    inner["head.weight"] = STATE["head.weight"]
    assert_state(convert.unwrapped(inner))
    beside = {**prefixed("backbone."), "n_averaged": np.asarray(3)}
    beside["head.weight"] = beside.pop("backbone.head.weight")
    assert_state(convert.unwrapped(beside))


def test_prefixes_of_language_models_are_told_from_their_own():
    state = {"model.embed_tokens.weight": np.ones(2), "lm_head.weight": np.ones(2)}
    assert_state(convert.unwrapped(state), state)
    assert_state(convert.unwrapped(prefixed("model.", state)), state)


WRAPPERS = (
    *("model", "state_dict", "model_state_dict", "net", "network", "params", "weights"),
    *("module", "net_state_dict", "model_state", "student", "backbone"),
)


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("average", ["model_ema", "state_dict_ema", "ema", "teacher"])
def test_wrappers_come_off_and_averages_are_asked_for(wrapper, average):
    training = {"epoch": 3, "optimizer": {"state": {}, "param_groups": []}, "args": 1}
    content = {wrapper: prefixed("module."), average: prefixed("module.", OTHER)}
    assert_state(convert.unwrapped({**training, **content}))
    assert_state(convert.unwrapped({**training, **content}, averaged=True), OTHER)
    nested = {"state_dict": {"model": STATE}, "epoch": 1}
    assert_state(convert.unwrapped(nested))


def test_averages_beside_weights_by_their_prefix():
    both = prefixed("student.backbone.") | prefixed("teacher.backbone.", OTHER)
    assert_state(convert.unwrapped(both))
    assert_state(convert.unwrapped(both, averaged=True), OTHER)
    assert_state(convert.unwrapped(prefixed("ema.", OTHER) | STATE))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            {"epoch": 3},
            r"'epoch' is no tensor \(weights are sought in model, state_dict,",
        ),
        ({}, "it is empty"),
        ([1], "it is a list"),
        ({"model": {"a": 1}}, "no state dict in 'model': 'a' is no tensor"),
        ({"model_ema": STATE}, r"averaged weights only \(model_ema\): --averaged"),
        (
            {"model": STATE, "state_dict": STATE},
            r"several models \(model, state_dict\)",
        ),
        (prefixed("a.") | prefixed("b."), r"several models \(a\., b\.\)"),
        ({"state": {}, "param_groups": []}, "state of an optimizer"),
        ({"base.q.lora_A.weight": np.ones(2)}, "a LoRA adapter"),
        (
            {"vit.embeddings.patch_embeddings.projection.weight": np.ones(2)},
            "names of Hugging Face's transformers",
        ),
        (STATE | prefixed("module."), "several models"),
    ],
)
def test_what_is_no_state_dict(content, words):
    with pytest.raises(UserError, match=words) as error:
        convert.unwrapped(content)
    assert "\n" not in str(error.value)


# Folders


def shards(folder, states, count=None, stem="model"):
    for i, state in enumerate(states, 1):
        name = f"{stem}-{i:05}-of-{count or len(states):05}.safetensors"
        convert.write(folder / name, state)


PARTS = [{name: array} for name, array in STATE.items()]


def index(folder, weight_map, name="model.safetensors.index.json"):
    (folder / name).write_text(json.dumps({"weight_map": weight_map}))


WHERE = {name: f"model-0000{i}-of-00002.safetensors" for i, name in enumerate(STATE, 1)}


def test_one_model_among_other_files(tmp_path):
    convert.write(tmp_path / "model.safetensors", STATE)
    convert.write(tmp_path / "model_old.safetensors", OTHER)
    (tmp_path / "optimizer.pt").write_bytes(b"x")
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    found = convert.load(tmp_path)
    assert_state(found.state)
    assert {"model_old.safetensors", "pytorch_model.bin"} <= found.left.keys()
    assert "optimizer.pt" not in found.left


def test_shards_with_and_without_an_index(tmp_path):
    shards(tmp_path, PARTS)
    assert_state(convert.read(tmp_path))
    index(tmp_path, WHERE)
    assert_state(convert.read(tmp_path))
    assert_state(convert.read(tmp_path / "model.safetensors.index.json"))


def test_a_cache_of_links(tmp_path):
    blobs, snapshot = tmp_path / "hub/blobs", tmp_path / "hub/snapshots/abc"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    convert.write(blobs / "x.safetensors", STATE)
    (blobs / "x.safetensors").rename(blobs / "0123abcd")
    link = snapshot / "model.safetensors"
    link.symlink_to(blobs / "0123abcd")
    for path in (link, snapshot, tmp_path / "hub", blobs / "0123abcd"):
        assert_state(convert.read(path))
    (blobs / "0123abcd").unlink()
    with pytest.raises(UserError, match="is a link to nothing"):
        convert.read(link)


def faults():
    """name -> (function that makes a folder, words of the refusal)."""

    def several(folder):
        convert.write(folder / "a.safetensors", STATE)
        convert.write(folder / "b.safetensors", STATE)

    def missing(folder):
        shards(folder, PARTS[:1], count=2)

    def missing_of_index(folder):
        shards(folder, PARTS[:1], count=2)
        index(folder, WHERE)

    def twice(folder):
        shards(folder, [STATE, PARTS[1]])

    def elsewhere(folder):
        shards(folder, PARTS)
        index(folder, dict.fromkeys(STATE, WHERE["head.weight"]) | WHERE_SWAPPED)

    def whole_and_shards(folder):
        shards(folder, PARTS)
        convert.write(folder / "model.safetensors", STATE)

    def no_index(folder):
        (folder / "model.safetensors.index.json").write_text("[]")

    def foreign(name):
        return lambda folder: (folder / name).write_bytes(b"x" * 9)

    return {
        "several": (several, r"several checkpoints \(a\.safetensors, b\.safetensors\)"),
        "missing": (missing, r"lacks 1 of 00002 shards: model-00002-of-00002"),
        "index": (missing_of_index, r"lacks 1 of model\.safetensors\.index\.json"),
        "twice": (twice, r"head\.weight is in two shards"),
        "elsewhere": (elsewhere, r"has .* in model-.*: it is in model-"),
        "both": (whole_and_shards, "holds more than one model"),
        "list": (no_index, "is no index of shards"),
        "flax": (foreign("flax_model.msgpack"), "holds none of .* weights of Flax"),
        "keras": (foreign("tf_model.h5"), "Keras or TensorFlow"),
        "tf": (foreign("model.ckpt.data-00000-of-00001"), "a TensorFlow checkpoint"),
        "nothing": (foreign("notes.txt"), "holds none of model.safetensors"),
    }


WHERE_SWAPPED = dict(zip(WHERE, reversed(WHERE.values()), strict=True))
FAULTS = faults()


@pytest.mark.parametrize("fault", FAULTS)
def test_folders_that_are_refused(tmp_path, fault):
    make, words = FAULTS[fault]
    make(tmp_path)
    with pytest.raises(UserError, match=words) as error:
        convert.read(tmp_path)
    assert "\n" not in str(error.value)


# Files


def raw_safetensors(kind, size):
    entry = {"dtype": kind, "shape": [4], "data_offsets": [0, 4 * size]}
    header = json.dumps({"a.weight": entry}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(4 * size)


FILES = {
    "a.safetensors": (b"", "is empty"),
    "b.safetensors": (raw_safetensors("F32", 4)[:-3], "is cut off: .* of .* bytes"),
    "c.safetensors": (
        raw_safetensors("F8_E4M3", 1),
        r"a\.weight is quantized \(F8_E4M",
    ),
    "d.safetensors": (b"version https://git-lfs.github.com/spec/v1", "git lfs pull"),
    "e.bin": (b"<!DOCTYPE html><html>", "is a web page, not weights"),
    "f.safetensors": (b'{"error":"Entry not found"}', "is an answer of a server"),
    "g.gguf": (b"GGUF\3\0\0\0", "a GGUF file"),
    "h.bin": (b"GGUF\3\0\0\0", "a GGUF file"),
    "i.h5": (b"\x89HDF\r\n", "HDF5 file of Keras"),
    "j.msgpack": (b"\x81\xa6params", "weights of Flax"),
    "k.pth.gz": (b"\x1f\x8b\x08", "packed by gzip: unpack"),
    "l.npz": (b"PK\x03\x04" + bytes(22) + b"\x05\0\0\0a.npy", "arrays of NumPy"),
    "m.safetensors": (b"nothing at all", "is damaged"),
    "n.onnx": (b"\x08\x07\x12", "ONNX"),
    "o.txt": (b"hello", r"unknown kind of checkpoint '\.txt'"),
}


@pytest.mark.parametrize("name", FILES)
def test_files_that_are_refused(tmp_path, name):
    raw, words = FILES[name]
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(UserError, match=words) as error:
        convert.read(tmp_path / name)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["a.pth", "a.pth.tar", "a.ckpt", "a.pt", "a.bin", "a"])
def test_torch_is_named_where_it_is_absent(tmp_path, monkeypatch, name):
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    (tmp_path / name).write_bytes(b"PK\x03\x04")
    with pytest.raises(UserError, match=r"needs torch: pip install 'normjax\[torch\]'"):
        convert.read(tmp_path / name)


def test_half_precision_is_read(tmp_path):
    half = {"head.weight": np.arange(4, dtype=ml_dtypes.bfloat16)}
    convert.write(tmp_path / "a.safetensors", half)
    assert_state(convert.read(tmp_path / "a.safetensors"), half)


def test_a_config_of_something_else_is_no_setting(tmp_path):
    convert.write(tmp_path / "a.safetensors", STATE)
    assert published_settings(tmp_path) == {}
    (tmp_path / "config.json").write_text('{"optim": {"lr": 1}}')
    assert published_settings(tmp_path / "a.safetensors") == {}
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json is damaged"):
        published_settings(tmp_path)
