"""Image-classification data sets, in their original formats, checked against the published files.

=================  ======================================  =====================================================
``digits``         1797 images of 8 × 8 pixels, 1 channel  ships with scikit-learn
``mnist``          70000 images of 28 × 28, 1 channel      four idx files, gzipped or not
``fashion-mnist``  70000 images of 28 × 28, 1 channel      four idx files, gzipped or not
``cifar-10``       60000 images of 32 × 32, 3 channels     six ``.bin`` or ``.bin.xz`` files, or the archive
=================  ======================================  =====================================================
"""

import gzip
import hashlib
import lzma
import os
import tarfile
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bitwright.hw.errors import BitwrightError

ENVIRONMENT = "BITWRIGHT_DATA"

Images = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Dataset:
    """Images and labels, split as published.

    Attributes
    ----------
    name
        Name that :func:`load` knows.
    classes
        Names of the classes, by label.
    train_images, test_images
        uint8, shape (N, channels, height, width).
    train_labels, test_labels
        int64, shape (N,).
    provenance
        Where the images come from, in words.
    """

    name: str
    classes: tuple[str, ...]
    train_images: Images
    train_labels: Labels
    test_images: Images
    test_labels: Labels
    provenance: str

    @property
    def in_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        _, channels, height, width = self.train_images.shape
        return channels, height, width

    @cached_property
    def checksum(self) -> str:
        """SHA-256 of all images and labels, in the order of the attributes."""
        digest = hashlib.sha256()
        for array in (self.train_images, self.train_labels, self.test_images, self.test_labels):
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()


@dataclass(frozen=True)
class _File:
    """A published file: MD5 as published, and MD5 of the content, decompressed."""

    name: str
    md5: str
    content_md5: str


@dataclass(frozen=True)
class _Idx:
    """A data set in the format of MNIST."""

    name: str
    classes: tuple[str, ...]
    url: str
    files: tuple[_File, _File, _File, _File]  # images and labels for training, then for test
    provenance: str


_MNIST = _Idx(
    name="mnist",
    classes=tuple("0123456789"),
    url="https://ossci-datasets.s3.amazonaws.com/mnist/",
    files=(
        _File("train-images-idx3-ubyte", "f68b3c2dcbeaaa9fbdd348bbdeb94873", "6bbc9ace898e44ae57da46a324031adb"),
        _File("train-labels-idx1-ubyte", "d53e105ee54ea40749a09fcbcd1e9432", "a25bea736e30d166cdddb491f175f624"),
        _File("t10k-images-idx3-ubyte", "9fb629c4189551a2d022fa330f9573f3", "2646ac647ad5339dbf082846283269ea"),
        _File("t10k-labels-idx1-ubyte", "ec29112dd5afa0611ce80d1b7f02629c", "27ae3e4e09519cfbb04c329615203637"),
    ),
    provenance="MNIST (LeCun, Cortes, Burges), the original idx files",
)

_FASHION_MNIST = _Idx(
    name="fashion-mnist",
    classes=(
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    ),
    url="http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    files=(
        _File("train-images-idx3-ubyte", "8d4fb7e6c68d591d4c3dfef9ec88bf0d", "f4a8712d7a061bf5bd6d2ca38dc4d50a"),
        _File("train-labels-idx1-ubyte", "25c81989df183df01b3e8a0aad5dffbe", "9018921c3c673c538a1fc5bad174d6f9"),
        _File("t10k-images-idx3-ubyte", "bef4ecab320f06d8554ea6380940ec79", "8181f5470baa50b63fa0f6fddb340f0a"),
        _File("t10k-labels-idx1-ubyte", "bb300cfdad3c16e7a12a480ee83cd310", "15d484375f8d13e6eb1aabb0c3f46965"),
    ),
    provenance="Fashion-MNIST (Xiao, Rasul, Vollgraf, arXiv 1708.07747; MIT licence), the original idx files",
)

_CIFAR_ARCHIVE = _File("cifar-10-binary.tar.gz", "c32a1d4ab5d03f1284b67883e8d87530", "")
_CIFAR_URL = "https://www.cs.toronto.edu/~kriz/"
_CIFAR_FILES = {  # name: MD5
    "data_batch_1.bin": "5dd7e06a14cb22eb9f671a540d1b7c25",
    "data_batch_2.bin": "5ea93a67294ea407fff1d09f752e9692",
    "data_batch_3.bin": "942cd6a4bcdd0dd3c604fbe906cb4421",
    "data_batch_4.bin": "ae636b3ba5c66a11e91e8cb52e771fcb",
    "data_batch_5.bin": "53f37980c15c3d472c316c40844f3f0d",
    "test_batch.bin": "803d5f7f4d78ea53de84dbe85f74fb6d",
}
_CIFAR_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def load(name: str, root: str | Path | None = None) -> Dataset:
    """Load a data set; download it where it is not found, ``pooch`` is installed and there is a network.

    Parameters
    ----------
    name
        One of :data:`LOADERS`.
    root
        Folder that holds the files, or a folder ``<name>`` with them. Absent: the environment variable
        ``BITWRIGHT_DATA``, else the user's cache folder. Downloads go to ``<root>/<name>/``.

    Raises
    ------
    BitwrightError
        If the name is unknown, or files are missing, damaged, or not the published ones.
    """
    if name not in LOADERS:
        near = get_close_matches(name, LOADERS, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(LOADERS)}."
        raise BitwrightError(f"Unknown data set {name!r}; {hint}")
    return LOADERS[name](Path(root) if root is not None else _default_root())


def _default_root() -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get(ENVIRONMENT) or cache / "bitwright")


def _load_digits(_root: Path) -> Dataset:
    """Handwritten digits of scikit-learn: values 0..16 become round(value * 255 / 16), half up.

    Every fifth image of each class is a test image.
    """
    from sklearn.datasets import load_digits  # a second of import that no other data set needs

    features, targets = load_digits(return_X_y=True)
    labels = np.asarray(targets, np.int64)
    images = ((np.asarray(features, np.int64) * 510 + 16) // 32).astype(np.uint8).reshape(-1, 1, 8, 8)
    test = np.zeros(len(labels), bool)
    for digit in range(10):
        test[np.flatnonzero(labels == digit)[::5]] = True
    return Dataset(
        name="digits",
        classes=tuple("0123456789"),
        train_images=images[~test],
        train_labels=labels[~test],
        test_images=images[test],
        test_labels=labels[test],
        provenance="Optical Recognition of Handwritten Digits (Alpaydin, Kaynak; UCI), test part, from scikit-learn",
    )


def _load_idx(source: _Idx, root: Path) -> Dataset:
    train_images, train_labels, test_images, test_labels = (
        _parse_idx(_content(_find_idx(source, file, root), file.content_md5)) for file in source.files
    )
    return Dataset(
        name=source.name,
        classes=source.classes,
        train_images=train_images[:, np.newaxis],
        train_labels=train_labels.astype(np.int64),
        test_images=test_images[:, np.newaxis],
        test_labels=test_labels.astype(np.int64),
        provenance=source.provenance,
    )


def _find_idx(source: _Idx, file: _File, root: Path) -> Path:
    packed = f"{file.name}.gz"
    return _find(source.name, [packed, file.name], root) or _download(source.name, source.url, packed, file.md5, root)


def _parse_idx(content: bytes) -> npt.NDArray[np.uint8]:
    """Array of an idx file of bytes: two zeros, type 8, number of axes, lengths as big-endian 32 bits, data."""
    axes = content[3]
    shape = np.frombuffer(content, ">u4", axes, offset=4).tolist()
    return np.frombuffer(content, np.uint8, offset=4 + 4 * axes).reshape(shape).copy()  # writable, as torch wants


def _load_cifar(root: Path) -> Dataset:
    """Records of 3073 bytes: label, then 1024 bytes each of red, green and blue, row by row."""
    contents = _cifar_contents(root)
    records = [np.frombuffer(content, np.uint8).reshape(-1, 3073) for content in contents]
    train, test = np.concatenate(records[:-1]), records[-1]
    train_images, test_images = (np.ascontiguousarray(part[:, 1:]).reshape(-1, 3, 32, 32) for part in (train, test))
    return Dataset(
        name="cifar-10",
        classes=_CIFAR_CLASSES,
        train_images=train_images,
        train_labels=train[:, 0].astype(np.int64),
        test_images=test_images,
        test_labels=test[:, 0].astype(np.int64),
        provenance="CIFAR-10 (Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009), binary version",
    )


def _cifar_contents(root: Path) -> list[bytes]:
    """Contents of the batches, from single files if all are there, else from the archive."""
    paths = [_find("cifar-10", [name, f"{name}.xz"], root) for name in _CIFAR_FILES]
    found = [path for path in paths if path is not None]
    if len(found) == len(paths):
        with ThreadPoolExecutor() as pool:  # decompression takes seconds a file, and releases the interpreter lock
            return list(pool.map(_content, found, _CIFAR_FILES.values()))
    archive = _find("cifar-10", [_CIFAR_ARCHIVE.name], root)
    archive = archive or _download("cifar-10", _CIFAR_URL, _CIFAR_ARCHIVE.name, _CIFAR_ARCHIVE.md5, root)
    try:
        with tarfile.open(archive) as opened:
            members = {Path(member.name).name: member for member in opened if member.isfile()}
            contents = {name: _member(opened, members[name]) for name in _CIFAR_FILES}
    except (tarfile.TarError, EOFError, OSError, zlib.error, KeyError) as error:
        raise _damaged(archive, str(error)) from error
    for name, md5 in _CIFAR_FILES.items():
        _check_md5(archive, contents[name], md5)
    return list(contents.values())


def _member(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    opened = archive.extractfile(member)
    return opened.read() if opened else b""


LOADERS: dict[str, Callable[[Path], Dataset]] = {
    "digits": _load_digits,
    "mnist": lambda root: _load_idx(_MNIST, root),
    "fashion-mnist": lambda root: _load_idx(_FASHION_MNIST, root),
    "cifar-10": _load_cifar,
}
"""Loaders by name, each given the root folder."""


def _find(dataset: str, names: list[str], root: Path) -> Path | None:
    candidates = (folder / name for folder in (root / dataset, root) for name in names)
    return next((path for path in candidates if path.is_file()), None)


def _content(path: Path, md5: str) -> bytes:
    """Decompressed content of a file, checked."""
    openers: dict[str, Callable[..., gzip.GzipFile | lzma.LZMAFile]] = {".gz": gzip.open, ".xz": lzma.open}
    try:
        if path.suffix in openers:
            with openers[path.suffix](path) as opened:
                content = opened.read()
        else:
            content = path.read_bytes()
    except (EOFError, OSError, zlib.error, lzma.LZMAError) as error:
        raise _damaged(path, str(error)) from error
    _check_md5(path, content, md5)
    return content


def _check_md5(path: Path, content: bytes, expected: str) -> None:
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if found != expected:
        raise _damaged(path, f"its content has MD5 {found}, the published one {expected}")


def _damaged(path: Path, reason: str) -> BitwrightError:
    return BitwrightError(f"{path} is damaged ({reason}); delete it and get the published file.")


def _download(dataset: str, url: str, name: str, md5: str, root: Path) -> Path:
    folder = root / dataset
    missing = (
        f"{name} of data set {dataset!r} is neither in {folder} nor in {root}; put it there, or name its folder with "
        f"--data or {ENVIRONMENT}"
    )
    try:
        import pooch  # an extra of the package
    except ImportError:
        raise BitwrightError(f"{missing}, or install bitwright[download].") from None
    try:
        fetch: Any = pooch.HTTPDownloader(timeout=30)
        return Path(pooch.retrieve(f"{url}{name}", f"md5:{md5}", name, folder, downloader=fetch))
    except (OSError, ValueError) as error:  # no network, a folder that is not writable, another checksum
        raise BitwrightError(f"{missing} (the download failed: {type(error).__name__}).") from error
