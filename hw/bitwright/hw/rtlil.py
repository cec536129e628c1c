"""RTLIL between Amaranth and Yosys: one module for all equal components.

Amaranth writes a module for each instance, named by its path. A PE array would become hundreds of copies of the same
text; sharing them makes the Verilog readable, and every tool after it faster.
"""

import re

_MODULE = re.compile(r"^(?P<head>(?:attribute [^\n]*\n)*)module \\(?P<name>\S+)\n(?P<body>.*?\n)end\n", re.M | re.S)
_INSTANCE = re.compile(r"^(?P<cell> *cell )\\(?P<name>\S+)(?= \\?\S+$)", re.M)


def share_modules(text: str) -> str:
    """Keep one of all equal modules, and give every module a plain name.

    Parameters
    ----------
    text
        RTLIL as :func:`amaranth.back.rtlil.convert` returns it.

    Returns
    -------
    str
        RTLIL of the same design. A module is named by the path of its first instance, with underscores, and without the
        indices of that instance where all its siblings share the module.
    """
    modules = {match["name"]: match for match in _MODULE.finditer(text)}
    bodies = {name: match["body"] for name, match in modules.items()}
    shared = {name: name for name in modules}
    while True:
        # Leaves first: their users become equal once they refer to the same module.
        kept: dict[str, str] = {}
        renamed = {name: kept.setdefault(body, name) for name, body in bodies.items()}
        shared = {name: renamed.get(target, target) for name, target in shared.items()}
        survivors = {name: _refer(bodies[name], renamed) for name in kept.values()}
        if survivors == bodies:
            break
        bodies = survivors

    plain = {name: _plain_name(name, shared) for name in bodies}
    if len(set(plain.values())) != len(plain):  # two modules differ only in an index: keep it
        plain = {name: name.replace(".", "_") for name in bodies}
    preamble = text[: next(iter(modules.values())).start()] if modules else text
    return preamble + "".join(
        f"{modules[name]['head']}module \\{plain[name]}\n{_refer(body, plain)}end\n\n" for name, body in bodies.items()
    )


def _refer(body: str, names: dict[str, str]) -> str:
    return _INSTANCE.sub(lambda match: f"{match['cell']}\\{names.get(match['name'], match['name'])}", body)


def _plain_name(name: str, shared: dict[str, str]) -> str:
    """Path with underscores; a level's indices go if every module that differs only in them is shared with it."""
    pattern = re.compile(re.sub(r"(?:_\d+)+(?=\\\.|$)", r"(?:_\\d+)+", re.escape(name)) + "$")
    siblings = {shared[other] for other in shared if pattern.match(other)}
    path = re.sub(r"(?:_\d+)+(?=\.|$)", "", name) if siblings == {name} else name
    return path.replace(".", "_")
