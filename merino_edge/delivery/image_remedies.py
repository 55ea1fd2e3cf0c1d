"""Shell commands that messages give to repair or enlarge the file system in an image. None needs root.

The file system is taken out into a file of its own, and put back. With `?offset=` e2fsck cannot go on after it has
written back a journal, and resize2fs cuts the image to the file system's size, wherever in it that begins.
"""

import shlex

MB = 2**20


def repairing(image: str, start_bytes: int, size_bytes: int) -> str:
    root = shlex.quote(f"{image}.root" if start_bytes else image)
    return _taken_out(image, start_bytes, size_bytes, f"{{ e2fsck -fy {root} || [ $? -lt 4 ]; }}")


def enlarging(image: str, number: int, start_bytes: int, size_bytes: int, missing_bytes: int) -> str:
    """Of the last partition, by as much as gives `missing_bytes` of free space.

    number: the partition's; 0 where there is no table. One sixth more: up to 1/16 of it becomes tables of inodes, 1/20
    the administrator's reserve.
    """
    more_mb = 2 + -(-missing_bytes * 7 // (6 * MB))
    whole, root = shlex.quote(image), shlex.quote(f"{image}.root" if start_bytes else image)
    resize = f"truncate -s +{more_mb}M {root} && e2fsck -fp {root} && resize2fs {root}"
    grow = f"truncate -s +{more_mb + 1}M {whole} && echo ', +' | sfdisk -N {number} {whole} && " if number else ""
    return grow + _taken_out(image, start_bytes, size_bytes, resize)


def _taken_out(image: str, start_bytes: int, size_bytes: int, commands: str) -> str:
    if not start_bytes:
        return commands
    whole, root = shlex.quote(image), shlex.quote(f"{image}.root")
    take = f"dd if={whole} of={root} bs=1M iflag=skip_bytes,count_bytes skip={start_bytes} count={size_bytes}"
    put_back = f"dd if={root} of={whole} bs=1M oflag=seek_bytes seek={start_bytes} conv=notrunc"
    return f"{take} && {commands} && {put_back} && rm {root}"
