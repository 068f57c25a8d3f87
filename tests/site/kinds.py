"""What the catalogue shows of each kind of component beside its docstring."""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from normjax import activations, mixers, models, norms, optim, reparam
from normjax.cli import flags
from normjax.core.arguments import field_names, required_names
from normjax.core.errors import UserError
from normjax.core.registry import Entry, Registry
from normjax.train.experiment import build_model
from tests.site import figures
from tests.site.measure import CHOSEN, kept, measured

STEPS = 1000
TOKENS = {"batch_size": 128, "sequence_length": 512}
"""For schedules that count them."""


class Kind(NamedTuple):
    """A part of the catalogue.

    Attributes:
      folder, title, about: of its pages.
      registry: of its components, whose name in tests.api is `rows`.
      python: how one is built, with {name} and {arguments}.
      commands: how a run gets it, the first that works, with {name}.
      figure: (picture, caption) of one, or None; small ones for the index.
      facts: (word, text) of one.
      group: under which heading it stands.
      times: sign of elementwise products.
    """

    folder: str
    title: str
    about: str
    registry: Registry
    rows: str
    python: str = ""
    commands: tuple[str, ...] = ()
    figure: Callable[[Entry, bool], tuple[str, str] | None] = lambda entry, small: None
    facts: Callable[[Entry], Iterator[tuple[str, str]]] = lambda entry: iter(())
    group: Callable[[Entry], str] = lambda entry: ""
    times: str = "⊙"


@functools.cache
def known(kind: str, name: str) -> dict[str, Any]:
    """What docs/catalogue.json says; what is not there yet is measured now."""
    return kept()[kind].get(name) or measured(kind, name)


def _norm_figure(entry: Entry, small: bool) -> tuple[str, str]:
    found = known("norm", entry.name)
    cases = [("in training", found["training"]), ("at evaluation", found["evaluation"])]
    picture = figures.causes(cases, (4, 4, 6), CHOSEN, small)
    caption = (
        "Computed at the first update: the entries of the input (shaded) on which one "
        "entry of the output (outlined) depends; four examples, positions down, "
        "channels across."
    )
    return picture, caption


def _norm_facts(entry: Entry) -> Iterator[tuple[str, str]]:
    found = known("norm", entry.name)
    yield "learns", _listed(found["parameters"])
    yield "keeps", _listed(found["state"])
    if hasattr(entry.make, "inference_affine"):
        affine = "one affine map per channel at evaluation: [folds away](../../fold.md)"
        yield "inference", affine
    else:
        yield "inference", "stays in the network"


def _listed(items: list[str]) -> str:
    return ", ".join(f"`{item}`" for item in items) or "nothing"


def _norm_group(entry: Entry) -> str:
    own = known("norm", entry.name)["training"]
    if "batch_stats" in entry.tags:
        return "Statistics of the batch, kept for evaluation"
    examples = [own[e * 24 : (e + 1) * 24] for e in range(4)]
    if sum("1" in e for e in examples) > 1:
        return "Statistics of the batch, at evaluation too"
    token = all(flag == "0" or 6 <= i < 12 for i, flag in enumerate(examples[1]))
    return "Statistics of a token" if token else "Statistics of an example"


def _mixer_figure(entry: Entry, small: bool) -> tuple[str, str]:
    found = known("mixer", entry.name)
    picture = figures.reads(found["reads"], found["map"], small)
    if found["map"]:
        what = "what the outlined position of a 14 × 14 map reads"
    else:
        what = "what each of 14 tokens (rows) reads of each (columns)"
    caption = (
        f"Computed: {what}, as initialised; stronger where the gradient is larger. "
        "Heads, windows and blocks are small, to be seen (tests/site/measure.py)."
    )
    return picture, caption


def _mixer_facts(entry: Entry) -> Iterator[tuple[str, str]]:
    found = known("mixer", entry.name)
    if found["parameters"] is not None:
        yield (
            "parameters",
            f"{found['parameters']:,} (192 channels, 3 heads, 196 tokens)",
        )
    if counts := found["multiply_adds"]:
        cells = (f"{c / 1e6:,.0f} M at {int(n):,} tokens" for n, c in counts.items())
        yield "multiply-adds", f"{', '.join(cells)} (192 channels)"


def _mixer_group(entry: Entry) -> str:
    where = entry.make.__module__.split(".")[2]
    return {
        "sequence": "Sequences, and maps read row by row",
        "grid": "Maps",
        "graph": "Graphs",
    }[where]


def _activation_figure(entry: Entry, small: bool) -> tuple[str, str]:
    module = activations.build(entry.name)()
    variables = module.init(jax.random.key(0), jnp.zeros((1, 1)))

    def y(x):
        return module.apply(variables, x[:, None])[:, 0]

    def slope(x):
        return jax.vjp(y, jnp.asarray(x))[1](jnp.ones(len(x)))[0]

    picture = figures.function(lambda x: np.asarray(y(jnp.asarray(x))), slope, small)
    return (
        picture,
        "Computed: the function (solid) and the gradient it passes (dashed).",
    )


def _optimizer_figure(entry: Entry, small: bool) -> tuple[str, str]:
    path = np.asarray(_path(entry))
    angle = np.linspace(0, 2 * np.pi, 61)
    valley = [
        ("faint", s * np.cos(angle), s / np.sqrt(20) * np.sin(angle))
        for s in (0.5, 1.0, 1.5, 2.0, 2.5)
    ]
    curves = [*valley, ("first", path[:, 0], path[:, 1])]
    if not small:
        curves.append(("point", path[:, 0], path[:, 1]))
    picture = figures.lines(curves, ("w₁", "w₂"), small, (-0.8, 0.8))
    caption = (
        "Computed: 40 updates from (-2, 0.6) at a rate of 0.05 in the valley "
        "(w₁² + 20 w₂²) / 2. It shows the kind of path, not which one is better."
    )
    return picture, caption


def _path(entry: Entry) -> list[np.ndarray]:
    fields = field_names(entry.make)
    plain = {"weight_decay": 0.0} if "weight_decay" in fields else {}
    rule = entry.make(lambda step: 0.05, None, **plain)
    bend = jnp.array([[1.0], [20.0]])

    @jax.jit
    def update(params, state):
        gradients = {"fc": {"kernel": bend * params["fc"]["kernel"]}}
        updates, state = rule.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    params = {"fc": {"kernel": jnp.array([[-2.0], [0.6]])}}
    state, found = rule.init(params), []
    for _ in range(41):
        found.append(np.asarray(params["fc"]["kernel"])[:, 0])
        params, state = update(params, state)
    return found


def _optimizer_facts(entry: Entry) -> Iterator[tuple[str, str]]:
    params = {"fc": {"kernel": jax.ShapeDtypeStruct((256, 256), jnp.float32)}}
    rule = entry.make(lambda step: 0.05, None)
    state = jax.tree.leaves(jax.eval_shape(rule.init, params))
    share = sum(leaf.size for leaf in state) / 256**2
    yield "keeps", f"{share:.3g} numbers a weight of a 256 × 256 matrix"


def _schedule_figure(entry: Entry, small: bool) -> tuple[str, str]:
    given = {k: v for k, v in TOKENS.items() if k in field_names(entry.make)}
    rate = entry.make(STEPS, lr=1.0, **given)
    steps = np.arange(0, STEPS, 5)
    values = np.asarray(jax.vmap(rate)(steps))
    picture = figures.lines([("first", steps, values)], ("update", "rate"), small)
    return (
        picture,
        "Computed: the rate over 1,000 updates with default arguments, lr = 1.",
    )


def _fits(command: str) -> bool:
    """Whether the config of a command can be made, with its model."""
    argv = [word for word in command.split() if word.startswith("--config")]
    try:
        given = flags.parse_flags(["-", *argv], flags.define_config, "", overrides=True)
        build_model(given.config(), **({} if "lm_" in command else {"num_classes": 10}))
    except UserError:
        return False
    return True


def command_of(kind: Kind, entry: Entry) -> str:
    """The first command that trains with it; "" where none does."""
    commands = (command.format(name=entry.name) for command in kind.commands)
    return next(filter(_fits, commands), "")


def python_of(kind: Kind, entry: Entry) -> str:
    """How it is built in Python; it has been tried."""
    if not kind.python:
        return ""
    required = {"decay_steps": 9000, "num_heads": 4}
    wanted = [n for n in required_names(entry.make) if n in required]
    given = "".join(f", {name}={required[name]}" for name in wanted)
    line = kind.python.format(name=entry.name, arguments=given)
    exec(f"from normjax import activations, mixers, models, norms\n{line}", {})
    return line


_TRAIN = "python train.py --config=configs/"
KINDS = (
    Kind(
        "norms", "Normalization layers",
        "Every one is called `norm(x, mask=None, train=...)` and keeps the shape of x.",
        norms.NORMS, "NORMS",
        'norm = norms.build("{name}"{arguments})',
        (
            _TRAIN + "digits.py:norm={name} --workdir=runs/{name}",
            _TRAIN + "digits.py:model=resnet,norm={name} --workdir=runs/{name}",
        ),
        _norm_figure, _norm_facts, _norm_group,
    ),
    Kind(
        "mixers", "Token mixers and attention",
        "Every one is called `mixer(x, mask=None, train=False)` and keeps the shape of "
        "x: tokens [B, L, C] or maps [B, H, W, C].",
        mixers.MIXERS, "MIXERS",
        'mixer = mixers.build("{name}"{arguments})',
        (
            _TRAIN + "digits.py:mixer={name} --workdir=runs/{name}",
            _TRAIN + "lm_bytes.py:mixer={name} --workdir=runs/{name}",
        ),
        _mixer_figure, _mixer_facts, _mixer_group,
    ),
    Kind(
        "activations", "Activation functions",
        "Flax modules, so that those with parameters fit in as well.",
        activations.ACTIVATIONS, "ACTIVATIONS",
        'activation = activations.build("{name}"{arguments})',
        (_TRAIN + "digits.py --config.model.activation={name} --workdir=runs/{name}",),
        _activation_figure, times="·",
    ),
    Kind(
        "optimizers", "Optimizers",
        "Each is an optax gradient transformation, chosen by `config.optim.name`.",
        optim.OPTIMIZERS, "OPTIMIZERS", "",
        (_TRAIN + "digits.py --config.optim.name={name} --workdir=runs/{name}",),
        _optimizer_figure, _optimizer_facts, times="·",
    ),
    Kind(
        "schedules", "Learning-rate schedules",
        "The rate by update, chosen by `config.optim.schedule`.",
        optim.SCHEDULES, "SCHEDULES", "",
        (_TRAIN + "digits.py --config.optim.schedule={name} --workdir=runs/{name}",),
        _schedule_figure, times="·",
    ),
    Kind(
        "reparameterizations", "Weight reparameterizations",
        "A layer computes with a function of its weights; `config.reparam` names it.",
        reparam.REPARAMS, "REPARAMS", times="·",
    ),
    Kind(
        "architectures", "Architectures",
        "Assembled from norm, mixer and activation factories; published sizes are "
        "[presets of families](../families/index.md).",
        models.MODELS, "MODELS",
    ),
)  # fmt: skip
