"""What processes agree on, with threads for processes and a dict for the store."""

import concurrent.futures
import contextlib
import threading

import jax
import pytest
from ml_collections import ConfigDict

from normjax.core.errors import RunFailed, UserError
from normjax.devices import group
from normjax.devices import processes as distributed
from normjax.devices.group import Group
from normjax.records import workdir
from normjax.records.checkpoint import Checkpoints
from normjax.train import alike
from normjax.train.nonfinite import Window

PATIENCE = 60  # seconds that no test needs


class Store:
    """Of DistributedRuntimeClient what `Group` calls; one for all."""

    def __init__(self, count):
        self.values, self.changed, self.count = {}, threading.Condition(), count
        self.barriers = {}

    def key_value_set(self, key, value, allow_overwrite=False):
        with self.changed:
            if key in self.values and not allow_overwrite:
                raise RuntimeError("ALREADY_EXISTS")
            self.values[key] = value
            self.changed.notify_all()

    def key_value_try_get(self, key):
        if key not in self.values:
            raise RuntimeError("NOT_FOUND")
        return self.values[key]

    def blocking_key_value_get(self, key, timeout_in_ms):
        with self.changed:
            assert self.changed.wait_for(lambda: key in self.values, PATIENCE)
        return self.values[key]

    def key_value_dir_get(self, prefix):
        return [(k, v) for k, v in self.values.items() if k.startswith(prefix)][::-1]

    def wait_at_barrier(self, name, timeout_in_ms):
        with self.changed:
            barrier = self.barriers.setdefault(name, threading.Barrier(self.count))
        barrier.wait(PATIENCE)


class Left(BaseException):
    """In place of the end of a process."""


@pytest.fixture
def run_all(monkeypatch):
    """A function that calls another one in several "processes"; results or errors."""
    mine = threading.local()
    monkeypatch.setattr(distributed, "group", lambda: getattr(mine, "group", None))
    monkeypatch.setattr(workdir, "PATIENCE", 0.01)

    def call(index, store, work, count):
        mine.group = Group(store, index, count)
        try:
            return work(index)
        except Exception as error:
            return error

    def run_all(work, count=3):
        store = Store(count)
        with concurrent.futures.ThreadPoolExecutor(count) as pool:
            calls = [pool.submit(call, i, store, work, count) for i in range(count)]
            return [each.result(PATIENCE) for each in calls]

    return run_all


def lines(results):
    assert {type(result) for result in results} == {UserError}, results
    assert all("\n" not in str(result) for result in results)
    return {str(result) for result in results}


def test_what_the_first_says_and_what_all_say(run_all):
    def work(index):
        first = distributed.from_first({"step": index})
        again = distributed.from_first([index, None])
        return first, again, distributed.gather(index * 10), distributed.is_first()

    expected = {"step": 0}, [0, None], [0, 10, 20]
    assert run_all(work) == [(*expected, True), (*expected, False), (*expected, False)]


def test_what_the_first_refuses_all_refuse_with_its_line(run_all):
    def refuse():
        raise UserError("no room")

    assert lines(run_all(lambda index: distributed.on_first(refuse))) == {"no room"}


@pytest.mark.parametrize("shared", [True, False])
def test_a_workdir_that_is_not_the_same_for_all_is_refused(run_all, tmp_path, shared):
    def work(index):
        with workdir.held(tmp_path / ("run" if shared or index < 2 else "other")):
            return sorted(path.name for path in (tmp_path / "run").iterdir())

    results = run_all(work)
    if shared:
        assert results == [[workdir.LOCK_FILE]] * 3
        return
    assert all("of process 2 (" in line for line in lines(results))
    assert all("is not that of process 0 (" in line for line in lines(results))
    assert [path.name for path in (tmp_path / "run").iterdir()] == [workdir.LOCK_FILE]


CONFIG = {"lr": 0.1, "data": {"name": "digits", "path": "", "workers": 0}}
DIGESTS = {"train": {"examples": 5, "digest": "abc"}}


@pytest.mark.parametrize(
    ("config", "digests", "line"),
    [
        ({**CONFIG, "lr": 0.2}, DIGESTS, "config.lr is 0.1 there and 0.2 here"),
        (
            CONFIG,
            {"train": {"examples": 5, "digest": "abd"}},
            "data.train.digest is abc there and abd here",
        ),
        ({**CONFIG, "data": {**CONFIG["data"], "path": "/ssd/a"}}, DIGESTS, ""),
    ],
)
def test_processes_that_were_started_otherwise_are_refused(
    run_all, config, digests, line
):
    def work(index):
        other = index == 1
        mine = ConfigDict(config if other else CONFIG)
        alike.check_alike(mine, digests if other else DIGESTS)

    results = run_all(work)
    if not line:
        assert results == [None] * 3
        return
    (said,) = lines(results)
    assert said.startswith(f"process 1 is not like the first one ({line})")


class Seen:
    """A manager of checkpoints that sees what it is told to."""

    def __init__(self, steps):
        self.steps = steps

    def all_steps(self):
        return self.steps


def checkpoints_of(steps):
    checkpoints = Checkpoints.__new__(Checkpoints)
    checkpoints._workdir, checkpoints._manager = "runs/a", Seen(steps)
    return checkpoints


def test_checkpoints_that_one_process_does_not_see(run_all):
    def work(index):
        checkpoints_of([10] if index == 1 else [10, 20])._check_seen()

    (line,) = lines(run_all(work))
    assert line.startswith("process 1 sees the checkpoints [10] in workdir runs/a, ")


def test_all_restore_the_checkpoint_that_the_first_has_chosen(run_all):
    """One sees an older one only, another a newer one."""

    def work(index):
        checkpoints = checkpoints_of([[10, 20], [10], [10, 20, 30]][index])
        return checkpoints._newest(lambda step: f"state {step}")

    assert run_all(work) == [("state 20", [])] * 3


@pytest.fixture
def ends(monkeypatch):
    """The codes with which processes end, and quick looks at each other."""
    codes = []

    def leave(code):
        codes.append(code)
        raise Left

    monkeypatch.setattr(group.os, "_exit", leave)
    for name, seconds in (("PERIOD", 0.01), ("GRACE", 0.02), ("FAREWELL", 5.0)):
        monkeypatch.setattr(group, name, seconds)
    return codes


@pytest.mark.parametrize("failing", [0, 1])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_one_that_fails_ends_all_with_its_code_and_line(ends, capsys, failing):
    """The others hang meanwhile, as in a collective."""
    store = Store(3)
    together = [Group(store, index, 3) for index in range(3)]
    for each in together:
        each.watch()
    with pytest.raises(Left):
        together[failing].fail(2, "bad data")
    with together[failing]._client.changed:
        leaving = store.key_value_dir_get
        everyone = store.changed.wait_for(
            lambda: len(leaving("normjax/leaving/")) == 3, PATIENCE
        )
    assert everyone
    for thread in threading.enumerate():
        if thread.name.startswith("watch"):
            thread.join(PATIENCE)
    assert ends == [2, 2, 2]
    said = capsys.readouterr().err.splitlines()
    assert said == [f"error: process {failing} of 3: bad data"] * 2


def test_the_first_failure_counts_and_the_same_line_is_said_once(ends, capsys):
    store = Store(2)
    first, second = (Group(store, index, 2) for index in range(2))
    with pytest.raises(Left):
        second.fail(1, "disk full")
    assert first.failed()
    with contextlib.suppress(Left):
        first.fail(2, "disk full")
    assert ends == [1, 1]
    assert capsys.readouterr().err == ""


def test_all_that_succeed_end_as_usual(ends):
    store = Store(2)
    together = [Group(store, index, 2) for index in range(2)]
    for each in together:
        each.watch()
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        list(pool.map(Group.succeed, together))
    for thread in threading.enumerate():
        if thread.name.startswith("watch"):
            thread.join(PATIENCE)
    assert ends == [] and not any(each.failed() for each in together)


def test_one_process_agrees_with_itself():
    assert distributed.group() is None and jax.process_count() == 1
    assert distributed.gather([1]) == [[1]]
    assert distributed.from_first([Window(1, 2)]) == [Window(1, 2)]
    with pytest.raises(RunFailed):
        distributed.on_first(lambda: (_ for _ in ()).throw(RunFailed()))
