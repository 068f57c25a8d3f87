"""The command that runs all others."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

import normjax
from normjax.cli import commands

ROOT = Path(normjax.__file__).parent


def test_every_command_is_one_of_it():
    """Whatever `python -m normjax.NAME` runs; `eval` is a shell as well."""
    packages = {path.parent.name for path in ROOT.glob("*/__main__.py")}
    modules = {
        path.stem
        for path in ROOT.glob("*.py")
        if '__name__ == "__main__"' in path.read_text() and path.stem != "__main__"
    }
    assert packages | modules == set(commands.COMMANDS)
    for name in commands.COMMANDS:
        assert importlib.util.find_spec(f"normjax.{name}"), name


def test_help_names_all(capfd):
    for arguments in ([], ["help"], ["--help"]):
        assert commands.main(["normjax", *arguments]) == 0
        said = capfd.readouterr().out
        assert all(f"  {name} " in said for name in commands.COMMANDS)


@pytest.mark.parametrize("name", commands.COMMANDS)
def test_every_command_has_help_of_a_screen_and_a_page(name, capfd, monkeypatch):
    for module in (f"normjax.{name}", f"normjax.{name}.__main__"):
        if not hasattr(sys.modules.get(module), "__path__"):  # runpy runs it anew
            monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setattr(sys, "argv", [])
    with pytest.raises(SystemExit) as ended:
        commands.main(["normjax", name, "--help"])
    said, errors = capfd.readouterr()
    assert (ended.value.code, errors) == (0, "")
    lines = said.splitlines()
    assert 3 <= len(lines) <= 50 and max(map(len, lines)) <= 100
    assert f"normjax.{name}" in said or name in ("train", "eval")
    docs = ROOT.parent / "docs"
    pages = [page for page in docs.glob("*.md") if page.stem != "config"]
    wanted = re.compile(rf"normjax[. ]{name}\b")
    named = [page.name for page in pages if wanted.search(page.read_text())]
    assert named or name == "config", "a page of docs/ names every command"


def test_an_unknown_command_is_one_line(capfd):
    assert commands.main(["normjax", "tarin"]) == 2
    said = capfd.readouterr().err
    assert said.count("\n") == 1 and "did you mean 'train'" in said


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["config"], 0, "config.optim"),
        (["train", "--config=digits", "--config.optim.lrr=1"], 2, "mean 'lr'"),
    ],
)
def test_from_any_folder_beside_a_package_of_the_same_name(
    tmp_path, arguments, code, said
):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/__init__.py").write_text("raise RuntimeError('not ours')")
    done = subprocess.run(
        [sys.executable, "-m", "normjax", *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == code, done.stderr
    assert said in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
