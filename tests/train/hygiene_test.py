"""What a long run leaves in its process: a subprocess looks at itself."""

import json
import subprocess
import sys

import pytest

from tests.train.hygiene import EVERY
from tests.train.kill_test import ROOT

SLACK = 10.0  # MB


@pytest.mark.slow
@pytest.mark.long
def test_two_thousand_steps(tmp_path, data_dir, capfd):
    command = [sys.executable, "-m", "tests.train.hygiene", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout.splitlines()[-1])
    early, half, end = seen["memory"].values()
    assert end - half < SLACK and end - early < 2 * SLACK, seen["memory"]
    # The evaluation and what a checkpoint needs are compiled at the first of each.
    late = {int(step) for step in seen["compiled"]} - {0, 1, 2}
    assert late <= {EVERY}, seen["compiled"]
    assert seen["threads"] == [] and seen["files"] == []
    with capfd.disabled():
        print(f"\nmemory by step, MB: {seen['memory']}; compiled: {seen['compiled']}")
