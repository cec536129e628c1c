import re
import shutil
import subprocess
from pathlib import Path

import pytest

from bitwright.hw.cheader import PREFIX, c_constants, c_header
from bitwright.hw.isa import PRESETS, REGISTER_BITS, ArraySpec, Region, Register
from bitwright.hw.verilog import TOPS, describe

SPECS = {
    "tiny": PRESETS["tiny"],
    "large": PRESETS["large"],
    "coefficients": ArraySpec(rows=12, lanes=64, drain_planes=1, coefficient_bits=8, weight_stream=True),
}


def run_c(folder: Path, spec: ArraySpec, expressions: list[str]) -> list[int]:
    """Values that a C program with the header prints."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    (folder / "bitwright.h").write_text(c_header(spec))
    prints = "\n".join(f'  printf("%lu\\n", (unsigned long)({expression}));' for expression in expressions)
    source = folder / "main.c"
    includes = '#include <stdio.h>\n#include "bitwright.h"\n#include "bitwright.h"'
    source.write_text(f"{includes}\nint main(void) {{\n{prints}\n  return 0;\n}}\n")
    flags = ["-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic", "-O0"]
    subprocess.run([compiler, *flags, str(source), "-o", str(folder / "main")], check=True)
    shown = subprocess.run([str(folder / "main")], check=True, capture_output=True, text=True)
    return [int(line) for line in shown.stdout.split()]


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_constants_in_c_are_those_in_python(spec: ArraySpec, tmp_path: Path) -> None:
    derived = spec.derived
    at = derived.host_address
    expected = {f"{PREFIX}_REG_{register.name}": 4 * at(Region.REGISTERS, register) for register in Register}
    for register, bits in REGISTER_BITS.items():
        for name, (low, width) in bits.items():
            field = f"{PREFIX}_REG_{register.name}_{name.upper()}"
            expected[f"{field}_SHIFT"] = low
            expected[f"{field}_MASK"] = sum(1 << bit for bit in range(low, low + width))
    expected |= {f"{PREFIX}_SPEC": spec.fingerprint, f"{PREFIX}_ID": int.from_bytes(b"BWRT")}
    for name in ("rows", "lanes", "weight_stream"):
        expected[f"{PREFIX}_ARRAY_{name.upper()}"] = int(getattr(spec, name))
    for row, word, chunk in [(0, 0, 0), (spec.rows - 1, 7, derived.chunks - 1), (1, 1, 0)]:
        expected[f"{PREFIX}_WEIGHTS_ADDRESS({row}, {word}, {chunk})"] = 4 * at(Region.WEIGHTS, word, row, chunk)
        expected[f"{PREFIX}_THRESHOLDS_ADDRESS({row}, {word})"] = 4 * at(Region.THRESHOLDS, word, row)
        expected[f"{PREFIX}_ACTIVATIONS_ADDRESS({word}, {chunk})"] = 4 * at(Region.ACTIVATIONS, word, chunk=chunk)
        expected[f"{PREFIX}_DESCRIPTORS_ADDRESS({word} + 1)"] = 4 * at(Region.DESCRIPTORS, word + 1)
        expected[f"{PREFIX}_RESULTS_ADDRESS({word})"] = 4 * at(Region.RESULTS, word)
        if spec.coefficient_bits:
            expected[f"{PREFIX}_COEFFICIENTS_ADDRESS({row}, {word})"] = 4 * at(Region.COEFFICIENTS, word, row)
    assert run_c(tmp_path, spec, list(expected)) == list(expected.values())


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_every_constant_is_printed_as_it_is(spec: ArraySpec, tmp_path: Path) -> None:
    constants = {name: value for section in c_constants(spec).values() for name, value in section.items()}
    assert sum(map(len, c_constants(spec).values())) == len(constants)  # none twice
    defined = re.findall(rf"^#define {PREFIX}_(\w+) 0x", c_header(spec), re.M)
    assert defined == list(constants)
    assert run_c(tmp_path, spec, [f"{PREFIX}_{name}" for name in constants]) == list(constants.values())


@pytest.mark.parametrize("bus", TOPS)
def test_the_description_has_the_same_registers(bus) -> None:
    spec = SPECS["coefficients"]
    constants = {name: value for section in c_constants(spec).values() for name, value in section.items()}
    described = describe(spec, bus)
    for register in described["registers"]:
        assert constants[f"REG_{register['name'].upper()}"] == 4 * register["address"]
        for name, (top, low) in register["bits"].items():
            field = f"REG_{register['name']}_{name}".upper()
            assert constants[f"{field}_SHIFT"] == low
            assert constants[f"{field}_MASK"] == (1 << top + 1) - (1 << low)
    for memory in described["memories"][1:]:
        assert constants[f"{memory['name'].upper()}_BASE"] == 4 * memory["base"]
        assert constants[f"{memory['name'].upper()}_DEPTH"] == memory["depth"]
    assert {f"CODE_{name.upper()}" for name in described["errors"]} <= constants.keys()
