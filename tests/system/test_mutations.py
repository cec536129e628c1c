"""The tests are tested: every fault of a table is put into a copy of the hardware and must be caught."""

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from mutations import CAUGHT, MUTATIONS, SURVIVED

ROOT = Path(__file__).parents[2]


def run_tiny_programs(hardware: Path) -> subprocess.CompletedProcess[str]:
    """Compare tiny programs on the hardware package in a folder, in a process of its own."""
    paths = [hardware, ROOT / "sim", ROOT / "tests"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, paths))}
    script = ROOT / "tests" / "mutations.py"
    return subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, timeout=900)


@pytest.mark.slow
def test_the_hardware_itself_is_exact():
    result = run_tiny_programs(ROOT / "hw")
    assert result.returncode == SURVIVED, result.stdout + result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.breaks)
def test_every_fault_is_caught(mutation, tmp_path):
    mutation.apply(tmp_path)
    result = run_tiny_programs(tmp_path)
    assert result.returncode == CAUGHT, result.stdout + result.stderr


def test_every_fault_matches_the_source(tmp_path):
    for number, mutation in enumerate(MUTATIONS):
        mutation.apply(tmp_path / str(number))


def test_faults_are_many_and_different():
    assert len(MUTATIONS) >= 40
    assert max(Counter(mutation.breaks for mutation in MUTATIONS).values()) == 1
    assert max(Counter((mutation.file, mutation.old, mutation.new) for mutation in MUTATIONS).values()) == 1
