"""Descriptors as signals: what the hardware keeps of their fields, and pass words."""

from amaranth.hdl import signed, unsigned
from amaranth.lib import data

from bitwright.hw.isa import ArraySpec, descriptor_fields

PASS = data.StructLayout({"weight_offset": 14, "plane": 4, "base": 10, "negate": 1, "doubles": 3})
"""A pass word, as :meth:`bitwright.hw.isa.Pass.encode` lays it out."""


def descriptor_layout(spec: ArraySpec) -> data.StructLayout:
    """Fields of a descriptor header, as many bits of each as the hardware keeps."""
    return data.StructLayout(
        {
            field.name: signed(field.width) if field.signed else unsigned(field.width)
            for field in descriptor_fields(spec)
        }
    )
