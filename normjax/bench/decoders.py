"""Tokens a second of language models: RMSNorm, PRepBN, and PRepBN folded."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from normjax import fusion, models
from normjax.core.compiler import jit
from normjax.core.errors import UserError, one_of
from normjax.core.timing import alternate
from normjax.generate.decoding import generate
from normjax.records import report

DEFAULT = ("lm_70m",)
READ, WRITTEN, TEXTS = 512, 64, 8
ROUNDS = 9
REFERENCE = "rms_norm"

# That of SLAB's LLaMA-350M.
PREPBN: Any = models.PRESETS["slab_llama_350m"]["norm"]


def decoders_command(argv: Sequence[str]) -> int:
    """`decoders [PRESET ...]`: reading in parallel, and writing token by token."""
    names = argv[1:] or DEFAULT
    known = [name for name, spec in models.PRESETS.items() if is_decoder(spec)]
    for name in names:
        if name not in known:
            raise UserError(one_of("decoder", name, known))
    title = f"tokens a second, {READ} read, {WRITTEN} written in {TEXTS} texts"
    for name in names:
        seconds = alternate(calls_of(name), ROUNDS)
        columns = ("norm", "read", "written", f"read / {REFERENCE}", "written / it")
        report.table(f"{name}, {title}", columns, rows_of(seconds))
    return 0


def is_decoder(spec: Mapping[str, Any]) -> bool:
    """Whether a preset writes text."""
    return "decode" in models.MODELS[spec["name"]].tags


def rows_of(seconds: Mapping[tuple[str, str], float]) -> list[tuple]:
    """(norm, tokens a second read, written, both as ratios to those of RMSNorm).

    Args:
      seconds: of a call by (norm, "read" or "written").
    """
    counts = {"read": READ, "written": WRITTEN * TEXTS}
    rates = {key: counts[key[1]] / value for key, value in seconds.items()}
    rows = []
    for norm in dict.fromkeys(norm for norm, _ in seconds):
        own = [rates[norm, way] for way in counts]
        ratios = [rates[norm, way] / rates[REFERENCE, way] for way in counts]
        rows.append((norm, *own, *ratios))
    return rows


def calls_of(name: str) -> dict[tuple[str, str], Callable]:
    """What is timed, by norm and way."""
    calls = {}
    for norm, spec in ((REFERENCE, {"name": REFERENCE}), ("prepbn", PREPBN)):
        model = models.build({"name": name, "norm": spec})
        tokens = jax.random.randint(jax.random.key(1), (1, READ), 0, model.vocab_size)
        variables = jax.jit(model.init)(jax.random.key(0), tokens)
        calls.update(_calls(norm, model, variables, tokens))
        if norm == "prepbn":
            step = jnp.asarray(spec["warmup_steps"] + spec["decay_steps"], jnp.int32)
            ended = _at_step(variables, step)
            folded = fusion.fold(model, ended)
            calls.update(_calls(f"{norm}, folded", *folded, tokens))
    return calls


def _calls(norm, model, variables, tokens) -> dict[tuple[str, str], Callable]:
    prompts = jnp.tile(tokens[:, :1], (TEXTS, 1))
    write = functools.partial(generate, model, length=WRITTEN, temperature=0.0)
    written = jit(lambda v, prompts: write(v, prompts, key=jax.random.key(0)))
    return {
        (norm, "read"): functools.partial(jit(model.apply), variables, tokens),
        (norm, "written"): functools.partial(written, variables, prompts),
    }


def _at_step(variables: Any, step: jax.Array) -> dict[str, Any]:
    """With the schedules of the norms at `step`."""

    def replaced(path, leaf):
        return step if path[-1].key == "step" else leaf

    return jax.tree_util.tree_map_with_path(replaced, variables)
