"""Addresses are no paths: none becomes a folder with the name of a protocol."""

from pathlib import Path

import fsspec
import pytest

from normjax.cli import main as cli
from normjax.core.errors import UserError
from normjax.core.paths import is_local, local_path, workdir_path
from normjax.data import open_images, open_text


@pytest.mark.parametrize("path", ["runs/a", "/tmp/a:b", "a:b/c", "~/x", "C:/runs"])
def test_paths_of_a_file_system(path):
    assert local_path("data", path) == workdir_path(path) == Path(path)
    assert workdir_path(Path(path)) == Path(path) and is_local(workdir_path(path))


@pytest.mark.parametrize("path", ["gs://b/a", "gs:/b/a", "s3://b", "file:///tmp/a"])
def test_addresses_are_refused(path):
    with pytest.raises(UserError, match=f"data '{path}' is no path") as caught:
        local_path("data", path)
    assert "\n" not in str(caught.value) and "gcsfuse" in str(caught.value)


def test_runs_in_buckets(cloud):
    path = workdir_path("gs://b/a")
    assert str(path) == "gs://b/a" and str(path / "c.json") == "gs://b/a/c.json"
    assert workdir_path(path) == path and not is_local(path)


@pytest.mark.parametrize(
    "path", ["s3://b/a", "gs:/b/a", "gs://", "GS://b", "file:///a"]
)
def test_where_no_checkpoints_can_be(path):
    with pytest.raises(UserError, match=f"new workdir '{path}' is nowhere") as caught:
        workdir_path(path, "new workdir")
    assert "\n" not in str(caught.value) and "gs://BUCKET/RUN" in str(caught.value)


def test_buckets_without_gcsfs(monkeypatch, capsys):
    def missing(protocol):
        raise ImportError("Please install gcsfs to access Google Storage")

    monkeypatch.setattr(fsspec, "get_filesystem_class", missing)
    assert cli.run(cli.eval_command, ["eval.py", "--workdir=gs://b/a"]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and message.endswith("pip install gcsfs\n")


def test_nothing_is_made_of_an_address(tmp_path, monkeypatch, capsys):
    config = "--config=" + str(Path("configs/digits.py").absolute())
    monkeypatch.chdir(tmp_path)
    for command, *argv in (
        (cli.train_command, config, "--workdir=s3://b/a"),
        (cli.eval_command, "--workdir=s3://b/a"),
    ):
        assert cli.run(command, ["command", *argv]) == 2
        assert capsys.readouterr().err.startswith(
            "error: workdir 's3://b/a' is nowhere that checkpoints can be (allowed: a "
        )
    with pytest.raises(UserError, match="image_folder: path 'gs://b/cats' is no path"):
        open_images("image_folder", "train", path="gs://b/cats")
    with pytest.raises(UserError, match="text_file: path 'gs://b/"):
        open_text("text_file", "train", path="gs://b/*.txt")
    with pytest.raises(UserError, match="data_dir 'gs://b/sets' is no path"):
        open_images("digits", "train", data_dir="gs://b/sets")
    assert not list(tmp_path.iterdir())
