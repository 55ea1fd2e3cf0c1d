"""A packed file becomes a release by real processes: install, upgrade, rollback, status, and what is refused before
anything moves."""
import hashlib
import json
import os
import subprocess
import sys

import pytest
from packed_files import app_bytes, bundle_files, changed_golden, packed_bytes, partials, read, renamed, tree

from merino_runtime.delivery.archive import open_archive
from merino_runtime.delivery.install import check
from merino_runtime.errors import MerinoError

pytestmark = [pytest.mark.slow,
              pytest.mark.skipif(not sys.platform.startswith("linux"), reason="boards run Linux")]


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    return app_bytes(tmp_path_factory.mktemp("app") / "merino.pyz")


@pytest.fixture(scope="module")
def files(bundle_dirs):
    return bundle_files(bundle_dirs["portable"])


@pytest.fixture(scope="module")
def packs(app, files, tmp_path_factory):
    """Paths of packed files: `old`, `new`, and `bad`, whose self-test fails."""
    folder = tmp_path_factory.mktemp("packs")
    made = {"old": renamed(files, "old"), "new": renamed(files, "new"), "bad": changed_golden(files)}
    for name, bundle in made.items():
        (folder / (name + ".merino")).write_bytes(packed_bytes(app, [bundle], name))
    (folder / "merino.pyz").write_bytes(app)
    return folder


@pytest.fixture
def root(tmp_path):
    return tmp_path / "root"


def run(command, **environment):
    """-> (exit code, stdout, stderr) of a command in a process of its own."""
    process = subprocess.Popen([str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               env=dict(os.environ, **environment))
    out, err = (stream.decode("utf-8") for stream in process.communicate())
    assert "Traceback" not in err, err
    return process.returncode, out, err


@pytest.fixture
def merino(packs, root):
    """A function: runs the application with a verb and its arguments, on `root`."""
    return lambda *words: run([sys.executable, packs / "merino.pyz", *words, "--root", root])


@pytest.fixture
def install(merino, packs):
    """A function: installs the packed file of that name -> the JSON that it printed."""
    def installed(name, *options):
        code, out, err = merino("install", packs / (name + ".merino"), "--allow=unsigned", "--json", *options)
        assert code == 0, err
        return json.loads(out)
    return installed


def id_of(packs, name):
    return open_archive(str(packs / (name + ".merino"))).id


def sound(root, name):
    """Whether ROOT/`name` leads to a release whose files are those of its manifest."""
    folder = os.path.join(str(root), os.readlink(os.path.join(str(root), name)))
    listed = json.loads(read(folder, "manifest.json"))["files"]
    hashes = {file["path"].replace("bundles/0/", "bundle/"): file["sha256"] for file in listed}
    return all(hashlib.sha256(read(folder, path)).hexdigest() == expected for path, expected in hashes.items())


def test_from_a_file_to_text(install, packs, root):
    result = install("old")
    assert result["id"] == id_of(packs, "old") and result["replaced"] is None and result["selftest"] == "ok"
    assert result["root"] == str(root) and result["bundle"] == "old" and "no signature" in result["notes"][0]
    code, out, err = run([result["launcher"], "generate", "installed", "The river", "-n", "4", "--temperature", "0"])
    assert code == 0 and len(out) > 1, err
    code, out, _ = run([result["launcher"], "info", "--check", "installed"])
    assert code == 0 and "every sha256 as expected" in out and sound(root, "current")
    assert sorted(os.listdir(str(root))) == ["current", "lock", "releases"]
    assert sorted(os.listdir(str(root / "current"))) == [
        "bundle", "manifest.json", "merino", "merino.pyz", "release.json", "verified.json"]


def test_the_first_start_hashes_nothing(install, root, tmp_path):
    """What `install` hashed while it wrote is stamped. A changed byte is detected all the same."""
    launcher = install("old")["launcher"]
    data = os.path.join(str(root), "current", "bundle", "model.onnx.data")
    cache = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    assert run([launcher, "selftest", "installed"], **cache)[0] == 0
    assert not (tmp_path / "cache" / "merino" / "verified").exists(), "a stamp of its own: it hashed"
    content = bytearray(read(*os.path.split(data)))
    content[-1] ^= 1
    with open(data, "r+b") as file:
        file.write(bytes(content))
    code, _, err = run([launcher, "selftest", "installed"], **cache)
    assert code == 1 and "model.onnx.data has sha256" in err


def test_an_upgrade_keeps_the_release_before_and_no_more(install, packs, root, merino):
    old, new = install("old")["id"], install("new")
    assert new["replaced"] == old and new["id"] == id_of(packs, "new")
    status = json.loads(merino("status", "--json")[1])
    assert (status["current"]["id"], status["previous"]["id"]) == (new["id"], old)
    assert status["current"]["bundle"] == "new"
    third = packs / "third.merino"
    third.write_bytes(packed_bytes(b"", [bundle_files(str(root / "current" / "bundle"))], "third"))
    code, _, err = merino("install", third, "--allow=unsigned")
    assert code == 1 and "self-test failed" in err  # its application is empty
    assert sorted(os.listdir(str(root / "releases"))) == sorted([old, new["id"]])
    assert install("old")["replaced"] == new["id"]
    assert json.loads(merino("status", "--json")[1])["previous"]["id"] == new["id"]


@pytest.mark.parametrize("name", [
    "bundle/model.onnx.data", "merino",
    *(pytest.param(path, marks=pytest.mark.nightly) for path in ("merino.pyz", "bundle/bundle.json"))])
def test_the_same_file_again_mends_what_is_damaged(install, root, name):
    install("old")
    path = root / "current" / name
    data = path.read_bytes()
    for damaged in (b"0", data[:len(data) // 2], None):  # only the self-test notices a damaged launcher
        os.unlink(str(path))
        if damaged is not None:
            path.write_bytes(damaged)
            path.chmod(0o755)
        install("old")
    assert sound(root, "current") and os.access(str(root / "current" / "merino"), os.X_OK)
    assert len(os.listdir(str(root / "releases"))) == 1


def test_rollback_goes_back_and_forth(install, merino, root):
    old, new = install("old")["id"], install("new")["id"]
    for current, previous in ((old, new), (new, old)):
        code, out, _ = merino("rollback")
        assert code == 0 and out == f"current is {current}, previous is {previous}\n"
        assert sound(root, "current") and sound(root, "previous")
        assert run([root / "current" / "merino", "selftest", "installed"])[0] == 0


def test_a_release_that_fails_its_self_test_is_removed(install, merino, packs, root):
    old = install("old")["id"]
    before = tree(root)
    code, _, err = merino("install", packs / "bad.merino", "--allow=unsigned")
    assert code == 1 and "the self-test failed" in err and f"The new release was removed; {old} stays in use." in err
    after = tree(root)
    assert after.pop("lock") != before.pop("lock") and after == before


def test_verbs_that_need_a_release_say_how_to_get_one(merino):
    for verb in (["rollback"], ["mark-good"], ["service", "test"]):
        code, _, err = merino(*verb)
        assert code == 1 and "no release is installed" in err and "install NAME.merino" in err
    assert json.loads(merino("status", "--json")[1])["current"] is None


def test_installed_is_the_release_in_which_the_program_lies(install, root):
    """Not the one that `current` leads to meanwhile: no run mixes two releases."""
    install("old")
    install("new")
    for name, bundle in (("current", "new"), ("previous", "old")):
        code, out, err = run([root / name / "merino", "info", "installed"])
        assert code == 0 and out.split()[:2] == ["name", bundle], err


def test_installed_from_elsewhere_is_current_of_the_default_root(packs, tmp_path):
    home = {"HOME": str(tmp_path)}
    root = "/opt/merino" if os.geteuid() == 0 else str(tmp_path / ".local/share/merino")
    if os.path.exists(root):
        pytest.skip(root + " is in use on this machine")
    code, _, err = run([sys.executable, packs / "merino.pyz", "info", "installed"], **home)
    assert code == 1 and f"no release is installed in {root}" in err


def test_a_release_in_use_is_not_pruned(install, root, packs, files, app):
    old = install("old")["id"]
    install("new")
    holder = subprocess.Popen(
        [sys.executable, "-c", "import sys\nfrom merino_runtime.io import lock\n"
         "lock.hold(sys.argv[1])\nprint('held', flush=True)\nsys.stdin.read()", str(root / "releases" / old)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path)))
    try:
        assert holder.stdout.readline() == b"held\n"
        (packs / "third.merino").write_bytes(packed_bytes(app, [renamed(files, "third")], "third"))
        assert f"release {old} is in use" in " ".join(install("third")["notes"])
        assert (root / "releases" / old).exists()
    finally:
        holder.communicate()
    install("third")
    assert not (root / "releases" / old).exists()


def refused(path, root, **options):
    with pytest.raises(MerinoError) as caught:
        check(str(path), str(root), (), options.get("allow_unsigned", True), options.get("force", False),
              lambda _: None)
    assert not os.path.exists(str(root))
    return str(caught.value)


class TestBeforeAnythingMoves:
    def test_operators_that_the_library_lacks(self, packs, root, files):
        """Python imports neither numpy nor a backend before."""
        described = dict(json.loads(files["bundle.json"].decode("utf-8")), kernels=["MatMul9"])
        path = packs / "kernels.merino"
        path.write_bytes(packed_bytes(b"", [dict(files, **{"bundle.json": json.dumps(described).encode()})]))
        code, _, err = run([sys.executable, "-c", f"""
import sys
from merino_runtime.__main__ import main
code = main(["install", {str(path)!r}, "--allow=unsigned", "--root", {str(root)!r}])
assert "numpy" not in sys.modules and "onnxruntime" not in sys.modules
sys.exit(code)"""], PYTHONPATH=os.pathsep.join(sys.path))
        assert code == 1 and "lacks MatMul9" in err and not root.exists()

    def test_a_folder_whose_parent_is_not_there(self, packs, tmp_path):
        code, _, err = run([sys.executable, packs / "merino.pyz", "install", packs / "old.merino", "--allow=unsigned",
                            "--root", tmp_path / "not" / "mounted"])
        assert code == 1 and "cannot make" in err and not (tmp_path / "not").exists()


def test_two_installs_at_once(packs, root, merino):
    """One works, the other is told who does; whoever asks again has it."""
    merino("status")
    command = [sys.executable, str(packs / "merino.pyz"), "install", "--allow=unsigned", "--root", str(root)]
    processes = [subprocess.Popen([*command, str(packs / name)], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
                 for name in ("old.merino", "new.merino") * 2]
    ended = [(process.communicate(), process.returncode) for process in processes]
    for (_, err), code in ended:
        assert code == 0 or b"is being changed by another command (process " in err and b", install)" in err, err
    assert any(code == 0 for _, code in ended) and sound(root, "current")
    assert partials(root) == [] and merino("install", packs / "new.merino", "--allow=unsigned")[0] == 0
