import builtins
import gzip
import lzma
import tarfile

import numpy as np
import pytest
import torch

from bitwright.hw.errors import BitwrightError
from bitwright.sw import data
from bitwright.sw.data import load

MNIST_FILES = [file.name for file in data._MNIST.files]

CHECKSUMS = {
    "digits": "dbe5d0da206217cd0f0081f88da42c22c04ba9b2d02febf09007050f6c7cee72",
    "mnist": "1e35582d42a90940c55b956deb61875c020b567ed20e3c5b174f52bf7809ed9b",
    "fashion-mnist": "ece172613115fb18b120bec8f6c02271af90b8b8f0a5af5c51cbd5ceed68e619",
    "cifar-10": "9048fcbac9c08a64d57a7c5a5a66750a974ad4eab380914df129f7e223d823df",
}


@pytest.fixture
def offline(monkeypatch):
    """Make every download fail, as without a network."""
    import pooch

    def unreachable(*arguments, **options):
        raise ConnectionError("no route")

    monkeypatch.setattr(pooch, "retrieve", unreachable)


def check(dataset, images, shape):
    train, test = images
    assert dataset.in_shape == shape
    assert dataset.train_images.shape == (train, *shape)
    assert dataset.test_images.shape == (test, *shape)
    assert dataset.train_images.dtype == dataset.test_images.dtype == np.uint8
    assert dataset.train_labels.dtype == dataset.test_labels.dtype == np.int64
    assert len(dataset.classes) == 10
    assert set(dataset.train_labels) == set(dataset.test_labels) == set(range(10))
    assert dataset.checksum == CHECKSUMS[dataset.name]
    for array in (dataset.train_images, dataset.test_images, dataset.train_labels, dataset.test_labels):
        torch.from_numpy(array)  # warns, and so fails, if the array is read-only


def test_digits():
    digits = load("digits")
    check(digits, (1433, 364), (1, 8, 8))
    assert digits.train_images.min() == 0
    assert digits.train_images.max() == 255
    shares = np.bincount(digits.test_labels) / (np.bincount(digits.test_labels) + np.bincount(digits.train_labels))
    assert abs(shares - 0.2).max() < 0.01


def test_digits_are_scaled_as_documented():
    from sklearn.datasets import load_digits

    features, targets = load_digits(return_X_y=True)
    first = np.flatnonzero(targets == 7)[0]  # the first image of a class is a test image
    image = load("digits").test_images[load("digits").test_labels == 7][0, 0]
    expected = [[int(value * 255 / 16 + 0.5) for value in row] for row in features[first].reshape(8, 8)]
    assert image.tolist() == expected


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_idx_data_sets(data_root, name):
    dataset = load(name, data_root)
    check(dataset, (60000, 10000), (1, 28, 28))
    assert (np.bincount(dataset.test_labels) > 800).all()


def test_cifar(data_root):
    dataset = load("cifar-10", data_root)
    check(dataset, (50000, 10000), (3, 32, 32))
    assert (np.bincount(dataset.test_labels) == 1000).all()
    assert dataset.classes[dataset.test_labels[0]] == "cat"


def test_files_may_lie_in_the_folder_itself_and_be_unpacked(data_root, tmp_path, monkeypatch):
    for name in MNIST_FILES:
        (tmp_path / name).write_bytes(gzip.decompress((data_root / "mnist" / f"{name}.gz").read_bytes()))
    monkeypatch.setenv("BITWRIGHT_DATA", str(tmp_path))
    assert load("mnist").checksum == CHECKSUMS["mnist"]


def fake_cifar(monkeypatch):
    """Stand-ins for the six batches, 20 images each, declared to be the published files."""
    rng = np.random.default_rng(0)
    contents = {name: rng.integers(0, 10, 20 * 3073, np.uint8).tobytes() for name in data._CIFAR_FILES}
    digests = {name: data.hashlib.md5(content).hexdigest() for name, content in contents.items()}
    monkeypatch.setattr(data, "_CIFAR_FILES", digests)
    return contents


@pytest.mark.parametrize("form", ["bin", "xz", "archive"])
def test_cifar_in_every_form(form, tmp_path, monkeypatch):
    contents = fake_cifar(monkeypatch)
    for name, content in contents.items():
        if form == "xz":
            (tmp_path / f"{name}.xz").write_bytes(lzma.compress(content))
        else:
            (tmp_path / name).write_bytes(content)
    if form == "archive":
        with tarfile.open(tmp_path / "cifar-10-binary.tar.gz", "w:gz") as archive:
            for name in contents:
                archive.add(tmp_path / name, f"cifar-10-batches-bin/{name}")
                (tmp_path / name).unlink()
    dataset = load("cifar-10", tmp_path)
    assert dataset.train_images.shape == (100, 3, 32, 32)
    record = np.frombuffer(contents["test_batch.bin"], np.uint8).reshape(20, 3073)
    assert np.array_equal(dataset.test_images[:, 2, 5, 7], record[:, 1 + 2 * 1024 + 5 * 32 + 7])
    assert np.array_equal(dataset.test_labels, record[:, 0])


def test_an_archive_without_the_batches(tmp_path):
    with tarfile.open(tmp_path / "cifar-10-binary.tar.gz", "w:gz"):
        pass
    with pytest.raises(
        BitwrightError, match=r"cifar-10-binary\.tar\.gz is damaged .*delete it and get the published file"
    ):
        load("cifar-10", tmp_path)


@pytest.mark.parametrize(
    "content",
    [b"", b"not gzip", gzip.compress(b"\0\0\x08\x01\0\0\0\x05seven"), gzip.compress(b"x" * 10000)[:-20]],
    ids=["empty", "text", "other", "truncated"],
)
def test_damaged_files_are_named(content, tmp_path):
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(content)
    with pytest.raises(
        BitwrightError, match=r"train-images-idx3-ubyte\.gz is damaged .*get the published file"
    ) as raised:
        load("mnist", tmp_path)
    assert "\n" not in str(raised.value)


def test_truncated_xz_is_named(tmp_path, monkeypatch):
    for name, content in fake_cifar(monkeypatch).items():
        (tmp_path / f"{name}.xz").write_bytes(lzma.compress(content)[:-30])
    with pytest.raises(BitwrightError, match=r"data_batch_1\.bin\.xz is damaged"):
        load("cifar-10", tmp_path)


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize(
    ("name", "file"), [("mnist", "train-images-idx3-ubyte.gz"), ("cifar-10", "cifar-10-binary.tar.gz")]
)
def test_missing_files_say_where_and_what_to_do(name, file, tmp_path):
    with pytest.raises(BitwrightError, match=r"BITWRIGHT_DATA \(the download failed: ConnectionError\)") as raised:
        load(name, tmp_path)
    assert str(raised.value).startswith(
        f"{file} of data set {name!r} is neither in {tmp_path / name} nor in {tmp_path};"
    )


def test_missing_files_without_pooch(tmp_path, monkeypatch):
    real = builtins.__import__

    def without_pooch(name, *arguments, **options):
        if name == "pooch":
            raise ImportError(name)
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without_pooch)
    with pytest.raises(BitwrightError, match=r"or install bitwright\[download\]"):
        load("mnist", tmp_path)


def test_downloads_are_checked_and_kept(tmp_path, monkeypatch, data_root):
    import pooch

    calls = []

    def fetch(url, known_hash, name, path, downloader):
        calls.append((url, known_hash))
        path.mkdir(exist_ok=True)
        (path / name).write_bytes((data_root / "mnist" / name).read_bytes())
        return str(path / name)

    monkeypatch.setattr(pooch, "retrieve", fetch)
    assert load("mnist", tmp_path).checksum == CHECKSUMS["mnist"]
    assert [url.rpartition("/")[2] for url, _ in calls] == [f"{name}.gz" for name in MNIST_FILES]
    for (_, known_hash), name in zip(calls, MNIST_FILES, strict=True):
        content = (data_root / "mnist" / f"{name}.gz").read_bytes()
        assert known_hash == f"md5:{data.hashlib.md5(content).hexdigest()}"
    assert load("mnist", tmp_path).checksum == CHECKSUMS["mnist"]
    assert len(calls) == 4


def test_unknown_names():
    with pytest.raises(BitwrightError, match="Unknown data set 'cifar10'; did you mean 'cifar-10'"):
        load("cifar10")
    with pytest.raises(BitwrightError, match="known are digits, mnist, fashion-mnist, cifar-10"):
        load("imagenet")
