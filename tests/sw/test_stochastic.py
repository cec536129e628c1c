import itertools
from collections import Counter
from typing import get_args

import pytest
import torch

from bitwright.hw.errors import BitwrightError
from bitwright.sw import training
from bitwright.sw.config import StochasticConfig, parse_config
from bitwright.sw.models import build
from bitwright.sw.quantize import Recipe, quantize, quantize_share
from bitwright.sw.quantizers import METHODS
from bitwright.sw.quantizers.bwn import BWNWeight
from bitwright.sw.quantizers.dorefa import DoReFaWeight
from bitwright.sw.quantizers.stochastic import (
    EPSILON,
    FUNCTIONS,
    GRANULARITIES,
    RATIOS,
    SELECTIONS,
    StochasticWeight,
    draw,
    log_weights,
    roulette,
)
from bitwright.sw.quantizers.twn import TWNWeight
from bitwright.sw.runs import Run, load_tensors
from bitwright.sw.stages import stages

torch.set_num_threads(1)

ERRORS = torch.tensor([0.2, 0.05, 0.2, 0.1], dtype=torch.float64)


def weights(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# The draw -------------------------------------------------------------------------------------------------------------


def test_worked_example_of_the_roulette():
    """Four filters; 0.58 selects the second, and of the three that are left 0.37 selects the third."""
    inverse = (1 / ERRORS).tolist()
    assert roulette(inverse, [0.58, 0.37]) == [1, 2]
    assert roulette(inverse, [0.0, 0.999, 0.5, 0.5]) == [0, 3, 1, 2]
    assert roulette([1, 0, 1], [0.5]) == [2]  # the cumulative probability has to exceed the number


def probability_of(order, values):
    """Of drawing exactly this order, without replacement."""
    total, result = sum(values), 1.0
    for index in order:
        result *= values[index] / total
        total -= values[index]
    return result


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("function", FUNCTIONS)
def test_draws_have_the_distribution_of_the_roulette(function, count):
    """Sets drawn in one pass against the exact probabilities of the roulette's, by chi squared."""
    torch.manual_seed(count)
    scores = 1 / ERRORS / 8  # softmax of 20 against 10 would leave three of the four without a chance
    values = log_weights(scores, function).exp().tolist()
    trials = 10_000
    batch = [draw(log_weights(scores, function), count).nonzero().flatten().tolist() for _ in range(trials)]
    found = Counter(map(tuple, batch))
    squared = 0.0
    for chosen in itertools.combinations(range(4), count):
        expected = trials * sum(probability_of(order, values) for order in itertools.permutations(chosen))
        squared += (found[chosen] - expected) ** 2 / expected
    assert squared < 24  # at most 5 degrees of freedom: exceeded with a probability of 2e-4


def test_the_roulette_has_the_probabilities_that_are_compared_with():
    torch.manual_seed(0)
    values = (1 / ERRORS).tolist()
    trials = 10_000
    found = Counter(tuple(roulette(values, pair)) for pair in torch.rand(trials, 2, dtype=torch.float64).tolist())
    squared = sum(
        (found[order] - trials * probability_of(order, values)) ** 2 / (trials * probability_of(order, values))
        for order in itertools.permutations(range(4), 2)
    )
    assert squared < 34  # 11 degrees of freedom: exceeded with a probability of 4e-4


def test_scores_become_probabilities_as_published():
    scores = torch.tensor([0.5, 2.0, 10.0], dtype=torch.float64)
    for function, formula in {
        "constant": torch.ones_like,
        "linear": lambda f: f,
        "softmax": torch.exp,
        "sigmoid": lambda f: 1 / (1 + torch.exp(-f)),
    }.items():
        expected = formula(scores)
        torch.testing.assert_close(log_weights(scores, function).exp(), expected)
    for function in FUNCTIONS:  # filters without an error have a score of 1e7, of which exp overflows
        assert log_weights(torch.tensor([0.0, 1 / EPSILON]).double(), function).isfinite().all()


def test_errors_are_relative_and_zero_for_filters_of_zeros():
    """By hand: |W - Q| is 0.4 of 2 and 0 of 2, and the last filter is zero; zero errors are certain to be drawn."""
    weight = torch.tensor([[0.8, -1.2], [1.0, -1.0], [0.0, 0.0]])
    wrapped = StochasticWeight(BWNWeight())
    wrapped.ratio = 2 / 3
    chosen = torch.stack([wrapped.draw(weight, wrapped.quantizer(weight)) for _ in range(200)]).double().mean(0)
    assert chosen.flatten().tolist() == [0.0, 1.0, 1.0]


@pytest.mark.parametrize("selection", SELECTIONS)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_small_errors_are_quantized_more_often(selection, function):
    torch.manual_seed(0)
    real = torch.tensor([[1.0], [1.0], [1.0], [1.0]])
    quantized = real - torch.tensor([[0.9], [0.3], [0.5], [0.8]])
    wrapped = StochasticWeight(BWNWeight(), function=function, selection=selection)
    often = torch.stack([wrapped.draw(real, quantized) for _ in range(4000)]).double().mean(0).flatten()
    assert often.sum() == pytest.approx(2)
    if function == "constant":
        assert (often - 0.5).abs().max() < 0.04
    else:
        assert often.argmax() == 1
        assert often.argmin() == 0


def test_the_released_code_and_the_paper_are_two_distributions():
    """Of three filters: one drawn to be quantized by ``1/e``, or two drawn to stay real by ``e``."""
    errors = [0.3, 0.3, 0.9]
    to_quantize = probability_of([2], [1 / error for error in errors])
    stays = sum(probability_of(order, errors) for order in itertools.permutations(range(3), 2) if 2 in order)
    assert (to_quantize, 1 - stays) == pytest.approx((1 / 7, 0.1))
    torch.manual_seed(0)
    real, quantized = torch.ones(3, 1), 1 - torch.tensor(errors)[:, None]
    for selection, expected in (("quantized", to_quantize), ("real", 1 - stays)):
        wrapped = StochasticWeight(BWNWeight(), selection=selection)
        wrapped.ratio = 1 / 3
        often = sum(int(wrapped.draw(real, quantized)[2]) for _ in range(4000)) / 4000
        assert often == pytest.approx(expected, abs=0.021)  # less than half the difference


# The quantizer --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_any_method_is_quantized_in_part_in_training_and_whole_in_evaluation(name, granularity):
    torch.manual_seed(0)
    offered = METHODS[name].weight_bits
    weight = weights(16, 4, 3, 3) * 0.2
    quantizer = METHODS[name].quantize_weights(2 if 2 in offered else offered[0])
    wrapped = StochasticWeight(quantizer, granularity=granularity).train()
    wrapped.fit(weight)
    real = wrapped.surrogate(weight)
    for ratio, expected in ((0.5, 0.5), (0.75, 0.75), (0.875, 0.875)):
        wrapped.ratio = ratio
        mixed = wrapped(weight)
        kept = mixed == real
        share = kept.flatten(1).all(1) if granularity == "filter" else kept
        assert share.double().mean().item() >= 1 - expected
        assert share.double().mean().item() < 1 - expected + 0.1
    wrapped.ratio = 0.5
    assert not torch.equal(wrapped(weight), wrapped(weight))  # redrawn
    wrapped.ratio = 1.0
    wrapped.eval()
    whole = wrapped(weight)
    assert torch.equal(whole, quantizer(weight))
    wrapped.ratio = 0.5
    assert torch.equal(wrapped(weight), whole)


@pytest.mark.parametrize("kind", [TWNWeight, lambda: BWNWeight(gradient="straight")])
def test_the_gradient_of_the_mixture_reaches_all_real_weights(kind):
    weight = weights(8, 4).requires_grad_()
    upstream = weights(8, 4, seed=1)
    (found,) = torch.autograd.grad(StochasticWeight(kind())(weight), weight, upstream)
    assert torch.equal(found, upstream)


def test_weights_that_stay_real_are_what_the_method_rounds():
    """Of DoReFa the normalized tanh: in the units of the quantized weights, and with its gradient."""
    torch.manual_seed(0)
    weight = weights(8, 6).double().requires_grad_()
    wrapped = StochasticWeight(DoReFaWeight(3))
    mixed = wrapped(weight)
    bent = wrapped.surrogate(weight)
    kept = (mixed == bent).all(1)
    assert kept.sum() == 4
    upstream = weights(8, 6, seed=1).double()
    found = torch.autograd.grad(mixed, weight, upstream)
    expected = torch.autograd.grad(bent, weight, upstream)
    torch.testing.assert_close(found, expected)


def test_options_are_checked():
    for option, value in {"function": "lineal", "selection": "all", "granularity": "layer"}.items():
        with pytest.raises(BitwrightError, match=f"The option {option} is '{value}', expected '"):
            StochasticWeight(TWNWeight(), **{option: value})


# Training -------------------------------------------------------------------------------------------------------------

TEXT = """
[data]
name = "digits"
[model]
name = "mlp"
options = { hidden = [16] }
[train]
epochs = 1
learning_rate = 1e-2
threads = 1
[quantize]
weights = "twn"
weight_bits = 2
activations = "dorefa"
activation_bits = 2
[quantize.stochastic]
"""


def test_configuration_and_quantizer_offer_the_same():
    fields = StochasticConfig.model_fields
    for name, values in (("function", FUNCTIONS), ("selection", SELECTIONS), ("granularity", GRANULARITIES)):
        assert get_args(fields[name].annotation) == values
    assert tuple(StochasticConfig().ratios) == RATIOS
    with pytest.raises(BitwrightError, match=r'quantize\.stochastic\.function is "lin", expected "linear", "constant"'):
        parse_config(TEXT + 'function = "lin"')
    with pytest.raises(BitwrightError, match="expected a list of numbers above 0, at most 1"):
        parse_config(TEXT + "ratios = []")


def test_recipes_wrap_every_layer():
    recipe = Recipe(weights="bwn", weight_bits=1, stochastic={"granularity": "element"})
    network = quantize(build("mlp", (1, 8, 8), 10), recipe)
    for stage in stages(network):
        assert isinstance(stage.weight_quantizer, StochasticWeight)
        assert (stage.weight_quantizer.granularity, stage.weight_quantizer.encoding) == ("element", "bipolar")
    quantize_share(network, 0.75)
    assert {stage.weight_quantizer.ratio for stage in stages(network)} == {0.75}  # pyright: ignore


def test_training_goes_through_the_stages_and_resumes_to_the_same_bits(tmp_path, monkeypatch):
    config = parse_config(TEXT + "ratios = [0.5, 0.875, 1.0]")
    seen = []
    descend = training.descend

    def watched(model, optimizer, pixels, labels):
        (ratio,) = {stage.weight_quantizer.ratio for stage in stages(model)}  # pyright: ignore
        seen.append((ratio, optimizer.param_groups[0]["lr"], len(optimizer.state)))
        if len(seen) == stop:
            raise KeyboardInterrupt
        return descend(model, optimizer, pixels, labels)

    monkeypatch.setattr(training, "descend", watched)
    stop = -1
    result = training.train(config, tmp_path / "whole", progress=False)
    assert result.epochs == 3
    assert result.test_accuracy > 0.6
    steps = len(seen) // 3
    for stage, ratio in enumerate((0.5, 0.875, 1.0)):  # rate and optimizer begin anew
        assert {entry[0] for entry in seen[stage * steps : (stage + 1) * steps]} == {ratio}
        assert seen[stage * steps][1:] == (1e-2, 0)
        assert seen[(stage + 1) * steps - 1][1] < 1e-3

    seen.clear()
    stop = steps + 3
    with pytest.raises(training.Interrupted):
        training.train(config, tmp_path / "resumed", progress=False)
    stop = -1
    training.train(config, tmp_path / "resumed", progress=False)
    ends = [load_tensors(Run(tmp_path / name).checkpoint("last")) for name in ("whole", "resumed")]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
