"""`python -m normjax.generate`, in process, on runs that were never trained."""

import os

import numpy as np
import pytest

from configs import lm_bytes
from normjax.cli.main import run
from normjax.generate.__main__ import generate_command
from normjax.train.config import keep_config
from normjax.train.experiment import build_model
from normjax.train.start import start_from
from tests.generate.models import drawn
from tests.train.tiny import tiny_config

END = 256

pytestmark = pytest.mark.usefixtures("compiled_once")


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run with batch norms and drawn variables, whose END is improbable."""
    folder = tmp_path_factory.mktemp("runs") / "lm"
    config = lm_bytes.get_config("runlocal,norm=batch_norm,mixer=gated_linear")
    config.model.update(dim=16, depth=1, num_heads=2, mlp_hidden=8)
    variables = drawn(build_model(config, vocab_size=END + 1))
    start_from(config, variables, folder)
    return folder


@pytest.fixture
def command(workdir, capfd):
    """Runs it; (exit code, stdout, lines on stderr)."""

    def call(*arguments, folder=workdir):
        capfd.readouterr()
        flags = [f"--workdir={folder}", "--length=12", *arguments]
        code = run(generate_command, ["generate", *flags])
        printed = capfd.readouterr()
        return code, printed.out, printed.err.splitlines()

    return call


def test_text_and_speed(command, tmp_path):
    code, text, (speed,) = command("--prompt=def f", "--top_k=9")
    assert code == 0 and text.startswith("def f") and len(text) > len("def f\n")
    assert "12 tokens" in speed and "tokens a second" in speed
    prompt = tmp_path / "prompt.txt"
    prompt.write_text("def f")
    same = command(f"--prompt_file={prompt}", "--top_k=9")
    assert same[:2] == (0, text)
    other = command("--prompt=def f", "--top_k=9", "--seed=1")
    assert other[0] == 0 and other[1] != text


def test_folded_norms_write_the_same(command):
    arguments = "--prompt=import os", "--temperature=0.5", "--count=3"
    code, text, (speed,) = command(*arguments)
    assert code == 0 and "36 tokens" in speed
    assert [f"--- {i} of 3" in text for i in (1, 2, 3)] == [True] * 3
    assert command(*arguments, "--fold")[:2] == (0, text)


def test_an_end_ends_it(tmp_path, capfd, command):
    """A model that knows one token, END."""
    config = lm_bytes.get_config("runlocal")
    config.model.update(dim=16, depth=1, num_heads=2, mlp_hidden=8)
    variables = drawn(build_model(config, vocab_size=END + 1))
    # The constant that the last norm makes of one channel is read by END alone.
    params = variables["params"]
    params["embed"] = np.zeros((END + 1, 16)) + 1000 * (np.arange(16) == 0)
    params["head"]["kernel"] = np.zeros((16, END + 1))
    params["head"]["kernel"][0, END] = 100 * np.sign(params["norm"]["scale"][0])
    start_from(config, variables, tmp_path / "lm")
    code, text, (speed,) = command("--prompt=x", folder=tmp_path / "lm")
    assert (code, text) == (0, "x\n") and speed.startswith("1 tokens")


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        (["--temperature=-1"], "temperature must be at least 0"),
        (["--top_k=0"], "top_k must be at least 1"),
        (["--top_p=1.5"], "top_p must be above 0 and at most 1"),
        (["--length=0"], "--length=0"),
        (["--count=some"], "--count=some"),
        (["--seed=-1"], "--seed=-1"),
        (["--prompt=a", "--prompt_file=b"], "not both"),
        (["--prompt_file=nowhere"], "cannot read --prompt_file=nowhere"),
        (["--workdir="], "--workdir is required"),
        (["--workdir=nowhere"], "workdir nowhere holds no run"),
        (["--tempreature=1"], "tempreature"),
        (["text"], "unexpected argument 'text'"),
    ],
)
def test_what_it_refuses(command, arguments, fragment):
    code, text, lines = command(*arguments)
    assert (code, text, len(lines)) == (2, "", 1)
    assert lines[0].startswith("error: ") and fragment in lines[0]


def test_a_run_without_text(command, tmp_path):
    keep_config(tiny_config(), tmp_path)
    code, _, lines = command(folder=tmp_path)
    assert code == 2 and len(lines) == 1
    assert f"workdir {tmp_path} holds the model 'vit'" in lines[0]
    assert os.listdir(tmp_path) == ["config.json"]


def test_a_run_without_a_checkpoint(command, tmp_path):
    keep_config(lm_bytes.get_config(), tmp_path)
    code, _, lines = command(folder=tmp_path)
    assert code == 2 and "no complete checkpoint" in lines[0]
