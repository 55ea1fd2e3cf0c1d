"""Whom a connection trusts and how it logs in, against OpenSSH's own sshd: known_hosts, --accept-new, config, keys."""

import asyncio
import shlex
import shutil
import subprocess

import asyncssh
import pytest
import ssh_board
from hypothesis import given
from hypothesis import strategies as st
from served import free_port

from merino_edge.delivery.ssh.command import finished
from merino_edge.delivery.ssh.connect import connected, parse_address, parse_addresses
from merino_runtime.errors import MerinoError
from merino_runtime.io.visible import visible, visible_text

with_sshd = pytest.mark.skipif(not ssh_board.SSHD, reason=ssh_board.REASON)


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


def hello(address, accept_new=False, note=lambda _: None):
    """What `echo` says there."""

    async def greet():
        async with connected(parse_address(address), accept_new, note) as session:
            return await finished(session, "greet", {"do": "run", "arguments": ["echo", "hello"], "stdin_bytes": 0})

    done = asyncio.run(greet())
    assert done.code == 0
    return done.out


def refused(*arguments, **keys):
    with pytest.raises(MerinoError) as caught:
        hello(*arguments, **keys)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@with_sshd
def test_a_known_host_is_greeted(board, workstation):
    workstation.trusts(board)
    assert hello(board.address) == "hello\n"


@with_sshd
def test_an_unknown_host_is_refused_and_the_message_names_its_fingerprint(board, workstation):
    output = refused(board.address)
    assert board.host_key.get_fingerprint() in output and "--accept-new" in output and board.address in output
    assert not workstation.known_hosts.exists()


@with_sshd
def test_accept_new_keeps_the_key_as_ssh_writes_it_and_only_once(board, workstation):
    messages = []
    for _ in range(2):
        assert hello(board.address, accept_new=True, note=messages.append) == "hello\n"
    assert workstation.known_hosts.read_text() == board.known_hosts_line
    assert len(messages) == 1 and board.host_key.get_fingerprint() in messages[0]
    assert hello(board.address) == "hello\n"


@with_sshd
@pytest.mark.parametrize("accept_new", [False, True])
@pytest.mark.parametrize("kind", ["ssh-ed25519", "ssh-rsa"])
def test_another_key_than_the_known_one_is_refused_in_any_case(board, workstation, accept_new, kind):
    other = asyncssh.generate_private_key(kind).export_public_key().decode()
    before = f"[127.0.0.1]:{board.port} {other}"
    workstation.known_hosts.write_text(before)
    output = refused(board.address, accept_new=accept_new)
    assert "set up anew" in output and "ssh-keygen -f" in output and f"[127.0.0.1]:{board.port}" in output
    assert workstation.known_hosts.read_text() == before


@with_sshd
def test_the_printed_remedy_for_another_key_works(board, workstation):
    other = asyncssh.generate_private_key("ssh-ed25519").export_public_key().decode()
    workstation.known_hosts.write_text(f"[127.0.0.1]:{board.port} {other}")
    remedy = refused(board.address).partition("remove the old key: ")[2]
    subprocess.run(shlex.split(remedy), check=True, capture_output=True)
    assert hello(board.address, accept_new=True) == "hello\n"


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
    assert "--accept-new" in refused(board.address)


@with_sshd
def test_a_login_key_may_come_from_an_agent(board, workstation, tmp_path, monkeypatch):
    if not shutil.which("ssh-agent"):
        pytest.skip("no ssh-agent here")
    key = workstation.home / ".ssh" / "id_ed25519"
    agent = subprocess.Popen(["ssh-agent", "-D", "-a", tmp_path / "agent"], stdout=subprocess.DEVNULL)
    try:
        monkeypatch.setenv("SSH_AUTH_SOCK", str(tmp_path / "agent"))
        while not (tmp_path / "agent").exists():
            assert agent.poll() is None
        key.chmod(0o600)
        subprocess.run(["ssh-add", key], check=True, capture_output=True)
        key.unlink()
        workstation.trusts(board)
        assert hello(board.address) == "hello\n"
    finally:
        agent.kill()
        agent.wait()


@pytest.mark.usefixtures("workstation")
def test_nobody_listens_there():
    assert "refused" in refused(f"127.0.0.1:{free_port()}").lower()


def test_addresses():
    result = parse_address("pi@192.168.1.7:2222")
    assert (result.user, result.host, result.port) == ("pi", "192.168.1.7", 2222)
    result = parse_address("[fe80::1%eth0]:22")
    assert (result.user, result.host, result.port) == (None, "fe80::1%eth0", 22)
    result = parse_address("my-pi")
    assert (result.user, result.host, result.port) == (None, "my-pi", None)


@pytest.mark.parametrize(
    "wrong",
    ["", "@", "a@", "fe80::1", "host:", "host:0", "host:65536", "host:1:2", "-oProxyCommand=x", "-x@host", "a b",
     "h\x1b", "host/x", "[::1", "h:\u0663", "host:22\n"],
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
