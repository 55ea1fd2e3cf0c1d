"""Connections to OpenSSH's own sshd: whom they trust and how they log in; files by hash, resumed where a connection was
cut, one at a time; programs that end with the connection."""

import asyncio
import fcntl
import random
import shlex
import shutil
import subprocess
from contextlib import suppress

import asyncssh
import pytest
import ssh_board
from hypothesis import given
from hypothesis import strategies as st
from served import free_port

from merino_edge.delivery.ssh import transfer
from merino_edge.delivery.ssh.command import finished, run_request
from merino_edge.delivery.ssh.connect import connected, new_host_key, parse_address, parse_addresses
from merino_edge.delivery.ssh.transfer import INCOMING, Source, send, source_of
from merino_runtime.errors import MerinoError
from merino_runtime.io.streams import visible, visible_text

with_sshd = pytest.mark.skipif(not ssh_board.SSHD, reason=ssh_board.REASON)
copying = pytest.mark.usefixtures("trusting")
SIZE = 6 * transfer.SENT_AT_ONCE + 12345


@pytest.fixture(scope="module")
def login_key():
    return asyncssh.generate_private_key("ssh-ed25519")


@pytest.fixture(scope="module")
def board(login_key, tmp_path_factory):
    with ssh_board.running(tmp_path_factory.mktemp("board"), login_key) as started:
        yield started


@pytest.fixture
def workstation(login_key, tmp_path, monkeypatch):
    result = ssh_board.make_workstation(tmp_path / "home")
    login_key.write_private_key(result.home / ".ssh" / "id_ed25519")
    monkeypatch.setenv("HOME", str(result.home))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    return result


def hello(address):
    """What `echo` says there."""

    async def greet():
        async with connected(parse_address(address)) as session:
            return await finished(session, "greet", run_request(["echo", "hello"]))

    done = asyncio.run(greet())
    assert done.code == 0
    return done.out


def new_key(address):
    return asyncio.run(new_host_key(parse_address(address)))


def refused(address):
    with pytest.raises(MerinoError) as caught:
        hello(address)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@with_sshd
def test_a_new_host_is_refused_until_its_key_is_kept_as_ssh_writes_it(board, workstation):
    output = refused(board.address)
    assert "in no known_hosts file" in output and board.address in output
    key = new_key(board.address)
    assert key.fingerprint == board.host_key.get_fingerprint() and not workstation.known_hosts.exists()
    key.keep()
    assert workstation.known_hosts.read_text() == board.known_hosts_line
    assert hello(board.address) == "hello\n" and new_key(board.address) is None


@with_sshd
@pytest.mark.parametrize("kind", ["ssh-ed25519", "ssh-rsa"])
def test_another_key_than_the_known_one_is_refused(board, workstation, kind):
    other = asyncssh.generate_private_key(kind).export_public_key().decode()
    before = f"[127.0.0.1]:{board.port} {other}"
    workstation.known_hosts.write_text(before)
    output = refused(board.address)
    assert "set up anew" in output and "ssh-keygen -f" in output and f"[127.0.0.1]:{board.port}" in output
    assert new_key(board.address) is None and workstation.known_hosts.read_text() == before


@with_sshd
def test_the_printed_remedy_for_another_key_works(board, workstation):
    other = asyncssh.generate_private_key("ssh-ed25519").export_public_key().decode()
    workstation.known_hosts.write_text(f"[127.0.0.1]:{board.port} {other}")
    remedy = refused(board.address).partition("remove the old key: ")[2]
    subprocess.run(shlex.split(remedy), check=True, capture_output=True)
    new_key(board.address).keep()
    assert hello(board.address) == "hello\n"


@with_sshd
def test_a_key_that_is_not_accepted_there_says_how_to_bring_it(board, workstation):
    workstation.trusts(board)
    (workstation.home / ".ssh" / "id_ed25519").unlink()
    output = refused(f"nobody@{board.address}")
    assert "ssh-copy-id nobody@127.0.0.1" in output and "ssh-add" in output


@with_sshd
def test_the_ssh_config_names_host_port_key_and_known_hosts(board, workstation):
    (workstation.home / ".ssh" / "id_ed25519").rename(workstation.home / "board_key")
    (workstation.home / "hosts").write_text(board.known_hosts_line)
    (workstation.home / ".ssh" / "config").write_text(
        f"Host my-pi\n  HostName 127.0.0.1\n  Port {board.port}\n  IdentityFile ~/board_key\n"
        "  UserKnownHostsFile ~/hosts\n  ForwardAgent yes\n  RequestTTY force\n"
    )
    assert hello("my-pi") == "hello\n"


@with_sshd
def test_no_entry_of_the_ssh_config_switches_the_check_off(board, workstation):
    (workstation.home / ".ssh" / "config").write_text(
        "Host *\n  StrictHostKeyChecking no\n  UserKnownHostsFile none\n"
    )
    assert "in no known_hosts file" in refused(board.address)


@pytest.mark.usefixtures("workstation")
def test_nobody_listens_there():
    assert "refused" in refused(f"127.0.0.1:{free_port()}").lower()


def test_addresses():
    result = parse_address("pi@192.168.1.7:2222")
    assert (result.user, result.host, result.port) == ("pi", "192.168.1.7", 2222)
    result = parse_address("[fe80::1%eth0]:22")
    assert (result.user, result.host, result.port) == (None, "fe80::1%eth0", 22)
    assert parse_address("pi@my-pi/srv/the releases").root == "/srv/the releases"
    result = parse_address("my-pi")
    assert (result.user, result.host, result.port) == (None, "my-pi", None)


@pytest.mark.parametrize(
    "wrong",
    ["", "@", "a@", "fe80::1", "host:", "host:0", "host:65536", "host:1:2", "-oProxyCommand=x", "-x@host", "a b",
     "h\x1b", "host/", "host//x", "host/x\n", "[::1", "h:\u0663", "host:22\n"],
)  # fmt: skip
def test_what_names_no_host_is_refused(wrong):
    with pytest.raises(MerinoError, match="names no host|no host has a port") as caught:
        parse_address(wrong)
    assert str(caught.value).isprintable()


def test_a_board_is_given_once():
    with pytest.raises(MerinoError, match="twice"):
        parse_addresses(["a", "b", "a"])


@given(st.text())
def test_nothing_of_a_board_steers_a_terminal(text):
    assert visible(text, None).isprintable() and len(visible(text)) <= 403
    assert all(one.isprintable() or one in "\n\t" for one in visible_text(text))
    if text.isprintable():
        assert visible_text(text) == text


@pytest.fixture
def trusting(board, workstation):
    """The board is known, and its cache empty."""
    workstation.trusts(board)
    if board.cache.is_file():
        board.cache.unlink()
    shutil.rmtree(board.cache, ignore_errors=True)


@pytest.fixture
def content():
    return random.Random(17).randbytes(SIZE)


@pytest.fixture
def source(content, tmp_path):
    (tmp_path / "model").write_bytes(content)
    result = source_of("model", content)
    return Source(result.name, tmp_path / "model", result.size_bytes, result.sha256)


def copied(board, source, sent=lambda *_: None):
    """Sends it over a new connection -> the path there."""

    async def run():
        async with connected(parse_address(board.address)) as there:
            return await send(there, INCOMING, source, sent)

    return asyncio.run(run())


@with_sshd
@pytest.mark.slow
@copying
def test_a_file_arrives_whole_and_a_second_time_nothing_is_sent(board, source, content):
    seen = []
    assert copied(board, source, lambda done, total: seen.append((done, total))) == f"{INCOMING}/model"
    place = board.cache / "incoming"
    assert (place / "model").read_bytes() == content
    assert [path.name for path in place.iterdir()] == ["model"]
    assert place.stat().st_mode & 0o777 == 0o700
    assert seen == sorted(seen) and seen[-1] == (SIZE, SIZE) and len(seen) > 3
    seen.clear()
    copied(board, source, lambda done, total: seen.append((done, total)))
    assert seen == [(SIZE, SIZE)]
    (place / "model").write_bytes(b"#" * SIZE)
    copied(board, source)
    assert (place / "model").read_bytes() == content, "a damaged file there is replaced"


@with_sshd
@pytest.mark.slow
@copying
def test_a_cut_connection_costs_only_what_had_not_arrived(board, source, content):
    """At random bytes sshd's process for the connection is killed. The next try goes on behind the part."""
    rng = random.Random(4)
    place = board.cache / "incoming"
    tries = resumed = 0
    while tries < 12 or (resumed < 3 and tries < 60):  # a busy machine may send much before a cut is noticed
        tries += 1
        (place / "model").unlink(missing_ok=True)
        at = rng.randrange(SIZE)
        with suppress(MerinoError):  # all may have arrived by then
            copied(board, source, lambda done, _, at=at: board.cut() if done >= at else None)
        part = left_alone(place / "model.part")
        if part is None:
            assert (place / "model").read_bytes() == content
            continue
        assert not (place / "model").exists()
        seen = []
        copied(board, source, lambda done, _, seen=seen: seen.append(done))
        assert seen[0] == min(SIZE, len(part) + transfer.SENT_AT_ONCE)
        assert (place / "model").read_bytes() == content
        resumed += len(part) > 0
    assert resumed >= 3


def left_alone(part):
    """The part, once the agent of the cut connection has let it go -> its bytes; None where there is none."""
    with suppress(FileNotFoundError), part.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        return part.read_bytes()  # it has its place meanwhile, where all had arrived
    return None


@with_sshd
@pytest.mark.slow
@copying
def test_a_part_goes_on_where_it_agrees(board, source, content):
    place = board.cache / "incoming"
    place.mkdir(parents=True)
    wrong = bytearray(content)
    wrong[SIZE // 2] ^= 1
    for part, begin in ((content[:99_999], 99_999), (bytes(wrong), 0), (content + b"more", 0), (b"#" * SIZE, 0)):
        (place / "model.part").write_bytes(part)
        (place / "model").unlink(missing_ok=True)
        seen = []
        copied(board, source, lambda done, _, seen=seen: seen.append(done))
        assert seen[0] == min(SIZE, begin + transfer.SENT_AT_ONCE)
        assert (place / "model").read_bytes() == content


@with_sshd
@pytest.mark.slow
@copying
def test_a_file_that_changes_here_meanwhile_never_takes_its_place(board, source, content):
    source.content.write_bytes(content[:-1] + b"#")
    with pytest.raises(MerinoError, match="others than those that were sent"):
        copied(board, source)
    source.content.write_bytes(content[:-1])
    with pytest.raises(MerinoError, match="became shorter"):
        copied(board, source)
    assert not (board.cache / "incoming" / "model").exists()


@with_sshd
@pytest.mark.slow
def test_a_chatty_login_shell_does_no_harm(tmp_path, monkeypatch):
    workstation = ssh_board.make_workstation(tmp_path / "home")
    monkeypatch.setenv("HOME", str(workstation.home))
    chatty = tmp_path / "shell"
    chatty.write_text('#!/bin/sh\necho "Welcome to {}"\nexec sh -c "$SSH_ORIGINAL_COMMAND"\n')
    chatty.chmod(0o755)
    with ssh_board.running(tmp_path / "board", workstation.key, more=f"ForceCommand {chatty}") as board:
        workstation.trusts(board)
        copied(board, source_of("small", b"data"))
        assert (board.cache / "incoming" / "small").read_bytes() == b"data"


@with_sshd
@pytest.mark.slow
def test_no_python_there_is_told(tmp_path, monkeypatch):
    workstation = ssh_board.make_workstation(tmp_path / "home")
    monkeypatch.setenv("HOME", str(workstation.home))
    (tmp_path / "bin").mkdir()
    with ssh_board.running(tmp_path / "board", workstation.key, path=tmp_path / "bin") as board:
        workstation.trusts(board)
        with pytest.raises(MerinoError, match="no python3.*apt install python3"):
            copied(board, source_of("small", b"data"))


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\\b", "a\0", "a\x1b"])
def test_a_name_that_is_a_path_is_refused_here(name):
    with pytest.raises(MerinoError):
        transfer.check_name(name)
