"""Who may import whom, and who may read the environment (docs/architecture.md)."""

import ast
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
LEAVES = ("connectors", "engine", "streaming")
FILES = [path for name in (*LEAVES, "pipeline") for path in sorted((ROOT / name).rglob("*.py"))]


def imported(path: Path) -> set[str]:
    """Top-level packages that a file imports anywhere, also inside functions."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.split(".")[0])
    return names


def test_a_leaf_imports_no_other_package_of_ours() -> None:
    ours = {*LEAVES, "pipeline", "migrations", "tests", "bench"}
    strays = {
        str(path.relative_to(ROOT)): names
        for leaf in LEAVES
        for path in sorted((ROOT / leaf).rglob("*.py"))
        if (names := imported(path) & (ours - {leaf}))
    }

    assert len(FILES) > 50
    assert strays == {}


def test_torch_is_imported_only_by_the_gpu_voice() -> None:
    heavy = {"torch", "transformers", "safetensors"}

    assert [
        path for path in FILES if "indextts2" not in path.parts and imported(path) & heavy
    ] == []


def test_only_the_settings_read_the_environment() -> None:
    def reads(path: Path) -> bool:
        text = path.read_text("utf-8")
        return "os.getenv" in text or 'environ["NOTECAST_' in text or "environ.get(" in text

    assert [path.name for path in FILES if reads(path)] == ["settings.py"]


def test_the_base_install_pulls_no_torch() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]

    assert [one for one in project["dependencies"] if one.startswith(("torch", "nvidia"))] == []
