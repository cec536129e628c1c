"""What a file of this package offers under one name."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, TypeVar

from torch import nn

from bitwright.hw.errors import BitwrightError
from bitwright.sw.quantizers.base import ActivationQuantizer, Quantizer, WeightQuantizer

Kind = TypeVar("Kind", bound=Quantizer)


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
        Quantizer that takes the place of an activation function, by the type of that function; empty where the method
        is for weights only.
    """

    name: str
    weights: type[WeightQuantizer]
    activations: Mapping[type[nn.Module], type[ActivationQuantizer]] = field(default_factory=dict)

    @property
    def weight_bits(self) -> range:
        """Numbers of bits offered for weights."""
        return self.weights.BITS

    @property
    def activation_bits(self) -> range:
        """Numbers of bits offered for activations."""
        self._expect_activations()
        return next(iter(self.activations.values())).BITS

    def quantize_weights(self, bits: int, options: Mapping[str, Any] | None = None) -> WeightQuantizer:
        """Quantizer of weights, with options by name."""
        return self._make(self.weights, bits, options or {}, "weights")

    def replace_activation(
        self, function: nn.Module, bits: int, options: Mapping[str, Any] | None = None
    ) -> ActivationQuantizer:
        """Quantizer that takes the place of an activation function, with options by name."""
        self._expect_activations()
        quantizer = self.activations.get(type(function))
        if quantizer is None:
            known = " or ".join(kind.__name__ for kind in self.activations)
            raise BitwrightError(f"Method {self.name!r} does not quantize {type(function).__name__}, expected {known}.")
        return self._make(quantizer, bits, options or {}, "activations")

    def _expect_activations(self) -> None:
        if not self.activations:
            raise BitwrightError(
                f"Method {self.name!r} is for weights only; choose another one for activations, such as 'dorefa'."
            )

    def _make(self, kind: type[Kind], bits: int, options: Mapping[str, Any], what: str) -> Kind:
        parameters = inspect.signature(kind).parameters.values()
        known = [parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]
        for option in options:
            if option not in known:
                near = get_close_matches(option, known, 1)
                hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(known) or 'none'}."
                raise BitwrightError(f"Method {self.name!r} has no option {option!r} for {what}; {hint}")
        return kind(bits, **options)
