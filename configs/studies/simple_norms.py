"""LayerNorm, RMSNorm and SimpleRMSNorm in a decoder; and the first without its mean.

    python -m normjax.study simple_norms --workdir=runs/simple_norms

A byte-level decoder; and the largest difference of the logits when a Pre-LN decoder is
turned into a Pre-RMSNorm or Pre-CRMSNorm one, in float32, by the largest logit.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from configs.studies.common import decoder
from normjax.study.claims import Claim

NORMS = ("layer_norm", "rms_norm", "simple_rms_norm")
SAME = 0.03


def get_study() -> dict[str, Any]:
    """The fields of `normjax.study.study.Study`."""
    layer, rms, simple = ((norm, "trained") for norm in NORMS)
    exact = Claim(
        "A Pre-LN transformer is a Pre-RMSNorm one, exactly.",
        "Pre-RMSNorm and Pre-CRMSNorm (Jiang et al., 2023)",
        "equal; 1 to 10 % less time",
        1e-5,
        ("rms_norm", "converted"),
        metric="difference",
    )
    return {
        "title": "pytext: bits per byte",
        "rows": "norm",
        "metric": "bits_per_byte",
        "percent": False,
        "runs": {
            **{(norm, "trained"): decoder(f"norm={norm}") for norm in NORMS},
            ("rms_norm", "converted"): _converted("rms_norm"),
            ("crms_norm", "converted"): _converted("crms_norm"),
        },
        "claims": (
            Claim(
                "RMSNorm does as well as LayerNorm.",
                "RMSNorm (Zhang & Sennrich, 2019)",
                "comparable, 7 to 64 % less time",
                rms,
                layer,
                margin=SAME,
                equal=True,
            ),
            Claim(
                "SimpleRMSNorm, which learns nothing, loses nothing.",
                "TransNormerLLM (Qin et al., 2023)",
                "385M: loss 2.770 with either",
                simple,
                rms,
                margin=SAME,
                equal=True,
            ),
            exact,
            exact._replace(
                statement="And a Pre-CRMSNorm one, with a channel less.",
                less=("crms_norm", "converted"),
            ),
        ),
    }


def _converted(norm: str) -> Callable[[int, Path], Mapping[str, float]]:
    def measure(seed: int, folder: Path) -> Mapping[str, float]:
        import jax
        import jax.numpy as jnp

        from normjax import fusion, models

        model = models.build(
            "decoder", vocab_size=257, norm="layer_norm", dim=64, depth=4, num_heads=2
        )
        tokens = jax.random.randint(jax.random.key(seed), (2, 32), 0, 257)
        variables = jax.jit(model.init)(jax.random.key(seed + 1), tokens)
        # Norms are at their start: 1 and 0 would hide what becomes of them.
        leaves, structure = jax.tree.flatten(variables)
        keys = jax.random.split(jax.random.key(seed + 2), len(leaves))
        noisy = [
            leaf + 0.1 * jax.random.normal(key, leaf.shape)
            for leaf, key in zip(leaves, keys, strict=True)
        ]
        variables = jax.tree.unflatten(structure, noisy)
        new = fusion.convert_pre_norm(model, variables, norm)
        before = model.apply(variables, tokens)
        after = new.model.apply(new.variables, tokens)
        gap = jnp.max(jnp.abs(after - before)) / jnp.max(jnp.abs(before))
        return {"difference": float(gap), "bits_per_byte": float("nan")}

    return measure
