"""No token sees a later one, whatever norm sits wherever: refused, or exactly so."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from normjax import models
from normjax.core.arguments import required_names
from normjax.core.errors import UserError
from normjax.core.registry import parts_of
from normjax.mixers import MIXERS
from normjax.norms import NORMS

VOCABULARY, LENGTH = 11, 7
SIZES = {"vocab_size": VOCABULARY, "dim": 8, "depth": 1, "num_heads": 2}
STATE = ["batch_stats", "losses", "diagnostics"]
GROUPED = {"group_norm", "batch_channel_norm", "evonorm_s0"}


def spec(name, **more):
    """A norm that fits heads of four channels."""
    required = dict.fromkeys(required_names(NORMS[name].make), 1)
    groups = {"num_groups": 2} if name in GROUPED else {}
    return {"name": name, **required, **groups, **more}


def nested_norms():
    """Every norm, alone and inside those that take norms."""
    for entry in NORMS:
        yield spec(entry.name)
    yield spec("group_norm", per_token=True)
    yield spec("batch_norm", use_running_average=False)
    yield spec("batch_norm", use_running_average=True)
    for entry, other in itertools.product(NORMS, NORMS):
        for part in parts_of(entry.make):
            for mix in ("current", "end"):
                yield spec(entry.name, **{part: spec(other.name)}, eval_mix=mix)


def by_batch(norm):
    """Whether it trains by the statistics of the batch, in which all tokens meet."""
    stateful = "batch_stats" in NORMS.entry_of(norm).tags
    return stateful and not norm.get("use_running_average")


def text(value):
    if isinstance(value, dict):
        inner = [f"{k}={text(v)}" for k, v in value.items() if k != "name"]
        return value.get("name", "") + (f"({','.join(inner)})" if inner else "")
    if isinstance(value, tuple):
        return ",".join(map(text, value))
    return str(value)


def drawn(shapes, seed=0):
    """Variables that are nowhere 0 or 1; counters at 0."""
    rng = np.random.default_rng(seed)

    def draw(leaf):
        if leaf.dtype.kind != "f":
            return jnp.zeros(leaf.shape, leaf.dtype)
        low = -1.5 if leaf.ndim > 1 else 0.5
        return jnp.asarray(rng.uniform(low, 1.5, leaf.shape), leaf.dtype)

    return jax.tree.map(draw, dict(shapes))


def assert_earlier_stay(run, inputs, changed, modes):
    """The last position moves itself and nothing before it."""
    every_mode = jax.jit(lambda t: [run(t, train) for train in modes])
    for ours, theirs in zip(every_mode(inputs), every_mode(changed), strict=True):
        ours, theirs = np.asarray(ours), np.asarray(theirs)
        np.testing.assert_array_equal(ours[:, :-1], theirs[:, :-1])
        assert (ours[:, -1] != theirs[:, -1]).any()


def accepts(norm, tag):
    """Whether its tags say so; None: no such norm can be made."""
    try:
        NORMS.factory(norm)
    except UserError:
        return None
    return tag in NORMS.entry_of(norm).tags


NESTED = list(nested_norms())
CAUSAL = [norm for norm in NESTED if accepts(norm, "causal")]
OTHERS = [norm for norm in NESTED if accepts(norm, "causal") is False]
PLAIN = [norm for norm in CAUSAL if not parts_of(NORMS[norm["name"]].make)]


def slow_unless(fast, values):
    slow = pytest.mark.slow
    return [
        pytest.param(v, id=text(v), marks=() if v in fast else slow) for v in values
    ]


@pytest.mark.parametrize("norm", slow_unless([*PLAIN, *CAUSAL[-4:]], CAUSAL))
def test_causal_norms(norm):
    """Alone, on queries or keys [B, L, H, K]."""
    module = NORMS.factory(norm)()
    x = jnp.asarray(np.random.default_rng(1).normal(size=(2, LENGTH, 2, 4)), "float32")
    init = lambda x: module.init(jax.random.key(0), x, train=False)  # noqa: E731
    variables = drawn(jax.eval_shape(init, x))

    def run(x, train):
        return module.apply(variables, x, train=train, mutable=STATE)[0]

    modes = (False,) if by_batch(norm) else (True, False)
    assert_earlier_stay(run, x, x.at[:, -1].add(1), modes)


def hosts():
    """(name, arguments with a norm in the place of None) for every nested position."""
    takers = [e.name for e in MIXERS if "causal" in e.tags]
    takers = [name for name in takers if "qk_norm" in parts_of(MIXERS[name].make)]
    for host in ("decoder", "encoder_decoder"):
        yield host, lambda norm: {"norm": norm}
    for mixer in takers:
        yield "decoder", lambda norm, m=mixer: {"mixer": {"name": m, "qk_norm": norm}}
    for place in (1, 2):

        def at(norm, place=place):
            mixers = ["softmax"] * 3
            mixers[place] = {"name": "softmax", "qk_norm": norm}
            return {"mixer": tuple(mixers)}

        yield "encoder_decoder", at


HOSTS = [(host, make) for host, make in hosts()]
IDS = [f"{host}-{text(make('x'))}" for host, make in HOSTS]


@pytest.mark.parametrize(("host", "make"), HOSTS, ids=IDS)
def test_norms_that_are_not_causal_are_refused(host, make):
    for norm in OTHERS:
        with pytest.raises(UserError, match=r"accept causal|lacks 'seq'") as caught:
            models.build(host, **SIZES, **make(norm))
        assert "\n" not in str(caught.value)


def often(name, norm):
    """Mixers without a norm of theirs are in the fast tests of the decoder."""
    return norm["name"] == "rms_norm" and ("softmax" in name or "(norm" in name)


RUNS = [
    pytest.param(
        host,
        make(norm),
        norm,
        id=f"{name}-{text(norm)}",
        marks=() if often(name, norm) else pytest.mark.slow,
    )
    for name, (host, make) in zip(IDS, HOSTS, strict=True)
    for norm in PLAIN
]


@pytest.mark.parametrize(("host", "arguments", "norm"), RUNS)
def test_models(host, arguments, norm):
    model = models.build(host, **SIZES, mlp_hidden=8, **arguments)
    tokens = np.random.default_rng(1).integers(0, VOCABULARY - 1, (2, LENGTH))
    source = {} if host == "decoder" else {"source": jnp.asarray(tokens[:, :4])}
    changed = tokens.copy()
    changed[:, -1] = (changed[:, -1] + 1) % (VOCABULARY - 1)
    init = lambda t: model.init(jax.random.key(0), t, **source)  # noqa: E731
    variables = drawn(jax.eval_shape(init, tokens))

    def run(tokens, train):
        arguments = {"train": train, "mutable": STATE, **source}
        return model.apply(variables, tokens, **arguments)[0]

    modes = (False,) if by_batch(norm) else (True, False)
    assert_earlier_stay(run, jnp.asarray(tokens), jnp.asarray(changed), modes)
