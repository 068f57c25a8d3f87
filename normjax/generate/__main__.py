"""Text of a trained language model.

python -m normjax.generate --workdir=DIR [--prompt=TEXT | --prompt_file=FILE]
    [--length=256] [--temperature=1] [--top_k=K] [--top_p=P] [--seed=0] [--count=1]
    [--fold] [--config.data.text.tokenizer=FILE]

The text goes to stdout with its prompt in front, the speed to stderr. Without a prompt
a document begins. It is --length new tokens long, or shorter where the document ends.
"""

import functools
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags

from normjax import fusion
from normjax.cli.flags import define_workdir, parse_flags
from normjax.cli.main import run
from normjax.core.compiler import jit
from normjax.core.errors import UserError
from normjax.data.vocabulary import Tokenizer, open_tokenizer
from normjax.generate.decoding import cache_bytes, generate, init_cache
from normjax.generate.sampling import check
from normjax.models import MODELS, PRESETS
from normjax.train.config import kept_config

READS = ("data.text.tokenizer",)
"""Fields of a config that generation makes use of."""


def generate_command(argv: Sequence[str]) -> int:
    """See the head of the file."""
    given = parse_flags(argv, _define, __doc__, overrides=True)
    values, workdir = given.flags, given.workdir()
    check(values.temperature, values.top_k, values.top_p)
    if values.temperature == 0:
        given.refuse(["top_k", "top_p"], "with --temperature=0: nothing is drawn")
    prompt = _prompt(values)
    config = _decoder_config(kept_config(workdir, given.overrides, READS), workdir)
    tokenizer = open_tokenizer(config.data.text.tokenizer)
    model, variables = _restore(workdir, config, tokenizer.size + 1, fold=values.fold)
    start = np.array([tokenizer.size, *_encoded(tokenizer, prompt)], np.int32)
    tokens = np.tile(start, (values.count, 1))
    write = functools.partial(
        generate,
        model,
        length=values.length,
        temperature=values.temperature,
        top_k=values.top_k,
        top_p=values.top_p,
        end_token=tokenizer.size,
    )
    key = jax.random.key(values.seed)
    compiled = jit(write).lower(variables, tokens, key=key).compile()
    begin = time.perf_counter()
    new = np.asarray(compiled(variables, tokens, key=key))
    seconds = time.perf_counter() - begin
    count = _print_texts(tokenizer, start[1:], new)
    length = tokens.shape[1] + values.length - 1
    empty = functools.partial(init_cache, model, batch_size=len(tokens), length=length)
    size = cache_bytes(jax.eval_shape(empty, variables))
    speed = f"{count} tokens in {seconds:.2f} s: {count / seconds:.0f} tokens a second"
    print(f"{speed}; cache of {size:,} bytes", file=sys.stderr)
    return 0


def _define(values: flags.FlagValues) -> None:
    known: Any = {"flag_values": values}
    count = {"lower_bound": 1, **known}
    define_workdir(values)
    flags.DEFINE_string("prompt", None, "how the text begins", **known)
    flags.DEFINE_string("prompt_file", None, "file with the prompt", **known)
    flags.DEFINE_integer("length", 256, "new tokens at most", **count)
    flags.DEFINE_float("temperature", 1.0, "0: the most probable token", **known)
    flags.DEFINE_integer("top_k", None, "so many most probable tokens", **known)
    flags.DEFINE_float("top_p", None, "most probable tokens with this sum", **known)
    seeds = {"lower_bound": 0, "upper_bound": 2**32 - 1, **known}
    flags.DEFINE_integer("seed", 0, "the same seed gives the same text", **seeds)
    flags.DEFINE_integer("count", 1, "texts", **count)
    flags.DEFINE_bool("fold", False, "norms merged into their neighbours", **known)


def _prompt(values: flags.FlagValues) -> bytes:
    if values.prompt_file is None:
        return os.fsencode(values.prompt or "")
    if values.prompt is not None:
        raise UserError("give --prompt or --prompt_file, not both")
    try:
        return Path(values.prompt_file).read_bytes()
    except OSError as error:
        reason = f"{values.prompt_file}: {error.strerror}"
        raise UserError(f"cannot read --prompt_file={reason}") from None


def _decoder_config(config: Any, workdir: Path) -> Any:
    """`config` of a run, whose model generates."""
    name = config.model.name
    kind = PRESETS.get(name, {"name": name})["name"]
    if "decode" not in MODELS[kind].tags:
        known = ", ".join(entry.name for entry in MODELS if "decode" in entry.tags)
        message = f"holds the model {name!r}, which generates no text (those: {known})"
        raise UserError(f"workdir {workdir} {message}")
    return config


def _restore(workdir: Path, config: Any, vocab_size: int, *, fold: bool):
    """The model of a run and its variables, on the device."""
    from normjax.records import report
    from normjax.train.experiment import build_model
    from normjax.train.start import saved_variables

    model = build_model(config, vocab_size=vocab_size)
    variables = saved_variables(workdir)
    if fold:
        with report.warnings_in_lines():
            model, variables = fusion.fold(model, variables)
    return model, jax.device_put(variables)


def _encoded(tokenizer: Tokenizer, prompt: bytes) -> np.ndarray:
    try:
        return tokenizer.encode(prompt)
    except ValueError as error:
        raise UserError(f"the prompt is no text of the tokenizer: {error}") from None


def _print_texts(tokenizer: Tokenizer, prompt: np.ndarray, new: np.ndarray) -> int:
    """Print prompt and continuation of every row; the number of tokens written."""
    count = 0
    for i, row in enumerate(new):
        ends = np.flatnonzero(row == tokenizer.size)
        kept = row[: ends[0]] if len(ends) else row
        count += len(kept) + min(len(ends), 1)
        if len(new) > 1:
            print(f"--- {i + 1} of {len(new)}")
        print(tokenizer.decode([*prompt.tolist(), *kept.tolist()]))
    return count


if __name__ == "__main__":
    sys.exit(run(generate_command, sys.argv))
