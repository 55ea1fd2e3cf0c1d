"""merino.pyz: the board side as one zip application, built from the installed packages whenever it is needed.

The same sources give the same bytes. It runs as `python3 merino.pyz` on Python 3.6 or later with numpy, tokenizers and
one backend.
"""

import zipfile
from collections.abc import Iterator
from pathlib import Path

import merino_bench
import merino_runtime

PACKED = (".py", ".json", ".xz")  # sources, and data files beside them
EPOCH = (1980, 1, 1, 0, 0, 0)  # the oldest date a zip can hold
MAIN = b"import sys\nfrom merino_bench.start import main\nsys.exit(main())\n"


def write_board_app(path: Path) -> None:
    """Write the application to `path`, executable."""
    with open(path, "wb") as file:
        file.write(b"#!/usr/bin/env python3\n")
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(entry("__main__.py"), MAIN)
            for package in (merino_runtime, merino_bench):
                assert package.__file__
                for name, content in packed_files(Path(package.__file__).parent):
                    archive.writestr(entry(name), content)
    path.chmod(0o755)


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
