"""Decoders without norms, by their activation.

    python -m normjax.study norm_free_text --workdir=runs/norm_free_text

A byte-level decoder with LayerNorm and without any norm; *entropy*: of the attention,
mean over layers, in nats, at the end.
"""

from typing import Any

from configs.studies.common import decoder
from normjax.study.cells import Measure
from normjax.study.claims import Claim

ENTROPY = "attention_entropy"
SOURCE = "AERO and entropy-guided attention (Jha & Reagen, 2024)"


def get_study() -> dict[str, Any]:
    """The fields of `normjax.study.study.Study`."""
    smooth, sharp = ("none", "gelu"), ("none", "relu")
    figures = "perplexity 2.688 and 2.757 with norms, 3.197 and 2.936 without"
    return {
        "title": "pytext: bits per byte by norm and activation",
        "rows": "norm",
        "metric": "bits_per_byte",
        "percent": False,
        "runs": {
            (norm, activation): _cell(norm, activation)
            for norm in ("layer_norm", "none")
            for activation in ("gelu", "relu")
        },
        "claims": (
            Claim(
                "Without norms ReLU is ahead of GELU.", SOURCE, figures, smooth, sharp
            ),
            Claim(
                "With LayerNorm it is the other way round.",
                SOURCE,
                figures,
                ("layer_norm", "relu"),
                ("layer_norm", "gelu"),
            ),
            Claim(
                "Without norms GELU's attention is overloaded: its entropy is higher.",
                SOURCE,
                "entropic overload of early heads",
                smooth,
                sharp,
                metric=f"{ENTROPY}_mean",
            ),
        ),
    }


def _cell(norm: str, activation: str) -> Any:
    config = decoder(f"norm={norm}", mlp="mlp", activation=activation)
    config.diagnostics_every = config.total_steps
    return Measure("last_layers", {"quantity": ENTROPY}, config)
