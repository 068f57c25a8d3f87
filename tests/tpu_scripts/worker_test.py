"""worker.sh: a run on one machine, without ssh and cloud."""

import os
import signal
import subprocess

import pytest

from tests.tpu_scripts.cloud import wait_until


@pytest.fixture
def worker(cloud):
    cloud.put(workers=1)
    cloud.make_ready()

    def call(*words, **more):
        return cloud.worker(0, *words, **more)

    return call


def test_a_run_outlives_its_ssh_session(cloud, worker):
    worker("start", "sh", "-c", "echo $$ >pid; exec sleep 60")
    file = cloud.home(0) / "normjax/pid"
    wait_until(lambda: file.exists() and file.read_text())
    assert os.getsid(int(file.read_text())) != os.getsid(0)
    assert "running since" in worker("status").stdout


def test_a_second_run_is_refused(worker):
    worker("start", "sleep", "60")
    assert "a run is active since" in worker("check", code=3).stderr
    assert "a run is active since" in worker("start", "true", code=3).stderr
    assert "a run is active here" in worker("setup", code=3).stderr


def test_the_lock_lasts_as_long_as_any_process_of_the_run(cloud, worker):
    worker("start", "sh", "-c", "sleep 60 & echo $! >child")
    assert cloud.exit_code(0) == 0
    assert "running" in worker("status").stdout
    os.kill(int((cloud.home(0) / "normjax/child").read_text()), signal.SIGKILL)
    wait_until(lambda: "exited 0" in worker("status").stdout)


@pytest.mark.parametrize("shell", [False, True])
def test_stop_waits_for_the_checkpoint_and_its_exit_code(cloud, worker, shell):
    program = cloud.home(0) / "save"
    program.write_text(
        "#!/bin/bash\ntrap 'echo saved >saved; exit 75' TERM\n"
        "touch up\nwhile :; do sleep 0.01; done\n"
    )
    program.chmod(0o755)
    worker(
        "start", *(["bash", "-c", f"{program}; exit $?"] if shell else [str(program)])
    )
    wait_until((cloud.home(0) / "normjax/up").exists)
    assert "exited 75" in worker("stop", "20").stdout
    assert (cloud.home(0) / "normjax/saved").exists()


def test_stop_kills_what_does_not_end(cloud, worker):
    worker("start", "sh", "-c", "trap '' TERM; touch up; while :; do sleep 0.01; done")
    wait_until((cloud.home(0) / "normjax/up").exists)
    result = worker("stop", "0")
    assert "killed" in result.stderr and "died" in result.stdout


def test_a_mount_is_no_run(cloud, worker):
    cloud.put(exit={"mountpoint": 1})
    (cloud.home(0) / "source").mkdir()
    for name in ("pyproject.toml", "constraints.txt"):
        (cloud.home(0) / "source" / name).touch()
    pack = ("tar", "-czf", "normjax-source.tgz", "-C", "source", ".")
    subprocess.run(pack, cwd=cloud.home(0), check=True)
    worker(
        "setup",
        "bucket=b",
        f"mount={cloud.folder}/bucket",
        "command=sleep 3 >&- 2>&- &",
    )
    assert cloud.of("gcsfuse")
    worker("check")


def test_stop_of_nothing(worker):
    assert worker("stop", "0").stdout == "host-0: none\n"


def test_logs_before_the_first_run(worker):
    assert "no log yet" in worker("logs", "5", "false", "false", code=1).stderr


def test_the_environment_of_a_run(cloud, worker):
    worker("start", "sh", "-c", 'echo "$PATH" "$PYTHONUNBUFFERED"; pwd')
    cloud.exit_code(0)
    home = cloud.home(0)
    assert f"\n{home}/.normjax/venv/bin:" in cloud.log(0)
    assert f" 1\n{home}/normjax\n" in cloud.log(0)


def test_unknown_words(worker):
    assert "unknown verb 'fly'" in worker("fly", code=2).stderr
    assert "setup knows no 'a=b'" in worker("setup", "a=b", code=2).stderr
