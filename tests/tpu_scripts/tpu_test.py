"""tpu.sh: what it asks of gcloud in every state of the machine."""

import re
import subprocess

import pytest

from tests.tpu_scripts.cloud import EVIL

PLACE = ["--zone=us-central2-b"]
NODE = ["compute", "tpus", "tpu-vm"]
REQUEST = ["compute", "tpus", "queued-resources"]


def test_create_on_demand(cloud):
    cloud.tpu("create", "--project=p", "--create_args=--network=n --tags=a,b")
    assert cloud.of()[1] == [
        *NODE,
        *["create", "node", *PLACE, "--project=p", "--accelerator-type=v4-16"],
        *["--version=tpu-ubuntu2204-base", "--network=n", "--tags=a,b"],
    ]
    assert cloud.of()[0] == cloud.of()[2]
    assert cloud.of()[0] == [
        *[*NODE, "describe", "node", *PLACE, "--project=p", "--format=value(state)"]
    ]


@pytest.mark.parametrize(
    ("accelerator", "version"),
    [
        ("v2-8", "tpu-ubuntu2204-base"),
        ("v5litepod-16", "v2-alpha-tpuv5-lite"),
        ("v5p-8", "v2-alpha-tpuv5"),
        ("v6e-8", "v2-alpha-tpuv6e"),
    ],
)
def test_the_runtime_version_follows_the_accelerator(cloud, accelerator, version):
    words = ("create", f"--accelerator={accelerator}", "--dry_run")
    assert f" --version={version}\n" in cloud.tpu(*words).stdout
    assert " --version=mine\n" in cloud.tpu(*words, "--version=mine").stdout


def test_create_spot_and_reserved(cloud):
    cloud.tpu("create", "--spot")
    assert cloud.of()[1][-1] == "--spot"
    cloud.forget()
    cloud.put(node=["ABSENT"])
    cloud.tpu("create", "--reserved")
    assert cloud.of()[1][-1] == "--reserved"


def test_create_queued_waits_for_its_turn(cloud):
    states = "ACCEPTED WAITING_FOR_RESOURCES PROVISIONING ACTIVE"
    cloud.put(new_request=[states], new_node=["CREATING READY"])
    result = cloud.tpu("create", "--queued", "--spot", "--queue_valid=6h")
    (create,) = [call for call in cloud.of() if call[3] == "create"]
    assert create == [
        *REQUEST,
        *["create", "node", "--node-id=node", *PLACE, "--accelerator-type=v4-16"],
        *[
            "--runtime-version=tpu-ubuntu2204-base",
            "--spot",
            "--valid-until-duration=6h",
        ],
    ]
    assert "request node is WAITING_FOR_RESOURCES: waiting" in result.stderr
    assert result.stderr.endswith("TPU VM node is READY\n")


@pytest.mark.parametrize("flags", [(), ("--queued",)])
@pytest.mark.parametrize("request_state", ["ABSENT", "ACTIVE"])
def test_create_twice_is_safe(cloud, flags, request_state):
    cloud.put(node=["READY"], request=[request_state])
    assert "TPU VM node is READY" in cloud.tpu("create", *flags).stderr
    assert cloud.verbs() == []


@pytest.mark.parametrize("state", ["WAITING_FOR_RESOURCES", "PROVISIONING", "CREATING"])
def test_a_request_in_the_queue_is_not_made_again(cloud, state):
    cloud.put(request=[state])
    result = cloud.tpu("create", "--queued", "--wait_timeout=0", code=75)
    assert f"request node is still {state} after 0 s" in result.stderr
    assert cloud.verbs() == []


@pytest.mark.parametrize("state", ["PREEMPTED", "TERMINATED"])
def test_a_preempted_machine_is_deleted_first(cloud, state):
    cloud.put(node=[state])
    cloud.tpu("create")
    assert cloud.verbs() == ["delete", "create"]
    assert cloud.of()[1] == [*NODE, "delete", "node", *PLACE, "--quiet"]


@pytest.mark.parametrize("state", ["SUSPENDED", "FAILED"])
def test_a_spent_request_is_deleted_first(cloud, state):
    cloud.put(request=[state], node=["PREEMPTED"])
    cloud.tpu("create", "--queued")
    assert cloud.verbs() == ["request delete", "request create"]
    assert cloud.of()[1] == [*REQUEST, "delete", "node", *PLACE, "--force", "--quiet"]


@pytest.mark.parametrize("node", ["PREEMPTED", "ABSENT"])
def test_a_request_whose_machine_is_gone_is_made_again(cloud, node):
    cloud.put(request=["ACTIVE"], node=[node])
    cloud.tpu("create", "--queued")
    assert cloud.verbs() == ["request delete", "request create"]


def test_a_suspending_request_is_waited_for(cloud):
    cloud.put(request=["SUSPENDING", "SUSPENDED"])
    cloud.tpu("create", "--queued")
    assert cloud.verbs() == ["request delete", "request create"]


def test_a_request_that_fails_is_not_made_for_ever(cloud):
    cloud.put(new_request=["FAILED"])
    result = cloud.tpu("create", "--queued", code=1)
    assert "the request failed: gcloud compute tpus queued-resources" in result.stderr
    assert cloud.verbs() == ["request create"]


def test_other_states_are_waited_for(cloud):
    cloud.put(node=["DELETING", "DELETING", "ABSENT"])
    cloud.tpu("create")
    assert cloud.verbs() == ["create"]
    cloud.put(node=["STOPPED"])
    cloud.tpu("create")
    assert cloud.verbs() == ["create", "start"]


def test_no_capacity_is_a_failure_with_a_hint(cloud):
    cloud.put(fail={"tpu-vm create": "There is no more capacity in the zone"})
    result = cloud.tpu("create", code=1)
    assert "no more capacity" in result.stderr and "--queued waits" in result.stderr


@pytest.mark.parametrize("verb", ["create", "delete", "status", "launch", "resume"])
def test_no_permission_is_not_taken_for_absence(cloud, verb):
    denied = (
        "ERROR: PERMISSION_DENIED: Location z is not found or access is unauthorized."
    )
    cloud.put(
        fail={"tpu-vm describe": denied, "queued-resources describe": denied},
        node=["READY"],
    )
    result = cloud.tpu(verb, "--command=true", code=1)
    assert denied in result.stderr and cloud.verbs() == []


def test_delete(cloud):
    cloud.put(node=["READY"], request=["ACTIVE"])
    cloud.tpu("delete")
    assert cloud.verbs() == ["request delete"]
    cloud.put(node=["PREEMPTED"])
    cloud.tpu("delete")
    assert cloud.verbs() == ["request delete", "delete"]
    assert "nothing to delete" in cloud.tpu("delete").stderr
    assert cloud.verbs() == ["request delete", "delete"]


def test_delete_forgives_what_vanished_meanwhile(cloud):
    cloud.put(node=["READY", "ABSENT"], fail={"tpu-vm delete": "NOT_FOUND"})
    cloud.tpu("delete")
    cloud.put(node=["READY"])
    assert "node could not be deleted" in cloud.tpu("delete", code=1).stderr


def test_setup_copies_and_runs_on_all_workers(cloud):
    cloud.put(node=["READY"], exit={"mountpoint": 1})
    cloud.tpu("setup", "--bucket=b", "--setup_command=pwd >$HOME/here")
    assert cloud.verbs() == ["scp", "ssh setup"]
    scp, setup = (call for call in cloud.of()[2:] if call[3] in ("scp", "ssh"))
    assert scp[-3:] == ["node:", *PLACE, "--worker=all"]
    assert setup[6] == "--worker=all"
    for worker in (0, 1):
        home = cloud.home(worker)
        assert (home / "normjax/train.py").exists()
        assert (home / "normjax/tpu_scripts/tpu.sh").exists()
        assert not (home / "normjax/.venv").exists()
        assert (home / "here").read_text() == f"{home}/normjax\n"
    installs = cloud.of("pip")
    assert installs == [installs[0]] * 2
    assert installs[0][-4:] == ["-c", "constraints.txt", "-e", ".[tpu]"]
    assert cloud.of("gcsfuse")[0][-2:] == ["b", "/mnt/bucket"]


def test_setup_again_installs_nothing_and_keeps_runs(cloud):
    cloud.put(node=["READY"], workers=1)
    cloud.tpu("setup")
    code = cloud.home(0) / "normjax"
    (code / "runs").mkdir()
    (code / "runs/a").touch()
    (code / "stale.py").touch()
    cloud.tpu("setup")
    assert len(cloud.of("pip")) == 1
    assert (code / "runs/a").exists() and not (code / "stale.py").exists()
    cloud.tpu("setup", "--extra=cuda")
    assert len(cloud.of("pip")) == 2


def test_setup_from_a_repository(cloud):
    source = cloud.folder / "source"
    source.mkdir()
    for name in ("pyproject.toml", "constraints.txt"):
        (source / name).touch()
    git = ("git", "-C", source, "-c", "user.name=a", "-c", "user.email=a@b")
    for command in ("init -q", "add .", "commit -qm one", "tag v1"):
        subprocess.run([*git, *command.split()], check=True)
    cloud.put(node=["READY"], workers=1)
    for _ in range(2):
        cloud.tpu("setup", f"--repo={source}", "--ref=v1")
    assert (cloud.home(0) / "normjax/pyproject.toml").exists()
    assert next(c[4] for c in cloud.of() if c[3] == "scp").endswith("worker.sh")


def test_setup_that_fails_on_a_worker_fails(cloud):
    cloud.put(node=["READY"], exit={"pip": 1})
    result = cloud.tpu("setup", code=1)
    assert "host-0: pip install failed" in result.stdout + result.stderr
    assert "setup failed" in result.stderr
    cloud.put(fail={"tpu-vm scp": "no route"}, exit={})
    assert "copying to the workers failed" in cloud.tpu("setup", code=1).stderr


def test_launch_hands_on_every_argument(cloud):
    cloud.make_ready()
    show = cloud.folder / "a program"
    show.write_text('#!/bin/sh\nprintf "%s\\0" "$@" >"$HOME/seen"\nexit 75\n')
    show.chmod(0o755)
    cloud.tpu("launch", "--", str(show), *EVIL)
    for worker in (0, 1):
        assert cloud.exit_code(worker) == 75
        seen = (cloud.home(worker) / "seen").read_bytes().decode()
        assert seen.split("\0")[:-1] == EVIL
        assert "=== exit code 75\n" in cloud.log(worker)


def test_launch_of_a_line_of_shell(cloud):
    cloud.make_ready()
    line = 'cd "$HOME" && printf \'%s\\n\' "it\'s $((1 + 1))" | tr a-z A-Z >out; exit 3'
    cloud.tpu("launch", f"--command={line}")
    assert [cloud.exit_code(worker) for worker in (0, 1)] == [3, 3]
    assert (cloud.home(1) / "out").read_text() == "IT'S 2\n"


def test_launch_starts_nowhere_if_one_worker_is_busy(cloud):
    cloud.make_ready()
    cloud.worker(1, "start", "sleep", "60")
    result = cloud.tpu("launch", "--", "true", code=1)
    assert "host-1: a run is active since" in result.stderr
    assert "a run is active: tpu.sh stop, or launch --force" in result.stderr
    assert not (cloud.home(0) / ".normjax/started").exists()
    cloud.tpu("launch", "--force", "--", "true")
    assert [cloud.exit_code(worker) for worker in (0, 1)] == [0, 0]


def test_launch_before_setup(cloud):
    cloud.put(node=["READY"])
    assert "not set up: tpu.sh setup" in cloud.tpu("launch", "--", "a", code=1).stderr
    cloud.make_ready()
    (cloud.home(1) / ".normjax/ready").unlink()
    assert "not set up: tpu.sh setup" in cloud.tpu("launch", "--", "a", code=1).stderr


def test_launch_on_what_is_not_there(cloud):
    result = cloud.tpu("launch", "--", "a", code=2)
    assert "there is no TPU VM node in us-central2-b: tpu.sh create" in result.stderr
    cloud.put(node=["PREEMPTED"])
    result = cloud.tpu("launch", "--", "a", code=1)
    assert "TPU VM node is PREEMPTED: tpu.sh resume" in result.stderr


def test_launch_waits_for_workers_and_names_them(cloud):
    cloud.put(workers=4)
    cloud.make_ready()
    for worker in (1, 3):
        (cloud.state / f"down/{worker}").write_text("2")
    result = cloud.tpu("launch", "--", "true")
    assert "waiting for worker 1 3 (2 of 4 answer)" in result.stderr
    assert [cloud.exit_code(worker) for worker in range(4)] == [0] * 4


def test_launch_gives_up_on_workers(cloud):
    cloud.make_ready()
    (cloud.state / "down/1").write_text("1000")
    result = cloud.tpu("launch", "--ready_timeout=0", "--", "true", code=75)
    assert "hint: is the key in the agent" in result.stderr
    assert result.stderr.endswith("error: worker 1 did not answer within 0 s\n")
    assert not (cloud.home(0) / ".normjax/started").exists()


def test_launch_warns_of_checkpoints_that_will_be_lost(cloud):
    cloud.make_ready()
    said = cloud.tpu("launch", "--spot", "--", "true").stderr
    assert "no bucket is set, so checkpoints are lost" in said
    assert "refuses a workdir that not all 2 workers see" in said
    cloud.exit_code(0), cloud.exit_code(1)
    words = ("launch", "--spot", "--bucket=b", "--", "true")
    assert "no bucket is set" not in cloud.tpu(*words).stderr
    cloud.exit_code(0), cloud.exit_code(1)
    words = ("launch", "--spot", "--", "echo", "--workdir=gs://b/run")
    assert "no bucket is set" not in cloud.tpu(*words).stderr


def test_status_logs_stop(cloud):
    assert cloud.tpu("status").stdout == "node: absent\n"
    cloud.put(node=["READY"])
    assert cloud.tpu("status").stdout == "node: READY\nhost-0: none\nhost-1: none\n"
    cloud.make_ready()
    cloud.tpu("launch", "--", "sh", "-c", "echo hello; exec sleep 60")
    assert cloud.tpu("status").stdout.count(": running since 20") == 2
    cloud.tpu("stop")
    assert (
        cloud.tpu("status").stdout
        == "node: READY\nhost-0: exited 143\nhost-1: exited 143\n"
    )
    log = cloud.tpu("logs", "--lines=3").stdout
    assert "hello\n" in log and "=== exit code 143\n" in log
    assert "host-1: hello\n" in cloud.tpu("logs", "--worker=all").stdout


def test_ssh(cloud):
    cloud.put(node=["READY"])
    assert (
        cloud.tpu("ssh", "--", "printf", "%s|", "a b", "$HOME").stdout
        == "a b|$HOME|" * 2
    )
    cloud.forget()
    cloud.tpu("ssh", "--worker=1", "--ssh_args=--internal-ip", "--", "true")
    assert cloud.of() == [
        [*NODE, "ssh", "node", *PLACE, "--worker=1", "--internal-ip", "--command=true"]
    ]


def test_resume_after_a_preemption(cloud):
    cloud.put(node=["PREEMPTED"], request=["SUSPENDED"])
    cloud.tpu("resume", "--queued", "--", "true")
    again = ["request delete", "request create"]
    assert cloud.verbs() == [*again, "scp", "ssh setup", "ssh check", "ssh start"]
    assert [cloud.exit_code(worker) for worker in (0, 1)] == [0, 0]


def test_resume_leaves_what_is_well(cloud):
    cloud.make_ready()
    cloud.tpu("launch", "--", "sleep", "60")
    cloud.forget()
    result = cloud.tpu("resume", "--", "sleep", "60")
    assert "the run is active on all workers" in result.stderr and not cloud.verbs()
    cloud.tpu("stop")
    cloud.tpu("launch", "--", "true")
    cloud.exit_code(0), cloud.exit_code(1)
    cloud.forget()
    result = cloud.tpu("resume", "--", "true")
    assert "the run has finished" in result.stderr and not cloud.verbs()


def test_resume_ends_half_a_run(cloud):
    cloud.make_ready()
    cloud.worker(1, "start", "sleep", "60")
    cloud.worker(0, "start", "false")
    cloud.exit_code(0)
    cloud.tpu("resume", "--", "true")
    assert [cloud.exit_code(worker) for worker in (0, 1)] == [0, 0]


COUNTER = 'echo x >>"$HOME/../../tries"; test "$(grep -c x "$HOME/../../tries")" -gt {}'


def test_run_goes_on_until_done(cloud):
    cloud.put(workers=1)
    command = f"--command={COUNTER.format(2)} || exit 75"
    result = cloud.tpu("run", command)
    assert result.stderr.endswith("done; tpu.sh delete ends the bill\n")
    assert (cloud.state / "tries").read_text() == "x\n" * 3
    assert cloud.verbs().count("create") == 1


@pytest.mark.parametrize("ready", [1, 2, 3, 4, 5])
def test_run_recreates_a_preempted_machine(cloud, ready):
    """Whether that happens before, between or after setup and launch."""
    cloud.put(workers=1, new_node=["READY " * ready + "PREEMPTED", "READY"])
    tries = 2 if ready > 3 else 1
    command = f"--command={COUNTER.format(tries - 1)} || exec sleep 60"
    result = cloud.tpu("run", command)
    assert "TPU VM node is PREEMPTED" in result.stderr
    assert result.stderr.endswith("done; tpu.sh delete ends the bill\n")
    lives = [verb for verb in cloud.verbs() if verb in ("create", "delete")]
    assert lives == ["create", "delete", "create"]
    assert (cloud.state / "tries").read_text() == "x\n" * tries


@pytest.mark.parametrize(
    ("code", "text"), [(1, "the run failed"), (2, "refused its input")]
)
def test_run_stops_where_going_on_is_no_use(cloud, code, text):
    cloud.put(workers=1)
    assert text in cloud.tpu("run", "--", "sh", "-c", f"exit {code}", code=code).stderr


def test_run_forgives_as_many_failures_as_told(cloud):
    cloud.put(workers=1)
    cloud.tpu("run", "--max_restarts=1", f"--command={COUNTER.format(1)}")
    assert (cloud.state / "tries").read_text() == "x\n" * 2


@pytest.mark.parametrize(
    "words",
    [
        ["create"],
        ["create", "--queued", "--spot"],
        ["setup", "--bucket=b", "--setup_command=echo 'a b' \"$HOME\"; true"],
        ["launch", "--", "printf", *EVIL],
        ["stop"],
        ["logs", "--worker=all"],
        ["resume", "--queued", "--command=echo 'x y'"],
        ["run", "--command=echo 'x y'"],
        ["delete"],
        ["delete", "--queued"],
    ],
    ids=lambda words: "_".join(words[:2]),
)
def test_a_dry_run_prints_what_can_be_pasted(cloud, words):
    printed = cloud.tpu(*words[:1], "--dry_run", *words[1:]).stdout
    assert cloud.calls == []
    pasted = paste(cloud, printed)
    assert all(line[:2] == ["compute", "tpus"] for line in pasted)
    assert len(pasted) == len(re.findall("^gcloud ", printed, re.MULTILINE))
    assert not {"describe", "ssh"} >= {line[3] for line in pasted} or words[0] in (
        *["stop", "logs", "launch"],
    )


def paste(cloud, printed):
    """The arguments of each gcloud when a shell reads what was printed."""
    (cloud.bin / "gcloud").unlink()
    (cloud.bin / "gcloud").write_text(
        "#!/bin/sh\n"
        """printf '%s\\0' "$@" END >>"$FAKE_CLOUD/pasted"\n"""
    )
    (cloud.bin / "gcloud").chmod(0o755)
    subprocess.run(["sh", "-c", printed], check=True, env=cloud.environment())
    lines = (cloud.state / "pasted").read_bytes().decode().split("END\0")
    return [line.split("\0")[:-1] for line in lines[:-1]]


def test_what_is_pasted_is_what_would_run(cloud):
    words = ("launch", "--bucket=it's", "--", "/bin/echo", *EVIL)
    printed = cloud.tpu(words[0], "--dry_run", *words[1:]).stdout
    cloud.make_ready()
    cloud.tpu(*words)
    assert paste(cloud, printed) == cloud.of()
