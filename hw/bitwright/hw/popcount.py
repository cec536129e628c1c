"""Counting the set bits of a word."""

from amaranth.hdl import Cat, Value


def popcount(word: Value) -> Value:
    """Count the set bits of ``word`` with a balanced tree of adders.

    Returns
    -------
    Value
        Unsigned, as wide as the count needs. Full adders take three bits each first, then pairs of sums are added:
        a tree elaborates and synthesizes far better than a chain.
    """
    sums: list[Value] = [word[index] for index in range(len(word))]
    while len(sums) > 1:
        arity = 3 if len(sums[0]) == 1 and len(sums) > 2 else 2
        groups = [sums[index : index + arity] for index in range(0, len(sums), arity)]
        sums = [_add(group) for group in groups]
    return sums[0][: len(word).bit_length()]


def _add(group: list[Value]) -> Value:
    if len(group) == 3:  # a full adder
        a, b, c = group
        return Cat(a ^ b ^ c, (a & b) | (c & (a ^ b)))
    total = group[0]
    for term in group[1:]:
        total = total + term
    return total
