"""A hostile or broken board harms nothing here: each kind ends soon, in one line that names it and steers no terminal.

The servers are asyncssh's, or bare sockets. All run in the loop of the test, which would stand still with them.
"""

import asyncio
import contextlib
import json
import resource
import time

import asyncssh
import pytest
import ssh_board
from packed_files import app_bytes, bundle_files, packed_bytes

from merino_edge.delivery.ssh import board, command, connect, flash, transfer
from merino_edge.delivery.ssh.connect import parse_address
from merino_edge.embedded import FOLDER
from merino_runtime.delivery.agent import BEGIN

pytestmark = pytest.mark.slow
BEGUN = BEGIN.encode() + b"\n"
ANSI = "\x1b[2J\x1b]0;owned\x07\u202e"
SHORT_S = 2.0  # in place of a minute


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    for module, name in ((connect, "LOGIN_S"), (command, "SHORT_S"), (board, "FACTS_S"), (transfer, "STALL_S"),
                         (flash, "INSTALL_S"), (flash, "BENCH_S")):  # fmt: skip
        monkeypatch.setattr(module, name, SHORT_S)


@pytest.fixture
def workstation(tmp_path, monkeypatch):
    result = ssh_board.make_workstation(tmp_path / "home")
    monkeypatch.setenv("HOME", str(result.home))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    return result


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    folder = tmp_path_factory.mktemp("package")
    path = folder / "sample.merino"
    path.write_bytes(packed_bytes(app_bytes(folder / "app"), [bundle_files(FOLDER)]))
    return flash.package(path, allow=["unsigned"])


def flashed(port, package, workstation):
    """What becomes of it -> (the error, seconds, files in the home here that are new, growth of this process in MB)."""

    async def run():
        return await flash.flash_all([parse_address(f"127.0.0.1:{port}")], package)

    key = workstation.key.export_public_key().decode()  # of the servers here too
    workstation.known_hosts.write_text(f"[127.0.0.1]:{port} {key}")

    before, memory, begun = files_of(workstation), peak_mb(), time.monotonic()
    (done,) = asyncio.get_event_loop().run_until_complete(run())
    return done, time.monotonic() - begun, files_of(workstation) - before, peak_mb() - memory


def files_of(workstation):
    return {path for path in workstation.home.rglob("*") if path.name != "known_hosts"}


def peak_mb():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def judged(done, seconds, new, grown_mb):
    assert done.error and done.error.isprintable() and len(done.error) < 1500
    assert not done.tested and done.records == []
    assert seconds < 12 * SHORT_S
    assert new == set(), "no path of a board is used here"
    assert grown_mb < 100
    return done.error


@contextlib.contextmanager
def a_loop():
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    try:
        yield loop
    finally:
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0.1))
        loop.close()
        asyncio.set_event_loop(None)


# Bare sockets: before any login.


async def silent(reader, _):
    await reader.read()


async def gone(_, writer):
    writer.close()


async def endless_bytes(_, writer):
    await endless(writer, b"\xff\x00\x1b[2J" * 4096)


async def a_web_server(reader, writer):
    await reader.read(10)
    writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n" + ANSI.encode())
    writer.close()


async def a_packet_of_2_gb(reader, writer):
    writer.write(b"SSH-2.0-x\r\n\x7f\xff\xff\xff\x04" + bytes(64))
    await reader.read()


async def a_rude_goodbye(reader, writer):
    words = ANSI.encode() * 20
    payload = b"\x01" + (11).to_bytes(4, "big") + len(words).to_bytes(4, "big") + words + bytes(4)
    padding = 8 - (len(payload) + 5) % 8 + 8
    writer.write(b"SSH-2.0-x\r\n" + (len(payload) + padding + 1).to_bytes(4, "big") + bytes([padding]) + payload
                 + bytes(padding))  # fmt: skip
    await reader.read()


async def endless(writer, data):
    with contextlib.suppress(OSError):
        while True:
            writer.write(data)
            await writer.drain()


@pytest.mark.parametrize(
    "behave",
    [silent, gone, endless_bytes, a_web_server, a_packet_of_2_gb, a_rude_goodbye],
)
def test_a_server_that_is_no_ssh_server(behave, package, workstation):
    with a_loop() as loop:
        server = loop.run_until_complete(asyncio.start_server(behave, "127.0.0.1", 0))
        output = judged(*flashed(server.sockets[0].getsockname()[1], package, workstation))
        server.close()
    assert "log" in output


# asyncssh's server: after the login.


async def request_of(process):
    """The workstation's request; behind it in stdin comes what belongs to it."""
    await process.stdin.readexactly(len(command.AGENT))
    return json.loads(await process.stdin.readuntil(b"\n"))


def machine(**changes):
    facts = {"architecture": "x86_64", "pointer_bits": 64, "logical_cores": 2, "physical_cores": 2, "isa": [],
             "memory_total_mb": 4096.0, "memory_available_mb": 2048.0}  # fmt: skip
    return {"schema": 1, "board": facts, "model": "", "python": "3.11", "glibc": "2.36", "free_bytes": 10**12,
            **changes}  # fmt: skip


def facts(the_machine=None, **changes):
    """What `board` prints there."""
    the_machine = machine() if the_machine is None else the_machine
    return {"machine": the_machine, "root": "/opt/merino", "current": None, "foreign": None, "service": None,
            "keys": [], **changes}  # fmt: skip


HERE = {"done": True, "free": 10**12, "part_bytes": 0, "part_sha256": "0" * 64}
MISSING = {**HERE, "done": False}
NEEDS_IT = json.dumps(MISSING).encode() + b"\n"
ANSWERS = {
    "receive": lambda _: HERE,
    "run": lambda request: facts() if "board" in request["arguments"] else {"no": "answer"},
    "discard": lambda _: True,
}


def liar(**answers):
    """A board that follows the protocol, but for some of its answers: values, or bytes that are sent as they are."""

    async def behave(process):
        request = await request_of(process)
        result = answers.get(request["do"], ANSWERS.get(request["do"]))
        result = result(request) if callable(result) else result
        process.stdout.write(BEGUN + (result if isinstance(result, bytes) else json.dumps(result).encode() + b"\n"))
        process.exit(0)

    return behave


def described(*values, **changes):
    return liar(run=facts(*values, **changes))


def installs(answer):
    """A board that answers so to `install`."""
    return liar(run=lambda request: facts() if "board" in request["arguments"] else answer)


def fails_with(words):
    """A board whose application ends with an error."""

    async def behave(process):
        request = await request_of(process)
        if request["do"] == "run":
            process.stdout.write(BEGUN)
            process.stderr.write(words.encode())
            process.exit(1)
        else:
            process.stdout.write(BEGUN + json.dumps(ANSWERS[request["do"]](request)).encode() + b"\n")
            process.exit(0)

    return behave


async def never_answers(process):
    await process.stdin.read()


async def dies(process):
    process.exit_with_signal("SEGV")


async def endless_line(process):
    await endless(process.stdout, b"x" * 65536)


async def endless_answer(process):
    process.stdout.write(BEGUN)
    await endless(process.stdout, b"[" * 65536)


async def endless_talk(process):
    await endless(process.stderr, (ANSI.encode() + b"\n") * 4096)


async def talk_that_steers(process):
    process.stderr.write(b"no python\n" + ANSI.encode() + b"it was us\n")
    process.exit(1)


async def closes_the_connection(process):
    await request_of(process)
    process.channel.get_connection().abort()


def slow_drip(process):
    return drip(process.stdout, BEGUN + b"[" + b" " * 10**6)


async def drip(writer, data):
    for byte in data:
        writer.write(bytes([byte]))
        await asyncio.sleep(0.05)


async def closes_in_mid_transfer(process):
    request = await request_of(process)
    if request["do"] == "receive":
        process.stdout.write(BEGUN + NEEDS_IT)
        await process.stdin.readexactly(20_000)
        process.channel.get_connection().abort()
    else:
        process.stdout.write(BEGUN + json.dumps(ANSWERS[request["do"]](request)).encode() + b"\n")
        process.exit(0)


async def takes_nothing(process):
    """Says that it wants the file, and never reads it."""
    request = await request_of(process)
    process.stdout.write(BEGUN)
    if request["do"] == "receive":
        process.stdin.channel.pause_reading()
        process.stdout.write(NEEDS_IT)
        await asyncio.sleep(60)
    process.stdout.write(json.dumps(ANSWERS[request["do"]](request)).encode() + b"\n")
    process.exit(0)


INSTALLED = {"schema": 1, "id": "0" * 16, "name": "x", "bundle": "x", "precision": "fp32", "python": "3.11",
             "root": "/opt/merino", "launcher": "/opt/merino/current/merino", "replaced": None, "selftest": "ok",
             "notes": []}  # fmt: skip

# By name: how it behaves, and a part of what is said of it.
AFTER_LOGIN = {
    "never answers": (never_answers, "took too long"),
    "dies": (dies, "code -11"),
    "endless line": (endless_line, "login shell"),
    "endless answer": (endless_answer, "more than 65,536 bytes"),
    "endless talk": (endless_talk, "took too long"),
    "talk that steers": (talk_that_steers, "it was us"),
    "closes the connection": (closes_the_connection, "lost"),
    "drips": (slow_drip, "took too long"),
    "closes in mid-transfer": (closes_in_mid_transfer, "copy merino.pyz"),
    "takes nothing": (takes_nothing, "too long to copy"),
    "not JSON": (liar(run=ANSI.encode() + b"\n"), "not JSON"),
    "not UTF-8": (liar(run=b'"\xff\xfe"\n'), "must be an object"),
    "too little": (liar(run={"machine": machine()}), "root: missing"),
    "its own error": (fails_with(f"{ANSI}\n{ANSI}sudo rm -rf /\n"), "rm -rf"),
    "a machine of nonsense": (described({"schema": 1, "board": ANSI}), "does not describe a machine"),
    "32-bit": (described(machine(board={**machine()["board"], "pointer_bits": 32})), "32-bit"),
    "no memory": (described(machine(board={**machine()["board"], "memory_total_mb": 1.0})), "1 MB in all"),
    "a root that steers": (described(root=f"/opt/{ANSI}"), "root is"),
    "a root that is no path": (described(root="~/../x"), "root is"),
    "another root for the service": (described(service="/srv/$(reboot)"), "merino.service on the board"),
    "keys that are none": (described(keys=[1]), "keys[0]"),
    "a release that is a path": (described(current="../../etc"), "current is"),
    "a part of nonsense": (liar(receive={**MISSING, "part_sha256": "../x"}), "part_sha256 is"),
    "a part that is longer than the file": (liar(receive={**MISSING, "part_bytes": 2**50}), "the board ended"),
    "no space": (liar(receive={**MISSING, "free": 0}), "0.0 MB are free"),
    "an error that steers": (liar(receive=NEEDS_IT + json.dumps({"error": ANSI}).encode() + b"\n"),
        "copy merino.pyz"),
    "an install of another release": (installs(INSTALLED), "another release"),
    "a launcher that steers": (installs({**INSTALLED, "launcher": f"/x\n{ANSI}"}), "launcher is"),
    "an install that is endless": (installs(b"x" * (1 << 22)), "more than 65,536 bytes"),
}  # fmt: skip


@pytest.mark.parametrize("kind", AFTER_LOGIN)
def test_a_board_that_lets_us_in(kind, package, workstation):
    behave, words = AFTER_LOGIN[kind]
    with a_loop() as loop:
        server = loop.run_until_complete(
            asyncssh.listen(
                "127.0.0.1", 0, server_host_keys=[workstation.key],
                authorized_client_keys=asyncssh.import_authorized_keys(workstation.key.export_public_key().decode()),
                process_factory=behave, encoding=None,
            )  # fmt: skip
        )
        output = judged(*flashed(server.get_port(), package, workstation))
        server.close()
    assert words in output


class Banners(asyncssh.SSHServer):
    """Sends words before the login, without end."""

    def connection_made(self, conn):
        self.connection = conn

    async def begin_auth(self, username):  # noqa: ARG002
        for _ in range(10**4):
            self.connection.send_auth_banner(ANSI * 100)
            await asyncio.sleep(0)
        await asyncio.sleep(60)
        return True


class NoChannels(asyncssh.SSHServer):
    def session_requested(self):
        raise asyncssh.ChannelOpenError(1, ANSI)


@pytest.mark.parametrize("kind", [Banners, NoChannels])
def test_a_server_with_manners_of_its_own(kind, package, workstation, capfd):
    with a_loop() as loop:
        server = loop.run_until_complete(
            asyncssh.listen(
                "127.0.0.1", 0, server_factory=kind, server_host_keys=[workstation.key],
                authorized_client_keys=asyncssh.import_authorized_keys(workstation.key.export_public_key().decode()),
            )  # fmt: skip
        )
        judged(*flashed(server.get_port(), package, workstation))
        server.close()
    assert "\x1b" not in "".join(capfd.readouterr())
