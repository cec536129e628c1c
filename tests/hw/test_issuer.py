import dataclasses
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from bitwright.hw.isa import (
    DOUBLES_MAX,
    ArraySpec,
)
from bitwright.hw.issuer import TileIssuer
from control import CONTROL, counted
from drive import drive, header


@dataclasses.dataclass(frozen=True)
class Issue:
    """An operation with what goes with it; None is what does not matter."""

    clear: bool
    double: bool
    empty: bool
    last: bool
    negate: bool | None
    residual: bool | None
    base: int | None
    list_address: int | None
    weight_address: int | None
    coefficient_address: int | None
    skipped: int
    tile: dict[str, int]


@dataclasses.dataclass(frozen=True)
class Group:
    """A pixel group, its schedule, and after how many cycles it is ready."""

    known: dict[str, Any]
    entries: list[dict[str, int]]
    skipped: int
    wait: int


@st.composite
def schedules(draw: st.DrawFn, spec: ArraySpec) -> list[dict[str, int]]:
    """Entries as the scheduler makes them."""
    derived = spec.derived
    entries: list[dict[str, int]] = []
    for _ in range(draw(st.integers(0, 4))):
        doubles = draw(st.sampled_from([0, 1, 2, 5])) if entries else 0
        entries.append(
            counted(draw(st.integers(1, 4)), max(0, doubles - 1))
            | {
                "weight_offset": draw(st.integers(0, spec.weight_depth - 1)),
                "base": draw(st.integers(0, spec.window_depth - 1)),
                "double": int(doubles > 0),
                "negate": draw(st.integers(0, 1)),
                "residual": draw(st.integers(0, 1)),
                "index": draw(st.integers(0, derived.passes_max - 1)),
            }
        )
    doubles = draw(st.sampled_from([0, 1, 3, DOUBLES_MAX])) if entries else 0
    if doubles or not entries:
        zeros = dict.fromkeys(("weight_offset", "base", "negate", "residual", "index"), 0)
        entries.append({**zeros, **counted(0, max(1, doubles)), "double": int(doubles > 0)})
    return entries


@st.composite
def issued_layers(draw: st.DrawFn) -> tuple[dict[str, int], list[Group]]:
    """A descriptor, and its groups as the loader gives them, with their schedules."""
    layer = header(
        passes=draw(st.integers(1, CONTROL.derived.passes_max)),
        row_tiles=draw(st.sampled_from([1, 2, 3, CONTROL.row_tiles_max])),
        weight_base=draw(st.integers(0, 255)),
        weight_tile_stride=draw(st.integers(0, 255)),
        threshold_base=draw(st.sampled_from([0, 16, 48])),
        coefficient_base=draw(st.integers(0, CONTROL.coefficient_depth - 1)),
        output_planes=draw(st.integers(1, 4)),
    )
    count = draw(st.integers(1, 4))
    columns = st.integers(1, (1 << CONTROL.columns) - 1)
    groups = []
    for number in range(count):
        known = {
            "valid": draw(columns),
            "pool_first": draw(columns),
            "pool_last": draw(columns),
            "drain_cycles": draw(st.integers(1, CONTROL.columns * 4)),
            "last": int(number == count - 1),
        }
        skipped, wait = draw(st.integers(0, 500)), draw(st.sampled_from([0, 0, 1, 30]))
        groups.append(Group(known, draw(schedules(CONTROL)), skipped, wait))
    return layer, groups


def issues(layer: dict[str, int], group: Group) -> list[Issue]:
    """Operations of a group: row tiles, entries of the schedule, doublings and words of each."""
    found = []
    for tile in range(layer["row_tiles"]):
        known = {
            **{name: group.known[name] for name in ("valid", "pool_first", "pool_last")},
            "first": int(tile == 0),
            "last": int(group.known["last"] and tile == layer["row_tiles"] - 1),
        }
        weights = layer["weight_base"] + tile * layer["weight_tile_stride"]
        coefficients = layer["coefficient_base"] + tile * layer["passes"]
        operations: list[Issue] = []
        for entry in group.entries:
            for number in range(entry["extra"] + entry["length"]):
                word = number - entry["extra"]
                operations.append(
                    Issue(
                        clear=not operations,
                        double=bool(entry["double"]) and word <= 0,
                        empty=word < 0,
                        last=False,
                        negate=bool(entry["negate"]) if word >= 0 else None,
                        residual=bool(entry["residual"]) if word >= 0 else None,
                        base=entry["base"] if word >= 0 else None,
                        list_address=(entry["base"] + word) % CONTROL.window_depth if word >= 0 else None,
                        weight_address=(weights + entry["weight_offset"]) % CONTROL.weight_depth if word >= 0 else None,
                        coefficient_address=(coefficients + entry["index"]) % CONTROL.coefficient_depth
                        if word >= 0
                        else None,
                        skipped=0,
                        tile=known,
                    )
                )
        operations[-1] = dataclasses.replace(operations[-1], last=True, skipped=group.skipped)
        found += operations
    return found


def observed(ctx: Any, dut: TileIssuer) -> Issue:
    """The operation of this cycle."""
    operation = dut.operation
    empty = bool(ctx.get(operation.empty))

    def of_word(name: str) -> int | None:
        return None if empty else ctx.get(operation[name])

    return Issue(
        clear=bool(ctx.get(operation.clear)),
        double=bool(ctx.get(operation.double)),
        empty=empty,
        last=bool(ctx.get(operation.last)),
        negate=None if empty else bool(ctx.get(operation.negate)),
        residual=None if empty else bool(ctx.get(operation.residual)),
        base=of_word("base"),
        list_address=of_word("list_address"),
        weight_address=of_word("weight_address"),
        coefficient_address=of_word("coefficient_address"),
        skipped=ctx.get(dut.tile_skipped),
        tile={name: ctx.get(dut.tile[name]) for name, _ in dut.tile.shape()},
    )


def test_issues_are_as_many_as_the_contract_says():
    """Doublings take a cycle each, but the first word of a pass doubles as well."""
    layer = header(passes=3, row_tiles=2)
    empty = dict.fromkeys(("weight_offset", "base", "negate", "residual", "index"), 0)
    entries = [
        {**empty, "length": 3, "extra": 0, "double": 0},
        {**empty, "length": 2, "extra": 2, "double": 1},
        {**empty, "length": 0, "extra": 4, "double": 1},
    ]
    known = {"valid": 1, "pool_first": 1, "pool_last": 1, "last": 1}
    assert len(issues(layer, Group(known, entries, 0, 0))) == 2 * (3 + (2 + 3 - 1) + 4)


@given(case=issued_layers())
@settings(max_examples=60, deadline=None)
def test_issuer_runs_every_word_of_every_pass_of_every_tile(case):
    layer, groups = case
    dut = TileIssuer(CONTROL)

    async def bench(ctx):
        ctx.set(dut.layer, layer)
        ctx.set(dut.start, 1)
        await ctx.tick()
        ctx.set(dut.start, 0)
        cycle, last, drain = 0, -100, 0
        buffer, current = 1, groups[0]
        lists: list[list[dict[str, int]]] = [[], []]
        pending: list[Issue] = []
        waiting = list(groups)
        ready_from = waiting[0].wait
        while waiting or pending:
            ready = bool(waiting) and cycle >= ready_from
            offered = waiting[0] if ready else groups[0]
            ctx.set(dut.group_ready, ready)
            ctx.set(dut.group, current.known)
            ctx.set(dut.count, len(offered.entries))
            ctx.set(dut.skipped, offered.skipped)
            ctx.set(dut.first, offered.entries[0])
            if ready:
                lists[1 - buffer] = offered.entries

            # The last operation of a tile waits until the tile before has been drained.
            stalled = bool(pending) and pending[0].last and cycle < last + drain
            assert ctx.get(dut.stalled) == stalled, cycle
            assert ctx.get(dut.operation.valid) == (bool(pending) and not stalled), cycle
            taken = ready and (not pending or (len(pending) == 1 and not stalled))
            assert ctx.get(dut.take) == taken, cycle
            assert ctx.get(dut.release) == (len(pending) == 1 and not stalled), cycle
            assert ctx.get(dut.buffer) == buffer
            if pending and not stalled:
                operation = pending.pop(0)
                assert observed(ctx, dut) == operation, cycle
                assert ctx.get(dut.operation.buffer) == buffer
                if operation.last:
                    last, drain = cycle, current.known["drain_cycles"]
            else:
                assert ctx.get(dut.tile_skipped) == 0
            if taken:
                current = waiting.pop(0)
                pending = issues(layer, current)
                buffer = 1 - buffer
                ready_from = cycle + 1 + (waiting[0].wait if waiting else 0)
            # The memory of the schedule: what is read comes a cycle later, and stays.
            read = ctx.get(dut.entry_read), ctx.get(dut.entry_buffer), ctx.get(dut.entry_index)
            await ctx.tick()
            if read[0] and read[2] < len(lists[read[1]]):
                ctx.set(dut.entry, lists[read[1]][read[2]])
            cycle += 1
        ctx.set(dut.group_ready, 0)
        assert not ctx.get(dut.operation.valid)

    drive(dut, bench)


def test_a_start_ends_what_an_issuer_was_doing():
    dut = TileIssuer(CONTROL)
    layer = header(row_tiles=2)
    known = {"valid": 1, "pool_first": 1, "pool_last": 1, "last": 1, "drain_cycles": 8}
    entry = dict.fromkeys(("weight_offset", "base", "negate", "residual", "index", "double"), 0)

    async def bench(ctx):
        ctx.set(dut.layer, layer)
        ctx.set(dut.group, known)
        ctx.set(dut.count, 1)
        ctx.set(dut.first, {**entry, **counted(2, 0)})
        for after in (1, 2, 3, 4, 5, 12):
            ctx.set(dut.start, 1)
            await ctx.tick()
            ctx.set(dut.start, 0)
            assert not ctx.get(dut.operation.valid)
            ctx.set(dut.group_ready, 1)
            assert ctx.get(dut.take)
            await ctx.tick()
            ctx.set(dut.group_ready, 0)
            assert ctx.get(dut.operation.clear)
            assert ctx.get(dut.tile.first)
            assert not ctx.get(dut.stalled)
            await ctx.tick().repeat(after)

    drive(dut, bench)
