"""The bill of materials of a release, CycloneDX 1.6: the wheels, what each ships beside its source, what it requires.

Required packages have ranges of versions, not versions: pip chooses them where the wheels are installed.
"""

import email.parser
import fnmatch
import hashlib
import json
import re
import zipfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROW = re.compile(r"^\| `([^`]+)` \| (.+?) \| ([\w.-]+) \|$", re.MULTILINE)
MODEL = "merino_edge/embedded/bundle/model.onnx.data"
NAME = re.compile(r"[A-Za-z0-9._-]+")


def bill(wheels: list[Path], licenses: str, epoch: int) -> str:
    """licenses: the text of LICENSES.md. Raises ValueError for a file that it does not name once."""
    own = [own_component(wheel, ROW.findall(licenses)) for wheel in wheels]
    required: dict[str, dict[str, Any]] = {}
    dependencies = []
    for wheel, component in zip(wheels, own, strict=True):
        lines = metadata(wheel).get_all("Requires-Dist", [])
        needed = [required_component(text) for text in lines if 'extra == "dev"' not in text]  # to work on the project
        named = {canonical(component["name"]): component for component in own}
        for each in needed:
            if each["name"] not in named:
                kept = required.setdefault(each["name"], each)
                kept["properties"] += [p for p in each["properties"] if p not in kept["properties"]]
                kept["scope"] = "required" if "required" in (kept["scope"], each["scope"]) else "optional"
        refs = {named.get(each["name"], each)["bom-ref"] for each in needed}
        dependencies.append({"ref": component["bom-ref"], "dependsOn": sorted(refs - {component["bom-ref"]})})
    document = {
        "bomFormat": "CycloneDX", "specVersion": "1.6", "version": 1,
        "metadata": {"timestamp": datetime.fromtimestamp(epoch, UTC).isoformat().replace("+00:00", "Z")},
        "components": [*own, *(required[name] for name in sorted(required))],
        "dependencies": dependencies,
    }  # fmt: skip
    return json.dumps(document, indent=1) + "\n"


def own_component(wheel: Path, rows: list[tuple[str, str, str]]) -> dict[str, Any]:
    fields = metadata(wheel)
    name, version = fields["Name"], fields["Version"]
    return {
        "type": "library", "bom-ref": f"pkg:pypi/{canonical(name)}@{version}", "name": name, "version": version,
        "description": fields["Summary"], "licenses": [{"license": {"id": "Apache-2.0"}}],
        "purl": f"pkg:pypi/{canonical(name)}@{version}", "hashes": hashes(wheel.read_bytes()),
        "components": [shipped_component(name, content, rows) for name, content in beside_the_source(wheel)],
    }  # fmt: skip


def beside_the_source(wheel: Path) -> list[tuple[str, bytes]]:
    """(name, content) of each file of a wheel that is neither Python source nor the wheel's own record."""
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in sorted(archive.namelist()) if not name.endswith(("/", ".py"))]
        return [(name, archive.read(name)) for name in names if not name.split("/")[0].endswith(".dist-info")]


def shipped_component(name: str, content: bytes, rows: list[tuple[str, str, str]]) -> dict[str, Any]:
    named = [row for row in rows if matches(name, row[0])]
    if len(named) != 1:
        raise ValueError(f"LICENSES.md must name {name} in one row: it does in {len(named)}")
    kind = "machine-learning-model" if name == MODEL else "file"
    return {"type": kind, "name": name, "hashes": hashes(content), "description": named[0][1],
            "licenses": [{"license": {"id": named[0][2]}}]}  # fmt: skip


def matches(name: str, pattern: str) -> bool:
    """As in a shell: a star ends at a slash."""
    return fnmatch.fnmatch(name, pattern) and name.count("/") == pattern.count("/")


def required_component(requirement: str) -> dict[str, Any]:
    """Of a line of Requires-Dist, such as `scipy>=1.11` or `peft>=0.18; extra == "train"`."""
    range_, _, marker = requirement.partition(";")
    match = NAME.match(range_)
    assert match, requirement
    name = canonical(match[0])
    return {
        "type": "library", "bom-ref": f"pkg:pypi/{name}", "name": name, "purl": f"pkg:pypi/{name}",
        "scope": "optional" if "extra ==" in marker else "required",
        "properties": [{"name": "merino:requirement", "value": requirement}],
    }  # fmt: skip


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def metadata(wheel: Path) -> Any:
    with zipfile.ZipFile(wheel) as archive:
        name = next(each for each in archive.namelist() if each.endswith(".dist-info/METADATA"))
        return email.parser.Parser().parsestr(archive.read(name).decode("utf-8"))


def hashes(content: bytes) -> list[dict[str, str]]:
    return [{"alg": "SHA-256", "content": hashlib.sha256(content).hexdigest()}]
