"""Run directories: what training and search leave behind, and how to read it back.

====================================  ==================================================================
``config.toml``                       the whole configuration, defaults included
``manifest.json``                     versions, seed, device, data checksum, timings, results
``history.jsonl``                     one line per epoch of training
``checkpoints/best.safetensors``      parameters and buffers with the best validation accuracy
``checkpoints/last.safetensors``      the same after the last complete epoch
``checkpoints/state.pt``              all that is needed to resume training exactly
``search.jsonl``, ``search.json``     trace of the search, and its result
``quantized.safetensors``             the network that the search found
====================================  ==================================================================

Every file but the trace is replaced as a whole, so a run that is killed leaves either the old or the new one. No file
is locked: a directory belongs to one process at a time.
"""

import json
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from bitwright.hw.errors import BitwrightError
from bitwright.hw.files import replacing
from bitwright.sw.config import Config, dump_config, first_difference, load_config

TRAINING_SECTIONS = ("data", "model", "quantize", "train")  # a change in one of them is another run


class Run:
    """A run directory, known to hold a configuration.

    Parameters
    ----------
    folder
        Path of an existing run directory; :meth:`create` makes one.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if not self.config_path.is_file():
            raise BitwrightError(f"{self.folder} is not a run directory: it has no config.toml; make one by training.")
        self.config = load_config(self.config_path)

    @classmethod
    def create(cls, folder: str | Path, config: Config) -> "Run":
        """Make a run directory, or open one that was made with the same training configuration.

        The sections ``[search]`` and ``[array]`` may differ, and are renewed: training does not depend on them.
        """
        folder = Path(folder)
        path = folder / "config.toml"
        if path.exists():
            earlier = cls(folder)
            difference = first_difference(config, earlier.config, TRAINING_SECTIONS)
            # Before its first epoch a run holds nothing but its configuration, which may be corrected.
            if difference is not None and earlier.state_path.exists():
                raise BitwrightError(
                    f"{folder} holds a run of another configuration ({difference}); choose another folder or delete it."
                )
        elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise BitwrightError(f"{folder} exists and is not a run directory; choose another folder.")
        with replacing(path) as temporary:
            temporary.write_text(dump_config(config), encoding="utf-8")
        return cls(folder)

    @property
    def config_path(self) -> Path:
        """Configuration as run."""
        return self.folder / "config.toml"

    @property
    def history_path(self) -> Path:
        """One line per epoch."""
        return self.folder / "history.jsonl"

    @property
    def state_path(self) -> Path:
        """State of training after the last complete epoch."""
        return self.folder / "checkpoints" / "state.pt"

    @property
    def trace_path(self) -> Path:
        """One line per candidate of the search."""
        return self.folder / "search.jsonl"

    @property
    def search_path(self) -> Path:
        """Result of the search."""
        return self.folder / "search.json"

    @property
    def quantized_path(self) -> Path:
        """Network that the search found."""
        return self.folder / "quantized.safetensors"

    def checkpoint(self, which: str) -> Path:
        """Path of the checkpoint called ``which``."""
        return self.folder / "checkpoints" / f"{which}.safetensors"

    def manifest(self) -> dict[str, Any]:
        """Read the manifest; empty where nothing was recorded yet."""
        path = self.folder / "manifest.json"
        return read_json(path) if path.exists() else {}

    def record(self, **entries: Any) -> None:
        """Add entries to the manifest, beside the versions of what this process runs on."""
        libraries = ("bitwright", "numpy", "torch")
        versions = {"python": platform.python_version()} | {name: version(name) for name in libraries}
        write_json(self.folder / "manifest.json", self.manifest() | {"versions": versions} | entries)


def write_json(path: Path, value: Any) -> None:
    """Replace a JSON file."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read a JSON file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BitwrightError(f"Cannot read {path}: {error.strerror}; make it again.") from error
    except ValueError as error:
        raise BitwrightError(f"{path} is not JSON: {error}; delete it and make it again.") from error


def write_lines(path: Path, entries: list[dict[str, Any]]) -> None:
    """Replace a file of one JSON object per line."""
    with replacing(path) as temporary:
        temporary.write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read a file of one JSON object per line; a last line that a kill cut off is passed over."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")[:-1]
        return [json.loads(line) for line in lines]
    except OSError as error:
        raise BitwrightError(f"Cannot read {path}: {error.strerror}; make it again.") from error
    except ValueError as error:
        raise BitwrightError(f"{path} is damaged: {error}; delete it and make it again.") from error


def save_tensors(path: Path, tensors: Mapping[str, torch.Tensor], metadata: dict[str, str] | None = None) -> None:
    """Replace a safetensors file."""
    with replacing(path) as temporary:
        owned = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
        temporary.write_bytes(save(owned, metadata=metadata))


def load_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Read a safetensors file onto the CPU."""
    if not path.is_file():
        raise BitwrightError(f"{path} is missing; finish the step that writes it.")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise BitwrightError(f"{path} is not a readable safetensors file ({error}); make it again.") from error


def load_parameters(model: torch.nn.Module, path: Path) -> None:
    """Load a checkpoint into a model of the same structure."""
    tensors = load_tensors(path)
    expected = model.state_dict()
    wrong = sorted(
        name
        for name in expected.keys() | tensors.keys()
        if name not in expected or name not in tensors or expected[name].shape != tensors[name].shape
    )
    if wrong:
        raise BitwrightError(f"{path} does not fit the model of its run at {wrong[0]!r}; give the run it came from.")
    model.load_state_dict(tensors)
