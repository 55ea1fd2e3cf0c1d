"""The partitions of a disk image, MBR or GPT, by util-linux's reader; and what each of them holds, by its content."""

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

from merino_edge.delivery.ext4 import is_ext
from merino_edge.delivery.system_tools import complaint, run_tool
from merino_runtime.errors import MerinoError

EXT, FAT, OTHER = "ext4", "FAT", "other"
FAT_SIGNS = ((54, b"FAT"), (82, b"FAT32"))  # offset in the first sector, of FAT12 and FAT16, and of FAT32
PROTECTIVE = "ee"  # MBR's type for all of a disk with a GPT: shown only where that cannot be read


class Partition(NamedTuple):
    number: int  # 0: no partition table, the file system begins with the file
    start_bytes: int
    size_bytes: int
    holds: str


def partitions(folder: Path, name: str, shown: str) -> list[Partition]:
    """Of the image `folder`/`name`, in the table's order. shown: the image in messages.

    Raises MerinoError where there is no table, or one that leads out of the file.
    """
    path = folder / name
    file_bytes = path.stat().st_size
    if is_ext(path, 0):
        return [Partition(0, 0, file_bytes, EXT)]
    ran = run_tool("sfdisk", ["--json", name], folder)
    table = _table(ran.out) if ran.code == 0 else None
    if table is None:
        reason = complaint(ran.err, ran.code) if ran.code else "it has no partition table"
        raise MerinoError(
            f"{shown} cannot be read as a disk image: {reason.replace(name, shown)}. Name an image with an MBR or GPT, "
            "as the board's system is published."
        )
    if any(kind == PROTECTIVE for _, _, _, kind in table):
        raise MerinoError(f"{shown}: its GPT is damaged or cut off. Fetch or unpack it again.")
    found = []
    for number, start_bytes, size_bytes, _ in table:
        if start_bytes + size_bytes > file_bytes:
            raise MerinoError(
                f"{shown} was cut off: partition {number} ends at byte {start_bytes + size_bytes:,}, the file at "
                f"{file_bytes:,}. Fetch or unpack it again."
            )
        found.append(Partition(number, start_bytes, size_bytes, _content(path, start_bytes)))
    return found


def _table(text: str) -> list[tuple[int, int, int, str]] | None:
    """(number, start, size, type) of sfdisk's JSON; None where it is anything else."""
    try:
        table = json.loads(text)["partitiontable"]
        sector = int(table.get("sectorsize", 512))
        parts = table.get("partitions", [])
        return [(_number(each), each["start"] * sector, each["size"] * sector, each["type"]) for each in parts]
    except (ValueError, KeyError, TypeError):
        return None


def _number(part: dict[str, Any]) -> int:
    found = re.search(r"\d+$", part["node"])
    if not found:
        raise ValueError(part["node"])
    return int(found.group())


def _content(path: Path, start_bytes: int) -> str:
    if is_ext(path, start_bytes):
        return EXT
    with open(path, "rb") as file:
        file.seek(start_bytes)
        sector = file.read(512)
    signed = sector[510:] == b"\x55\xaa" and any(sector[at : at + len(sign)] == sign for at, sign in FAT_SIGNS)
    return FAT if signed else OTHER
