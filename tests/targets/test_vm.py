"""The emulated machine is a board as far as delivery looks and keeps what it synced; and a stranger's walk: the page of
a board, pasted block by block, onto that board. `make test-vm`."""
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from emulated_board import CPUS
from emulated_machine import EDGE, MODELS, PARTS, boot, needs_machine, new_root
from served import free_port

from merino_edge.bundles.board_app import write_board_app
from merino_edge.profiles.reading import profile_of_model
from merino_runtime.delivery.archive import open_archive

pytestmark = [pytest.mark.slow, needs_machine]

@pytest.fixture
def image(tmp_path):
    return new_root(tmp_path / "root.img")


@pytest.mark.parametrize("cpu", ["cortex-a72", "cortex-a76"])
def test_it_takes_itself_for_the_board_of_its_cpu(cpu, image, tmp_path):
    write_board_app(tmp_path / "merino.pyz")
    with boot(image, cpu, tmp_path) as machine:
        machine.send([tmp_path / "merino.pyz"], "/root")
        board = json.loads(machine.ssh("python3 merino.pyz board --json").stdout)
        failed = machine.ssh("systemctl is-system-running; systemctl --failed --plain --no-legend").stdout
    assert failed == "running\n"
    profile = profile_of_model(board["model"])
    assert board["model"] == MODELS[cpu] and profile.id == CPUS[cpu]
    assert {"neon", *board["board"]["isa"]} == set(profile.isa)
    assert (board["python"], board["glibc"], board["managed"]) == ("3.11", "2.36", True)


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
PAGE, CPU, HOST = ROOT / "docs" / "boards" / "raspberry-pi-4.md", "cortex-a72", "pi4.local"
LEFT_OUT = {
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
    with boot(new_root(tmp_path / "root.img"), CPU, tmp_path) as machine:
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
    answer = json.loads(outputs["A server at each start"].splitlines()[-1])["choices"][0]["text"]
    for text in (outputs["Onto the board"], before, answer):  # ends with a generated one
        assert len(" ".join(text.rstrip().splitlines()[-3:]).split()) >= 15
    assert re.search(rf"^current .*{release[:12]}", after, re.MULTILINE)
    calibrated = tomllib.loads((folder / "my-pi4.toml").read_text())
    assert calibrated["performance"]["onnxruntime"]["coefficients"]["kind"] == "calibrated"
    assert (folder / "pi4-design.json").exists()
