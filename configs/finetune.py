"""Fine-tuning: any named model, weights that are there, a folder of your images.

    python train.py --config=configs/finetune.py:deit_tiny,path=DIR,weights=deit.pth \\
        --workdir=runs/mine
    python train.py --config=configs/finetune.py:slab_swin_tiny,path=DIR,size=384,...
    python train.py --config=configs/finetune.py:deit_tiny,train=norms,...

Arguments: model (its key may stand alone), path (image folder or zip), weights (a file
or folder of published weights, or a workdir), size (of the images; 0: as
published), train (all, norms or head: what learns besides the head), decay (of the
learning rate from layer to layer, where all learn; 1: none), steps, and runlocal (4
steps of 4 images).
"""

from typing import Any

from ml_collections import ConfigDict

from configs.common import image_config, norm_config, parse_arg
from normjax.core.errors import UserError, one_of
from normjax.core.layer_decay import layer_decay
from normjax.families import FAMILIES, PRESETS, family_of

TRAINED = {"all": ".*", "norms": "norm|^head/", "head": "^head/"}


def get_config(arg: str | None = None) -> ConfigDict:
    """The run; see the module's docstring for `arg`."""
    first, comma, rest = (arg or "").partition(",")
    if first and "=" not in first and first != "runlocal":
        arg = f"model={first}{comma}{rest}"
    choice = parse_arg(
        arg,
        **{"model": "deit_tiny", "path": "", "weights": "", "size": 0},
        **{"train": "all", "decay": 0.75, "steps": 1000, "runlocal": False},
    )
    name, family = choice["model"], family_of(choice["model"])
    if family is None or family.kind != "images":
        images = [n for f in FAMILIES.values() if f.kind == "images" for n in f.presets]
        raise UserError(one_of("model", name, images))
    if choice["train"] not in TRAINED:
        raise UserError(one_of("config argument train", choice["train"], TRAINED))
    published: Any = family.preprocessing_of(name)
    made_for = published.image_size
    choice["size"] = choice["size"] or made_for
    config = image_config()
    model = {"name": name, "norm": _norm(name, family.epsilon)}
    config.model = ConfigDict({**model, **_sized(name, choice["size"], made_for)})
    config.init.path = choice["weights"]
    config.total_steps, config.batch_size = choice["steps"], 64
    config.eval_every = config.checkpoint.every = max(choice["steps"] // 10, 1)
    _images(config.data, choice, published)
    config.optim.lr = 5e-4 if choice["train"] == "all" else 2e-3
    config.optim.weight_decay = 0.05 if choice["train"] == "all" else 0.0
    config.optim.trainable = TRAINED[choice["train"]]
    config.optim.frozen_statistics = choice["train"] == "head"
    recipe = family.recipe_of(name)
    if recipe and choice["train"] != "head":
        config.model.drop_path_rate = recipe.drop_path
    depth = PRESETS[name].get("depth") or PRESETS[name].get("depths")
    if choice["train"] == "all" and choice["decay"] != 1 and depth:
        config.optim.groups = layer_decay(choice["decay"], depth)
    if choice["runlocal"]:
        config.total_steps, config.batch_size, config.log_every = 4, 4, 1
        config.eval_every = config.checkpoint.every = 2
    return config


def _norm(name: str, epsilon: float) -> Any:
    """That of the preset, whose schedule is one of this run."""
    layer_norm = {"name": "layer_norm", "epsilon": epsilon}
    usual = "batch_norm" if "resnet" in name or "mobilenet" in name else layer_norm
    given = PRESETS[name].get("norm", usual)
    given = {"name": given} if isinstance(given, str) else given
    if given["name"] == "batch_norm":
        return {**given, "unbiased_running_var": True}
    if given["name"] != "prepbn":
        return given
    inner = {"layer_norm": given.get("layer_norm", layer_norm)}
    replacing = {"name": "repbn", "unbiased_running_var": True}
    return {**norm_config("prepbn"), **inner, "batch_norm": replacing}


def _sized(name: str, size: int, made_for: int) -> dict[str, Any]:
    """The mixers of a preset for images of this size: windows grow with the map."""
    if size == made_for or "mixer" not in PRESETS[name]:
        return {}

    def sized(spec: Any) -> Any:
        if isinstance(spec, list | tuple):
            return tuple(map(sized, spec))
        if not isinstance(spec, dict):
            return spec
        large = {k: v for k, v in spec.items() if k in WINDOWS and v >= 7}
        if large and size % 32:
            raise UserError(f"config argument size: {size} is no multiple of 32")
        return {**spec, **{k: v * size // made_for for k, v in large.items()}}

    return {"mixer": sized(PRESETS[name]["mixer"])}


WINDOWS = ("window_size", "split_size")


def _images(data: Any, choice: dict[str, Any], published: Any) -> None:
    data.name, data.path = "image_folder", choice["path"]
    data.mean, data.std = published.mean, published.std
    data.label_smoothing = 0.1
    size = choice["size"]
    resized = {"image_size": size, "eval_resize": published.resized(size)}
    data.augment.update(interpolation=published.interpolation, flip=True, **resized)
    data.augment.resized_crop_min_scale = 0.25
