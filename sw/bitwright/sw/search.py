"""Greedy layerwise search for the fewest bits, by Moons et al. (WACV 2016, arXiv 1603.06777).

From the first layer to the last: lower the bits of the layer's *input* while the accuracy on the validation images
stays at the target, then the bits of its *weights*; freeze both and go on. Layers not yet visited compute in float.
With fine-tuning, a candidate that fails is trained, from the layer on, and judged again; if it passes, its weights are
kept.

Layers before the current one never run again: what enters the current layer is kept for all validation images. A
candidate is given up as soon as the images that remain could not save it. Every candidate is a line of
``search.jsonl``; a search that was stopped replays these lines instead of computing them again.
"""

import copy
import hashlib
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bitwright.hw.errors import BitwrightError
from bitwright.hw.isa import ArraySpec
from bitwright.sw.config import SearchConfig, TrainConfig
from bitwright.sw.quantize import Recipe, calibrate, quantize
from bitwright.sw.quantizers import ActivationQuantizer, method
from bitwright.sw.residual import QuantizedShortcut, Residual
from bitwright.sw.runs import Run, load_parameters, read_json, read_lines, save_tensors, write_json, write_lines
from bitwright.sw.stages import Values, execute, stages, walk
from bitwright.sw.training import (
    EVALUATION_BATCH,
    Images,
    batches,
    descend,
    evaluate,
    load_model,
    make_optimizer,
    pick_device,
    progress_bar,
    repeatable,
    seed_everything,
    set_learning_rate,
    stopping,
)

Assignment = Mapping[str, Mapping[str, int | None]]
"""Bits of each layer, ``{"conv1": {"input": 3, "weight": None}}``; None: in float."""


@dataclass(frozen=True)
class SearchResult:
    """What the search found; ``search.json`` holds the same.

    Attributes
    ----------
    bits
        Bits found, ``{layer: {"input": bits, "weight": bits}}``; None for the weights that an average pooling lacks.
    validation_accuracy, test_accuracy
        Of the network found, 0..1. The test images took no part in the search.
    float_validation_accuracy, float_test_accuracy
        Of the float network.
    target, target_met
        Validation accuracy that candidates had to reach, and whether the network found does: it does not where even
        the most bits allowed lose too much.
    candidates
        Number of candidates judged.
    layer_evaluations
        Passes of all validation images through one layer that the search took; a candidate that is given up early
        counts with the share of images it saw. Calibration and training are not counted.
    whole_network_layer_evaluations
        The same for a search that tries bits from the top down and runs the whole network for each candidate.
    uniform
        Networks with the same bits everywhere, never fine-tuned, for comparison, each with all 8 bits of the image and
        with as many as elsewhere: ``bits``, ``image_bits``, ``assignment``, ``validation_accuracy``,
        ``test_accuracy``.
    """

    bits: Assignment
    validation_accuracy: float
    test_accuracy: float
    float_validation_accuracy: float
    float_test_accuracy: float
    target: float
    target_met: bool
    candidates: int
    layer_evaluations: float
    whole_network_layer_evaluations: int
    uniform: list[dict[str, Any]]


def search(folder: str | Path, progress: bool = True, data_root: str | Path | None = None) -> SearchResult:
    """Search the bits of each layer of a trained float run, or go on with a search that was stopped.

    Writes ``search.jsonl`` (trace), ``search.json`` (result) and ``quantized.safetensors`` into the run directory.

    Parameters
    ----------
    folder
        Run directory of a float run; its ``[search]`` section says what to search.
    progress
        Show a progress bar, where standard error is a terminal.
    data_root
        Folder of the data set; see :func:`bitwright.sw.data.load`.

    Raises
    ------
    Interrupted
        At Ctrl-C. The trace holds all candidates judged.
    """
    run = Run(folder)
    images = Images.load(run.config.data, data_root)
    with repeatable(run.config.train.threads), stopping(f"The search in {run.folder}"), progress_bar(progress) as bar:
        greedy = _Search(run, images)
        task = bar.add_task("search", total=sum(map(len, greedy.searched)))
        for index, layer in enumerate(greedy.layers):
            for which in greedy.searched[index]:
                bar.update(task, description=f"{layer} {which}")
                greedy.settle(index, which)
                bar.advance(task)
            greedy.freeze(index)
        return greedy.finish()


def load_quantized(
    folder: str | Path, bits: Assignment | None = None, data_root: str | Path | None = None
) -> nn.Sequential:
    """Rebuild a quantized network of a searched run, in evaluation mode on the CPU.

    Parameters
    ----------
    folder
        Run directory.
    bits
        Bits of each layer, for a network of the run's float parameters, calibrated; absent: the network found.
    data_root
        Folder of the data set, which calibration needs.
    """
    run = Run(folder)
    settings = run.config.search
    network = load_model(folder)
    if bits is None:
        network = assemble(network, read_json(run.search_path)["bits"], settings)
        load_parameters(network, run.quantized_path)
    else:
        network = assemble(network, bits, settings)
        calibrate(network, Images.load(run.config.data, data_root).train_pixels[: settings.calibration_images])
    return network.eval()


def assemble(network: nn.Sequential, bits: Assignment, settings: SearchConfig) -> nn.Sequential:
    """Quantize a copy of a float network with the given bits; what has none stays in float."""
    keys = {"input": "activation_bits", "weight": "weight_bits"}
    layers = {layer: {keys[which]: value for which, value in chosen.items()} for layer, chosen in bits.items()}
    return quantize(network, Recipe(weights=settings.weights, activations=settings.activations, layers=layers)).eval()


class Segment(nn.Module):
    """Successive modules of a network, as :func:`bitwright.sw.stages.walk` gives them.

    Takes and gives a tensor, or where residual blocks are open the :data:`~bitwright.sw.stages.Values`.
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        super().__init__()
        self.steps = tuple(modules)
        # A residual block only marks a place here; its modules are those of the segments that it reaches over.
        self.owned = nn.ModuleList(module for module in modules if not isinstance(module, Residual))

    def forward(self, values: Tensor | Values) -> Tensor | Values:
        """Run the modules."""
        values = execute(self.steps, values if isinstance(values, tuple) else (values,))
        return values if len(values) > 1 else next(iter(values))


def segments(network: nn.Sequential) -> list[Segment]:
    """Cut a network before the source of each layer's input; a segment has one layer."""
    sources = [stage.source for stage in stages(network)]
    found: list[list[nn.Module]] = []
    for _, module in walk(network):
        if any(module is source for source in sources):
            found.append([])
        found[-1].append(module)
    return [Segment(modules) for modules in found]


def fewest_bits(passes: Callable[[int], bool], lowest: int, highest: int, order: str) -> int:
    """Fewest bits that pass, or ``highest`` if none does.

    Parameters
    ----------
    passes
        Judges one number of bits.
    lowest, highest
        Range to try.
    order
        ``down``: from ``highest`` to the first failure. ``up``: from ``lowest`` to the first success.
    """
    if order == "up":
        return next((bits for bits in range(lowest, highest + 1) if passes(bits)), highest)
    failed = next((bits for bits in range(highest, lowest - 1, -1) if not passes(bits)), lowest - 1)
    return min(failed + 1, highest)


@dataclass(frozen=True)
class _Measurement:
    """Accuracy of a candidate on the images that it saw: all of them if it passed."""

    accuracy: float
    images: int
    passed: bool


class _Search:
    """State of a search: what is frozen, and what enters the current layer.

    Attributes
    ----------
    network
        Float network; fine-tuning replaces it.
    layers
        Names of its layers.
    searched
        Whose bits to search in each: ``input``, and ``weight`` where there are weights.
    bits
        Bits settled so far.
    """

    def __init__(self, run: Run, images: Images) -> None:
        if run.config.quantize is not None:
            raise BitwrightError(f"{run.folder} was trained with quantizers; search a float run (without [quantize]).")
        if "training" not in run.manifest():
            raise BitwrightError(f"{run.folder} has no finished training; let bitwright train finish it first.")
        self._run, self._images, self._settings = run, images, run.config.search
        self._device = pick_device(run.config.train.device)
        self.network = load_model(run.folder).to(self._device)
        found = stages(self.network)
        self.layers = [stage.name for stage in found]
        self.searched = [("input", "weight") if stage.weighted else ("input",) for stage in found]
        self.bits: dict[str, dict[str, int | None]] = {layer: {"input": None, "weight": None} for layer in self.layers}
        self._trace = self._earlier_trace()
        self._judged = 0  # lines of the trace passed in this process, replayed or new
        self._scales: dict[str, dict[str, Any]] = {}  # states of the quantizers of frozen layers' inputs
        self._layer_evaluations, self._whole_network_layer_evaluations = 0.0, 0

        count = self._settings.validation_images
        pixels, self._labels = images.validation_pixels[:count], images.validation_labels[:count]
        self._inputs: list[Tensor | Values] = [batch.to(self._device) for batch in pixels.split(EVALUATION_BATCH)]
        self._calibration: Tensor | Values = images.train_pixels[: self._settings.calibration_images].to(self._device)
        self._float_accuracy = evaluate(self.network, pixels, self._labels), self._test(self.network)
        correct = round(self._float_accuracy[0] * len(self._labels))
        self._needed = math.ceil(Fraction(str(self._settings.relative_accuracy)) * correct)

        tuned = [entry["weights"] for entry in self._trace if entry["weights"] is not None]
        if tuned:  # later tuning leaves frozen layers as they are: the last weights serve for the whole replay
            load_parameters(self.network, run.checkpoint(tuned[-1]))

    def settle(self, index: int, which: str) -> None:
        """Find the bits of the input or the weight of one layer."""
        first_input = which == "input" and index == 0
        methods = method(self._settings.activations), method(self._settings.weights)
        offered = (
            range(1, 9) if first_input else methods[0].activation_bits if which == "input" else methods[1].weight_bits
        )
        array = ArraySpec.from_mapping(self._run.config.array)
        # An image of more bits is given to the array as digits.
        held = 8 if first_input else array.activation_planes_max if which == "input" else array.weight_planes_max
        lowest, highest = max(self._settings.min_bits, offered[0]), min(self._settings.max_bits, offered[-1], held)
        if lowest > highest:
            raise BitwrightError(
                f"[search] allows {self._settings.min_bits} to {self._settings.max_bits} bits, but the method of the "
                f"{which} bits offers {offered[0]} to {offered[-1]}, and [array] takes up to {held}; widen min_bits "
                "and max_bits, or choose another array."
            )
        found = fewest_bits(lambda bits: self._passes(index, which, bits), lowest, highest, self._settings.order)
        self.bits[self.layers[index]][which] = found
        tried_from_the_top = highest - found + 1 + (found > lowest)
        self._whole_network_layer_evaluations += tried_from_the_top * len(self.layers)

    @torch.no_grad()
    def freeze(self, index: int) -> None:
        """Keep what the settled layer passes on, in place of what enters it."""
        network = self._assembled(self.network, self.bits, index)
        source = stages(network)[index].source
        if isinstance(source, ActivationQuantizer):
            self._scales[self.layers[index]] = source.state_dict()
        if index + 1 < len(self.layers):
            segment = segments(network)[index]
            self._inputs = [segment(batch) for batch in self._inputs]
            self._calibration = segment(self._calibration)
            self._layer_evaluations += 1

    def finish(self) -> SearchResult:
        """Measure and save the network found, and networks to compare it with."""
        network = self._assembled(self.network, self.bits, len(self.layers))
        validation_accuracy = self._validate(network)
        result = SearchResult(
            bits=self.bits,
            validation_accuracy=validation_accuracy,
            test_accuracy=self._test(network),
            float_validation_accuracy=self._float_accuracy[0],
            float_test_accuracy=self._float_accuracy[1],
            target=self._needed / len(self._labels),
            target_met=validation_accuracy >= self._needed / len(self._labels),
            candidates=len(self._trace),
            layer_evaluations=round(self._layer_evaluations, 3),
            whole_network_layer_evaluations=self._whole_network_layer_evaluations,
            uniform=self._uniform(),
        )
        save_tensors(self._run.quantized_path, network.state_dict())
        write_json(self._run.search_path, asdict(result))
        return result

    def _earlier_trace(self) -> list[dict[str, Any]]:
        """Trace of a stopped search with the same settings and parameters."""
        checkpoint = self._run.checkpoint("best")
        identity = {
            "settings": self._settings.model_dump(exclude={"uniform_bits"}),
            "checkpoint_sha256": hashlib.sha256(checkpoint.read_bytes()).hexdigest(),
        }
        if self._run.trace_path.exists():
            if self._run.manifest().get("search") != identity:
                raise BitwrightError(
                    f"{self._run.trace_path} is the trace of another search, with other settings or parameters; "
                    "delete it to search anew."
                )
            trace = read_lines(self._run.trace_path)
        else:
            trace = []
            self._run.record(search=identity)
        write_lines(self._run.trace_path, trace)  # without a line that a kill cut off
        return trace

    def _passes(self, index: int, which: str, bits: int) -> bool:
        """Judge a candidate, or read the judgement from the trace."""
        layer = self.layers[index]
        candidate = {**self.bits, layer: {**self.bits[layer], which: bits}}
        if self._judged == len(self._trace):
            self._append({"layer": layer, "which": which, "bits": bits} | self._judge(index, candidate))
        entry = self._trace[self._judged]
        if entry["assignment"] != candidate:
            raise BitwrightError(
                f"{self._run.trace_path} has another candidate in line {self._judged + 1} than this search, "
                f"{which} bits {bits} of layer {layer!r}; delete it to search anew."
            )
        self._judged += 1
        self._layer_evaluations += (len(self.layers) - index) * entry["evaluated"]
        return entry["accepted"]

    def _judge(self, index: int, candidate: Assignment) -> dict[str, Any]:
        """Measure a candidate; train it and measure again if it fails and fine-tuning is on."""
        first = final = self._measure(self._assembled(self.network, candidate, index), index)
        tuned, weights = None, None
        if not first.passed and self._settings.fine_tune_epochs:
            tuned = self._tuned(index, candidate)
            final = self._measure(self._assembled(tuned, candidate, index), index)
            if final.passed:
                self.network, weights = tuned, f"search-{self._judged + 1}"
                save_tensors(self._run.checkpoint(weights), tuned.state_dict())
        return {
            "accuracy": final.accuracy,
            "images": final.images,
            "accepted": final.passed,
            "untuned_accuracy": None if tuned is None else first.accuracy,
            "evaluated": (first.images + (0 if tuned is None else final.images)) / len(self._labels),
            "weights": weights,
            "assignment": candidate,
        }

    def _append(self, entry: dict[str, Any]) -> None:
        """Add a line to the trace, and remove weights that it makes obsolete."""
        with self._run.trace_path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._trace.append(entry)
        if entry["weights"] is not None:
            for earlier in self._trace[:-1]:
                if earlier["weights"] is not None:
                    self._run.checkpoint(earlier["weights"]).unlink(missing_ok=True)

    def _assembled(self, network: nn.Sequential, bits: Assignment, index: int) -> nn.Sequential:
        """Quantized network, with the scales of frozen layers, and that of layer ``index`` from what enters it."""
        quantized = assemble(network, bits, self._settings)
        entering, *_ = self._calibration if isinstance(self._calibration, tuple) else (self._calibration,)
        for layer, stage in enumerate(stages(quantized)):
            if stage.weight_quantizer is not None:
                stage.weight_quantizer.calibrate(stage.real_weight)
            if isinstance(stage.source, ActivationQuantizer):
                if layer < index:
                    stage.source.load_state_dict(self._scales[stage.name])
                else:
                    stage.source.fit(entering)
            if isinstance(stage.shortcut, QuantizedShortcut):
                stage.shortcut.fit()
        return quantized

    @torch.no_grad()
    def _measure(self, network: nn.Sequential, index: int) -> _Measurement:
        """Classify the validation images from what enters layer ``index``, as long as the target can be reached."""
        rest = nn.Sequential(*segments(network)[index:])
        correct = images = 0
        for batch, labels in zip(self._inputs, self._labels.split(EVALUATION_BATCH), strict=True):
            correct += int((rest(batch).argmax(1).cpu() == labels).sum())
            images += len(labels)
            if correct + len(self._labels) - images < self._needed:
                break
        return _Measurement(correct / images, images, correct >= self._needed)

    def _tuned(self, index: int, candidate: Assignment) -> nn.Sequential:
        """Train a candidate from layer ``index`` on; return the float network with the parameters it got."""
        network = self._assembled(self.network, candidate, index)
        parts = segments(network)
        before, rest = nn.Sequential(*parts[:index]).eval(), nn.Sequential(*parts[index:]).train()
        epochs, rate = self._settings.fine_tune_epochs, self._settings.fine_tune_learning_rate
        optimizer = make_optimizer(rest, TrainConfig(epochs=epochs, learning_rate=rate))
        set_learning_rate(optimizer, rate)
        train = self._run.config.train
        for epoch in range(epochs):
            generator = seed_everything(train.seed, 1_000_000 * (self._judged + 1) + epoch)  # apart from training's
            for pixels, labels in batches(self._images, train.batch_size, self._run.config.data, generator):
                with torch.no_grad():
                    inputs = before(pixels.to(self._device))
                descend(rest, optimizer, inputs, labels.to(self._device))
        tuned = copy.deepcopy(self.network)
        state = tuned.state_dict()
        trained = {
            name.replace(".parametrizations.weight.original", ".weight"): tensor
            for name, tensor in network.state_dict().items()
            if not name.endswith("_extra_state")
        }
        tuned.load_state_dict(state | {name: trained[name] for name in state.keys() & trained.keys()})
        return tuned

    def _validate(self, network: nn.Sequential) -> float:
        return evaluate(network, self._images.validation_pixels[: len(self._labels)], self._labels)

    def _test(self, network: nn.Sequential) -> float:
        return evaluate(network, self._images.test_pixels, self._images.test_labels)

    def _uniform(self) -> list[dict[str, Any]]:
        """Networks with the same bits everywhere, as far as the methods offer them."""
        untuned = load_model(self._run.folder).to(self._device)
        weights, activations = method(self._settings.weights), method(self._settings.activations)
        measured = []
        for bits in self._settings.uniform_bits:
            if bits not in weights.weight_bits or bits not in activations.activation_bits:
                continue
            for image_bits in dict.fromkeys((8, bits)):
                assignment = {layer: {"input": bits, "weight": bits} for layer in self.layers}
                assignment[self.layers[0]]["input"] = image_bits
                network = assemble(untuned, assignment, self._settings)
                calibrate(network, self._images.train_pixels[: self._settings.calibration_images])
                accuracies = {"validation_accuracy": self._validate(network), "test_accuracy": self._test(network)}
                measured.append({"bits": bits, "image_bits": image_bits, "assignment": assignment} | accuracies)
        return measured
