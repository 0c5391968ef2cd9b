"""Source and documentation avoid the names and phrases that CONTRIBUTING.md rules out."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("crosschannel", "transfer", "slurm", "benchmarks")
SOURCES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
PAGES = sorted((*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")))

# Verbs, participles and pronouns are not names of things; there is always a noun.
NAMES = {"found", "given", "told", "kept", "made", "said", "learned", "moved", "wanted", "taken", "shown"}
NAMES |= {"kin", "mine", "theirs", "everything"}

PHRASES = (
    r"told|kin|anew|besides|begun|midst|heard",
    r"of its own|of their own|of (?:ours|yours)|is to be|are to be",
    r"what (?:is|are|was|were|it|they|a|the|one)",
    r"where (?:it|they|there|that|one|none|nothing)",
    r"(?<!there )(?:is|are|was) no (?!longer|more|less|better)\w+",
    r"so many|these very|at hand|be had|in the way|to the letter|in words|as it (?:was|is|stands)",
    r"run to (?:its|their) end|whole or not at all|twins?|at rest|stands on",
)
PROSE = re.compile("|".join(rf"\b(?:{phrase})\b" for phrase in PHRASES), re.IGNORECASE)
FRAGMENT = re.compile(r"^\s*\w[\w, ]*: of\b", re.MULTILINE)  # "seed: of the draws." does not describe a seed

EXCEPTIONS = {  # phrases that a file may contain
    "crosschannel/models/backbone.py": {"wanted"},  # a parameter of a public method
    "crosschannel/models/regions.py": {"where they"},  # a place
    "crosschannel/study/answers.py": {"begun"},  # a column of the database
    "crosschannel/study/schema.py": {"begun"},
    "slurm/job_folder.py": {"told"},  # a field of a stored file
}


def prose_of_code(path: Path) -> Iterator[tuple[int, str]]:
    """Line numbers and texts of docstrings, comments, and strings of more than one word."""
    source = path.read_text()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT or (token.type == tokenize.STRING and " " in token.string):
            yield token.start[0], token.string


def prose_of_page(path: Path) -> Iterator[tuple[int, str]]:
    """Line numbers and lines outside code blocks, without inline code."""
    in_code = False
    for number, line in enumerate(path.read_text().splitlines(), 1):
        in_code ^= line.lstrip().startswith("```")
        if not in_code:
            yield number, re.sub(r"`[^`]*`", "", line)


def identifiers(path: Path) -> Iterator[tuple[int, str]]:
    """Line numbers and names of variables, parameters, functions, classes and attributes that a file defines."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.lineno, node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.attr
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg


def findings(path: Path) -> list[str]:
    """Violations in a file, as ``line: phrase``."""
    allowed = EXCEPTIONS.get(str(path.relative_to(ROOT)), ())
    matches = []
    for line, text in (prose_of_code if path.suffix == ".py" else prose_of_page)(path):
        matches += [(line, match[0]) for match in PROSE.finditer(text)]
        if text.startswith(('"""', 'r"""')):
            matches += [(line, match[0].strip()) for match in FRAGMENT.finditer(text)]
    if path.suffix == ".py":
        matches += [(line, name) for line, name in identifiers(path) if name.lower().strip("_") in NAMES]
    return [f"{line}: {phrase}" for line, phrase in matches if phrase.lower() not in allowed]


@pytest.mark.parametrize("path", [*SOURCES, *PAGES], ids=lambda path: str(path.relative_to(ROOT)))
def test_words_are_those_of_the_field(path):
    assert not findings(path)
