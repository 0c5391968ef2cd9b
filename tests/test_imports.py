"""Dependencies point one way, and help waits for no torch."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# From the ground up: a part may import those before it, and its own.
FLOOR = ("version", "lazy", "errors", "files", "stored", "config", "command")
FLOOR += ("console", "csv_files", "factories", "runs")
ORDER = (
    "color",
    "data",
    "models",
    "training",
    "report",
    "pretext",
    "colorize",
    "hub",
    "evaluation",
    "web",
    "study",
    "demo",
    "timm",
    "detectron2",
    "commands",
)
LINES = ("program", "cli")  # what is typed: nothing below knows it


def imported(path: Path) -> set[str]:
    """Project modules and names that a file imports, within functions too, but not under TYPE_CHECKING."""
    tree = ast.parse(path.read_text())
    for_types = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node not in for_types:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import) and node not in for_types:
            found |= {alias.name for alias in node.names}
    return {name for name in found if name.split(".")[0] in ("crosschannel", "transfer", "slurm")}


FILES = [p for part in ("crosschannel", "transfer", "slurm") for p in sorted((ROOT / part).rglob("*.py"))]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_one_way(path):
    place = path.relative_to(ROOT).with_suffix("").parts
    for name in imported(path):
        top, _, rest = name.partition(".")
        part = rest.split(".")[0]
        if place[0] == "crosschannel":
            assert top == "crosschannel", f"{path.name} imports {name}"
        if place[0] == "transfer":
            assert top != "slurm", f"{path.name} imports {name}"
        if place[0] != "crosschannel" or top != "crosschannel" or len(place) < 2:
            continue
        ranks = {part: number for number, part in enumerate((*FLOOR, *ORDER, *LINES))}
        own, theirs = place[1], part
        if own in ranks and theirs in ranks and own != theirs:
            both_floor = own in FLOOR and theirs in FLOOR
            assert both_floor or ranks[theirs] < ranks[own], f"{'/'.join(place)} imports {name}"


def test_submodules_do_not_import_the_top_level_package():
    for path in FILES:
        if path.parts[-2] != "crosschannel" and path.relative_to(ROOT).parts[0] == "crosschannel":
            assert "crosschannel" not in imported(path), path


def test_imports_have_no_cycles():
    modules = {".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p for p in FILES}
    graph = {name: imported(path) & modules.keys() - {name} for name, path in modules.items()}
    lazy = {name for name, path in modules.items() if "lazy_names(" in path.read_text()}  # import nothing themselves
    while free := [name for name, needs in graph.items() if not needs - lazy]:
        for name in free:
            graph.pop(name)
        graph = {name: needs - set(free) for name, needs in graph.items()}
    assert not graph, f"import cycles among {sorted(graph)}"


EXAMPLE_TASKS = {"rotation": "Rotation", "jigsaw": "Jigsaw"}


@pytest.mark.parametrize("task", EXAMPLE_TASKS)
def test_a_task_touches_its_own_file_the_table_and_its_keys_alone(task):
    own = {f"crosschannel/pretext/{name}.py" for name in (task, "__init__", "config")}
    words = re.compile(rf"[\"'.]{task}[\"':.]|\b{EXAMPLE_TASKS[task]}(Config|Net)?\b")
    touched = {str(path.relative_to(ROOT)) for path in FILES if words.search(path.read_text())}
    assert touched == own
    assert (ROOT / "configs" / "pretrain" / f"{task}-paper.yaml").is_file()


def test_protocols_know_backbones_only_through_load_backbone_and_wrap():
    """And through sources, their inputs, and the files of weights."""
    allowed = {"crosschannel.hub.sources", "crosschannel.hub.files"}
    allowed |= {f"crosschannel.hub.files.{name}" for name in ("load_state", "write_tensors")}
    names = ("KINDS", "input_files", "known_layers", "parse_source")
    allowed |= {f"crosschannel.hub.sources.{name}" for name in names}
    for path in sorted((ROOT / "transfer").rglob("*.py")):
        assert {name for name in imported(path) if name.startswith("crosschannel.hub")} <= allowed, path
        assert not re.search(r"\b(build_net|Backbone\()", path.read_text()), path


def test_nothing_imports_a_command_line_that_stands_above_it():
    for path in FILES:
        if path.name != "cli.py" and path.parts[-2] != "slurm":
            assert not re.search(r"^\s*(from|import) (crosschannel|transfer|slurm)\.cli\b", path.read_text(), re.M), (
                path
            )


HELP = [
    "crosschannel.cli pretrain", "crosschannel.cli pretrain --task=larsson", "crosschannel.cli evaluate",
    "crosschannel.cli colorize", "crosschannel.cli export", "transfer.cli linear-probe",
    "transfer.cli knn", "transfer.cli classify", "transfer.cli svm", "transfer.cli few-shot", "transfer.cli report",
    "transfer.cli segment", "transfer.cli dense", "transfer.cli predict",
    "transfer.cli detect", "transfer.cli proposals", "slurm.cli submit",
]  # fmt: skip


def outcome(command: str) -> tuple[str, str, bool]:
    """Output of a command line in a process of its own, its errors, and whether it imported torch."""
    module, *words = command.split()
    code = (
        f"import sys; sys.argv = {['x', *words]}\nfrom {module} import main\n"
        "try: main()\nexcept SystemExit: pass\nprint('torch' in sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    *said, has_torch = done.stderr.splitlines()
    return done.stdout, "\n".join(said), has_torch == "True"


@pytest.mark.parametrize("command", HELP)
def test_help_imports_no_torch(command):
    said, problems, has_torch = outcome(f"{command} --help")
    assert said.startswith("usage: ") and not problems and not has_torch


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("crosschannel.cli pretrain --data=x --model.name=resnet", "unknown net 'resnet'"),
        ("slurm.cli status .", "no jobs below ."),
        (
            "slurm.cli submit --profile=local --dry-run -- crosschannel pretrain --config=quickstart --out=x",
            "1 process",
        ),
        (
            "slurm.cli submit --dry-run -- transfer knn --backbone=nowhere.pth --data=builtin:sample --out=x",
            "no weights",
        ),
    ],
)
def test_a_command_answers_without_importing_torch(command, words):
    said, problems, has_torch = outcome(command)
    assert words in said + problems and not has_torch
