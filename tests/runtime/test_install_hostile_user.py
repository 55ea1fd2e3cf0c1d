"""Whoever has taken over the service's user does not become root: a script with that user's rights tries each way.

All of it in a mount namespace of its own, with this machine's /etc and an empty /opt: `install --service` makes a real
user and a real unit there. The application in the packed file stands in for a model's: it says "ok:".
"""
import json
import os
import shutil
import subprocess
import sys
import zipfile

import pytest
from packed_files import app_bytes, bundle_files, packed_bytes, renamed

from merino_runtime.delivery.archive import Signature, open_archive, signed_bytes
from merino_runtime.delivery.keys import key_line
from merino_runtime.delivery.units import first_boot_unit, service_unit
from tests import ed25519_signer

PYTHON = "/usr/bin/python3"
TOOLS = ("unshare", "mount", "useradd", "systemctl", "runuser")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not sys.platform.startswith("linux") or os.geteuid() != 0
                       or not os.path.exists(PYTHON) or not all(map(shutil.which, TOOLS)),
                       reason="needs root on a Linux with systemd's and the shadow suite's tools")]

# What a release does here: it generates, and it notes as whom. Who controls it is the packer, so it is root's by right.
STAND_IN = """import os, sys
if sys.argv[1] == "selftest":
    print("ok: as", os.getuid(), os.environ.get("HOME"))
    sys.exit(os.getuid() == 0)
"""
# As the service's user: each way of becoming root, all of which must be refused by the file system itself.
ATTACK = """
import os, shutil, sys
root, victim = sys.argv[1:]
current = os.path.realpath(root + "/current")
done = []

def attempt(name, *steps):
    for step in steps:
        try:
            step()
        except OSError:
            continue
        done.append(name)

def put(path):
    return lambda: open(path, "w").write("evil")

def replaced(path):
    return [lambda: os.rename(path, path + ".away"), lambda: os.unlink(path), lambda: shutil.rmtree(path)]

attempt("a link where root changes owners", lambda: os.symlink(victim, root + "/releases/link"),
        lambda: os.symlink(victim, current + "/bundle/link"))
attempt("a link in place of lock", *replaced(root + "/lock"), lambda: open(root + "/lock", "r+"),
        lambda: open(root + "/lock"), put(root + "/lock"))
attempt("releases as a link", *replaced(root + "/releases"), lambda: os.symlink("/tmp", root + "/releases.new"))
attempt("another key", put(root + "/trusted/evil.pub"), *replaced(root + "/trusted"), put(root + "/withdrawn.json"),
        put(root + "/counter.json"))
attempt("another incoming", put(root + "/incoming/merino.pyz"), put(root + "/incoming/evil.merino"),
        *replaced(root + "/incoming"))
attempt("another program", put(root + "/merino.pyz"), put(current + "/merino"), put(current + "/merino.pyz"),
        put(current + "/env/bin/python"), *replaced(current), *replaced(root + "/current"),
        put(root + "/probation/evil.json"), *replaced(root + "/probation"), put(root + "/swap.json"))
# What is the user's own: everything there may be a trap.
state = root + "/state"
for name in ("probe.json", "probed", "lock", "merino", "releases", "trusted", "verified"):
    os.symlink(victim, state + "/" + name)
os.chmod(state, 0o777)
print("in vain" if not done else "done: " + ", ".join(done))
"""


@pytest.fixture
def place(tmp_path, bundle_dirs):
    """A folder that every user can read, with packed files `first` and `second` and the key that signs them."""
    import tempfile

    folder = tempfile.mkdtemp(prefix="merino-hostile-", dir="/var/tmp")
    os.chmod(folder, 0o755)
    try:
        app_bytes(tmp_path / "real.pyz")
        shutil.copy(str(tmp_path / "real.pyz"), os.path.join(folder, "merino.pyz"))
        with zipfile.ZipFile(str(tmp_path / "stand-in.pyz"), "w") as archive:
            archive.writestr("__main__.py", STAND_IN)
        app, files, seed = (tmp_path / "stand-in.pyz").read_bytes(), bundle_files(bundle_dirs["portable"]), b"a" * 32
        for number, name in enumerate(("first", "second")):
            data = packed_bytes(app, [renamed(files, name)], name, counter=number + 1, sign=lambda data: Signature(
                *ed25519_signer.sign(seed, signed_bytes(data))))
            with open(os.path.join(folder, name + ".merino"), "wb") as file:
                file.write(data)
        with open(os.path.join(folder, "fleet.pub"), "w") as file:
            file.write(key_line(ed25519_signer.public_key_of(seed), "fleet"))
        for package in ("numpy", "tokenizers", "onnxruntime"):  # the file brings none, and the stand-in uses none
            os.makedirs(os.path.join(folder, "packages", package))
            open(os.path.join(folder, "packages", package, "__init__.py"), "w").close()
        yield folder
    finally:
        shutil.rmtree(folder)


SETTING = """set -e
mount -t tmpfs none /mnt && cp -a /etc/. /mnt/ && mount --bind /mnt /etc
mount -t tmpfs -o mode=755 none /opt
mkdir -p /opt/merino/incoming && cp merino.pyz /opt/merino/incoming/
cp first.merino /opt/merino/incoming/package.merino
echo precious > /opt/victim && chmod 600 /opt/victim
cp -a {folder}/merino-install.service /etc/systemd/system/
ln -s ../merino-install.service /etc/systemd/system/multi-user.target.wants/
umask 077
merino() {{ PYTHONPATH={folder}/packages {python} merino.pyz "$@"; }}
as_user() {{ runuser -u merino -- "$@"; }}
service() {{ $1 {python} -I /opt/merino/merino.pyz service $2 --root /opt/merino; }}
start() {{ service "" begin && service as_user test && service "" end; }}
"""


def in_a_namespace(folder, script):
    """-> what it printed. The shell's umask is a strict one, as `sudo` may have it."""
    with open(os.path.join(folder, "merino-install.service"), "w") as file:
        file.write(first_boot_unit("/opt/merino"))
    process = subprocess.Popen(
        ["unshare", "--mount", "sh", "-c", SETTING.format(folder=folder, python=PYTHON) + script], cwd=folder,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    out = process.communicate()[0].decode("utf-8")
    if process.returncode and ("unshare failed" in out or "mount: " in out):
        pytest.skip("no namespace with mounts of its own here: " + out)
    assert process.returncode == 0 and "Traceback" not in out, out
    return out


def test_who_controls_the_services_user_does_not_become_root(place):
    with open(os.path.join(place, "attack.py"), "w") as file:
        file.write(ATTACK)
    out = in_a_namespace(place, """
merino install first.merino --root /opt/merino --trust fleet.pub --service
test ! -e /etc/systemd/system/multi-user.target.wants/merino-install.service && echo first boot is over
start
as_user {python} attack.py /opt/merino /opt/victim
start
merino install first.merino --root /opt/merino --service
merino install second.merino --root /opt/merino
merino rollback --root /opt/merino
echo victim: $(cat /opt/victim) $(stat -c '%U %a' /opt/victim)
echo not of root: $(find /opt ! -user root | sort)
echo writable: $(find /opt/merino -path /opt/merino/state -prune -o ! -type l -perm /022 -print)
merino status --root /opt/merino --json
""".replace("{python}", PYTHON))
    assert "in vain" in out and "first boot is over" in out, out
    assert "victim: precious root 600\n" in out, out
    users = out.split("not of root: ")[1].split("\n")[0].split()
    assert users and all(path.startswith("/opt/merino/state") for path in users), users
    assert "writable:\n" in out, out
    status = json.loads(out.strip().splitlines()[-1])
    assert status["current"]["id"] == open_archive(os.path.join(place, "first.merino")).id


def test_the_self_test_of_an_install_runs_as_the_services_user(place):
    """The stand-in refuses to run as root. A release whose self-test fails leaves neither key nor unit."""
    out = in_a_namespace(place, """
merino install first.merino --root /opt/merino --trust fleet.pub && exit 1
ls /opt/merino/trusted /etc/systemd/system/merino.service /opt/merino/current 2>/dev/null && exit 1
merino install first.merino --root /opt/merino --trust fleet.pub --service
merino install second.merino --root /opt/merino
cat /etc/systemd/system/merino.service
""")
    assert "the self-test failed" in out and "installed first" in out and "installed second" in out, out
    assert service_unit("/opt/merino") in out


def test_half_an_application_of_the_release_does_not_stop_the_way_back(place):
    out = in_a_namespace(place, """
merino install first.merino --root /opt/merino --trust fleet.pub --service
start
merino install second.merino --root /opt/merino
truncate -s 100 /opt/merino/current/merino.pyz
for number in 1 2 3; do start && exit 1; done
start
merino status --root /opt/merino --json
""")
    status = json.loads(out.strip().splitlines()[-1])
    assert (status["current"]["name"], status["current"]["good"]) == ("first", True), out
    assert status["previous"]["gave_up"], out
