import json
import shutil
from fractions import Fraction
from functools import partial
from typing import Any

import pytest
import torch

from bitwright.hw.errors import BitwrightError
from bitwright.sw import models
from bitwright.sw import search as search_module
from bitwright.sw.config import SearchConfig, dump_config, parse_config
from bitwright.sw.quantize import Recipe, bit_assignment, calibrate, quantize
from bitwright.sw.quantizers import METHODS
from bitwright.sw.residual import Residual, Shortcut
from bitwright.sw.runs import Run, read_lines
from bitwright.sw.search import assemble, fewest_bits, load_quantized, search, segments
from bitwright.sw.stages import stages
from bitwright.sw.training import Images, Interrupted, evaluate, load_model, train

TEXT = """
[data]
name = "digits"
validation = 0.2
[model]
name = "digits_cnn"
options = { channels = [4, 6] }
[train]
epochs = 4
learning_rate = 1e-2
threads = 1
[search]
relative_accuracy = 0.98
calibration_images = 200
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("search") / "run"
    train(parse_config(TEXT), folder, progress=False)
    return folder


@pytest.fixture
def run(trained, tmp_path):
    """A copy of the trained run, and a way to change its ``[search]`` section."""

    def copy(name="run", **changes):
        folder = tmp_path / name
        shutil.copytree(trained, folder)
        config = Run(folder).config
        settings = SearchConfig(**(config.search.model_dump() | changes))
        (folder / "config.toml").write_text(dump_config(config.model_copy(update={"search": settings})))
        return folder

    return copy


def whole_network_search(folder):
    """The published algorithm as it reads: every candidate is the whole network on all validation images."""
    settings, images = Run(folder).config.search, Images.load(Run(folder).config.data)
    count = len(images.validation_labels)

    def correct(network):
        return round(evaluate(network, images.validation_pixels, images.validation_labels) * count)

    network = load_model(folder)
    needed = Fraction(str(settings.relative_accuracy)) * correct(network)
    bits: dict[str, dict[str, int | None]] = {
        row["name"]: {"input": None, "weight": None} for row in bit_assignment(network)
    }
    evaluations = 0

    def passes(layer, which, candidate):
        nonlocal evaluations
        evaluations += len(bits)
        quantized = assemble(network, bits | {layer: bits[layer] | {which: candidate}}, settings)
        calibrate(quantized, images.train_pixels[: settings.calibration_images])
        return correct(quantized) >= needed

    for layer in bits:
        for which in ("input", "weight"):
            lowest = 1 if (layer, which) == ("conv1", "input") else 2
            bits[layer][which] = fewest_bits(partial(passes, layer, which), lowest, 8, settings.order)
    return bits, evaluations


def test_search_agrees_with_evaluating_the_whole_network(run):
    bits, evaluations = whole_network_search(run("naive"))
    result = search(run("cached"), progress=False)
    assert result.bits == bits
    assert result.whole_network_layer_evaluations == evaluations
    assert result.layer_evaluations < 0.75 * evaluations


def test_search_upwards_agrees_and_takes_a_third_of_the_evaluations(run):
    bits, evaluations = whole_network_search(run("naive", order="up"))
    result = search(run("cached", order="up"), progress=False)
    assert result.bits == bits
    assert result.target_met
    assert result.layer_evaluations < 0.75 * evaluations
    assert result.layer_evaluations < 0.4 * result.whole_network_layer_evaluations


def test_result_trace_and_network_agree(run):
    folder = run()
    result = search(folder, progress=False)
    images = Images.load(Run(folder).config.data)
    network = load_quantized(folder)
    assert evaluate(network, images.test_pixels, images.test_labels) == result.test_accuracy
    assert {
        row["name"]: {"input": row["input_bits"], "weight": row["weight_bits"]} for row in bit_assignment(network)
    } == (result.bits)
    assert result.target_met
    assert result.target <= result.validation_accuracy
    assert json.loads((folder / "search.json").read_text())["bits"] == result.bits

    trace = read_lines(folder / "search.jsonl")
    assert len(trace) == result.candidates
    for entry in trace:
        assert entry["assignment"][entry["layer"]][entry["which"]] == entry["bits"]
        assert entry["accepted"] == (entry["accuracy"] >= result.target and entry["images"] == 287)
    accepted = [entry for entry in trace if entry["accepted"]]
    assert accepted[-1]["assignment"] == result.bits
    assert accepted[-1]["accuracy"] == result.validation_accuracy

    bits = [(entry["bits"], entry["image_bits"]) for entry in result.uniform]
    assert bits == [(8, 8), *((bits, image) for bits in (6, 5, 4, 3, 2) for image in (8, bits))]
    assert all(entry["assignment"]["conv1"]["input"] == entry["image_bits"] for entry in result.uniform)
    eight = load_quantized(folder, result.uniform[0]["assignment"])
    assert evaluate(eight, images.test_pixels, images.test_labels) == result.uniform[0]["test_accuracy"]
    assert result.uniform[0]["test_accuracy"] == pytest.approx(result.float_test_accuracy, abs=0.02)


@pytest.mark.parametrize("epochs", [0, 1])
@pytest.mark.parametrize("stop", [3, 20])
def test_a_stopped_search_replays_its_trace_and_goes_on(run, monkeypatch, epochs, stop):
    changes = {"fine_tune_epochs": epochs, "fine_tune_learning_rate": 3e-3, "min_bits": 2}
    expected = search(run("whole", **changes), progress=False)
    folder = run("stopped", **changes)
    measure, measured = search_module._Search._measure, []

    def stopping(self, network, index):
        if len(measured) == stop:
            raise KeyboardInterrupt
        measured.append(index)
        return measure(self, network, index)

    monkeypatch.setattr(search_module._Search, "_measure", stopping)
    with pytest.raises(Interrupted, match="run the same command to go on"):
        search(folder, progress=False)
    assert not (folder / "search.json").exists()
    judged = len(read_lines(folder / "search.jsonl"))
    with (folder / "search.jsonl").open("a") as file:
        file.write('{"layer": "conv')  # as a kill in the middle of a line leaves it

    monkeypatch.setattr(search_module._Search, "_measure", measure)
    assert search(folder, progress=False) == expected
    trace = read_lines(folder / "search.jsonl")
    assert 0 < judged < len(trace) == expected.candidates
    assert trace == read_lines(folder.parent / "whole" / "search.jsonl")
    first, second = (path.joinpath("quantized.safetensors").read_bytes() for path in (folder, folder.parent / "whole"))
    assert first == second


def test_fine_tuning_recovers_candidates_and_keeps_frozen_layers(run):
    folder = run(fine_tune_epochs=2, fine_tune_learning_rate=3e-3, min_bits=2)
    result = search(folder, progress=False)
    trace = read_lines(folder / "search.jsonl")
    recovered = [entry for entry in trace if entry["accepted"] and entry["untuned_accuracy"] is not None]
    assert recovered
    assert all(entry["untuned_accuracy"] < result.target <= entry["accuracy"] for entry in recovered)
    assert result.validation_accuracy == [entry for entry in trace if entry["accepted"]][-1]["accuracy"]
    assert [path.stem for path in (folder / "checkpoints").glob("search-*")] == [recovered[-1]["weights"]]
    images = Images.load(Run(folder).config.data)
    assert evaluate(load_quantized(folder), images.test_pixels, images.test_labels) == result.test_accuracy


def test_fine_tuning_scales_updates_as_the_method_does(run):
    """The first step of Adam has the size of the learning rate, times the factor of the method."""
    rate = 1e-4
    folder = run(weights="binaryconnect", fine_tune_epochs=1, fine_tune_learning_rate=rate)
    config = Run(folder).config
    whole = config.train.model_copy(update={"batch_size": 2000})  # so that there is one step
    (folder / "config.toml").write_text(dump_config(config.model_copy(update={"train": whole})))
    state = search_module._Search(Run(folder), Images.load(config.data))
    before = dict(state.network.named_parameters())
    tuned = dict(state._tuned(0, state.bits | {"conv1": {"input": None, "weight": 1}}).named_parameters())
    moved = {name: float((tuned[name] - before[name]).detach().abs().max()) / rate for name in before}
    weight = before["conv1.weight"].detach()
    quantizer = METHODS["binaryconnect"].quantize_weights(1)
    quantizer.fit(weight)
    assert quantizer.rate_scale(weight) > 2
    assert moved["conv1.weight"] == pytest.approx(quantizer.rate_scale(weight), rel=0.01)
    assert moved["conv2.weight"] == moved["bn1.bias"] == pytest.approx(1, rel=0.01)


def test_no_layer_gets_more_bits_than_the_array_takes(run):
    folder = run(relative_accuracy=1.0, uniform_bits=[])
    config = Run(folder).config
    array = {"preset": "tiny", "weight_planes_max": 3, "activation_planes_max": 2}
    (folder / "config.toml").write_text(dump_config(config.model_copy(update={"array": array})))
    tried = {}
    search(folder, progress=False)
    for entry in read_lines(folder / "search.jsonl"):
        tried.setdefault((entry["layer"], entry["which"]), []).append(entry["bits"])
    assert max(tried["conv1", "input"]) == 8  # an image may be split into digits
    assert {max(bits) for (_, which), bits in tried.items() if which == "weight"} == {3}
    assert {max(bits) for (layer, which), bits in tried.items() if which == "input" and layer != "conv1"} == {2}


def test_a_target_out_of_reach_keeps_the_most_bits_and_says_so(run):
    result = search(run(relative_accuracy=1.0, max_bits=2, min_bits=2, uniform_bits=[]), progress=False)
    assert not result.target_met
    assert result.bits["conv2"] == {"input": 2, "weight": 2}
    assert result.uniform == []


def test_another_search_does_not_continue_a_trace(run):
    folder = run()
    search(folder, progress=False)
    text = (folder / "config.toml").read_text()
    (folder / "config.toml").write_text(text.replace("relative_accuracy = 0.98", "relative_accuracy = 0.9"))
    with pytest.raises(BitwrightError, match="is the trace of another search"):
        search(folder, progress=False)


def test_searching_needs_a_trained_float_run(run, tmp_path):
    with pytest.raises(BitwrightError, match="not a run directory"):
        search(tmp_path / "nothing")
    Run.create(tmp_path / "untrained", parse_config(TEXT))
    with pytest.raises(BitwrightError, match="has no finished training"):
        search(tmp_path / "untrained")
    folder = run(max_bits=1)
    with pytest.raises(BitwrightError, match="allows 1 to 1 bits, but the method of the weight bits offers 2 to 8"):
        search(folder, progress=False)
    text = TEXT.replace("epochs = 4", "epochs = 1")
    quantized = text + '[quantize]\nweights = "dorefa"\nweight_bits = 2\nactivations = "dorefa"\nactivation_bits = 2\n'
    train(parse_config(quantized), tmp_path / "qat", progress=False)
    with pytest.raises(BitwrightError, match="was trained with quantizers; search a float run"):
        search(tmp_path / "qat")


def test_segments_make_up_the_network(trained):
    network = quantize(load_model(trained), Recipe(weight_bits=4, activation_bits=4)).eval()
    pixels = torch.randint(0, 256, (5, 1, 8, 8), dtype=torch.uint8)
    parts = segments(network)
    assert len(parts) == 3
    assert torch.equal(torch.nn.Sequential(*parts)(pixels), network(pixels))
    nested = torch.nn.Sequential(network[:4], network[4:])
    assert [len(part.steps) for part in segments(nested)] == [len(part.steps) for part in parts]


def branching():
    """Residual blocks within each other, and average pooling as a layer and within one."""
    torch.manual_seed(1)
    nn = torch.nn
    inner = Residual(nn.Conv2d(4, 4, 3, padding=1), Shortcut(), nn.BatchNorm2d(4), nn.ReLU())
    outer = Residual(
        nn.Conv2d(4, 4, 1), nn.ReLU(), inner, nn.Conv2d(4, 6, 3, 2, 1), Shortcut(2), nn.BatchNorm2d(6), nn.ReLU()
    )
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), outer, nn.AvgPool2d(2, 1), nn.ReLU(),
        nn.AvgPool2d(2), nn.Flatten(), nn.Linear(6, 10),
    )  # fmt: skip


def test_segments_of_residual_blocks_carry_what_their_shortcuts_add():
    network = quantize(branching(), Recipe(weight_bits=4, activation_bits=4)).eval()
    pixels = torch.randint(0, 256, (5, 1, 8, 8), dtype=torch.uint8)
    calibrate(network, pixels)
    parts = segments(network)
    values: Any = pixels
    kept = []
    for part in parts:
        values = part(values)
        kept.append(len(values) if isinstance(values, tuple) else 1)
    assert isinstance(values, torch.Tensor)
    assert torch.equal(values, network(pixels))
    assert kept == [1, 2, 2, 1, 1, 1]
    # No segment owns the parameters of another: training the last ones leaves the first ones alone.
    owned = [{id(parameter) for parameter in part.parameters()} for part in parts]
    assert sum(map(len, owned)) == len(set().union(*owned)) == len(list(network.parameters()))


@pytest.fixture(scope="module")
def residual_run(tmp_path_factory):
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setitem(models.MODELS, "branching", lambda in_shape, classes: branching())
    folder = tmp_path_factory.mktemp("residual") / "run"
    text = TEXT.replace('name = "digits_cnn"\noptions = { channels = [4, 6] }', 'name = "branching"')
    train(parse_config(text.replace("epochs = 4", "epochs = 6")), folder, progress=False)
    yield folder
    monkeypatch.undo()


@pytest.mark.parametrize("epochs", [0, 1])
def test_search_of_a_network_with_residual_blocks(residual_run, tmp_path, epochs):
    folder = tmp_path / "run"
    shutil.copytree(residual_run, folder)
    settings = SearchConfig(relative_accuracy=0.8, calibration_images=200, uniform_bits=[4], min_bits=2,
                            fine_tune_epochs=epochs, fine_tune_learning_rate=3e-3)  # fmt: skip
    config = Run(folder).config.model_copy(update={"search": settings})
    (folder / "config.toml").write_text(dump_config(config))
    result = search(folder, progress=False)
    assert result.target_met
    accepted = [entry for entry in read_lines(folder / "search.jsonl") if entry["accepted"]]
    assert result.validation_accuracy == accepted[-1]["accuracy"]
    average = [layer for layer, bits in result.bits.items() if bits["weight"] is None]
    assert average == ["4"]
    images = Images.load(config.data)
    network = load_quantized(folder)
    assert evaluate(network, images.test_pixels, images.test_labels) == result.test_accuracy
    assert {
        row["name"]: {"input": row["input_bits"], "weight": row["weight_bits"]} for row in bit_assignment(network)
    } == result.bits
    assert all(stage.shortcut.factor() == 1 for stage in stages(network) if stage.shortcut is not None)  # pyright: ignore


@pytest.mark.parametrize("fewest", range(1, 10))
@pytest.mark.parametrize("order", ["down", "up"])
def test_fewest_bits(order, fewest):
    tried = []

    def passes(bits):
        tried.append(bits)
        return bits >= fewest

    assert fewest_bits(passes, 1, 8, order) == min(fewest, 8)
    expected = range(8, max(fewest - 2, 0), -1) if order == "down" else range(1, min(fewest, 8) + 1)
    assert tried == list(expected)
