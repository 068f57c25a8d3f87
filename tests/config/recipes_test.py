"""Recipes are found by name and by file, whatever else is called `configs`."""

import subprocess
import sys
from pathlib import Path

import pytest

from normjax.config.recipes import RECIPES, file_of, load_config
from normjax.core.errors import UserError

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", ["digits", "digits.py", "configs/digits.py"])
def test_by_name_from_any_folder(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert file_of(name) == str(RECIPES / "digits.py")
    assert load_config(f"{name}:norm=none").model.norm.name == "none"
    assert file_of("studies/lm_norms") == str(RECIPES / "studies" / "lm_norms.py")
    for wrong in ("digit", "", "\0", "common"):
        with pytest.raises(UserError, match="unknown config file"):
            file_of(wrong)


def test_a_file_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("digits").write_text("def get_config(): return 1")
    with pytest.raises(UserError, match="gives a int"):
        load_config("digits")


def test_a_package_of_the_same_name(tmp_path, monkeypatch):
    """Its files see it, and what is ours behind it; ours never see it."""
    mine = tmp_path / "configs"
    mine.mkdir()
    (mine / "__init__.py").write_text("WIDTH = 24\n")
    (mine / "sizes.py").write_text("DEPTH = 3\n")
    (mine / "digits.py").write_text("raise SystemExit('not ours')\n")
    (mine / "run.py").write_text(
        "from configs import WIDTH, sizes, lm_bytes\n"
        "def get_config(arg=None):\n"
        "    from configs.common import image_config\n"
        "    config = image_config()\n"
        "    config.model.update(dim=WIDTH, depth=sizes.DEPTH)\n"
        "    return config\n"
    )
    outside = tmp_path / "outside.py"
    outside.write_text("from configs.digits import get_config\n")
    monkeypatch.syspath_prepend(tmp_path)
    theirs = sys.modules.get("configs")
    model = load_config(str(mine / "run.py")).model
    assert (model.dim, model.depth) == (24, 3)
    for spec in ("bn_only", str(outside)):
        assert load_config(spec).data.name == "digits"
    assert sys.modules.get("configs") is theirs


def test_installed_beside_a_package_of_the_same_name(tmp_path):
    """As setup.py lays it out, in a folder of somebody else's project."""
    site, theirs = tmp_path / "site" / "normjax", tmp_path / "theirs"
    (theirs / "configs").mkdir(parents=True)
    (theirs / "configs" / "__init__.py").write_text("raise SystemExit('not ours')\n")
    site.mkdir(parents=True)
    for part in (ROOT / "normjax").iterdir():
        (site / part.name).symlink_to(part)
    (site / "configs").symlink_to(ROOT / "configs")
    assert '"normjax.configs": "configs"' in (ROOT / "setup.py").read_text()

    def stderr_of(module, *arguments):
        argv = [sys.executable, "-m", f"normjax.{module}", *arguments]
        env = {"PYTHONPATH": str(site.parent), "PATH": ""}
        done = subprocess.run(argv, cwd=theirs, env=env, capture_output=True, text=True)
        assert done.returncode == 2, done
        return done.stderr

    text = stderr_of("train", "--config=configs/bn_only.py:norm=x", "--workdir=run")
    assert text.startswith("error: unknown config argument 'norm'")
    text = stderr_of("eval", "--workdir=run", "--stream=iid")
    assert text == "error: --stream has no effect without --adapt\n"
