"""What a family is, and the arguments that several have."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from normjax.families.layout import Row

Arguments = dict[str, Any]


class Recipe(NamedTuple):
    """How a variant is trained on ImageNet, where published recipes differ.

    Attributes:
      drop_path: rate of stochastic depth of the last layer.
      batch_size: of all devices.  warmup_epochs: of the learning rate.
      final_lr_fraction: of the largest learning rate.
      clip_norm, ema_decay: 0 is off.
      repeats: augmented copies of an image, one after the other.

    Example:
      >>> from normjax.families import FAMILIES, Recipe
      >>> FAMILIES["cswin"].recipes["tiny"].ema_decay
      0.99984
      >>> Recipe(drop_path=0.1).warmup_epochs
      20
    """

    drop_path: float = 0.0
    batch_size: int = 1024
    warmup_epochs: int = 20
    final_lr_fraction: float = 0.01
    clip_norm: float = 0.0
    ema_decay: float = 0.0
    repeats: int = 1


class Preprocessing(NamedTuple):
    """What becomes of images before a published model is evaluated.

    Attributes:
      image_size: side of the square.
      crop_ratio: of that side to the short side that an image is resized to first.
      interpolation: of resizing, "bicubic" or "bilinear".
      mean, std: of the pixels scaled to 0..1, by channel.

    Example:
      >>> from normjax.families import Preprocessing
      >>> Preprocessing().resized(224), Preprocessing(crop_ratio=0.9).resized(384)
      (256, 426)
    """

    image_size: int = 224
    crop_ratio: float = 0.875
    interpolation: str = "bicubic"
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)

    def resized(self, image_size: int) -> int:
        """The short side for images of another size: of 224 and 0.875, 256."""
        return max(image_size, int(image_size / self.crop_ratio))


class Figures(NamedTuple):
    """What is published of the size and the worth of a preset.

    Attributes:
      parameters: that are trained.
      multiply_adds: of one image, in 1e9, as the released code computes it: products of
        attention are counted. None where nobody says it.
      top_1: on ImageNet-1k's validation images, in percent, or None.
      source: of `top_1`: whose weights, and what they saw, if more than ImageNet-1k.
      image_size: side, or (height, width), at which all of this was measured.
      num_classes: with so many classes.

    Example:
      >>> from normjax.families import Figures
      >>> Figures(parameters=5_717_416, multiply_adds=1.258, top_1=72.2).image_size
      224
    """

    parameters: int
    multiply_adds: float | None = None
    top_1: float | None = None
    source: str = "authors"
    image_size: int | tuple[int, int] = 224
    num_classes: int = 1000

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width of the images."""
        size = self.image_size
        return size if isinstance(size, tuple) else (size, size)


class Family(NamedTuple):
    """What is known of a family of models.

    Attributes:
      name: its key.
      presets: arguments of models by name.
      kind: of what they read, "images" or "tokens".
      layouts: rows of published state dicts (see `families.layout`), the family's own
        release first.
      anchors: arrays of which every such file has one, whatever stands before its
        names: the first convolution, or the table of tokens.
      stems: first convolutions, where they are not the anchors.
      patches: first layers that are linear ones of unfolded patches -> positions that
        a patch may have.
      tied: arrays that repeat another one where it serves twice.
      classes: arrays with a row for each class.  tokens: those with one for each token.
      forms: arguments that models have whose files hold an array, by its name: where
        layouts of a family differ in more than names.
      optional: arrays of such files that models of ours may lack: pattern -> why.
      epsilon: of the norms that presets leave open.
      figures: of presets, by their names.
      recipes: by variant, the words of a preset's name but the family's own.
      preprocessing: by the beginning of a preset's name, the longest that fits; ""
        is that of all others. Empty for models of text.
      model_types: values of `model_type` in the config.json of such models of text.
      described: function of what stands there to arguments of the model, where they
        are no fields that other families have as well.
      config: file and arguments of the config that trains a preset, with {variant},
        {size} for its last word, or {preset}; "" where none does.

    Example:
      >>> from normjax.families import FAMILIES
      >>> swin = FAMILIES["swin"]
      >>> swin.preset_of("slab_tiny"), swin.config_of("slab_swin_tiny")
      ('slab_swin_tiny', 'imagenet_swin.py:variant=slab_tiny')
      >>> sorted(swin.layouts)
      ['swin', 'swin_timm']
    """

    name: str
    presets: Mapping[str, Arguments]
    kind: str = "images"
    layouts: Mapping[str, list[Row]] = {}
    anchors: tuple[str, ...] = ()
    stems: tuple[str, ...] = ()
    patches: Mapping[str, tuple[int, ...]] = {}
    tied: Mapping[str, str] = {}
    classes: tuple[str, ...] = ()
    tokens: tuple[str, ...] = ()
    forms: Mapping[str, Arguments] = {}
    optional: Mapping[str, str] = {}
    epsilon: float = 1e-6
    figures: Mapping[str, Figures] = {}
    recipes: Mapping[str, Recipe] = {}
    preprocessing: Mapping[str, Preprocessing] = {}
    model_types: tuple[str, ...] = ("llama", "mistral")
    described: Callable[[Mapping[str, Any]], Arguments] | None = None
    config: str = ""

    def preset_of(self, variant: str) -> str:
        """ "slab_tiny" of "swin" -> "slab_swin_tiny"."""
        kind, _, size = variant.partition("_")
        whole = f"{kind}_{self.name}_{size}"
        return whole if whole in self.presets else f"{self.name}_{variant}"

    def recipe_of(self, preset: str) -> Recipe | None:
        """How a preset is trained on ImageNet; None where nothing is published."""
        fitting = (r for v, r in self.recipes.items() if self.preset_of(v) == preset)
        return next(fitting, None)

    def preprocessing_of(self, preset: str) -> Preprocessing | None:
        """What images become before a preset reads them; None if it reads text."""
        fitting = [start for start in self.preprocessing if preset.startswith(start)]
        return self.preprocessing[max(fitting, key=len)] if fitting else None

    def config_of(self, preset: str) -> str:
        """The config of a preset, "FILE:ARGUMENTS"."""
        words = preset.split("_")
        variant = "_".join(word for word in words if word != self.name)
        return self.config.format(variant=variant, size=words[-1], preset=preset)

    def trains(self, preset: str) -> bool:
        """Whether `config` has a run of this preset."""
        of_all = "{preset}" in self.config
        return bool(self.config) and (of_all or self.name in preset.split("_"))


def layer_norm(epsilon: float) -> Arguments:
    """LayerNorm."""
    return {"name": "layer_norm", "epsilon": epsilon}


def prepbn(decay_steps: int, epsilon: float) -> Arguments:
    """PRepBN in place of such a LayerNorm."""
    inner = layer_norm(epsilon)
    return {"name": "prepbn", "decay_steps": decay_steps, "layer_norm": inner}


def is_original(variant: str) -> bool:
    """Whether it is of the family's first paper, with LayerNorm and softmax."""
    kind = variant.partition("_")[0]
    return kind not in ("slab", "flatten") and not variant.endswith("prepbn")
