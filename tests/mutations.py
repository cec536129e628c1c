"""Faults put into the hardware by hand, each of which the exactness of tiny programs has to show.

Run as a script, this compares tiny programs with the golden model on the hardware that Python finds first, and tells by
its exit code whether they differ.
"""

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

SURVIVED, CAUGHT = 0, 10
"""Exit codes of the script; any other one is a crash."""

PACKAGE = Path(__file__).parents[1] / "hw" / "bitwright" / "hw"


@dataclass(frozen=True)
class Mutation:
    """A fault: one exact replacement in one source file of the hardware.

    Parameters
    ----------
    breaks
        What it breaks.
    file
        Source file in ``bitwright/hw``.
    old, new
        Text that occurs once in the file, and what to put in its place.
    """

    breaks: str
    file: str
    old: str
    new: str

    def apply(self, folder: Path) -> None:
        """Write the hardware package with this fault to ``folder/bitwright/hw``.

        Raises
        ------
        ValueError
            If the old text does not occur exactly once: the source has changed, and the mutation has to follow.
        """
        target = folder / "bitwright" / "hw"
        shutil.copytree(PACKAGE, target, ignore=shutil.ignore_patterns("__pycache__"))
        source = (target / self.file).read_text()
        if (count := source.count(self.old)) != 1:
            raise ValueError(f"{self.file} has {count} times {self.old!r}, expected once; update the mutation.")
        (target / self.file).write_text(source.replace(self.old, self.new))


MUTATIONS = (
    # Counting and accumulating.
    Mutation("carry of a full adder", "popcount.py", "named((a & b) | (half & c))", "named((a & b) | (a & c))"),
    Mutation("count of a full word", "popcount.py", "[: len(word).bit_length()]", "[: len(word).bit_length() - 1]"),
    Mutation("two's complement", "pe.py", "base + addend + control.negate", "base + addend"),
    Mutation("negate dropped", "pe.py", " ^ control.negate.replicate(self.width)", ""),
    Mutation("clear ignored", "pe.py", "Mux(control.clear, 0, ", "Mux(0, 0, "),
    Mutation("doubling ignored", "pe.py", "Mux(control.double, self.sum << 1, self.sum)", "self.sum"),
    Mutation("gated words count", "pe.py", "(count & self.enable.replicate(len(count)))", "count"),
    Mutation("enable a cycle early", "array.py", "active_sum.eq(active_count)", "active_sum.eq(self.active)"),
    Mutation("control a cycle early", "array.py", "control_sum.eq(control_count)", "control_sum.eq(self.control)"),
    Mutation("drain chain stuck", "array.py", "chain.eq(chain >> width)", "chain.eq(chain)"),
    Mutation(
        "column sums all of column 0", "array.py", "total.word.eq(activations[column])", "total.word.eq(activations[0])"
    ),
    # Fetching.
    Mutation("bottom padding", "fetch.py", "(y < layer.input_height)", "(y <= layer.input_height)"),
    Mutation("right padding", "fetch.py", "(x < layer.input_width)", "(x <= layer.input_width)"),
    Mutation("dilation ignored", "fetch.py", "tap_left.eq(tap_left + layer.dilation)", "tap_left.eq(tap_left + 1)"),
    Mutation("address of a kernel row", "fetch.py", "tap_offset.eq(next_row)", "tap_offset.eq(next_row + 1)"),
    Mutation("plane 0 read for all", "fetch.py", "plane_offset + layer.input_plane_stride", "plane_offset"),
    Mutation(
        "address of an outer step", "fetch.py", "for inner in addresses[level:]]", "for inner in addresses[level:-1]]"
    ),
    Mutation("column of an outer step", "fetch.py", "[inner.eq(x) for inner in xs[level:]]", "[xs[level].eq(x)]"),
    Mutation("skip stuck off", "fetch.py", 'active.any() if spec.zero_skip == "skip" else 1', "1"),
    Mutation("zero flags ignored", "fetch.py", "inside & self.nonzero", "inside"),
    Mutation(
        "last word of a list lost",
        "fetch.py",
        "lengths[entry_plane].eq(length + push)",
        "lengths[entry_plane].eq(length)",
    ),
    Mutation("one list buffer", "fetch.py", "self.buffer.eq(~self.buffer)", "self.buffer.eq(self.buffer)"),
    Mutation("output address", "fetch.py", "output_pointer + layer.output_words", "output_pointer + 1"),
    # Control.
    Mutation("first pass clears every word", "sequencer.py", "item.first & (index == 0)", "item.first"),
    Mutation("doubling at every word", "sequencer.py", "item.word.double & (index == 0)", "item.word.double"),
    Mutation("empty passes compute", "sequencer.py", "operation.empty.eq(length == 0)", "operation.empty.eq(0)"),
    Mutation("drain credit one short", "sequencer.py", "group.drain_cycles - 1", "group.drain_cycles - 2"),
    Mutation(
        "weights of tile 0 for all", "sequencer.py", "weight_address + layer.weight_tile_stride", "weight_address"
    ),
    Mutation(
        "thresholds of a tile", "sequencer.py", "threshold_address + thresholds", "threshold_address + thresholds + 1"
    ),
    Mutation("a slot too few", "sequencer.py", "slot == derived.slots - 1", "slot == derived.slots - 2"),
    Mutation("a pass too many", "sequencer.py", "next_pass == layer.passes - 1", "next_pass == layer.passes"),
    Mutation("weight plane ignored", "sequencer.py", "weight_address + item.word.weight_offset", "weight_address"),
    # Draining.
    Mutation(
        "threshold > instead of >=", "drain.py", "(self.value >= self.entry.value)", "(self.value > self.entry.value)"
    ),
    Mutation("negative gain ignored", "drain.py", " ^ self.entry.negate", ""),
    Mutation(
        "column sum not doubled",
        "drain.py",
        "(self.sums[row] << 1) - self.column_sum",
        "self.sums[row] - self.column_sum",
    ),
    Mutation("search forgets its bit", "drain.py", "unit.next_code | (step >> 1)", "unit.code | (step >> 1)"),
    Mutation("pool min and max swapped", "drain.py", "~smaller, smaller)", "smaller, ~smaller)"),
    Mutation(
        "carried pool not read", "drain.py", "Mux(pool_tile_first, carry_read.data[row], pooled[row])", "pooled[row]"
    ),
    Mutation("carried pool not written", "drain.py", "pooling & pool_tile_last & ~", "0 & ~"),
    Mutation("wrong plane written", "drain.py", "outgoing[row][0]", "outgoing[row][1]"),
    Mutation("zero flag of the last tile only", "drain.py", " | ((slot != 0) & flag_read.data)", ""),
    Mutation("zero flag of an older word", "drain.py", "(slot != 0) & flag_read.data", "flag_read.data"),
    Mutation("zero flags out of order", "drain.py", "start_write & pool_tile_unwritten", "start_write"),
    Mutation(
        "address of an output pixel", "drain.py", "tile.output_address + layer.output_words", "tile.output_address"
    ),
    Mutation(
        "a raw result too many",
        "drain.py",
        "tile.channel + raw_row < layer.channels",
        "tile.channel + raw_row <= layer.channels",
    ),
    Mutation("layer ends a column early", "drain.py", "pool_tile.last & pool_tile_last", "pool_tile.last"),
    # The whole.
    Mutation("stale lanes not cleared", "accelerator.py", "(chosen[0] | chosen[slot])", "(chosen[slot])"),
    Mutation("unused lanes not cleared", "accelerator.py", "rest = chosen[0].replicate", "rest = Signal().replicate"),
    Mutation("wrong slot", "accelerator.py", "drain.write_slot == slot", "drain.write_slot == slot ^ 1"),
    Mutation(
        "word's number not added",
        "accelerator.py",
        "operation.weight_address + scanner.entry.word",
        "operation.weight_address",
    ),
    Mutation("addresses a cycle early", "accelerator.py", "with m.If(taken):", "with m.If(issuer.take):"),
    Mutation(
        "host writes set no zero flag",
        "accelerator.py",
        "store.write_flag.eq(host.write_word.any())",
        "store.write_flag.eq(1)",
    ),
    Mutation("invalid columns counted", "accelerator.py", "popcount(m, valid & ~active & ", "popcount(m, ~active & "),
    Mutation("word committed by its first chunk", "host.py", "(chunk == derived.chunks - 1)", "(chunk == 0)"),
    Mutation("counters not cleared", "host.py", "self.counters.eq(0), done.eq(0)", "done.eq(0)"),
    Mutation(
        "row of a write",
        "host.py",
        "self.write_row.eq(word_address[derived.weight_address_width :])",
        "self.write_row.eq(0)",
    ),
)


def first_difference() -> str | None:
    """First thing in which any tiny program differs from the golden model."""
    from bitwright.hw.errors import BitwrightError
    from bitwright.sim import golden
    from bitwright.sim.backends import simulate
    from bitwright.sim.compare import compare
    from tiny import CASES

    for name, case in CASES.items():
        program, images = case("skip")
        trace = range(len(program.parsed))
        expected = golden.execute(program, images, trace=trace)
        try:
            found = simulate(program, images, "pysim", trace)
        except BitwrightError as error:  # it hangs or stops
            return f"{name}: {error}"
        for pair in zip(expected, found, strict=True):
            if first := compare(*pair).first:
                return f"{name}: {first}"
    return None


if __name__ == "__main__":
    difference = first_difference()
    print(difference)
    sys.exit(CAUGHT if difference else SURVIVED)
