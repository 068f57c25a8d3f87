"""Runs in a bucket: each kind of file, and whole runs beside those of a file system.

`cloud_storage` stands in for the bucket; it is killed by putting back what was there
before one of its requests.
"""

import itertools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from normjax.analysis.layers import LayerLog, plot_layers, read_layers
from normjax.cli import main as cli
from normjax.core.compiler import compiled_code_in
from normjax.core.errors import RunFailed, UserError
from normjax.core.files import whole_file
from normjax.core.paths import workdir_path
from normjax.evaluation.run import evaluate_run
from normjax.records import events, folders, report
from normjax.records.checkpoint import Checkpoints
from normjax.records.events import open_events
from normjax.records.json_files import read_json, write_json
from normjax.records.workdir import check_room, held
from normjax.train import loop
from normjax.train.profile import Profile
from normjax.train.recalibrate import forget, keep_progress, progress
from normjax.train.start import saved_variables, start_from
from tests.events import events_in
from tests.records.damage_test import state_at
from tests.study.study_test import run_study, study
from tests.train.loop_test import signal_at
from tests.train.tiny import tiny_config

ROOT = Path(__file__).parent.parent.parent
RUN = "gs://bucket/run"


@pytest.fixture
def run(bucket):
    return workdir_path(RUN)


def refuse(method, what):
    return True


def snapshots_of(bucket, change):
    """What the bucket held before each request of a change."""
    found = []
    bucket.before = lambda *_: found.append(dict(bucket.objects))
    try:
        change()
    finally:
        bucket.before = lambda *_: None
    return found


def test_json(bucket, run):
    write_json(run / "config.json", {"a": [1, 2]})
    assert read_json(run / "config.json") == {"a": [1, 2]}
    assert bucket.names() == ["bucket/run/config.json"]
    bucket.objects["bucket/run/config.json"] = b'{"a', 1
    with pytest.raises(UserError, match=r"gs://bucket/run/config.json is damaged"):
        read_json(run / "config.json")
    bucket.before = refuse
    for call in (lambda: read_json(run / "a"), lambda: write_json(run / "a", {})):
        with pytest.raises(UserError, match="403") as caught:
            call()
        assert "\n" not in str(caught.value) and RUN in str(caught.value)


def test_files_are_whole_or_not_there(bucket, run):
    with pytest.raises(KeyError), whole_file(run / "a.png") as file:
        file.write(b"half")
        raise KeyError
    assert bucket.names() == []


def test_progress_of_a_recalibration(bucket, run):
    sums = {"count": np.float64(3), "x/mean": np.arange(4.0)}
    assert progress(run) == {}
    keep_progress(run, sums)
    chex.assert_trees_all_equal(progress(run), sums)
    forget(run)
    forget(run)
    assert bucket.names() == []


def scalars_in(contents):
    """{(step, name): value} of files of events, each of them once."""
    found = {}
    for content in contents:
        for event in events_in(content):
            for value in event.summary.value:
                assert (event.step, value.tag) not in found
                found[event.step, value.tag] = value.simple_value
    return found


def test_events(bucket, run, monkeypatch):
    monkeypatch.setattr(events, "SENT", 300)
    written = open_events(run, 0)
    for step in range(20):
        written.add({"step": step, "loss": step / 4, "lr": 1.0})
        last = scalars_in(map(bucket.read, bucket.names()))
        assert last[step, "loss"] == step / 4
    written.close()
    expected = {(s, "loss"): s / 4 for s in range(20)}
    expected |= {(s, "lr"): 1.0 for s in range(20)}
    assert scalars_in(map(bucket.read, bucket.names())) == expected
    assert len(bucket.names()) > 3
    assert max(len(bucket.read(name)) for name in bucket.names()) < 600
    assert all(Path(n).name.startswith("events.out.tfevents") for n in bucket.names())


def test_pictures_and_histograms_on_both(bucket, run, tmp_path):
    """What cannot be counted is left out of a histogram."""
    image, values = np.full((2, 3, 3), 7, np.uint8), np.array([1.0, 2.0, np.nan])
    histograms = {"of": values, "nothing": np.array([np.inf])}
    for place in (run, tmp_path):
        written = open_events(place, 0)
        written.show(4, {"image": image}, histograms)
        written.close()
    (file,) = tmp_path.iterdir()
    for content in [*map(bucket.read, bucket.names()), file.read_bytes()]:
        shown = [v for e in events_in(content) if e.step == 4 for v in e.summary.value]
        first, second = shown
        assert (first.tag, first.image.height, first.image.width) == ("image", 2, 3)
        assert (second.tag, second.histo.num, second.histo.sum) == ("of", 2, 3)


def test_what_happens_inside_the_layers(bucket, run):
    log = LayerLog(run, 0)
    for step in (2, 4, 6):
        log.write(
            step, {"gradient_norm": {"embed": jnp.ones(()), "head": jnp.ones(())}}
        )
    log.close()
    log = LayerLog(run, 4)
    assert [record["step"] for record in read_layers(run)] == [2, 4]
    log.close()
    assert plot_layers(run) == run / "layers.png"
    assert bucket.names() == ["bucket/run/layers.jsonl", "bucket/run/layers.png"]


def test_curves(bucket, run):
    log = report.MetricLog(run, 0)
    for step in (1, 2):
        log.write(step, {"loss": 1 / step, "lr": float("nan")})
    log.close()
    curves = (("loss", True, ("loss",)), ("lr", False, ("lr",)))
    assert report.plot_curves.__wrapped__(run, curves) == run / "curves.png"
    assert bucket.read("bucket/run/curves.png")[:4] == b"\x89PNG"
    assert report.read_metrics(run) == [{"step": s, "loss": 1 / s} for s in (1, 2)]


def test_traces(bucket, run, monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    profile = Profile(run / "profile", 1, 0, 2)
    for step in range(3):
        profile.at(step, ())
    names = bucket.names()
    assert any(name.endswith(".xplane.pb") for name in names)
    assert all(name.startswith("bucket/run/profile/") for name in names)
    assert not any(tmp_path.iterdir())


def test_no_locks_and_room_enough(bucket, run, capsys):
    with held(run), held(run):
        check_room(run, {"w": jax.ShapeDtypeStruct((2**40,), np.float32)}, 3)
        assert bucket.names() == []
    said = "warning: buckets have no locks: a second run in gs://bucket/run would not"
    assert capsys.readouterr().out == 2 * f"{said} be noticed\n"


def test_a_bucket_that_cannot_be_used(bucket, run, capsys):
    bucket.before = refuse
    with pytest.raises(UserError, match=r"^workdir gs://bucket/run: HttpError: 403"):
        held(run).__enter__()
    assert cli.run(cli.eval_command, ["eval.py", f"--workdir={RUN}"]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: workdir gs://bucket/run: HttpError: 403")
    assert message.count("\n") == 1
    bucket.before = lambda *_: None
    assert cli.run(cli.eval_command, ["eval.py", f"--workdir={RUN}"]) == 2
    message = capsys.readouterr().err
    assert message == f"error: workdir {RUN} holds no run: no config.json in it\n"


def test_a_checkpoint_is_moved_whenever_it_is_killed(bucket, run):
    content = {"a": b"1", "d/b": b"2", folders.COMMITTED: b"3"}
    at = {place: run / place for place in ("5", "5.replaced")}

    def objects_of(place):
        prefix = f"bucket/run/{place}/"
        names = bucket.names(prefix)
        return {name.removeprefix(prefix): bucket.read(name) for name in names}

    for name, data in content.items():
        (at["5"] / name).write_bytes(data)
    moved = snapshots_of(bucket, lambda: folders.move(at["5"], at["5.replaced"]))
    assert objects_of("5.replaced") == content and objects_of("5") == {}
    assert len(moved) > 6
    for objects in moved:
        bucket.objects = objects
        complete = [place for place in at if folders.is_complete(at[place])]
        assert complete
        for place in complete:
            assert objects_of(place) == content


@pytest.fixture
def saved(bucket, run):
    """Checkpoints of which the one of step 2 is replaced; what was there meanwhile."""
    checkpoints = Checkpoints(run)
    for step in (1, 2):
        checkpoints.save(state_at(step), {"x": 1.0})
    checkpoints.wait()
    meanwhile = snapshots_of(
        bucket, lambda: checkpoints.replace(state_at(2), {"x": 2.0})
    )
    checkpoints.close()
    return meanwhile


def test_a_replaced_checkpoint_whenever_it_is_killed(bucket, run, saved):
    """The old one or the new one is there, and no leftovers."""
    assert not [name for name in bucket.names() if "replaced" in name]
    assert len(saved) > 50
    for objects in saved[:: len(saved) // 5]:
        bucket.objects = dict(objects)
        checkpoints = Checkpoints(run)
        state = checkpoints.restore_newest(state_at(0), set_aside=True)
        chex.assert_trees_all_equal(state, state_at(2))
        assert checkpoints.is_scored(2)
        checkpoints.close()
        assert not [name for name in bucket.names() if "replaced" in name]


def test_a_damaged_checkpoint_is_set_aside(bucket, run, saved):
    names = bucket.names("bucket/run/checkpoints/2/default/d/")
    before = bucket.names("bucket/run/checkpoints/2/")
    data, generation = bucket.objects[names[0]]
    bucket.objects[names[0]] = data[: len(data) // 2], generation
    checkpoints = Checkpoints(run)
    state = checkpoints.restore_newest(state_at(0), set_aside=True)
    assert checkpoints.latest() == int(state.step) == 1
    checkpoints.save(state_at(2))
    checkpoints.close()
    aside = bucket.names("bucket/run/checkpoints/2.damaged/")
    assert [name.replace(".damaged", "") for name in aside] == before


def test_a_bucket_that_is_away_is_no_damage(bucket, run, saved):
    checkpoints, there = Checkpoints(run), bucket.names()
    bucket.before = refuse
    with pytest.raises(RunFailed, match=r"^checkpoint 2 of .* cannot be read now"):
        checkpoints.restore(2, state_at(0))
    bucket.before = lambda *_: None
    checkpoints.close()
    assert bucket.names() == there


def test_compiled_code(bucket, run):
    with compiled_code_in(run / "compiled"):
        jax.jit(lambda x: x * 7 - 3).lower(jnp.ones(5)).compile()
    assert bucket.names("bucket/run/compiled/")


def test_a_checkpoint_that_cannot_be_written(bucket, run, saved):
    checkpoints = Checkpoints(run)
    bucket.before = lambda method, what: method == "POST" and "checkpoints/3" in what
    with pytest.raises(RunFailed) as caught:
        checkpoints.save(state_at(3))
        checkpoints.close()
    message = str(caught.value)
    assert "a checkpoint could not be written" in message and "\n" not in message
    assert message.endswith("newest complete one: 2")


def small():
    return tiny_config("norm=layer_norm,mixer=softmax")


@pytest.fixture(scope="module")
def on_disk(tmp_path_factory, compiled_once, data_dir):
    """(workdir, scores) of a run of six steps."""
    workdir = tmp_path_factory.mktemp("undisturbed")
    return workdir, loop.train(small(), workdir)


def names_in(workdir):
    """Names of a run's files, without what no two runs share."""
    names = {p.relative_to(workdir).as_posix() for p in workdir.rglob("*")}
    return {n for n in names if "/" not in n and "tfevents" not in n} - {"run.lock"}


def assert_the_same(bucket, on_disk):
    """What lies in the bucket is what the undisturbed run has left on the disk."""
    workdir, _ = on_disk
    run, top = workdir_path(RUN), {n.split("/")[2] for n in bucket.names("bucket/run/")}
    assert {n for n in top if "tfevents" not in n} == names_in(workdir)
    found, expected = map(report.read_metrics, (run, workdir))
    for record in found + expected:
        record.pop("images_per_second", None)
        record.pop("input_wait", None)
    assert found == expected
    states = [saved_variables(place) for place in (run, workdir)]
    chex.assert_trees_all_equal(*states)


@pytest.mark.usefixtures("compiled_once")
def test_a_run_is_stopped_goes_on_and_is_evaluated(
    bucket, run, on_disk, monkeypatch, capsys
):
    config = small()
    with monkeypatch.context() as patch:
        signal_at(patch, 4)
        assert loop.train(config, run) is None
    assert loop.train(config, run) == on_disk[1]
    assert_the_same(bucket, on_disk)
    capsys.readouterr()
    assert evaluate_run(run)["unfolded"] == pytest.approx(on_disk[1], rel=1e-5)
    assert f"{RUN}, step 6" in capsys.readouterr().out
    assert loop.train(config, run) == on_disk[1]
    assert_the_same(bucket, on_disk)


KILLED = """
import os, signal, sys
from normjax.records import report
from normjax.core.paths import workdir_path
from normjax.train import loop
from tests import cloud_storage
from tests.train.tiny import tiny_config

update = report.ProgressBar.update

def update_and_kill(self, step, scalars):
    update(self, step, scalars)
    if step == 5:
        os.kill(os.getpid(), signal.SIGKILL)

cloud_storage.install()
report.ProgressBar.update = update_and_kill
loop.train(tiny_config(sys.argv[1]), workdir_path("gs://bucket/run"))
"""


@pytest.mark.slow
@pytest.mark.usefixtures("compiled_once")
def test_a_killed_run_loses_one_interval_of_metrics(bucket, run, on_disk):
    command = [sys.executable, "-c", KILLED, "norm=layer_norm,mixer=softmax"]
    cache = {
        "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    options = {"cwd": ROOT, "env": os.environ | cache, "capture_output": True}
    process = subprocess.run(command, **options, text=True)
    assert process.returncode == -signal.SIGKILL, process.stderr
    steps = [r["step"] for r in report.read_metrics(run) if "loss" in r]
    assert steps in ([1, 2, 3, 4], [1, 2, 3, 4, 5])
    assert "bucket/run/metrics-00000000.jsonl" in bucket.names()
    assert loop.train(small(), run) == on_disk[1]
    assert_the_same(bucket, on_disk)


def test_a_run_that_begins_with_given_variables(bucket, run, on_disk):
    variables, config = saved_variables(on_disk[0]), small()
    start_from(config, variables, run)
    chex.assert_trees_all_equal(saved_variables(run)["params"], variables["params"])
    with pytest.raises(UserError, match="workdir gs://bucket/run holds a checkpoint"):
        start_from(config, variables, run)


def test_studies(bucket, run):
    for seed, cell in itertools.product((0, 1), ("a/x", "a/y", "b/x")):
        path = run / cell / str(seed) / "result.json"
        path.write_text(json.dumps({"top1": 0.5}))
    assert "| a | 50.00 ± 0.00 | 50.00 ± 0.00 |" in run_study(study(), run)
    assert b"table.png" in bucket.read("bucket/run/report.md")
    assert bucket.read("bucket/run/table.png")[:4] == b"\x89PNG"
