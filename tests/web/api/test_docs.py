"""What README.md and docs/ promise."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest
import yaml

from trainer.sections.data import Partition
from trainer.sections.federated import Encoding, Federated
from trainer.sections.strategy import Aggregator, ServerOptimizer, Strategy
from trainer.spec import JobSpec
from webapp.api import api

ROOT = Path(__file__).resolve().parents[3]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("path", sorted((ROOT / "docs" / "examples").glob("*.yaml")), ids=lambda p: p.name)
def test_examples_are_specs(path):
    JobSpec.model_validate(yaml.safe_load(path.read_text()))


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page):
    text = page.read_text()
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text) + re.findall(r"src(?:set)?=\"([^\"]+)\"", text):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize(
    "registry",
    [Strategy, Aggregator, ServerOptimizer, Encoding, Partition],
    ids=lambda r: get_args(get_args(r)[0])[0].__name__,
)
def test_every_federated_choice_is_explained(registry):
    text = (ROOT / "docs" / "federated.md").read_text()
    for entry in get_args(get_args(registry)[0]):
        (name,) = get_args(next(f.annotation for key, f in entry.model_fields.items() if key in ("name", "scheme")))
        assert f"| `{name}` |" in text or (name == "mean" and f"`{name}` follows" in text), name


def test_the_pages_examples_of_a_section_are_valid():
    text = (ROOT / "docs" / "federated.md").read_text()
    examples = [yaml.safe_load(block) for block in re.findall(r"(?:^    .*\n)+", text, re.M)]
    assert len(examples) >= 3
    for example in examples:
        Federated.model_validate(example["federated"])


def test_every_call_of_the_page_exists():
    text = (ROOT / "docs" / "api.md").read_text()
    calls = {
        path
        for row in re.findall(r"^\| `(?:GET|POST).*", text, re.M)
        for path in re.findall(r"`(?:[A-Z]+ )?(/[^`?]*)", row)
    }
    known = {re.sub(r"\{\w+\}", "{}", path) for path in api.get_openapi_schema(path_prefix="")["paths"]}
    for call in calls:
        assert any(path.endswith(re.sub(r"\{\w+\}", "{}", call)) for path in known), call


def test_the_tree_of_the_readme_is_the_real_one():
    """Every folder and file that the README's tree names is there, and every package of the product is in the tree."""
    text = (ROOT / "README.md").read_text()
    tree = text.partition("## The tree")[2].partition("\n## ")[0]
    named, folder = set(), ""
    for line in tree.splitlines():
        if match := re.match(r"    ( *)([\w./-]+)", line):
            depth, name = len(match.group(1)), match.group(2)
            folder = name if depth == 0 and name.endswith("/") else folder if depth else ""
            path = name if depth == 0 else folder + name
            assert (ROOT / path).exists(), path
            named.add(path.rstrip("/"))
    packages = {
        f"{top}/{path.name}"
        for top in ("trainer", "webapp")
        for path in (ROOT / top).iterdir()
        if (path.is_dir() and (path / "__init__.py").exists()) or (path.suffix == ".py" and path.name != "__init__.py")
    }
    assert packages <= named, packages - named
