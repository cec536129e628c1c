"""Fixtures that several tests share."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def data_root() -> Path:
    """Folder with MNIST, Fashion-MNIST and CIFAR-10: BITWRIGHT_DATA, or ``../shared/data`` beside the checkout."""
    folder = Path(os.environ.get("BITWRIGHT_DATA") or ROOT.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no image data: set BITWRIGHT_DATA or put the files into {folder}")
    return folder
