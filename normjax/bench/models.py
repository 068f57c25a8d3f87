"""Size and time of named models: inference, folded and not, and a training step."""

import contextlib
import importlib.util
from collections.abc import Mapping, Sequence
from concurrent import futures
from typing import Any

from normjax import models
from normjax.bench.process import OURS, model_process
from normjax.bench.sizes import Sizes, device_name, sizes_for
from normjax.core.errors import UserError, one_of
from normjax.core.timing import alternate
from normjax.records import report

DEFAULT = ("deit_tiny", "slab_deit_tiny")
SIDE = 224
ROUNDS = 5

Times = dict[tuple[str, str], dict[str, float]]


def models_command(argv: Sequence[str]) -> int:
    """`models [PRESET ...]`: 224 pixels, in turns; ratios to the first.

    Where torch is installed, a second table has the models that are written there too.
    """
    chosen, sizes = sizes_for(argv)
    names = chosen or DEFAULT
    for name in names:
        if name not in models.PRESETS:
            raise UserError(one_of("model", name, models.PRESETS))
    ways = [(name, way) for name in names for way in _torch_ways(name, sizes)]
    counted, times = timed([*((name, OURS) for name in names), *ways], sizes)
    kinds = list(times[names[0], OURS])
    head = ("model", "parameters", "GMAC by formula", "GMAC compiled")
    what = f"{SIDE} x {SIDE}, {sizes.dtype}, ms (median of {ROUNDS})"
    title = f"{device_name()}: {what}"
    report.table(title, (*head, *kinds), model_rows(counted, times))
    beside = torch_rows(times)
    if ways:
        title = f"{device_name()}: beside torch; nothing folded there"
        report.table(title, ("model", *kinds), beside)
    return 0


def timed(
    cases: Sequence[tuple[str, str]], sizes: Sizes
) -> tuple[dict[str, Any], Times]:
    """Sizes by model, and ms by (model, way) and kind, of all cases in turns.

    Args:
      cases: (model, way), each a process of its own.
    """
    counted, calls = {}, {}
    with contextlib.ExitStack() as stack:

        def opened(case):
            name, way = case
            process = model_process(way, name, SIDE, sizes.batches, sizes.dtype)
            size, own = stack.enter_context(process)
            try:
                for call in own.values():  # compiled with the first call
                    call()
            except RuntimeError:
                if way == OURS:
                    raise
                return size, {}  # torch.compile fails at some models
            return size, own

        with futures.ThreadPoolExecutor(sizes.workers) as pool:
            found = list(pool.map(opened, cases))
        for (name, way), (size, own) in zip(cases, found, strict=True):
            calls.update({(name, way, kind): call for kind, call in own.items()})
            if way == OURS:
                counted[name] = size
        seconds = alternate(calls, ROUNDS)
    times: Times = {}
    for (name, way, kind), value in seconds.items():
        times.setdefault((name, way), {})[kind] = 1e3 * value
    return counted, times


def model_rows(
    sizes: Mapping[str, tuple[int, float, float]], times: Times
) -> list[tuple]:
    """Sizes and times of every model, then ratios to the first.

    Args:
      sizes: by model.  times: ms by (model, way) and kind.
    """
    ours = {name: times[name, OURS] for name in sizes}
    first, *others = sizes
    rows: list[tuple] = [(name, *sizes[name], *ours[name].values()) for name in sizes]
    for name in others:
        ratios = (t / ours[first][kind] for kind, t in ours[name].items())
        rows.append((f"{name} / {first}", "", "", "", *ratios))
    return rows


def torch_rows(times: Times) -> list[tuple]:
    """Times of ours and of torch, then ratios of ours to those.

    Ours folded stands beside torch's forward pass as well. Without models that were
    timed in one way only.

    Args:
      times: ms by (model, way) and kind.
    """
    rows, ratios = [], []
    for (name, way), cells in times.items():
        ours = times[name, OURS]
        if len([case for case in times if case[0] == name]) == 1:
            continue
        rows.append((f"{name}, {way}", *(cells.get(kind, "") for kind in ours)))
        if way == OURS:
            continue
        other = {k.replace("forward", "folded"): t for k, t in cells.items()} | cells
        ratios.append((f"{name} / {way}", *(t / other[k] for k, t in ours.items())))
    return rows + ratios


def _torch_ways(name: str, sizes: Sizes) -> Sequence[str]:
    """In which a model can be timed in torch; none where it is not installed."""
    if importlib.util.find_spec("torch") is None:
        return ()
    from normjax.bench import torch_models

    return sizes.ways if name in torch_models.MODELS else ()
