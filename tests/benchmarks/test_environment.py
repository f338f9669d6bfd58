"""A rival's environment is made once."""

from __future__ import annotations

import hashlib
import sys

import pytest

from benchmarks.rivals import environment


def test_one_that_is_there_is_taken_as_it_is(monkeypatch, tmp_path):
    monkeypatch.setenv("TRAINMASTER_BENCH_RIVALS", str(tmp_path))
    packages = (environment.PACKAGES / "flower.txt").read_bytes()
    (tmp_path / "flower").mkdir()
    (tmp_path / "flower" / "installed").write_text(hashlib.sha256(packages + sys.version.encode()).hexdigest())
    assert environment.environment_of("flower") == tmp_path / "flower" / "bin"
    assert [path.name for path in (tmp_path / "flower").iterdir()] == ["installed"]


def test_a_rivals_processes_see_nothing_of_ours(monkeypatch, tmp_path):
    monkeypatch.setenv("TRAINMASTER_HOME", "/somewhere")
    monkeypatch.setenv("PYTHONPATH", "/ours")
    variables = environment.variables_for(tmp_path / "venv" / "bin", tmp_path / "home")
    assert not {"TRAINMASTER_HOME", "PYTHONPATH", "DJANGO_SETTINGS_MODULE"} & variables.keys()
    assert variables["PATH"].startswith(f"{tmp_path}/venv/bin:")
    assert (variables["HOME"], variables["OMP_NUM_THREADS"]) == (str(tmp_path / "home"), "1")


@pytest.mark.parametrize("rival", ["flower", "nvflare"])
def test_every_package_is_pinned(rival):
    lines = (environment.PACKAGES / f"{rival}.txt").read_text().splitlines()
    packages = [line for line in lines if not line.startswith("#")]
    assert packages
    assert all("==" in line for line in packages)
    assert "torch==2.13.0" in packages
