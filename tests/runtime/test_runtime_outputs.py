"""Outputs: the old content or the new after any fault, links and devices as they were, and no file left behind."""
import errno
import io
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading

import pytest
from few_examples import examples
from hypothesis import given
from hypothesis import strategies as st

import merino_runtime
from merino_runtime.errors import MerinoError
from merino_runtime.io import outputs, scratch
from merino_runtime.io.outputs import append_output, check_output, check_room, new_folder, write_output

fcntl = pytest.importorskip("fcntl", reason="locks, devices and mounts are Unix's")

ROOT = os.path.dirname(os.path.dirname(merino_runtime.__file__))
NAME = "out.json"
MEMORY = "/dev/shm" if os.path.isdir("/dev/shm") else None  # syncing a disk would take most of the time
# Every call by which the writer changes the file system or asks it, besides writing: that is `Counted`'s.
CALLS = [(os, "mkdir"), (os, "open"), (os, "listdir"), (os, "fsync"), (os, "chmod"), (os, "chown"), (os, "rename"),
         (os, "replace"), (os, "unlink"), (os, "rmdir"), (fcntl, "flock"), (shutil, "disk_usage")]


class Faults:
    """Lets `happen` happen at the system call number `at`, before it or behind it."""

    def __init__(self, at, happen, behind=False):
        self.left, self.happen, self.behind = at, happen, behind

    def wrapped(self, call):
        def run(*arguments, **options):
            hit = self.left == 0
            self.left -= 1
            if hit and not self.behind:
                self.happen()
            result = call(*arguments, **options)
            if hit and self.behind:
                self.happen()
            return result
        return run

    def opened(self, path, mode):
        """In place of `open`: a file that writes 8 bytes at a time, each of them a call that counts."""
        if mode != "xb":
            return open(path, mode)
        raw = io.FileIO(path, mode)
        counted = Counted(raw, self)
        return io.BufferedWriter(counted, 8)

    def __enter__(self):
        self.patch = pytest.MonkeyPatch() if hasattr(pytest, "MonkeyPatch") else None
        if self.patch is None:
            pytest.skip("this pytest has no MonkeyPatch")
        for module, name in CALLS:
            self.patch.setattr(module, name, self.wrapped(getattr(module, name)))
        self.patch.setattr(outputs, "open", self.opened, raising=False)

    def __exit__(self, *_):
        self.patch.undo()


class Counted(io.RawIOBase):
    def __init__(self, raw, faults):
        super().__init__()
        self.raw, self.put = raw, faults.wrapped(raw.write)

    def writable(self):
        return True

    def write(self, data):
        return self.put(bytes(data)[:8])

    def fileno(self):
        return self.raw.fileno()

    def close(self):
        if not self.closed:
            self.raw.close()
        super().close()


def write_file(path, content):
    with outputs.open_output(path, size_bytes=len(content)) as file:
        file.write(content)


def write_folder(path, content):
    with new_folder(path, size_bytes=len(content)) as made:
        opened = getattr(outputs, "open", open)  # counted, where faults are
        with opened(os.path.join(made, "a"), "xb") as file:
            file.write(content)


def content_of(path):
    """Of a file, or of a folder's only file; None where there is nothing."""
    if os.path.isdir(path):
        assert os.listdir(path) == ["a"]
        path = os.path.join(path, "a")
    if not os.path.exists(path):
        return None
    with open(path, "rb") as file:
        return file.read()


def fail(number):
    def happen():
        raise OSError(number, os.strerror(number))
    return happen


KINDS = pytest.mark.parametrize("write", [write_file, write_folder])
FEW = examples(30, by_day=10)
CONTENTS = st.tuples(st.none() | st.binary(max_size=40), st.binary(max_size=40))
ERRORS = st.sampled_from([errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO])


@KINDS
@FEW
@given(contents=CONTENTS, number=ERRORS, behind=st.booleans())
def test_a_fault_of_any_call_leaves_the_old_content_or_the_new(write, contents, number, behind):
    """It is new where no error is raised and old where one is; what cannot be removed is, by the next writer."""
    old, new = contents
    at, missed = 0, False
    while not missed:
        with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
            path = os.path.join(folder, NAME)
            if old is not None:
                write(path, old)
            faults, error = Faults(at, fail(number), behind), None
            with faults:
                try:
                    write(path, new)
                except MerinoError as raised:
                    error = raised
            if error:
                assert os.strerror(number) in str(error) and path in str(error) and "\n" not in str(error)
            assert content_of(path) == new if not error else content_of(path) in ((old, new) if behind else (old,))
            write(path, b"again")
            assert content_of(path) == b"again" and os.listdir(folder) == [NAME]
        at, missed = at + 1, faults.left >= 0
    assert at > 8, "it counted the calls"


def serve_kills():
    """Forks for each line of stdin, writes in the fork, and answers whether it was killed at the call that was named.

    A process of its own: forking pytest's, which has all libraries of all tests in memory, takes ten times as long.
    """
    for line in sys.stdin:
        name, path, content, at, behind = json.loads(line)
        child = os.fork()
        if not child:
            with Faults(at, lambda: os.kill(os.getpid(), signal.SIGKILL), behind):
                {"write_file": write_file, "write_folder": write_folder}[name](path, bytes(bytearray(content)))
            os._exit(0)
        print(json.dumps(os.waitpid(child, 0)[1] != 0), flush=True)


@pytest.fixture(scope="module")
def killer():
    """A function: (a writer's name, path, content, number of the call, behind it) -> whether it came so far."""
    call = [sys.executable, "-c", f"from {__name__} import serve_kills; serve_kills()"]
    here = os.path.dirname(os.path.abspath(__file__))
    paths = os.pathsep.join([ROOT, here, os.path.dirname(here)])
    process = subprocess.Popen(call, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                               env=dict(os.environ, PYTHONPATH=paths))

    def killed(name, path, content, at, behind):
        process.stdin.write(json.dumps([name, path, list(content), at, behind]).encode("ascii") + b"\n")
        process.stdin.flush()
        return json.loads(process.stdout.readline().decode("ascii"))

    yield killed
    process.communicate()
    assert process.returncode == 0


@KINDS
@FEW
@given(contents=CONTENTS, behind=st.booleans())
def test_a_process_killed_at_any_call_leaves_the_old_content_or_the_new(killer, write, contents, behind):
    """Between the two renames of a folder there is none: sweeping puts the old one back."""
    old, new = contents
    at, killed = 0, True
    while killed:
        with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
            path = os.path.join(folder, NAME)
            if old is not None:
                write(path, old)
            killed = killer(write.__name__, path, new, at, behind)
            scratch.sweep(path)
            assert content_of(path) in (old, new) and (killed or content_of(path) == new)
            assert os.listdir(folder) in ([], [NAME])
            write(path, b"again")
            assert content_of(path) == b"again" and os.listdir(folder) == [NAME]
        at += 1
    assert at > 8, "it counted the calls"


HOLDER = """
import os, sys
from merino_runtime.io import outputs
with getattr(outputs, sys.argv[1])(sys.argv[2]) as place:
    print("made", flush=True)
    sys.stdin.read()
"""


def holder(how, path):
    """A process that is in the middle of writing `path`."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER, how, str(path)], stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE, env=dict(os.environ, PYTHONPATH=ROOT))
    assert process.stdout.readline() == b"made\n"
    return process


def end(process, number=None):
    if number is not None:
        process.send_signal(number)
    process.communicate()


@pytest.mark.parametrize("how", ["open_output", "new_folder", "scratch_folder"])
def test_what_a_killed_process_left_is_swept_and_what_a_living_one_writes_is_not(how, tmp_path):
    path = tmp_path / "out"
    dead, alive, other = holder(how, path), holder(how, path), holder(how, tmp_path / "out.b")
    end(dead, signal.SIGKILL)
    end(other, signal.SIGKILL)
    mine, users = tmp_path / ".out.notes", tmp_path / ".out.a.b.merino-new"
    for folder in (mine, users):
        folder.mkdir()
    assert len(os.listdir(str(tmp_path))) == 5
    with outputs.scratch_folder(str(path)):
        pass
    left = set(os.listdir(str(tmp_path))) - {mine.name, users.name}
    assert len(left) == 2 and {name.rsplit(".", 2)[0] for name in left} == {".out", ".out.b"}
    end(alive)
    assert (how == "scratch_folder") != path.exists(), "the living one was not disturbed"
    write_output(str(tmp_path / "out.b"), "")
    assert {name for name in os.listdir(str(tmp_path)) if name.endswith(scratch.SUFFIX)} == {users.name}


def test_a_link_is_followed_and_stays(tmp_path):
    for there in (True, False):
        target, link = tmp_path / "far" / f"{there}", tmp_path / f"link-{there}"
        target.parent.mkdir(exist_ok=True)
        link.symlink_to(os.path.join("far", target.name))
        if there:
            target.write_text("old")
        write_output(str(link), "new")
        assert link.is_symlink() and not target.is_symlink() and target.read_text() == "new"
    assert sorted(os.listdir(str(tmp_path / "far"))) == ["False", "True"]
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(MerinoError, match="loop: Too many levels of symbolic links. Its links lead in a circle"):
        write_output(str(tmp_path / "loop"), "new")


def test_mode_and_owner_of_the_old_file_are_kept_and_a_new_one_has_the_users(tmp_path):
    path = tmp_path / NAME
    before = os.umask(0o027)
    try:
        write_output(str(path), "old")
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    path.chmod(0o604)
    if os.geteuid() == 0:
        os.chown(str(path), 1234, 2345)
    write_output(str(path), "new")
    result = path.stat()
    assert stat.S_IMODE(result.st_mode) == 0o604
    assert os.geteuid() != 0 or (result.st_uid, result.st_gid) == (1234, 2345)


def device(path, kind, number):
    try:
        os.mknod(str(path), kind | 0o666, number)
        with open(str(path), "rb" if kind == stat.S_IFBLK else "wb"):
            pass
    except OSError as error:
        if kind == stat.S_IFCHR or not os.path.exists(str(path)):
            pytest.skip(f"no device can be made here: {error.strerror}")
    return str(path)


def test_a_character_device_is_written_into_and_stays(tmp_path):
    null = device(tmp_path / "null", stat.S_IFCHR, os.makedev(1, 3))
    check_output(null)
    write_output(null, "new")
    append_output(null, "new\n")
    assert stat.S_ISCHR(os.stat(null).st_mode) and os.listdir(str(tmp_path)) == ["null"]


def test_a_full_device_is_a_message(tmp_path):
    full = device(tmp_path / "full", stat.S_IFCHR, os.makedev(1, 7))
    for write in (write_output, append_output):
        with pytest.raises(MerinoError, match="cannot write .*full: No space left on device. Free space"):
            write(full, "new")


def test_disks_sockets_and_folders_are_refused_before_and_then(tmp_path):
    block = device(tmp_path / "disk", stat.S_IFBLK, os.makedev(7, 255))
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "socket"))
        for path, word in ((block, "disk"), (str(tmp_path / "socket"), "socket"), (str(tmp_path), "folder")):
            for refuse in (check_output, lambda path: write_output(path, "new")):
                with pytest.raises(MerinoError, match=f"it is a .*{word}.* Name a file"):
                    refuse(path)
    assert sorted(os.listdir(str(tmp_path))) == ["disk", "socket"]


def test_a_pipe_is_written_into_and_a_reader_that_went_away_is_a_message(tmp_path):
    path, read = str(tmp_path / "pipe"), []
    os.mkfifo(path)
    check_output(path)  # opens nothing: there is no reader yet

    def reading(most):
        with open(path, "rb") as file:
            read.append(file.read(most))

    for most, content in ((-1, "new"), (1, "new" * 100000)):
        reader = threading.Thread(target=reading, args=(most,))
        reader.start()
        if most == -1:
            write_output(path, content)
        else:
            with pytest.raises(MerinoError, match="cannot write .*pipe: Broken pipe. What read from it has ended"):
                write_output(path, content)
        reader.join()
    assert read[0] == b"new" and stat.S_ISFIFO(os.stat(path).st_mode)


STREAMS = """
import os, sys
from merino_runtime.io.outputs import append_output, is_stdout, write_output
from merino_runtime.io.streams import exit_code
def work():
    print("before")
    (append_output if sys.argv[2] == "append" else write_output)(sys.argv[1], "the output\\n")
    print("after")
    assert is_stdout(sys.argv[1])
    return 0
sys.exit(exit_code(work))
"""


@pytest.mark.parametrize("how", ["write", "append"])
@pytest.mark.parametrize("named", ["-", "link"])
@pytest.mark.parametrize("into", ["pipe", "file", "appended"])
def test_stdout_is_written_into_in_order(tmp_path, how, named, into):
    """The link is what /dev/stdout is; with `> FILE` it leads to FILE, which must not be replaced under the shell."""
    link, file = tmp_path / "link", tmp_path / "file"
    link.symlink_to("/proc/self/fd/1")
    file.write_text("old\n")
    call = [sys.executable, "-c", STREAMS, str(link) if named == "link" else "-", how]
    expected = "before\nthe output\nafter\n"
    environment = dict(os.environ, PYTHONPATH=ROOT)
    if into == "pipe":
        assert subprocess.check_output(call, env=environment).decode() == expected
    else:
        with open(str(file), "ab" if into == "appended" else "wb") as stdout:
            assert subprocess.call(call, env=environment, stdout=stdout) == 0
        assert file.read_text() == ("old\n" if into == "appended" else "") + expected
    assert link.is_symlink() and sorted(os.listdir(str(tmp_path))) == ["file", "link"]


def test_a_file_that_this_user_may_not_write_is_refused():
    folder = tempfile.mkdtemp()  # pytest's own folder is for its user alone
    path = os.path.join(folder, NAME)
    try:
        write_output(path, "old")
        os.chmod(path, 0o444)
        if os.geteuid() == 0:
            for owned in (folder, path):
                os.chown(owned, 65534, 65534)
            os.seteuid(65534)
        for refuse in (check_output, lambda path: write_output(path, "new")):
            with pytest.raises(MerinoError, match="cannot write .*: Permission denied. Name a path that you may write"):
                refuse(path)
        os.chmod(folder, 0o555)
        with pytest.raises(MerinoError, match="Permission denied"):
            check_output(os.path.join(folder, "another"))
    finally:
        os.seteuid(os.getuid())
        assert content_of(path) == b"old" and os.listdir(folder) == [NAME]
        os.chmod(folder, 0o755)
        shutil.rmtree(folder)


@pytest.fixture
def disk(tmp_path):
    """A file system of 256 KB, and a function that mounts it read-only."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(*options):
        done = subprocess.Popen(["mount", *options], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        output = done.communicate()[0].decode()
        if done.returncode:
            pytest.skip(f"nothing can be mounted here: {output}")

    try:
        mount("-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder))
    except FileNotFoundError:
        pytest.skip("there is no `mount` here")
    yield folder, lambda: mount("-o", "remount,ro", str(folder))
    subprocess.check_call(["umount", str(folder)])


@KINDS
def test_a_full_disk_is_a_message_and_leaves_what_was_there(disk, write):
    folder, _ = disk
    path = str(folder / NAME)
    write(path, b"old")
    with pytest.raises(MerinoError, match=f"cannot write {path}: 1.0 MB are needed and 0.2 MB are free there. Free sp"):
        write(path, bytes(2 ** 20))
    with pytest.raises(MerinoError, match="1.0 MB are needed"):
        check_room(path, str(folder), 2 ** 20)
    with pytest.raises(MerinoError, match=f"cannot write {path}: No space left on device. Free space on that disk"):
        if write is write_file:
            write_output(path, bytes(2 ** 20))  # of unknown size
        else:
            with new_folder(path) as made, open(os.path.join(made, "a"), "wb") as file:
                file.write(bytes(2 ** 20))
    assert content_of(path) == b"old" and os.listdir(str(folder)) == [NAME]


@KINDS
def test_a_read_only_disk_is_a_message_before_and_then(disk, write):
    folder, make_read_only = disk
    path = str(folder / NAME)
    write(path, b"old")
    make_read_only()
    for refuse in (lambda: check_room(path, str(folder)), lambda: write(path, b"new")):
        with pytest.raises(MerinoError, match=f"cannot write {path}: Read-only file system. .*another"):
            refuse()
    if write is write_file:
        with pytest.raises(MerinoError, match="Read-only file system"):
            check_output(path)
        with pytest.raises(MerinoError, match="Read-only file system"):
            append_output(path, "more\n")
    assert content_of(path) == b"old" and os.listdir(str(folder)) == [NAME]


def test_lines_are_appended_whole_where_a_power_cut_left_a_torn_one(tmp_path):
    path = tmp_path / "lines"
    for text in ("1\n", "2\n"):
        append_output(str(path), text)
    with open(str(path), "a") as file:
        file.write("tor")
    append_output(str(path), "3\n")
    assert path.read_text() == "1\n2\ntor\n3\n"
