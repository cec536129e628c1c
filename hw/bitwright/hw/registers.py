"""Registers on the way of a signal."""

from amaranth.hdl import Module, Signal, Value


def registered(m: Module, name: str, value: Value, stages: int = 1) -> Value:
    """Value behind some registers, which nothing resets.

    Parameters
    ----------
    m
        Module to which they are added.
    name
        Prefix of their names.
    value
        What is to come later.
    stages
        Registers, one behind the other.
    """
    for stage in range(stages):
        following = Signal(len(value), name=f"{name}_{stage}", reset_less=True)
        m.d.sync += following.eq(value)
        value = following
    return value
