"""merino.pyz: the board side as one zip application, built from the installed packages whenever it is needed.

The same sources give the same bytes. It runs as `python3 merino.pyz` on Python 3.6 or later with numpy, tokenizers and
one backend. `python3 -m merino_edge.bundles.board_app merino.pyz` writes it: for Ansible, and for a board by hand.
"""

import functools
import io
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import merino_bench
import merino_runtime
from merino_runtime.errors import MerinoError
from merino_runtime.io.outputs import write_output

PACKED = (".py", ".json", ".xz", ".html", ".css", ".js", ".so")  # sources, and data files beside them
EPOCH = (1980, 1, 1, 0, 0, 0)  # the oldest date a zip can hold
MAIN = b"import sys\nfrom merino_bench.start import main\nsys.exit(main())\n"


def write_board_app(path: Path) -> None:
    """Write the application to `path`, executable."""
    write_output(str(path), board_app(), sync=False)
    path.chmod(0o755)


@functools.cache
def board_app() -> bytes:
    """The application of this version."""
    file = io.BytesIO()
    file.write(b"#!/usr/bin/env python3\n")
    with zipfile.ZipFile(file, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(entry("__main__.py"), MAIN)
        for package in (merino_runtime, merino_bench):
            assert package.__file__
            for name, content in packed_files(Path(package.__file__).parent):
                archive.writestr(entry(name), content)
    return file.getvalue()


def packed_files(package: Path) -> Iterator[tuple[str, bytes]]:
    """(name in the archive, content) of a package's sources and data files, sorted."""
    for path in sorted(package.rglob("*")):
        if path.is_file() and path.suffix in PACKED:
            yield f"{package.name}/{path.relative_to(package).as_posix()}", path.read_bytes()


def entry(name: str) -> zipfile.ZipInfo:
    """A member of the archive with a fixed date and mode, so that the archive's bytes do not change."""
    info = zipfile.ZipInfo(name, EPOCH)
    info.compress_type = zipfile.ZIP_DEFLATED
    info.external_attr = 0o644 << 16
    return info


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python3 -m merino_edge.bundles.board_app FILE")
    try:
        write_board_app(Path(sys.argv[1]))
    except MerinoError as fault:
        sys.exit(f"merino-edge: {fault}")
