"""A whole emulated board, of which `make vm` made the parts: Debian's kernel and systemd, sshd on a port of loopback.

It has no other network. What it wrote is in its image, so a second `boot` of the same image is its next start.
"""

import json
import os
import shutil
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
from served import free_port

# What the device tree of a board with this CPU calls it.
MODELS = {
    "cortex-a53": "Raspberry Pi Zero 2 W Rev 1.0",
    "cortex-a57": "NVIDIA Jetson Nano Developer Kit",
    "cortex-a72": "Raspberry Pi 4 Model B Rev 1.4",
    "cortex-a76": "Raspberry Pi 5 Model B Rev 1.0",
}
GIVEN = os.environ.get("MERINO_VM_ROOT")
PARTS = Path(GIVEN or "none")
MEMORY_MB = 1024
# `merino-edge` for a board as slow as an emulator on a busy machine: its probe times what a calibration needs, once and
# however long that takes, and one small design is measured in place of twice six.
EDGE = """
from merino_edge.benchmarking import chosen
from merino_edge.bundles import board_app
from merino_edge.calibration import command
from merino_edge.cli.app import main
from merino_edge.delivery.ssh import programs
from merino_edge.design.paper.space import PaperSpace
from merino_edge.design.space import Space

def longer(content):
    for name, own, here in ((b"MOST_SECONDS", b"55.0", b"8.0"), (b"MOST_LATE_SECONDS", b"240.0", b"3600.0")):
        content = content.replace(name + b" = " + own, name + b" = " + here)
    return content

packed = board_app.packed_files
board_app.packed_files = lambda package: ((name, longer(content)) for name, content in packed(package))
programs.PROBE_S = 4000.0
chosen.DESIGNS, chosen.VOCABS, chosen.CONTEXTS, command.ROUNDS = 1, (512,), (64,), 1
chosen.SPACE = Space(widths=(64, 128), depths=(1, 2))
chosen.PAPER_SPACE = PaperSpace(widths=(64, 128), depths=(1, 2), blocks=1)
chosen.DECODE_REPETITIONS = chosen.PREFILL_REPETITIONS = 1
main()
"""
START_S = 600  # some 20 s of an idle CPU

needs_machine = pytest.mark.skipif(not GIVEN, reason="no emulated machine (make test-vm sets one up)")


class Machine(NamedTuple):
    """A running machine. `home` is one for a client of ssh: ~/.ssh with the keys, and a config that knows `board`."""

    process: subprocess.Popen
    port: int
    home: Path
    console: Path  # what the machine wrote on its serial line

    def ssh(self, command, user="root", check=True, timeout_s=300, **settings):
        """Runs a command line on the machine. -> the finished process; other keywords are those of subprocess.run."""
        call = ["ssh", "-F", self.home / ".ssh" / "config", f"{user}@board", command]
        done = subprocess.run(call, capture_output=True, text=True, timeout=timeout_s, **settings)
        assert not check or done.returncode == 0, done.stderr
        return done

    def send(self, paths, folder, user="root"):
        """Copies files into a folder of the machine."""
        call = ["scp", "-q", "-F", self.home / ".ssh" / "config", *paths, f"{user}@board:{folder}"]
        subprocess.run(call, check=True, timeout=600)

    def cut_power(self):
        """What the machine has not synced is lost."""
        self.process.kill()
        self.process.wait()

    def shut_down(self):
        self.ssh("systemctl poweroff", check=False)
        assert self.process.wait(timeout=START_S) == 0


def new_root(path):
    """A root file system of a machine that was never started, as an image of 2 GB with holes. -> its path"""
    return copied(PARTS / "root.img", path)


def copied(image, path):
    """Another image with the same holes. -> its path"""
    subprocess.run(["cp", "--sparse=always", image, path], check=True)
    return path


@contextmanager
def boot(image, cpu, folder, partition="", log=None):
    """Starts the machine and waits for its sshd; its power is cut at the end of the body.

    `folder` gets its console and the keys. `partition` is the one of the image that is the root, "2" for the second.
    `log` is a file that gets what is written to the image (disk_log.py).
    """
    home = _client(folder / "home", port := free_port())
    network = f"user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:{port}-:22"
    call = [
        *_hardware(cpu), "-dtb", _device_tree(cpu, folder), "-kernel", PARTS / "kernel", "-initrd", PARTS / "initrd",
        "-append", f"console=ttyAMA0 rw root=/dev/vda{partition}", "-serial", f"file:{folder / 'console'}",
        *_disk(image, log), "-device", "virtio-blk-device,drive=disk",
        "-netdev", network, "-device", "virtio-net-device,netdev=net",
    ]  # fmt: skip
    with subprocess.Popen(call, stdin=subprocess.DEVNULL) as process:
        machine = Machine(process, port, home, folder / "console")
        try:
            _wait_for_sshd(machine)
            yield machine
        finally:
            machine.cut_power()


def _disk(image, log):
    """The drive `disk`. What the machine did not flush is lost with its power, as in the cache of a card."""
    if log is None:
        return ["-drive", f"file={image},format=raw,if=none,id=disk"]
    log.write_bytes(b"")
    nodes = [
        {"driver": "raw", "node-name": "image", "file": {"driver": "file", "filename": str(image)}},
        {"driver": "blklogwrites", "node-name": "disk", "file": "image", "log-super-update-interval": 1,
         "log": {"driver": "file", "filename": str(log)}},
    ]  # fmt: skip
    return [word for node in nodes for word in ("-blockdev", json.dumps(node))]


def _hardware(cpu):
    machine = ["-M", "virt", "-cpu", cpu, "-smp", "1", "-m", str(MEMORY_MB)]
    return ["qemu-system-aarch64", *machine, "-nodefaults", "-display", "none", "-no-reboot"]


def _device_tree(cpu, folder):
    """The machine's own, under the name of a board with this CPU. -> its path"""
    path = folder / "board.dtb"
    dump, *rest = _hardware(cpu)
    subprocess.run([dump, *rest, "-M", f"dumpdtb={path}"], check=True, capture_output=True)
    subprocess.run(["fdtput", "--type", "s", path, "/", "model", MODELS[cpu]], check=True)
    return path


def _client(home, port):
    """A home with what ssh needs to reach the machine as `board`. -> home"""
    folder = home / ".ssh"
    folder.mkdir(parents=True, mode=0o700, exist_ok=True)
    shutil.copy(PARTS / "key", folder / "key")
    known = folder / "known_hosts"
    kind, key = (PARTS / "host_key.pub").read_text().split()[:2]
    known.write_text(f"[127.0.0.1]:{port} {kind} {key}\n")
    (folder / "config").write_text(
        f"Host board\n  HostName 127.0.0.1\n  Port {port}\n  User root\n  IdentityFile {folder / 'key'}\n"
        f"  IdentitiesOnly yes\n  UserKnownHostsFile {known}\n  GlobalKnownHostsFile none\n  BatchMode yes\n"
        "  ConnectTimeout 20\n  LogLevel ERROR\n"
    )
    return home


def _wait_for_sshd(machine):
    deadline = time.monotonic() + START_S
    while machine.ssh("true", check=False).returncode != 0:
        assert machine.process.poll() is None and time.monotonic() < deadline, machine.console.read_text()[-2000:]
        time.sleep(0.5)
