"""Models, assembled from norm, mixer and activation factories.

`build("deit_tiny", norm="repbn", num_classes=10)` gives a Flax module that is called
`model(images, train=...) -> logits`; a `decoder` is called with tokens, an
`encoder_decoder` with tokens and `source`.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn

from normjax.activations import ACTIVATIONS
from normjax.attention import MIXERS
from normjax.core.errors import UserError, one_of
from normjax.core.registry import compatible, required_names
from normjax.models.base import MODELS, in_stages
from normjax.models.conv import ConvPoolStem, ConvUnitStem
from normjax.models.decoder import Decoder
from normjax.models.embed import ConvNorm, PatchMerge
from normjax.models.encoder_decoder import EncoderDecoder
from normjax.models.feed_forward import GatedMLP
from normjax.models.layers import MLPS, STEMS
from normjax.models.mobilenet_v2 import MobileNetV2
from normjax.models.norm_free import NormFreeResNet
from normjax.models.placement import PLACEMENTS, placement_of
from normjax.models.presets import PRESETS
from normjax.models.pyramid import Pyramid
from normjax.models.resnet import ResNet
from normjax.models.vit import ViT
from normjax.norms import NORMS

__all__ = [
    "COMPONENTS",
    "MODELS",
    "PLACEMENTS",
    "PRESETS",
    "ConvNorm",
    "ConvPoolStem",
    "ConvUnitStem",
    "Decoder",
    "EncoderDecoder",
    "GatedMLP",
    "MobileNetV2",
    "NormFreeResNet",
    "PatchMerge",
    "Pyramid",
    "ResNet",
    "ViT",
    "build",
]

COMPONENTS = {
    "norm": NORMS,
    "mixer": MIXERS,
    "activation": ACTIVATIONS,
    "mlp": MLPS,
    "stem": STEMS,
    "merge": STEMS,
    "embed_norm": NORMS,
}
"""Registries of the component factories that a model takes, by argument name."""

NESTED = {"qk_norm": NORMS}
"""Components that components take: a mixer may normalise its queries and keys."""


def build(spec: str | Mapping[str, Any], **arguments: Any) -> nn.Module:
    """The model that `spec` names, with its components resolved and checked.

    Args:
      spec: a preset or registry key, or a dict with `name` and arguments.
      **arguments: further arguments; they win over those of the preset.

    Raises:
      UserError: unknown or missing name or argument, or components that do not fit
        together.
    """
    given: dict[str, Any] = {"name": spec} if isinstance(spec, str) else dict(spec)
    given.update(arguments)
    name = given.pop("name", None)
    if name not in MODELS and name not in PRESETS:
        raise UserError(one_of("model", name, [*PRESETS, *(e.name for e in MODELS)]))
    factory = MODELS.factory({"name": name, **PRESETS.get(name, {}), **given})
    model = factory()
    if hasattr(model, "placement"):
        placement_of(model.placement)
    specs = {k: s for k in COMPONENTS if (s := getattr(model, k, None)) is not None}
    rows = [("norm", NORMS.entry_of(specs["norm"]))]
    if "mlp" in specs:
        rows.append(("mlp", MLPS.entry_of(specs["mlp"])))
    reason = compatible(model.layouts(), rows)
    layouts = model.mixer_layouts() if "mixer" in specs else ()
    mixers = in_stages(specs.get("mixer"), len(layouts))
    for layout, spec in zip(layouts, mixers, strict=True):
        reason = reason or compatible(layout, [("mixer", MIXERS.entry_of(spec))])
    if reason:
        raise UserError(f"model {name!r}: {reason}")
    factories = {kind: _factory(kind, spec) for kind, spec in specs.items()}
    norm = factories["norm"]
    missing = [n for n in required_names(norm.func) if n not in norm.keywords]
    if missing:
        raise UserError(f"norm {specs['norm']!r} needs {', '.join(missing)}")
    return model.clone(**factories)


def _factory(kind: str, spec: Any) -> Any:
    """The factory of a component, or one per stage."""
    if isinstance(spec, list | tuple):
        return tuple(_factory(kind, one) for one in spec)
    if isinstance(spec, Mapping):
        spec = {
            k: v if k not in NESTED else NESTED[k].factory(v) for k, v in spec.items()
        }
    return COMPONENTS[kind].factory(spec)
