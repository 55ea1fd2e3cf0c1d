"""Packed files for the board's tests, put together from the board's own parts: Python 3.6 has no merino_edge."""
import hashlib
import io
import json
import marshal
import os
import sys
import zipfile
from functools import lru_cache
from importlib.util import MAGIC_NUMBER

from quick_bench import quick

import merino_bench
import merino_runtime
from merino_runtime.delivery.archive import CHECKSUM, END, SIGNATURE, checksum_bytes, packed_member, signature_bytes
from merino_runtime.delivery.manifest import APP, NAME, FileEntry, Manifest, WheelSet, manifest_bytes

UNCHECKED = b"\1\0\0\0" + bytes(8)  # a compiled file that is not compared with its source
MAIN = "import sys\nfrom merino_bench.start import main\nsys.exit(main())\n"


def app_bytes(path):
    """Write the application of the sources under test, whose benchmarks are quick, and return its bytes."""
    path.write_bytes(quick_app())
    return quick_app()


@lru_cache(maxsize=1)
def quick_app():
    """It is compiled, since tests start it hundreds of times. Another Python than this one reads the sources in it."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("__main__.py", MAIN)
        for package in (merino_runtime, merino_bench):
            top = os.path.dirname(package.__file__)
            for place, _, names in os.walk(top):
                for name in names:
                    if name.endswith((".py", ".json", ".xz", ".so")):
                        inner = os.path.relpath(os.path.join(place, name), os.path.dirname(top))
                        content = quick(inner, read(place, name))
                        archive.writestr(inner, content)
                        if name.endswith(".py") and sys.version_info >= (3, 7):
                            code = marshal.dumps(compile(content, inner, "exec"))
                            archive.writestr(inner + "c", MAGIC_NUMBER + UNCHECKED + code)
    return file.getvalue()


def bundle_files(folder):
    """What `pack` takes of a bundle's folder, by path in it."""
    names = ["bundle.json"] + [file["path"] for file in json.loads(read(folder, "bundle.json"))["files"]]
    return {name: read(folder, name) for name in names}


def read(folder, name):
    with open(os.path.join(str(folder), name), "rb") as file:
        return file.read()


def packed_bytes(app, bundles, name="sample", boards=(), wheels=(), counter=0, withdrawn=(), sign=None):
    """bundles: of each the files by path. wheels: (WheelSet, files by name). sign: manifest's bytes -> Signature."""
    files = {APP: app}
    for number, bundle in enumerate(bundles):
        files.update({f"bundles/{number}/{path}": data for path, data in bundle.items()})
    for wheel_set, members in wheels:
        files.update({f"{wheel_set.path}/{path}": data for path, data in members.items()})
    entries = tuple(FileEntry(path, len(data), hashlib.sha256(data).hexdigest()) for path, data in files.items())
    data = manifest_bytes(Manifest(1, name, "0.1.0", tuple(boards), tuple(f"bundles/{n}" for n in range(len(bundles))),
                                   tuple(wheel_set for wheel_set, _ in wheels), entries, counter, tuple(withdrawn)))
    signed = {SIGNATURE: signature_bytes(sign(data))} if sign else {}
    members = dict({NAME: data, CHECKSUM: checksum_bytes(data)}, **signed, **files)
    return b"".join(packed_member(path, member) for path, member in members.items()) + END


def changed_golden(files):
    """A bundle whose self-test fails: its last golden id is another one."""
    described = json.loads(files["bundle.json"].decode("utf-8"))
    ids = described["golden"]["greedy_ids"]
    ids[-1] = (ids[-1] + 1) % described["vocab"]
    return dict(files, **{"bundle.json": json.dumps(described).encode("utf-8")})


def renamed(files, name):
    """The same bundle by another name, as an upgrade is."""
    described = dict(json.loads(files["bundle.json"].decode("utf-8")), name=name)
    return dict(files, **{"bundle.json": json.dumps(described).encode("utf-8")})


def tree(folder):
    """Path -> content or link target of all that lies in a folder, to compare what a command left."""
    results = {}
    for place, folders, names in os.walk(str(folder)):
        for name in names + folders:
            path = os.path.join(place, name)
            inner = os.path.relpath(path, str(folder))
            if os.path.islink(path):
                results[inner] = "-> " + os.readlink(path)
            elif os.path.isdir(path):
                results[inner + "/"] = None
            else:
                results[inner] = read(place, name)
    return results


__all__ = ["WheelSet", "app_bytes", "bundle_files", "changed_golden", "packed_bytes", "read", "renamed", "tree"]


def partials(root):
    """Names of what a command is making in ROOT, or was making when it was stopped."""
    folder = os.path.join(str(root), "releases")
    return sorted(name for name in os.listdir(folder) if name.endswith(".partial")) if os.path.isdir(folder) else []
