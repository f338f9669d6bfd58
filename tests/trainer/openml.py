"""Data sets of OpenML without a network, by way of tools/fetch_openml.py.

scikit-learn ships OpenML's answers for its own tests; here they lie where `fetch_openml` looks for what it fetched before.
"""

from __future__ import annotations

import gzip
import json
import shutil
import subprocess
import sys
from importlib.resources import as_file, files
from pathlib import Path
from urllib.parse import urlparse

ROOT = Path(__file__).resolve().parents[2]
CALLS = {"jd": "api/v1/json/data", "jdf": "api/v1/json/data/features", "jdq": "api/v1/json/data/qualities"}


def fill_cache(cache: Path, number: int) -> None:
    """Lay one data set into the folder that `fetch_openml` gets as its `data_home`."""
    home = cache / "openml" / "openml.org"
    with as_file(files(f"sklearn.datasets.tests.data.openml.id_{number}")) as answers:
        for short, call in CALLS.items():
            _copy(answers / f"api-v1-{short}-{number}.json.gz", home / call / f"{number}.gz")
        with gzip.open(answers / f"api-v1-jd-{number}.json.gz") as file:
            address = json.load(file)["data_set_description"]["url"]
        (data,) = answers.glob("data-v1-dl-*.arff.gz")
        _copy(data, home / f"{urlparse(address).path.lstrip('/')}.gz")


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def fetch(number: int, path: Path) -> subprocess.CompletedProcess[str]:
    """Run the tool on what `fill_cache` laid beside `path`."""
    tool = [sys.executable, "-W", "ignore", "tools/fetch_openml.py", str(number), str(path)]
    command = [*tool, "--cache", str(path.parent / "cache")]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
