"""Stochastic quantization (Dong et al., BMVC 2017, arXiv 1708.01001), around any quantizer of weights.

At every step of training only a share of a layer's filters is quantized, those with a small error more likely; the
others stay real. The share grows from stage to stage of training; at test time everything is quantized.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from bitwright.hw.isa import Encoding
from bitwright.sw.quantizers.base import Quantizer, WeightCodes, WeightQuantizer, one_of

RATIOS = (0.5, 0.75, 0.875, 1.0)
"""Shares of quantized filters, from stage to stage: the exponential schedule, the best of the paper."""

EPSILON = 1e-7
"""What keeps the inverse of an error finite; the paper's value is not known here."""

FUNCTIONS = "linear", "constant", "softmax", "sigmoid"
SELECTIONS = "quantized", "real"
GRANULARITIES = "filter", "element"


class StochasticWeight(WeightQuantizer):
    """A quantizer of weights that in training quantizes a share :attr:`ratio` of the filters, drawn at every step.

    The quantized filters are what the quantizer makes of them, gradient included; the others are real, with the
    gradient of its surrogate. For a quantizer whose gradient passes unchanged this is the paper's rule. (BWN is trained
    so with its option ``gradient = "straight"``.)

    Filters are drawn without replacement, one after the other, each time with probabilities ``p`` renormalized over
    those that are left (:func:`roulette`). In one pass: to ``log p`` add Gumbel noise, and take the greatest sums. The
    greatest is that of filter ``i`` with the probability ``p_i / sum(p)``, whatever its value (the Gumbel-max trick).
    Among the others the greatest is then found by the same rule, and so on: the distributions are equal.

    Parameters
    ----------
    quantizer
        What quantizes.
    function
        How a score ``f``, for a selection ``quantized`` the inverse error ``1 / (e + 1e-7)``, becomes a probability:
        ``linear``: ``f``; ``constant``: 1; ``softmax``: ``exp(f)``; ``sigmoid``: ``1 / (1 + exp(-f))``; each divided by
        its sum. ``e`` is ``|W - Q|_1 / |W|_1`` of the filter, 0 for a filter of zeros.
    selection
        ``quantized`` draws the filters that are quantized, as the paper has it; ``real`` those that stay real, by
        scores ``f = e``, as the authors' released code does (with ``linear``). Both favour small errors, and are
        different distributions.
    granularity
        ``filter``, an output channel; or ``element``: every weight is a filter of its own.
    """

    def __init__(
        self,
        quantizer: WeightQuantizer,
        *,
        function: str = "linear",
        selection: str = "quantized",
        granularity: str = "filter",
    ) -> None:
        super(Quantizer, self).__init__()  # the bits are checked already
        self.bits = quantizer.bits
        self.quantizer = quantizer
        self.network_wide = quantizer.network_wide
        self.function = one_of("function", function, FUNCTIONS)
        self.selection = one_of("selection", selection, SELECTIONS)
        self.granularity = one_of("granularity", granularity, GRANULARITIES)
        self.ratio = RATIOS[0]

    def extra_repr(self) -> str:
        """Show how filters are drawn where the module is printed."""
        return f"function={self.function!r}, selection={self.selection!r}, granularity={self.granularity!r}"

    @property
    def encoding(self) -> Encoding:
        """That of the quantizer."""
        return self.quantizer.encoding

    @property
    def planes(self) -> int:
        """Those of the quantizer."""
        return self.quantizer.planes

    def quantized(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Give what the quantizer gives."""
        return self.quantizer.quantized(weight)

    def surrogate(self, weight: Tensor) -> Tensor:
        """Give that of the quantizer."""
        return self.quantizer.surrogate(weight)

    def limit(self) -> float:
        """Give that of the quantizer."""
        return self.quantizer.limit()

    def constrain(self, weight: Tensor) -> None:
        """Do as the quantizer does."""
        self.quantizer.constrain(weight)

    def calibrate(self, weight: Tensor) -> None:
        """Do as the quantizer does."""
        self.quantizer.calibrate(weight)

    def rate_scale(self, weight: Tensor) -> float:
        """Give that of the quantizer."""
        return self.quantizer.rate_scale(weight)

    def obstacle(self) -> str | None:
        """Give that of the quantizer."""
        return self.quantizer.obstacle()

    def codebook(self) -> Tensor | None:
        """Give that of the quantizer."""
        return self.quantizer.codebook()

    def codes(self, weight: Tensor) -> WeightCodes:
        """Give those of the quantizer, for all weights."""
        return self.quantizer.codes(weight)

    def fit(self, values: Tensor) -> None:
        """Fit the quantizer."""
        self.quantizer.fit(values)

    def forward(self, weight: Tensor) -> Tensor:
        """Quantize; in training only the share :attr:`ratio`."""
        quantized = self.quantizer(weight)
        if not self.training or self.ratio >= 1:
            return quantized
        real = self.surrogate(weight)
        chosen = self.draw(real.detach(), quantized.detach()).to(real.dtype)
        return quantized * chosen + real * (1 - chosen)  # exact, and faster on a CPU than to choose by booleans

    @torch.no_grad()
    def draw(self, real: Tensor, quantized: Tensor) -> Tensor:
        """Draw what is quantized: boolean, of a shape that broadcasts to that of the weights."""
        difference, magnitude = (real - quantized).abs_(), real.abs()
        if self.granularity == "filter":
            axes = tuple(range(1, real.dim()))
            difference, magnitude = difference.sum(axes, keepdim=True), magnitude.sum(axes, keepdim=True)
        errors = difference.div_(magnitude).nan_to_num_(nan=0.0, posinf=0.0)  # of zeros none
        if self.function == "softmax":
            errors = errors.double()  # its scores are so far apart that float32 would lose the draw's noise
        left_real = int((1 - self.ratio) * errors.numel())  # rounded as in the authors' code
        if self.selection == "real":
            chosen = ~draw(log_weights(errors, self.function), left_real)
        else:
            scores = errors.add_(EPSILON).reciprocal_()
            chosen = draw(log_weights(scores, self.function), errors.numel() - left_real)
        return chosen


def log_weights(scores: Tensor, function: str) -> Tensor:
    """Logarithms of probabilities that are not normalized, by one of :data:`FUNCTIONS`."""
    if function == "constant":
        return torch.zeros_like(scores)
    if function == "linear":
        return scores.clamp(min=torch.finfo(scores.dtype).tiny).log()
    return scores if function == "softmax" else functional.logsigmoid(scores)


def draw(logarithms: Tensor, count: int) -> Tensor:
    """Draw ``count`` elements without replacement, by logarithms of their weights: boolean, of the same shape.

    The same distribution as :func:`roulette`, in one pass.
    """
    flat = logarithms.flatten()
    gumbel = torch.rand_like(flat).log_().neg_().log_().neg_()
    chosen = torch.zeros_like(flat, dtype=torch.bool)
    chosen[gumbel.add_(flat).topk(count, sorted=False).indices] = True
    return chosen.reshape(logarithms.shape)


def roulette(weights: Sequence[float], draws: Sequence[float]) -> list[int]:
    """Draw without replacement as the paper describes it, one element for each of ``draws`` from [0, 1).

    Each time the weights of the elements that are left are divided by their sum; the first element at which their
    cumulative sum exceeds the number drawn is selected, and removed. Returns the elements in the order of their
    selection.
    """
    left = list(range(len(weights)))
    selected: list[int] = []
    for number in draws:
        cumulative = torch.tensor([weights[index] for index in left], dtype=torch.float64).cumsum(0)
        place = int((cumulative / cumulative[-1] <= number).sum())
        selected.append(left.pop(place))
    return selected
