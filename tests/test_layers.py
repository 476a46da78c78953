"""Imports run one way, heavy packages stay with their owners, and start-up is quick."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "kinray"

# Each part may import itself and those of earlier rows. Parts of one row are siblings and do not know each other.
LAYERS = (
    ("errors",),
    ("config", "files", "signals", "temporary", "versions"),
    ("core",),
    ("checkpoints", "search", "records"),
    ("engine",),
    ("evaluation",),
    ("cluster",),
    ("report",),
    ("demo",),
    ("evolve", "kinship", "merge", "methods"),
)
ALLOWED_SIBLINGS = {("records", "kinray.search.population"), ("records", "kinray.search.space")}
OWNERS = {
    "ray": {"cluster"},
    "optuna": {"search"},
    "lm_eval": {"evaluation", "demo"},
    "transformers": {"evaluation", "demo"},
    "pyarrow": {"records"},
}
RANK = {part: rank for rank, row in enumerate(LAYERS) for part in row}

FILES = sorted(ROOT.rglob("*.py"))


def part_of(file: Path) -> str:
    """Name the part that a file belongs to; ``kinray`` itself is an entry point."""
    return file.relative_to(ROOT).parts[0].removesuffix(".py")


def imports_of(tree: ast.AST, package: str) -> Iterator[str]:
    """List the modules that a file imports at any level, also inside functions and under TYPE_CHECKING."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{package}: imports are written in full"
            yield node.module or ""
            if node.module == "kinray":
                yield from (f"kinray.{alias.name}" for alias in node.names)


def named_imports() -> list[tuple[Path, str, str]]:
    """List (file, its part, imported module) over all of kinray."""
    return [(file, part_of(file), module) for file in FILES for module in imports_of(ast.parse(file.read_text()), str(file))]


def test_every_part_has_its_layer() -> None:
    parts = {part_of(file) for file in FILES} - {"__init__", "__main__"}

    assert parts <= set(RANK), f"name the layer of {sorted(parts - set(RANK))}"


def test_imports_run_one_way() -> None:
    wrong = []
    for file, part, module in named_imports():
        target = module.split(".")[1] if module.startswith("kinray.") else None
        if target is None or part in ("__init__", "__main__") or target == part or target == "__version__":
            continue
        below = RANK[target] < RANK[part]
        if not below and (part, module) not in ALLOWED_SIBLINGS:
            wrong.append(f"{file.relative_to(ROOT)} imports {module}")

    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("package", OWNERS)
def test_heavy_package_is_imported_by_its_owner_only(package: str) -> None:
    wrong = [
        f"{file.relative_to(ROOT)} imports {module}"
        for file, part, module in named_imports()
        if module.split(".")[0] == package and part not in OWNERS[package]
    ]

    assert not wrong, "\n".join(wrong)


def test_walker_sees_imports_inside_functions() -> None:
    source = "if TYPE_CHECKING:\n    import a\ndef f():\n    from b.c import d\n    from kinray import core\n"

    assert list(imports_of(ast.parse(source), "source")) == ["a", "b.c", "kinray", "kinray.core"]


def run_python(program: str) -> str:
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout


def test_importing_kinray_is_light() -> None:
    modules = set(run_python("import sys, kinray; print(*sys.modules)").split())

    assert not {"torch", "ray", "transformers", "lm_eval", "numpy"} & modules


@pytest.mark.parametrize(
    "modules", ["kinray.engine.materialise, kinray.engine.gram, kinray.checkpoints.writer", "kinray.config"]
)
def test_work_of_one_machine_needs_neither_ray_nor_transformers(modules: str) -> None:
    loaded = set(run_python(f"import sys, {modules}; print(*sys.modules)").split())

    assert not {"ray", "transformers", "lm_eval", "optuna", "pyarrow"} & loaded


def test_reading_a_configuration_needs_no_torch() -> None:
    loaded = set(run_python("import sys, kinray.config; print(*sys.modules)").split())

    assert not {"torch", "numpy"} & loaded
