from pathlib import Path

import pytest

from bitwright.hw.errors import BitwrightError
from bitwright.sw.config import Config, dump_config, first_difference, load_config, parse_config

RECIPES = sorted((Path(__file__).parents[2] / "sw" / "recipes").glob("*.toml"))
BASE = '[data]\nname = "digits"\n[model]\nname = "mlp"\n[train]\nepochs = 3\n'
QUANTIZE = '[quantize]\nweights = "dorefa"\nactivations = "dorefa"\nactivation_bits = 2\n'


def test_defaults_are_filled_in():
    config = parse_config(BASE)
    assert config.train.batch_size == 64
    assert config.quantize is None
    assert config.search.relative_accuracy == 0.99


@pytest.mark.parametrize(
    "text",
    [
        BASE,
        BASE + 'schedule = "milestones"\nmilestones = [1, 2]\nstep_factor = 0.2',
        BASE + QUANTIZE + 'weight_bits = 2\n[quantize.layers."conv*"]\nweight_bits = 8',
    ],
)
def test_a_dumped_configuration_reads_back_equal(text):
    config = parse_config(text)
    assert parse_config(dump_config(config)) == config


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_are_valid(path):
    assert isinstance(load_config(path), Config)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('[data]\nname = "digits"\n', "section 'model' is missing, expected a table; add it."),
        (BASE.replace("epochs", "epoch"), "'train.epoch' is not a key of [train]; did you mean 'epochs'?"),
        (BASE + "threads = 100000", "train.threads is 100000, expected an integer from 1 to 1024; correct it."),
        (BASE + '[array]\npreset = "dema"', "[array] Unknown array preset 'dema'; did you mean demo?"),
        (BASE + "[array]\npreset = 3", "[array] Unknown array preset 3; choose one of tiny, demo, edge, large."),
        (BASE + "[array]\nrowz = 8", "[array] Unknown array parameter 'rowz'; did you mean rows?"),
        (BASE + "epoch = 3", "'train.epoch' is not a key of [train]; did you mean 'epochs'?"),
        (BASE + "[trian]\nepochs = 3", "'trian' is not a key of the file; did you mean 'train'?"),
        (BASE + "batch_size = 0", "train.batch_size is 0, expected a positive integer; correct it."),
        (BASE + 'batch_size = "3"', 'train.batch_size is "3", expected a positive integer; correct it.'),
        (BASE + "learning_rate = nan", "train.learning_rate is nan, expected a positive number; correct it."),
        (BASE + 'optimizer = "sdg"', 'train.optimizer is "sdg", expected "adam" or "sgd"; correct it.'),
        (BASE + QUANTIZE, "key 'quantize.weight_bits' is missing, expected an integer from 1 to 8; add it."),
        (
            BASE + QUANTIZE + "weight_bits = 9",
            "quantize.weight_bits is 9, expected an integer from 1 to 8; correct it.",
        ),
        (
            BASE + QUANTIZE + 'weight_bits = 2\n[quantize.layers."conv*"]\nweight_bits = 0',
            "quantize.layers.conv*.weight_bits is 0, expected an integer from 1 to 8; correct it.",
        ),
        (
            BASE + QUANTIZE + "weight_bits = 2\n[quantize.layers.fc]\nweight_bit = 3",
            "'quantize.layers.fc.weight_bit' is not a key of [quantize.layers.fc]; did you mean 'weight_bits'?",
        ),
        (
            BASE + "[search]\nmin_bits = 5\nmax_bits = 4",
            "[search] has min_bits 5 above max_bits 4; lower min_bits.",
        ),
        (
            BASE + 'schedule = "milestones"\nmilestones = [2, 1]',
            "[train] has milestones [2, 1], expected rising epochs, each once; put them in order.",
        ),
        (
            BASE + 'schedule = "milestones"\nmilestones = [1, 1]',
            "[train] has milestones [1, 1], expected rising epochs, each once; put them in order.",
        ),
        (
            BASE + 'schedule = "milestones"\nmilestones = [1, 3]',
            "[train] has milestones [1, 3], expected epochs before the last, 3; remove what lies beyond.",
        ),
        (
            BASE + 'schedule = "step"\nmilestones = [1]',
            '[train] has milestones [1] and the schedule "step"; set schedule to "milestones".',
        ),
        (
            BASE + "milestones = [1]",
            '[train] has milestones [1] and the schedule "cosine"; set schedule to "milestones".',
        ),
        (
            BASE + 'schedule = "milestones"',
            '[train] has the schedule "milestones" and none of them; add milestones, such as [80, 120].',
        ),
        (BASE + "milestones = [0]", "train.milestones.0 is 0, expected a list of epochs, rising; correct it."),
        (BASE + "milestones = [1.5]", "train.milestones.0 is 1.5, expected a list of epochs, rising; correct it."),
        (BASE + "milestones = 5", "train.milestones is 5, expected a list of epochs, rising; correct it."),
        (BASE + "step_factor = 0.0", "train.step_factor is 0.0, expected a number above 0, at most 1; correct it."),
        (BASE + "decay = 0.1", "'train.decay' is not a key of [train]; did you mean 'weight_decay'?"),
        (BASE + "milestone = [1]", "'train.milestone' is not a key of [train]; did you mean 'milestones'?"),
        ("data = 3", "data is 3, expected a table; correct it."),
    ],
)
def test_mistakes_are_named_in_one_sentence(text, sentence):
    with pytest.raises(BitwrightError) as caught:
        parse_config(text, source="net.toml")
    assert str(caught.value) == f"net.toml: {sentence}"


def test_unknown_key_without_a_near_one_lists_the_known():
    with pytest.raises(BitwrightError, match=r"which knows name, validation, images, shift, flip; remove it"):
        parse_config(BASE.replace('name = "digits"', 'name = "digits"\nxyzzy = 1'))


def test_broken_toml_names_the_line():
    with pytest.raises(BitwrightError, match=r"net.toml is not TOML: .*line 1"):
        parse_config("data = ?", source="net.toml")


def test_missing_and_binary_files(tmp_path):
    with pytest.raises(BitwrightError, match=r"Cannot read .*none.toml: No such file"):
        load_config(tmp_path / "none.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BitwrightError, match="not a text file"):
        load_config(tmp_path / "binary.toml")


def test_first_difference_names_key_and_values():
    a, b = parse_config(BASE), parse_config(BASE.replace("epochs = 3", "epochs = 4"))
    assert first_difference(a, b, ("train",)) == "train.epochs is 3 instead of 4"
    assert first_difference(a, b, ("data", "model")) is None
    quantized = parse_config(BASE + QUANTIZE + "weight_bits = 2")
    assert (first_difference(a, quantized, ("quantize",)) or "").startswith("quantize is absent instead of")
