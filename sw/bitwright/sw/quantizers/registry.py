"""What a file of this package offers under one name."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from bitwright.hw.errors import BitwrightError
from bitwright.sw.quantizers.base import ActivationQuantizer, WeightQuantizer


@dataclass(frozen=True)
class Method:
    """A quantization method.

    Attributes
    ----------
    name
        As recipes spell it.
    weights
        Quantizer of weights.
    activations
        Quantizer that takes the place of an activation function, by the type of that function.
    """

    name: str
    weights: type[WeightQuantizer]
    activations: Mapping[type[nn.Module], type[ActivationQuantizer]]

    @property
    def weight_bits(self) -> range:
        """Numbers of bits offered for weights."""
        return self.weights.BITS

    @property
    def activation_bits(self) -> range:
        """Numbers of bits offered for activations."""
        return next(iter(self.activations.values())).BITS

    def replace_activation(self, function: nn.Module, bits: int) -> ActivationQuantizer:
        """Quantizer that takes the place of an activation function."""
        quantizer = self.activations.get(type(function))
        if quantizer is None:
            known = " or ".join(kind.__name__ for kind in self.activations)
            raise BitwrightError(f"Method {self.name!r} does not quantize {type(function).__name__}, expected {known}.")
        return quantizer(bits)
