"""Softmax layers of a decoder as a gated recurrence and a window (Liger).

Both have the same arrays, so that only the description of the model changes.
"""

from collections.abc import Mapping
from typing import Any

from normjax.core.arguments import defaults_of
from normjax.core.errors import UserError
from normjax.families import PRESETS
from normjax.mixers import MIXERS
from normjax.models.base import MODELS

SOFTMAX = ("softmax", "grouped_query")
"""The mixers whose arrays `liger` takes."""
_CAUSAL = "causal"  # decoders say it, and liger is


def linearized_model(spec: Mapping[str, Any]) -> dict[str, Any]:
    """`config.model` of a decoder with `liger` in place of its softmax layers.

    Layers with another mixer stay as they are.

    Args:
      spec: with `name`, a preset or "decoder".

    Raises:
      UserError: no decoder, one without softmax layers, or one whose layers are more
        than plain softmax attention.
    """
    own = {**PRESETS.get(spec["name"], {"name": spec["name"]}), **spec}
    kind = PRESETS.get(spec["name"], spec)["name"]
    if kind != "decoder":
        raise UserError(f"--linearize takes decoders, this run has a {kind}")
    before = own.get("mixer", defaults_of(MODELS[kind].make)["mixer"])
    after = _linearized(before)
    if after == before:
        raise UserError(f"--linearize: no softmax attention in mixer {before!r}")
    return {**spec, "mixer": after}


def _linearized(spec: Any) -> Any:
    """The spec of a mixer, or of several in turn."""
    if isinstance(spec, list | tuple):
        return tuple(map(_linearized, spec))
    given = {"name": spec} if isinstance(spec, str) else dict(spec)
    name = given.pop("name")
    if name not in SOFTMAX:
        return spec
    defaults = defaults_of(MIXERS[name].make)
    known = defaults_of(MIXERS["liger"].make).keys() | {"num_heads"}
    for argument, value in given.items():
        if argument in known or argument == _CAUSAL or value == defaults[argument]:
            continue
        raise UserError(
            f"--linearize: liger has nothing like {argument}={value!r} of {name!r}"
        )
    kept = {argument: value for argument, value in given.items() if argument in known}
    own = {"joint": True} if name == "softmax" else {}
    own = own or {"num_kv_heads": defaults["num_kv_heads"]}
    return {"name": "liger", **own, **kept}
