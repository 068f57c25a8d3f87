"""What all configs share: reading the argument string, and the fields of every run.

A config is chosen as `--config=configs/digits.py:norm=prepbn,mixer=sla,runlocal`. What
follows the colon are choices that change several fields; single fields are overridden
as `--config.optim.lr=1e-3`.
"""

from typing import Any

from ml_collections import ConfigDict

from normjax.core.errors import UserError, one_of
from normjax.core.schedules import norm_schedule


def parse_arg(arg: str | None, **defaults: Any) -> dict[str, Any]:
    """Read "norm=prepbn,depth=4,runlocal" into a dict typed like `defaults`.

    Args:
      arg: comma-separated `key=value`; a bare `key` sets a flag.
      **defaults: every key that is allowed, with its default.

    Raises:
      UserError: unknown key, or a value of the wrong type.
    """
    values = dict(defaults)
    for item in filter(None, (arg or "").split(",")):
        key, given, text = item.partition("=")
        if key not in defaults:
            raise UserError(one_of("config argument", key, defaults))
        default = defaults[key]
        if isinstance(default, bool):
            if text not in ("", "true", "false"):
                raise UserError(
                    f"config argument {key!r} takes true or false: {text!r}"
                )
            values[key] = text != "false"
            continue
        try:
            values[key] = type(default)(text)
        except ValueError:
            kind = type(default).__name__
            raise UserError(
                f"config argument {key!r} takes a {kind}: {text!r}"
            ) from None
        if not given:
            raise UserError(f"config argument {key!r} needs a value: {key}=...")
    return values


def norm_config(name: str) -> ConfigDict:
    """The norm called `name`, with the fields of its schedule where it has one."""
    return ConfigDict({"name": name, **norm_schedule(name)})


def base_config() -> Any:
    """Every field that all runs have, with neutral values."""
    config: Any = ConfigDict()
    config.task = ""
    config.seed = 0
    config.batch_size = 128
    config.total_steps = 1000
    config.microbatches = 1
    # Of the computation: float32, bfloat16, or auto: bfloat16 on accelerators.
    config.dtype = "auto"
    config.ema_decay = 0.0  # 0: no average of the parameters
    config.auxiliary_loss_weight = 1.0  # of what layers add to the loss
    # A loss or gradient that is not finite: stop, skip the update or roll back, at most
    # `limit` times; see docs/reliability.md.
    config.nonfinite = ConfigDict({"policy": "stop", "limit": 10})
    config.recalibrate_batches = 0  # batches to re-estimate batch statistics from

    # Devices; see docs/scaling.md.
    config.mesh = ConfigDict({"data": -1, "fsdp": 1, "tensor": 1})  # -1: the rest
    config.sharding = ConfigDict(  # mesh axis by logical axis; empty: whole
        {"embed": "fsdp", "mlp": "tensor", "heads": "tensor", "vocab": "tensor"}
    )
    config.parallelism = "jit"  # or "pmap": one program per device, along mesh.data
    config.sync_batch_stats = True  # under pmap: batch statistics of all devices

    config.data = data = ConfigDict()
    data.name = ""
    data.path = ""  # of an image_folder or a text_file
    data.data_dir = ""  # of prepared sets; empty: the user's cache
    data.train_split = "train"
    data.eval_split = ""  # evaluated every eval_every steps and at the end
    data.test_split = ""  # evaluated at the end; empty: none
    data.workers = 0  # processes that read and augment; 0: threads of this one

    config.model = ConfigDict()
    config.reparam = ()  # dicts of pattern, name, arguments; see normjax.reparam

    config.optim = optim = ConfigDict()
    optim.name = "adamw"  # adamw, lion or sgd
    optim.lr = 1e-3
    optim.warmup_fraction = 0.05
    optim.final_lr_fraction = 0.0
    optim.weight_decay = 0.05
    optim.beta1 = 0.9
    optim.beta2 = 0.999
    optim.clip_norm = 1.0  # 0: no clipping
    optim.adaptive_clip = 0.0  # of gradients by weights; 0: no clipping
    optim.project_weights = False  # back to their initial norm after every update
    optim.trainable = ".*"  # regular expression; "norm" trains only the norms

    config.log_every = 50
    config.profile_steps = 0  # to trace, see normjax.train.profile; 0: none
    config.diagnostics_every = 0  # steps between looks into the layers; 0: never
    config.eval_every = 500
    config.checkpoint = checkpoint = ConfigDict()
    checkpoint.every = 500
    checkpoint.keep_last = 2
    checkpoint.keep_best = 1
    return config


def image_config() -> Any:
    """Every field that a run of image classification has, with neutral values."""
    config = base_config()
    config.task = "image_classification"

    data = config.data
    data.name = "digits"  # digits, image_folder or the name of a TFDS set
    data.eval_split = "test"
    data.undecodable = "stop"  # or "skip" an image that cannot be decoded
    data.mean = (0.5,)  # of the pixels scaled to 0..1, one a channel or one for all
    data.std = (0.5,)
    data.label_smoothing = 0.0
    data.mixup_alpha = 0.0
    data.cutmix_alpha = 0.0
    data.erase_probability = 0.0  # of random erasing
    data.repeats = 1  # augmented copies of an image, one after the other

    data.augment = augment = ConfigDict()  # see normjax.data.augment.Fields
    augment.image_size = 0
    augment.eval_resize = 0
    augment.resized_crop_min_scale = 0.0
    augment.crop_padding = 0
    augment.crop_fill = "zero"
    augment.flip = False
    augment.rand_augment_ops = 0
    augment.rand_augment_set = "paper"  # or "increasing", see normjax.data.rand_augment
    augment.rand_augment_magnitude = 9.0
    augment.rand_augment_std = 0.0

    model = config.model
    model.name = "vit"
    model.norm = norm_config("layer_norm")
    model.mixer = ConfigDict({"name": "softmax"})
    model.activation = "gelu"
    model.stem = ConfigDict({"name": "patch"})
    return config


def language_config() -> Any:
    """Every field that a run of language modeling has, with neutral values."""
    config = base_config()
    config.task = "language_modeling"
    config.z_loss_weight = 0.0  # of mean(logsumexp(logits)**2)

    data = config.data
    data.name = "pytext"  # pytext, text_file or the name of a TFDS set
    data.eval_split = "validation"
    data.test_split = "test"
    data.text = text = ConfigDict()  # see normjax.data.text.Fields
    text.length = 128
    text.layout = "packed"  # packed documents, or padded: one document a row
    text.tokenizer = "bytes"  # or the file of a trained one, .json or .model
    text.train_path = ""  # of a text_file: paths by split instead of data.path
    text.validation_path = ""
    text.test_path = ""

    model = config.model
    model.name = "lm_tiny"
    model.norm = norm_config("rms_norm")
    model.mixer = ConfigDict({"name": "softmax"})
    return config


def small_recipe(config: Any, *, runlocal: bool) -> None:
    """Optimizer of the small models of sequences; `runlocal`: 20 steps of it."""
    config.optim.lr = 3e-3
    config.optim.beta2 = 0.99
    config.optim.weight_decay = 0.1
    if runlocal:
        config.total_steps, config.batch_size, config.log_every = 20, 8, 5
        config.eval_every = config.checkpoint.every = 10
