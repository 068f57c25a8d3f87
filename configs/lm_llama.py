"""Language models in LLaMA's shape, for accelerators: 70M, 130M and 350M parameters.

    python train.py --config=configs/lm_llama.py:variant=130m,norm=rms_norm \\
        --workdir=runs/llama --config.data.text.tokenizer=llama.model

Rows of 256 tokens of C4, 512 of them a step, as the small models of GaLore, Mix-LN and
their like are trained; the tokenizer (32,000 pieces) is a file of yours, C4 a TFDS set
that is prepared. PRepBN warms up for 10,000 updates and replaces RMSNorm over the next
18,000, as SLAB's LLaMA-350M. Arguments: variant (70m, 130m, 350m), norm, placement, and
runlocal (a small model on bytes of the standard library, to see that it works).
"""

from ml_collections import ConfigDict

from configs.common import language_config, parse_arg
from normjax.core.errors import UserError, one_of

PRESETS = {"70m": "lm_70m", "130m": "lm_130m", "350m": "slab_llama_350m"}
STEPS = {"70m": 10_000, "130m": 20_000, "350m": 60_000}
LEARNING_RATES = {"70m": 2e-3, "130m": 1e-3, "350m": 1e-3}
PREPBN = {
    "name": "prepbn",
    "warmup_steps": 10_000,
    "decay_steps": 18_000,
    "layer_norm": {"name": "rms_norm", "epsilon": 1e-6},
    "batch_norm": {
        "name": "repbn",
        "epsilon": 1e-6,
        "alpha_init": 0.0,
        "scale_init": 0.0,
    },
}


def get_config(arg: str | None = None) -> ConfigDict:
    """The run; see the module's docstring for `arg`.

    Raises:
      UserError: unknown variant.
    """
    choice = parse_arg(
        arg, variant="130m", norm="prepbn", placement="pre", runlocal=False
    )
    variant = choice["variant"]
    if variant not in PRESETS:
        raise UserError(one_of("variant", variant, PRESETS))
    config = language_config()
    config.data.name = "c4/en"
    config.data.test_split = ""
    config.data.text.tokenizer = "tokenizer.model"
    config.data.text.length = 256
    config.batch_size = 512
    config.total_steps = STEPS[variant]
    config.eval_every = config.checkpoint.every = 1000
    config.model.name = PRESETS[variant]
    norm = {"name": choice["norm"]}
    config.model.norm = ConfigDict(PREPBN if choice["norm"] == "prepbn" else norm)
    config.model.placement = choice["placement"]
    config.model.remat = variant == "350m"
    config.optim.lr = LEARNING_RATES[variant]
    config.optim.warmup_fraction = 0.1
    config.optim.final_lr_fraction = 0.1
    config.optim.beta2 = 0.95
    config.optim.weight_decay = 0.1
    if choice["runlocal"]:
        config.data.update(name="pytext", test_split="test")
        config.data.text.update(tokenizer="bytes", length=64)
        config.model.update(dim=64, depth=2, num_heads=4, mlp_hidden=128, remat=False)
        config.batch_size, config.total_steps, config.log_every = 8, 20, 5
        config.eval_every = config.checkpoint.every = 10
        if choice["norm"] == "prepbn":
            config.model.norm.update(warmup_steps=4, decay_steps=10)
    return config
