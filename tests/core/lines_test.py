"""Lines of JSON that grow, on a file system and in a bucket."""

import json

import pytest

from normjax.core import lines
from normjax.core.lines import open_lines, read_lines
from normjax.core.paths import workdir_path

RECORDS = [{"step": step, "x": step / 3} for step in range(11)]


@pytest.fixture(params=["file system", "bucket"])
def path(request, tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "SEGMENT", 3)
    if request.param == "file system":
        return tmp_path / "metrics.jsonl"
    request.getfixturevalue("bucket")
    return workdir_path("gs://bucket/run/metrics.jsonl")


def test_all_lines_stand_there_once(path):
    assert read_lines(path) == []
    seen = []
    file = open_lines(path, [], seen.append)
    for record in RECORDS[:8]:
        file.write(record)
    file.close()
    file.close()
    assert seen == read_lines(path) == RECORDS[:8]
    file = open_lines(path, RECORDS[:5])
    assert read_lines(path) == RECORDS[:5]
    for record in RECORDS[5:]:
        file.write(record)
    file.close()
    text = path.read_text()
    assert text == "".join(json.dumps(record) + "\n" for record in RECORDS)
    assert read_lines(path) == RECORDS
    assert [p.name for p in path.parent.iterdir()] == ["metrics.jsonl"]


def test_a_half_written_line_is_left_out(path):
    path.write_text('{"step": 1}\n{"st')
    assert read_lines(path) == [{"step": 1}]


def test_whenever_it_is_killed(bucket, monkeypatch):
    """All lines but the last that was given, once; the next run goes on with them."""
    monkeypatch.setattr(lines, "SEGMENT", 3)
    path, given, snapshots = workdir_path("gs://bucket/run/a.jsonl"), [], []
    file = open_lines(path, RECORDS[:2])
    bucket.before = lambda *_: snapshots.append((len(given), dict(bucket.objects)))
    for record in RECORDS[2:]:
        file.write(record)
        given.append(record)
    file.close()
    bucket.before = lambda *_: None
    assert len(snapshots) > 15
    for count, objects in snapshots:
        bucket.objects = objects
        for name in objects:
            if name != "bucket/run/a.jsonl":
                assert len(bucket.read(name).splitlines()) <= 3
        found = read_lines(path)
        assert found == RECORDS[: len(found)]
        assert len(found) >= 2 + count - 1
        open_lines(path, found[:4]).close()
        assert read_lines(path) == found[:4]


def test_what_cannot_be_sent(bucket):
    path = workdir_path("gs://bucket/run/a.jsonl")
    file = open_lines(path, RECORDS[:1])
    bucket.before = lambda method, what: method == "POST"
    file.write(RECORDS[1])
    with pytest.raises(OSError, match="403"):
        file.write(RECORDS[2])
    bucket.before = lambda *_: None
    file.close()
    assert read_lines(path) == RECORDS[:2]
