"""Quantizers with a basis, for tests: fitted to the weights given, or of numbers given."""

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from bitwright.sw.quantize import Recipe, quantize
from bitwright.sw.quantizers import WeightQuantizer
from bitwright.sw.quantizers.basis import BasisActivation, BasisCodes, BasisEncoding, fit_basis
from bitwright.sw.stages import stages


class BasisWeight(WeightQuantizer):
    """Weights of a basis: fitted by least squares, or with a generator of a random basis and random codes."""

    def __init__(self, bits: int, encoding: BasisEncoding, generator: torch.Generator | None = None) -> None:
        super().__init__(bits)
        self.basis_encoding: BasisEncoding = encoding
        self.generator = generator
        self.drawn: dict[tuple[int, ...], BasisCodes] = {}

    @property
    def encoding(self) -> BasisEncoding:
        return self.basis_encoding

    def codes(self, weight: Tensor) -> Any:
        if self.generator is None:
            return fit_basis(weight, self.bits, self.encoding)
        if weight.shape not in self.drawn:
            codes = torch.randint(0, 1 << self.bits, weight.shape, generator=self.generator)
            basis = torch.randn(len(weight), self.bits, dtype=torch.float64, generator=self.generator)
            self.drawn[weight.shape] = BasisCodes(codes, basis, self.encoding)
        return self.drawn[weight.shape]

    def quantized(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError("numbers with a basis have no scale; the parent's codes and forward are overridden")

    def forward(self, weight: Tensor) -> Tensor:
        return self.codes(weight.detach()).values().to(weight.dtype)


class GivenBasis(BasisActivation):
    """Activation of a given basis."""

    def __init__(self, basis: Sequence[float | Fraction], offset: Fraction = Fraction(0)) -> None:
        super().__init__(len(basis))
        self.given, self.lowest = [Fraction(value) for value in basis], offset

    def basis(self) -> list[Fraction]:
        return self.given

    def offset(self) -> Fraction:
        return self.lowest


def with_bases(
    model: nn.Sequential, weights: Mapping[str, WeightQuantizer], recipe: Recipe | None = None
) -> nn.Sequential:
    """Quantize by a recipe, which leaves layers in float that then get these quantizers."""
    network = quantize(model, recipe or Recipe())
    for stage in stages(network):
        if stage.name in weights:
            parametrize.register_parametrization(stage.layer, "weight", weights[stage.name])
    return network
