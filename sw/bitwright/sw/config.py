"""Configuration files: TOML in, checked and frozen objects out, one sentence for a mistake.

A file has a section for each step of the pipeline: ``[data]``, ``[model]``, ``[train]``, and as needed
``[quantize]`` (training with quantizers), ``[search]`` (bits per layer) and ``[array]`` (the accelerator).
``sw/recipes/`` has examples.
"""

import difflib
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import tomlkit
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails

from bitwright.hw.errors import BitwrightError
from bitwright.hw.isa import ArraySpec

# The description of a field completes the sentence "found ..., expected <description>".
Bits = Annotated[int, Field(ge=1, le=8, description="an integer from 1 to 8")]
Count = Annotated[int, Field(ge=1, description="a positive integer")]
Share = Annotated[float, Field(ge=0, lt=1, description="a number from 0 up to, not including, 1")]
Positive = Annotated[float, Field(gt=0, description="a positive number")]
Ratio = Annotated[float, Field(gt=0, le=1, description="a number above 0, at most 1")]
NotNegative = Annotated[float, Field(ge=0, description="a number that is not negative")]
Text = Annotated[str, Field(min_length=1, description="a text in quotes")]
Options = Annotated[dict[str, Any], Field(description="a table of the method's options")]
Switch = Annotated[bool, Field(description="true or false")]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class DataConfig(_Section):
    """``[data]``: which images, and what training sees of them.

    Attributes
    ----------
    name
        Name of a data set.
    validation
        Share of the training images kept aside; best checkpoint and bits are chosen on it, never on the test set.
    images
        Train on so many images only; absent: on all that validation leaves.
    shift
        Augmentation: each training image moves by up to so many pixels on each axis; the border is repeated.
    flip
        Augmentation: each training image is mirrored left to right with probability one half.
    """

    name: Text
    validation: Annotated[float, Field(gt=0, lt=1, description="a number between 0 and 1, exclusive")] = 0.1
    images: Count | None = None
    shift: Annotated[int, Field(ge=0, le=16, description="an integer from 0 to 16, in pixels")] = 0
    flip: Switch = False


class ModelConfig(_Section):
    """``[model]``: a network by name, and the options of its builder, such as ``hidden = [64, 32]`` of ``mlp``."""

    name: Text
    options: Annotated[dict[str, Any], Field(description="a table of the model's options")] = {}


class LayerConfig(_Section):
    """What one layer does differently; what is absent is as in the rest of ``[quantize]``."""

    weights: Text | None = None
    weight_bits: Bits | None = None
    weight_options: Options | None = None
    activations: Text | None = None
    activation_bits: Bits | None = None
    activation_options: Options | None = None
    gradient_bits: Bits | None = None


class StochasticConfig(_Section):
    """``[quantize.stochastic]``: training quantizes only a share of the filters, drawn at every step.

    Attributes
    ----------
    function, selection, granularity
        How filters are drawn; see :class:`bitwright.sw.quantizers.stochastic.StochasticWeight`.
    ratios
        Shares that are quantized, one for each stage of training. A stage is a whole training of ``train.epochs`` that
        starts from the weights of the one before, with the learning rate and the optimizer started again.
    """

    function: Annotated[
        Literal["linear", "constant", "softmax", "sigmoid"],
        Field(description='"linear", "constant", "softmax" or "sigmoid"'),
    ] = "linear"
    selection: Annotated[Literal["quantized", "real"], Field(description='"quantized" or "real"')] = "quantized"
    granularity: Annotated[Literal["filter", "element"], Field(description='"filter" or "element"')] = "filter"
    ratios: Annotated[list[Ratio], Field(min_length=1, description="a list of numbers above 0, at most 1")] = [
        0.5,
        0.75,
        0.875,
        1.0,
    ]


class QuantizeConfig(_Section):
    """``[quantize]``: methods and bits of quantization-aware training.

    Attributes
    ----------
    weights, activations
        Names of quantization methods.
    weight_bits, activation_bits, input_bits
        Bits of weights, of activations between layers, and of the image.
    weight_options, activation_options
        Options of the methods: ``weight_options = { scale = "network" }``.
    gradient_bits
        Bits of gradients in training; absent: in float.
    stochastic
        Stochastic quantization of the weights; absent: all are quantized at every step.
    layers
        Exceptions, by layer name or glob: ``[quantize.layers."conv*"]``.
    """

    weights: Text
    weight_bits: Bits
    weight_options: Options = {}
    activations: Text
    activation_bits: Bits
    activation_options: Options = {}
    gradient_bits: Bits | None = None
    input_bits: Bits = 8
    stochastic: Annotated[StochasticConfig | None, Field(description="a table")] = None
    layers: Annotated[dict[str, LayerConfig], Field(description="a table of layers")] = {}


class TrainConfig(_Section):
    """``[train]``: the training loop.

    Attributes
    ----------
    epochs
        Passes of the training images; with stochastic quantization, of each stage.
    schedule
        Learning rate over time: ``cosine`` falls to zero at the end, ``step`` is multiplied by ``step_factor`` after
        every ``step_epochs``, ``milestones`` at each of ``milestones``, ``constant`` stays.
    milestones
        Numbers of complete epochs, rising and below ``epochs``, after which ``step_factor`` applies once more; with
        stochastic quantization, in each stage. Required by this schedule, refused with others.
    momentum
        Of ``sgd``.
    device
        ``auto`` takes a GPU if there is one.
    threads
        CPU threads; absent: as PyTorch chooses. Results repeat bit for bit on one machine at one number of threads.
    init
        Run directory of a float run whose best checkpoint training starts from.
    """

    epochs: Count
    batch_size: Count = 64
    optimizer: Annotated[Literal["adam", "sgd"], Field(description='"adam" or "sgd"')] = "adam"
    learning_rate: Positive = 1e-3
    momentum: Share = 0.9
    weight_decay: NotNegative = 0.0
    schedule: Annotated[
        Literal["cosine", "step", "milestones", "constant"],
        Field(description='"cosine", "step", "milestones" or "constant"'),
    ] = "cosine"
    step_epochs: Count = 10
    step_factor: Ratio = 0.1
    milestones: Annotated[list[Count], Field(description="a list of epochs, rising")] = []
    seed: Annotated[int, Field(ge=0, lt=2**32, description="an integer from 0 to 2^32 - 1")] = 0
    device: Annotated[Literal["auto", "cpu", "cuda"], Field(description='"auto", "cpu" or "cuda"')] = "auto"
    threads: Annotated[int, Field(ge=1, le=1024, description="an integer from 1 to 1024")] | None = None
    init: Text | None = None

    @model_validator(mode="after")
    def _milestones_fit(self) -> "TrainConfig":
        found = f"has milestones {self.milestones}"
        if self.schedule != "milestones":
            if self.milestones:
                raise ValueError(f'{found} and the schedule "{self.schedule}"; set schedule to "milestones".')
        elif not self.milestones:
            raise ValueError('has the schedule "milestones" and none of them; add milestones, such as [80, 120].')
        elif sorted({*self.milestones}) != self.milestones:
            raise ValueError(f"{found}, expected rising epochs, each once; put them in order.")
        elif self.milestones[-1] >= self.epochs:
            raise ValueError(f"{found}, expected epochs before the last, {self.epochs}; remove what lies beyond.")
        return self


class SearchConfig(_Section):
    """``[search]``: the greedy search for the bits of each layer.

    Attributes
    ----------
    weights, activations
        Names of quantization methods.
    relative_accuracy
        The searched network keeps this share of the float network's accuracy on the validation images.
    max_bits, min_bits
        Range of bits tried; a method's own limits narrow it, and what the array takes.
    order
        ``down`` tries the most bits first and goes down to the first failure, as published. ``up`` goes up to the first
        success: fewer evaluations, since failures are cut short, and the same result wherever more bits never lose
        accuracy.
    validation_images
        At most so many images judge a candidate; absent: all of the validation split.
    calibration_images
        So many training images set the ranges of activations.
    fine_tune_epochs, fine_tune_learning_rate
        A candidate that fails is trained for so many epochs and judged again; 0: post-training quantization only.
    uniform_bits
        Networks with the same bits everywhere, measured for comparison, with all 8 bits of the image and with as many
        as elsewhere.
    """

    weights: Text = "fpnn"
    activations: Text = "fpnn"
    relative_accuracy: Annotated[float, Field(gt=0, le=1, description="a number above 0, at most 1")] = 0.99
    max_bits: Bits = 8
    min_bits: Bits = 1
    order: Annotated[Literal["down", "up"], Field(description='"down" or "up"')] = "down"
    validation_images: Count | None = None
    calibration_images: Count = 1024
    fine_tune_epochs: Annotated[int, Field(ge=0, description="an integer that is not negative")] = 0
    fine_tune_learning_rate: Positive = 1e-4
    uniform_bits: Annotated[list[Bits], Field(description="a list of integers from 1 to 8")] = [8, 6, 5, 4, 3, 2]

    @model_validator(mode="after")
    def _range_not_empty(self) -> "SearchConfig":
        if self.min_bits > self.max_bits:
            raise ValueError(f"has min_bits {self.min_bits} above max_bits {self.max_bits}; lower min_bits.")
        return self


class Config(_Section):
    """A whole configuration file.

    ``array`` is the accelerator: ``preset = "edge"``, or parameters by name. It is kept as written, and checked by
    :class:`bitwright.hw.isa.ArraySpec`.
    """

    data: Annotated[DataConfig, Field(description="a table")]
    model: Annotated[ModelConfig, Field(description="a table")]
    train: Annotated[TrainConfig, Field(description="a table")]
    quantize: Annotated[QuantizeConfig | None, Field(description="a table")] = None
    search: Annotated[SearchConfig, Field(description="a table")] = SearchConfig()
    array: Annotated[dict[str, Any], Field(description="a table")] = {"preset": "edge"}

    @field_validator("array")
    @classmethod
    def _is_an_array(cls, values: dict[str, Any]) -> dict[str, Any]:
        ArraySpec.from_mapping(values)
        return values


def load_config(path: str | Path) -> Config:
    """Read a TOML file.

    Raises
    ------
    BitwrightError
        If the file cannot be read, is not TOML, or has a wrong key or value.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise BitwrightError(f"Cannot read {path}: {error.strerror}; give the path of a TOML file.") from error
    except UnicodeDecodeError as error:
        raise BitwrightError(f"{path} is not a text file; give the path of a TOML file.") from error
    return parse_config(text, source=str(path))


def parse_config(text: str, source: str = "the configuration") -> Config:
    """Check the text of a TOML file; ``source`` names it in errors."""
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise BitwrightError(f"{source} is not TOML: {error}; correct that line.") from error
    try:
        return Config.model_validate(table)
    except ValidationError as error:
        errors = error.errors()
        # A misspelt key also leaves one missing: say what was written first.
        first = next((each for each in errors if each["type"] == "extra_forbidden"), errors[0])
        raise BitwrightError(f"{source}: {_sentence(first)}") from error


def dump_config(config: Config) -> str:
    """TOML text with every value, defaults included; :func:`parse_config` gives back an equal object."""
    return tomlkit.dumps(config.model_dump(mode="json", exclude_none=True))


def first_difference(a: Config, b: Config, sections: tuple[str, ...]) -> str | None:
    """Describe the first key of ``sections`` in which two configurations differ, or None if they agree."""
    found = _difference(a.model_dump(include=set(sections)), b.model_dump(include=set(sections)), "")
    if found is None:
        return None
    key, left, right = found
    return f"{key} is {_shown(left)} instead of {_shown(right)}"


def _difference(a: Any, b: Any, key: str) -> tuple[str, Any, Any] | None:
    if not (isinstance(a, dict) and isinstance(b, dict)):
        return None if a == b else (key, a, b)
    names = list(a) + [name for name in b if name not in a]
    found = (_difference(a.get(name), b.get(name), f"{key}.{name}".lstrip(".")) for name in names)
    return next((difference for difference in found if difference is not None), None)


def _sentence(error: ErrorDetails) -> str:
    """One sentence (found, expected, what to do) for one error of pydantic."""
    path = [str(part) for part in error["loc"]]
    key = ".".join(path)
    if error["type"] == "extra_forbidden":
        known = list(_fields(path[:-1]))
        near = difflib.get_close_matches(path[-1], known, n=1, cutoff=0.5)
        place = f"[{'.'.join(path[:-1])}]" if path[:-1] else "the file"
        if near:
            return f"{key!r} is not a key of {place}; did you mean {near[0]!r}?"
        return f"{key!r} is not a key of {place}, which knows {', '.join(known)}; remove it."
    if error["type"] == "value_error":
        return f"[{key}] {error.get('ctx', {}).get('error')}"
    if error["type"] == "missing":
        what = "section" if len(path) == 1 else "key"
        return f"{what} {key!r} is missing, expected {_expected(path)}; add it."
    return f"{key} is {_shown(error['input'])}, expected {_expected(path)}; correct it."


def _fields(path: list[str]) -> dict[str, Any]:
    """Fields of the section at ``path``, by name; keys of tables that users name (layers) are passed over."""
    section: type[BaseModel] = Config
    for name in path:
        if name in section.model_fields:
            section = _section_of(section.model_fields[name].annotation) or section
    return dict(section.model_fields)


def _section_of(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for found in map(_section_of, get_args(annotation)) if found), None)


def _expected(path: list[str]) -> str:
    """Description of the innermost field on ``path``."""
    for depth in range(len(path), 0, -1):
        field = _fields(path[: depth - 1]).get(path[depth - 1])
        if field is not None:
            return _description(field) or "another value"
    return "a table"


def _description(field: Any) -> str | None:
    """Own description, or that of the alternative of an optional field."""
    if field.description:
        return field.description
    nested = (extra for arm in get_args(field.annotation) for extra in getattr(arm, "__metadata__", ()))
    return next((extra.description for extra in nested if getattr(extra, "description", None)), None)


def _shown(value: Any) -> str:
    """Show a value as TOML writes it, shortened."""
    if value is None:
        return "absent"
    if isinstance(value, bool):
        return str(value).lower()
    text = f'"{value}"' if isinstance(value, str) else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
