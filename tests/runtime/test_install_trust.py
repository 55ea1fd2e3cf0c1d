"""Whose files a board takes: counters, withdrawn keys, and keys that are trusted only when their release was tested.
And what it goes back to: the release that was marked good last.

Each command is a process of its own, forked from one that has numpy and the backend loaded (install_faults.py)."""
import base64
import json
import os
import subprocess
import sys

import pytest
from install_faults import Driver
from packed_files import app_bytes, bundle_files, changed_golden, packed_bytes, renamed

from merino_runtime.delivery import service, units
from merino_runtime.delivery.archive import Signature, open_archive, signed_bytes
from merino_runtime.delivery.keys import key_line
from tests import ed25519_signer

pytestmark = [pytest.mark.slow,
              pytest.mark.skipif(not sys.platform.startswith("linux"), reason="boards run Linux")]

SEEDS = {"fleet": b"a" * 32, "second": b"b" * 32}
KEYS = {name: ed25519_signer.public_key_of(seed) for name, seed in SEEDS.items()}
TEXTS = {name: base64.b64encode(key).decode("ascii") for name, key in KEYS.items()}
# name: (signing key, counter, keys that it withdraws)
FILES = {"one": ("fleet", 1, ()), "two": ("fleet", 2, ()), "three": ("fleet", 3, ()), "bad": ("fleet", 9, ()),
         "unsigned": (None, 2 ** 53, ("fleet",)), "withdraws": ("second", 4, ("fleet",)),
         "withdraws-all": ("second", 4, ("fleet", "second")), "second": ("second", 5, ()), "later": ("fleet", 6, ()),
         "last": ("second", 7, ())}


def signer(name):
    return (lambda data: Signature(*ed25519_signer.sign(SEEDS[name], signed_bytes(data)))) if name else None


@pytest.fixture(scope="module")
def packs(bundle_dirs, tmp_path_factory):
    folder, files = tmp_path_factory.mktemp("packs"), bundle_files(bundle_dirs["portable"])
    app = app_bytes(folder / "merino.pyz")
    for name, (key, counter, withdrawn) in FILES.items():
        bundle = changed_golden(files) if name == "bad" else renamed(files, name)
        texts = sorted(TEXTS[key] for key in withdrawn)
        (folder / (name + ".merino")).write_bytes(packed_bytes(
            app, [bundle], name, counter=counter, withdrawn=texts, sign=signer(key)))
    for name, key in KEYS.items():
        (folder / (name + ".pub")).write_text(key_line(key, name))
    return folder


@pytest.fixture(scope="module")
def driver(packs):
    started = Driver(str(packs))
    yield started
    started.close()


class Board:
    def __init__(self, driver, packs, root):
        self.driver, self.packs, self.root = driver, packs, root

    def run(self, *words):
        """-> (exit code, stdout and stderr)"""
        result = self.driver.run([*map(str, words), "--root", str(self.root)])
        assert "Traceback" not in result["output"], result
        return result["code"], result["output"]

    def install(self, name, *options):
        trust = [word for option in options if option in KEYS for word in ("--trust", self.packs / (option + ".pub"))]
        return self.run("install", self.packs / (name + ".merino"), *trust, *(o for o in options if o not in KEYS))

    def taken(self, name, *options):
        code, output = self.install(name, *options)
        assert code == 0 and self.current() == name, output
        return output

    def refused(self, name, reason, *options):
        before = self.current(), self.trusted()
        code, output = self.install(name, *options)
        assert code == 1 and reason in output, output
        assert (self.current(), self.trusted()) == before

    def facts(self, link="current"):
        return json.loads(self.run("status", "--json")[1])[link]

    def current(self, link="current"):
        result = self.facts(link)
        return result and result["name"]

    def trusted(self):
        return sorted(os.listdir(str(self.root / "trusted"))) if (self.root / "trusted").exists() else []


@pytest.fixture
def board(driver, packs, tmp_path):
    return Board(driver, packs, tmp_path / "root")


def test_a_key_is_trusted_when_its_release_has_passed_its_test_and_also_where_it_was_there(board):
    board.refused("bad", "self-test failed", "fleet")
    assert board.trusted() == []
    board.taken("unsigned", "--allow=unsigned")
    board.refused("one", "not trusted here")
    board.taken("one", "fleet")
    board.taken("one", "second")
    assert board.trusted() == ["fleet.pub", "second.pub"]


def test_an_older_signed_file_needs_allow_downgrade(board):
    board.taken("one", "fleet")
    board.taken("three")
    board.refused("two", "older than what was installed")
    board.taken("three")  # the one in use is not older than itself
    assert board.run("rollback")[0] == 0 and board.current() == "one"
    board.refused("two", "its counter is 2, the highest so far 3")
    board.taken("one")
    board.taken("two", "--allow=downgrade")
    board.refused("one", "--allow downgrade")
    board.taken("unsigned", "--allow=unsigned")  # whose counter anyone could write
    board.taken("three")


def test_a_signed_list_withdraws_keys_once_its_release_is_installed(board):
    board.taken("one", "fleet")
    board.refused("withdraws", "not trusted here")
    board.refused("withdraws-all", "withdraws every key", "second")
    output = board.taken("unsigned", "--allow=unsigned")
    assert "nobody signed that" in output and board.trusted() == ["fleet.pub"]
    board.taken("withdraws", "second")
    assert board.trusted() == ["second.pub"]
    board.refused("one", "was withdrawn here", "--allow=downgrade")
    board.refused("one", "was withdrawn here", "--allow=downgrade", "fleet")
    os.unlink(str(board.root / "withdrawn.json"))  # the remedy of the message, for its only key
    board.taken("one", "--allow=downgrade", "fleet")


@pytest.mark.parametrize("name", ["fleet.pub", "path", "base64"])
def test_untrust(board, packs, name):
    board.taken("one", "fleet", "second")
    named = {"path": packs / "fleet.pub", "base64": TEXTS["fleet"]}.get(name, name)
    code, output = board.run("untrust", named)
    assert code == 0 and TEXTS["fleet"] in output and "1 key is" in output
    assert board.trusted() == ["second.pub"]
    board.refused("two", "was withdrawn here")
    assert "needs --trust" in board.run("untrust", "second")[1] or board.trusted() == ["second.pub"]


def good(board, *names):
    for name in names:
        board.taken(name)
        board.run("mark-good")


def test_untrust_names_the_releases_that_the_key_signed_and_an_install_keeps_another_one(board):
    board.taken("one", "fleet", "second")
    good(board, "second", "later")
    _, output = board.run("untrust", "fleet.pub")
    assert f"release {board.facts()['id']} is signed by a withdrawn key. It stays in use" in output
    assert output.count("signed by a withdrawn key") == 1 and board.facts()["withdrawn"]
    assert "good, signed by a withdrawn key" in board.run("status")[1]
    board.taken("last")
    assert board.current("previous") == "second", "later was marked good last"
    assert board.run("rollback")[0] == 0 and board.current() == "second"


def test_a_package_that_withdraws_the_key_of_the_release_in_use_keeps_another_one(board):
    board.taken("one", "fleet", "second")
    good(board, "second", "later")
    output = board.taken("withdraws", "--allow=downgrade")
    assert board.current("previous") == "second" and "withdrawn key" not in output


def test_where_there_is_no_other_good_release_a_rollback_goes_to_it_and_says_so(board):
    board.taken("one", "fleet", "second")
    good(board, "one", "second")
    _, output = board.run("untrust", "fleet.pub")
    assert f"release {board.facts('previous')['id']} is signed by a withdrawn key. A rollback goes to it only" in output
    code, output = board.run("rollback")
    assert code == 0 and board.current() == "one" and "It stays in use" in output


def test_the_application_that_counts_the_starts_is_replaced(board):
    """Root runs it at each start."""
    def kept():
        return json.loads((board.root / "manifest.sig").read_text())["key"]

    board.taken("later", "fleet", "second")
    for step in ("begin", "end"):
        assert board.run("service", step)[0] == 0
    assert (board.root / "merino.pyz").exists() and kept() == TEXTS["fleet"]
    board.taken("last")
    assert "merino.pyz, which counts the starts, is signed by a withdrawn key" in board.run("untrust", "fleet.pub")[1]
    board.run("mark-good")
    assert "counts the starts" not in board.run("untrust", TEXTS["fleet"])[1] and kept() == TEXTS["second"]


def test_a_damaged_list_of_withdrawn_keys_stops_an_install(board):
    board.taken("one", "fleet")
    for content in ("", "[]", '{"schema": 1, "keys": ["x"]}', '{"schema": 1, "keys": "' + TEXTS["fleet"] + '"}'):
        (board.root / "withdrawn.json").write_text(content)
        board.refused("two", "withdrawn.json")


def test_previous_is_the_last_release_that_was_marked_good(board):
    board.taken("one", "fleet")
    board.run("mark-good")
    board.taken("two")
    assert board.current("previous") == "one"
    board.taken("three")
    assert board.current("previous") == "one", "two was never marked good"
    assert board.run("rollback")[0] == 0 and (board.current(), board.facts()["good"]) == ("one", True)
    board.taken("three")
    board.run("mark-good")
    board.taken("unsigned", "--allow=unsigned")
    assert board.current("previous") == "three"


def test_an_empty_root_is_not_the_default_one(packs):
    process = subprocess.Popen([sys.executable, str(packs / "merino.pyz"), "status", "--root", ""],
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    out, err = process.communicate()
    assert process.returncode == 1 and out == b"" and b"--root '' names no folder" in err


@pytest.mark.skipif(os.geteuid() != 0, reason="asks what root accepts")
def test_root_installs_into_no_folder_that_another_user_can_change(board, packs):
    board.root.mkdir()
    os.chown(str(board.root), 65534, 65534)
    board.refused("one", "can be changed by another user", "fleet")
    os.chown(str(board.root), 0, 0)
    os.chmod(str(board.root), 0o777)
    board.refused("one", "can be changed by another user", "fleet")
    assert os.listdir(str(board.root)) == []
    os.chmod(str(board.root), 0o755)
    board.taken("one", "fleet")
    assert open_archive(str(packs / "one.merino")).id == board.facts()["id"]


@pytest.mark.parametrize("place", [".", "releases", "releases/ID", "releases/ID/merino.pyz"])
@pytest.mark.parametrize("change", ["owner", "mode"])
def test_board_reports_what_is_installed_and_what_another_user_can_change(board, change, place):
    if change == "owner" and os.geteuid():
        pytest.skip("only root gives files away")
    board.taken("one", "fleet")
    described = json.loads(board.run("board")[1])
    assert (described["root"], described["current"]) == (str(board.root), board.facts()["id"])
    assert (described["foreign"], described["keys"]) == (None, [TEXTS["fleet"]])
    assert described["machine"]["python"] == "{}.{}".format(*sys.version_info[:2])
    path = os.path.normpath(str(board.root / place.replace("ID", described["current"])))
    if change == "owner":
        os.chown(path, 65534, 65534)
    else:
        os.chmod(path, 0o777)
    assert json.loads(board.run("board")[1])["foreign"] == path


def test_the_folder_of_the_service_is_read_from_its_unit(tmp_path, monkeypatch):
    monkeypatch.setattr(service, "UNITS", str(tmp_path))
    (tmp_path / units.UNIT).write_text(units.service_unit("/srv/merino"))
    assert service.service_root() is None, "not enabled"
    (tmp_path / "multi-user.target.wants").mkdir()
    os.symlink("../" + units.UNIT, str(tmp_path / "multi-user.target.wants" / units.UNIT))
    assert service.service_root() == "/srv/merino"
