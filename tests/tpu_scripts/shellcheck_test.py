"""The scripts are clean shell."""

import subprocess
import sys
from pathlib import Path

from tests.tpu_scripts.cloud import ROOT, SCRIPTS


def test_shellcheck():
    scripts = [*SCRIPTS.glob("*.sh"), SCRIPTS / "train.sbatch"]
    assert len(scripts) == 6
    scripts.append(Path(__file__).parent / "fake.sh")
    shellcheck = Path(sys.executable).parent / "shellcheck"
    command = [shellcheck, "--external-sources", "--source-path", ROOT, *scripts]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


def test_lines_are_not_too_long():
    for path in SCRIPTS.iterdir():
        for number, line in enumerate(path.read_text().splitlines(), 1):
            assert len(line) <= 150, f"{path.name}:{number}"
