"""Training, in float or with quantizers, from one configuration into one run directory.

Everything random in an epoch follows from the seed and the number of the epoch, and the learning rate from the number
of the step. Training that was stopped after any epoch therefore continues exactly as if it had not been, from the
parameters and the optimizer alone.
"""

import io
import math
import os
import pickle
import random
import time
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize
from torch.utils import deterministic

from bitwright.hw.errors import BitwrightError
from bitwright.hw.files import replacing
from bitwright.sw import data, models
from bitwright.sw.config import Config, DataConfig, QuantizeConfig, TrainConfig, first_difference
from bitwright.sw.quantize import Recipe, calibrate, constrain_weights, quantize, quantize_share
from bitwright.sw.runs import Run, load_parameters, save_tensors, write_lines
from bitwright.sw.stages import parametrized

EVALUATION_BATCH = 100  # images; the same everywhere, so that the same network gives the same floats


CALIBRATION_IMAGES = 1024  # training images that set the ranges of activations


class Interrupted(BitwrightError):  # noqa: N818 (an event, not a mistake)
    """The user stopped a long step; the sentence says how to go on."""


@dataclass(frozen=True)
class Images:
    """Pixels, uint8 of shape (N, C, H, W), and labels, int64 of shape (N,), of a data set in three parts.

    The validation part is the same for every seed, so that a run that starts from another one has never seen it.
    """

    source: data.Dataset
    train_pixels: Tensor
    train_labels: Tensor
    validation_pixels: Tensor
    validation_labels: Tensor
    test_pixels: Tensor
    test_labels: Tensor

    @classmethod
    def load(cls, config: DataConfig, root: str | Path | None = None) -> "Images":
        """Load a data set from ``root`` (see :func:`bitwright.sw.data.load`) and set validation images aside."""
        source = data.load(config.name, root)
        order = np.random.default_rng(0).permutation(len(source.train_labels))
        aside = round(config.validation * len(order))
        if not 0 < aside < len(order):
            raise BitwrightError(
                f"data.validation is {config.validation}, which is {aside} of {len(order)} training images; "
                "choose a share that leaves some on both sides."
            )
        left = len(order) - aside
        if config.images is not None and config.images > left:
            raise BitwrightError(f"data.images is {config.images}, expected at most the {left} that are left to train.")
        pixels, labels = torch.tensor(source.train_images), torch.tensor(source.train_labels)
        validation, train = torch.from_numpy(order[:aside]), torch.from_numpy(order[aside:][: config.images])
        return cls(
            source=source,
            train_pixels=pixels[train],
            train_labels=labels[train],
            validation_pixels=pixels[validation],
            validation_labels=labels[validation],
            test_pixels=torch.tensor(source.test_images),
            test_labels=torch.tensor(source.test_labels),
        )

    def describe(self) -> dict[str, Any]:
        """What the manifest says about the images."""
        parts = {"train": self.train_labels, "validation": self.validation_labels, "test": self.test_labels}
        return {
            "name": self.source.name,
            "provenance": self.source.provenance,
            "sha256": self.source.checksum,
            "in_shape": self.source.in_shape,
            "classes": len(self.source.classes),
            "images": {part: len(labels) for part, labels in parts.items()},
        }


@dataclass(frozen=True)
class TrainResult:
    """What training reached.

    Attributes
    ----------
    folder
        Run directory.
    epochs
        Number of epochs trained, those before a resume included.
    best_epoch
        Epoch of the best checkpoint, from 1.
    validation_accuracy, test_accuracy
        Of the best checkpoint, 0..1. Only the validation images chose it.
    seconds
        Time in the training loop, over all resumes.
    """

    folder: str
    epochs: int
    best_epoch: int
    validation_accuracy: float
    test_accuracy: float
    seconds: float


def train(
    config: Config, folder: str | Path, progress: bool = True, data_root: str | Path | None = None
) -> TrainResult:
    """Train a network, or go on with a training that was stopped.

    Parameters
    ----------
    config
        What to train: sections ``[data]``, ``[model]``, ``[train]``, and ``[quantize]`` for training with quantizers.
    folder
        Run directory to make, or to resume: one of the same configuration.
    progress
        Show a progress bar, where standard error is a terminal.
    data_root
        Folder of the data set; see :func:`bitwright.sw.data.load`.

    Raises
    ------
    Interrupted
        At Ctrl-C. The run directory holds the last complete epoch.
    BitwrightError
        If the configuration is impossible, the folder unusable, or the loss not finite.
    """
    settings = config.train
    images = Images.load(config.data, data_root)
    device = pick_device(settings.device)
    with repeatable(settings.threads):
        seed_everything(settings.seed, 0)
        model = initial_model(config, images).to(device)
        _check_batches(model, images, settings)
        run = Run.create(folder, config)
        optimizer = make_optimizer(model, settings)
        history = _resume(run, model, optimizer)
        run.record(seed=settings.seed, device=str(device), threads=torch.get_num_threads(), data=images.describe())
        steps = max(1, len(images.train_labels) // settings.batch_size)
        ratios = _ratios(config)
        epochs = settings.epochs * len(ratios)
        if not history:
            constrain_weights(model)

        with stopping(f"Training into {run.folder}"), progress_bar(progress) as bar:
            task = bar.add_task(run.folder.name, total=epochs * steps, completed=len(history) * steps)
            for epoch in range(len(history), epochs):
                started = time.perf_counter()
                generator = seed_everything(settings.seed, epoch + 1)
                stage, epoch_of_stage = divmod(epoch, settings.epochs)
                if epoch_of_stage == 0:
                    optimizer.state.clear()  # every stage begins with a new optimizer
                quantize_share(model, ratios[stage])
                model.train()
                total_loss = 0.0
                for step, (pixels, labels) in enumerate(batches(images, settings.batch_size, config.data, generator)):
                    set_learning_rate(optimizer, learning_rate(settings, epoch_of_stage * steps + step, steps))
                    loss = descend(model, optimizer, pixels.to(device), labels.to(device))
                    total_loss += _finite(loss, epoch, step, settings)
                    bar.advance(task)
                _check_finite(model, epoch, settings)
                accuracy = evaluate(model, images.validation_pixels, images.validation_labels)
                history.append(
                    {
                        "epoch": epoch + 1,
                        "loss": total_loss / steps,
                        "validation_accuracy": accuracy,
                        "seconds": time.perf_counter() - started,
                    }
                )
                _save(run, model, optimizer, history)
                bar.update(task, description=f"{run.folder.name} {accuracy:.2%}")

            load_parameters(model, run.checkpoint("best"))
            best = _best(history)
            result = TrainResult(
                folder=str(run.folder),
                epochs=len(history),
                best_epoch=best["epoch"],
                validation_accuracy=best["validation_accuracy"],
                test_accuracy=evaluate(model, images.test_pixels, images.test_labels),
                seconds=sum(entry["seconds"] for entry in history),
            )
    run.record(training=asdict(result))
    return result


def load_model(folder: str | Path, which: str = "best") -> nn.Sequential:
    """Rebuild the network of a run, in evaluation mode on the CPU.

    Parameters
    ----------
    folder
        Run directory.
    which
        Checkpoint: ``best`` or ``last``.

    Returns
    -------
    nn.Sequential
        Takes pixels 0..255, shape (N, C, H, W); with quantizers if the run was trained with them.
    """
    run = Run(folder)
    description = run.manifest().get("data")
    if description is None:
        raise BitwrightError(f"{folder} has no manifest.json of a training; train into it first.")
    model = _build(run.config, tuple(description["in_shape"]), description["classes"])
    if run.config.quantize is not None:
        model = quantize(model, recipe(run.config.quantize))
    load_parameters(model, run.checkpoint(which))
    return model.eval()


def initial_model(config: Config, images: Images) -> nn.Sequential:
    """Build the network that training begins with: fresh, or from the float run ``train.init``; quantized as asked."""
    model = _build(config, images.source.in_shape, len(images.source.classes))
    if config.train.init is not None:
        source = Run(config.train.init)
        difference = first_difference(source.config, config, ("data", "model"))
        if source.config.quantize is not None:
            difference = "it is quantized"
        if difference is not None:
            raise BitwrightError(
                f"train.init is {config.train.init}, which does not fit ({difference}); give a float run of the same "
                "data and model."
            )
        load_parameters(model, source.checkpoint("best"))
    if config.quantize is not None:
        model = quantize(model, recipe(config.quantize))
        if config.train.init is not None:
            calibrate(model, images.train_pixels[:CALIBRATION_IMAGES])
    return model


def recipe(config: QuantizeConfig) -> Recipe:
    """Turn ``[quantize]`` into what :func:`bitwright.sw.quantize.quantize` takes."""
    values = config.model_dump(exclude={"stochastic": {"ratios"}})
    return Recipe(**values | {"layers": config.model_dump(exclude_none=True)["layers"]})


def _build(config: Config, in_shape: tuple[int, int, int], classes: int) -> nn.Sequential:
    """Build the float network, which takes pixels like the quantized one."""
    model = models.build(config.model.name, in_shape, classes, **config.model.options)
    return quantize(model, Recipe(weight_bits=None, activation_bits=None))


def descend(model: nn.Module, optimizer: torch.optim.Optimizer, pixels: Tensor, labels: Tensor) -> float:
    """Make one step of training; return the loss before it."""
    optimizer.zero_grad()
    loss = functional.cross_entropy(model(pixels), labels)
    loss.backward()
    optimizer.step()
    constrain_weights(model)
    return loss.item()


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of the next step; methods that scale their updates get it scaled."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("rate_scale", 1.0)


def learning_rate(settings: TrainConfig, step: int, steps: int) -> float:
    """Learning rate of a step, counted from 0 over the whole training of ``steps`` steps an epoch."""
    if settings.schedule == "cosine":
        return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * step / (settings.epochs * steps)))
    if settings.schedule == "step":
        return settings.learning_rate * settings.step_factor ** (step // steps // settings.step_epochs)
    if settings.schedule == "milestones":
        return settings.learning_rate * settings.step_factor ** bisect_right(settings.milestones, step // steps)
    return settings.learning_rate


def seed_everything(seed: int, epoch: int) -> torch.Generator:
    """Seed Python, NumPy and PyTorch for one epoch; return a generator for the order of its images."""
    first, second = (int(word) for word in np.random.SeedSequence([seed, epoch]).generate_state(2))
    random.seed(first)
    np.random.seed(first)  # noqa: NPY002 (code of others may draw from it)
    torch.manual_seed(first)
    return torch.Generator().manual_seed(second)


def batches(
    images: Images, size: int, augmentation: DataConfig, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """Give one epoch of training (pixels, labels), in an order drawn from ``generator``, augmented.

    Images that do not fill a last batch are left out of this epoch: batch norm cannot learn from one or two.
    """
    order = torch.randperm(len(images.train_labels), generator=generator)
    for chosen in order[: max(1, len(order) // size) * size].split(size):
        yield augment(images.train_pixels[chosen], augmentation, generator), images.train_labels[chosen]


def augment(pixels: Tensor, augmentation: DataConfig, generator: torch.Generator) -> Tensor:
    """Shift and mirror each image of a batch (N, C, H, W) at random; pixels beyond the border repeat it."""
    shift, flip = augmentation.shift, augmentation.flip
    if shift == 0 and not flip:
        return pixels
    count, channels, height, width = pixels.shape
    dy, dx = torch.randint(-shift, shift + 1, (2, count, 1), generator=generator)
    rows = (torch.arange(height) + dy).clamp(0, height - 1)
    columns = (torch.arange(width) + dx).clamp(0, width - 1)
    if flip:
        mirrored = torch.rand(count, 1, generator=generator) < 0.5
        columns = torch.where(mirrored, width - 1 - columns, columns)
    image, channel = torch.arange(count)[:, None, None, None], torch.arange(channels)[:, None, None]
    return pixels[image, channel, rows[:, None, :, None], columns[:, None, None, :]]


@torch.no_grad()
def evaluate(model: nn.Module, pixels: Tensor, labels: Tensor) -> float:
    """Share of the images that the model classifies correctly, 0..1; puts the model into evaluation mode."""
    model.eval()
    device = next(model.parameters()).device
    correct = 0
    with parametrize.cached():  # weights are quantized once
        for image, label in zip(pixels.split(EVALUATION_BATCH), labels.split(EVALUATION_BATCH), strict=True):
            correct += int((model(image.to(device)).argmax(1).cpu() == label).sum())
    return correct / len(labels)


def pick_device(name: str) -> torch.device:
    """Turn ``auto``, ``cpu`` or ``cuda`` into a device."""
    if name == "cuda" and not torch.cuda.is_available():
        raise BitwrightError('train.device is "cuda", but PyTorch finds no GPU here; use "auto" or "cpu".')
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


@contextmanager
def repeatable(threads: int | None) -> Iterator[None]:
    """Make PyTorch compute the same bits every time, on ``threads`` CPU threads."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS repeats itself only with a fixed workspace
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    memory: Any = deterministic
    filled = memory.fill_uninitialized_memory
    torch.set_num_threads(threads or before[0])
    torch.use_deterministic_algorithms(True)
    # PyTorch would write NaN into all new memory, a tenth of a step's time. No module reads what it has not written.
    memory.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        torch.use_deterministic_algorithms(before[1])
        memory.fill_uninitialized_memory = filled


@contextmanager
def progress_bar(shown: bool) -> Iterator[Progress]:
    """A progress bar on standard error, hidden where that is no terminal."""
    console = Console(stderr=True)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, disable=not (shown and console.is_terminal)) as bar:
        yield bar


@contextmanager
def stopping(what: str) -> Iterator[None]:
    """Turn Ctrl-C into one sentence."""
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(
            f"{what} was interrupted and keeps what is complete; run the same command to go on."
        ) from None


def make_optimizer(model: nn.Module, settings: TrainConfig) -> torch.optim.Optimizer:
    """Make the optimizer of a training; methods that scale their updates get groups of their own."""
    parameters, decay = _parameter_groups(model), settings.weight_decay
    if settings.optimizer == "sgd":
        return torch.optim.SGD(parameters, settings.learning_rate, momentum=settings.momentum, weight_decay=decay)
    return torch.optim.Adam(parameters, settings.learning_rate, weight_decay=decay)


def _parameter_groups(model: nn.Module) -> list[dict[str, Any]]:
    """Parameters by the scale of their updates, which both optimizers make proportional to the learning rate."""
    scales: dict[int, float] = {}
    for module in model.modules():
        quantizer, weight = parametrized(module)
        if quantizer is not None:
            scales[id(weight)] = quantizer.rate_scale(weight)
    groups: dict[float, list[nn.Parameter]] = {}
    for parameter in model.parameters():
        groups.setdefault(scales.get(id(parameter), 1.0), []).append(parameter)
    return [{"params": parameters, "rate_scale": scale} for scale, parameters in groups.items()]


def _ratios(config: Config) -> list[float]:
    """Shares of quantized weights of all stages of training: without stochastic quantization one stage."""
    stochastic = config.quantize.stochastic if config.quantize is not None else None
    return [1.0] if stochastic is None else stochastic.ratios


def _check_batches(model: nn.Module, images: Images, settings: TrainConfig) -> None:
    """Refuse batches of one image where a batch norm would get one value of each channel."""
    alone = min(settings.batch_size, len(images.train_labels)) == 1
    if alone and any(isinstance(module, nn.BatchNorm1d) for module in model.modules()):
        raise BitwrightError(
            "The batches have one image, of which batch norm after a fully connected layer learns nothing; set "
            "train.batch_size to at least 2."
        )


def _check_finite(model: nn.Module, epoch: int, settings: TrainConfig) -> None:
    """Refuse NaN and infinity, which a sign or a comparison may hide from the loss: batch norm remembers them."""
    for name, value in model.state_dict().items():
        if not value.isfinite().all():
            raise BitwrightError(
                f"{name} is NaN or infinite after epoch {epoch + 1}, expected finite numbers; lower "
                f"train.learning_rate, now {settings.learning_rate}."
            )


def _finite(loss: float, epoch: int, step: int, settings: TrainConfig) -> float:
    if not math.isfinite(loss):
        raise BitwrightError(
            f"The loss is {loss} in epoch {epoch + 1}, step {step + 1}, expected a finite number; "
            f"lower train.learning_rate, now {settings.learning_rate}."
        )
    return loss


def _best(history: list[dict[str, Any]]) -> dict[str, Any]:
    """Entry of the best epoch, the latest among equals."""
    return max(reversed(history), key=lambda entry: entry["validation_accuracy"])


def _save(run: Run, model: nn.Module, optimizer: torch.optim.Optimizer, history: list[dict[str, Any]]) -> None:
    """Save an epoch. The state is written last: a kill before it makes the resumed run repeat this epoch."""
    parameters = model.state_dict()
    if _best(history) is history[-1]:
        save_tensors(run.checkpoint("best"), parameters)
    save_tensors(run.checkpoint("last"), parameters)
    write_lines(run.history_path, history)
    state = io.BytesIO()  # PyTorch's own writer names no reason where the disk is full
    torch.save({"model": parameters, "optimizer": optimizer.state_dict(), "history": history}, state)
    with replacing(run.state_path) as temporary:
        temporary.write_bytes(state.getbuffer())


def _resume(run: Run, model: nn.Module, optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """Load the state of the last complete epoch, if there is one; return the history so far."""
    if not run.state_path.exists():
        return []
    try:
        state = torch.load(run.state_path, map_location="cpu", weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
    except (RuntimeError, OSError, KeyError, ValueError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0]
        raise BitwrightError(f"{run.state_path} is damaged ({reason}); delete {run.folder} and train again.") from error
    return state["history"]
