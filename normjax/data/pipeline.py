"""Batches: random access by step number, wrapped in grain for threads and workers."""

import atexit
import dataclasses
import functools
import gc
import os
import sys
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from normjax.core.errors import LoadingFailed, UserError
from normjax.data import order
from normjax.data.augment import Transform
from normjax.data.rows import DEEP, STOOD_IN, Batch, ImageRows, Rows, Source

_TURN = 32  # rows that a thread makes at a time


@dataclasses.dataclass(frozen=True)
class BatchSource:
    """Random access to batches, in the form of grain's RandomAccessDataSource.

    Attributes:
      rows: the examples.  batch_size: rows of the global batch.
      process_index, process_count: which contiguous share of the rows is ours.
      seed: an int gives training batches, whose order and augmentation depend on
        (seed, step) alone; None gives one pass in order, padded and masked.
      executor: threads that share the rows of a batch; None: the caller's alone.
      repeats: of every training example, see `order.example_indices`.
      in_worker: whether a copy of it is read in another process than the others.
    """

    rows: Rows
    batch_size: int
    process_index: int
    process_count: int
    seed: int | None
    executor: ThreadPoolExecutor | None = None
    repeats: int = 1
    in_worker: bool = False

    def __post_init__(self):
        if self.batch_size < 1 or self.batch_size % self.process_count:
            raise UserError(
                f"batch_size={self.batch_size} must be a positive multiple of the "
                f"number of processes, {self.process_count}"
            )

    def __len__(self) -> int:
        if self.seed is not None:
            return sys.maxsize
        return -(-len(self.rows) // self.batch_size)

    def __getitem__(self, index: int) -> Batch:
        """This process's rows of global batch `index`."""
        batch = self._made(index)
        if self.in_worker and isinstance(self.rows, ImageRows):
            self.rows.note(batch)
        return batch

    def _made(self, index: int) -> Batch:
        local = self.batch_size // self.process_count
        ours = slice(self.process_index * local, (self.process_index + 1) * local)
        if self.seed is None:
            return self._in_order(index * self.batch_size + ours.start, local)
        n, k = len(self.rows), self.rows.num_uniforms
        indices = order.example_indices(
            self.seed, index, self.batch_size, n, self.repeats
        )
        u = order.uniforms(self.seed, index, self.batch_size, k)
        return self._load(indices[ours], u[ours])

    def _load(self, indices: np.ndarray, u: np.ndarray) -> Batch:
        """Rows `indices`; decoding and resizing hold no lock, so threads share them."""
        parts = np.array_split(np.arange(len(indices)), -(-len(indices) // _TURN))
        if self.executor is None or len(parts) < 2:
            return self.rows.load(indices, u)
        loads = [self.executor.submit(self.rows.load, indices[p], u[p]) for p in parts]
        loaded = [load.result() for load in loads]
        return {name: np.concatenate([b[name] for b in loaded]) for name in loaded[0]}

    def _in_order(self, start: int, count: int) -> Batch:
        indices = np.arange(start, min(start + count, len(self.rows)))
        batch = self.rows.blank(count)
        batch.setdefault("mask", np.arange(count) < len(indices))
        if indices.size:
            loaded = self._load(indices, np.empty((len(indices), 0)))
            if STOOD_IN in loaded:  # an example must not count twice
                batch["mask"][: len(indices)] &= loaded.pop(STOOD_IN) < 0
            for name, rows in loaded.items():
                batch[name][: len(rows)] = rows
        return batch


def train_batches(
    source: Source,
    *,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    augment: Transform | None = None,
    repeats: int = 1,
    process_index: int = 0,
    process_count: int = 1,
    workers: int = 0,
    prefetch: int = 2,
) -> Generator[Batch, None, None]:
    """Endless training batches. Batch s is a pure function of (seed, s).

    There is no iterator state: to resume, start at `start_step`. The result has
    `close()`, which ends its threads and workers; so does an exception, or the end.

    Args:
      source: an `ImageSource`, a `TextSource`, or anything that makes `Rows`.
      batch_size: rows of the global batch, a multiple of `process_count`; it may exceed
        the number of examples.
      seed: of the order and the augmentation.  start_step: the first batch's number.
      augment: of images, from `augment.build(spec, train=True)`, or None.
      repeats: how often an example comes up in a row, see `order.example_indices`.
      process_index, process_count: this process takes the contiguous rows
        [index * L, (index + 1) * L), L = batch_size / process_count.
      workers: processes that load batches (0: as many threads of this one as it may
        use CPUs). Worth it only where decoding and augmenting cost more than a step and
        more than threads can do, which take turns in Python; each holds its own cache.
        The main script then needs an `if __name__ == "__main__"` guard.
      prefetch: batches made ahead; with workers, by each of them; 0 makes them when
        asked for.

    Yields:
      Of images {"image": uint8 [L, H, W, C], "label": int32 [L]}, and `STOOD_IN` of a
      source that skips; of text what `TextSource` says.

    Raises:
      UserError: at the call, images without one shape or a batch size that cannot be
        shared out; while iterating, an undecodable image.
      LoadingFailed: while iterating, a worker process that has died, unreadable files.

    Example:
      >>> from normjax import data
      >>> source = data.open_transduction("reversed_case", "train", length=5)
      >>> batches = data.train_batches(source, batch_size=4, seed=0, start_step=100)
      >>> sorted(next(batches))
      ['mask', 'source', 'source_mask', 'targets', 'tokens', 'weights']
      >>> batches.close()
    """
    rows, share = source.rows(augment), (process_index, process_count)
    batches = BatchSource(rows, batch_size, *share, seed, repeats=repeats)
    return _iterate(batches, start_step, workers, prefetch)


def eval_batches(
    source: Source,
    *,
    batch_size: int,
    transform: Transform | None = None,
    process_index: int = 0,
    process_count: int = 1,
    workers: int = 0,
    prefetch: int = 2,
) -> Generator[Batch, None, None]:
    """One pass in order; over all processes, every example exactly once.

    All batches have the same shape, and all processes the same number of them: rows
    past the last example are zeros with mask False.

    Args:
      source: an `ImageSource`, a `TextSource`, or anything that makes `Rows`.
      batch_size: rows of the global batch, a multiple of `process_count`.
      transform: of images, from `augment.build(spec, train=False)`, or None.
      process_index, process_count: this process takes the contiguous rows
        [index * L, (index + 1) * L), L = batch_size / process_count.
      workers: processes that load batches; 0: threads of this one.
      prefetch: batches made ahead; 0 makes them when asked for.

    Yields:
      As `train_batches`, and of images also "mask": bool [L], which is False where
      another example stands in.

    Raises:
      UserError: as `train_batches`.

    Example:
      >>> from normjax import data
      >>> source = data.open_images("digits", "test")
      >>> batches = data.eval_batches(source, batch_size=200)
      >>> [int(batch["mask"].sum()) for batch in batches]
      [200, 160]
    """
    rows = source.rows(transform)
    batches = BatchSource(rows, batch_size, process_index, process_count, None)
    return _iterate(batches, 0, workers, prefetch)


def _iterate(
    batches: BatchSource, start: int, workers: int, prefetch: int
) -> Generator[Batch, None, None]:
    import grain

    threads = 0 if workers else prefetch
    batches = dataclasses.replace(batches, in_worker=workers > 0)
    if not workers:
        executor = ThreadPoolExecutor(
            available_cpus(), thread_name_prefix="normjax-rows"
        )
        batches = dataclasses.replace(batches, executor=executor)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)
    dataset = grain.MapDataset.source(batches)[start:].to_iter_dataset(options)
    if workers:
        from absl import flags

        if not flags.FLAGS.is_parsed():  # grain reads flags, app.run or not
            flags.FLAGS.mark_as_parsed()
        ahead = max(1, prefetch)
        dataset = dataset.mp_prefetch(
            grain.MultiprocessingOptions(workers, per_worker_buffer_size=ahead)
        )
    iterator = iter(dataset)
    try:
        known = set[int]()
        for batch in iterator:
            if DEEP in batch and isinstance(batches.rows, ImageRows):
                batches.rows.compare(batch, known)
            if workers:
                for array in batch.values():
                    _deleted_at_exit(type(array))
            yield batch
    except (OSError, RuntimeError) as error:  # grain's, and those of array_record
        where = f" in a worker process of {workers}" if workers else ""
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise LoadingFailed(f"loading data{where} failed: {reason}") from error
    finally:
        iterator.close()
        if batches.executor:
            batches.executor.shutdown(cancel_futures=True)


@functools.cache
def _deleted_at_exit(kind: type[np.ndarray]) -> None:
    """See that the shared memory of arrays is gone before Python looks for leaks.

    grain keeps a worker's last batch in a cycle of references until it is collected,
    and leaves the deletion to a thread, which exit cuts off.
    """
    atexit.register(finish_deletions, kind)


def finish_deletions(kind: type[np.ndarray]) -> None:
    """Wait until what is deleted by the thread of `kind`, if it has one, is."""
    gc.collect()
    pool = getattr(kind, "_del_thread_pool", None)
    if pool:
        pool.apply(int)  # one thread: the last in its queue


def available_cpus() -> int:
    """CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
