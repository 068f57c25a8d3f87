"""Command lines: flags, files, overrides of a config, and --help."""

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags

from normjax.config.overrides import Override, override, split
from normjax.config.recipes import load_config
from normjax.core.errors import UserError, utf8_path
from normjax.core.paths import workdir_path

HELP = ("-h", "-help", "--help", "--helpfull", "--helpshort")


class HelpWanted(Exception):
    """The text that --help asks for; no error."""


class CommandLine(NamedTuple):
    """What a command is told.

    Attributes:
      flags: values by name.  files: what is no flag.  overrides: of a config.
    """

    flags: flags.FlagValues
    files: list[str]
    overrides: list[Override]

    def config(self) -> Any:
        """The config of --config with its overrides, locked.

        Raises:
          UserError: no --config, or anything that is wrong with it or with them.
        """
        spec = self.flags["config"].value
        if not spec:
            raise UserError("--config is required, such as --config=configs/digits.py")
        return override(load_config(spec), self.overrides).lock()

    def workdir(self) -> Path:
        """The folder of --workdir.

        Raises:
          UserError: there is none, or an address where no runs can be.
        """
        folder = self.flags["workdir"].value
        if not folder:
            raise UserError("--workdir is required, such as --workdir=runs/digits")
        return workdir_path(utf8_path("workdir", folder))

    def refuse(self, names: Sequence[str], why: str) -> None:
        """Refuse flags that the others leave without effect.

        Raises:
          UserError: one of `names` is given.
        """
        for name in names:
            if self.flags[name].present:
                raise UserError(f"--{name} has no effect {why}")


def parse_flags(
    argv: Sequence[str],
    define: Callable[[flags.FlagValues], Any],
    about: str | None,
    *,
    files: str = "",
    overrides: bool = False,
) -> CommandLine:
    """Parse `argv` into flags of their own.

    Args:
      argv: with the program's name first.
      define: declares the flags.
      about: what --help says first.
      files: names of what has to come beside the flags, "CHECKPOINT WORKDIR"; of the
        last there may be more, "IMAGE...".
      overrides: whether fields of a config may be set.

    Raises:
      UserError: anything that is wrong with the command line.
      HelpWanted: it asks for help.
    """
    values = flags.FlagValues()
    values.set_gnu_getopt(True)
    define(values)
    end = argv.index("--") if "--" in argv else len(argv)
    if set(argv[1:end]) & set(HELP):
        raise HelpWanted(_help(values, about or "", overrides))
    found: list[Override] = []
    try:
        rest = values.read_flags_from_files(list(argv[1:]), force_gnu=True)
        if overrides:
            rest, found = split(rest)
        given = values([argv[0], *rest])[1:]
    except Exception as error:  # absl does not say what it raises
        raise UserError(_one_line(error)) from error
    wanted = files.split()
    if len(given) > len(wanted) and not files.endswith("..."):
        raise UserError(f"unexpected argument {given[len(wanted)]!r}")
    if len(given) < len(wanted):
        raise UserError(f"missing {wanted[len(given)]}: give {files}, see --help")
    return CommandLine(values, given, found)


def define_config(values: flags.FlagValues) -> None:
    """Declare --config."""
    what = "file or name of a config, and its arguments: FILE[:ARGUMENTS]"
    flags.DEFINE_string("config", None, what, flag_values=values)


def define_workdir(values: flags.FlagValues) -> None:
    """Declare --workdir."""
    flags.DEFINE_string("workdir", None, "folder of the run", flag_values=values)


def define_published(values: flags.FlagValues) -> None:
    """Declare --model, --weights, --averaged and --image_size: published weights."""
    flags.DEFINE_string("model", None, "preset of published weights", values)
    flags.DEFINE_string("weights", None, "file or folder of them", values)
    flags.DEFINE_bool("averaged", False, "the averaged ones of the file", values)
    what = "side of the images; 0: as published"
    flags.DEFINE_integer("image_size", 0, what, 0, flag_values=values)


def _help(values: flags.FlagValues, about: str, overrides: bool) -> str:
    rows = []
    for name in values:
        flag = values[name]
        kind = "--[no]" if flag.boolean else "--"
        default = "" if flag.default in (None, False, "", []) else flag.default
        given = f" (default: {default})" if default != "" else ""
        rows.append((f"{kind}{name}", f"{flag.help}{given}"))
    if overrides:
        rows.append(("--config.FIELD=VALUE", "a field of the config by its name"))
    width = max(len(name) for name, _ in rows) + 2 if rows else 0
    lines = [f"  {name:<{width}}{text}" for name, text in rows]
    return "\n".join([inspect.cleandoc(about), "", "flags:", *lines])


def _one_line(error: BaseException) -> str:
    text = str(error.args[0]) if error.args else type(error).__name__
    return " ".join(text.split())
