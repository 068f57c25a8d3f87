"""What a run keeps of its data, and what is said when that has changed."""

import json
from types import SimpleNamespace

import pytest

from normjax.core.errors import UserError
from normjax.data import order
from normjax.records.datasets import DATA_FILE, keep_data


def a_task(examples=5, digest="a"):
    kept = {"examples": examples, "digest": digest, "order": order.name_of(examples)}
    return SimpleNamespace(digests=lambda: {"train": kept}, class_names=tuple)


@pytest.mark.parametrize(
    ("task", "said"),
    [
        (a_task(examples=6), "5 examples then, 6 now"),
        (a_task(digest="b"), "as many examples, other names"),
    ],
)
def test_other_data_are_refused(tmp_path, task, said):
    keep_data(a_task(), tmp_path)
    keep_data(a_task(), tmp_path)
    with pytest.raises(UserError, match=f"split 'train' .{said}"):
        keep_data(task, tmp_path)


def test_another_order_is_refused(tmp_path):
    """Of runs that began before sets of any size were put in order without sorting."""
    for examples in (2**24, 2**24 + 1):
        old = {"train": {"examples": examples, "digest": "a"}}
        (tmp_path / DATA_FILE).write_text(json.dumps(old))
        if examples == 2**24:
            keep_data(a_task(examples), tmp_path)
            continue
        with pytest.raises(UserError, match="reads 16777217 examples in another order"):
            keep_data(a_task(examples), tmp_path)
