"""The rules of the house, held by the syntax trees of its files."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LAYERS = (
    {"core", "families"},
    {"kernels"},
    {"activations", "norms", "mixers", "reparam", "devices", "calibration"},
    {"models", "data", "optim", "losses", "adapt"},
    {"fusion", "tasks", "config", "convert"},
    {"analysis", "records", "transfer"},
    {"train"},
    {"evaluation"},
    {"cli"},
    {"generate", "export", "prune", "quantize"},
    {"plan"},
    {"bench"},
    {"study"},
)
LEVEL = {package: level for level, names in enumerate(LAYERS) for package in names}
OF_RUNS = {"config", "devices", "records"}
"""Packages below the loop that know what only a run has: processes, flags, configs."""
CORE_ONLY = {"devices", "data", "optim", "losses", "calibration"}
MAX_FILE, MAX_FUNCTION, MAX_SCRIPT = 400, 60, 80

FILES = sorted((ROOT / "normjax").rglob("*.py"))
CONFIGS = sorted((ROOT / "configs").rglob("*.py"))
SCRIPTS = [ROOT / "train.py", ROOT / "eval.py"]
LIGHT = (
    "normjax.core.errors",
    "normjax.core.layer_decay",
    "normjax.core.ranges",
    "normjax.core.schedules",
    "normjax.config.data_sections",
    "normjax.config.declare",
    "normjax.config.sections",
    "normjax.config.fields",
    "normjax.config.check",
    "normjax.study.cells",
    "normjax.study.claims",
    *(
        f"normjax.families.{file.stem}"
        for file in (ROOT / "normjax/families").glob("*.py")
    ),
)
"""What recipes, which are read before JAX is started, may import of normjax."""


def relative(path):
    return str(path.relative_to(ROOT))


def parse(path):
    return ast.parse(path.read_text(), str(path))


def imported(path):
    """Full names of everything that a file imports, at any depth of its code."""
    names = set()
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{relative(path)}: relative import"
            names.add(node.module)
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def packages(path):
    """Packages of normjax that a file imports."""
    parts = (name.split(".") for name in imported(path))
    return {p[1] for p in parts if p[0] == "normjax" and len(p) > 1} & set(LEVEL)


def package_of(path):
    """The package of a file of normjax; None for files at its top."""
    parts = path.relative_to(ROOT / "normjax").parts
    return parts[0] if len(parts) > 1 else None


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_files_import_lower_layers_only(path):
    package = package_of(path)
    if package is None or path.name == "__main__.py":
        return
    assert package in LEVEL, f"{package} has no layer: add it to LAYERS"
    for other in packages(path) - {package}:
        assert LEVEL[other] < LEVEL[package], f"{package} imports {other}"
        if package in CORE_ONLY:
            assert other == "core", f"{package} imports {other}"


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_libraries_know_no_processes_flags_or_tensorflow(path):
    imports = imported(path)
    assert not {n for n in imports if n.split(".")[0] == "tensorflow"}
    package = package_of(path)
    above = package is None or LEVEL[package] >= LEVEL["train"]
    if above or package in OF_RUNS or path.name == "__main__.py":
        return
    named = {n.attr for n in ast.walk(parse(path)) if isinstance(n, ast.Attribute)}
    assert not named & {"process_index", "process_count"} - own_names(path)
    if relative(path) not in READS_FLAGS_OF_A_LIBRARY:
        assert not {n for n in imports if n.startswith("absl.flags")}
    assert not {n for n in imports if n.split(".")[0] == "ml_collections"}


READS_FLAGS_OF_A_LIBRARY = {"normjax/data/pipeline.py"}
"""grain's worker processes read absl's flags, whether or not there are any."""


MIXERS = {"ops": set(), "cores": {"ops"}, "grid": {"cores", "ops"}, "sequence": {"ops"}}
MIXERS["graph"] = {"ops"}
"""Folders of the mixers, and those that their files may import."""


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_mixers_import_downwards(path):
    """The functions know no Flax, the base no mixer, a kind of mixer no other kind."""
    parts = path.relative_to(ROOT / "normjax").parts
    if parts[0] != "mixers" or path.name == "__init__.py":
        return
    ours = {n.split(".")[2] for n in imported(path) if n.startswith("normjax.mixers.")}
    if parts[1] in MIXERS:
        assert ours & set(MIXERS) <= MIXERS[parts[1]] | {parts[1]}
    else:
        assert ours & set(MIXERS) <= {"ops"}
    if parts[1] == "ops":
        assert ours <= {"ops"}
        assert not {n for n in imported(path) if n.split(".")[0] == "flax"}
    assert parts[1] != "base.py" or not ours


def own_names(path):
    """Attributes that a file reads of `self`, which are none of jax's."""
    return {
        node.attr
        for node in ast.walk(parse(path))
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "self"
    }


def test_imports_run_in_no_circle():
    """Wherever in a file they stand, for types alone, too."""
    names = {module_of(path): path for path in FILES}
    edges = {name: set(modules(path, names)) for name, path in names.items()}
    while free := [name for name, others in edges.items() if not others]:
        edges = {n: o - set(free) for n, o in edges.items() if n not in free}
    assert not edges


def module_of(path):
    """The full name of a file's module."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def modules(path, names):
    """Those of `names` that a file imports; of a package, what it takes out of it."""
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            yield from {alias.name for alias in node.names} & set(names)
        elif isinstance(node, ast.ImportFrom):
            found = [f"{node.module}.{alias.name}" for alias in node.names]
            whole = (n if n in names else node.module for n in found)
            yield from set(whole) & set(names)


@pytest.mark.parametrize(
    "path",
    [*CONFIGS, *((ROOT / name.replace(".", "/")).with_suffix(".py") for name in LIGHT)],
    ids=relative,
)
def test_configs_import_neither_jax_nor_flax(path):
    roots = {name.split(".")[0] for name in imported(path)}
    assert not roots & {"jax", "flax", "optax", "orbax", "numpy", "absl"}
    deeper = {n for n in imported(path) if n.startswith("normjax.")}
    assert all(n.startswith((*LIGHT, "normjax.families")) for n in deeper)


@pytest.mark.parametrize("path", FILES + CONFIGS + SCRIPTS, ids=relative)
def test_files_and_functions_are_short(path):
    length = len(path.read_text().splitlines())
    assert length <= (MAX_SCRIPT if path in SCRIPTS else MAX_FILE)
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = node.end_lineno - node.lineno + 1
            assert lines <= MAX_FUNCTION, f"{node.name} has {lines} lines"


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import normjax", {"jax", "flax", "numpy", "tensorflow"}),
        (
            "import configs.digits; configs.digits.get_config()",
            {"jax", "flax", "optax", "numpy"},
        ),
        ("import normjax.cli.main", {"jax", "flax", "tensorflow"}),
        ("import normjax.train.loop", {"tensorflow", "torch", "matplotlib.pyplot"}),
    ],
)
def test_what_an_import_does_not_load(statement, absent):
    code = f"{statement}\nimport sys\nprint(*sorted({absent} & set(sys.modules)))"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == []


def test_every_file_is_seen():
    assert len(FILES) > 40 and len(CONFIGS) > 2
    assert {package_of(path) for path in FILES} - {None} <= set(LEVEL)
