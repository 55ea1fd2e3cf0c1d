"""Install and upgrade, hit at each operation on the file system: `current` is the old release or the new, complete;
keys are trusted and withdrawn with the new one or not at all; the last good release is kept; the next install succeeds.
And damaged files: none of them moves anything."""
import contextlib
import os
import random
import shutil
import subprocess
import sys
import tempfile

import pytest
from install_faults import Driver
from packed_files import app_bytes, bundle_files, changed_golden, packed_bytes, partials, renamed, tree

from merino_runtime.delivery import probation, releases
from merino_runtime.delivery.archive import Signature, open_archive, signed_bytes
from merino_runtime.delivery.keys import key_base64, key_line, trusted_keys
from merino_runtime.io.lock import locked
from tests import ed25519_signer

pytestmark = [pytest.mark.slow,
              pytest.mark.skipif(not sys.platform.startswith("linux"), reason="boards run Linux")]

NEWEST = sys.version_info >= (3, 11)  # older Pythons try less: the calls are the same
# On memory: syncing a disk would take most of the time.
MEMORY = "/dev/shm" if os.path.isdir("/dev/shm") else None


class Board:
    """A folder of releases in each state, and the process that runs installs on copies of it."""

    def __init__(self, folder, packs):
        self.folder, self.packs, self.root = folder, packs, os.path.join(folder, "root")
        self.ids = {name: open_archive(path).id for name, path in packs.items()}
        # Key `a` signs all files and is trusted already; `b` is to be trusted from now on; `new` withdraws `c`.
        self.options = ["--trust", os.path.join(os.path.dirname(packs["new"]), "b.pub")]
        self.driver = Driver(folder)

    def run(self, *argv, **request):
        return self.driver.run([*argv, "--root", self.root], to=self.root, **request)

    def install(self, name, **request):
        result = self.run("install", self.packs[name], *self.options, **request)
        assert "Traceback" not in result["output"], result["output"]
        return result

    def state(self, name):
        """A copy of what is there now, to begin from."""
        kept = os.path.join(self.folder, name)
        shutil.copytree(self.root, kept, symlinks=True)
        return kept

    def check_complete(self, allowed):
        """`current` leads to one of the releases `allowed` (None: to none), all of whose files are as packed."""
        now = releases.links(self.root).current
        assert now in allowed, (now, allowed)
        assert os.path.lexists(os.path.join(self.root, "current")) == (now is not None)
        if now is None:
            return
        folder = releases.release_folder(self.root, now)
        result, expected = tree(folder), self.contents[now]
        assert {path: result.get(path) for path in expected} == expected

    def links_when_repaired(self, step):
        """As the next command finds them, on a copy: what it does itself is tried apart."""
        copy = os.path.join(self.folder, "copy")
        shutil.copytree(self.root, copy, symlinks=True)
        try:
            with locked(copy, "test"):
                releases.recover(copy)
            self.check_keys(step, copy, repaired=True)
            if step != "install":  # `old` was marked good, `new` was not
                assert self.ids["old"] in releases.links(copy)
            return releases.links(copy)
        finally:
            shutil.rmtree(copy)

    def check_keys(self, step, root, repaired=False):
        """Those of before, and once the new release has passed its self-test and is the current one, those of after."""
        trusted = "".join(sorted(key.comment for key in trusted_keys(root)))
        changed = step in ("install", "upgrade") and releases.links(root).current == self.ids["new"]
        before = "ab" if step in ("rollback", "back to the old") else "ac"
        assert trusted in ([before] if not changed else ["ab"] if repaired else ["ac", "a", "ab"]), (step, trusted)

    def learn(self, release_id):
        """What a release holds that was installed without a fault, but for what differs by time and place."""
        self.contents = getattr(self, "contents", {})
        result = tree(releases.release_folder(self.root, release_id))
        for name in ("release.json", "verified.json"):
            result.pop(name)
        self.contents[release_id] = result


def signed_by_a(data):
    return Signature(*ed25519_signer.sign(b"a" * 32, signed_bytes(data)))


@pytest.fixture(scope="module")
def board(bundle_dirs, tmp_path_factory):
    files, folder = bundle_files(bundle_dirs["portable"]), tmp_path_factory.mktemp("packs")
    app = app_bytes(folder / "merino.pyz")
    made = {"old": renamed(files, "old"), "new": renamed(files, "new"), "bad": changed_golden(files)}
    keys = {name: ed25519_signer.public_key_of(name.encode() * 32) for name in "abc"}
    for name, bundle in made.items():
        (folder / (name + ".merino")).write_bytes(packed_bytes(
            app, [bundle], name, counter=len(name), sign=signed_by_a,
            withdrawn=[key_base64(keys["c"])] if name == "new" else []))
    for name, key in keys.items():
        (folder / (name + ".pub")).write_text(key_line(key, name))
    place = tempfile.mkdtemp(dir=MEMORY)
    try:
        board = Board(place, {name: str(folder / (name + ".merino")) for name in made})
        os.makedirs(os.path.join(board.root, "trusted"))
        for name in "ac":
            shutil.copy(str(folder / (name + ".pub")), os.path.join(board.root, "trusted"))
        board.empty = board.state("empty")
        for name in ("old", "new"):
            result = board.install(name) if name == "new" else board.run("install", board.packs[name])
            assert result["code"] == 0, result["output"]
            if name == "old":
                assert board.run("mark-good")["code"] == 0
            board.learn(board.ids[name])
            shutil.copytree(board.root, os.path.join(place, "after-" + name), symlinks=True)
        board.after = {name: os.path.join(place, "after-" + name) for name in ("old", "new")}
        yield board
        board.driver.close()
    finally:
        shutil.rmtree(place)


def steps(board):
    """(name, state before, verb and its arguments, ids that `current` may have meanwhile, and at the end)."""
    old, new = board.ids["old"], board.ids["new"]
    install = ("install", board.packs["new"], *board.options)
    return {
        "install": (board.empty, install, {None, new}, new),
        "upgrade": (board.after["old"], install, {old, new}, new),
        "back to the old": (board.after["new"], ("install", board.packs["old"], *board.options),
                            {old, new}, old),
        "rollback": (board.after["new"], ("rollback",), {old, new}, old),
        "failing": (board.after["old"], ("install", board.packs["bad"], *board.options), {old}, old),
    }


# An error that happens once is tried where most differs, and older Pythons try one step: the calls are the same.
POINTS = [(what, step) for what in ("kill", "full", "error")
          for step in ("install", "upgrade", "back to the old", "rollback", "failing")
          if (what != "error" or step in ("upgrade", "rollback"))
          and (NEWEST or (what, step) == ("kill", "upgrade"))]
DAILY = {("kill", "upgrade"), ("kill", "rollback"), ("full", "upgrade")}


@pytest.mark.parametrize(("what", "step"), [
    pytest.param(*point, marks=() if point in DAILY else pytest.mark.nightly) for point in POINTS])
def test_a_fault_at_each_operation_leaves_the_old_release_or_the_new(board, what, step, nightly):
    """Each point is one operation on the file system of the command, by day each fifth; `steps` names what it began
    from."""
    before, argv, allowed, end = steps(board)[step]
    total = board.run(*argv, copy=before)["count"]
    assert total > 15 and releases.links(board.root).current == end
    whole = {releases.links(before), releases.links(board.root)}
    seen = set()
    for at in range(0, total, 1 if nightly else 5):
        result = board.run(*argv, copy=before, what=what, at=at)
        assert "Traceback" not in result["output"], result["output"]
        assert result["killed"] == (what == "kill"), (at, result)
        if what != "kill":  # a fault that a step can do without, such as of a sync, is none
            assert result["code"] in ((0, 1) if step != "failing" else (1,)), (at, result)
        board.check_complete(allowed)
        assert board.links_when_repaired(step) in whole, (at, result)
        board.check_keys(step, board.root)
        state = (releases.links(board.root), tuple(partials(board.root)))
        if state not in seen or at % 9 == 0:  # the next install tests the release, which costs most of the time
            seen.add(state)
            repeated = board.install("new")
            assert repeated["code"] == 0, (at, result, repeated)
            board.check_complete({board.ids["new"]})
            left = set(os.listdir(board.root)) - EXPECTED
            assert not left and partials(board.root) == [], (at, left)


EXPECTED = {"current", "previous", "releases", "lock", "probation", "trusted", "withdrawn.json", "counter.json"}


def generates(root):
    launcher = os.path.join(root, "current", "merino")
    return len(subprocess.check_output([launcher, "generate", "installed", "The river", "-n", "3"])) > 1


@pytest.mark.parametrize("seed", [
    pytest.param(seed, marks=() if seed < 2 else pytest.mark.nightly) for seed in range(6 if NEWEST else 2)])
def test_a_real_command_killed_at_a_random_moment(board, seed):
    """The process and all that it started, at a moment that nobody chose; what is there then generates."""
    shutil.rmtree(board.root)
    shutil.copytree(board.after["old"], board.root, symlinks=True)
    app = os.path.join(os.path.dirname(board.packs["new"]), "merino.pyz")
    process = subprocess.Popen([sys.executable, app, "install", board.packs["new"], *board.options, "--root",
                                board.root], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                               start_new_session=True)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=random.Random(seed).uniform(0.05, 0.6))
        raise subprocess.TimeoutExpired("it ended before", 0)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, 9)
    process.wait()
    board.check_complete({board.ids["old"], board.ids["new"]})
    assert generates(board.root)
    assert board.install("new")["code"] == 0
    board.check_complete({board.ids["new"]})


@pytest.mark.parametrize("step", ["install", "upgrade"])
def test_a_clock_in_1970(board, step):
    before, argv, _, end = steps(board)[step]
    for clock in (0.0, 1.0, -1.0, 2.0 ** 33):
        result = board.run(*argv, copy=before, clock=clock)
        assert result["code"] == 0, result
        board.check_complete({end})


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"to": 1}', b'{"to": {"current": "../..", "previous": null}}',
                                     b'{"to": {"current": 5, "previous": null}}'])
def test_a_journal_that_is_none_is_dropped(board, content):
    board.run("status", copy=board.after["new"])
    with open(os.path.join(board.root, "swap.json"), "wb") as file:
        file.write(content)
    with locked(board.root, "test"):
        releases.recover(board.root)
    assert releases.links(board.root) == releases.Links(board.ids["new"], board.ids["old"])
    assert not os.path.exists(os.path.join(board.root, "swap.json"))


@pytest.mark.parametrize("content", ["", "{", "[]", '{"starts": -1, "good": false, "gave_up": false, "testing": false}',
                                     '{"starts": "3", "good": false, "gave_up": false, "testing": false}'])
def test_a_probation_that_is_none_is_a_new_one(tmp_path, content):
    (tmp_path / "probation").mkdir()
    (tmp_path / "probation" / ("0" * 16 + ".json")).write_text(content)
    assert probation.read_probation(str(tmp_path), "0" * 16) == probation.Probation()
