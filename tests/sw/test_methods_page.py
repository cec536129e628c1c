"""The tables of docs/methods.md, row by row against the code."""

import inspect
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from bitwright.hw.errors import BitwrightError
from bitwright.hw.isa import has_coefficients
from bitwright.sw import bench_methods, models
from bitwright.sw.quantize import Recipe, quantize
from bitwright.sw.quantizers import METHODS
from bitwright.sw.quantizers.basis import BasisActivation
from bitwright.sw.stages import stages

PAGE = (Path(__file__).parents[2] / "docs" / "methods.md").read_text(encoding="utf-8")


def rows(head: str, page: str = PAGE) -> list[list[str]]:
    """Cells of the table whose head begins so."""
    lines = page[page.index(head) :].splitlines()[2:]
    table = lines[: next(number for number, line in enumerate(lines) if not line.startswith("|"))]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table]


def bits_in(cell: str) -> list[int]:
    """``2 to 4`` or ``4, 8``."""
    first, _, last = cell.partition(" to ")
    return list(range(int(first), int(last) + 1)) if last else [int(number) for number in cell.split(", ")]


def planes_in(cell: str, bits: int) -> int:
    """``8``, ``bits`` or ``bits - 1``."""
    name, _, less = cell.partition(" - ")
    return bits - int(less or 0) if name == "bits" else int(cell)


WEIGHTS = rows("| method | options | bits |")
ACTIVATIONS = rows("| method | in place of | bits |")


@pytest.mark.parametrize("row", WEIGHTS, ids=lambda row: " ".join(row[:3]))
def test_weights_are_as_the_page_says(row):
    name, options, bits, encoding, planes, hardware, lost = row
    options = tomllib.loads("options = {" + options.strip("`") + "}")["options"]
    for each in bits_in(bits):
        quantizer = METHODS[name.strip("`")].quantize_weights(each, options)
        obstacle = quantizer.obstacle()
        assert (hardware == "refused") == (obstacle is not None)
        if obstacle is not None:
            assert lost
            assert lost in obstacle
        if encoding == "none":
            with pytest.raises(BitwrightError):
                _ = quantizer.encoding
            continue
        assert quantizer.encoding == encoding
        assert quantizer.planes == planes_in(planes, each)
        if obstacle is None:
            assert hardware == ("rounded" if has_coefficients(quantizer.encoding) else "exact")


@pytest.mark.parametrize("row", ACTIVATIONS, ids=lambda row: " ".join(row[:3]))
def test_activations_are_as_the_page_says(row):
    name, function, bits, planes, hardware, _ = row
    for each in bits_in(bits):
        quantizer = METHODS[name.strip("`")].replace_activation(getattr(nn, function)(), each)
        assert quantizer.planes == planes_in(planes, each)
        assert hardware == ("rounded" if isinstance(quantizer, BasisActivation) else "exact")


def test_every_method_is_on_the_page_with_all_its_bits():
    offered = {(name, bits) for name, method in METHODS.items() for bits in method.weight_bits}
    shown = [(row[0].strip("`"), bits) for row in WEIGHTS if not row[1] for bits in bits_in(row[2])]
    assert sorted(shown) == sorted(offered)
    functions = {
        (name, kind.__name__, bits)
        for name, method in METHODS.items()
        for kind in method.activations
        for bits in method.activation_bits
    }
    shown = [(row[0].strip("`"), row[1], bits) for row in ACTIVATIONS for bits in bits_in(row[2])]
    assert sorted(shown) == sorted(functions)


def test_every_option_of_a_method_is_on_the_page():
    for name, method in METHODS.items():
        for kind in (method.weights, *method.activations.values()):
            for parameter in inspect.signature(kind).parameters.values():
                if parameter.kind is parameter.KEYWORD_ONLY:
                    assert re.search(rf"`{parameter.name}\b", PAGE), f"{name}: {parameter.name}"


def test_the_first_recipe_of_the_page_quantizes():
    (text, *_) = re.findall(r"```toml\n(.*?)```", PAGE, re.S)
    settings: dict[str, Any] = tomllib.loads(text)["quantize"]
    network = quantize(models.build("lenet5", (1, 28, 28), 10), Recipe(**settings))
    assert [getattr(stage.weight_quantizer, "scale", None) for stage in stages(network)] == ["filter", None, None, None]


def test_every_measured_table_of_the_page_is_filled():
    for name in bench_methods.TABLES:
        assert re.search(rf"<!-- {name}: begin -->\n\|.*<!-- {name}: end -->", PAGE, re.S)


def test_a_command_fills_a_table_of_the_page(tmp_path, monkeypatch):
    """The costs of first layers: what is stored is what the page has, and costs are near it."""
    (tmp_path / "docs").mkdir()
    page = tmp_path / "docs" / "methods.md"
    page.write_text("a\n<!-- images: begin -->\nold\n<!-- images: end -->\nz\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["bench_methods", "--only", "images"])
    assert bench_methods.main() == 0
    filled = page.read_text()
    assert filled.startswith("a\n")
    assert filled.endswith("z\n")
    head = "| first layer | image bits |"
    found, shown = rows(head, filled), rows(head)
    assert len(found) == len(shown) > 15
    for ours, theirs in zip(found, shown, strict=True):
        assert ours[:5] == theirs[:5]
        costs = [[float(cell.replace(",", "")) for cell in row[5:]] for row in (ours, theirs)]
        assert costs[0] == pytest.approx(costs[1], rel=0.03)
