"""The whole way onto an emulated board: flash, upgrade, rollback, measurements over ssh; and a card's first start. The
machine keeps what it synced, and a stranger's walk down the page of a board ends on it.

`make test-vm`."""

import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from emulated_board import CPUS
from emulated_machine import EDGE, MODELS, PARTS, boot, copied, needs_machine, new_root
from sample_roots import FAT_AT, FAT_BYTES, ROOT_AT, SECTOR, e2fsck, ran
from served import free_port

from merino_edge.bundles.board_app import write_board_app
from merino_edge.profiles.reading import profile_of_model
from merino_runtime.delivery.archive import open_archive
from merino_runtime.delivery.units import FIRST_WORDS

pytestmark = [pytest.mark.slow, needs_machine]

CPU, BOARD = "cortex-a72", "raspberry-pi-4"
PROMPT = "Once upon a time"
GENERATE = ["-n", "12", "--temperature", "0", "--json"]
BENCH = ["-p", "8", "-n", "4", "-r", "1", "--format", "jsonl"]
INSTALLED = "/opt/merino/current/merino"
UNTIL_GOOD = f"""
for turn in $(seq 600); do
    systemctl is-active --quiet merino.service && {INSTALLED} status | grep -q '^current .*, good$' && exit 0
    sleep 1
done
systemctl status merino.service; exit 1
"""
UNTIL_INSTALLED = """
systemctl start merino-install.service  # waits for the install that is under way
until systemctl show --property SubState merino-install.service | grep -q exited; do sleep 1; done
"""


def edge_ok(machine, *arguments):
    """`merino-edge` for a user whose ~/.ssh knows the machine as `board` -> stdout"""
    home = {} if machine is None else {"HOME": str(machine.home)}
    done = subprocess.run(
        [sys.executable, "-c", EDGE, *map(str, arguments)],
        capture_output=True, text=True, timeout=1200, env={**os.environ, "COLUMNS": "200", **home},
    )  # fmt: skip
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    return done.stdout


def ids(lines):
    return [row["id"] for row in map(json.loads, lines.splitlines()) if "id" in row]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """first and second, the model of the package with short contexts, so that a benchmark of what fits is short; packed
    with wheels, and signed by fleet.key."""
    folder = tmp_path_factory.mktemp("vm")
    edge_ok(None, "keygen", "-o", folder / "fleet")
    for name, context in (("first", 32), ("second", 40)):
        edge_ok(None, "export", "embedded", "-o", folder / name, "--context", context)
        edge_ok(None, "pack", folder / name, "-o", folder / f"{name}.merino", "--board", BOARD, "--wheels",
                "--sign", folder / "fleet.key")  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def expected(place):
    """The ids that this machine generates."""
    tokens = ids(edge_ok(None, "generate", place / "first", PROMPT, *GENERATE))
    assert len(tokens) == 12
    return tokens


def generated_there(machine):
    return ids(machine.ssh(f"{INSTALLED} generate installed '{PROMPT}' {' '.join(GENERATE)}").stdout)


def current(machine):
    return json.loads(machine.ssh(f"{INSTALLED} status --json").stdout)["current"]["id"]


def flash(machine, place, name):
    out = edge_ok(machine, "flash", place / f"{name}.merino", "--ssh", "board", "--trust", place / "fleet.pub",
                  "--json")  # fmt: skip
    (row,) = json.loads(out)
    assert (row["error"], row["selftest"], row["was_there"]) == (None, "ok", False)
    assert row["measured"] and row["measured"]["decode_ms"] > 0, row
    assert current(machine) == open_archive(str(place / f"{name}.merino")).id
    return row


def test_from_nothing_to_text_then_upgraded_rolled_back_and_measured(place, expected, tmp_path):
    with boot(new_root(tmp_path / "root.img"), CPU, tmp_path) as machine:
        assert machine.ssh("ls /opt").stdout == "", "nothing of ours is there yet"
        first = flash(machine, place, "first")
        assert first["replaced"] is None
        assert generated_there(machine) == expected
        assert ids(edge_ok(machine, "generate", place / "first", PROMPT, *GENERATE, "--ssh", "board")) == expected
        before = current(machine)
        assert flash(machine, place, "second")["replaced"] == before
        assert generated_there(machine) == expected
        machine.ssh(f"{INSTALLED} rollback")
        assert current(machine) == before
        assert generated_there(machine) == expected
        out = edge_ok(machine, "bench", place / "first", *BENCH, "--ssh", "board")
        rows = [json.loads(line) for line in out.splitlines()]
        assert rows and all(row["tok_s"] > 0 and row["environment"]["board"] == MODELS[CPU] for row in rows)
        edge_ok(machine, "calibrate", "--ssh", "board", "--board", BOARD, "-o", tmp_path / "pi.toml")
        assert tomllib.loads((tmp_path / "pi.toml").read_text())["performance"]["onnxruntime"]["coefficients"]


COMPLETION = """
import json, sys, urllib.request
body = {"prompt": "Once upon a time", "max_tokens": int(sys.argv[1]), "temperature": 0, "ignore_eos": True}
request = urllib.request.Request("http://127.0.0.1:8080/v1/completions", json.dumps(body).encode())
print(json.load(urllib.request.urlopen(request))["choices"][0]["text"])
"""
UNTIL_SERVED = """
for turn in $(seq 600); do
    python3 -c 'import urllib.request; urllib.request.urlopen("http://127.0.0.1:8080/health")' 2>/dev/null && exit 0
    sleep 1
done
systemctl status merino.service merino-serve.service; exit 1
"""
KILLED_UNDER_LOAD = """
for number in $(seq 20); do (python3 ask.py 24 >answer$number 2>error$number || true) & done
until [ "$(systemctl show --property ActiveState --value merino-serve.service)" = active ]; do sleep 1; done
sleep 3; systemctl kill --signal=KILL merino-serve.service; wait
cat answer*
"""


def test_the_service_serves_and_comes_back_after_a_kill_under_load(place, tmp_path):
    greedy = ["-n", 24, "--temperature", 0, "--set=ignore_eos=true", "--json"]
    here = edge_ok(None, "generate", place / "first", PROMPT, *greedy)
    text = "".join(json.loads(line).get("text", "") for line in here.splitlines()).strip()
    with boot(new_root(tmp_path / "root.img"), CPU, tmp_path) as machine:
        out = edge_ok(machine, "flash", place / "first.merino", "--ssh", "board", "--trust", place / "fleet.pub",
                      "--serve", "--json")  # fmt: skip
        (row,) = json.loads(out)
        assert row["error"] is None and any("merino-serve.service is enabled" in note for note in row["notes"])
        machine.ssh(UNTIL_SERVED, timeout_s=1200)
        machine.ssh("cat >ask.py", input=COMPLETION)
        assert machine.ssh("python3 ask.py 24").stdout.strip() == text
        whole = machine.ssh(KILLED_UNDER_LOAD, timeout_s=600).stdout.strip()
        assert whole.replace(text, "").strip() == "", "an answer that is none"
        machine.ssh(UNTIL_SERVED, timeout_s=600)
        assert machine.ssh("python3 ask.py 24").stdout.strip() == text
        assert machine.ssh("systemctl show --property NRestarts --value merino-serve.service").stdout == "1\n"


def test_a_flashed_image_installs_at_its_first_start_and_says_its_text_on_the_console(place, tmp_path):
    image = make_image(tmp_path / "card.img", tmp_path)
    edge_ok(None, "flash", place / "first.merino", "--image", image, "--trust", place / "fleet.pub")
    assert e2fsck(image) == 0
    text = edge_ok(None, "generate", place / "first", *shlex.split(" ".join(FIRST_WORDS[1:])))
    with boot(image, CPU, tmp_path, partition="2") as machine:
        machine.ssh(UNTIL_INSTALLED, timeout_s=1200)
        console = machine.console.read_text(errors="replace")
        assert f"release {open_archive(str(place / 'first.merino')).id}" in console
        assert text.strip() and all(line in console for line in text.splitlines()), console[-3000:]
        machine.shut_down()
    with boot(image, CPU, tmp_path, partition="2") as machine:
        assert machine.ssh("systemctl is-enabled merino-install.service", check=False).stdout == "disabled\n"
        machine.ssh(UNTIL_GOOD, timeout_s=1200)
        assert machine.ssh("systemctl is-active merino-install.service", check=False).stdout == "inactive\n"


def make_image(path, folder, root=None):
    """An MBR image, as systems for boards are published: FAT, then the machine's root file system, or `root`, a disk
    like it. -> its path"""
    root = copied(root or PARTS / "root.img", folder / "root.img")
    table = (
        f"label: dos\nstart={FAT_AT // SECTOR},size={FAT_BYTES // SECTOR},type=c\n"
        f"start={ROOT_AT // SECTOR},size={root.stat().st_size // SECTOR},type=83\n"
    )
    with open(path, "wb") as file:
        file.truncate(ROOT_AT + root.stat().st_size)
    ran("sfdisk", "-q", path, stdin=table.encode())
    ran("mkfs.vfat", "--offset", FAT_AT // SECTOR, "-F", "12", path, FAT_BYTES // 1024)
    call = ["dd", f"if={root}", f"of={path}", "bs=1M", f"seek={ROOT_AT >> 20}", "conv=sparse,notrunc", "status=none"]
    subprocess.run(call, check=True)
    root.unlink()
    return path


@pytest.fixture
def image(tmp_path):
    return new_root(tmp_path / "root.img")


@pytest.mark.parametrize("cpu", ["cortex-a72", "cortex-a76"])
def test_it_takes_itself_for_the_board_of_its_cpu(cpu, image, tmp_path):
    write_board_app(tmp_path / "merino.pyz")
    with boot(image, cpu, tmp_path) as machine:
        machine.send([tmp_path / "merino.pyz"], "/root")
        board = json.loads(machine.ssh("python3 merino.pyz board").stdout)["machine"]
        failed = machine.ssh("systemctl is-system-running; systemctl --failed --plain --no-legend").stdout
    assert failed == "running\n"
    profile = profile_of_model(board["model"])
    assert board["model"] == MODELS[cpu] and profile.id == CPUS[cpu]
    assert {"neon", *board["board"]["isa"]} == set(profile.isa)
    assert (board["python"], board["glibc"]) == ("3.11", "2.36")


def test_a_power_cut_keeps_what_was_synced_and_the_next_start_has_it(image, tmp_path):
    """And loses what was not: that is in the machine's memory only, for the 30 s of ext4's default."""
    with boot(image, "cortex-a72", tmp_path) as machine:
        machine.ssh("echo kept >kept && sync && echo lost >lost && cat lost")
        machine.cut_power()
    with boot(image, "cortex-a72", tmp_path) as machine:
        assert machine.ssh("cat kept").stdout == "kept\n"
        assert machine.ssh("cat lost", check=False).stdout == ""
        machine.shut_down()
    assert "reboot: Power down" in machine.console.read_text(errors="replace")


ROOT = Path(__file__).resolve().parents[2]
PAGE, OLDEST_CPU, HOST = ROOT / "docs" / "boards" / "raspberry-pi-4.md", "cortex-a72", "pi4.local"
LEFT_OUT = {
    "merino-edge deploy": "fetches a model from the hub: test_deploy.py",
    "--image": "onto a card's image: test_vm_delivery.py",
    "--baseline opt-350m": "copies 1.3 GB, which the emulated machine's memory does not hold",
    "merino probe": "calibrate --ssh, further down the page, probes too",
}
# The emulator is slower than the board, and than the board's budget.
SLOWER = {
    "-r 3": "-p 8 -n 4 -r 1",
    "-o pi4-design.json": "--decode-ms 1000 -o pi4-design.json",
    "--retry 99": "--retry 600",
}
# OpenSSH takes the home of the account, not HOME. A tunnel must not keep the pipes of this test open.
SHELL = """PS4='+ $SECONDS s: '
scp() { command scp -q -F "$HOME/.ssh/config" "$@"; }
ssh() { command ssh -F "$HOME/.ssh/config" "$@" >/dev/null 2>&1; }
"""
SUDO = 'cd /home/pi; sudo() { "$@"; }'  # for root: the emulated system has none


def blocks():
    """(heading, commands) of each block of the page that has commands left."""
    heading, left_out = "", set()
    text = PAGE.read_text(encoding="utf-8").replace("8080:127.0.0.1:", f"{(port := free_port())}:127.0.0.1:")
    text = text.replace("127.0.0.1:8080/", f"127.0.0.1:{port}/")  # of the workstation
    for title, block in re.findall(r"^## ([^\n]*)$|^```bash\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        heading = title or heading
        reasons = {line: next((word for word in LEFT_OUT if word in line), None) for line in block.splitlines()}
        left_out |= set(reasons.values())
        commands = "".join(f"{line}\n" for line, reason in reasons.items() if reason is None and line[:1] != "#")
        for written, here in SLOWER.items():
            commands = commands.replace(written, here)
        if commands:
            yield heading, commands
    assert left_out >= set(LEFT_OUT), "the page has not all that is left out"


def knows(machine):
    """The machine under the page's name, for who comes as the page does."""
    path = machine.home / ".ssh" / "config"
    known = path.read_text()
    named = known.replace("Host board", f"Host {HOST}").replace("  User root\n", "")
    path.write_text(f"{known}\n{named}")


def programs(tmp_path):
    """A folder with `merino-edge`."""
    path = tmp_path / "programs" / "merino-edge"
    path.parent.mkdir()
    path.write_text(f"#!{sys.executable}\n{EDGE}")
    path.chmod(0o755)
    return path.parent


def test_the_page_leads_from_nothing_to_text_a_design_for_the_board_and_a_server(tmp_path):
    folder = tmp_path / "empty"
    folder.mkdir()
    pasted, log = list(blocks()), tmp_path / "log"  # of what took how long
    with boot(new_root(tmp_path / "root.img"), OLDEST_CPU, tmp_path) as machine:
        knows(machine)
        environment = {
            **os.environ, "HOME": str(machine.home), "XDG_CACHE_HOME": str(PARTS.parent),  # wheels are kept there
            "PATH": os.pathsep.join(map(str, (programs(tmp_path), Path(sys.executable).parent, os.environ["PATH"]))),
        }  # fmt: skip
        outputs = {}
        for heading, commands in pasted:
            user = "root" if "sudo " in commands else "pi" if heading == "On the board" else None
            if user:
                as_root = f"{SUDO}; " if user == "root" else ""
                out = machine.ssh(f"{as_root}set -ex\n{commands}", user=user, timeout_s=3600).stdout
            else:
                with log.open("a") as errors:
                    done = subprocess.run(
                        ["bash", "-ex"], input=SHELL + commands, cwd=folder, env=environment, stdout=subprocess.PIPE,
                        stderr=errors, text=True, timeout=3600,
                    )  # fmt: skip
                assert done.returncode == 0, log.read_text()[-3000:]
                out = done.stdout
            outputs[heading] = outputs.get(heading, "") + out
    release = open_archive(str(folder / "story.merino")).id
    before, _, after = outputs["On the board"].partition("ok: 16 greedy ids as expected\n")
    assert after, "the self-test"
    answer = json.loads(outputs["Serve the model"].splitlines()[-1])["choices"][0]["text"]
    for text in (outputs["Onto the board"], before, answer):  # ends with a generated one
        assert len(" ".join(text.rstrip().splitlines()[-3:]).split()) >= 15
    assert re.search(rf"^current .*{release[:12]}", after, re.MULTILINE)
    calibrated = tomllib.loads((folder / "my-pi4.toml").read_text())
    assert calibrated["performance"]["onnxruntime"]["coefficients"]["kind"] == "calibrated"
    assert (folder / "pi4-design.json").exists()
