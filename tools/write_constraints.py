"""Write constraints.txt: the newest versions that pyproject.toml allows, and torch as it is pinned there.

pip resolves everything anew without installing it. Local version tags (torch's +cpu) are dropped: which build is
installed is up to the index.
"""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HEADER = "# Every version that `make` installs. Made by `make constraints` from pyproject.toml.\n"
OWN = "trainmaster"
# A PyPI torch brings these on Linux with CUDA; they follow torch's own pins, and a CPU build has none of them.
FOLLOWS_TORCH = ("nvidia-", "cuda-", "triton")


def main() -> None:
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed", "--report", "-"]
    report = json.loads(subprocess.check_output([*command, "-e", f"{ROOT}[server,dev]"], cwd=ROOT))
    found = {item["metadata"]["name"]: item["metadata"]["version"].split("+")[0] for item in report["install"]}
    kept = {n: v for n, v in found.items() if (n != OWN and not n.startswith(FOLLOWS_TORCH)) or n == "nvidia-ml-py"}
    lines = [f"{name}=={kept[name]}\n" for name in sorted(kept, key=str.lower)]
    (ROOT / "constraints.txt").write_text(HEADER + "".join(lines))


if __name__ == "__main__":
    main()
