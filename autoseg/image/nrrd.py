"""Label maps as NRRD files on the very grid of another NRRD file.

NRRD has no spacing: it stores each axis as direction times spacing, and dividing them again changes
the last bit. Copying the lines of the scan's header keeps every bit.
"""

from __future__ import annotations

import re
from pathlib import Path

VECTOR = re.compile(r"\(([^)]*)\)")
LONGEST_HEADER = 1 << 20


def copy_grid(source: Path, written: Path) -> None:
    """Put the grid of the NRRD file `source` into the three-dimensional NRRD file `written`."""
    grid = _grid_lines(_header(source))
    content = written.read_bytes()
    header, _, voxels = content.partition(b"\n\n")
    lines = header.decode().splitlines()
    kept = [grid.get(_field(line), line) for line in lines]
    written.write_bytes("\n".join(kept).encode() + b"\n\n" + voxels)


def _grid_lines(header: list[str]) -> dict[str, str]:
    """The lines that say where the grid lies, by the name of their field, for three dimensions."""
    lines = {_field(line): line for line in header}
    if "space directions" not in lines:
        return {}  # plain spacings, which ITK writes as they are
    found = {name: lines[name] for name in ("space",) if name in lines}
    for name in ("space directions", "space origin"):
        vectors = VECTOR.findall(lines.get(name, ""))
        if vectors:
            found[name] = f"{name}: {' '.join(_in_space(vector) for vector in vectors[:3])}"
    return {name: line.removesuffix("-time") for name, line in found.items()}


def _in_space(vector: str) -> str:
    """The first three numbers of a vector: some files give time as the fourth."""
    return f"({','.join(vector.split(',')[:3])})"


def _field(line: str) -> str:
    return line.partition(":")[0]


def _header(path: Path) -> list[str]:
    """The lines above the empty one."""
    with path.open("rb") as stream:
        text = stream.read(LONGEST_HEADER).replace(b"\r\n", b"\n").partition(b"\n\n")[0]
    return text.decode("utf-8", errors="replace").splitlines()
