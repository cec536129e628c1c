import json
import signal
import subprocess
import sys
import time
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils import deterministic

from bitwright.hw.errors import BitwrightError
from bitwright.sw import training
from bitwright.sw.config import DataConfig, parse_config
from bitwright.sw.runs import Run, load_tensors
from bitwright.sw.stages import stages
from bitwright.sw.training import Images, Interrupted, augment, evaluate, learning_rate, load_model, train

TEXT = """
[data]
name = "digits"
shift = 1
[model]
name = "mlp"
options = { hidden = [16] }
[train]
epochs = 3
learning_rate = 1e-2
threads = 1
"""
QUANTIZE = '[quantize]\nweights = "qnn"\nweight_bits = 3\nactivations = "qnn"\nactivation_bits = 3\ninput_bits = 4\n'


@pytest.fixture(scope="module")
def digits():
    return Images.load(DataConfig(name="digits"))


def same_tensors(first, second):
    a, b = load_tensors(first), load_tensors(second)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_digits_are_learned_and_recorded(tmp_path):
    result = train(parse_config(TEXT), tmp_path, progress=False)
    assert result.test_accuracy > 0.7
    history = [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()]
    assert [entry["epoch"] for entry in history] == [1, 2, 3]
    assert max(entry["validation_accuracy"] for entry in history) == result.validation_accuracy
    manifest = Run(tmp_path).manifest()
    assert manifest["seed"] == 0
    assert manifest["data"]["in_shape"] == [1, 8, 8]
    assert manifest["training"]["test_accuracy"] == result.test_accuracy
    assert train(parse_config(TEXT), tmp_path, progress=False) == result  # nothing is left to do


def test_a_run_rebuilds_its_network(tmp_path, digits):
    result = train(parse_config(TEXT + QUANTIZE), tmp_path, progress=False)
    model = load_model(tmp_path)
    assert evaluate(model, digits.test_pixels, digits.test_labels) == result.test_accuracy
    assert all(stage.weight_quantizer is not None and stage.weight_quantizer.bits == 3 for stage in stages(model))
    assert stages(load_model(tmp_path, "last"))[0].source.bits == 4  # pyright: ignore[reportOptionalMemberAccess]


@pytest.mark.parametrize(
    "options",
    ['optimizer = "adam"', 'optimizer = "sgd"', 'optimizer = "sgd"\nschedule = "milestones"\nmilestones = [1, 2]'],
)
def test_resuming_gives_the_same_bits(tmp_path, monkeypatch, options):
    """Ctrl-C in the third epoch; the rest of the training then ends as if there had been none."""
    config = parse_config(TEXT + f"{options}\n" + QUANTIZE)
    train(config, tmp_path / "whole", progress=False)
    descend, steps = training.descend, 0

    def interrupted(*arguments):
        nonlocal steps
        steps += 1
        if steps == 50:
            raise KeyboardInterrupt
        return descend(*arguments)

    monkeypatch.setattr(training, "descend", interrupted)
    with pytest.raises(Interrupted, match="run the same command to go on"):
        train(config, tmp_path / "resumed", progress=False)
    monkeypatch.undo()
    assert 0 < len((tmp_path / "resumed" / "history.jsonl").read_text().splitlines()) < 3
    torch.rand(1)  # the state of the global generator is of no account
    train(config, tmp_path / "resumed", progress=False)
    for which in ("best", "last"):
        assert same_tensors(Run(tmp_path / "whole").checkpoint(which), Run(tmp_path / "resumed").checkpoint(which))


def test_a_killed_process_resumes_to_the_same_bits(tmp_path):
    text = TEXT.replace("epochs = 3", "epochs = 12")
    program = (
        "import sys; from bitwright.sw.config import parse_config; from bitwright.sw.training import train;"
        "train(parse_config(sys.argv[1]), sys.argv[2], progress=False)"
    )
    process = subprocess.Popen([sys.executable, "-c", program, text, str(tmp_path / "killed")])
    state = tmp_path / "killed" / "checkpoints" / "state.pt"
    while not state.exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = len((tmp_path / "killed" / "history.jsonl").read_text().splitlines())
    assert 0 < done < 12, "the kill came too late to show anything"
    train(parse_config(text), tmp_path / "killed", progress=False)
    train(parse_config(text), tmp_path / "whole", progress=False)
    assert same_tensors(Run(tmp_path / "whole").checkpoint("last"), Run(tmp_path / "killed").checkpoint("last"))


def test_training_starts_from_a_float_run(tmp_path, digits):
    train(parse_config(TEXT), tmp_path / "float", progress=False)
    init = f'init = "{tmp_path / "float"}"\n'
    config = parse_config(TEXT + init + QUANTIZE)
    accuracy = evaluate(training.initial_model(config, digits), digits.test_pixels, digits.test_labels)
    assert accuracy > 0.5
    assert train(config, tmp_path / "tuned", progress=False).test_accuracy > 0.7

    other = parse_config(TEXT.replace("[16]", "[17]") + init)
    with pytest.raises(BitwrightError, match=r"does not fit \(model.options.hidden is \[16\] instead of \[17\]\)"):
        training.initial_model(other, digits)
    quantized = parse_config(TEXT + f'init = "{tmp_path / "tuned"}"\n' + QUANTIZE)
    with pytest.raises(BitwrightError, match="it is quantized"):
        training.initial_model(quantized, digits)


def test_weights_stay_where_the_method_clips_them(tmp_path):
    text = TEXT.replace("1e-2", "0.5") + QUANTIZE.replace("qnn", "sign").replace("bits = 3", "bits = 1")
    train(parse_config(text), tmp_path, progress=False)
    for stage in stages(load_model(tmp_path)):
        assert stage.real_weight.abs().max() == 1


def test_a_loss_that_is_not_finite_stops_training(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "descend", lambda *_: float("nan"))
    with pytest.raises(BitwrightError, match=r"The loss is nan in epoch 1, step 1, .* lower train.learning_rate"):
        train(parse_config(TEXT), tmp_path, progress=False)


def test_damaged_state_is_named(tmp_path):
    config = parse_config(TEXT.replace("epochs = 3", "epochs = 1"))
    train(config, tmp_path, progress=False)
    Run(tmp_path).state_path.write_bytes(b"nonsense")
    with pytest.raises(BitwrightError, match=r"state.pt is damaged .*; delete .* and train again"):
        train(config, tmp_path, progress=False)


def test_validation_images_do_not_depend_on_the_seed_and_stay_out_of_training(digits):
    def distinct(pixels):
        return {bytes(image.numpy()) for image in pixels}

    assert len(digits.train_labels) + len(digits.validation_labels) == len(digits.source.train_labels)
    assert not distinct(digits.validation_pixels) & distinct(digits.train_pixels)
    with pytest.raises(BitwrightError, match="which is 0 of 1433 training images"):
        Images.load(DataConfig(name="digits", validation=0.0001))


def test_unknown_names_leave_no_folder(tmp_path):
    with pytest.raises(BitwrightError, match="Unknown model 'mlpp'; did you mean 'mlp'"):
        train(parse_config(TEXT.replace("mlp", "mlpp")), tmp_path / "run")
    with pytest.raises(BitwrightError, match="Unknown data set 'digit'"):
        train(parse_config(TEXT.replace("digits", "digit")), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_gpu_is_refused_where_there_is_none():
    if torch.cuda.is_available():
        pytest.skip("a GPU is here")
    with pytest.raises(BitwrightError, match="PyTorch finds no GPU"):
        training.pick_device("cuda")


def test_settings_of_pytorch_come_back_after_training():
    def settings_now():
        memory: Any = deterministic
        return (
            torch.get_num_threads(),
            torch.are_deterministic_algorithms_enabled(),
            memory.fill_uninitialized_memory,
        )

    before = settings_now()
    with training.repeatable(before[0] + 1):
        assert settings_now() == (before[0] + 1, True, False)
    assert settings_now() == before


def test_augmentation_moves_and_mirrors():
    pixels = torch.arange(2 * 2 * 5 * 5, dtype=torch.uint8).reshape(2, 2, 5, 5)
    generator = torch.Generator().manual_seed(0)
    assert augment(pixels, DataConfig(name="x"), generator) is pixels
    mirrored = [augment(pixels[:1], DataConfig(name="x", flip=True), generator) for _ in range(20)]
    assert {bytes(image.numpy()) for image in mirrored} == {
        bytes(pixels[:1].numpy()),
        bytes(pixels[:1].flip(3).contiguous().numpy()),
    }
    padded = nn.functional.pad(pixels[:1].float(), (1, 1, 1, 1), mode="replicate")
    places = {bytes(padded[..., y : y + 5, x : x + 5].byte().contiguous().numpy()) for y in range(3) for x in range(3)}
    shifted = [augment(pixels[:1], DataConfig(name="x", shift=1), generator) for _ in range(200)]
    assert {bytes(image.numpy()) for image in shifted} == places


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [1, 1, 1, 1]),
        ("step", [1, 1, 0.5, 0.5]),
        ("cosine", [1, 0.8535533905932737, 0.5, 0.14644660940672627]),
    ],
)
def test_learning_rate_schedules(schedule, expected):
    text = f'epochs = 2\nschedule = "{schedule}"\nstep_epochs = 1\nstep_factor = 0.5\nlearning_rate = 1.0'
    config = parse_config(TEXT.split("epochs")[0] + text).train
    assert [learning_rate(config, step, 2) for step in range(4)] == pytest.approx(expected)


@settings(max_examples=30, deadline=None)
@given(
    milestones=st.lists(st.integers(1, 19), min_size=1, max_size=5, unique=True).map(sorted),
    factor=st.sampled_from([0.1, 0.5, 1.0]),
    steps=st.integers(1, 3),
)
def test_milestones_are_those_of_pytorch(milestones, factor, steps):
    """In every step of every epoch the rate of PyTorch's scheduler, which steps once an epoch."""
    options = f"epochs = 20\nmilestones = {milestones}\nstep_factor = {factor}\nlearning_rate = 0.02\n"
    config = parse_config(TEXT.split("epochs")[0] + options + 'schedule = "milestones"').train
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], 0.02)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones, factor)
    for epoch in range(20):
        expected = [optimizer.param_groups[0]["lr"]] * steps
        assert [learning_rate(config, epoch * steps + step, steps) for step in range(steps)] == pytest.approx(expected)
        optimizer.step()
        scheduler.step()
