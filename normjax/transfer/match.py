"""What becomes of every array of a source and of a model that begins with it."""

import difflib
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from normjax.core.errors import UserError
from normjax.transfer import norms
from normjax.transfer.heads import FOREIGN, HEAD, head_of
from normjax.transfer.rules import Misfit, Views, fit
from normjax.transfer.source import Source
from normjax.transfer.wanted import Wanted, chosen, name_of

OPTIONAL = {
    "cls_token": "the model averages its tokens",
    "dist_token": "the model has no distillation token",
}
"""Arrays that not all models of a kind have."""

_SHOWN = 3  # names in an error


class Matched(NamedTuple):
    """What became of what.

    Attributes:
      arrays: of the model, by path.
      how: of every array of the model: "same", what was done to it, or why it is new.
      new: paths of those that begin as initialised.
      left: what there is besides: path or name -> why it is left out.
    """

    arrays: dict[str, np.ndarray]
    how: dict[str, str]
    new: list[str]
    left: dict[str, str]


def match(source: Source, wanted: Wanted) -> Matched:
    """Every array of the model, of the source or as initialised, and why.

    Raises:
      UserError: an array on either side that neither a rule nor a pattern accounts for,
        or a pattern that finds nothing.
    """
    return _Match(source, wanted).all()


class _Match:
    def __init__(self, source: Source, wanted: Wanted):
        self.source, self.wanted = source, wanted
        self.chosen, self.head = chosen(wanted), head_of(source, wanted)
        self.found = Matched({}, {}, [], dict(source.dropped))
        self.used, self.missing = set[str](), list[str]()
        self.misfits = list[tuple[Any, ...]]()

    def all(self) -> Matched:
        self._check_patterns()
        for path in self.wanted.shapes:
            self._one(path)
        homeless = [name for name in self._others() if not self._leave(name)]
        self._refuse(sorted(homeless))
        return self.found

    def _one(self, path: str) -> None:
        """Find an array of the model."""
        source, wanted, name = self.source, self.wanted, name_of(path)
        why = self.chosen.why_not(name)
        if HEAD.fullmatch(name):
            why = why or self.head.why_new
        if not why and norms.is_counter(path):
            self.used.add(path)
            found = norms.counter(path, source, wanted)
            self.found.arrays[path], self.found.how[path] = found
            return
        places = norms.places(path, source, wanted)
        there = next((place for place in places if place in source.arrays), None)
        if there is None:
            why = why or norms.why_new(path, source)
        if not why and there is None:
            self.missing.append(path)
        elif why:
            self.found.new.append(path)
            self.found.how[path] = why
            if there is not None:
                self.used.add(there)
                self.found.left[there] = why
        elif there is not None:
            self._take(path, there)

    def _take(self, path: str, there: str) -> None:
        """Give an array of the model that of the source at `there`."""
        shape, array = self.wanted.shapes[path], self.source.arrays[there]
        self.used.add(there)
        how = [] if there == path else [f"of {name_of(there)}"]
        name = name_of(path)
        if HEAD.fullmatch(name) and self.head.picks is not None:
            array = self.head.of(array)
            how.append("classes by their names")
        if array.shape != shape:
            views = Views(self.source.aspect, self.wanted.aspect)
            try:
                array, done = fit(name, array, shape, views)
            except Misfit as misfit:
                self.misfits.append((name, array.shape, shape, misfit))
                return
            how += [done] if done else []
        self.found.arrays[path] = array
        self.found.how[path] = ", ".join(how) or "same"

    def _others(self) -> list[str]:
        """Paths and names of the source that nothing of the model came from."""
        return [*self.source.arrays.keys() - self.used, *self.source.foreign]

    def _leave(self, other: str) -> str:
        """Why it is left out; "" where nothing says that."""
        foreign = other in self.source.foreign
        name = other if foreign else name_of(other)
        why = self.chosen.why_not(name) if not foreign else self._why_foreign(name)
        is_head = FOREIGN.fullmatch(name) if foreign else HEAD.fullmatch(name)
        if is_head:
            why = why or self.head.why_new or "the model has no such head"
        why = why or OPTIONAL.get(name, "")
        if not foreign:
            why = why or norms.why_left(other, self.wanted)
        if why:
            self.found.left[other] = why
        return why

    def _why_foreign(self, name: str) -> str:
        exclude = self.chosen.exclude
        excluded = "excluded" if exclude and exclude.search(name) else ""
        return excluded or self.source.foreign[name]

    def _names(self) -> set[str]:
        paths = (*self.wanted.shapes, *self.source.arrays)
        return {*map(name_of, paths), *self.source.foreign}

    def _check_patterns(self) -> None:
        names = self._names()
        for field, pattern in self.chosen._asdict().items():
            if pattern and not any(map(pattern.search, names)):
                near = _near(pattern.pattern, names)
                raise UserError(
                    f"config.init.{field} {pattern.pattern!r} finds no array{near}"
                )

    def _refuse(self, homeless: Sequence[str]) -> None:
        """Raises UserError for what is not accounted for."""
        title, what = self.source.title, "config.init: " if self.wanted.chooses else ""
        if self.misfits:
            name, theirs, ours, why = self.misfits[0]
            rest = len(self.misfits) - 1
            more = f" (and {rest} more)" if rest else ""
            raise UserError(
                f"{what}{name}{more} is {theirs} in {title} and {ours} in the "
                f"model ({why}){self._remedy(name, 'as initialised')}"
            )
        if self.missing:
            names = [name_of(path) for path in self.missing]
            there = {*map(name_of, self.source.arrays), *self.source.foreign}
            raise UserError(
                f"{what}{title} lacks {_listed(names)} of the model"
                f"{_near(names[0], there)}{self._remedy(names[0], 'as initialised')}"
            )
        if homeless:
            arrays = self.source.arrays
            names = [name_of(p) if p in arrays else p for p in homeless]
            ours = set(map(name_of, self.wanted.shapes))
            raise UserError(
                f"{what}the model has no place for {_listed(names)} of {title}"
                f"{_near(names[0], ours)}{self._remedy(names[0], 'out')}"
            )

    def _remedy(self, name: str, how: str) -> str:
        """What leaves an array so, where somebody chooses."""
        pattern = f"; config.init.exclude='^{name}$' leaves it {how}"
        return pattern if self.wanted.chooses else ""


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_SHOWN])
    return f"{shown} and {len(names) - _SHOWN} more" if len(names) > _SHOWN else shown


def _near(name: str, names: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, sorted(names), n=2, cutoff=0.6)
    return f" (near: {', '.join(near)})" if near else ""
