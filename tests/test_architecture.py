"""The house's rules that no tool knows: which way imports point, what a web process pays for, how long files are."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MAX_LINES = 350
LAYERS = [{"core"}, {"teams"}, {"fleet", "blobs"}, {"telemetry"}, {"jobs"}, {"ingest"}, {"stack"}]
"""Apps of webapp, lowest first. An app imports of its own and lower layers only."""
FACES = {"views", "api", "node_api", "urls", "admin", "forms", "consumers", "routing", "asgi"}
"""Modules that may read and call any app: what people and nodes see is made of many apps' parts."""


def python_files(*packages: str) -> list[Path]:
    return [
        path.relative_to(ROOT)
        for package in packages
        for path in sorted((ROOT / package).rglob("*.py"))
        if "migrations" not in path.parts
    ]


def imports_of(path: Path) -> Iterator[str]:
    """The modules that a file names in import statements, wherever they stand; not those for type checkers alone."""
    tree = ast.parse((ROOT / path).read_text())
    for_types = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")
        for statement in node.body
        for inner in ast.walk(statement)
    }
    for node in ast.walk(tree):
        if id(node) in for_types:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            module = node.module or ""
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def roots_of(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imports_of(path)}


@pytest.mark.parametrize("path", python_files("trainer"), ids=str)
def test_the_trainer_knows_no_web(path):
    assert not roots_of(path) & {"django", "webapp", "ninja", "channels"}


def layer_of(app: str) -> int:
    return next(i for i, apps in enumerate(LAYERS) if app in apps)


@pytest.mark.parametrize("path", python_files("webapp"), ids=str)
def test_arrows_between_apps_point_down(path):
    if len(path.parts) < 3 or path.stem in FACES:
        return
    app = path.parts[1]
    imported = {m.group(1) for name in imports_of(path) if (m := re.match(r"webapp\.([a-z]+)\.", name + "."))}
    apps = set().union(*LAYERS)
    upward = {other for other in imported & apps if other != app and layer_of(other) >= layer_of(app)}
    assert not upward, f"{path} imports {upward}"


def test_every_app_has_its_layer():
    apps = {path.parts[1] for path in python_files("webapp") if path.name == "__init__.py" and len(path.parts) == 3}
    assert apps == set().union(*LAYERS)


@pytest.mark.parametrize("path", python_files("trainer", "webapp"), ids=str)
def test_files_are_short(path):
    assert len((ROOT / path).read_text().splitlines()) <= MAX_LINES


@pytest.mark.parametrize("path", python_files("trainer", "webapp"), ids=str)
def test_nothing_is_pickled(path):
    names = set(imports_of(path))
    assert not {name.split(".")[0] for name in names} & {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
    calls = {
        ast.unparse(node.func) for node in ast.walk(ast.parse((ROOT / path).read_text())) if isinstance(node, ast.Call)
    }
    assert not calls & {"torch.load", "torch.save"}
    assert "allow_pickle=True" not in (ROOT / path).read_text()


@pytest.mark.parametrize(
    "modules",
    [
        "import webapp.asgi, webapp.urls",
        "import django; django.setup(); import webapp.jobs.services, webapp.ingest.management.commands.ingest",
    ],
    ids=["web", "services and ingest"],
)
def test_a_web_process_does_not_pay_for_torch(modules):
    found = loaded(f"{modules}; from django.urls import get_resolver; get_resolver().url_patterns")
    assert "django" in found
    assert not found & {"torch", "sklearn", "pyarrow"}


def test_the_command_line_starts_without_the_heavy_parts():
    found = loaded("import trainer.cli, trainer.commands.jobs")
    assert not found & {"torch", "django", "celery", "sklearn", "numpy"}


def loaded(statements: str) -> set[str]:
    """The modules that a new process has loaded after `statements`."""
    code = f"{statements}; import sys; print('loaded:', *sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "DJANGO_SETTINGS_MODULE": "tests.settings"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.rpartition("loaded:")[2].split())
