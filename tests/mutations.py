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
    Mutation("negate dropped", "pe.py", "terms[0] ^ negate.replicate(width)", "terms[0]"),
    Mutation("two's complement", "pe.py", "kept + added + carry", "kept + added"),
    Mutation("clear ignored", "pe.py", "Mux(base.clear, 0, ", "Mux(0, 0, "),
    Mutation("doubling ignored", "pe.py", "Mux(base.double, total << 1, total)", "total"),
    Mutation("held words count", "pe.py", "[count.eq(0), negative.eq(0)]", "negative.eq(0)"),
    Mutation("bipolar coefficient", "pe.py", "Mux(self.bipolar, self.column_count, ", "Mux(0, self.column_count, "),
    Mutation("activity a cycle early", "array.py", '"idle", ~self.active, ', '"idle", ~self.active, -1 + '),
    Mutation("control a cycle early", "array.py", "added, counted + multiply", "added, counted - 1 + multiply"),
    Mutation("column sums of residuals", "array.py", " | self.residual.replicate(spec.columns)", ""),
    Mutation("drain stuck at column 0", "array.py", "following.eq(following << 1)", "following.eq(following)"),
    Mutation(
        "column sums of column 0", "array.py", "total.word.eq(activations[column])", "total.word.eq(activations[0])"
    ),
    Mutation("weights held too long", "array.py", "with m.If(self.some_active):", "with m.If(self.active.all()):"),
    Mutation("entry of the next operation", "accelerator.py", "Value.cast(entry))", "Value.cast(entry), 0)"),
    # Walking windows and their reads.
    Mutation("a loop an iteration longer", "walkers.py", "left == 2", "left == 1"),
    Mutation(
        "loops inside left out of the last one", "walkers.py", "all_ended.eq(ends_next)", "all_ended.eq(end_next)"
    ),
    Mutation("last chunk of activations lost", "host.py", "(staging, activation_value)", "(staging, 0)"),
    Mutation("first of a pooling window", "walkers.py", "Cat(*moves[:4])", "Cat(*moves[:3])"),
    Mutation("outer loop forgets inner ones", "walkers.py", "Cat(moves[: level + 2])", "Cat(moves[: level + 1])"),
    Mutation("image row in a pooling window", "walkers.py", "layer.pool_y_rows, None)", "None, None)"),
    Mutation("plane step ignored", "walkers.py", '"offset", position, plane_stride,', '"offset", position, None,'),
    Mutation("no flush of a straddling chunk", "walkers.py", "fills & place_after[:-1].any()", "0"),
    Mutation("chunk of a full run", "walkers.py", "left <= layer.chunk_granules", "left < layer.chunk_granules"),
    Mutation("place kept between planes", "walkers.py", "Mux(read.plane_end, 0, ", "Mux(0, 0, "),
    # Loading windows.
    Mutation("bottom padding", "fetch.py", "< self.layer.input_height", "<= self.layer.input_height"),
    Mutation("left padding", "fetch.py", "Mux(x[place_bits:].all(), -x, granules)", "0"),
    Mutation("right padding", "fetch.py", "Mux(room[place_bits:].any(), granules, room)", "granules"),
    Mutation("granules beyond a chunk", "fetch.py", "read.place + read.granules", "read.place + granules"),
    Mutation("rotation the wrong way", "fetch.py", "place - self.position", "place + self.position"),
    Mutation("start of the next word lost", "fetch.py", "placed & _lanes(beyond), self.word", "0, self.word"),
    Mutation("address of the residual", "fetch.py", "residual, column.residual_position,", "residual, position,"),
    Mutation(
        "columns of a copy in turn", "fetch.py", "columns[number - share + 1] if last_of_copy else after", "after"
    ),
    Mutation("windows that are not there", "fetch.py", "Mux(valid, end_next, 0)", "end_next"),
    Mutation("one buffer", "fetch.py", "Cat(word[:-1], stage.buffer)", "Cat(word[:-1], Const(0))"),
    Mutation("half filled before it is free", "fetch.py", "~occupied.as_value().all() | self.release", "1"),
    Mutation("drain cycles of all groups", "fetch.py", "drain_cycles.eq(0)", "drain_cycles.eq(drain_cycles)"),
    # Word lists.
    Mutation("number of the next word listed", "fetch.py", '"number": number,', '"number": next_word,'),
    Mutation("zero words listed", "fetch.py", "active.any() | (self", "Const(1) | (self"),
    Mutation("words of dense layers skipped", "fetch.py", "(self.layer.flags & FLAG_DENSE).any() if", "0 if"),
    Mutation(
        "zero found in one bank", "fetch.py", "self.nonzero.eq(bank_nonzero.any())", "self.nonzero.eq(bank_nonzero[0])"
    ),
    Mutation("last word of a list lost", "fetch.py", "length_write.data.eq(listed)", "length_write.data.eq(length)"),
    Mutation("lists not at their planes", "fetch.py", "address.eq(next_word)", "address.eq(address + lists)"),
    Mutation("words of a plane not numbered anew", "fetch.py", "plane_word.eq(0)", "plane_word.eq(plane_word)"),
    Mutation("activity of another turn", "fetch.py", "turns.insert(0, registered(", "turns.insert(1, registered("),
    # Activation memory.
    Mutation("read past a word's end", "activations.py", "word + (first_bank > bank)", "word"),
    Mutation("write past a word's end", "activations.py", "word + (part > bank)", "word"),
    Mutation("bank of a tile's part", "activations.py", "start[(bank - part) % banks]", "start[bank]"),
    Mutation("granules of a bank", "activations.py", "self.write_granules << within", "self.write_granules"),
    # Layers and passes.
    Mutation("header word a cycle late", "sequencer.py", "m.Case(word + 1)", "m.Case(word)"),
    Mutation(
        "address of the passes", "sequencer.py", "pass_address.eq(pointer + HEADER_WORDS)", "pass_address.eq(pointer)"
    ),
    Mutation("address of the next header", "sequencer.py", "pointer.eq(end)", "pointer.eq(end + 1)"),
    Mutation(
        "header fetched over a running layer", "sequencer.py", '"header" if spec.prefetch else "layer"', '"header"'
    ),
    Mutation(
        "weights of a stream go elsewhere", "streamer.py", "self.layer.weight_base + word", "self.layer.weight_base"
    ),
    Mutation(
        "chunks of a stream the wrong way",
        "streamer.py",
        "Cat(self.write_word, self.beats.payload)[BUS_WIDTH:]",
        "Cat(self.beats.payload, self.write_word)",
    ),
    Mutation("doublings of a dropped pass lost", "schedule.py", "doubles.eq(total)", "doubles.eq(0)"),
    Mutation("doublings twice", "schedule.py", "[started.eq(1), doubles.eq(0)]", "started.eq(1)"),
    Mutation("doublings of nothing", "schedule.py", "m.Elif(started)", "m.Else()"),
    Mutation("doublings of the last passes lost", "schedule.py", "(doubles != 0) | ~started", "~started"),
    Mutation("list begun before the last is taken", "schedule.py", "~self.complete & loaded", "loaded"),
    Mutation("dense passes wait for planes", "schedule.py", "self.group_ready | dense", "self.group_ready"),
    Mutation("dense passes listed anew", "schedule.py", "self.take & ~dense if skip", "self.take if skip"),
    Mutation("lists of dense layers in halves", "schedule.py", "self.entry_buffer & ~dense", "self.entry_buffer"),
    Mutation("pass ahead of its plane", "schedule.py", "self.loaded_planes > entry", "self.loaded_planes >= entry"),
    Mutation(
        "plane of the residual", "schedule.py", "plane >= layer.activation_planes", "plane > layer.activation_planes"
    ),
    Mutation(
        "words left out not counted", "schedule.py", "self.skipped + words - length.words", "self.skipped + words"
    ),
    # Coded weights.
    Mutation(
        "index planes the wrong way",
        "codebook.py",
        "oldest = (index + 1) * chunks - 1",
        "oldest = (spec.codebook_bits - index) * chunks - 1",
    ),
    Mutation(
        "chunks of an index the wrong way", "codebook.py", "oldest - n, BUS_WIDTH", "oldest - chunks + 1 + n, BUS_WIDTH"
    ),
    Mutation("plain words looked up", "codebook.py", "Cat(next_step, taken & complete & plain)", "Cat(next_step, 0)"),
    Mutation(
        "one table for all planes",
        "codebook.py",
        "write_table.addr.eq(Cat(number, self.start))",
        "write_table.addr.eq(Cat(0 * number, self.start))",
    ),
    Mutation(
        "choice of four",
        "codebook.py",
        "choose(high, choose(low, four[0], four[1]), low)",
        "choose(low, four[0], four[1])",
    ),
    Mutation(
        "planes of a coded word side by side",
        "codebook.py",
        "target.eq(target + layer.window_length)",
        "target.eq(target + 1)",
    ),
    Mutation(
        "coded words over the plain ones",
        "codebook.py",
        "m.d.sync += [plain.eq(0), left.eq(layer.window_length)]",
        "m.d.sync += [plain.eq(0), left.eq(layer.window_length), address.eq(tile_address)]",
    ),
    Mutation(
        "row tiles without plain words",
        "codebook.py",
        "plain.eq(begins_plain | (layer.index_planes == 0))",
        "plain.eq(layer.index_planes == 0)",
    ),
    Mutation("row tiles side by side", "codebook.py", "tile_address + layer.weight_tile_stride", "address + 1"),
    Mutation(
        "next row not at its first address",
        "codebook.py",
        "next_tile.eq(Mux(rewind, layer.weight_base, ",
        "next_tile.eq(Mux(self.start, layer.weight_base, ",
    ),
    Mutation(
        "planes cut short by the next word", "codebook.py", "ready.eq(~(complete & active & ~step_end))", "ready.eq(1)"
    ),
    Mutation(
        "stream of another descriptor",
        "accelerator.py",
        "streamer.layer.eq(sequencer.stream_layer)",
        "streamer.layer.eq(sequencer.layer)",
    ),
    Mutation(
        "layer starts a plane early",
        "codebook.py",
        "self.done.eq(active & step_end & final)",
        "self.done.eq(taken & ended)",
    ),
    # Operations.
    Mutation("first pass clears every word", "issuer.py", " & first_extra & first_word", ""),
    Mutation("doubling at every word", "issuer.py", "entry.double & first_word", "entry.double"),
    Mutation("doubling computes", "issuer.py", "operation.empty.eq(empty)", "operation.empty.eq(0)"),
    Mutation("drain waited for a cycle less", "issuer.py", "eq(group.drain_cycles)", "eq(group.drain_cycles - 1)"),
    Mutation("weights of tile 0", "issuer.py", "weight_address + layer.weight_tile_stride", "weight_address"),
    Mutation("weights of one plane", "issuer.py", "weight_address + entry.weight_offset", "weight_address"),
    Mutation("coefficients of tile 0", "issuer.py", "coefficient_address + layer.passes", "coefficient_address"),
    Mutation("list of the first plane", "issuer.py", "Mux(first_word, entry.base, list_address)", "list_address"),
    # Draining.
    Mutation("threshold > instead of >=", "drain.py", "complement + threshold", "complement + threshold + 1"),
    Mutation("negative gain ignored", "drain.py", " ^ (flags & THRESHOLD_NEGATE).any()", ""),
    Mutation("column sum not doubled", "drain.py", "Mux(offset, total << 1, total)", "total"),
    Mutation("search takes the wrong child", "drain.py", "Mux(is_right, right, left)", "Mux(~is_right, right, left)"),
    Mutation("sign of the other child", "drain.py", "right[-1], left[-1]", "left[-1], right[-1]"),
    Mutation("a level twice", "drain.py", "take, incoming = last, after", "take, incoming = last, left"),
    Mutation(
        "stages share a value",
        "drain.py",
        "if number > 0:\n                held",
        "if number > 1:\n                held",
    ),
    Mutation("turns of a comparator's columns", "drain.py", "following = other\n", "pass\n"),
    Mutation("thresholds of the other column", "drain.py", "is_right = next_node[0]", "is_right = node[0]"),
    Mutation("planes of the other column", "drain.py", "left = other\n", "pass\n"),
    Mutation("pool min and max swapped", "drain.py", "~smaller, smaller)", "smaller, ~smaller)"),
    Mutation(
        "carried pool not read",
        "drain.py",
        "carried.eq(columns[-1].tile_first & (layer.row_tiles != 1))",
        "carried.eq(0)",
    ),
    Mutation("carried pool not written", "drain.py", "carry_write.en.eq(writes_carry)", "carry_write.en.eq(0)"),
    Mutation("code table ignored", "drain.py", "Mux((self.layer.flags & FLAG_TABLE).any(), looked_up, rank)", "rank"),
    Mutation("all planes alike", "drain.py", "outgoing.codes[row][number]", "outgoing.codes[row][0]"),
    Mutation("planes at one place", "drain.py", "finished.position + stride * number", "finished.position"),
    Mutation("planes after the first ones", "drain.py", "+ stride * spec.drain_planes", "+ stride"),
    Mutation("lanes without channels", "drain.py", "row < finished.rows", "1"),
    Mutation("thresholds of a tile", "drain.py", "threshold_address + ((1 <<", "threshold_address + 1 + ((1 <<"),
    Mutation("address of an output pixel", "drain.py", "position + layer.output_granules", "position"),
    Mutation("pixels of every tile counted", "drain.py", "Mux(pixel_done & tile.first, ", "Mux(pixel_done, "),
    Mutation("row tiles at one place", "drain.py", "tile_position + Mux(raw, ", "tile_position + 0 * Mux(raw, "),
    Mutation("layers at one place", "drain.py", "m.d.sync += untouched.eq(1)", "m.d.sync += untouched.eq(0)"),
    Mutation("a raw result too many", "drain.py", "raw_number < first_column.rows", "raw_number <= first_column.rows"),
    Mutation("layer ends a column early", "drain.py", "tile.last & taken.tile_last", "tile.last"),
    # The whole.
    Mutation(
        "word's number not added",
        "accelerator.py",
        "operation.weight_address + entry.word",
        "operation.weight_address",
    ),
    Mutation("group taken before its passes", "accelerator.py", "loader.ready & scheduler.complete", "loader.ready"),
    Mutation("columns without a window gated", "accelerator.py", "valid & ~active & ", "~active & "),
    Mutation("word committed by its first chunk", "host.py", "(chunk == derived.chunks - 1)", "(chunk == 0)"),
    Mutation("counters not cleared", "host.py", "kept.eq(0), done.eq(0)", "done.eq(0)"),
    Mutation(
        "weights of row 0",
        "host.py",
        "self.write_row.eq(place[width:])",
        "self.write_row.eq(0)",
    ),
    Mutation("region of the thresholds", "host.py", "region == Region.THRESHOLDS)", "region == Region.COEFFICIENTS)"),
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
