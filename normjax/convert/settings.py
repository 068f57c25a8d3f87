"""What the config.json beside published weights says of their model.

Arrays tell neither heads nor the base of rotary positions: where such a file is there,
its values count, and what the model cannot be is refused.
"""

import json
from collections.abc import Collection, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from normjax.convert.names import form_of, reads_images
from normjax.core.errors import UserError
from normjax.families import PRESETS, Family, family_of
from normjax.families.llama import LLAMA
from normjax.norms import NORMS

FIELDS = {
    "hidden_size": "dim",
    "num_hidden_layers": "depth",
    "num_attention_heads": "num_heads",
    "num_heads": "num_heads",
    "intermediate_size": "mlp_hidden",
    "depths": "depths",
    "rope_theta": "rotary_base",
    "tie_word_embeddings": "tied",
}
"""Their field -> the argument of a model of ours, where it has such a one."""

_ALLOWED: dict[str, tuple[Any, ...]] = {
    "sliding_window": (None,),
    "partial_rotary_factor": (None, 1.0),
    "attention_bias": (None, False),
    "mlp_bias": (None, False),
    "quantization_config": (None,),
    "distilled": (None, False),
    "ffn_with_glu": (None, True),
    "normalize_qk_projections": (None, True),
    "normalization_layer_name": (None, "rms_norm"),
    "activation_fn_name": (None, "silu", "swish"),
}
_ACTIVATIONS = {"silu": ("silu", "swish"), "gelu": ("gelu",)}


class Change(NamedTuple):
    """A field of a config that config.json decided."""

    field: str
    value: Any
    before: Any


def published_settings(weights: Path) -> dict[str, Any]:
    """What describes the model in the config.json of a folder or beside a file.

    {} where there is none, or one of something else.

    Raises:
      UserError: it cannot be read.
    """
    path = (weights if weights.is_dir() else weights.parent) / "config.json"
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is damaged: {error}") from None
    names = ("model_type", "architectures", "architecture")
    if not isinstance(content, dict) or not any(name in content for name in names):
        return {}
    rope = content.get("rope_parameters")  # where newer versions keep what turns
    if isinstance(rope, dict):
        content = {"rope_scaling": rope, **content, **rope}
    return {**content, **content.get("model_args", {})}


def settle(config: Any, model: Any, given: Mapping) -> list[Change]:
    """Set in `config` what `given` says otherwise than `model`, and tell what.

    Args:
      config: of a run, unlocked.  model: built of it.
      given: see `published_settings`.

    Raises:
      UserError: a network that no setting of the model is.
    """
    if getattr(model, "pool", None) == "distilled":
        given = {**given, "distilled": None}
    family = family_of(config.model.get("name", "")) or LLAMA
    _check(given, () if reads_images(model) else family.model_types)
    changes = _settle_described(config.model, family, given)
    for theirs, ours in FIELDS.items():
        value = given.get(theirs)
        if value is None or not hasattr(model, ours):
            continue
        value = tuple(value) if isinstance(value, list) else value
        before = getattr(model, ours)
        before = tuple(before) if isinstance(before, list) else before
        if type(before) in (int, float, bool):
            value = type(before)(value)
        if value != before:
            config.model[ours] = value
            changes.append(Change(f"model.{ours}", value, before))
    changes += _settle_groups(config.model, given)
    changes += _settle_norm(config.model.norm, given)
    changes += _settle_pixels(config.data, given.get("pretrained_cfg") or {})
    return changes


def settle_form(config: Any, names: Collection[str]) -> list[Change]:
    """Set in `config` what tells the layouts of its family apart (`Family.forms`).

    Args:
      config: of a run, unlocked.  names: of the arrays of a file.
    """
    family, changes = family_of(config.model.name), []
    form = form_of(family, names) if family else {}
    for argument, value in form.items():
        before = config.model.get(argument, PRESETS[config.model.name].get(argument))
        if value != before:
            if argument in config.model:
                del config.model[argument]  # a field keeps the type that it had
            config.model[argument] = value
            changes.append(Change(f"model.{argument}", value, before))
    return changes


def _check(given: Mapping, text: tuple[str, ...]) -> None:
    """Raises UserError for what the model cannot be.

    Args:
      text: values of `model_type` that name its network; none where it reads images.
    """
    kind = given.get("model_type")
    if kind and text and kind not in text:
        _refuse("model_type", kind, " or ".join(text))
    for field, allowed in _ALLOWED.items():
        value = given.get(field)
        windowed = field != "sliding_window" or given.get("use_sliding_window", True)
        if windowed and value not in allowed:
            _refuse(field, value, allowed[-1])
    heads = given.get("num_attention_heads")
    width, head = given.get("hidden_size"), given.get("head_dim")
    if head and width and isinstance(heads, int) and head * heads != width:
        _refuse("head_dim", head, width // heads)
    scaling = given.get("rope_scaling") or {}
    rope = scaling.get("rope_type", scaling.get("type", "default"))
    if rope != "default":
        _refuse("rope_scaling", rope, None)
    activation = given.get("hidden_act") or given.get("hidden_activation")
    ours = "silu" if text else "gelu"
    if activation and activation not in _ACTIVATIONS[ours]:
        _refuse("hidden_act", activation, ours)


def _refuse(field: str, value: Any, ours: Any) -> NoReturn:
    value = "..." if isinstance(value, dict) else repr(value)
    raise UserError(f"config.json says {field}={value}, the model is for {ours}")


def _settle_described(model: Any, family: Family, given: Mapping) -> list[Change]:
    """What the config.json of the family says in words of its own."""
    if family.described is None or "model_type" not in given:
        return []
    try:
        described = family.described(given)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"config.json does not describe the model: {error}") from None
    changes = []
    for argument, value in described.items():
        before = model.get(argument, PRESETS[model.name].get(argument))
        if _plain(value) == _plain(before):
            continue
        if argument in model:
            del model[argument]  # a field keeps the type that it had
        model[argument] = value
        changes.append(Change(f"model.{argument}", value, before))
    return changes


def _plain(value: Any) -> Any:
    """Dicts and tuples alone, of whatever a config keeps them in."""
    if hasattr(value, "items"):
        return {k: _plain(v) for k, v in value.items()}
    return tuple(map(_plain, value)) if isinstance(value, list | tuple) else value


def _settle_groups(model: Any, given: Mapping) -> list[Change]:
    """Heads that share their keys and values."""
    groups, heads = given.get("num_key_value_heads"), given.get("num_attention_heads")
    if groups in (None, heads):
        return []
    before = model.get("mixer", "softmax")
    spec: Any = {"name": before} if isinstance(before, str) else before
    if isinstance(spec, list | tuple):  # mixers by layer
        _refuse("num_key_value_heads", groups, heads)
    value = {**spec, "name": "grouped_query", "num_kv_heads": groups}
    sharing = ("grouped_query", "prefix_attention")
    if spec["name"] in sharing and spec.get("num_kv_heads", 1) == groups:
        return []
    if spec["name"] not in ("softmax", "grouped_query"):
        _refuse("num_key_value_heads", groups, heads)
    if "mixer" in model:
        del model["mixer"]  # a field keeps the type that it had
    model["mixer"] = value
    return [Change("model.mixer", value, before)]


def _settle_norm(norm: Any, given: Mapping) -> list[Change]:
    """The epsilon of every norm inside `norm`."""
    value = given.get("rms_norm_eps", given.get("layer_norm_eps"))
    if value is None:
        return []
    inner = [k for k in ("layer_norm", "batch_norm") if k in norm]
    changes = []
    for key in inner or [""]:
        node = norm[key] if key else norm
        if isinstance(node, str):
            node = norm[key] = {"name": node}
        make: Any = NORMS[node["name"]].make
        default = next((f.default for f in fields(make) if f.name == "epsilon"), None)
        before = node.get("epsilon", default)
        if before != value:
            node["epsilon"] = value
            field = ".".join(filter(None, ("model.norm", key, "epsilon")))
            changes.append(Change(field, value, before))
    return changes


def _settle_pixels(data: Any, given: Mapping) -> list[Change]:
    """What became of the images that the weights were evaluated with, as timm says."""
    changes = []
    for field in ("mean", "std"):
        value = given.get(field)
        if not value or field not in data:
            continue
        value, before = tuple(map(float, value)), tuple(data[field])
        if value not in (before, before * len(value)):
            data[field] = value
            changes.append(Change(f"data.{field}", value, before))
    augment = data.get("augment", {})
    wanted: dict[str, Any] = {}
    if given.get("interpolation") in ("bicubic", "bilinear"):
        wanted["interpolation"] = given["interpolation"]
    if given.get("crop_pct"):
        side = augment.get("image_size", 0)
        wanted["eval_resize"] = max(side, int(side / given["crop_pct"]))
    for field, value in wanted.items():
        before = augment.get(field, value)
        if value != before:
            augment[field] = value
            changes.append(Change(f"data.augment.{field}", value, before))
    return changes
