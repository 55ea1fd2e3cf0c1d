"""Files onto a board over a real sshd: whole, by hash, resumed where a connection was cut, one at a time."""

import asyncio
import fcntl
import os
import random
from contextlib import suppress

import pytest
import ssh_board

from merino_edge.delivery.ssh import transfer
from merino_edge.delivery.ssh.command import finished
from merino_edge.delivery.ssh.connect import connected, parse_address
from merino_edge.delivery.ssh.transfer import INCOMING, Source, piece_bytes, send, source_of
from merino_runtime.delivery import agent
from merino_runtime.errors import MerinoError

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not ssh_board.SSHD, reason=ssh_board.REASON)]

SECONDS = f"300.{os.getpid()}"  # of a sleep that no other test has
SIZE = 3 * transfer.LEAST_PIECE_BYTES + 12345


@pytest.fixture
def board(tmp_path, monkeypatch):
    workstation = ssh_board.make_workstation(tmp_path / "home")
    monkeypatch.setenv("HOME", str(workstation.home))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    with ssh_board.running(tmp_path / "board", workstation.key) as started:
        workstation.trusts(started)
        yield started


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


def test_bytes_are_sent_as_a_file_is_and_nothing_at_all_too(board):
    for data in (b"", b"x", b"\x00\xff\r\n" * 99):
        copied(board, source_of("small", data))
        assert (board.cache / "incoming" / "small").read_bytes() == data


def test_a_cut_connection_costs_only_what_had_not_arrived(board, source, content):
    """At random bytes sshd's process for the connection is killed. The next try goes on at the last whole piece."""
    rng, piece = random.Random(4), transfer.LEAST_PIECE_BYTES
    place = board.cache / "incoming"
    resumed = 0
    for _ in range(12):
        (place / "model").unlink(missing_ok=True)
        at = rng.randrange(SIZE)
        with suppress(MerinoError):  # all may have arrived by then
            copied(board, source, lambda done, _, at=at: board.cut() if done >= at else None)
        part = left_alone(place / "model.part")
        if part is None:
            assert (place / "model").read_bytes() == content
            continue
        assert not (place / "model").exists()
        agreed = len(part) // piece * piece
        seen = []
        copied(board, source, lambda done, _, seen=seen: seen.append(done))
        assert seen[0] == min(SIZE, agreed + transfer.SENT_AT_ONCE)
        assert (place / "model").read_bytes() == content
        resumed += agreed > 0
    assert resumed >= 3


def left_alone(part):
    """The part, once the agent of the cut connection has let it go -> its bytes; None where there is none."""
    with suppress(FileNotFoundError), part.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        return part.read_bytes()  # it has its place meanwhile, where all had arrived
    return None


def test_a_part_goes_on_where_it_agrees(board, source, content):
    place = board.cache / "incoming"
    place.mkdir(parents=True)
    piece = transfer.LEAST_PIECE_BYTES
    assert piece_bytes(SIZE) == piece
    wrong = bytearray(content)
    wrong[piece + 7] ^= 1
    for part, begin in (
        (content[: 2 * piece + 99], 2 * piece), (bytes(wrong), piece), (content + b"more", 3 * piece), (b"#" * SIZE, 0),
    ):  # fmt: skip
        (place / "model.part").write_bytes(part)
        (place / "model").unlink(missing_ok=True)
        seen = []
        copied(board, source, lambda done, _, seen=seen: seen.append(done))
        assert seen[0] == min(SIZE, begin + transfer.SENT_AT_ONCE)
        assert (place / "model").read_bytes() == content


def test_a_damaged_file_there_is_replaced(board, source, content):
    copied(board, source)
    (board.cache / "incoming" / "model").write_bytes(b"#" * SIZE)
    copied(board, source)
    assert (board.cache / "incoming" / "model").read_bytes() == content


def test_a_file_that_changes_here_meanwhile_never_takes_its_place(board, source, content):
    source.content.write_bytes(content[:-1] + b"#")
    with pytest.raises(MerinoError, match="others than those that were sent"):
        copied(board, source)
    source.content.write_bytes(content[:-1])
    with pytest.raises(MerinoError, match="became shorter"):
        copied(board, source)
    assert not (board.cache / "incoming" / "model").exists()


def test_a_second_copy_of_the_same_file_waits_for_none(board, source):
    async def both():
        async with connected(parse_address(board.address)) as one, connected(parse_address(board.address)) as other:
            started = asyncio.Event()
            first = asyncio.ensure_future(send(one, INCOMING, source, lambda *_: started.set()))
            await started.wait()
            try:
                return await asyncio.gather(first, send(other, INCOMING, source), return_exceptions=True)
            finally:
                first.cancel()

    result = asyncio.run(both())
    assert result[0] == f"{INCOMING}/model"
    assert result[1] == result[0] or "another copy" in str(result[1])


def test_a_full_disk_is_told_before_anything_is_sent(board, source):
    huge = Source(source.name, source.content, 2**60, source.sha256)
    with pytest.raises(MerinoError, match="MB are free there"):
        copied(board, huge)


def test_a_folder_that_cannot_be_written_is_told(board, source):
    board.cache.parent.mkdir()
    board.cache.write_text("a file in the folder's place")
    with pytest.raises(MerinoError, match="cannot copy model"):
        copied(board, source)


def test_what_runs_there_ends_with_the_connection(board):
    async def cut():
        async with connected(parse_address(board.address)) as there:
            request = {"do": "run", "arguments": ["sleep", SECONDS], "stdin_bytes": 0}
            running = asyncio.ensure_future(finished(there, "wait", request))
            while not sleepers():
                await asyncio.sleep(0.05)
            running.cancel()

    asyncio.run(cut())
    for _ in range(200):
        if not sleepers():
            break
        asyncio.run(asyncio.sleep(0.05))
    assert sleepers() == []


def sleepers():
    results = []
    for path in ssh_board.Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            if path.read_bytes() == f"sleep\0{SECONDS}\0".encode():
                results.append(path.parent.name)
    return results


def test_the_prompt_goes_in_and_a_code_comes_out(board):
    async def run(arguments, data=b""):
        async with connected(parse_address(board.address)) as there:
            request = {"do": "run", "arguments": arguments, "stdin_bytes": len(data)}
            return await finished(there, "run it", request, data)

    assert asyncio.run(run(["cat"], b"a\nb")).out == "a\nb"
    assert asyncio.run(run([agent.PYTHON, "-c", "import sys; sys.exit('why\x1b[2J')"])).last_words == "why\\x1b[2J"
    assert asyncio.run(run(["false"])).code == 1
    assert asyncio.run(run(["/no/such/program"])).code == 127
    assert asyncio.run(run(["true"], b"x" * 10**6)).code == 0


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


