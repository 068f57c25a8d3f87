"""The page of all commands: what each says to --help."""

import contextlib
import io
import runpy
import sys

from normjax.cli.commands import COMMANDS


def page() -> str:
    """Markdown."""
    parts = [
        "# Commands\n",
        "`normjax NAME`, `python -m normjax.NAME` and, for the first two, `python "
        "train.py` and `python eval.py` are the same. Exit codes: 0 done, 1 failed, 2 "
        "wrong input (one line says what), 75 interrupted: the same command goes on.\n",
    ]
    for name, about in COMMANDS.items():
        parts.append(f"## {name}\n\n{about[0].upper()}{about[1:]}.\n")
        parts.append(f"```text\n{_help(name)}\n```\n")
    return "\n".join(parts)


def _help(name: str) -> str:
    """What `normjax NAME --help` prints; `config` prints its page, which is another."""
    if name == "config":
        return "python -m normjax.config    every field of a config, as Markdown"
    printed, argv = io.StringIO(), sys.argv
    try:
        sys.argv = [f"normjax {name}", "--help"]
        with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
            runpy.run_module(f"normjax.{name}", run_name="__main__", alter_sys=True)
    finally:
        sys.argv = argv
    text = printed.getvalue().strip()
    if not text:
        raise RuntimeError(f"normjax {name} --help prints nothing")
    return text
