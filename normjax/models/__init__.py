"""Models, assembled from norm, mixer and activation factories.

`build("deit_tiny", norm="repbn", num_classes=10)` gives a Flax module that is called
`model(images, train=...) -> logits`; a `decoder` is called with tokens, an
`encoder_decoder` with tokens and `source`.
"""

import functools
from collections.abc import Collection, Mapping
from typing import Any

import flax.linen as nn

from normjax.activations import ACTIVATIONS
from normjax.core.arguments import defaults_of, required_names
from normjax.core.errors import UserError, one_of
from normjax.core.registry import compatible
from normjax.families import PRESETS
from normjax.mixers import MIXERS
from normjax.models.base import MODELS, patterns_of
from normjax.models.decoder import Decoder
from normjax.models.encoder_decoder import EncoderDecoder
from normjax.models.gated_mlp import GatedMLP
from normjax.models.mlps import MLPS
from normjax.models.mobilenet_v2 import MobileNetV2
from normjax.models.norm_free_resnet import NormFreeResNet
from normjax.models.placement import PLACEMENTS, placement_of
from normjax.models.pyramid import Pyramid
from normjax.models.resnet import ResNet
from normjax.models.stems import STEMS, ConvNorm, ConvPoolStem, ConvUnitStem, PatchMerge
from normjax.models.vit import ViT
from normjax.norms import NORMS

__all__ = [
    "COMPONENTS",
    "MLPS",
    "MODELS",
    "PLACEMENTS",
    "PRESETS",
    "STEMS",
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
"""Registries of the component factories that a model takes, by argument name.

`models.build` takes keys of them, and dicts with `name` and arguments.

Example:
  >>> from normjax import models
  >>> sorted(models.COMPONENTS)
  ['activation', 'embed_norm', 'merge', 'mixer', 'mlp', 'norm', 'stem']
  >>> "swiglu" in models.COMPONENTS["mlp"]
  True
"""


def build(spec: str | Mapping[str, Any], **arguments: Any) -> nn.Module:
    """The model that `spec` names, with its components resolved and checked.

    Args:
      spec: a preset or registry key, or a dict with `name` and arguments.
      **arguments: further arguments; they win over those of the preset.

    Raises:
      UserError: unknown or missing name or argument, or components that do not fit
        together.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from normjax import models
      >>> model = models.build("deit_tiny", norm="repbn", num_classes=10)
      >>> images = jnp.zeros((2, 224, 224, 3))
      >>> variables = jax.eval_shape(model.init, jax.random.key(0), images)
      >>> variables["params"]["head"]["kernel"].shape
      (192, 10)
    """
    given: dict[str, Any] = {"name": spec} if isinstance(spec, str) else dict(spec)
    given.update(arguments)
    name = given.pop("name", None)
    if name not in MODELS and name not in PRESETS:
        raise UserError(one_of("model", name, [*PRESETS, *(e.name for e in MODELS)]))
    factory = MODELS.factory({"name": name, **PRESETS.get(name, {}), **given})
    _check_complete(f"model {name!r}", factory)
    model = factory()
    if hasattr(model, "placement"):
        placement_of(model.placement)
    specs = {k: s for k in COMPONENTS if (s := getattr(model, k, None)) is not None}
    usual = defaults_of(type(model))
    for kind in COMPONENTS.keys() & usual.keys() - specs.keys():
        if usual[kind] is not None:
            raise UserError(f"model {name!r}: {kind} takes a component, got None")
    own, map_alone = model.layouts(), {"grid"}
    fed = {"norm": own, "mlp": own} | dict.fromkeys(_ON_MAPS, map_alone)
    factories = {
        kind: _made(name, kind, spec, fed.get(kind, ()))
        for kind, spec in specs.items()
        if kind != "mixer"
    }
    if "mixer" in specs:
        factories["mixer"] = _mixers(name, specs["mixer"], model.mixer_layouts())
    return model.clone(**factories)


_ON_MAPS = ("stem", "merge", "embed_norm")
_HOST_GIVES = {"num_heads", "dim", "hidden", "norm", "activation"}


def _made(model: str, kind: str, spec: Any, layouts: Collection[str]) -> Any:
    """The factory of a component that accepts these layouts."""
    registry = COMPONENTS[kind]
    factory, entry = registry.factory(spec), registry.entry_of(spec)
    reason = compatible(layouts, [(kind, entry)])
    if reason:
        raise UserError(f"model {model!r}: {reason}")
    if entry is not None:
        _check_complete(f"{kind} {entry.name!r}", factory)
    return factory


def _mixers(model: str, spec: Any, layouts: tuple[set[str], ...]) -> Any:
    """Factories as `spec` has it: one for all, one per stage, or patterns of layers."""
    stages = zip(patterns_of(spec, len(layouts)), layouts, strict=True)
    made = tuple(
        tuple(_made(model, "mixer", one, layout) for one in pattern)
        for pattern, layout in stages
    )
    if not isinstance(spec, list | tuple):
        return made[0][0]
    if len(layouts) == 1:
        return made[0]
    return tuple(p[0] if len(p) == 1 else p for p in made)


def _check_complete(what: str, factory: functools.partial) -> None:
    known = {*factory.keywords, *_HOST_GIVES}
    missing = [n for n in required_names(factory.func) if n not in known]
    if missing:
        raise UserError(f"{what} needs {', '.join(missing)}")
