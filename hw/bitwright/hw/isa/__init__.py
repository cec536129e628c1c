"""The contract that generator, golden model and compiler share: array parameters, descriptors, layouts, timing.

Plain Python and NumPy, no Amaranth: every number that two parts need to agree on is computed here and nowhere else.

Activation layout
-----------------
Activations are stored as codes, plane by plane. A *granule* is ``GRANULE`` lanes, the unit in which channels are
packed: a pixel takes ``ceil(channels / GRANULE)`` granules, and pixels lie side by side, row after row, image after
image. The *position* of a granule is its number in the activation memory; word ``position // granules`` holds it::

    position(image, y, x, plane) = base + plane * plane_stride + ((image * height + y) * width + x) * pixel_granules

Channel ``c`` of a pixel is lane ``c % GRANULE`` of granule ``c // GRANULE``; lanes beyond the last channel are zero.
The memory consists of banks of ``BANK`` lanes with an address each, so that a word may start at any bank. There are
``columns / columns_per_copy`` copies of it, all written alike; the columns that share one take turns in loading.

Windows
-------
A window is a sequence of *runs* of consecutive granules: a kernel row of an undilated, ungrouped convolution is one
run, otherwise each kernel tap is. For a group of ``columns`` windows, the loader reads each run in *chunks*, rotates
them into place and packs the runs one after the other, without gaps, into words of the window buffer: plane 0 of the
input, plane 1, and so on, then the planes of the residual addend, which is one run at a position of its own. Granules
outside the image's rows or columns are zero. The array reads the window buffer only.

Weights of output channel ``tile * rows + row`` lie in the bank of ``row``, words as packed in the window buffer::

    address(tile, plane, word) = base + tile * tile_stride + plane_offset + word

Thresholds of output channel ``tile * rows + row`` lie in the bank of ``row``. A code of ``planes`` bits needs
``2**planes - 1`` of them; they lie in the order of a search tree, its root at node 1, the children of node ``n`` at
``2 * n`` and ``2 * n + 1``, and node 0 holds the channel's flags::

    address(tile, node) = base + tile * 2**planes + node    for node = 0 .. 2**planes - 1

The base is a multiple of ``2**planes``, and a word of the memory holds two neighbors. So both thresholds that may come
next are read while a comparison is still going on: no address waits for its outcome.

Coefficients of output channel ``tile * rows + row``, for arrays that have them, lie in the bank of ``row``::

    address(tile, pass) = base + tile * passes + pass

Streams
-------
Weights of a part with ``stream_words`` come in as beats of 32 bits, a word's lowest first: for each row its words, in
the order of their addresses, which begin with ``weight_base``.

Those of a part with ``index_planes`` are coded: a weight is an index into a codebook, whose integers have
``decoded_planes`` planes. Its stream starts with a table for each of these planes, a beat each: bit ``n``, of
``2**codebook_bits``, is the plane of the codebook's entry ``n % 2**index_planes``. Then come the rows. Each row tile of
a row begins with ``plain_words`` words that are stored as they are, those of a residual addend. After these, for each
word of the window, come the ``index_planes`` words of its indices, the most significant plane first; decoded, they
become ``decoded_planes`` words, ``window_length`` addresses apart::

    address(tile, word) = base + tile * tile_stride + word                                          plain words
    address(tile, plane, word) = base + tile * tile_stride + plain_words + plane * window_length + word

Arithmetic
----------
A pass is one (weight plane, activation plane) pair over all words of a window. Passes run by falling significance and
the accumulator doubles between significances (Horner), modulo ``2**accumulator_width``: only the final value must fit.
In a layer with coefficients, each count is multiplied by its pass's coefficient instead.
"""

from bitwright.hw.isa.constants import (
    BANK,
    BUS_WIDTH,
    CODEBOOK_BITS_MAX,
    GRANULE,
    IDENTIFIER,
    VERSION,
    Encoding,
    ZeroSkip,
)
from bitwright.hw.isa.descriptors import (
    CODE_TABLE_PLANES,
    FIELD_NAMES,
    FIELD_PLACES,
    FLAG_COEFFICIENTS,
    FLAG_DENSE,
    FLAG_LAST,
    FLAG_OFFSET,
    FLAG_RAW,
    FLAG_TABLE,
    HEADER_TO_READY,
    HEADER_WORDS,
    Descriptor,
    Field,
    decode_descriptors,
    descriptor_fields,
)
from bitwright.hw.isa.layouts import (
    THRESHOLD_NEGATE,
    THRESHOLD_POOL_MIN,
    decode_thresholds,
    encode_thresholds,
    granules_of,
    pack_words,
    place_channels,
    repeat_table,
    search_order,
    split_planes,
    split_words,
    unpack_words,
)
from bitwright.hw.isa.passes import (
    DOUBLES_MAX,
    PASS_DOUBLES_MAX,
    Pass,
    WeightPlanes,
    has_coefficients,
    has_offset,
    pass_coefficients,
    schedule_passes,
    weight_planes,
)
from bitwright.hw.isa.registers import COUNTERS, REGISTER_BITS, REGISTER_HELP, ErrorCode, MemoryWindow, Region, Register
from bitwright.hw.isa.spec import PRESETS, ArraySpec, Derived, preset
from bitwright.hw.isa.timing import (
    DRAIN_TO_WRITE,
    ISSUE_TO_LOAD,
    LOAD_LATENCY,
    RAW_TO_WRITE,
    READ_LATENCY,
    SCHEDULE_END,
    SCHEDULE_OVERHEAD,
    SCHEDULE_START,
    STREAM_OVERHEAD,
)

__all__ = [
    "BANK",
    "BUS_WIDTH",
    "CODEBOOK_BITS_MAX",
    "CODE_TABLE_PLANES",
    "COUNTERS",
    "DOUBLES_MAX",
    "DRAIN_TO_WRITE",
    "FIELD_NAMES",
    "FIELD_PLACES",
    "FLAG_COEFFICIENTS",
    "FLAG_DENSE",
    "FLAG_LAST",
    "FLAG_OFFSET",
    "FLAG_RAW",
    "FLAG_TABLE",
    "GRANULE",
    "HEADER_TO_READY",
    "HEADER_WORDS",
    "IDENTIFIER",
    "ISSUE_TO_LOAD",
    "LOAD_LATENCY",
    "PASS_DOUBLES_MAX",
    "PRESETS",
    "RAW_TO_WRITE",
    "READ_LATENCY",
    "REGISTER_BITS",
    "REGISTER_HELP",
    "SCHEDULE_END",
    "SCHEDULE_OVERHEAD",
    "SCHEDULE_START",
    "STREAM_OVERHEAD",
    "THRESHOLD_NEGATE",
    "THRESHOLD_POOL_MIN",
    "VERSION",
    "ArraySpec",
    "Derived",
    "Descriptor",
    "Encoding",
    "ErrorCode",
    "Field",
    "MemoryWindow",
    "Pass",
    "Region",
    "Register",
    "WeightPlanes",
    "ZeroSkip",
    "decode_descriptors",
    "decode_thresholds",
    "descriptor_fields",
    "encode_thresholds",
    "granules_of",
    "has_coefficients",
    "has_offset",
    "pack_words",
    "pass_coefficients",
    "place_channels",
    "preset",
    "repeat_table",
    "schedule_passes",
    "search_order",
    "split_planes",
    "split_words",
    "unpack_words",
    "weight_planes",
]
