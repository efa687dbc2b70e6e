"""Imports point downward: nothing imports what, directly or not, imports it. Neither packages nor files."""

import ast
import functools
import graphlib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = sorted(path.parent.name for path in ROOT.glob("*/__init__.py") if path.parent.name != "tests")


@functools.cache
def tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text())


def imports() -> dict[str, set[str]]:
    """Of each module the project's modules that it imports, those inside functions included."""
    files = [file for package in PACKAGES for file in (ROOT / package).rglob("*.py")]
    names = {".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file for file in files}
    found: dict[str, set[str]] = {name: set() for name in names}
    for name, file in names.items():
        for node in ast.walk(tree(file)):
            if isinstance(node, ast.Import):
                found[name] |= {alias.name for alias in node.names if alias.name in names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                assert not node.level, f"{file}: a relative import"
                for alias in node.names:
                    module = f"{node.module}.{alias.name}"
                    found[name] |= {module if module in names else node.module} & names.keys()
    return found


IMPORTS = imports()


def test_files_import_in_no_circle():
    assert len(IMPORTS) > 150
    graphlib.TopologicalSorter(IMPORTS).prepare()  # CycleError names the circle


def test_packages_import_in_no_circle():
    between = {package: set() for package in PACKAGES}
    for name, modules in IMPORTS.items():
        if name == "published.__main__":  # a command that takes a whole configuration: it stands above its package
            continue
        own = name.split(".")[0]
        between[own] |= {module.split(".")[0] for module in modules} - {own}
    graphlib.TopologicalSorter(between).prepare()
    assert between["core"] == set()
    assert "model" not in between["extractors"] and "extractors" not in between["model"]  # the store is what they share


def test_slow_packages_are_imported_where_they_are_used():
    """By functions alone: whoever trains the small encoder, extracts with our own networks or makes a report pays nothing for them."""
    for package in PACKAGES:
        for file in (ROOT / package).rglob("*.py"):
            first = [node for node in tree(file).body if isinstance(node, ast.Import | ast.ImportFrom)]
            names = {
                name.split(".")[0]
                for node in first
                for name in (getattr(node, "module", None) or "", *(a.name for a in node.names))
            }
            assert not names & {"transformers", "huggingface_hub", "detectron2"}, file
