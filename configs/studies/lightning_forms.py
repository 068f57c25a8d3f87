"""Lightning attention's three forms: the same numbers, and what they cost.

    python -m normjax.study lightning_forms --workdir=runs/lightning_forms

Decayed linear attention of 2 heads with 32 channels, float32; step by step, in one
block, and in blocks. *Error*: largest difference from float64, by the largest value.
*Slope*: exponent p of time ~ tokens^p from 1,024 to 4,096 tokens.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from normjax.study.claims import Claim

FORMS = ("recurrent", "parallel", "chunked")
SOURCE = "Lightning Attention-2 (Qin et al., 2024)"


def get_study() -> dict[str, Any]:
    """The fields of `normjax.study.study.Study`."""
    return {
        "title": "lightning attention: error in float32, and slope of time",
        "rows": "form",
        "metric": "error",
        "percent": False,
        "runs": {(form, "float32"): _measured(form) for form in FORMS},
        "claims": (
            *(
                Claim(
                    f"The {form} form gives the same numbers.",
                    SOURCE,
                    "equal by algebra",
                    1e-5,
                    (form, "float32"),
                )
                for form in FORMS
            ),
            Claim(
                "In blocks, time grows as the tokens do.",
                SOURCE,
                "constant speed for any length",
                1.25,
                ("chunked", "float32"),
                metric="slope",
            ),
            Claim(
                "In one block it grows faster than in many.",
                SOURCE,
                "O(n^2 d) beside O(n d^2)",
                ("parallel", "float32"),
                ("chunked", "float32"),
                metric="slope",
            ),
        ),
    }


def _measured(form: str) -> Callable[[int, Path], Mapping[str, float]]:
    def measure(seed: int, folder: Path) -> Mapping[str, float]:
        import math

        import jax
        import numpy as np

        from normjax.core.timing import alternate
        from normjax.mixers import decay

        function, logs = getattr(decay, form), np.log([0.9, 0.99]).astype(np.float32)
        rng = np.random.default_rng(seed)
        calls: dict[int, Any] = {}
        for length in (1024, 4096):
            q, k, v = rng.normal(size=(3, 1, length, 2, 32)).astype(np.float32)
            run = jax.jit(lambda q, k, v: function(q, k, v, logs)[0])
            calls[length] = lambda run=run, given=(q, k, v): run(*given)
        seconds = alternate(calls, 5)
        q, k, v = rng.normal(size=(3, 1, 256, 2, 32)).astype(np.float32)
        exact = _exact(*(t.astype(np.float64) for t in (q, k, v)), np.exp(logs))
        error = np.abs(function(q, k, v, logs)[0] - exact).max() / np.abs(exact).max()
        slope = math.log(seconds[4096] / seconds[1024]) / math.log(4)
        return {"error": float(error), "slope": slope}

    return measure


def _exact(q: Any, k: Any, v: Any, decay: Any) -> Any:
    """o_t = q_t sum_{s <= t} decay^(t - s) k_s v_s^T in NumPy."""
    import numpy as np

    state = np.zeros((*q.shape[:1], *q.shape[2:], v.shape[-1]))
    outputs = []
    for t in range(q.shape[1]):
        added = k[:, t, :, :, None] * v[:, t, :, None]
        state = decay[:, None, None] * state + added
        outputs.append(np.einsum("bhk,bhkv->bhv", q[:, t], state))
    return np.stack(outputs, 1)
