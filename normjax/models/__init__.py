"""Models, assembled from norm, mixer and activation factories.

`build("deit_tiny", norm="repbn", num_classes=10)` gives a Flax module that is called
`model(images, train=...) -> logits`; a `decoder` is called with tokens, an
`encoder_decoder` with tokens and `source`.
"""

import dataclasses
import functools
from collections.abc import Collection, Mapping
from typing import Any

import flax.linen as nn

from normjax.activations import ACTIVATIONS
from normjax.core.arguments import defaults_of, required_names
from normjax.core.errors import UserError, one_line, one_of
from normjax.core.registry import compatible
from normjax.families import PRESETS
from normjax.mixers import MIXERS
from normjax.models.base import MODELS, patterns_of
from normjax.models.blocks import BLOCKS
from normjax.models.conv_stacks import ConvStack, ConvUnitsStem
from normjax.models.decoder import Decoder
from normjax.models.encoder import Encoder
from normjax.models.encoder_decoder import EncoderDecoder
from normjax.models.experts import MixtureOfExperts, Routing, route
from normjax.models.gated_mlp import GatedMLP
from normjax.models.graph import Graph
from normjax.models.local_global import LocalGlobalLayer, Permutation
from normjax.models.merges import NormConv, SqueezedReduction, SqueezedStem
from normjax.models.mlps import MLPS
from normjax.models.mobilenet_v2 import MobileNetV2
from normjax.models.nfnet import NFNet
from normjax.models.norm_free_resnet import NormFreeResNet
from normjax.models.osnet import OSNet
from normjax.models.parallel_decoder import ParallelDecoder
from normjax.models.placement import PLACEMENTS, placement_of
from normjax.models.pyramid import Pyramid
from normjax.models.raft import MultiScalePatches
from normjax.models.recursive_decoder import RecursiveDecoder, recursive_start
from normjax.models.remat import REMAT_POLICIES
from normjax.models.resnet import ResNet
from normjax.models.scalable_kernels import (
    KernelAdapter,
    KernelDense,
    relu_features,
    universal_features,
)
from normjax.models.separable import SeparableMerge
from normjax.models.stems import STEMS, ConvNorm, ConvPoolStem, ConvUnitStem, PatchMerge
from normjax.models.text_encoder import TextEncoder
from normjax.models.text_line import TextLine
from normjax.models.tiny_vit import InvertedMerge, TinyViT
from normjax.models.tokenizers import ConvTokenizer, SequencePooling
from normjax.models.tokens_to_token import TokensToToken
from normjax.models.two_towers import TwoTowers
from normjax.models.vit import ViT
from normjax.models.widenet import WideNet
from normjax.norms import NORMS

__all__ = [
    "BLOCKS",
    "COMPONENTS",
    "MLPS",
    "MODELS",
    "PLACEMENTS",
    "PRESETS",
    "REMAT_POLICIES",
    "STEMS",
    "ConvNorm",
    "ConvPoolStem",
    "ConvStack",
    "ConvTokenizer",
    "ConvUnitStem",
    "ConvUnitsStem",
    "Decoder",
    "Encoder",
    "EncoderDecoder",
    "GatedMLP",
    "Graph",
    "InvertedMerge",
    "KernelAdapter",
    "KernelDense",
    "LocalGlobalLayer",
    "MixtureOfExperts",
    "MobileNetV2",
    "MultiScalePatches",
    "NFNet",
    "NormConv",
    "NormFreeResNet",
    "OSNet",
    "ParallelDecoder",
    "PatchMerge",
    "Permutation",
    "Pyramid",
    "RecursiveDecoder",
    "ResNet",
    "Routing",
    "SeparableMerge",
    "SequencePooling",
    "SqueezedReduction",
    "SqueezedStem",
    "TextEncoder",
    "TextLine",
    "TinyViT",
    "TokensToToken",
    "TwoTowers",
    "ViT",
    "WideNet",
    "build",
    "recursive_start",
    "relu_features",
    "route",
    "universal_features",
]

COMPONENTS = {
    "norm": NORMS,
    "mixer": MIXERS,
    "activation": ACTIVATIONS,
    "mlp": MLPS,
    "stem": STEMS,
    "merge": STEMS,
    "branches": BLOCKS,
    "pooled_block": BLOCKS,
    "embed_norm": NORMS,
    "final_norm": NORMS,
    "mlp_norm": NORMS,
}
"""Registries of the component factories that a model takes, by argument name.

`models.build` takes keys of them, and dicts with `name` and arguments.

Example:
  >>> from normjax import models
  >>> sorted(models.COMPONENTS)[:5]
  ['activation', 'branches', 'embed_norm', 'final_norm', 'merge']
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
    model = _with_towers(factory())
    if hasattr(model, "placement"):
        placement_of(model.placement)
    specs = {k: s for k in COMPONENTS if (s := getattr(model, k, None)) is not None}
    usual = defaults_of(type(model))
    for kind in COMPONENTS.keys() & usual.keys() - specs.keys():
        if usual[kind] is not None:
            raise UserError(f"model {name!r}: {kind} takes a component, got None")
    own, map_alone = model.layouts(), {"grid"}
    fed = {"norm": own, "mlp": own} | dict.fromkeys(_ON_MAPS, map_alone)
    patterned = model.patterned() if hasattr(model, "patterned") else {"mixer"}
    factories = {
        kind: _patterns(name, kind, spec, model.mixer_layouts())
        if kind in patterned
        else _each(name, kind, spec, fed.get(kind, ()))
        for kind, spec in specs.items()
    }
    return model.clone(**factories)


def _with_towers(model: Any) -> Any:
    """`model` with factories of the models within, if it has any."""
    made = {}
    for name, given in getattr(model, "towers", dict)().items():
        spec = getattr(model, name)
        if isinstance(spec, functools.partial):
            continue
        if not isinstance(spec, str | Mapping):
            raise UserError(f"{name} takes a model, got {one_line(spec)}")
        own = {"name": spec} if isinstance(spec, str) else spec
        made[name] = _as_factory(build({**given, **own}))
    return model.clone(**made) if made else model


def _as_factory(model: nn.Module) -> functools.partial:
    fields = (f.name for f in dataclasses.fields(model) if f.init)
    given = {n: getattr(model, n) for n in fields if n not in ("parent", "name")}
    return functools.partial(type(model), **given)


_ON_MAPS = ("stem", "merge", "pooled_block", "embed_norm", "final_norm")
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


def _each(model: str, kind: str, spec: Any, layouts: Collection[str]) -> Any:
    """The factory of a component, or those of the merges."""
    if kind == "merge" and isinstance(spec, list | tuple):
        return tuple(_made(model, kind, one, layouts) for one in spec)
    return _made(model, kind, spec, layouts)


def _patterns(model: str, kind: str, spec: Any, layouts: tuple[set[str], ...]) -> Any:
    """Factories as `spec` has it: one for all, one per stage, or patterns of layers."""
    stages = zip(patterns_of(spec, len(layouts)), layouts, strict=True)
    nothing = (None,) if kind == "mlp" else ()

    def factory(one: Any, layout: set[str]) -> Any:
        return None if one in nothing else _made(model, kind, one, layout)

    made = tuple(
        tuple(factory(o, layout) for o in pattern) for pattern, layout in stages
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
