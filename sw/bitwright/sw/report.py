"""The report: one self-contained page of what a run found, what it costs, and whether the hardware agrees.

:class:`RunReport` holds all numbers of a run; :func:`render` makes the page of them and computes nothing but sums.
The charts are Vega-Lite, and the library that draws them is part of the page: it loads nothing.
"""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Literal

from bitwright.hw.errors import BitwrightError
from bitwright.sim.energy import BETWEEN, HOST, EnergyReport
from bitwright.sim.timeline import ACCOUNT

if TYPE_CHECKING:
    import altair

BLUE, ORANGE, GREY, INK = "#2b5c8a", "#c2552d", "#b4b7bf", "#1c2024"
COMPONENT_COLOURS = [
    "#2b5c8a",
    "#6c9bc7",
    "#c2552d",
    "#e0a07c",
    "#4f7d5b",
    "#a3bfa0",
    "#7a6a94",
    "#bdb4cf",
    "#5f636b",
    "#d9b44a",
    "#8c5a2b",
    "#9fd0c9",
]
WIDTH = 940
"""Width of a chart, in pixels."""


@dataclass(frozen=True)
class Candidate:
    """An assignment of bits to layers, and what it reaches.

    Attributes
    ----------
    kind
        ``searched``: the result; ``uniform``: the same bits everywhere; ``tried``: a step of the search.
    bits
        (weight bits, input bits) of each layer, in order; None stands for float.
    accuracy
        On the validation images, 0..1.
    uj_per_image, cycles_per_image
        Predicted without zero skip, float counted as 8 bits.
    """

    label: str
    kind: Literal["searched", "uniform", "tried"]
    bits: Mapping[str, tuple[int | None, int | None]]
    accuracy: float
    uj_per_image: float
    cycles_per_image: float


@dataclass(frozen=True)
class Step:
    """One candidate of the search, in the order of trying."""

    layer: str
    operand: str
    bits: int
    accuracy: float
    accepted: bool


@dataclass(frozen=True)
class Verification:
    """An execution in RTL against the golden model.

    Attributes
    ----------
    other_mismatches
        Differences in counters and in the trace of writes.
    first
        First difference, as a sentence; None if there is none.
    """

    backend: str
    images: int
    cycles: int
    value_mismatches: int
    cycle_mismatches: int
    other_mismatches: int
    seconds: float
    first: str | None = None

    @property
    def equal(self) -> bool:
        """Whether nothing differs."""
        return self.value_mismatches == self.cycle_mismatches == self.other_mismatches == 0


@dataclass(frozen=True, kw_only=True)
class RunReport:
    """All numbers of one run.

    Attributes
    ----------
    dataset
        Name of the images.
    accuracy_float, accuracy_hardware
        Of the float network, and of the Program on the golden model, on ``images`` test images.
    confusion
        Test images by true class (row) and predicted class.
    energy, baseline
        Of the Program as executed on the test images; and of the same network at 8 bits, None where there is none.
    config, manifest
        As in the run directory.
    """

    name: str
    dataset: str
    images: int
    accuracy_float: float | None
    accuracy_hardware: float
    confusion: Sequence[Sequence[int]]
    energy: EnergyReport
    baseline: EnergyReport | None
    config: str
    manifest: Mapping[str, Any]
    candidates: Sequence[Candidate] = ()
    trace: Sequence[Step] = ()
    target: float | None = None
    verification: Sequence[Verification] = ()


def render(runs: Sequence[RunReport]) -> str:
    """Make the page, as HTML text.

    Raises
    ------
    BitwrightError
        If the libraries that draw it are not installed.
    """
    if not runs:
        raise BitwrightError("There is no run to report on; name at least one run directory.")
    try:
        import altair  # noqa: F401
        import jinja2
        import vl_convert
    except ImportError as error:
        raise BitwrightError(
            f"The report needs {error.name}, which is not installed; run pip install 'bitwright[report]'."
        ) from error
    charts: dict[str, Any] = {}
    context = {
        "title": runs[0].name if len(runs) == 1 else f"{len(runs)} runs",
        "subtitle": _subtitle(runs),
        "version": version("bitwright"),
        "runs": [_run_context(run, f"run{index}", charts) for index, run in enumerate(runs)],
        "front": None,
        "library": _closed(vl_convert.javascript_bundle()),  # pyright: ignore[reportCallIssue]
    }
    if len(runs) > 1 and any(run.candidates for run in runs):
        charts["front"] = _front_of_runs(runs).to_dict()
        context["front"] = "front"
    context["charts"] = _closed(json.dumps(charts, separators=(",", ":")))
    template = files("bitwright.sw").joinpath("templates/report.html.jinja").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    return environment.from_string(template).render(context)


def _closed(text: str) -> str:
    """Text that cannot end the script element it stands in."""
    return text.replace("</script", "<\\/script").replace("<!--", "<\\!--")


def pareto(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Candidates that no other beats in both energy and accuracy, by rising energy."""
    best, front = -math.inf, []
    for candidate in sorted(candidates, key=lambda each: (each.uj_per_image, -each.accuracy)):
        if candidate.accuracy > best:
            best = candidate.accuracy
            front.append(candidate)
    return front


# ---------------------------------------------------------------------------------------------------------------------
# What the template shows


def _subtitle(runs: Sequence[RunReport]) -> str:
    names = sorted({run.dataset for run in runs})
    spec = runs[0].energy.activity.spec
    return (
        f"{', '.join(names)} on a bit-serial array of {spec.rows} × {spec.columns} processing elements "
        f"of {spec.lanes} lanes: {spec.rows * spec.columns * spec.lanes:,} one-bit products a cycle."
    )


def _run_context(run: RunReport, key: str, charts: dict[str, Any]) -> dict[str, Any]:
    charts[f"{key}-components"] = _component_chart(run).to_dict()
    if run.candidates:
        charts[f"{key}-front"] = _front_chart(run).to_dict()
    if any(layer.account for layer in run.energy.activity.layers):
        charts[f"{key}-cycles"] = _cycles_chart(run).to_dict()
    if run.trace:
        charts[f"{key}-trace"] = _trace_chart(run).to_dict()
    spec = run.energy.activity.spec
    cycles = run.energy.activity.cycles / run.energy.activity.images
    products = spec.rows * spec.columns * spec.lanes
    layers = [_layer_row(run, index) for index in range(len(run.energy.activity.layers))]
    needed = sum(layer["needed"] for layer in layers)
    accepted = sum(step.accepted for step in run.trace)
    return {
        "name": run.name,
        "figures": _figures(run),
        "front": f"{key}-front" if run.candidates else None,
        "front_note": "Accuracy is that on the validation images, which chose the bits. Energy is predicted from "
        "shapes and bits, with no word skipped; layers that a step leaves in float count as 8 bits.",
        "layers": layers,
        "components": f"{key}-components",
        "energy_note": _energy_note(run),
        "energy": _energy_table(run.energy),
        "bit_products": products,
        "cycles": cycles,
        "cycles_chart": f"{key}-cycles" if f"{key}-cycles" in charts else None,
        "utilization": needed / (cycles * products),
        "confusion": _confusion_cells(run.confusion),
        "confusion_note": f"{run.images:,} test images through the Program; true class by row, predicted by column.",
        "trace": f"{key}-trace" if run.trace else None,
        "trace_note": f"{len(run.trace)} candidates in the order tried, {accepted} kept: layer by layer, its input "
        "first, then its weights.",
        "verification": run.verification,
        "config": run.config.strip(),
        "array": dataclasses.asdict(spec),
        "array_title": f"{spec.rows} × {spec.columns} × {spec.lanes}, zero skip {spec.zero_skip}",
        "table": run.energy.table.to_dict(),
        "manifest": json.dumps(run.manifest, indent=2),
    }


def _figures(run: RunReport) -> list[dict[str, str]]:
    work = run.energy.activity
    accuracy_note = f"of {run.images:,} test images"
    if run.accuracy_float is not None:
        accuracy_note = f"{run.accuracy_float:.2%} in float"
    energy_note = f"{run.energy.table.name}, {run.energy.table.technology}"
    if run.baseline is not None:
        ratio = run.baseline.uj_per_image / run.energy.uj_per_image
        energy_note = f"{_number(run.baseline.uj_per_image)} µJ at 8 bits: {ratio:.1f} × as much"
    images = sum(check.images for check in run.verification)
    wrong = sum(check.value_mismatches + check.cycle_mismatches + check.other_mismatches for check in run.verification)
    return [
        _figure("Accuracy of the hardware", f"{100 * run.accuracy_hardware:.2f}", "%", accuracy_note),
        _figure("Energy per image", _number(run.energy.uj_per_image), "µJ", energy_note),
        _figure(
            "Cycles per image",
            f"{work.cycles / work.images:,.0f}",
            "",
            f"{run.energy.seconds_per_image * 1e6:,.1f} µs at {run.energy.table['clock']:g} MHz",
        ),
        _figure(
            "RTL against golden model",
            f"{wrong:,}" if run.verification else "–",
            "differences" if run.verification else "",
            f"on {images:,} images, in values, cycles, counters" if run.verification else "not run",
            ("bad" if wrong else "good") if run.verification else "",
        ),
    ]


def _figure(name: str, value: str, unit: str, note: str, tone: str = "") -> dict[str, str]:
    return {"name": name, "value": value, "unit": unit, "note": note, "tone": tone}


def _layer_row(run: RunReport, index: int) -> dict[str, Any]:
    work = run.energy.activity
    layer, spec, images = work.layers[index], work.spec, work.images
    info, counters = layer.info, layer.counters
    needed = info.weight_planes * info.input_planes * info.macs
    cycles = counters["cycles"] / images
    shape = f"{_shape(info.in_shape)} → {_shape(info.out_shape)}"
    if info.kind == "conv":
        shape += f", {info.kernel[0]}×{info.kernel[1]}"
    if info.pool != (1, 1):
        shape += f", max {info.pool[0]}×{info.pool[1]}"
    if info.groups > 1:
        shape += f", {info.groups} groups"
    if info.residual_source is not None:
        shape += f", + {work.layers[info.residual_source].info.name}"
    return {
        "name": info.name,
        "shape": shape,
        "weight_bits": info.weight_bits,
        "input_bits": info.input_planes,
        "passes": len(layer.parts[0].descriptor.passes),
        "macs": info.macs,
        "needed": needed,
        "weights": info.conv_shape[0] * info.fan_in,
        "cycles": cycles,
        "share": counters["cycles"] / work.cycles,
        "utilization": needed / (cycles * spec.rows * spec.columns * spec.lanes),
        "stalled": counters["stalls"] / counters["cycles"],
        "computed": counters["computed"] / images,
        "gated": counters["gated"] / images,
        "skipped": counters["skipped"] / images,
    }


def _shape(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape)) if shape[1:] != (1, 1) else str(shape[0])


def _number(value: float) -> str:
    """Three significant digits, without an exponent."""
    if value == 0:
        return "0"
    return f"{value:,.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"


def _energy_note(run: RunReport) -> str:
    table = run.energy.table
    leakage = run.energy.by("kind").get(("leakage",), 0) / run.energy.uj_per_image
    note = f"{table.label}. Leakage is {leakage:.1%}."
    if run.energy.load_uj:
        note += f" Loading the network, once, takes {_number(run.energy.load_uj)} µJ and is not included."
    if run.energy.parallel_mac_uj is not None:
        note += (
            f" For scale: 8-bit bit-parallel multipliers and adders alone, without any memory, would take "
            f"{_number(run.energy.parallel_mac_uj)} µJ for the same multiply-accumulates."
        )
    return note


def _energy_table(energy: EnergyReport) -> dict[str, Any]:
    cells = energy.by("layer", "component")
    by_component, by_layer = energy.by("component"), energy.by("layer")
    components = [name for (name,) in by_component]
    layers = [HOST] if (HOST,) in by_layer else []
    layers += [layer.info.name for layer in energy.activity.layers]
    layers += [BETWEEN] if (BETWEEN,) in by_layer else []
    unit, factor = next(
        (
            (unit, factor)
            for unit, factor in (("mJ", 1e-3), ("µJ", 1.0), ("nJ", 1e3))
            if energy.uj_per_image * factor >= 1
        ),
        ("pJ", 1e6),
    )
    digits = max(0, 3 - math.floor(math.log10(energy.uj_per_image * factor)))

    def shown(value: float) -> str:
        return f"{value * factor:,.{digits}f}" if value else ""

    return {
        "unit": unit,
        "components": components,
        "rows": [
            {
                "layer": layer,
                "cells": [shown(cells.get((layer, component), 0)) for component in components],
                "total": shown(by_layer[layer,]),
            }
            for layer in layers
        ],
        "totals": [shown(value) for value in by_component.values()],
        "total": shown(energy.uj_per_image),
    }


def _confusion_cells(confusion: Sequence[Sequence[int]]) -> list[list[dict[str, str]]]:
    cells: list[list[dict[str, str]]] = []
    for true, row in enumerate(confusion):
        total = max(1, sum(row))
        cells.append([])
        for predicted, count in enumerate(row):
            # Mistakes are rare: shade them so that even one is seen.
            share = count / total if true == predicted else min(1.0, 0.2 + 4 * count / total) if count else 0.0
            colour = "43, 92, 138" if true == predicted else "194, 85, 45"
            ink = "#ffffff" if share > 0.55 else INK
            style = f"background: rgba({colour}, {share:.2f}); color: {ink}" if count else "background: #f7f8f9"
            cells[-1].append({"text": str(count) if count else "", "style": style})
    return cells


# ---------------------------------------------------------------------------------------------------------------------
# Charts


def _front_rows(candidates: Sequence[Candidate]) -> list[dict[str, Any]]:
    return [
        {
            "label": candidate.label,
            "kind": {"searched": "search result", "uniform": "same bits everywhere", "tried": "tried by the search"}[
                candidate.kind
            ],
            "energy": candidate.uj_per_image,
            "accuracy": candidate.accuracy,
            "cycles": candidate.cycles_per_image,
            "size": {"searched": 190, "uniform": 85, "tried": 42}[candidate.kind],
        }
        # By number: Vega-Lite reads a dot in a field's name as a path.
        | {f"bits{index}": _bits_text(*bits) for index, bits in enumerate(candidate.bits.values())}
        for candidate in candidates
    ]


def _bits_text(weight: int | None, activation: int | None) -> str:
    return f"W {'float' if weight is None else weight} · A {'float' if activation is None else activation}"


def _accuracy_axis(candidates: Sequence[Candidate]) -> tuple[float, float]:
    """Range of accuracies to begin with: the upper part, where decisions are made; zooming shows the rest."""
    top = max(candidate.accuracy for candidate in candidates)
    interesting = [candidate.accuracy for candidate in pareto(candidates) if candidate.accuracy > top - 0.25]
    bottom = max(0.0, min(interesting) - 0.02, top - 0.25)
    return min(bottom, top - 0.03), min(1.0, top + 0.01)


def _energy_domain(candidates: Sequence[Candidate], accuracies: tuple[float, float]) -> tuple[float, float]:
    shown = [each.uj_per_image for each in candidates if each.accuracy >= accuracies[0]]
    return min(shown) / 1.12, max(shown) * 1.12


def _energy_axis(domain: tuple[float, float]) -> "altair.X":
    """Axis of energies: logarithmic where they span almost a decade."""
    import altair

    if domain[1] / domain[0] > 8:
        title = "energy per image, µJ (predicted, logarithmic)"
        return altair.X("energy:Q", title=title).scale(type="log", domain=domain).axis(format="~g", tickCount=8)
    axis = altair.X("energy:Q", title="energy per image, µJ (predicted)")
    return axis.scale(domain=domain).axis(format="~g", tickCount=10)


def _front_chart(run: RunReport) -> "altair.TopLevelMixin":
    import altair

    accuracies = _accuracy_axis(run.candidates)
    energies = _energy_domain(run.candidates, accuracies)
    kinds = ["search result", "same bits everywhere", "tried by the search"]
    x = _energy_axis(energies)
    y = altair.Y("accuracy:Q", title="accuracy on validation images").scale(domain=accuracies).axis(format=".1%")
    tooltip = [
        altair.Tooltip("label:N", title="point"),
        altair.Tooltip("accuracy:Q", format=".2%"),
        altair.Tooltip("energy:Q", title="energy, µJ", format=".4~g"),
        altair.Tooltip("cycles:Q", title="cycles", format=",.0f"),
        *(altair.Tooltip(f"bits{index}:N", title=layer) for index, layer in enumerate(run.candidates[0].bits)),
    ]
    line = (
        altair.Chart(altair.Data(values=_front_rows(pareto(run.candidates))))
        .mark_line(interpolate="step-after", color=GREY, strokeWidth=1.5, clip=True)
        .encode(x=x, y=y)
    )
    # Tried points first, so that the result lies on top.
    ordered = sorted(run.candidates, key=lambda each: ["tried", "uniform", "searched"].index(each.kind))
    points = (
        altair.Chart(altair.Data(values=_front_rows(ordered)))
        .mark_point(filled=True, opacity=0.9, clip=True)
        .encode(
            x=x,
            y=y,
            color=altair.Color("kind:N", title=None).scale(domain=kinds, range=[ORANGE, BLUE, GREY]),
            shape=altair.Shape("kind:N", title=None).scale(domain=kinds, range=["diamond", "square", "circle"]),
            size=altair.Size("size:Q", legend=None).scale(None),
            tooltip=tooltip,
        )
    )
    labels = (
        altair.Chart(altair.Data(values=_front_rows([each for each in ordered if each.kind != "tried"])))
        .mark_text(align="left", baseline="middle", dx=10, dy=9, fontSize=11.5, color=INK, clip=True)
        .encode(x=x, y=y, text="label:N")
    )
    return _styled((line + points + labels).interactive(), 380)


def _front_of_runs(runs: Sequence[RunReport]) -> "altair.TopLevelMixin":
    import altair

    together = [candidate for run in runs for candidate in run.candidates]
    accuracies = _accuracy_axis(together)
    rows = [
        row
        | {"run": run.name, "bits": "; ".join(f"{name} {_bits_text(*bits)}" for name, bits in candidate.bits.items())}
        for run in runs
        for candidate, row in zip(run.candidates, _front_rows(run.candidates), strict=True)
    ]
    fronts = [row | {"run": run.name} for run in runs for row in _front_rows(pareto(run.candidates))]
    x = _energy_axis(_energy_domain(together, accuracies))
    y = altair.Y("accuracy:Q", title="accuracy on validation images").scale(domain=accuracies).axis(format=".1%")
    colour = altair.Color("run:N", title=None).scale(range=COMPONENT_COLOURS[::2])
    line = altair.Chart(altair.Data(values=fronts)).mark_line(interpolate="step-after", strokeWidth=1.5, clip=True)
    points = altair.Chart(altair.Data(values=rows)).mark_point(filled=True, size=50, opacity=0.8, clip=True)
    tooltip = ["run:N", "label:N", altair.Tooltip("accuracy:Q", format=".2%"), "energy:Q", "bits:N"]
    chart = line.encode(x=x, y=y, color=colour) + points.encode(x=x, y=y, color=colour, tooltip=tooltip)
    return _styled(chart.interactive(), 380)


def _component_chart(run: RunReport) -> "altair.TopLevelMixin":
    import altair

    bars = [("this network", run.energy)] + ([("8 bits", run.baseline)] if run.baseline is not None else [])
    components = [name for (name,) in run.energy.by("component")]
    rows = [
        {"network": name, "component": component, "energy": value, "order": components.index(component)}
        for name, energy in bars
        for (component,), value in energy.by("component").items()
        if component in components
    ]
    chart = (
        altair.Chart(altair.Data(values=rows))
        .mark_bar(height=30)
        .encode(
            x=altair.X("sum(energy):Q", title="energy per image, µJ"),
            y=altair.Y("network:N", title=None, sort=[name for name, _ in bars]).axis(ticks=False, domain=False),
            color=altair.Color("component:N", title=None, sort=components)
            .scale(domain=components, range=COMPONENT_COLOURS)
            .legend(orient="bottom", columns=5),
            order=altair.Order("order:Q"),
            tooltip=["network:N", "component:N", altair.Tooltip("sum(energy):Q", title="energy, µJ", format=".4~g")],
        )
    )
    return _styled(chart, 52 * len(bars))


def _cycles_chart(run: RunReport) -> "altair.TopLevelMixin":
    import altair

    work = run.energy.activity
    products = work.spec.rows * work.spec.columns * work.spec.lanes * work.images
    causes = [cause.replace("_", " ") for cause in ACCOUNT]
    rows = [
        {"layer": layer.info.name, "spent": cause.replace("_", " "), "cycles": count / products, "order": index}
        for layer in work.layers
        for index, (cause, count) in enumerate(layer.account.items())
    ]
    chart = (
        altair.Chart(altair.Data(values=rows))
        .mark_bar(height=14)
        .encode(
            x=altair.X("sum(cycles):Q", title="cycles per image"),
            y=altair.Y("layer:N", title=None, sort=[layer.info.name for layer in work.layers]).axis(ticks=False),
            color=altair.Color("spent:N", title=None, sort=causes)
            .scale(domain=causes, range=COMPONENT_COLOURS)
            .legend(orient="bottom", columns=5),
            order=altair.Order("order:Q"),
            tooltip=["layer:N", "spent:N", altair.Tooltip("sum(cycles):Q", title="cycles", format=",.1f")],
        )
    )
    return _styled(chart, 22 * len(work.layers))


def _trace_chart(run: RunReport) -> "altair.TopLevelMixin":
    import altair

    rows = [
        {
            "step": index + 1,
            "layer": step.layer,
            "tried": f"{step.bits} bits {step.operand}",
            "accuracy": step.accuracy,
            "result": "kept" if step.accepted else "rejected",
        }
        for index, step in enumerate(run.trace)
    ]
    accuracies = [step.accuracy for step in run.trace]
    top = max(accuracies)
    floor = max(min(accuracies), min(top, run.target or top) - 0.1)  # zooming out shows what failed by more
    margin = 0.1 * (top - floor) + 0.002
    points = (
        altair.Chart(altair.Data(values=rows))
        .mark_point(filled=True, size=60, clip=True)
        .encode(
            x=altair.X("step:Q", title="candidate").scale(domain=[0, len(rows) + 1]).axis(tickMinStep=1, grid=False),
            y=altair.Y("accuracy:Q", title="accuracy")
            .scale(domain=[floor - margin, min(1.0, top + margin)])
            .axis(format=".1%"),
            color=altair.Color("result:N", title=None).scale(domain=["kept", "rejected"], range=[BLUE, ORANGE]),
            shape=altair.Shape("result:N", title=None).scale(domain=["kept", "rejected"], range=["circle", "cross"]),
            tooltip=["step:Q", "layer:N", "tried:N", altair.Tooltip("accuracy:Q", format=".2%"), "result:N"],
        )
    )
    layers: list[altair.Chart] = [points]
    if run.target is not None:
        target = altair.Chart(altair.Data(values=[{"accuracy": run.target, "text": f"target {run.target:.1%}"}]))
        layers.append(target.mark_rule(color=INK, strokeDash=[4, 3]).encode(y="accuracy:Q"))
        layers.append(target.mark_text(align="right", dy=9, color=INK, x="width").encode(y="accuracy:Q", text="text:N"))
    return _styled(altair.layer(*layers).interactive(), 280, width=440)


def _styled(chart: Any, height: int, width: int = WIDTH) -> "altair.TopLevelMixin":
    font = "Inter, Helvetica Neue, Segoe UI, Roboto, Noto Sans, DejaVu Sans, sans-serif"
    return (
        chart.properties(width=width, height=height, background="transparent")
        .configure(font=font)
        .configure_view(stroke=None)
        .configure_axis(
            labelColor="#60646c",
            titleColor="#60646c",
            labelFontSize=11.5,
            titleFontSize=12,
            titleFontWeight="normal",
            titlePadding=10,
            gridColor="#eceef1",
            domainColor=GREY,
            tickColor=GREY,
        )
        .configure_legend(orient="top", labelFontSize=12, labelColor=INK, symbolSize=90, padding=0, offset=14)
    )
