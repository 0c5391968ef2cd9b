"""Import rules: dependencies point one way, and ``--help`` does not import torch."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# Bottom to top: a package may import those before it. Those of BASE may also import each other.
BASE = ("version", "lazy", "errors", "files", "stored", "config", "command")
BASE += ("console", "csv_files", "factories", "runs")
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
COMMAND_LINE = ("program", "cli")


def imported(path: Path) -> set[str]:
    """Return the project modules and names that a file imports, inside functions too, except under TYPE_CHECKING."""
    tree = ast.parse(path.read_text())
    type_checking = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node not in type_checking:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import) and node not in type_checking:
            names |= {alias.name for alias in node.names}
    return {name for name in names if name.split(".")[0] in ("crosschannel", "transfer", "slurm")}


FILES = [p for package in ("crosschannel", "transfer", "slurm") for p in sorted((ROOT / package).rglob("*.py"))]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_one_way(path):
    module = path.relative_to(ROOT).with_suffix("").parts
    for name in imported(path):
        top, _, rest = name.partition(".")
        part = rest.split(".")[0]
        if module[0] == "crosschannel":
            assert top == "crosschannel", f"{path.name} imports {name}"
        if module[0] == "transfer":
            assert top != "slurm", f"{path.name} imports {name}"
        if module[0] != "crosschannel" or top != "crosschannel" or len(module) < 2:
            continue
        levels = {part: level for level, part in enumerate((*BASE, *ORDER, *COMMAND_LINE))}
        importer, imports = module[1], part
        if importer in levels and imports in levels and importer != imports:
            both_in_base = importer in BASE and imports in BASE
            assert both_in_base or levels[imports] < levels[importer], f"{'/'.join(module)} imports {name}"


def test_submodules_do_not_import_the_top_level_package():
    for path in FILES:
        if path.parts[-2] != "crosschannel" and path.relative_to(ROOT).parts[0] == "crosschannel":
            assert "crosschannel" not in imported(path), path


def test_imports_have_no_cycles():
    modules = {".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p for p in FILES}
    graph = {name: imported(path) & modules.keys() - {name} for name, path in modules.items()}
    # Modules with lazy_names() import nothing when they are loaded.
    lazy = {name for name, path in modules.items() if "lazy_names(" in path.read_text()}
    while leaves := [name for name, needs in graph.items() if not needs - lazy]:
        for name in leaves:
            graph.pop(name)
        graph = {name: needs - set(leaves) for name, needs in graph.items()}
    assert not graph, f"import cycles among {sorted(graph)}"


EXAMPLE_TASKS = {"rotation": "Rotation", "jigsaw": "Jigsaw"}


@pytest.mark.parametrize("task", EXAMPLE_TASKS)
def test_only_its_file_the_task_table_and_the_config_mention_a_task(task):
    allowed = {f"crosschannel/pretext/{name}.py" for name in (task, "__init__", "config")}
    pattern = re.compile(rf"[\"'.]{task}[\"':.]|\b{EXAMPLE_TASKS[task]}(Config|Net)?\b")
    mentions = {str(path.relative_to(ROOT)) for path in FILES if pattern.search(path.read_text())}
    assert mentions == allowed
    assert (ROOT / "configs" / "pretrain" / f"{task}-paper.yaml").is_file()


def test_protocols_get_backbones_only_from_load_backbone_and_wrap():
    """Protocols may also parse sources, and read and write weight files."""
    allowed = {"crosschannel.hub.sources", "crosschannel.hub.files"}
    allowed |= {f"crosschannel.hub.files.{name}" for name in ("load_state", "write_tensors")}
    names = ("KINDS", "input_files", "known_layers", "parse_source")
    allowed |= {f"crosschannel.hub.sources.{name}" for name in names}
    for path in sorted((ROOT / "transfer").rglob("*.py")):
        assert {name for name in imported(path) if name.startswith("crosschannel.hub")} <= allowed, path
        assert not re.search(r"\b(build_net|Backbone\()", path.read_text()), path


def test_only_command_lines_import_command_lines():
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
    """Run a command line in a new process; return its output, its errors and whether it imported torch."""
    module, *arguments = command.split()
    code = (
        f"import sys; sys.argv = {['x', *arguments]}\nfrom {module} import main\n"
        "try: main()\nexcept SystemExit: pass\nprint('torch' in sys.modules, file=sys.stderr)"
    )
    completed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    *errors, has_torch = completed.stderr.splitlines()
    return completed.stdout, "\n".join(errors), has_torch == "True"


@pytest.mark.parametrize("command", HELP)
def test_help_imports_no_torch(command):
    output, errors, has_torch = outcome(f"{command} --help")
    assert output.startswith("usage: ") and not errors and not has_torch


@pytest.mark.parametrize(
    ("command", "text"),
    [
        ("crosschannel.cli pretrain --data=x --model.name=resnet", "unknown net 'resnet'"),
        ("slurm.cli status .", "no jobs below ."),
        (
            "slurm.cli submit --profile=local --dry-run -- crosschannel pretrain --config=quickstart --out=x",
            "ranks: 1",
        ),
        (
            "slurm.cli submit --dry-run -- transfer knn --backbone=nowhere.pth --data=builtin:sample --out=x",
            "no weights",
        ),
    ],
)
def test_a_command_answers_without_importing_torch(command, text):
    output, errors, has_torch = outcome(command)
    assert text in output + errors and not has_torch
