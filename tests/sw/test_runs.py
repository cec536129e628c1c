import pytest
import torch

from bitwright.hw.errors import BitwrightError
from bitwright.sw import runs
from bitwright.sw.config import parse_config
from bitwright.sw.runs import Run

TEXT = '[data]\nname = "digits"\n[model]\nname = "mlp"\n[train]\nepochs = 3\n'


def test_create_then_open_again(tmp_path):
    made = Run.create(tmp_path / "run", parse_config(TEXT))
    assert Run(tmp_path / "run").config == made.config
    assert Run.create(tmp_path / "run", parse_config(TEXT)).config == made.config


def test_another_training_configuration_is_refused(tmp_path):
    state = Run.create(tmp_path, parse_config(TEXT)).state_path
    state.parent.mkdir()
    state.write_bytes(b"an epoch")
    with pytest.raises(BitwrightError, match=r"another configuration \(train.epochs is 4 instead of 3\)"):
        Run.create(tmp_path, parse_config(TEXT.replace("3", "4")))
    assert Run(tmp_path).config.train.epochs == 3


def test_a_run_without_an_epoch_takes_a_corrected_configuration(tmp_path):
    Run.create(tmp_path, parse_config(TEXT))
    Run.create(tmp_path, parse_config(TEXT.replace("3", "4")))
    assert Run(tmp_path).config.train.epochs == 4


def test_another_search_is_the_same_training_run(tmp_path):
    Run.create(tmp_path, parse_config(TEXT))
    Run.create(tmp_path, parse_config(TEXT + "[search]\nmax_bits = 6\n"))
    assert Run(tmp_path).config.search.max_bits == 6


def test_folders_that_are_no_runs(tmp_path):
    with pytest.raises(BitwrightError, match=r"not a run directory: it has no config\.toml"):
        Run(tmp_path)
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(BitwrightError, match="exists and is not a run directory"):
        Run.create(tmp_path, parse_config(TEXT))
    with pytest.raises(BitwrightError, match="exists and is not a run directory"):
        Run.create(tmp_path / "thesis.txt", parse_config(TEXT))


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BitwrightError, match="Cannot write"):
        Run.create(tmp_path / "file" / "run", parse_config(TEXT))


def test_manifest_keeps_earlier_entries(tmp_path):
    run = Run.create(tmp_path, parse_config(TEXT))
    run.record(seed=3)
    run.record(device="cpu")
    manifest = run.manifest()
    assert (manifest["seed"], manifest["device"]) == (3, "cpu")
    assert set(manifest["versions"]) == {"python", "bitwright", "numpy", "torch"}


def test_lines_pass_over_a_torn_end(tmp_path):
    path = tmp_path / "lines.jsonl"
    runs.write_lines(path, [{"a": 1}, {"a": 2}])
    with path.open("a") as file:
        file.write('{"a": ')
    assert runs.read_lines(path) == [{"a": 1}, {"a": 2}]
    path.write_text("nonsense\n")
    with pytest.raises(BitwrightError, match="is damaged"):
        runs.read_lines(path)


def test_tensors_round_trip_and_bad_files(tmp_path):
    path = tmp_path / "t.safetensors"
    with pytest.raises(BitwrightError, match="is missing"):
        runs.load_tensors(path)
    runs.save_tensors(path, {"a": torch.arange(6).reshape(2, 3).T})
    assert torch.equal(runs.load_tensors(path)["a"], torch.arange(6).reshape(2, 3).T)
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(BitwrightError, match="not a readable safetensors file"):
        runs.load_tensors(path)


def test_parameters_of_another_model_are_refused(tmp_path):
    path = tmp_path / "t.safetensors"
    runs.save_tensors(path, torch.nn.Linear(3, 2).state_dict())
    runs.load_parameters(torch.nn.Linear(3, 2), path)
    with pytest.raises(BitwrightError, match="does not fit the model of its run at 'weight'"):
        runs.load_parameters(torch.nn.Linear(4, 2), path)
