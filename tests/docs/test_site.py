"""The site of the documentation: every page is in it and can be found, and it builds without a warning."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
PAGES = sorted(path.name for path in (ROOT / "docs").glob("*.md"))


def named(tree) -> list[str]:
    """The pages of a navigation."""
    if isinstance(tree, str):
        return [tree]
    parts = tree.values() if isinstance(tree, dict) else tree
    return [name for part in parts for name in named(part)]


def test_the_navigation_has_every_page_once():
    found = named(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    assert sorted(found) == PAGES


@pytest.mark.parametrize("page", [*PAGES, "first-steps.ipynb"])
def test_every_page_is_linked_from_another(page):
    others = [ROOT / "README.md", *(ROOT / "docs" / name for name in PAGES if name != page)]
    assert page == "index.md" or any(re.search(rf"\]\((docs/)?{re.escape(page)}[)#]", p.read_text()) for p in others)


def test_links_of_the_readme_lead_somewhere():
    for target in re.findall(r"\]\(((?!https?:)[^)#]+)", (ROOT / "README.md").read_text()):
        assert (ROOT / target).exists(), target


def test_the_site_builds_without_a_warning(tmp_path):
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path / "site"]
    found = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    page = (tmp_path / "site" / "api" / "index.html").read_text()
    for words in ("load_backbone", "linear_probe", "InputSpec", "a run folder, a weights file"):
        assert words in page
    assert (tmp_path / "site" / "first-steps.ipynb").is_file()


@pytest.mark.slow
def test_the_notebook_runs(tmp_path, monkeypatch):
    """Cell after cell, as a person would; with fewer steps."""
    monkeypatch.chdir(tmp_path)
    cells = json.loads((ROOT / "docs" / "first-steps.ipynb").read_text())["cells"]
    found: dict = {}
    for cell in cells:
        assert cell["source"] and not cell.get("outputs")
        if cell["cell_type"] == "code":
            source = "".join(cell["source"]).replace('"100"', '"2"')
            exec(compile(source, "first-steps.ipynb", "exec"), found)
    assert found["maps"]["conv5"].ndim == 4 and set(found["ours"].metrics) & set(found["twin"].metrics)
