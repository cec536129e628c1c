import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from bitwright.hw.errors import BitwrightError
from bitwright.sw import bench, models
from bitwright.sw.bench import Measurement
from bitwright.sw.quantizers import METHODS

torch.set_num_threads(1)


@pytest.fixture
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with an empty page, in which the command runs."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "performance.md").write_text("a\n<!-- bench: begin -->\nold\n<!-- bench: end -->\nz\n")
    return tmp_path


def group(*values: float):
    return lambda: iter([Measurement(f"number {value}", value, "s", "<= 2") for value in values])


def test_groups_that_were_measured_before_stay_on_the_page(
    in_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench, "GROUPS", {"first": group(1, 3), "second": group(5)})
    monkeypatch.setattr(sys, "argv", ["bench", "--only", "second"])
    assert bench.main() == 0
    monkeypatch.setattr(bench, "GROUPS", {"first": group(1, 3), "second": group(7)})
    monkeypatch.setattr(sys, "argv", ["bench", "--only", "first"])
    assert bench.main() == 0
    assert "number 3: 3 s <= 2  MISSED" in capsys.readouterr().out
    lines = (in_folder / "docs" / "performance.md").read_text().splitlines()
    assert (lines[0], lines[-1]) == ("a", "z")
    assert [line.split(" | ")[0] for line in lines if "number" in line] == ["| number 1", "| number 3", "| number 5"]
    stored = json.loads((in_folder / "build" / "bench.json").read_text())
    assert [entry["met"] for entry in stored["first"]] == [True, False]


def test_a_group_that_fails_keeps_what_was_measured_before(
    in_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def failing():
        yield Measurement("number 9", 9, "s")
        raise BitwrightError("Found nothing.")

    monkeypatch.setattr(bench, "GROUPS", {"first": group(1), "second": group(5)})
    monkeypatch.setattr(sys, "argv", ["bench"])
    assert bench.main() == 0
    monkeypatch.setattr(bench, "GROUPS", {"first": failing, "second": group(6)})
    assert bench.main() == 2
    assert "bench: first: Found nothing." in capsys.readouterr().err
    text = (in_folder / "docs" / "performance.md").read_text()
    assert "number 1" in text
    assert "number 6" in text
    assert "number 9" not in text


def test_a_training_step_of_every_method_is_compared_with_float(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench, "find_spec", lambda name: None)
    found = list(bench.training("digits_cnn", (1, 8, 8), images=4, rounds=1))
    assert "Brevitas left out: not installed" in capsys.readouterr().err
    name = "training step, digits_cnn, 4 images, 1 thread"
    assert (found[0].name, found[0].unit) == (f"{name}, float", "ms of CPU")
    compared = {each.name.removeprefix(f"{name}, ").split()[0]: each for each in found[1:]}
    assert list(compared) == list(METHODS)
    assert all(each.value > 0 and each.baseline == "float" for each in compared.values())
    assert [key for key, each in compared.items() if each.reach] == ["lqnets"]


def test_brevitas_is_compared_at_equal_bits() -> None:
    pytest.importorskip("brevitas", reason="the extra `compare` is not installed")
    found = list(bench.training("digits_cnn", (1, 8, 8), images=4, rounds=1))
    against = [each.name.rsplit(", ", 1)[1] for each in found if each.baseline == bench.BREVITAS]
    assert against == [bench.LQ_NETS, "dorefa W2/A2"]
    model = models.build("lenet5", (1, 28, 28), 10)
    network = bench.brevitas_network(model)
    values: dict[str, Any] = {}
    for name, module in network.named_modules():
        if name.startswith("act") and "." not in name:
            module.register_forward_hook(lambda module, inputs, output, name=name: values.update({name: output}))
    network.train()(torch.randint(0, 256, (4, 1, 28, 28)).float())
    assert len(values) == sum(isinstance(module, nn.ReLU) for module in model) == 3
    weights = [module.quant_weight().value for module in network if hasattr(module, "quant_weight")]  # pyright: ignore
    shapes = [tuple(weight.shape) for weight in weights]
    assert shapes == [tuple(each.weight.shape) for each in model if isinstance(each, nn.Conv2d | nn.Linear)]
    for values_taken in [*values.values(), *weights]:
        assert 2 <= len(values_taken.unique()) <= 4
