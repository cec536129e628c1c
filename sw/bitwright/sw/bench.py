"""``make bench``: what is measured, printed, written to ``build/bench.json`` and filled into ``docs/performance.md``.

Times depend on the machine and on what else it does; where a number to reach is a ratio, both sides are measured here.
"""

import argparse
import dataclasses
import json
import math
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from bitwright.hw.errors import BitwrightError
from bitwright.hw.files import replacing
from bitwright.hw.isa import ArraySpec, ZeroSkip, preset
from bitwright.hw.plan import Plan
from bitwright.hw.planner import plan
from bitwright.hw.program import Program
from bitwright.hw.shapes import LayerShape
from bitwright.sim.backends import backend
from bitwright.sim.golden import execute
from bitwright.sim.timeline import ACCOUNT, estimate
from bitwright.sim.toggles import COMPONENTS, PE_ARRAY, Toggles, count_toggles
from bitwright.sw import models
from bitwright.sw.config import TrainConfig, parse_config
from bitwright.sw.lowering import lower
from bitwright.sw.quantize import Recipe, calibrate, quantize
from bitwright.sw.quantizers import METHODS
from bitwright.sw.runs import read_json, write_json
from bitwright.sw.search import search
from bitwright.sw.stages import stages
from bitwright.sw.training import descend, make_optimizer, train

ROOMY = ArraySpec(
    rows=8,
    columns=8,
    lanes=64,
    activation_depth=1 << 16,
    weight_depth=1 << 16,
    threshold_depth=1 << 14,
    descriptor_depth=1 << 12,
    result_depth=1 << 12,
    window_depth=1 << 10,
    row_tiles_max=1 << 8,
    accumulator_width=28,
)
"""8 × 8 × 64 with memories for any network measured here."""


@dataclass(frozen=True)
class Measurement:
    """One number.

    Attributes
    ----------
    reach
        What to reach, such as ``<= 1.05``; None where nothing is asked.
    baseline
        What it is compared with.
    """

    name: str
    value: float
    unit: str
    reach: str | None = None
    baseline: str | None = None

    @property
    def met(self) -> bool | None:
        """Whether the value reaches what is asked."""
        if self.reach is None:
            return None
        sign, limit = self.reach.split()
        return self.value <= float(limit) if sign == "<=" else self.value >= float(limit)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return dataclasses.asdict(self) | {"met": self.met}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Measurement":
        """Inverse of :meth:`to_dict`."""
        return cls(**{field.name: values[field.name] for field in dataclasses.fields(cls)})


def seconds(function: Callable[[], object], repeats: int = 3) -> float:
    """Shortest time of a call, over some repeats."""
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        function()
        times.append(time.perf_counter() - started)
    return min(times)


def cpu_seconds(function: Callable[[], object]) -> float:
    """CPU time of a call, of all threads of this process."""
    started = time.process_time()
    function()
    return time.process_time() - started


# ---------------------------------------------------------------------------------------------------------------------
# Networks


def bits_in_turn(model: nn.Module) -> dict[str, dict[str, int]]:
    """Layers of a recipe: weights of 8, 2, 3, 4, 5, 6, 7 and 1 bits in turn, and activations so for two layers each."""
    bits = (8, 2, 3, 4, 5, 6, 7, 1)
    return {
        stage.name: {"weight_bits": bits[number % 8], "activation_bits": bits[number // 2 % 8]}
        for number, stage in enumerate(stages(model))
    }


def network_program(
    name: str, bits: int | None, in_shape: tuple[int, int, int], spec: ArraySpec, batch: int, input_bits: int = 8
) -> Program:
    """Program of a network with fresh weights: speed and cycles without zero skip do not depend on them.

    Without ``bits`` its layers have 1 to 8 in turn.
    """
    torch.manual_seed(0)
    model = models.build(name, in_shape, 10, activation="hardtanh" if bits == 1 else "relu")
    method = "sign" if bits == 1 else "dorefa"
    recipe = Recipe(weights=method, activations=method, input_bits=input_bits)
    if bits is None:
        recipe = dataclasses.replace(recipe, layers=bits_in_turn(model))
    else:
        recipe = dataclasses.replace(recipe, weight_bits=bits, activation_bits=bits)
    network = quantize(model, recipe)
    calibrate(network, torch.randint(0, 256, (32, *in_shape)).float())
    return lower(network, spec, in_shape, batch=batch)


def random_images(program: Program, count: int) -> np.ndarray:
    """Random pixels."""
    image = program.input
    return np.random.default_rng(0).integers(0, 256, (count, image.channels, image.height, image.width), np.uint8)


def granularity_bound(planned: Plan | Program, *, addends: bool = False) -> float:
    """Cycles of a run if only whole row tiles, pixel groups and words cost: the bound that no schedule beats.

    With ``addends``, the words of residual addends too.
    """
    spec = planned.spec
    total = 0
    for info in planned.layers:
        channels, height, width = info.conv_shape
        tiles, groups = math.ceil(channels / spec.rows), math.ceil(height * width * planned.batch / spec.columns)
        total += tiles * groups * math.ceil(info.fan_in / spec.lanes) * info.weight_planes * info.input_planes
        if addends and info.residual_source is not None:
            words = math.ceil(planned.layers[info.residual_source].out_shape[0] / spec.lanes)
            total += tiles * groups * words * info.residual_bits * info.residual_planes
    return total


# ---------------------------------------------------------------------------------------------------------------------
# Measurements


def simulation() -> Iterator[Measurement]:
    """Speed of the golden model and of the RTL back ends."""
    digits = network_program("digits_cnn", 3, (1, 8, 8), preset("demo"), 2)
    images = random_images(digits, 1000)
    golden = seconds(lambda: execute(digits, images)) / len(images)
    yield Measurement("golden model, digits_cnn W3/A3, values and cycles", 1 / golden, "images/s")
    lenet = network_program("lenet5", 2, (1, 28, 28), dataclasses.replace(ROOMY, zero_skip="skip"), 8)
    images = random_images(lenet, 200)
    yield Measurement(
        "golden model, lenet5 W2/A2, values and cycles",
        len(images) / seconds(lambda: execute(lenet, images)),
        "images/s",
    )
    yield Measurement(
        "golden model, lenet5 W2/A2, values only",
        len(images) / seconds(lambda: execute(lenet, images, cycles=False)),
        "images/s",
    )
    for name, count in (("verilator", 200), ("cocotb", 2), ("pysim", 2)):
        try:
            machine = backend(name, digits.spec)
        except BitwrightError as error:
            sys.stderr.write(f"bench: {name} left out: {error}\n")
            continue
        images = random_images(digits, count)
        started = time.perf_counter()
        cycles = sum(run.cycles for run in machine.run(digits, images))
        elapsed = time.perf_counter() - started
        yield Measurement(f"{name}, digits_cnn on 8 × 8 × 64, loading included", cycles / elapsed, "cycles/s")
        if name == "verilator":
            ratio = elapsed / count / golden
            yield Measurement("golden model against Verilator, digits_cnn", ratio, "×", ">= 100", "verilator")


NETWORKS: tuple[tuple[str, tuple[int, int, int], int | None], ...] = (
    ("lenet5", (1, 28, 28), 2),
    ("cnv", (3, 32, 32), 1),
    ("cnv", (3, 32, 32), 2),
    ("resnet20", (3, 32, 32), 2),
    ("resnet20", (3, 32, 32), 4),
    ("resnet20", (3, 32, 32), None),
)
"""Networks whose cycles are compared with the bound, and bits of all their layers, or None for 1 to 8 in turn."""


def utilization() -> Iterator[Measurement]:
    """Cycles against the granularity bound, and where the cycles go, without zero skip."""
    wide = [(ROOMY, each) for each in NETWORKS]
    narrow = dataclasses.replace(ROOMY, lanes=32, drain_planes=1)
    for spec, (name, in_shape, bits) in [*wide, (narrow, NETWORKS[0])]:
        program = network_program(name, bits, in_shape, spec, 8)
        run = estimate(program)
        label = f"{name} {f'W{bits}/A{bits}' if bits else 'of 1 to 8 bits'}, 8 × 8 × {spec.lanes}, batch 8"
        bound = granularity_bound(program)
        reach = "<= 1.05" if spec is ROOMY else None
        yield Measurement(f"cycles, {label}", run.cycles / bound, "× the bound", reach, "granularity bound")
        addends = granularity_bound(program, addends=True)
        if addends > bound:
            yield Measurement(f"cycles, {label}, addends counted in the bound", run.cycles / addends, "× the bound")
        spent = run.cycles * spec.rows * spec.columns * spec.lanes
        for kind in ACCOUNT:
            total = sum((layer.account or {}).get(kind, 0) for layer in run.layers)
            if total:
                yield Measurement(f"cycles spent on {kind.replace('_', ' ')}, {label}", 100 * total / spent, "%")


NNGEN_CYCLES: Mapping[int, int] = {8: 36_194, 2: 27_090}
"""Cycles that NNgen 1.3.4 takes for an MLP 784-128-10 with two-fold parallelism, by bits."""


def mlp_cycles(spec: ArraySpec, bits: int) -> int:
    """Cycles of an image of an MLP 784-128-10."""
    layers = [
        LayerShape(name="fc1", kind="linear", in_shape=(1, 28, 28), out_channels=128, weight_bits=bits,
                   output_planes=bits),
        LayerShape(name="fc2", kind="linear", in_shape=(128, 1, 1), out_channels=10, weight_bits=bits),
    ]  # fmt: skip
    return estimate(plan(layers, spec, input_bits=bits)).cycles


def mlp_array() -> ArraySpec:
    """The smallest array that runs the MLP at int8 in fewer cycles than NNgen, with all its weights on the chip."""
    arrays = [
        ArraySpec(
            rows=rows,
            columns=1,
            lanes=lanes,
            drain_planes=1,
            residual=False,
            activation_depth=512,
            window_depth=256,
            weight_depth=1 << 13,
            threshold_depth=1 << 13,
            descriptor_depth=256,
            result_depth=32,
            row_tiles_max=32,
        )
        for lanes in (32, 64, 128)
        for rows in (4, 8, 16)
    ]
    faster = [spec for spec in arrays if mlp_cycles(spec, 8) < NNGEN_CYCLES[8]]
    return min(faster, key=lambda spec: spec.rows * spec.lanes)


def mlp_beside_nngen() -> Iterator[Measurement]:
    """Cycles of that array at int8, and at int2."""
    spec = mlp_array()
    for bits, theirs in NNGEN_CYCLES.items():
        name = f"cycles, MLP 784-128-10, {spec.rows} × 1 × {spec.lanes}, int{bits}"
        yield Measurement(name, mlp_cycles(spec, bits), "cycles", None, f"NNgen: {theirs:,}")


def precision() -> Iterator[Measurement]:
    """Cycles of one layer that fills the array, against the product of its bits and against the bound."""
    each, ratios = [], []
    for weight_bits in (1, 2, 4, 8):
        for input_bits in (1, 2, 4, 8):
            filling = LayerShape(
                name="conv",
                kind="conv",
                in_shape=(64, 18, 18),
                out_channels=64,
                kernel=(3, 3),
                weight_bits=weight_bits,
                output_planes=1,
            )
            last = LayerShape(name="fc", kind="linear", in_shape=filling.out_shape, out_channels=1)
            layer = estimate(plan([filling, last], ROOMY, input_bits=input_bits, batch=8)).layers[0]
            cycles = layer.end - layer.start
            each.append(cycles / (weight_bits * input_bits))
            ratios.append(each[-1] / (8 * 256 * 9))
    worst = 100 * (max(each) / min(each) - 1)
    yield Measurement("cycles per bit product, 64 × 16 × 16 outputs, batch 8, 1..8 bits: spread", worst, "%", "<= 2")
    yield Measurement("cycles of that layer, at worst", max(ratios), "× the bound", "<= 1.02", "granularity bound")


def sparsity() -> Iterator[Measurement]:
    """Cycles saved by zero skip on one layer whose words are zero at random, and lost where none is."""
    filling = LayerShape(
        name="conv", kind="conv", in_shape=(64, 18, 18), out_channels=64, kernel=(3, 3), weight_bits=2, output_planes=2
    )
    last = LayerShape(name="fc", kind="linear", in_shape=filling.out_shape, out_channels=10, weight_bits=2)
    rng = np.random.default_rng(0)
    weights = [rng.integers(-2, 2, (64, 64, 3, 3)), rng.integers(-2, 2, (10, 64 * 16 * 16))]
    thresholds = [(np.sort(rng.integers(-200, 200, (64, 3))), np.zeros(64, np.uint8))]
    for share in (0.0, 0.5, 0.8, 0.95):
        images = rng.integers(1, 256, (8, 64, 18, 18)).astype(np.uint8)
        # Whole columns of pixels are black, so that a word is zero in all columns of the array at once.
        black = rng.random((8, 1, 18, 1)) < share
        images = np.where(black, 0, images).astype(np.uint8)
        counted = {}
        for mode in ("gate", "skip"):
            spec = dataclasses.replace(ROOMY, zero_skip=mode)
            planned = plan([filling, last], spec, input_bits=4, batch=8)
            program = planned.assemble(weights, thresholds, np.ones(10), np.zeros(10))
            run = execute(program, images)[0].layers[0]
            counted[mode] = (run.end - run.start, run.counters["skipped"])
        dense, sparse, skipped = counted["gate"][0], counted["skip"][0], counted["skip"][1]
        label = f"64 × 16 × 16 outputs, W2/A4, {share:.0%} of the image rows zero"
        if skipped:
            saved = 100 * (dense - sparse) / skipped
            yield Measurement(f"cycles saved by zero skip, of the skippable, {label}", saved, "%", ">= 80")
        else:
            yield Measurement(f"cycles lost by zero skip, {label}", 100 * (sparse / dense - 1), "%")


ZERO_SKIPS: tuple[ZeroSkip, ...] = ("off", "gate", "skip")


def toggles() -> Iterator[Measurement]:
    """Toggles in RTL, for each zero skip, of a convolution and a linear layer of random weights and codes.

    The measure is one bit product of the network, zeros included, so that it is the same for all arrays.
    """
    conv = LayerShape(
        name="conv", kind="conv", in_shape=(64, 6, 6), out_channels=16, kernel=(3, 3), weight_bits=2, output_planes=2
    )
    last = LayerShape(name="fc", kind="linear", in_shape=conv.out_shape, out_channels=10, weight_bits=2)
    rng = np.random.default_rng(0)
    weights = [rng.integers(-2, 2, (16, 64, 3, 3)), rng.integers(-2, 2, (10, 256))]
    thresholds = [(np.sort(rng.integers(-200, 200, (16, 3))), np.zeros(16, np.uint8))]
    codes = rng.integers(1, 256, (2, 64, 6, 6))
    where = {"pixels": rng.random((2, 1, 6, 6)), "codes": rng.random((2, 64, 6, 6))}
    dense = math.nan  # toggles of a computed word
    for zero, share in (("pixels", 0.0), *((zero, share) for zero in where for share in (0.5, 0.8, 0.95))):
        images = np.where(where[zero] < share, 0, codes).astype(np.uint8)
        products, off = 0, math.nan
        for mode in ZERO_SKIPS:
            spec = dataclasses.replace(preset("demo"), zero_skip=mode)
            planned = plan([conv, last], spec, input_bits=4, batch=2)
            (run,), found = count_toggles(planned.assemble(weights, thresholds, np.ones(10), np.zeros(10)), images)
            layers = estimate(planned).layers
            products = products or sum(layer.account["computing"] for layer in layers if layer.account)
            label = f"{share:.0%} of the {zero} zero, {mode}"
            yield Measurement(f"toggles of the PE array, {label}", found.pe_array / products, "a bit product")
            if mode == "off":
                off = found.total
                continue
            yield Measurement(f"toggles of everything, {label}", found.total / off, "× off")
            if mode == "gate":
                if not share:
                    dense = found.pe_array / run.counters["computed"]
                elif zero == "pixels":
                    held = (found.pe_array - dense * run.counters["computed"]) / run.counters["gated"]
                    yield Measurement(
                        f"toggles of the PE array, of a gated word, {label}", 100 * held / dense, "% of a computed one"
                    )


def toggles_of_digits(folder: Path) -> Iterator[Measurement]:
    """Toggles in RTL, for each zero skip, of the demo's network on its own activations."""
    from bitwright.sw.commands import compile_run, images_for

    products = 0
    for mode in ZERO_SKIPS:
        program = compile_run(folder, array=dataclasses.replace(preset("demo"), zero_skip=mode), batch=1)
        images = images_for(program, 32).images
        found = count_toggles(program, images)[1]
        layers = [layer for run in execute(program, images) for layer in run.layers]
        products = products or sum(layer.account["computing"] for layer in layers if layer.account)
        yield Measurement(f"toggles of the PE array, digits, {mode}", found.pe_array / products, "a bit product")
        for part, value in _parts_of(found).items():
            yield Measurement(f"toggles of {part}, digits, {mode}", value / products, "a bit product")


def _parts_of(found: Toggles) -> dict[str, int]:
    """Toggles of the parts of the PE array, of what feeds it, and of the rest."""
    feeding = ("window buffer", "weight memory", "fetch")
    others = [name for name in COMPONENTS if name not in PE_ARRAY + feeding]
    parts = {name: (name,) for name in PE_ARRAY} | {"memories and fetch": feeding, "the rest": others}
    return {part: sum(found.components[name] for name in names) for part, names in parts.items()}


def zero_skip(folder: Path) -> Iterator[Measurement]:
    """Cycles that the demo takes on an array that skips words of zeros, and the share of words that it skips."""
    from bitwright.sw.commands import compile_run, images_for

    totals = {}
    for mode in ("gate", "skip"):
        program = compile_run(folder, array=dataclasses.replace(preset("demo"), zero_skip=mode), batch=1)
        runs = execute(program, images_for(program, None).images)
        totals[mode] = {name: sum(run.counters[name] for run in runs) for name in ("cycles", "busy", "skipped")}
    skippable = totals["skip"]["skipped"] / (totals["gate"]["busy"] or 1)
    cycles = totals["skip"]["cycles"] / totals["gate"]["cycles"]
    yield Measurement("words skipped, digits, batch 1", 100 * skippable, "%")
    yield Measurement("cycles with zero skip, digits, batch 1", cycles, "×", "<= 1", "zero_skip = gate")


LQ_NETS, BREVITAS = "lqnets W2/A2", "Brevitas W2/A2"


def training(
    model: str = "cnv", in_shape: tuple[int, int, int] = (3, 32, 32), images: int = 128, rounds: int = 7
) -> Iterator[Measurement]:
    """CPU time of a training step with every method, and with Brevitas, against the same network in float.

    A step in float runs before and after each of the others, which is compared with their mean: what else the machine
    does, it does to all of them. The median of the rounds counts, after one to warm up.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    pixels, labels = torch.randint(0, 256, (images, *in_shape)).float(), torch.randint(0, 10, (images,))

    def step_of(network: nn.Module) -> Callable[[], float]:
        # A rate so low that networks stay as they are: steps take the same time from the first to the last.
        optimizer = make_optimizer(network.train(), TrainConfig(epochs=1, learning_rate=1e-6))
        return lambda: cpu_seconds(lambda: descend(network, optimizer, pixels, labels))

    plain = step_of(quantize(models.build(model, in_shape, 10), Recipe()))
    steps = {
        label: step_of(quantize(models.build(model, in_shape, 10), recipe)) for label, recipe in few_bits().items()
    }
    if find_spec("brevitas") is None:
        sys.stderr.write('bench: Brevitas left out: not installed; pip install -e ".[compare]" gets it\n')
    else:
        steps[BREVITAS] = step_of(brevitas_network(models.build(model, in_shape, 10)))
    floats, ratios = [], {label: [] for label in steps}
    for number in range(rounds + 1):
        first = plain()
        for label, step in steps.items():
            taken, second = step(), plain()
            if number:
                floats.append(second)
                ratios[label].append(2 * taken / (first + second))
            first = second
    torch.set_num_threads(before)

    name = f"training step, {model}, {images} images, 1 thread"
    yield Measurement(f"{name}, float", 1e3 * statistics.median(floats), "ms of CPU")
    medians = {label: statistics.median(each) for label, each in ratios.items()}
    for label, value in medians.items():
        yield Measurement(f"{name}, {label}", value, "×", "<= 1.3" if label == LQ_NETS else None, "float")
    for label in (LQ_NETS, "dorefa W2/A2"):
        if BREVITAS in medians:
            yield Measurement(f"{name}, {label}", medians[label] / medians[BREVITAS], "×", "<= 1", BREVITAS)


def few_bits() -> dict[str, Recipe]:
    """Recipes of every method with two bits, or the fewest it has, and its own activations or those of DoReFa."""
    recipes = {}
    for name, method in METHODS.items():
        activations = method if method.activations else METHODS["dorefa"]
        bits = [2 if 2 in offered else offered[0] for offered in (method.weight_bits, activations.activation_bits)]
        label = f"{name} W{bits[0]}/A{bits[1]}" if method.activations else f"{name} W{bits[0]}, dorefa A{bits[1]}"
        recipes[label] = Recipe(
            weights=name, weight_bits=bits[0], activations=activations.name, activation_bits=bits[1]
        )
    return recipes


def brevitas_network(model: nn.Sequential) -> nn.Sequential:
    """The same network by Brevitas: its default quantizers with two bits, statistics gathered in one step only."""
    layers = import_module("brevitas.nn")
    network = quantize(model, Recipe())  # takes pixels
    for name, module in list(network.named_children()):
        if isinstance(module, nn.Conv2d):
            sizes = module.in_channels, module.out_channels, module.kernel_size, module.stride, module.padding
            network.set_submodule(name, layers.QuantConv2d(*sizes, bias=False, weight_bit_width=2))
        elif isinstance(module, nn.Linear):
            sizes = module.in_features, module.out_features
            network.set_submodule(name, layers.QuantLinear(*sizes, bias=False, weight_bit_width=2))
        elif isinstance(module, nn.ReLU):
            network.set_submodule(name, layers.QuantReLU(bit_width=2, collect_stats_steps=1))
    return network


def searching() -> Iterator[Measurement]:
    """Layer evaluations that the search saves against evaluating the whole network for each candidate."""
    config = parse_config(
        '[data]\nname = "digits"\n[model]\nname = "mlp"\n[model.options]\nhidden = [64, 48, 48, 32, 32, 32]\n'
        "[train]\nepochs = 15\nthreads = 1\n"
    )
    with tempfile.TemporaryDirectory() as folder:
        train(config, Path(folder) / "run", progress=False)
        found = search(Path(folder) / "run", progress=False)
    ratio = found.whole_network_layer_evaluations / found.layer_evaluations
    yield Measurement("layer evaluations saved by the search, mlp of 7 layers", ratio, "×", ">= 3", "whole network")


def demo(folder: Path = Path("build") / "demo") -> Iterator[Measurement]:
    """Time of each step of the last demo, and what zero skip does on its network."""
    if not (folder / "summary.json").is_file():
        raise BitwrightError(f"{folder} has no summary.json of a demo; run make demo first.")
    yield from zero_skip(folder / "digits")
    yield from toggles_of_digits(folder / "digits")
    for name, value in read_json(folder / "summary.json")["seconds"].items():
        yield Measurement(f"demo, {name}", value, "s")


# ---------------------------------------------------------------------------------------------------------------------
# Output


def page(groups: Mapping[str, Sequence[Measurement]]) -> str:
    """Markdown of the generated part of a page: a table for each group."""
    lines = [machine_line()]
    for group, measurements in groups.items():
        lines += [
            "",
            f"## `{group}`",
            "",
            "| what | value | unit | to reach | met | beside |",
            "|---|--:|---|---|---|---|",
        ]
        for each in measurements:
            met = "" if each.met is None else "yes" if each.met else "**no**"
            cells = each.name, shown(each.value), each.unit, each.reach or "", met, each.baseline or ""
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def machine_line() -> str:
    """Where something was measured."""
    return f"Python {platform.python_version()}, PyTorch {torch.__version__}, {os.cpu_count()} cores, {_processor()}."


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if "model name" in line]
        if names:
            return names[0]
    return platform.machine()


def shown(value: float) -> str:
    """A number for people."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def fill_page(path: Path, text: str, mark: str = "bench") -> None:
    """Replace what lies between the marks of a page, ``<!-- bench: begin -->`` and ``<!-- bench: end -->``."""
    begin, end = f"<!-- {mark}: begin -->", f"<!-- {mark}: end -->"
    before, rest = path.read_text(encoding="utf-8").split(begin)
    after = rest.split(end)[1]
    with replacing(path) as temporary:
        temporary.write_text(f"{before}{begin}\n{text}\n{end}{after}", encoding="utf-8")


GROUPS: dict[str, Callable[[], Iterator[Measurement]]] = {
    "simulation": simulation,
    "cycles": lambda: chain(utilization(), precision(), sparsity(), mlp_beside_nngen()),
    "toggles": toggles,
    "training": training,
    "search": searching,
    "demo": demo,
}


def main() -> int:
    """Measure what ``make bench`` does."""
    return measure("bench", __doc__, GROUPS, Path("docs") / "performance.md")


def measure(
    name: str, description: str | None, available: Mapping[str, Callable[[], Iterator[Measurement]]], table: Path
) -> int:
    """Measure groups, print and write: each takes the place of what earlier runs measured of it. Returns an exit code.

    Parameters
    ----------
    name, description
        Of the command, a module of this package.
    available
        Groups by name.
    table
        Page to fill with all that is known.
    """
    parser = argparse.ArgumentParser(prog=f"python -m bitwright.sw.{name}", description=description)
    parser.add_argument(
        "--only", choices=available, action="append", help="measure this group, again for more; default all"
    )
    chosen = parser.parse_args().only or list(available)
    path = Path("build") / f"{name.replace('_', '-')}.json"
    groups: dict[str, list[dict[str, Any]]] = read_json(path) if path.is_file() else {}
    failed = []
    for group in chosen:
        measurements: list[Measurement] = []
        try:
            for each in available[group]():
                measurements.append(each)
                met = "" if each.met is None else "  met" if each.met else "  MISSED"
                sys.stdout.write(f"{each.name}: {shown(each.value)} {each.unit} {each.reach or ''}{met}\n")
                sys.stdout.flush()
        except BitwrightError as error:
            failed.append(group)
            sys.stderr.write(f"{name}: {group}: {error}\n")
            continue
        groups[group] = [each.to_dict() for each in measurements]
        write_json(path, groups)
    if table.is_file():
        known = {
            group: [Measurement.from_dict(entry) for entry in groups[group]] for group in available if group in groups
        }
        fill_page(table, page(known))
    sys.stdout.write(json.dumps({"written": [str(path), str(table)], "failed": failed}) + "\n")
    return 2 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
