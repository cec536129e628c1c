"""``make results``: methods compared by training them, and ``docs/results.md`` filled from the runs.

Every run is a run directory below ``build/results``. What is there already is kept, and what was stopped is resumed:
the command may be given as often as needed, for as long as there is time. A table shows what has been run so far.
"""

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitwright.hw.errors import BitwrightError
from bitwright.sim.energy import load_table
from bitwright.sw.bench import fill_page, machine_line
from bitwright.sw.commands import run_report
from bitwright.sw.config import Config
from bitwright.sw.runs import Run, read_json
from bitwright.sw.search import search
from bitwright.sw.training import train

ROOT = Path("build") / "results"
PAGE = Path("docs") / "results.md"
SEEDS = (1, 2, 3)


@dataclass(frozen=True)
class Point:
    """One training.

    Attributes
    ----------
    name
        Folder of the run, below :data:`ROOT`.
    config
        What to train.
    searched
        Search the bits of each layer afterwards.
    """

    name: str
    config: Config
    searched: bool = False

    @property
    def folder(self) -> Path:
        """Run directory."""
        return ROOT / self.name

    def run(self) -> None:
        """Train, or go on."""
        if not self.trained:
            train(self.config, self.folder)
        if self.searched and not Run(self.folder).search_path.is_file():
            search(self.folder)

    @property
    def trained(self) -> dict[str, Any] | None:
        """Result of the training, or None while it is not complete."""
        manifest = self.folder / "manifest.json"
        return read_json(manifest).get("training") if manifest.is_file() else None

    @property
    def done(self) -> bool:
        """Whether nothing is left to do."""
        return self.trained is not None and (not self.searched or (self.folder / "search.json").is_file())

    @property
    def accuracy(self) -> float | None:
        """Test accuracy in percent, of the epoch that was best on the validation images."""
        return 100 * self.trained["test_accuracy"] if self.trained else None


def _config(**sections: Any) -> Config:
    return Config.model_validate(sections)


# ---------------------------------------------------------------------------------------------------------------------
# LeNet-5 on MNIST, beside RedBit

REDBIT: Mapping[tuple[str, int, int], float] = {
    ("qnn", 8, 8): 99.52,
    ("qnn", 4, 4): 99.55,
    ("qnn", 2, 2): 99.45,
    ("qnn", 1, 2): 99.22,
    ("qnn", 1, 1): 98.90,
    ("dorefa", 8, 8): 99.69,
    ("dorefa", 4, 4): 99.68,
    ("dorefa", 2, 2): 99.62,
    ("dorefa", 1, 2): 99.61,
    ("dorefa", 1, 1): 99.06,
}
"""Test accuracy, percent, of (method, weight bits, activation bits): wiki of IT-Coimbra/RedBit, "Quantization Results".

Its network has one more fully connected layer, 20C5-50C5-500-250-10.
"""
REDBIT_FLOAT = 99.59


def mnist_point(method: str | None, weight_bits: int = 0, activation_bits: int = 0) -> Point:
    """LeNet-5 on MNIST; in float without a method. QNN's 1-bit activations are signs, its 1-bit weights bipolar."""
    train = {"epochs": 6, "batch_size": 128, "learning_rate": 2e-3, "seed": 1, "threads": 1}
    sections: dict[str, Any] = {"data": {"name": "mnist", "shift": 1}, "model": {"name": "lenet5"}, "train": train}
    if method is None:
        return Point("mnist/float", _config(**sections))
    activations = method
    if method == "qnn" and activation_bits == 1:
        activations = "sign"
        sections["model"]["options"] = {"activation": "hardtanh"}
    sections["quantize"] = {
        "weights": method,
        "weight_bits": weight_bits,
        "activations": activations,
        "activation_bits": activation_bits,
    }
    return Point(f"mnist/{method}-w{weight_bits}a{activation_bits}", _config(**sections))


def mnist_points() -> list[Point]:
    """Float, and all that RedBit's table has."""
    return [mnist_point(None), *(mnist_point(*key) for key in REDBIT)]


def mnist_table() -> Iterator[str]:
    """Accuracy beside the published one."""
    yield "| method | W / A | here, % | RedBit, % | difference |"
    yield "|---|---|--:|--:|--:|"
    rows = [("float", "32 / 32", mnist_point(None), REDBIT_FLOAT)]
    rows += [(name, f"{w} / {a}", mnist_point(name, w, a), known) for (name, w, a), known in REDBIT.items()]
    for name, bits, point, known in rows:
        if point.accuracy is not None:
            yield f"| {name} | {bits} | {point.accuracy:.2f} | {known:.2f} | {point.accuracy - known:+.2f} |"


# ---------------------------------------------------------------------------------------------------------------------
# Every method on Fashion-MNIST


@dataclass(frozen=True)
class Contender:
    """A way to quantize weights and activations, at some numbers of bits.

    Attributes
    ----------
    from_float
        Training starts from the float run: a method whose integers are chosen once, such as clusters of weights, has to
        see trained ones.
    """

    label: str
    bits: tuple[int, ...]
    weights: str
    options: Mapping[str, Any]
    activations: str = "dorefa"
    activation: str = "relu"
    stochastic: bool = False
    from_float: bool = False


CONTENDERS = (
    Contender("FPNN", (2, 3, 4), "fpnn", {}, "fpnn"),
    Contender("QNN", (2, 3, 4), "qnn", {}, "qnn"),
    Contender("bipolar, sign", (1,), "sign", {}, "sign", "hardtanh"),
    Contender("BinaryConnect", (1,), "binaryconnect", {}),
    Contender("BinaryConnect, stochastic", (1,), "binaryconnect", {"stochastic": True}),
    Contender("BWN", (1,), "bwn", {}),
    Contender("TWN, per layer", (2,), "twn", {"scale": "layer"}),
    Contender("TWN, per filter", (2,), "twn", {"scale": "filter"}),
    Contender("stochastic BWN", (1,), "bwn", {}, stochastic=True),
    Contender("stochastic TWN", (2,), "twn", {"scale": "filter"}, stochastic=True),
    Contender("DoReFa", (1, 2, 3, 4), "dorefa", {}),
    Contender("LQ-Nets", (1, 2, 3, 4), "lqnets", {}, "lqnets"),
    Contender("direct quantization, reconstructed", (1, 2, 3, 4), "direct", {}, "direct"),
    Contender("clustered, from the float network", (1, 2, 3, 4), "clustered", {}, from_float=True),
    Contender("NF4", (4,), "nf4", {}),
    Contender("FP4 E2M1", (4,), "fp4", {"form": "e2m1"}),
    Contender("FP4 E3M0", (4,), "fp4", {"form": "e3m0"}),
    Contender("MX FP4", (4,), "mx", {}),
)
"""Weights of a method with its own activations, or with those of DoReFa where it has none, of as many bits."""

FASHION_EPOCHS = 8


def fashion_point(contender: Contender | None, bits: int, seed: int) -> Point:
    """A small LeNet on a part of Fashion-MNIST; the budget in epochs is the same for all."""
    train: dict[str, Any] = {
        "epochs": FASHION_EPOCHS,
        "batch_size": 64,
        "learning_rate": 2e-3,
        "seed": seed,
        "threads": 1,
    }
    options: dict[str, Any] = {"channels": [8, 16], "hidden": 64}
    sections: dict[str, Any] = {
        "data": {"name": "fashion-mnist", "images": 5_000},
        "model": {"name": "lenet5", "options": options},
        "train": train,
    }
    if contender is None:
        return Point(f"fashion/float-{seed}", _config(**sections))
    if contender.activation != "relu":
        options["activation"] = contender.activation
    sections["quantize"] = {
        "weights": contender.weights,
        "weight_bits": bits,
        "weight_options": dict(contender.options),
        "activations": contender.activations,
        "activation_bits": bits,
    }
    if contender.from_float:
        train["init"] = str(fashion_point(None, 0, seed).folder)
    if contender.stochastic:
        ratios = [0.5, 0.75, 0.875, 1.0]
        sections["quantize"]["stochastic"] = {"ratios": ratios}
        train["epochs"] //= len(ratios)
    name = contender.label.lower().replace(",", "").replace(" ", "-")
    return Point(f"fashion/{name}-{bits}-{seed}", _config(**sections))


def fashion_points() -> list[Point]:
    """All contenders, seed by seed, so that an early end leaves the first seeds complete."""
    points = []
    for seed in SEEDS:
        points.append(fashion_point(None, 0, seed))
        points += [fashion_point(each, bits, seed) for each in CONTENDERS for bits in each.bits]
    return points


def fashion_table() -> Iterator[str]:
    """Mean and spread over the seeds."""
    yield "| method | 1 bit | 2 bits | 3 bits | 4 bits |"
    yield "|---|--:|--:|--:|--:|"
    for contender in CONTENDERS:
        cells = [
            _mean_and_spread(fashion_point(contender, bits, seed) for seed in SEEDS) if bits in contender.bits else ""
            for bits in (1, 2, 3, 4)
        ]
        yield f"| {contender.label} | {' | '.join(cells)} |"
    yield ""
    yield f"In float: {_mean_and_spread(fashion_point(None, 0, seed) for seed in SEEDS)}."


def _mean_and_spread(points: Iterator[Point]) -> str:
    found = [point.accuracy for point in points if point.accuracy is not None]
    if not found:
        return "not run"
    if len(found) == 1:
        return f"{found[0]:.1f}, one seed"
    return f"{statistics.mean(found):.1f} ({min(found):.1f} to {max(found):.1f})"


# ---------------------------------------------------------------------------------------------------------------------
# Searched bits against uniform ones

TARGETS = (1.0, 0.99, 0.98, 0.95)


def search_point(target: float) -> Point:
    """Float run on Fashion-MNIST, its bits searched for a share of its accuracy."""
    config = fashion_point(None, 0, SEEDS[0]).config
    settings = {
        "relative_accuracy": target,
        "validation_images": 2000,
        "order": "up",
        "uniform_bits": [8, 7, 6, 5, 4, 3, 2],
    }
    section = type(config.search).model_validate(settings)
    array = {"preset": "edge", "threshold_depth": 1 << 13}  # for uniform bits, of which there may be eight
    return Point(f"search/{target:g}", config.model_copy(update={"search": section, "array": array}), searched=True)


def search_points() -> list[Point]:
    """One run for each target."""
    return [search_point(target) for target in TARGETS]


def search_table() -> Iterator[str]:
    """Energy and accuracy of what the search finds, and of the best uniform bits that take no more energy."""
    yield "| network | energy, µJ an image | validation accuracy, % | best uniform bits of no more energy, % |"
    yield "|---|--:|--:|--:|"
    uniform: dict[str, tuple[float, float]] = {}
    for target in TARGETS:
        point = search_point(target)
        if not point.done:
            continue
        report = run_report(point.folder, load_table("horowitz45"), images=200, batch=1)
        for each in report.candidates:
            if each.kind == "uniform":
                uniform[each.label] = each.uj_per_image, 100 * each.accuracy
        [found] = [each for each in report.candidates if each.kind == "searched"]
        beside = _best_within(uniform, found.uj_per_image)
        bits = " ".join(f"{weight or '-'}/{inputs}" for weight, inputs in found.bits.values())
        yield (
            f"| searched, target {target:.0%}: W/A {bits} | {found.uj_per_image:.3g} | "
            f"{100 * found.accuracy:.1f} | {beside} |"
        )
    for label, (energy, accuracy) in sorted(uniform.items(), key=lambda item: -item[1][0]):
        yield f"| uniform, {label} | {energy:.3g} | {accuracy:.1f} | |"


def _best_within(networks: Mapping[str, tuple[float, float]], energy: float) -> str:
    """Accuracy and name of the most accurate network, of (energy, accuracy), that takes no more energy."""
    within = [(accuracy, name) for name, (taken, accuracy) in networks.items() if taken <= energy]
    return "{:.1f}, {}".format(*max(within)) if within else "none"


# ---------------------------------------------------------------------------------------------------------------------
# CIFAR-10, short

LQNETS_PUBLISHED = {"vgg_small": 93.5, "resnet20": 90.2}
"""Test accuracy at W2/A2, percent: VGG-small from the column "Top-1 in Paper" of LQ-MXNet's README, ResNet-20 with QEM
from a summary of the paper's own comparison."""


def cifar_point(model: str, method: str) -> Point:
    """W2/A2 with the published network, batch, momentum and weight decay, over a schedule for a few minutes of a CPU.

    First and last layer keep 8 bits, where the publications keep them in float.
    """
    short = {"resnet20": (5_000, 4), "vgg_small": (1_000, 1)}
    images, epochs = short[model]
    train = {
        "epochs": epochs,
        "batch_size": 100 if model == "vgg_small" else 128,
        "optimizer": "sgd",
        "learning_rate": 0.02 if model == "vgg_small" else 0.1,
        "momentum": 0.9,
        "weight_decay": 5e-4 if model == "vgg_small" else 1e-4,
        "seed": 1,
        "threads": 1,
    }
    ends = {"weights": "dorefa", "weight_bits": 8}
    quantize = {
        "weights": method,
        "weight_bits": 2,
        "activations": method,
        "activation_bits": 2,
        "layers": {"conv1": ends, "fc*": ends},
    }
    data = {"name": "cifar-10", "images": images, "shift": 4, "flip": True}
    return Point(f"cifar/{model}-{method}", _config(data=data, model={"name": model}, quantize=quantize, train=train))


def cifar_points() -> list[Point]:
    """Both networks by both methods."""
    return [cifar_point(model, method) for model in ("resnet20", "vgg_small") for method in ("dorefa", "lqnets")]


def cifar_table() -> Iterator[str]:
    """What the short schedule reaches, beside the end of the long one."""
    yield "| network | method | images | epochs | here, % | published, %, after hundreds of epochs |"
    yield "|---|---|--:|--:|--:|--:|"
    for point in cifar_points():
        if point.accuracy is not None:
            model, method = point.name.removeprefix("cifar/").split("-")
            known = f"{LQNETS_PUBLISHED[model]}" if method == "lqnets" else ""
            epochs, images = point.config.train.epochs, point.config.data.images
            yield f"| {model} | {method} | {images} | {epochs} | {point.accuracy:.1f} | {known} |"


# ---------------------------------------------------------------------------------------------------------------------
# Command


@dataclass(frozen=True)
class Group:
    """A table: its heading, its trainings, its lines."""

    title: str
    points: Callable[[], list[Point]]
    table: Callable[[], Iterator[str]]


GROUPS = {
    "mnist": Group("LeNet-5 on MNIST, beside RedBit", mnist_points, mnist_table),
    "fashion": Group("Every method, with equal budgets", fashion_points, fashion_table),
    "search": Group("Searched bits against uniform bits at equal energy", search_points, search_table),
    "cifar": Group("CIFAR-10 at W2/A2, a short schedule", cifar_points, cifar_table),
}


def page() -> str:
    """Tables of all that has been run."""
    lines = [machine_line()]
    for name, group in GROUPS.items():
        points = group.points()
        done = sum(point.done for point in points)
        lines += ["", f"## {group.title}", "", f"{done} of {len(points)} runs (`--only {name}`).", "", *group.table()]
    return "\n".join(lines)


def main() -> int:
    """Train what is missing, then fill the page."""
    parser = argparse.ArgumentParser(prog="python -m bitwright.sw.results", description=__doc__)
    parser.add_argument("--only", choices=GROUPS, action="append", help="run this group, again for more; default all")
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin no run after so many; default no limit")
    parser.add_argument("--page", action="store_true", help="run nothing, fill the page")
    options = parser.parse_args()
    started = time.monotonic()
    failed = []
    for name in [] if options.page else options.only or list(GROUPS):
        for point in GROUPS[name].points():
            if point.done or time.monotonic() - started > 60 * options.minutes:
                continue
            try:
                point.run()
            except BitwrightError as error:
                failed.append(point.name)
                sys.stderr.write(f"results: {point.name}: {error}\n")
                continue
            sys.stdout.write(f"{point.name}: {point.accuracy:.2f} %\n")
            sys.stdout.flush()
    fill_page(PAGE, page())
    sys.stdout.write(json.dumps({"written": [str(PAGE)], "failed": failed}) + "\n")
    return 2 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
