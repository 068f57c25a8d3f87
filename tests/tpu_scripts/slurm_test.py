"""slurm.sh and train.sbatch."""

import os
import signal
import subprocess

import pytest

from tests.tpu_scripts.cloud import EVIL, SCRIPTS, wait_until


def submitted(cloud, *words):
    flags = [
        *["--job-name=a", f"--chdir={cloud.root}"],
        *[f"--output={cloud.root}/runs/slurm/a.log", "--nodes=1", "--gpus-per-node=8"],
        *["--time=1:00:00", "--signal=B:USR1@300"],
    ]
    return [[*flags, *words]]


def test_launch(cloud):
    words = (
        "--name=a",
        "--slurm_gpus=8",
        "--slurm_time=1:00:00",
        "--slurm_partition=p",
    )
    words += ("--slurm_account=b", "--slurm_args=--mem=0 --exclusive")
    cloud.run("slurm.sh", "launch", *words, "--", "python", *EVIL)
    more = ["--partition=p", "--account=b", "--mem=0", "--exclusive"]
    script = str(cloud.scripts / "train.sbatch")
    assert cloud.of("sbatch") == submitted(cloud, *more, script, "python", *EVIL)


def test_a_dry_run_prints_what_can_be_pasted(cloud):
    words = ("--name=a", "--slurm_gpus=8", "--slurm_time=1:00:00", "--dry_run")
    printed = cloud.run("slurm.sh", "launch", *words, "--", *EVIL[1:]).stdout
    assert not cloud.calls
    subprocess.run(["sh", "-c", printed], check=True, env=cloud.environment())
    script = str(cloud.scripts / "train.sbatch")
    assert cloud.of("sbatch") == submitted(cloud, script, *EVIL[1:])


def test_status_and_delete(cloud):
    cloud.run("slurm.sh", "status", "--name=a")
    cloud.run("slurm.sh", "delete", "--name=a")
    assert cloud.of("squeue") == cloud.of("scancel") == [["--me", "--name=a"]]
    error = cloud.run("slurm.sh", "delete", "--name=a b", code=2).stderr
    assert error == "error: name 'a b' is no job name: letters, digits, _ . -\n"


def job(cloud, *words):
    srun = cloud.bin / "srun"
    srun.write_text('#!/bin/bash\nwhile [[ $1 == --* ]]; do shift; done\nexec "$@"\n')
    srun.chmod(0o755)
    more = {"SLURM_JOB_ID": "7", "SLURM_GPUS_ON_NODE": "4"}
    return subprocess.Popen(
        ["bash", SCRIPTS / "train.sbatch", *words],
        cwd=cloud.folder,
        env=cloud.environment(**more),
        stdout=subprocess.PIPE,
        text=True,
    )


def test_a_job_hands_on_arguments_devices_and_exit_code(cloud):
    script = 'echo "$JAX_LOCAL_DEVICE_IDS"; printf "%s|" "$@"; exit 3'
    process = job(cloud, "bash", "-c", script, "x", *EVIL)
    output, _ = process.communicate(timeout=20)
    assert "\n0,1,2,3\n" + "".join(f"{word}|" for word in EVIL) in output
    assert process.returncode == 3 and not cloud.of("scontrol")


TRAINING = "trap 'exit {}' TERM; touch up; while :; do sleep 0.01; done"


@pytest.mark.parametrize(
    ("code", "again"), [(75, True), (143, True), (2, False), (0, False)]
)
def test_a_job_out_of_time_saves_and_is_queued_again(cloud, code, again):
    process = job(cloud, "sh", "-c", TRAINING.format(code))
    wait_until((cloud.folder / "up").exists)
    os.kill(process.pid, signal.SIGUSR1)
    process.communicate(timeout=20)
    assert process.returncode == code
    assert cloud.of("scontrol") == [["requeue", "7"]] * again


def test_a_cancelled_job_stays_away(cloud):
    process = job(cloud, "sh", "-c", "exit 75")
    process.communicate(timeout=20)
    assert process.returncode == 75 and not cloud.of("scontrol")
