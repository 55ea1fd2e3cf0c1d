"""Builds a release from the last commit: `python release/build.py FOLDER [--sign KEY]`. docs/release.md

Two wheels and their sdists, merino.pyz, the bill of materials, the requirements of the server's image, SHA256SUMS, and
with KEY its signature by ssh-keygen.
The same commit and the same build tools give the same bytes: names, times, owners and modes come from the commit.
"""

import argparse
import gzip
import hashlib
import io
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import sbom

ROOT = Path(__file__).resolve().parents[1]
PROJECTS = ("release/merino-runtime", ".")
SUMS = "SHA256SUMS"
NAMESPACE = "merino-release"  # a signature for another purpose is none for a release


def main() -> None:
    parser = argparse.ArgumentParser(description="Build a release from the last commit.")
    parser.add_argument("folder", type=Path, help="new or empty")
    parser.add_argument("--sign", type=Path, metavar="KEY", help="private key, of: ssh-keygen -t ed25519 -f KEY")
    given = parser.parse_args()
    if given.sign and not given.sign.is_file():
        sys.exit(f"release: there is no key {given.sign}. Make one: ssh-keygen -t ed25519 -f {given.sign}")
    if given.folder.is_dir() and any(given.folder.iterdir()):
        sys.exit(f"release: {given.folder} is not empty. Remove it, or name another folder")
    build(given.folder.resolve())
    if given.sign:
        sign(given.folder, given.sign)


def build(folder: Path) -> None:
    """All but the signature. Raises CalledProcessError where a tool fails, after its own words."""
    if git("status", "--porcelain", "--untracked-files=no"):
        print("release: of the last commit; changes that are not committed are left out", file=sys.stderr)
    folder.mkdir(parents=True, exist_ok=True)
    os.umask(0o022)
    epoch = int(git("log", "-1", "--format=%ct"))
    with tempfile.TemporaryDirectory() as scratch:
        tree = Path(scratch)
        with tarfile.open(fileobj=io.BytesIO(git_bytes("archive", "HEAD"))) as archive:
            archive.extractall(tree, filter="data")
        # Where Python finds our packages: nowhere else than in the tree.
        python_path = os.pathsep.join(map(str, (tree, tree / "runtime")))
        variables = {**os.environ, "SOURCE_DATE_EPOCH": str(epoch), "PYTHONPATH": python_path, "PYTHONSAFEPATH": "1"}
        for project in PROJECTS:
            build_project(tree / project, folder, variables, epoch)
        application = [sys.executable, "-m", "merino_edge.bundles.board_app", str(folder / "merino.pyz")]
        subprocess.run(application, cwd=tree, env=variables, check=True)
        requirements = (tree / "container/home-assistant/requirements.txt").read_bytes()  # of the server's image
        text = sbom.bill(sorted(folder.glob("*.whl")), (tree / "LICENSES.md").read_text(encoding="utf-8"), epoch)
    (folder / "sbom.cdx.json").write_text(text, encoding="utf-8")
    (folder / "requirements.txt").write_bytes(requirements)
    made = sorted(path for path in folder.iterdir() if path.name != SUMS)
    sums = (f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in made)
    (folder / SUMS).write_text("".join(sums), encoding="utf-8")


def build_project(project: Path, folder: Path, variables: dict[str, str], epoch: int) -> None:
    """The sdist, with all that varies taken out, and the wheel from that sdist, which is complete then."""
    call = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder)]
    with tempfile.TemporaryDirectory() as scratch:
        subprocess.run([*call[:-1], scratch, "--sdist", str(project)], env=variables, check=True, stdout=sys.stderr)
        (built,) = Path(scratch).glob("*.tar.gz")
        (folder / built.name).write_bytes(normalized(built.read_bytes(), epoch))
        with tarfile.open(folder / built.name) as archive:
            archive.extractall(scratch, filter="data")
        source = Path(scratch) / built.name.removesuffix(".tar.gz")
        subprocess.run([*call, "--wheel", str(source)], env=variables, check=True, stdout=sys.stderr)


def normalized(sdist: bytes, epoch: int) -> bytes:
    """The same files in order of their names, with the commit's time and no owner."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=io.BytesIO(sdist)) as old, tarfile.open(fileobj=packed, mode="w") as new:
        for member in sorted(old.getmembers(), key=lambda each: each.name):
            member.mtime, member.uid, member.gid, member.uname, member.gname = epoch, 0, 0, "", ""
            member.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
            member.pax_headers = {}
            new.addfile(member, old.extractfile(member) if member.isfile() else None)
    return gzip.compress(packed.getvalue(), mtime=epoch)


def sign(folder: Path, key: Path) -> None:
    """SHA256SUMS.sig, and `allowed_signers` with the public key, as `ssh-keygen -Y verify` takes it."""
    subprocess.run(["ssh-keygen", "-q", "-Y", "sign", "-n", NAMESPACE, "-f", str(key), str(folder / SUMS)], check=True)
    public = subprocess.run(["ssh-keygen", "-y", "-f", str(key)], check=True, capture_output=True, text=True).stdout
    kind, line = public.split()[:2]
    text = f'merino_edge namespaces="{NAMESPACE}" {kind} {line}\n'
    (folder / "allowed_signers").write_text(text, encoding="utf-8")


def git_bytes(*words: str) -> bytes:
    return subprocess.run(["git", "-C", str(ROOT), *words], check=True, stdout=subprocess.PIPE).stdout


def git(*words: str) -> str:
    return git_bytes(*words).decode().strip()


if __name__ == "__main__":
    main()
