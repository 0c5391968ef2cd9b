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
    """Cell after cell, with fewer steps; every cell has stored outputs, except those that only import."""
    monkeypatch.chdir(tmp_path)
    cells = json.loads((ROOT / "docs" / "first-steps.ipynb").read_text())["cells"]
    names: dict = {}
    for cell in cells:
        assert cell["source"]
        if cell["cell_type"] == "code":
            source = "".join(cell["source"])
            assert cell["outputs"] or all(line.startswith(("import", "from", "#")) for line in source.splitlines())
            exec(compile(source.replace('"600"', '"2"'), "first-steps.ipynb", "exec"), names)
    assert names["maps"]["conv5"].ndim == 4 and set(names["pretrained"].metrics) & set(names["untrained"].metrics)
