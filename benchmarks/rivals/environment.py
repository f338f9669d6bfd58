"""A virtual environment for each rival, made once and kept outside the repository."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import venv
from pathlib import Path

PACKAGES = Path(__file__).parent
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "trainmaster" / "rivals"


def environment_of(rival: str) -> Path:
    """Return the `bin` folder of the rival's environment; make it where it is missing or older than the rival's list of packages.

    rival: "flower" or "nvflare". Takes minutes and some 1.5 GB the first time; pip's own settings say where from.
    """
    packages = PACKAGES / f"{rival}.txt"
    state = hashlib.sha256(packages.read_bytes() + sys.version.encode()).hexdigest()
    home = Path(os.environ.get("TRAINMASTER_BENCH_RIVALS") or CACHE) / rival
    stamp, python = home / "installed", home / "bin" / "python"
    if not stamp.exists() or stamp.read_text() != state:
        print(f"Installing {rival} in {home} ...", file=sys.stderr)
        venv.create(home, with_pip=True, clear=True, symlinks=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--no-input", "--no-deps"]
        subprocess.run([*pip, "-r", str(packages)], check=True)
        stamp.write_text(state)
    return home / "bin"


def variables_for(binaries: Path, home: Path) -> dict[str, str]:
    """Return the environment of a rival's processes: its own programs first, its files below `home`, one torch thread."""
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("TRAINMASTER_", "DJANGO_", "PYTHON"))
    }
    return kept | {
        "PATH": f"{binaries}{os.pathsep}{os.environ.get('PATH', '')}",
        "VIRTUAL_ENV": str(binaries.parent),
        "HOME": str(home),
        "OMP_NUM_THREADS": "1",
    }
