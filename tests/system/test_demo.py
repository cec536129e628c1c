"""The demonstration, as `make demo` runs it."""

import json

import pytest

from bitwright.sw.bench import zero_skip
from bitwright.sw.demo import main


@pytest.mark.slow
def test_demo_ends_without_a_difference(tmp_path):
    assert main([str(tmp_path / "demo")]) == 0
    summary = json.loads((tmp_path / "demo" / "summary.json").read_text())
    assert summary["images"] >= 100
    for key in ("value_mismatches", "cycle_mismatches", "other_mismatches", "activation_mismatches"):
        assert summary[key] == 0
    assert summary["accuracy_hardware"] > 0.95
    assert summary["energy_uj_per_image"]["searched"] < summary["energy_uj_per_image"]["8bit"]
    assert summary["cycles_per_image"] < summary["cycles_per_image_8bit"]
    assert (tmp_path / "demo" / "report.html").stat().st_size > 100_000
    skippable, cycles = (each.value for each in zero_skip(tmp_path / "demo" / "digits"))
    assert 1 - skippable / 100 <= cycles < 1.1


def test_a_folder_that_cannot_be_written(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main([str(tmp_path / "file" / "demo")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
