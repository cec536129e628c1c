"""Dependencies point one way, sw ► sim ► hw, and what is installed is what is in the tree."""

import ast
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PARTS = {part: ROOT / part / "bitwright" / part for part in ("hw", "sim", "sw")}
MODULES = [(part, path) for part, folder in PARTS.items() for path in sorted(folder.rglob("*.py"))]

FORBIDDEN = {
    "hw": ("bitwright.sim", "bitwright.sw", "torch"),
    "sim": ("bitwright.sw", "torch"),
    "sw": (),
}


def _imported(path):
    """Names of all modules that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize(("part", "path"), MODULES, ids=[str(path.relative_to(ROOT)) for _, path in MODULES])
def test_imports_point_one_way(part, path):
    for name in _imported(path):
        for forbidden in FORBIDDEN[part]:
            assert not f"{name}.".startswith(f"{forbidden}."), f"{path.name} imports {name}"


def test_the_contract_needs_no_generator():
    parts = list((PARTS["hw"] / "isa").glob("*.py"))
    assert parts
    assert not any(name.split(".")[0] == "amaranth" for path in parts for name in _imported(path))


@pytest.mark.parametrize("part", ["hw", "sim"])
def test_nothing_below_sw_loads_torch(part):
    """Import every module of a part in one fresh interpreter."""
    names = [
        f"bitwright.{part}." + ".".join(path.relative_to(PARTS[part]).with_suffix("").parts)
        for path in sorted(PARTS[part].rglob("*.py"))
        # Modules whose name starts with an underscore run inside a simulator.
        if not path.name.startswith("_")
    ]
    code = (
        f"import importlib, sys\nfor name in {names!r}: importlib.import_module(name)\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_command_line_starts_without_torch():
    code = (
        "import sys, bitwright.cli\nassert not {'torch', 'sklearn', 'amaranth'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_one_namespace_without_a_root_package():
    import bitwright

    assert getattr(bitwright, "__file__", None) is None
    assert not list(ROOT.glob("*/bitwright/__init__.py"))


@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_the_package_holds_all_parts_and_their_data(tmp_path, kind):
    builder = pytest.importorskip("hatchling.builders.wheel", reason="hatchling is a build dependency")
    from hatchling.builders.sdist import SdistBuilder

    made = {"wheel": builder.WheelBuilder, "sdist": SdistBuilder}[kind](str(ROOT)).build(directory=str(tmp_path))
    archive = Path(next(iter(made)))
    if kind == "wheel":
        names = set(zipfile.ZipFile(archive).namelist())
        prefixes = dict.fromkeys(PARTS, "")
    else:
        import tarfile

        with tarfile.open(archive) as file:
            names = {name.split("/", 1)[1] for name in file.getnames() if "/" in name}
        prefixes = {part: f"{part}/" for part in PARTS}
    for part, folder in PARTS.items():
        for path in folder.rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                assert f"{prefixes[part]}bitwright/{part}/{path.relative_to(folder).as_posix()}" in names
    assert f"{prefixes['sw']}bitwright/cli.py" in names
