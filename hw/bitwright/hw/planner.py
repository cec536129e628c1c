"""Planning: from layer shapes and precisions to descriptors and memory addresses, without any weights.

Lowering fills the plan with a network's numbers; a search asks it what a candidate would need.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from bitwright.hw.errors import BitwrightError
from bitwright.hw.isa import (
    BANK,
    CODE_TABLE_PLANES,
    FLAG_COEFFICIENTS,
    FLAG_DENSE,
    FLAG_LAST,
    FLAG_OFFSET,
    FLAG_RAW,
    FLAG_TABLE,
    GRANULE,
    ArraySpec,
    Descriptor,
    WeightPlanes,
    granules_of,
    has_coefficients,
    has_offset,
    schedule_passes,
    weight_planes,
)
from bitwright.hw.plan import Part, Plan
from bitwright.hw.program import InputSpec, LayerInfo
from bitwright.hw.shapes import LayerShape, check_shape


def plan(
    shapes: Sequence[LayerShape], spec: ArraySpec, *, input_bits: int, batch: int = 1, image_bits: int | None = None
) -> Plan:
    """Plan a network: the last layer of ``shapes`` is raw, all others are not.

    Parameters
    ----------
    shapes
        Layers in order.
    spec
        Array.
    input_bits
        Planes of the image codes, or of their digits.
    batch
        Images of one run.
    image_bits
        Bits of image codes that are split into digits of ``input_bits`` bits; the first layer then reads the digits,
        ``ceil(image_bits / input_bits)`` times as many channels as the image has. None where they are not split.

    Raises
    ------
    BitwrightError
        If a layer does not fit: names the layer, what it needs and what the array has.
    """
    if not shapes:
        raise BitwrightError("The network has no layers, expected at least one convolution or linear layer.")
    names = [shape.name for shape in shapes]
    for index, shape in enumerate(shapes):
        check_shape(shape, spec, last=shape is shapes[-1])
        for source in (shape.source, shape.residual.source if shape.residual else None):
            if source is not None and source not in names[:index]:
                raise BitwrightError(f"Layer {shape.name!r} reads {source!r}, expected a layer before it.")
    if not 1 <= input_bits <= spec.activation_planes_max:
        raise BitwrightError(
            f"The image has {input_bits} bits, this array takes 1 to {spec.activation_planes_max} "
            "(activation_planes_max)."
        )
    if batch < 1:
        raise BitwrightError(f"The batch is {batch}, expected at least 1 image.")
    if image_bits is not None:
        digits = -(-image_bits // input_bits)
        if not input_bits < image_bits <= 8 or shapes[0].in_shape[0] % digits:
            raise BitwrightError(
                f"Layer {shapes[0].name!r} reads {shapes[0].in_shape[0]} channels of an image of {image_bits} bits in "
                f"digits of {input_bits}, expected fewer bits in a digit, at most 8 together, and all digits of each "
                "channel."
            )
    window = _window(shapes, spec)
    if window is None or shapes[0].kind == "linear":
        return _Planner(shapes, spec, input_bits, batch, window, image_bits).plan()
    try:
        return _Planner(shapes, spec, input_bits, batch, window, image_bits).plan()
    except BitwrightError:
        # Overlapping windows may take more memory than the image: address the convolution in place instead.
        return _Planner(shapes, spec, input_bits, batch, None, image_bits).plan()


def _window(shapes: Sequence[LayerShape], spec: ArraySpec) -> tuple[int, int, int, int, int, int] | None:
    """Window that the host packs for the first layer, if that saves words; a linear layer is a window of everything."""
    first = shapes[0]
    channels, height, width = first.in_shape
    if first.kind == "linear":
        return height, width, 1, 1, 0, 0
    taps = first.kernel[0] * first.kernel[1]
    packed, loose = (-(-granules // spec.derived.granules) for granules in (granules_of(channels * taps),
                                                                            granules_of(channels) * taps))  # fmt: skip
    if first.dilation == (1, 1) and first.groups == 1 and packed < loose:
        return *first.kernel, *first.stride, *first.padding
    return None


@dataclass
class _Region:
    """Activations in memory: planes of images of pixels of granules, from a whole word on."""

    base: int
    height: int
    width: int
    channels: int
    planes: int
    images: int
    spec: ArraySpec

    @property
    def pixel(self) -> int:
        """Granules of a pixel."""
        return granules_of(self.channels)

    @property
    def plane_stride(self) -> int:
        """Granules from plane to plane: planes that are written at once lie in different banks."""
        size = self.images * self.height * self.width * self.pixel
        return size + (self.spec.derived.plane_skew - size) % self.spec.derived.granules

    @property
    def top_plane(self) -> int:
        """Position of the most significant plane."""
        return self.base + (self.planes - 1) * self.plane_stride

    @property
    def words(self) -> int:
        size = (self.planes - 1) * self.plane_stride + self.images * self.height * self.width * self.pixel
        return -(-size // self.spec.derived.granules)


@dataclass
class _Planner:
    """Walks over the layers and hands out memory."""

    shapes: Sequence[LayerShape]
    spec: ArraySpec
    input_bits: int
    batch: int
    window: tuple[int, int, int, int, int, int] | None
    image_bits: int | None
    weight_words: int = field(default=0, init=False)
    threshold_entries: int = field(default=0, init=False)
    coefficient_entries: int = field(default=0, init=False)
    descriptor_words: int = field(default=0, init=False)
    streamed: frozenset[int] = field(default=frozenset(), init=False)
    resident_words: int = field(default=0, init=False)

    def plan(self) -> Plan:
        channels, height, width = self.shapes[0].in_shape
        image = InputSpec(
            channels=channels,
            height=height,
            width=width,
            bits=self.input_bits,
            base=0,
            plane_stride=0,
            window=self.window,
            image_bits=self.image_bits,
        )
        image = replace(image, channels=channels // image.digits)
        rows, columns, stored = image.stored_shape
        regions = [_Region(0, rows, columns, stored, self.input_bits, self.batch, self.spec)]
        image = replace(image, plane_stride=regions[0].plane_stride)
        numbers = {shape.name: index for index, shape in enumerate(self.shapes)}
        # Region 0 is the image, region n + 1 the output of layer n; sources are counted so here.
        sources = [1 + numbers[shape.source] if shape.source else index for index, shape in enumerate(self.shapes)]
        residuals = [1 + numbers[shape.residual.source] if shape.residual else None for shape in self.shapes]
        last_use = dict(enumerate(range(-1, len(self.shapes))))
        for index, used in enumerate(zip(sources, residuals, strict=True)):
            last_use.update({source: index for source in used if source is not None})
        self._place_weights()
        layers: list[LayerInfo] = []
        parts: list[Part] = []
        descriptors: list[Descriptor] = []
        for index, shape in enumerate(self.shapes):
            live = [regions[number] for number in range(len(regions)) if last_use[number] >= index]
            source, residual = regions[sources[index]], residuals[index]
            regions.append(self._output_region(shape, live, high=index % 2 == 0))
            self._check_source(shape, source, regions[residual] if residual is not None else None)
            layers.append(self._info(shape, source, sources[index] - 1, residual, regions))
            for part in self._parts(index, shape):
                operands = (source, regions[residual] if residual is not None else None, regions[-1])
                half = self.resident_words + len(descriptors) % 2 * self._stream_room()
                base = half if index in self.streamed else None
                descriptors.append(self._descriptor(part, *operands, stream_base=base))
                parts.append(part)
        descriptors[-1] = descriptors[-1].flagged(FLAG_LAST)
        return Plan(
            self.spec,
            self.batch,
            image,
            tuple(layers),
            tuple(descriptors),
            tuple(parts),
            self.weight_words,
            self.threshold_entries,
            self.coefficient_entries,
        )

    def _tile_words(self, index: int, granules: int) -> tuple[int, int]:
        """Words of a window plane, of so many granules, and weight words of a row tile."""
        shape = self.shapes[index]
        words = -(-granules // self.spec.derived.granules)
        total = len(weight_planes(*shape.stored_encoding)) * words
        if shape.residual is not None:
            planes = weight_planes(shape.residual.weight_encoding, shape.residual.weight_bits)
            total += len(planes) * -(-granules_of(shape.residual.channels) // self.spec.derived.granules)
        return words, total

    def _place_weights(self) -> None:
        """Choose the layers whose weights are streamed in, where the array can.

        Without codebooks: all of them where they do not all fit. With codebooks: those that have one, and the others
        too if they take more than half of the memory or leave too little room for a row tile.
        """
        if not self.spec.weight_stream:
            return
        numbers = range(len(self.shapes))
        windows = [self._window_granules(index, range(self._pixel_granules(index))) for index in numbers]
        tiles = [self._tile_words(index, granules)[1] for index, granules in enumerate(windows)]
        words = [-(-self.shapes[index].out_channels // self.spec.rows) * tiles[index] for index in numbers]
        depth = self.spec.weight_depth
        coded = frozenset(index for index in numbers if self.shapes[index].codebook is not None)
        if not coded and sum(words) <= depth:
            return
        resident = sum(words[index] for index in numbers if index not in coded)
        largest = max((tiles[index] for index in coded), default=0)
        if coded and resident <= depth // 2 and largest <= (depth - resident) // 2:
            self.streamed, self.resident_words = coded, resident
        else:
            self.streamed = frozenset(numbers)

    def _stream_room(self) -> int:
        """Words of each row that a streamed part may have: two of them lie beside the weights that stay."""
        return (self.spec.weight_depth - self.resident_words) // 2

    def _plain(self, index: int) -> bool:
        """Whether a window is one run of a whole image: linear, or packed by the host."""
        return self.shapes[index].kind == "linear" or (index == 0 and self.window is not None)

    def _pixel_granules(self, index: int) -> int:
        shape = self.shapes[index]
        channels, height, width = shape.in_shape
        if index == 0 and self.window is not None:
            return granules_of(channels * self.window[0] * self.window[1])
        return granules_of(channels) * (height * width if shape.kind == "linear" else 1)

    def _window_granules(self, index: int, granules: range) -> int:
        taps = 1 if self._plain(index) else self.shapes[index].kernel[0] * self.shapes[index].kernel[1]
        return taps * len(granules)

    def _parts(self, index: int, shape: LayerShape) -> list[Part]:
        """Split a layer: into groups of channels, and into row tiles whose weights fit where streamed ones go."""
        rows = self.spec.rows
        tiles = -(-shape.out_channels // rows)
        in_group, out_group = shape.in_shape[0] // shape.groups, shape.out_channels // shape.groups
        parts: list[Part] = []
        for tile in range(tiles):
            granules = range(self._pixel_granules(index))
            if shape.groups > 1:
                last = min((tile + 1) * rows, shape.out_channels) - 1
                first_group, last_group = tile * rows // out_group, last // out_group
                granules = range(first_group * in_group // GRANULE, granules_of((last_group + 1) * in_group))
            _, words = self._tile_words(index, self._window_granules(index, granules))
            room = self._stream_room() // words if index in self.streamed else tiles
            if not room:
                raise BitwrightError(
                    f"Layer {shape.name!r} needs {words} words of weights for a row tile, half of this array's "
                    f"{self.spec.weight_depth} (weight_depth) are for one; choose fewer bits or a larger array."
                )
            if parts and parts[-1].granules == granules and len(parts[-1].tiles) < room:
                parts[-1] = Part(index, range(parts[-1].tiles.start, tile + 1), granules)
            else:
                parts.append(Part(index, range(tile, tile + 1), granules))
        return parts

    def _output_region(self, shape: LayerShape, live: Sequence[_Region], *, high: bool) -> _Region:
        """Place a layer's output where nothing lies that is still needed, at alternating ends."""
        channels, height, width = shape.out_shape
        depth, granules = self.spec.activation_depth, self.spec.derived.granules
        used = sum(region.words for region in live)
        if shape.output_planes is None:
            self._need(shape, "results", self.batch * channels * height * width, 0, "result_depth")
            self._need(shape, "words of activations for its input", used, 0, "activation_depth")
            return _Region(0, height, width, channels, 1, self.batch, self.spec)
        target = _Region(0, height, width, channels, shape.output_planes, self.batch, self.spec)
        what = f"words of activations for what it reads and keeps, and for its output ({used} and {target.words})"
        self._need(shape, what, used + target.words, 0, "activation_depth")
        spans = sorted((region.base // granules, region.base // granules + region.words) for region in live)
        edges = [0, *(edge for span in spans for edge in span), depth]
        gaps = [(start, end) for start, end in zip(edges[::2], edges[1::2], strict=True) if end - start >= target.words]
        if not gaps:
            raise BitwrightError(
                f"Layer {shape.name!r} needs {target.words} words of activations side by side for its output; "
                f"{depth - used} of this array's {depth} (activation_depth) are free, but not in one piece."
            )
        start = gaps[-1][1] - target.words if high else gaps[0][0]
        target.base = start * granules
        return target

    def _check_source(self, shape: LayerShape, source: _Region, residual: _Region | None) -> None:
        """Refuse shapes that do not fit what they read."""
        if shape is not self.shapes[0]:
            found = (source.channels, source.height, source.width)
            if found != shape.in_shape:
                raise BitwrightError(f"Layer {shape.name!r} reads {shape.in_shape}, its source has {found}.")
        if residual is not None and shape.residual is not None:
            channels, height, width = shape.out_shape
            expected = tuple(-(-size // step) for size, step in
                             zip((residual.height, residual.width), shape.residual.stride, strict=True))  # fmt: skip
            if residual.channels != shape.residual.channels or expected != (height, width):
                raise BitwrightError(
                    f"Layer {shape.name!r} of {channels} × {height} × {width} adds a residual of "
                    f"{residual.channels} × {residual.height} × {residual.width} at stride {shape.residual.stride}, "
                    f"expected {shape.residual.channels} channels and as many pixels."
                )

    def _need(self, shape: LayerShape, what: str, words: int, used: int, depth: str) -> None:
        """Refuse a layer that needs more of a memory than there is."""
        held = getattr(self.spec, depth)
        if used + words > held:
            before = f", after {used} of the layers before it" if used else ""
            remedy = (
                "a smaller batch, fewer bits or a larger array" if self.batch > 1 else "fewer bits or a larger array"
            )
            raise BitwrightError(
                f"Layer {shape.name!r} needs {words} {what}{before}, this array has {held} ({depth}); choose {remedy}."
            )

    def _descriptor(
        self, part: Part, source: _Region, residual: _Region | None, target: _Region, *, stream_base: int | None
    ) -> Descriptor:
        spec, shape = self.spec, self.shapes[part.layer]
        rows, tiles = spec.rows, len(part.tiles)
        raw = shape.output_planes is None
        flags = (FLAG_RAW if raw else 0) | (FLAG_TABLE if shape.code_table else 0)
        flags |= FLAG_OFFSET if has_offset(shape.stored_encoding[0]) else 0
        flags |= FLAG_COEFFICIENTS if has_coefficients(shape.weight_encoding) else 0
        plain = self._plain(part.layer)
        height, width, pixel = source.height, source.width, source.pixel
        if shape.kind == "linear":
            # All pixels of an image lie side by side: one pixel of all their granules.
            height, width, pixel = 1, 1, height * width * pixel
        # Packed windows have done the convolution's walk: a 1×1 kernel over them is left.
        kernel = (1, 1) if plain else shape.kernel
        stride = (1, 1) if plain else shape.stride
        pad_y, pad_x = (0, 0) if plain else shape.padding
        dilation = (1, 1) if plain else shape.dilation
        whole = len(part.granules) == pixel and dilation[1] == 1
        runs, run = (1, kernel[1] * pixel) if whole else (kernel[1], len(part.granules))
        row, offset = width * pixel, part.granules.start
        words, tile_words = self._tile_words(part.layer, kernel[0] * runs * run)
        planes = weight_planes(*shape.stored_encoding)
        codebook = shape.stored_codebook
        plain_words = 0 if codebook is None else tile_words - len(planes) * words
        operands = [WeightPlanes(planes, plain_words, words, source.planes)]
        residual_fields = dict.fromkeys(
            ("residual_base", "residual_image_step", "residual_y_step", "residual_x_step", "residual_plane_stride"), 0
        ) | {"residual_planes": 0, "residual_granules": 1, "residual_length": 0}
        if residual is not None and shape.residual is not None:
            operands.append(
                WeightPlanes(
                    weight_planes(shape.residual.weight_encoding, shape.residual.weight_bits),
                    len(planes) * words if codebook is None else 0,
                    -(-residual.pixel // spec.derived.granules),
                    residual.planes,
                    source.planes,
                    source.planes * words,
                    shape.residual.shift,
                )
            )
            residual_fields = {
                "residual_base": residual.top_plane,
                "residual_image_step": residual.height * residual.width * residual.pixel,
                "residual_y_step": shape.residual.stride[0] * residual.width * residual.pixel,
                "residual_x_step": shape.residual.stride[1] * residual.pixel,
                "residual_plane_stride": -residual.plane_stride & 0xFFFFFFFF,
                "residual_planes": residual.planes,
                "residual_granules": residual.pixel,
                "residual_length": -(-residual.pixel // spec.derived.granules),
            }
        passes = schedule_passes(operands, horner=not flags & FLAG_COEFFICIENTS)
        # A layer of raw results has no thresholds; others start at a multiple of a channel's entries.
        entries = 0 if raw else tiles << target.planes
        threshold_base = self.threshold_entries if raw else -(-self.threshold_entries >> target.planes) << target.planes
        out_y, out_x = stride[0] * shape.pool_stride[0], stride[1] * shape.pool_stride[1]
        first_channel = part.tiles.start * rows
        steps = {
            # Planes are loaded from the most significant down.
            "start_position": source.top_plane - pad_y * row - pad_x * pixel + offset,
            "image_step": height * row,
            "output_y_step": out_y * row,
            "output_x_step": out_x * pixel,
            "pool_y_step": stride[0] * row,
            "pool_x_step": stride[1] * pixel,
            "tap_y_step": dilation[0] * row,
            "tap_x_step": dilation[1] * pixel,
            "input_plane_stride": -source.plane_stride,
            "output_base": first_channel if raw else target.base + first_channel // GRANULE,
            "output_plane_stride": target.plane_stride,
        }
        table = [
            sum((code >> plane & 1) << rank for rank, code in enumerate(shape.code_table or ()))
            for plane in range(CODE_TABLE_PLANES)
        ]
        fields = {
            "flags": flags,
            "passes": len(passes),
            "activation_planes": source.planes,
            "row_tiles": tiles,
            "input_height": height,
            "input_width": row,
            "kernel_height": kernel[0],
            "kernel_width": runs,
            "run_granules": run,
            "window_length": words,
            "tap_y_rows": dilation[0],
            "images": self.batch,
            "output_height": target.height,
            "output_width": target.width,
            "pool_height": shape.pool[0],
            "pool_width": shape.pool[1],
            "start_y": -pad_y,
            "start_x": offset - pad_x * pixel,
            "output_y_rows": out_y,
            "pool_y_rows": stride[0],
            "weight_base": self.weight_words if stream_base is None else stream_base,
            "weight_tile_stride": tile_words,
            "stream_words": 0 if stream_base is None else tiles * tile_words,
            "plain_words": plain_words,
            "index_planes": 0,
            "decoded_planes": 0,
            "threshold_base": 0 if raw else threshold_base,
            "coefficient_base": self.coefficient_entries,
            "output_planes": target.planes,
            "output_granules": target.channels if raw else target.pixel,
            "channels": min(shape.out_channels - first_channel, tiles * rows),
            **{f"code_table_{plane}": bits for plane, bits in enumerate(table)},
            **residual_fields,
            **{name: value & 0xFFFFFFFF for name, value in steps.items()},
        }
        fields["chunk_granules"] = self._chunk(fields)
        if codebook is not None:
            fields |= {"index_planes": max(1, (len(codebook) - 1).bit_length()), "decoded_planes": len(planes)}
            fields["stream_words"] = tiles * (plain_words + fields["index_planes"] * words)
        descriptor = Descriptor(fields=fields, passes=tuple(passes))
        if spec.zero_skip == "skip" and not skipping_pays(descriptor, spec):
            descriptor = descriptor.flagged(FLAG_DENSE)
        try:
            descriptor.encode(spec)
        except BitwrightError as error:
            raise BitwrightError(f"Layer {shape.name!r}: {error}") from error
        resident = 0 if stream_base is not None else tiles * tile_words
        self._need(shape, "words of weights", resident, self.weight_words, "weight_depth")
        self._need(shape, "threshold entries", entries, threshold_base, "threshold_depth")
        self._need(shape, "descriptor words", descriptor.words, self.descriptor_words, "descriptor_depth")
        if flags & FLAG_COEFFICIENTS:
            products = tiles * len(passes)
            self._need(shape, "coefficients", products, self.coefficient_entries, "coefficient_depth")
            self.coefficient_entries += products
        self.weight_words += resident
        self.threshold_entries = threshold_base + entries
        self.descriptor_words += descriptor.words
        return descriptor

    def _chunk(self, fields: Mapping[str, int]) -> int:
        """Granules that one read delivers: a whole word if every run starts at a bank."""
        starts = ["start_position", "input_plane_stride"] if fields["activation_planes"] > 1 else ["start_position"]
        for count, steps in (
            ("images", ("image_step", "residual_image_step")),
            ("output_height", ("output_y_step", "residual_y_step")),
            ("output_width", ("output_x_step", "residual_x_step")),
            ("pool_height", ("pool_y_step",)),
            ("pool_width", ("pool_x_step",)),
            ("kernel_height", ("tap_y_step",)),
            ("kernel_width", ("tap_x_step",)),
        ):
            starts += steps if fields[count] > 1 else ()
        starts += ["residual_base", "residual_plane_stride"]
        aligned = all(fields[name] % (BANK // GRANULE) == 0 for name in starts)
        return self.spec.derived.granules if aligned else self.spec.derived.chunk_unaligned

    def _info(
        self, shape: LayerShape, source: _Region, number: int, residual: int | None, regions: Sequence[_Region]
    ) -> LayerInfo:
        encoding, bits = shape.stored_encoding
        addend = shape.residual
        return LayerInfo(
            name=shape.name,
            kind=shape.kind,
            in_shape=shape.in_shape,
            conv_shape=shape.conv_shape,
            out_shape=shape.out_shape,
            kernel=shape.kernel,
            stride=shape.stride,
            padding=shape.padding,
            dilation=shape.dilation,
            groups=shape.groups,
            pool=shape.pool,
            pool_stride=shape.pool_stride,
            weight_encoding=shape.weight_encoding,
            stored_encoding=encoding,
            weight_bits=len(weight_planes(encoding, bits)),
            input_planes=source.planes,
            output_planes=shape.output_planes or 0,
            source=number,
            residual_source=None if residual is None else residual - 1,
            residual_encoding=addend.weight_encoding if addend else "signed",
            residual_bits=len(weight_planes(addend.weight_encoding, addend.weight_bits)) if addend else 0,
            residual_planes=0 if residual is None else regions[residual].planes,
            codebook=shape.stored_codebook,
        )


SKIPPABLE = 1 / 32
"""Share of a layer's words that have to be zero for skipping them to be worth a later start."""


def skipping_pays(layer: Descriptor, spec: ArraySpec) -> bool:
    """Whether a layer takes fewer cycles if a share ``SKIPPABLE`` of its words are zero and skipped.

    Where loading takes longer than computing there is nothing to gain; and as words are listed before they are computed
    on, a layer of few groups takes longer. An estimate: of each group, the mean of all words is taken to be zero.

    Parameters
    ----------
    layer
        Without ``FLAG_DENSE``.
    spec
        Array, with ``zero_skip`` "skip".
    """
    groups = -(-layer.pixels // spec.columns)
    period = layer.group_loads(spec) + spec.columns
    planes = layer.plane_words(spec)
    words, drain = sum(planes[entry.plane] for entry in layer.passes), layer.drain_cycles(spec.columns, spec)

    def cycles(ready: int, share: float) -> float:
        computing = layer.row_tiles * max(words * (1 - share), drain)
        # Two groups at a time: one is loaded while the other one is computed.
        return ready + groups * max(computing, period, (ready + computing) / 2)

    return cycles(layer.ready_cycles(spec), SKIPPABLE) < cycles(layer.flagged(FLAG_DENSE).ready_cycles(spec), 0)
