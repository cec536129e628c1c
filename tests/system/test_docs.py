"""What the README shows is what works."""

import re
import subprocess
import sys
import tomllib
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

from bitwright.sw.config import parse_config

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def _blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.S)


def test_python_of_the_readme_runs(capsys):
    (code,) = _blocks("python")
    exec(compile(code, "README.md", "exec"), {})
    assert "µJ per image" in capsys.readouterr().out


def test_configuration_of_the_readme_is_complete():
    (text,) = _blocks("toml")
    assert parse_config(text).data.name == "digits"


def test_commands_of_the_readme_exist():
    from bitwright.cli import app

    known = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    used = {line.split()[2] for block in _blocks("console") for line in block.splitlines() if "$ bitwright " in line}
    assert used <= known
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"(?:`|\$ )make ([a-z-]+)", README):
        assert re.search(rf"^{target}:", makefile, re.M), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_modules_that_a_page_runs_exist_with_their_groups(page):
    for name, options in re.findall(r"python -m (bitwright[\w.]*)((?: --only \w+)*)", page.read_text(encoding="utf-8")):
        assert find_spec(name) is not None, name
        if options:
            module = import_module(name)
            known = getattr(module, "GROUPS", None) or module.TABLES
            assert set(options.split()) - {"--only"} <= set(known), name


def test_local_links_of_the_readme_exist():
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target


def test_constraints_pin_every_dependency_of_the_demo():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = project["dependencies"] + [
        line
        for extra in ("verify", "report", "docs", "download", "board")
        for line in project["optional-dependencies"][extra]
    ]
    pinned = {
        line.split("==")[0].lower().replace("_", "-")
        for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
        if "==" in line
    }
    for requirement in wanted:
        assert re.split(r"[<>=]", requirement)[0].lower() in pinned


@pytest.mark.slow
def test_documentation_builds_without_warnings(tmp_path):
    pytest.importorskip("sphinx", reason="the extra `docs` is not installed")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "-b", "html", str(ROOT / "docs"), str(tmp_path)]
    subprocess.run(command, check=True)
