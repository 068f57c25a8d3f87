"""Batches: resume, processes, workers, padded evaluation, bounded resources."""

import io
import itertools
import threading
import time
from multiprocessing.pool import ThreadPool

import numpy as np
import pytest
from PIL import Image

from normjax.core.errors import UserError
from normjax.data import (
    augment,
    eval_batches,
    image_shape,
    open_images,
    order,
    train_batches,
)
from normjax.data.pipeline import finish_deletions


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return open_images("digits", "test", data_dir=tmp_path_factory.mktemp("digits"))


@pytest.fixture(scope="module")
def moving():
    return augment.build({"crop_padding": 1, "flip": True}, train=True)


@pytest.fixture(scope="module")
def uneven(tmp_path_factory):
    """A folder of images of different sizes."""
    root = tmp_path_factory.mktemp("uneven")
    for i in range(12):
        path = root / "in" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8 + i, 20 - i), (i, 2 * i, 3 * i)).save(path)
    return open_images("image_folder", "train", data_dir=root, path=root / "in")


def take(batches, count):
    taken = list(itertools.islice(batches, count))
    batches.close()
    return taken


def assert_same(first, second):
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            np.testing.assert_array_equal(a[key], b[key])


def joined(parts):
    """Rows of several processes put together, batch by batch."""
    return [
        {key: np.concatenate([b[key] for b in batch]) for key in batch[0]}
        for batch in zip(*parts, strict=True)
    ]


def test_an_epoch_holds_every_example_once(digits):
    batches = take(train_batches(digits, batch_size=60, seed=3), 6)
    assert batches[0]["image"].shape == (60, 8, 8, 1)
    assert batches[0]["image"].dtype == np.uint8
    assert batches[0]["label"].dtype == np.int32
    seen = np.concatenate([b["image"].reshape(60, -1) for b in batches])
    source = np.stack([digits[i][0].ravel() for i in range(360)])
    assert sorted(map(bytes, seen)) == sorted(map(bytes, source))
    by_image = {digits[i][0].tobytes(): digits[i][1] for i in range(360)}
    for batch in batches:
        for image, label in zip(batch["image"], batch["label"], strict=True):
            assert by_image[image.tobytes()] == label


@pytest.mark.parametrize("prefetch", [0, 3])
def test_resume_is_the_tail_of_the_run(digits, moving, prefetch):
    settings = {"batch_size": 50, "seed": 1, "augment": moving}
    whole = take(train_batches(digits, **settings), 10)
    tail = train_batches(digits, start_step=4, prefetch=prefetch, **settings)
    assert_same(whole[4:], take(tail, 6))
    other = take(train_batches(digits, **(settings | {"seed": 2})), 1)
    assert (other[0]["image"] != whole[0]["image"]).any()
    assert (whole[0]["image"] != whole[1]["image"]).any()


@pytest.mark.parametrize("count", [2, 4])
def test_processes_share_one_global_batch(digits, moving, count):
    settings = {"batch_size": 48, "seed": 1, "augment": moving}
    whole = take(train_batches(digits, **settings), 9)
    parts = [
        take(train_batches(digits, process_index=p, process_count=count, **settings), 9)
        for p in range(count)
    ]
    assert parts[0][0]["image"].shape[0] == 48 // count
    assert_same(joined(parts), whole)


def test_repeats_are_augmented_apart_and_resume(digits, moving):
    settings = {"batch_size": 12, "seed": 3, "augment": moving, "repeats": 3}
    whole = take(train_batches(digits, **settings), 4)
    assert_same(take(train_batches(digits, start_step=2, **settings), 2), whole[2:])
    parts = [
        take(train_batches(digits, process_index=p, process_count=3, **settings), 4)
        for p in range(3)
    ]
    assert_same(joined(parts), whole)
    first, second, third = (part[0] for part in parts)  # each process has a copy
    np.testing.assert_array_equal(first["label"], second["label"])
    np.testing.assert_array_equal(first["label"], third["label"])
    assert (first["image"] != second["image"]).any()


def test_workers_make_the_same_batches(digits, moving):
    settings = {"batch_size": 32, "seed": 5, "augment": moving, "start_step": 2}
    alone = take(train_batches(digits, **settings), 5)
    assert_same(take(train_batches(digits, workers=2, **settings), 5), alone)


def test_shared_memory_is_gone_at_exit():
    """As grain deletes it: by a thread, while the program goes on."""
    done, go = [], threading.Event()
    with ThreadPool(1) as pool:

        class Array(np.ndarray):
            _del_thread_pool = pool

        pool.apply_async(go.wait)
        for i in range(5):
            pool.apply_async(done.append, (i,))
        assert not done
        go.set()
        finish_deletions(Array)
        assert done == [0, 1, 2, 3, 4]
    finish_deletions(np.ndarray)


@pytest.mark.parametrize(
    ("batch_size", "count"), [(64, 1), (64, 4), (360, 2), (400, 4)]
)
def test_evaluation_is_exact(digits, batch_size, count):
    parts = [
        list(
            eval_batches(
                digits, batch_size=batch_size, process_index=p, process_count=count
            )
        )
        for p in range(count)
    ]
    batches = joined(parts)
    assert len(batches) == int(np.ceil(360 / batch_size))
    masks = np.concatenate([b["mask"] for b in batches])
    images = np.concatenate([b["image"] for b in batches])
    labels = np.concatenate([b["label"] for b in batches])
    assert len(masks) == len(batches) * batch_size and masks.sum() == 360
    assert masks[:360].all() and masks.dtype == bool and labels.dtype == np.int32
    np.testing.assert_array_equal(images[:360], [digits[i][0] for i in range(360)])
    np.testing.assert_array_equal(labels[:360], [digits[i][1] for i in range(360)])
    assert not images[360:].any() and not labels[360:].any()
    assert len({b["image"].shape for part in parts for b in part}) == 1


def test_different_sizes_need_image_size(uneven):
    assert uneven.shape is None
    for build in (
        lambda: train_batches(uneven, batch_size=2, seed=0),
        lambda: eval_batches(uneven, batch_size=2),
    ):
        with pytest.raises(UserError, match=r"set augment\.image_size"):
            build()
    spec = {"image_size": 6, "resized_crop_min_scale": 0.3, "rand_augment_ops": 1}
    transform = augment.build(spec, train=True)
    batch = take(train_batches(uneven, batch_size=4, seed=0, augment=transform), 1)[0]
    assert batch["image"].shape == (4, 6, 6, 3)
    assert image_shape(uneven, transform) == (6, 6, 3)
    for_eval = augment.build(spec, train=False)
    rows = list(eval_batches(uneven, batch_size=4, transform=for_eval))
    assert sum(b["mask"].sum() for b in rows) == len(uneven)
    colours = [b["image"][i, 3, 3, 0] for b in rows for i in np.flatnonzero(b["mask"])]
    assert colours == [uneven[i][0][0, 0, 0] for i in range(len(uneven))]


def test_impossible_batches_are_refused_at_the_call(digits):
    with pytest.raises(UserError, match=r"batch_size=10 .* number of processes, 4"):
        train_batches(digits, batch_size=10, seed=0, process_count=4)
    with pytest.raises(UserError, match="batch_size=0"):
        eval_batches(digits, batch_size=0)
    wide = augment.build({"crop_padding": 8}, train=True)
    with pytest.raises(UserError, match="crop_padding=8 must be less than"):
        train_batches(digits, batch_size=4, seed=0, augment=wide)


def test_an_undecodable_image_is_named(digits, monkeypatch, tmp_path):
    source = open_images("digits", "test", data_dir=tmp_path)
    good = source._read

    def damaged(indices):
        return [
            (data[:40] if index == 7 else data, label)
            for index, (data, label) in zip(indices, good(indices), strict=True)
        ]

    monkeypatch.setattr(source, "_read", damaged)
    monkeypatch.setattr(source, "_decoded", None)
    with pytest.raises(UserError, match="cannot decode example 7 of 'digits'"):
        take(train_batches(source, batch_size=360, seed=0), 1)


def test_closing_ends_the_threads(digits):
    before = set(threading.enumerate())
    batches = train_batches(digits, batch_size=8, seed=0, prefetch=4)
    next(batches)
    assert set(threading.enumerate()) - before
    batches.close()
    deadline = time.monotonic() + 10
    while set(threading.enumerate()) - before and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not set(threading.enumerate()) - before


def test_batches_are_fresh_arrays(digits):
    """Writing into a batch must not reach the cache or a later batch."""
    first = take(train_batches(digits, batch_size=360, seed=0), 1)[0]
    first["image"][:] = 0
    assert take(train_batches(digits, batch_size=360, seed=0), 1)[0]["image"].any()


def test_read_gives_the_stored_file(uneven):
    data, _ = uneven.read(0)
    assert Image.open(io.BytesIO(data)).format == "PNG"


def test_threads_that_share_a_batch_change_nothing(uneven):
    """More rows than one thread makes at a time, in training and in evaluation."""
    augmentation = augment.build({"image_size": 8, "flip": True}, train=True)
    rows = uneven.rows(augmentation)
    batch = take(train_batches(uneven, batch_size=100, seed=4, augment=augmentation), 1)
    indices = order.example_indices(4, 0, 100, len(uneven))
    expected = rows.load(indices, order.uniforms(4, 0, 100, rows.num_uniforms))
    assert_same(batch, [expected])
    seen = set()
    fixed = augment.build({"image_size": 8}, train=False)

    class Watched:
        num_uniforms, blank = 0, uneven.rows(fixed).blank

        def __len__(self):
            return 96

        def load(self, indices, u):
            seen.add(threading.current_thread().name.rpartition("_")[0])
            return uneven.rows(fixed).load(indices % len(uneven), u)

    class Source:
        def rows(self, transform):
            return Watched()

    (whole,) = take(eval_batches(Source(), batch_size=96), 2)
    assert seen == {"normjax-rows"} and whole["mask"].all()
    repeated = whole["image"][np.arange(96) % len(uneven)]
    np.testing.assert_array_equal(whole["image"], repeated)
