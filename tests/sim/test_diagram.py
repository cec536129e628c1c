"""Pictures: well-formed, inside their frame, and of what they show."""

import dataclasses
import xml.etree.ElementTree as ElementTree
from collections import Counter
from typing import Any

import numpy as np
import pytest

import tiny
from bitwright.hw.isa import PRESETS, ArraySpec
from bitwright.sim import diagram
from bitwright.sim.trace import trace

SVG = "{http://www.w3.org/2000/svg}"

WIDE = 0.56
"""Width of a character, at most on average, in sizes of the font."""


def shapes(svg: str) -> tuple[Counter[str], list[str], Any]:
    """Tips of a picture's rectangles, without their numbers, and its texts, all of them inside its frame."""
    root = ElementTree.fromstring(svg)
    _, _, width, height = (float(number) for number in root.attrib["viewBox"].split())
    assert root.findtext(f"{SVG}title")
    tips: Counter[str] = Counter()
    for box in root.iter(f"{SVG}rect"):
        x, y, w, h = (float(box.attrib[name]) for name in ("x", "y", "width", "height"))
        assert min(w, h) > 0
        assert x >= 0
        assert y >= 0
        assert x + w <= width
        assert y + h <= height
        tips[" ".join(word for word in (box.findtext(f"{SVG}title") or "").split() if not word[0].isdigit())] += 1
    texts = list(root.iter(f"{SVG}text"))
    for text in texts:
        length = WIDE * float(text.attrib["font-size"]) * len(text.text or "")
        left = float(text.attrib["x"]) - length * {"start": 0, "middle": 0.5, "end": 1}[text.attrib["text-anchor"]]
        assert left >= 0, text.text
        assert left + length <= width, text.text
    return tips, [text.text or "" for text in texts], root


ARRAYS = [
    *PRESETS.values(),
    ArraySpec(rows=64, columns=64, lanes=256, columns_per_copy=16, coefficient_bits=16, weight_stream=True),
    ArraySpec(rows=4, columns=1, lanes=32, drain_planes=1, weight_stream=True, coefficient_bits=4, codebook_bits=4),
]


@pytest.mark.parametrize("spec", ARRAYS, ids=[*PRESETS, "largest", "smallest"])
def test_an_array_has_as_many_parts_as_its_parameters_say(spec: ArraySpec) -> None:
    tips, texts, _ = shapes(diagram.array_svg(spec))
    assert sum(count for tip, count in tips.items() if tip.startswith("PE of row")) == spec.rows * spec.columns
    assert sum(count for tip, count in tips.items() if "bank" in tip) == spec.derived.copies * spec.derived.banks
    assert tips["Packer of copy"] == spec.derived.copies
    assert tips["Window buffer of column"] == tips["Sum of column"] == spec.columns
    assert tips["Weight memory of row"] == tips["Threshold memory of row"] == spec.rows
    assert tips["Coefficient memory of row"] == (spec.rows if spec.coefficient_bits else 0)
    assert tips["Comparator of row"] == spec.rows * spec.drain_planes
    assert ("weight stream" in texts) == spec.weight_stream
    assert ("decodes codebook indices" in texts) == (spec.codebook_bits > 0)
    assert f"{spec.descriptor_depth:,} words of 32 bits" in texts


def test_a_timeline_shows_every_slice() -> None:
    program, images = tiny.CASES["sparse"]("skip")
    found = trace(program, images)
    _, texts, root = shapes(diagram.trace_svg(found))
    assert len(list(root.iter(f"{SVG}rect"))) == len(found.slices)
    assert {info.name for info in program.layers} <= set(texts)
    first, end = found.slices[0].start, found.slices[0].end
    _, _, root = shapes(diagram.trace_svg(found, first, end))
    inside = [each for each in found.slices if each.start < end and each.end > first]
    assert len(list(root.iter(f"{SVG}rect"))) == len(inside) < len(found.slices)


def test_waves_follow_their_values() -> None:
    rng = np.random.default_rng(2)
    level = [bool(bit) for bit in rng.integers(0, 2, 40)]
    numbers = [str(number) for number in np.sort(rng.integers(0, 5, 40))]
    _, texts, root = shapes(diagram.waves_svg({"level": level, "number": numbers}, "Two signals", first=100))
    assert {"level", "number"} <= set(texts)
    assert len(list(root.iter(f"{SVG}rect"))) == len(set(numbers))
    line = max(root.iter(f"{SVG}polyline"), key=lambda each: len(each.attrib["points"]))
    heights = [float(point.split(",")[1]) for point in line.attrib["points"].split()]
    assert [height == min(heights) for height in heights] == [bit for bit in level for _ in range(2)]


def test_the_probe_as_waves() -> None:
    probe = {
        f"probe__{name}": np.zeros(8, np.int64) for name in ("read", "issue", "empty", "stall", "compare", "write")
    }
    probe["probe__issue"][2:5] = 1
    probe["probe__skipped"] = np.arange(8)
    waves = diagram.probe_waves(probe, 1, 4)
    assert waves == {"issue": [False, True, True], "skipped": ["1", "2", "3"]}


def test_structure_changes_with_the_parameters() -> None:
    spec = PRESETS["demo"]
    assert diagram.array_svg(spec) != diagram.array_svg(dataclasses.replace(spec, columns_per_copy=4))
