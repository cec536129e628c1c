"""``python -m bitwright.sw.bench_methods``: the measured tables of ``docs/methods.md``.

Networks for the handwritten digits are trained below ``build/methods``, some seconds each; those that are there already
are taken as they are.
"""

import argparse
import dataclasses
import json
import statistics
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from bitwright.hw.errors import BitwrightError
from bitwright.sim.energy import plan_activity
from bitwright.sw import data, models
from bitwright.sw.bench import ROOMY, fill_page, machine_line
from bitwright.sw.config import Config, DataConfig
from bitwright.sw.digits import input_costs
from bitwright.sw.layers import Shape
from bitwright.sw.lowering import layer_shapes
from bitwright.sw.planning import plan_weights, stream_beats
from bitwright.sw.quantize import Recipe, calibrate, quantize
from bitwright.sw.quantizers import METHODS
from bitwright.sw.training import CALIBRATION_IMAGES, Images, evaluate, load_model, train
from bitwright.sw.wordlength import measure_word_lengths

ROOT = Path("build") / "methods"
PAGE = Path("docs") / "methods.md"
SEEDS = (1, 2, 3)
EPOCHS = 15
WIDTHS = (4, 5, 6, 7, 8, 9, 10, 12, 14, 16)

MULTIPLYING = dataclasses.replace(ROOMY, accumulator_width=30, coefficient_bits=16, coefficient_depth=1 << 12)
"""An array with coefficients of any width, and the widest accumulators."""


def trained(
    weights: str | None,
    seed: int = SEEDS[0],
    epochs: int = EPOCHS,
    from_float: bool = False,
    options: dict[str, Any] | None = None,
) -> Path:
    """Run directory of a network for the digits, of two-bit weights and activations; in float without a method.

    Activations are those of the method, or of DoReFa if it has none. ``options`` are further keys of ``[quantize]``.
    """
    settings: dict[str, Any] = {"epochs": epochs, "learning_rate": 5e-3, "seed": seed, "threads": 1}
    sections: dict[str, Any] = {"data": {"name": "digits"}, "model": {"name": "digits_cnn"}, "train": settings}
    name = f"{weights or 'float'}-{seed}"
    if weights is not None:
        activations = weights if METHODS[weights].activations else "dorefa"
        bits = {"weight_bits": 2, "activation_bits": 2}
        sections["quantize"] = {"weights": weights, "activations": activations} | bits | (options or {})
    if from_float:
        settings["init"] = str(trained(None, seed, epochs))
        name += "-from-float"
    if options:
        name += "-" + "-".join(f"{value}" for each in options.values() for value in each.values())
    folder = ROOT / name
    train(Config.model_validate(sections), folder)
    return folder


def accuracy(folder: Path) -> float:
    """Test accuracy in percent, of the epoch that was best on the validation images."""
    return 100 * json.loads((folder / "manifest.json").read_text())["training"]["test_accuracy"]


CLOSEST: dict[str, Any] = {"weight_options": {"range": "closest"}, "activation_options": {"range": "closest"}}
"""Options of fixed point."""


def starts() -> Iterator[str]:
    """Test accuracy after training from scratch, and of a float network: calibrated, and trained on for as long."""
    yield "| weights and activations | from scratch, % | only calibrated, % | from a float network, % |"
    yield "|---|--:|--:|--:|"
    yield f"| float | {_mean(accuracy(trained(None, seed)) for seed in SEEDS)} | | |"
    for name, method in METHODS.items():
        if 2 in method.weight_bits and name != "clustered":  # whose weights are only ever those of a trained network
            columns = (
                (accuracy(trained(name, seed)) for seed in SEEDS),
                (calibrated(name, seed) for seed in SEEDS),
                (accuracy(trained(name, seed, from_float=True)) for seed in SEEDS),
            )
            label = name if method.activations else f"{name}, dorefa"
            yield f"| {label}, W2/A2 | {' | '.join(map(_mean, columns))} |"
        if name == "fpnn":
            columns = (
                (accuracy(trained(name, seed, options=CLOSEST)) for seed in SEEDS),
                (calibrated(name, seed, CLOSEST) for seed in SEEDS),
                (accuracy(trained(name, seed, from_float=True, options=CLOSEST)) for seed in SEEDS),
            )
            yield f'| fpnn, `range = "closest"`, W2/A2 | {" | ".join(map(_mean, columns))} |'


def calibrated(name: str, seed: int, options: dict[str, Any] | None = None) -> float:
    """Test accuracy in percent of the float network, quantized by a method and calibrated."""
    images = Images.load(DataConfig(name="digits"))
    activations = name if METHODS[name].activations else "dorefa"
    recipe = Recipe(weights=name, weight_bits=2, activations=activations, activation_bits=2, **(options or {}))
    network = quantize(load_model(trained(None, seed)), recipe)
    calibrate(network, images.train_pixels[:CALIBRATION_IMAGES])
    return 100 * evaluate(network, images.test_pixels, images.test_labels)


def _mean(found: Iterable[float]) -> str:
    """Mean, least and greatest."""
    found = list(found)
    return f"{statistics.mean(found):.1f} ({min(found):.1f} to {max(found):.1f})"


def coefficients() -> Iterator[str]:
    """What the width of coefficients does to networks with bases."""
    digits = data.load("digits")
    measured = {
        name: measure_word_lengths(
            load_model(trained(name)), MULTIPLYING, digits.test_images, digits.test_labels, WIDTHS
        )
        for name in ("lqnets", "direct")
    }
    heads = [
        f"{name}: {what}" for name in measured for what in ("codes that differ, %", "same class, %", "accuracy, %")
    ]
    yield f"| bits of a coefficient | {' | '.join(heads)} |"
    yield f"|---|{'--:|' * len(heads)}"
    for row in zip(*measured.values(), strict=True):
        cells = [
            f"{100 * share:.{digits}f}"
            for each in row
            for share, digits in ((each.mismatch_rate, 3), (each.agreement, 1), (each.accuracy, 2))
        ]
        yield f"| {row[0].coefficient_bits or 'network in float64'} | {' | '.join(cells)} |"


LAYERS: tuple[tuple[str, Shape, int, int], ...] = (
    ("lenet5", (1, 28, 28), 2, 8),
    ("lenet5", (1, 28, 28), 4, 8),
    ("lenet5", (1, 28, 28), 5, 4),
    ("cnv", (3, 32, 32), 2, 8),
    ("cnv", (3, 32, 32), 4, 8),
)
"""Network, image, bits of its weights and of a pixel."""


def images() -> Iterator[str]:
    """What a first layer costs with the image as planes, and as digits of each number of bits."""
    yield "| first layer | image bits | image as | weight planes | words of a window | cycles an image | µJ an image |"
    yield "|---|--:|---|--:|--:|--:|--:|"
    for name, in_shape, weight_bits, input_bits in LAYERS:
        torch.manual_seed(0)
        recipe = Recipe(weight_bits=weight_bits, activation_bits=4, input_bits=input_bits)
        shapes = layer_shapes(quantize(models.build(name, in_shape, 10), recipe), in_shape)
        for cost in input_costs(shapes, ROOMY, input_bits=input_bits, batch=8):
            count = -(-input_bits // cost.digit_bits)
            form = f"{count} digits of {cost.digit_bits}" if count > 1 else f"{input_bits} planes"
            yield (
                f"| {name}, fpnn W{weight_bits} | {input_bits} | {form} | {cost.weight_planes} | {cost.words} | "
                f"{cost.cycles:,.0f} | {cost.uj:.3g} |"
            )


CODEBOOKS: tuple[tuple[str, int, dict[str, Any]], ...] = (
    ("clustered", 2, {}),
    ("clustered", 3, {}),
    ("nf4", 4, {}),
    ("nf4", 4, {"planes": 5}),
    ("fp4", 4, {}),
    ("fp4", 4, {"form": "e3m0"}),
)
"""Method of numbered weights, its bits and options."""

STREAMING = dataclasses.replace(ROOMY, weight_depth=1 << 11, weight_stream=True)
"""An array that streams the weights of CNV in."""


def codebooks() -> Iterator[str]:
    """What a decoder of codebooks saves: weights that stream in for a run, and cycles of the run."""
    yield "| weights of cnv | option | planes | MB streamed in | as indices | share | cycles | cycles as indices |"
    yield "|---|---|--:|--:|--:|--:|--:|--:|"
    for name, bits, options in CODEBOOKS:
        torch.manual_seed(0)
        choice = Recipe(weights=name, weight_bits=bits, weight_options=options, activations="dorefa", activation_bits=2)
        network = quantize(models.build("cnv", (3, 32, 32), 10), choice)
        shapes = layer_shapes(network, (3, 32, 32))
        plain, coded = (
            plan_weights(shapes, dataclasses.replace(STREAMING, codebook_bits=codebook_bits), input_bits=8)
            for codebook_bits in (0, 4)
        )
        beats = stream_beats(plain), stream_beats(coded)
        cycles = plan_activity(plain).cycles, plan_activity(coded).cycles
        option = ", ".join(f"`{key} = {json.dumps(value)}`" for key, value in options.items())
        megabytes = [f"{4e-6 * each:.2f}" for each in beats]
        yield (
            f"| `{name}`, {bits} bits | {option} | {shapes[0].weight_bits} | {megabytes[0]} | {megabytes[1]} | "
            f"{100 * beats[1] / beats[0]:.0f} % | {cycles[0]:,} | {cycles[1]:,} |"
        )


TABLES: dict[str, Callable[[], Iterator[str]]] = {
    "starts": starts,
    "coefficients": coefficients,
    "codebooks": codebooks,
    "images": images,
}


def main() -> int:
    """Measure, and fill the tables of the page."""
    parser = argparse.ArgumentParser(prog="python -m bitwright.sw.bench_methods", description=__doc__)
    parser.add_argument("--only", choices=TABLES, action="append", help="fill this table, again for more; default all")
    chosen = parser.parse_args().only or list(TABLES)
    for name in chosen:
        try:
            text = "\n".join(TABLES[name]())
        except BitwrightError as error:
            sys.stderr.write(f"bench-methods: {name}: {error}\n")
            return 2
        sys.stdout.write(f"{text}\n\n")
        fill_page(PAGE, f"{text}\n\n{machine_line()}", name)
    sys.stdout.write(json.dumps({"written": [str(PAGE)]}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
