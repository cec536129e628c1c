"""Timing, in cycles. Each number is a constant of the component named, and checked by its test."""

READ_LATENCY = 3
"""Host bus: from a read request to its data."""

SCHEDULE_START, SCHEDULE_END = 2, 2
"""Pass scheduler: from its start to the cycle that lists the first pass, and from that of the last one to the first
cycle in which the list is complete."""

SCHEDULE_OVERHEAD = SCHEDULE_START + SCHEDULE_END - 1
"""Pass scheduler: cycles beside one for each pass, from its start to the first cycle in which the list is complete."""

STREAM_OVERHEAD = 1
"""Weight streamer: cycles beside one for each beat, from the header's readiness to that of the layer.

With a decoder it is from the cycle after the last word's last plane is decoded: see ``Descriptor.stream_cycles``.
"""

LOAD_LATENCY = 4
"""Window loader: from the cycle after the last read of a group to the cycle in which the group is ready; see `Derived`.
"""

ISSUE_TO_LOAD = 7
"""PE array: from the issue of a tile's last operation to the load of its sums into the drain; see `Derived`."""

DRAIN_TO_WRITE = 4
"""Drain: beside the steps of a column in all comparators, from the load of its sums to its first request to write."""

RAW_TO_WRITE = 1
"""Drain: from the step of a raw result to its write; see `Derived`."""
