"""Recipes: files of Python that give a config or a study, and where ours lie."""

import contextlib
import importlib.machinery
import os
import sys
import traceback
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from normjax.config.check import check_names
from normjax.config.fields import fill
from normjax.core.errors import UserError, one_of

PACKAGE = "configs"
"""Recipes import each other from the package of this name."""

_ROOT = Path(__file__).parents[1]
RECIPES = next(
    (folder for folder in (_ROOT / PACKAGE, _ROOT.parent / PACKAGE) if folder.is_dir()),
    _ROOT / PACKAGE,
)
"""Ours: within the installed package, beside it in the repository."""


def load_config(spec: str) -> ConfigDict:
    """The locked config of `FILE[:ARGUMENTS]`; see `file_of` for FILE.

    Fields that it leaves out have their defaults.

    Raises:
      UserError: no such file, or whatever goes wrong in it, with the line; a field that
        no run has.
    """
    path, _, arguments = spec.partition(":")
    config = load_module(path, "get_config", *filter(None, [arguments]))
    if not isinstance(config, ConfigDict):
        kind = type(config).__name__
        raise UserError(f"config file {path}: get_config gives a {kind}, no ConfigDict")
    try:
        check_names(config)
        with config.unlocked():
            fill(config)
    except UserError as error:
        raise UserError(f"config file {path}: {error}") from None
    return config.lock()


def load_module(path: str, function: str, *arguments: str) -> Any:
    """What `function(*arguments)` of the file that `path` names gives.

    Raises:
      UserError: no such file, or whatever goes wrong in it, with the line.
    """
    file = file_of(path)
    loader = importlib.machinery.SourceFileLoader("config_file", file)
    module = types.ModuleType(loader.name)
    try:
        with _recipes_for(Path(file)):
            loader.exec_module(module)
            return getattr(module, function)(*arguments)
    except UserError:
        raise
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == file]
        line = getattr(error, "lineno", None) or (lines or [1])[-1]
        kind, text = type(error).__name__, getattr(error, "msg", error)
        raise UserError(f"config file {path}, line {line}: {kind}: {text}") from error


def file_of(path: str) -> str:
    """A file at `path`, or that recipe of ours: "digits", "configs/digits.py".

    Raises:
      UserError: neither.
    """
    if os.path.isfile(path):  # which raises nothing, whatever the name
        return path
    ours = {
        str(file.relative_to(RECIPES).with_suffix("")): file
        for file in RECIPES.rglob("*.py")
        if file.name not in ("__init__.py", "common.py")
    }
    name = path.removeprefix(f"{PACKAGE}/").removesuffix(".py")
    if name not in ours:
        beside = _files_beside(path)
        raise UserError(one_of("config file", path, {*ours, *beside}))
    return str(ours[name])


def _files_beside(path: str) -> list[str]:
    folder = os.path.dirname(path)
    try:
        names = os.listdir(folder or ".")
    except (OSError, ValueError):
        return []
    return [os.path.join(folder, name) for name in names if name.endswith(".py")]


@contextlib.contextmanager
def _recipes_for(file: Path) -> Iterator[None]:
    """Meanwhile the package `configs` is the one that `file` lies in, and ours.

    Not what anybody else calls so: it is taken from no place that `sys.path` names.
    """
    before = _taken_out()
    try:
        own = [f for f in file.absolute().parents if f.name == PACKAGE][:1]
        places = [*map(str, own), str(RECIPES)]
        head = Path(places[0]) / "__init__.py"
        package = types.ModuleType(PACKAGE)
        package.__path__ = places
        sys.modules[PACKAGE] = package
        if head.is_file():
            importlib.machinery.SourceFileLoader(PACKAGE, str(head)).exec_module(
                package
            )
        yield
    finally:
        _taken_out()
        sys.modules.update(before)


def _taken_out() -> dict[str, Any]:
    """The modules of the package `configs`, which are loaded no more."""
    names = [n for n in sys.modules if n == PACKAGE or n.startswith(f"{PACKAGE}.")]
    return {name: sys.modules.pop(name) for name in names}
