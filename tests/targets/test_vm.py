"""The emulated machine is a board as far as delivery looks, keeps what it synced, has no network. `make test-vm`."""

import json
import socket

import pytest
from emulated_board import CPUS
from emulated_machine import MODELS, boot, needs_machine, new_root

from merino_edge.bundles.board_app import write_board_app
from merino_edge.profiles.reading import profile_of_model

pytestmark = [pytest.mark.slow, needs_machine]

CONNECT = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=5)"


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


def test_it_reaches_nothing_of_this_machine(image, tmp_path):
    """10.0.2.2 is this machine's loopback for a machine whose network is not restricted."""
    with socket.create_server(("127.0.0.1", 0)) as server, boot(image, "cortex-a72", tmp_path) as machine:
        done = machine.ssh(f"python3 -c '{CONNECT}' 10.0.2.2 {server.getsockname()[1]}", check=False)
    assert done.returncode == 1 and done.stderr.splitlines()[-1].startswith(("TimeoutError", "OSError", "Connection"))
