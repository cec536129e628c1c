import re
from pathlib import Path

import pytest

from bitwright.sw import results
from bitwright.sw.config import Config
from bitwright.sw.quantizers import METHODS, method
from bitwright.sw.results import CONTENDERS, GROUPS, Point

DIGITS = Config.model_validate(
    {
        "data": {"name": "digits", "images": 256},
        "model": {"name": "mlp", "options": {"hidden": [8]}},
        "train": {"epochs": 1, "threads": 1},
    }
)


@pytest.fixture
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with an empty page, in which the command runs."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "results.md").write_text("before\n<!-- bench: begin -->\nold\n<!-- bench: end -->\nafter\n")
    return tmp_path


def test_every_run_has_a_name_of_its_own_and_bits_that_its_methods_offer() -> None:
    points = [point for group in GROUPS.values() for point in group.points()]
    assert len({point.name for point in points}) == len(points)
    for point in points:
        assert re.fullmatch(r"[a-z]+/[a-z0-9_.-]+", point.name)
        if settings := point.config.quantize:
            assert settings.weight_bits in method(settings.weights).weight_bits
            assert settings.activation_bits in method(settings.activations).activation_bits


def test_every_method_is_compared_where_it_has_so_few_bits() -> None:
    assert {each.weights for each in CONTENDERS} == {
        name for name, known in METHODS.items() if known.weight_bits[0] <= 4
    }


def test_what_is_done_is_kept_and_the_page_shows_it(
    in_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    point = Point("tried/digits", DIGITS)
    group = results.Group("Tried", lambda: [point], lambda: iter([f"{point.accuracy:.2f}"] if point.done else []))
    monkeypatch.setattr(results, "GROUPS", {"tried": group})
    monkeypatch.setattr("sys.argv", ["results", "--minutes", "0"])
    assert results.main() == 0
    assert "0 of 1 runs" in (in_folder / "docs" / "results.md").read_text()
    monkeypatch.setattr("sys.argv", ["results"])
    assert results.main() == 0
    assert "tried/digits:" in capsys.readouterr().out
    text = (in_folder / "docs" / "results.md").read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "1 of 1 runs" in text
    assert f"{point.accuracy:.2f}" in text
    assert results.main() == 0
    assert "tried/digits" not in capsys.readouterr().out  # it is not run again


def test_a_run_that_fails_is_named_and_the_others_go_on(
    in_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = DIGITS.model_copy(update={"data": DIGITS.data.model_copy(update={"images": 5000})})
    points = [Point("tried/wrong", wrong), Point("tried/digits", DIGITS)]
    monkeypatch.setattr(results, "GROUPS", {"tried": results.Group("Tried", lambda: points, lambda: iter([]))})
    monkeypatch.setattr("sys.argv", ["results"])
    assert results.main() == 2
    said = capsys.readouterr()
    assert "tried/wrong: data.images is 5000, expected at most the" in said.err
    assert points[1].done


def test_the_best_network_that_takes_no_more_energy() -> None:
    networks = {"2 bits": (1.0, 50.0), "3 bits": (2.0, 90.0), "3 bits, image 8 bits": (3.0, 80.0)}
    assert results._best_within(networks, 0.5) == "none"
    assert results._best_within(networks, 1.9) == "50.0, 2 bits"
    assert results._best_within(networks, 4.0) == "90.0, 3 bits"
