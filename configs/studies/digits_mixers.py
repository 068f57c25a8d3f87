"""Every mixer on scanned digits, with LayerNorm and with PRepBN.

    python -m normjax.study configs/studies/digits_mixers.py --workdir=runs/mixers

Short runs of a vision transformer on maps of 4 x 4 tokens: 300 steps of 64 digits, the
same recipe for all. Mixers that know only sequences read the rows of the map.
"""

from typing import Any

from configs import digits

MIXERS: dict[str, dict[str, Any]] = {
    "softmax": {},
    "window": {"window_size": 2},
    "spatial_reduction": {"sr_ratio": 2},
    "linear_spatial_reduction": {"pool_size": 2},
    "cross_shaped_window": {"split_size": 2},
    "sla": {},
    "window_sla": {"window_size": 2},
    "spatial_reduction_sla": {"sr_ratio": 2},
    "cross_shaped_window_sla": {"split_size": 2},
    "focused_linear": {},
    "window_focused_linear": {"window_size": 2},
    "spatial_reduction_focused_linear": {"sr_ratio": 2},
    "cross_shaped_window_focused_linear": {"split_size": 2},
    "rela": {},
    "gated_rela": {},
    "rala": {},
    "rala_softmax": {},
    "gated_linear": {},
    "vig": {},
    "lightning": {},
    "transnormer": {},
    "mixture_of_head": {"shared_heads": 1},
    "differential": {},
    "pattention": {},
    "rg_lru": {},
    "local_attention": {"window": 4},
    "halo": {"block_size": 2, "halo_size": 1},
    "global_context": {"window_size": 2},
    "global_cosine": {},
    "channel": {},
    "super_token": {"token_size": 2},
    "aggregated": {"sr_ratio": 2},
    "self_guided": {"group_sizes": (4, 2, 1)},
    "self_guided_hybrid": {"window_size": 2, "sr_ratio": 2},
    "locally_enhanced": {},
    "inception": {"attention_heads": 1},
    "factorization": {"window_size": 2, "sr_ratio": 2},
    "forward_cross": {},
    "overlapping_spatial_reduction": {"sr_ratio": 2},
    "task_convolved": {"kernel_size": 3},
    "group_mamba": {},
    "monarch": {"max_length": 16},
    "raft": {},
    "mix_shift": {"kernel_sizes": (1, 1, 3, 3, 3)},
    "efficient_modulation": {"kernel_sizes": (3,)},
    "ulsam": {},
    "pooling": {},
    "identity": {},
}
NORMS = ("layer_norm", "prepbn")


def get_study() -> dict[str, Any]:
    """The fields of `normjax.study.study.Study`."""
    return {
        "title": "digits: test top-1 of one seed",
        "rows": "mixer",
        "seeds": (0,),
        "runs": {
            (mixer, norm): _config(mixer, arguments, norm)
            for mixer, arguments in MIXERS.items()
            for norm in NORMS
        },
    }


def _config(mixer: str, arguments: dict[str, Any], norm: str) -> Any:
    config: Any = digits.get_config(f"norm={norm},mixer={mixer}")
    config.total_steps = 300
    config.batch_size = 64
    config.recalibrate_batches = 20
    config.eval_every = config.checkpoint.every = 300
    config.model.depth = 2
    config.model.mixer.update(arguments)
    if mixer == "mixture_of_head":
        config.auxiliary_loss_weight = 0.01
    return config
