"""Python of the README and of a page in docs runs as it is; links lead somewhere."""

import re
from pathlib import Path

from normjax.cli import flags

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_quick_start_runs():
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    exec(compile(code, "README.md", "exec"), {})


def test_use_in_your_model_runs():
    page = (ROOT / "docs/use_in_your_model.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(blocks) > 4
    exec(compile("\n".join(blocks), "use_in_your_model.md", "exec"), {})


def test_links_exist():
    links = re.findall(r"\]\(([^)#:]+)\)", README)
    assert links
    for link in links:
        assert (ROOT / link).exists(), link


def test_every_config_is_one():
    """Their choices and overrides, too; and the second command resumes."""
    commands = re.findall(r"^python .*--config.*", README, re.MULTILINE)
    for command in commands:
        argv = [word for word in command.split() if word.startswith("--config")]
        given = flags.parse_flags(["-", *argv], flags.define_config, "", overrides=True)
        assert given.config().task, command
    assert len(commands) > 5
    resumes = re.findall(r"^python train.py (.*?) *# again", README, re.MULTILINE)
    assert resumes == ["--workdir=runs/a"]


def test_every_command_exists():
    for name in re.findall(r"^(?:python |make )(\S+)", README, re.MULTILINE):
        make = (ROOT / "Makefile").read_text()
        assert name == "-m" or (ROOT / name).exists() or f"{name}:" in make, name
