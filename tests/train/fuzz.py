"""Command lines of every config for `fuzz_test`: right, nearly right and absurd."""

import ast
import contextlib
import dataclasses
import io
import random
from pathlib import Path

import ml_collections
from hypothesis import strategies as st

from normjax.cli.main import run
from normjax.config.recipes import load_config
from normjax.core.arguments import field_names
from normjax.core.errors import UserError
from normjax.models import COMPONENTS, MODELS

ROOT = Path(__file__).parents[2]


@dataclasses.dataclass(frozen=True)
class Base:
    """A small run: its config file, the argument for its data, and what shrinks it."""

    file: str
    argument: str = ""
    shrink: tuple[str, ...] = ()

    @property
    def spec(self) -> str:
        return f"--config=configs/{self.file}.py:runlocal{self.argument}"


def bases(images: Path, text: Path) -> list[Base]:
    """One for every file of configs/ that has a `get_config`.

    Args:
      images: an image folder.  text: a file.
    """
    small = ("--config.model.depth=1", "--config.model.dim=16")
    heads = (*small, "--config.model.num_heads=2")
    known = {
        "digits": Base("digits", "", heads),
        "perp": Base("perp", "", heads),
        "cifar10": Base("cifar10", f",path={images}", heads),
        "lm_bytes": Base("lm_bytes", "", small),
        "lm_llama": Base("lm_llama", "", small),
        "lm_text": Base("lm_text", f",path={text}", small),
    }
    files = [
        path.stem
        for path in sorted((ROOT / "configs").glob("*.py"))
        if any(
            isinstance(node, ast.FunctionDef) and node.name == "get_config"
            for node in ast.parse(path.read_text()).body
        )
    ]
    return [known.get(name, Base(name)) for name in files]


LONG = "x" * 5000
INTEGERS = "-9223372036854775809 -3 -1 0 1 2 3 5 7 16 1000000 4294967296 1" + 40 * "0"
FLOATS = "nan inf -inf -1 -0.0 0 1e-320 1e-12 0.5 0.999 1 1.5 1e30 1e39 1e309"
BOOLS = "true false True 0 1 maybe"
TUPLES = (
    "() (0,) (1,) (-1,) (0.5,0.5,0.5) ('a',) ((1,),) (None,) (1 [1] {} 1 nan (inf,)"
)
STRINGS = (
    *("", " ", "é", "\u2028", "\udcff", LONG, "..", "/dev/null", "/", "none"),
    *("name=x", "{}", "*", "**", "(", "a\nb", "%s", "-1", "softmax", "auto", "train"),
)
TEXTS = {
    bool: BOOLS.split(),
    int: INTEGERS.split(),
    float: FLOATS.split(),
    tuple: TUPLES.split(),
    str: STRINGS,
}
LOOPS = ("depth", "depths", "num_layers", "rand_augment_ops", "rounds", "iterations")
"""Fields that are traced one by one: a great number is right and takes for ever."""


def leaves(config, prefix=""):
    for name, value in config.items():
        if isinstance(value, ml_collections.ConfigDict):
            yield f"{prefix}{name}", value
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def names_near(name: str) -> list[str]:
    """Names that are nearly `name`, and some that are nothing."""
    near = (name[:-1], f"{name}s", name.upper(), f"{name}.x", f"{name}[0]")
    return [*near, "", ".", "é"]


def choices_of(field: str, value) -> list[str]:
    """Texts for a field: of its type, and of others."""
    same = list(TEXTS.get(type(value), STRINGS))
    last = field.rpartition(".")[2]
    if last in LOOPS:
        same = [text for text in same if len(text) < 4]
    if last == "name":
        kind = field.split(".")[-2]
        registry = COMPONENTS.get(kind, MODELS if kind == "model" else ())
        same += [entry.name for entry in registry] * 2
    return same


def fields_of(base: Base) -> dict:
    """The fields of the config and arguments of its components, with their values."""
    config = load_config(base.spec.partition("=")[2])
    fields = dict(leaves(config))
    for kind, registry in COMPONENTS.items():
        node = config.model.get(kind)
        name = node.get("name") if isinstance(node, ml_collections.ConfigDict) else None
        for argument in field_names(registry[name].make) if name in registry else ():
            fields.setdefault(f"model.{kind}.{argument}", None)
    return fields


def single_overrides(base: Base):
    """One override of each field in turn, by a text of its type, in random order."""
    rng = random.Random(0)
    fields = fields_of(base)
    for field in rng.sample(sorted(fields), len(fields)):
        text = rng.choice(choices_of(field, fields[field]))
        yield (base.spec, *base.shrink, f"--config.{field}={text}")


@st.composite
def overrides(draw, base: Base):
    """One to three overrides of fields of the config, most of them well-formed."""
    fields = fields_of(base)
    lines = []
    for _ in range(draw(st.integers(1, 3))):
        field = draw(st.sampled_from(sorted(fields)))
        texts = choices_of(field, fields[field])
        if not draw(st.integers(0, 5)):
            texts = TEXTS[draw(st.sampled_from(sorted(TEXTS, key=str)))]
            texts = [
                t for t in texts if len(t) < 4 or field.split(".")[-1] not in LOOPS
            ]
        text = draw(st.sampled_from(texts))
        if not draw(st.integers(0, 7)):
            field = draw(st.sampled_from(names_near(field)))
        lines.append(f"--config.{field}={text}")
    return (base.spec, *base.shrink, *lines)


ARGUMENTS = """
    nrm=x norm norm= norm=prepbn norm=none mixer=é runlocal=7 runlocal,runlocal , = == :
    model= model=vit variant= steps=-1 steps=1e9 steps=0 placement=post a=b=c
"""
FLAGS = """
    --config --config= --config=. --config=/ --config=: --config=Makefile
    --config=configs/common.py --workdir --workdir= --workdir=x --wrkdir=x --noworkdir
    -workdir=x --workdir=Makefile - -- --- --= --=1 é --é=1 extra --help
    --config. --config.=1 --config.seed --config.seed= --config.seed=1 --config..seed=1
    --noconfig.data.augment.flip --noconfig.seed --noconfig --config[0]=1
    --config.data.mean[0]=0.5 --config.data.mean[9]=1 --config.data.mean[x]=1
    --config.reparam[0].a=1 --config.model --config.model[0]=1
    --flagfile=/nowhere --flagfile= --undefok=x --undefok --split=test
"""
ODD = ("\udcff", "\u2028", LONG)


@st.composite
def flags(draw, base: Base, more: tuple[str, ...] = ()):
    """Up to five flags, `more` among them: cut off, doubled, unknown, left out."""
    argument = draw(st.sampled_from([*ARGUMENTS.split(), *ODD]))
    config = f"--config=configs/{base.file}.py:{argument}"
    odd = [f"--{name}={text}" for name in ("config", "workdir") for text in ODD]
    words = (base.spec, config, "", *FLAGS.split(), *odd, *more)
    return tuple(draw(st.lists(st.sampled_from(words), max_size=5)))


class Reached(UserError):
    """In the place of work that is not part of a test."""


def outcome(command, *argv: str) -> int:
    """The exit code of a command that either works or says in one line why not."""
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
        code = run(command, ["command.py", *argv])
    lines = [x for x in errors.getvalue().splitlines() if not x.startswith("prepar")]
    if code:
        assert len(lines) == 1 and lines[0].startswith("error: "), lines
        assert "Traceback" not in lines[0]
    return code
