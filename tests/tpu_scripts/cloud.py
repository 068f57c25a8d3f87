"""A cloud of folders: the scripts run for real, against programs that only record."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "tpu_scripts"
FAKES = (
    "gcloud kubectl sbatch squeue scancel scontrol hostname sudo "
    "python3.13 pip curl gcsfuse mountpoint"
)
TOOLS = (
    "awk bash cat chown cp date dirname env flock git grep gzip id ln mkdir mktemp "
    "mv nohup rm sed seq setsid sh sleep sort tail tar touch tr"
)
EVIL = [
    "",
    " ",
    "a b",
    "it's",
    '"',
    "$HOME",
    "`id`",
    "$(id)",
    "a;b",
    "a\nb",
    "a\n",
    "\\",
]
EVIL += [
    "*",
    "~",
    "#x",
    "!x",
    "&",
    "|",
    "é",
    "\t",
    "--x=y z",
    "--x=",
    "{a,b}",
    "=x",
    "%s",
]
EVIL += ["\\n", "'", "''", "$$", "\x01", "-n", "(", "<", "?"]


class Cloud:
    """Attributes: folder, where the scripts run; calls as recorded."""

    def __init__(self, folder):
        self.folder = folder
        self.state = folder / "cloud"
        self.bin = folder / "bin"
        for new in (self.bin, self.state / "down", self.state / "workers"):
            new.mkdir(parents=True)
        # A small checkout, which is soon packed; the name must survive quoting.
        self.root = folder / "a checkout's root"
        self.scripts = self.root / "tpu_scripts"
        shutil.copytree(SCRIPTS, self.scripts)
        (self.root / "normjax").mkdir()
        for name in ("train.py", "pyproject.toml", "constraints.txt", ".gitignore"):
            shutil.copy(ROOT / name, self.root)
        init = ("git", "init", "--quiet", "--template=", self.root)
        subprocess.run(init, check=True)
        # Nothing else is in PATH, so no test can reach a real cloud.
        fake = self.bin / "fake.sh"
        shutil.copy(Path(__file__).parent / "fake.sh", fake)
        fake.chmod(0o755)
        for name in FAKES.split():
            (self.bin / name).symlink_to(fake)
        for name in TOOLS.split():
            tool = shutil.which(name)
            assert tool, f"these tests need {name}"
            (self.bin / name).symlink_to(tool)
        self.put(workers=2, node=["ABSENT"], request=["ABSENT"], new_node=["READY"])
        self.put(new_request=["WAITING_FOR_RESOURCES ACTIVE"], exit={}, fail={})

    def put(self, *, workers=0, exit=None, fail=None, **states):
        """Change what the fakes answer."""
        for folder, told in (("exit", exit), ("fail", fail)):
            if told is None:
                continue
            shutil.rmtree(self.state / folder, ignore_errors=True)
            (self.state / folder).mkdir()
            for name, text in told.items():
                (self.state / folder / name).write_text(f"{text}\n")
        for name, lines in states.items():
            (self.state / name).write_text("".join(f"{line}\n" for line in lines))
        for worker in range(workers):
            self.home(worker).mkdir(exist_ok=True)
        for worker in range(workers, 9) if workers else ():
            shutil.rmtree(self.home(worker), ignore_errors=True)

    def home(self, worker):
        return self.state / "workers" / str(worker)

    def environment(self, **more):
        return {
            "PATH": str(self.bin),
            "HOME": str(self.folder),
            "FAKE_CLOUD": str(self.state),
            "NORMJAX_LAUNCH_POLL_INTERVAL": "0",
            **more,
        }

    def run(self, script, *words, code=0, environment=None):
        """Run a script of tpu_scripts; returns the finished process."""
        result = subprocess.run(
            ["bash", self.scripts / script, *words],
            cwd=self.folder,
            env=self.environment(**(environment or {})),
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert result.returncode == code, result.stdout + result.stderr
        return result

    def tpu(self, *words, **more):
        place = ("--name=node", "--zone=us-central2-b", "--accelerator=v4-16")
        return self.run("tpu.sh", words[0], *place, *words[1:], **more)

    def worker(self, number, *words, code=0):
        """Run worker.sh as on a worker."""
        result = subprocess.run(
            ["bash", SCRIPTS / "worker.sh", *words],
            cwd=self.home(number),
            env=self.environment(HOME=str(self.home(number)), FAKE_WORKER=str(number)),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert result.returncode == code, result.stdout + result.stderr
        return result

    def make_ready(self):
        """Workers as setup leaves them, without its cost."""
        self.put(node=["READY"])
        for home in self.homes():
            (home / "normjax").mkdir(parents=True)
            (home / ".normjax").mkdir()
            (home / ".normjax/ready").touch()
            shutil.copy(SCRIPTS / "worker.sh", home / "normjax-worker.sh")

    def homes(self):
        return sorted((self.state / "workers").iterdir())

    @property
    def calls(self):
        file = self.state / "calls.jsonl"
        lines = file.read_text().splitlines() if file.exists() else []
        return [json.loads(line) for line in lines]

    def of(self, program="gcloud"):
        return [call[1:] for call in self.calls if call[0] == program]

    def verbs(self):
        """What gcloud did, without its questions: 'create', 'scp', 'ssh start', ..."""
        found = []
        for _, _, group, verb, *rest in self.of():
            if verb == "ssh":
                command = next(r for r in rest if r.startswith("--command="))
                if "normjax-worker.sh status" in command or command == "--command=true":
                    continue
                verb = "ssh " + command.split()[2]
            if verb != "describe":
                prefix = "request " if group == "queued-resources" else ""
                found.append(prefix + verb)
        return found

    def forget(self):
        (self.state / "calls.jsonl").unlink(missing_ok=True)

    def exit_code(self, worker):
        """The exit code of the run on a worker, once it is there."""
        file = self.home(worker) / ".normjax/exit"
        wait_until(file.exists)
        return int(file.read_text())

    def log(self, worker):
        return (self.home(worker) / f".normjax/host-{worker}.log").read_text()

    def close(self):
        """End what tests left running."""
        for home in self.homes():
            pid = home / ".normjax/pid"
            if pid.exists() and not (home / ".normjax/exit").exists():
                with contextlib.suppress(ProcessLookupError, ValueError):
                    os.killpg(int(pid.read_text()), signal.SIGKILL)


def wait_until(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)
