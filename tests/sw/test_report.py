import dataclasses
import re

import numpy as np
import pytest

from bitwright.hw.errors import BitwrightError
from bitwright.hw.isa import preset
from bitwright.sim.energy import estimate
from bitwright.sim.golden import execute
from bitwright.sw.report import Candidate, RunReport, Step, Verification, pareto, render
from programs import conv, linear, random_program

LAYERS = [conv(16, padding=1, pool=2), conv(32, padding=1, pool=2), linear(10)]


def _energy(rng, bits, images):
    layers = [layer | {"weight_bits": bits, "output_planes": bits} for layer in LAYERS]
    program = random_program(rng, preset("demo"), layers, in_shape=(1, 8, 8), batch=2)
    return estimate(program, execute(program, images))


@pytest.fixture(scope="module")
def run():
    """A run with numbers like those of a real one."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (24, 1, 8, 8), np.uint8)
    energy, baseline = _energy(rng, 3, images), _energy(rng, 8, images)
    names = [layer.info.name for layer in energy.activity.layers]
    candidates = [
        Candidate(f"{bits} bits", "uniform", dict.fromkeys(names, (bits, bits)), accuracy, bits * 0.02, bits * 300)
        for bits, accuracy in ((8, 0.985), (6, 0.985), (5, 0.982), (4, 0.975), (3, 0.93), (2, 0.61))
    ]
    trace = []
    for layer, name in enumerate(names):
        for operand in ("input", "weights"):
            for bits in range(8, 2 + layer, -1):
                accuracy = 0.985 - 0.3 / 2 ** (bits + rng.random())
                trace.append(Step(name, operand, bits, accuracy, accuracy > 0.965))
                assignment = dict.fromkeys(names[:layer], (3, 3)) | dict.fromkeys(names[layer:], (bits, None))
                candidates.append(
                    Candidate(
                        f"{name} {operand} {bits}", "tried", assignment, accuracy, 0.05 + bits * 0.012, 900 + bits
                    )
                )
    candidates.append(
        Candidate("searched", "searched", dict(zip(names, [(3, 8), (3, 3), (4, 2)], strict=True)), 0.977, 0.06, 700)
    )
    confusion = (np.eye(10, dtype=int) * 36 + (rng.random((10, 10)) < 0.08)).tolist()
    return RunReport(
        name="digits",
        dataset="digits",
        images=360,
        accuracy_float=0.9861,
        accuracy_hardware=0.9778,
        confusion=confusion,
        energy=energy,
        baseline=baseline,
        config='[data]\nname = "digits"\n',
        manifest={"versions": {"bitwright": "0.1.0"}, "seed": 1},
        candidates=candidates,
        trace=trace,
        target=0.965,
        verification=[Verification("verilator", 120, 130_000, 0, 0, 0, 2.5)],
    )


def test_the_page_is_self_contained(run, tmp_path):
    page = render([run])
    (tmp_path / "report.html").write_text(page)
    body = re.sub(r"<script>.*?</script>", "", page, flags=re.S)
    assert "http" not in re.sub(r"https://vega.github.io/schema/[^\"]*", "", body)
    assert not re.search(r"<(script|link|img)[^>]* (src|href)=", body)
    assert page.count("</script>") == 3  # the library, the charts and the line that draws them: none is ended early


def test_the_page_shows_results_and_inputs(run):
    page = render([run])
    for text in ("97.78", "98.61", "verilator", "layer1", "horowitz45", "assumed", "published", "activation memory"):
        assert text in page
    assert "[data]" in page
    assert 'class="good">equal' in page


def test_the_page_shows_a_difference(run):
    check = Verification("pysim", 8, 1000, 3, 0, 0, 1.0, "Result 2 of image 1 is 7, expected 8.")
    page = render([dataclasses.replace(run, verification=[check])])
    assert "Result 2 of image 1 is 7, expected 8." in page
    assert 'class="bad"' in page


def test_text_of_users_is_escaped(run):
    page = render([dataclasses.replace(run, name="<b>&", config="</pre><script>alert(1)</script>")])
    assert "<script>alert" not in page
    assert "<b>&" not in page


def test_a_run_without_search_or_verification(run):
    bare = dataclasses.replace(
        run, candidates=(), trace=(), verification=(), baseline=None, accuracy_float=None, target=None
    )
    page = render([bare])
    assert "was not searched" in page
    assert "Not run." in page


def test_several_runs_share_a_page(run):
    page = render([run, dataclasses.replace(run, name="other")])
    assert "2 runs" in page
    assert 'data-chart="front"' in page
    assert 'data-chart="run1-front"' in page


def test_no_run():
    with pytest.raises(BitwrightError, match="name at least one run"):
        render([])


def test_pareto_front():
    def candidate(energy, accuracy):
        return Candidate("", "tried", {}, accuracy, energy, 0)

    best, cheap = candidate(3, 0.9), candidate(1, 0.5)
    beaten, tie = candidate(2, 0.4), candidate(4, 0.9)
    assert pareto([best, beaten, tie, cheap]) == [cheap, best]
