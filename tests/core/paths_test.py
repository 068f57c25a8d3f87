"""Addresses are no paths: none becomes a folder with the name of a protocol."""

from pathlib import Path

import pytest

from normjax.cli import main as cli
from normjax.core.errors import UserError
from normjax.core.paths import local_path
from normjax.data import open_images, open_text


@pytest.mark.parametrize("path", ["runs/a", "/tmp/a:b", "a:b/c", "~/x", "C:/runs"])
def test_paths_of_a_file_system(path):
    assert local_path("workdir", path) == Path(path)


@pytest.mark.parametrize("path", ["gs://b/a", "gs:/b/a", "s3://b", "file:///tmp/a"])
def test_addresses_are_refused(path):
    with pytest.raises(UserError, match=f"workdir '{path}' is no path") as caught:
        local_path("workdir", path)
    assert "\n" not in str(caught.value) and "gcsfuse" in str(caught.value)


def test_nothing_is_made_of_an_address(tmp_path, monkeypatch, capsys):
    config = "--config=" + str(Path("configs/digits.py").absolute())
    monkeypatch.chdir(tmp_path)
    for command, *argv in (
        (cli.train_command, config, "--workdir=gs://b/a"),
        (cli.eval_command, "--workdir=gs://b/a"),
    ):
        assert cli.run(command, ["command", *argv]) == 2
        assert capsys.readouterr().err.startswith(
            "error: workdir 'gs://b/a' is no path"
        )
    with pytest.raises(UserError, match="image_folder: path 'gs://b/cats' is no path"):
        open_images("image_folder", "train", path="gs://b/cats")
    with pytest.raises(UserError, match="text_file: path 'gs://b/"):
        open_text("text_file", "train", path="gs://b/*.txt")
    with pytest.raises(UserError, match="data_dir 'gs://b/sets' is no path"):
        open_images("digits", "train", data_dir="gs://b/sets")
    assert not list(tmp_path.iterdir())
