"""Commands of `merino-edge` in processes of their own, forked from one that has loaded what they import: `design` takes
0.3 s of CPU in place of 1.5, `export` 1 s in place of 6.

    run(words, cwd=..., first=CODE)     as subprocess.run does, with the command's output as text; CODE may be SMALL
    Forked(words, stdout=..., ...)      as subprocess.Popen does, on open file descriptors
    program(path, first=CODE)           a program `merino-edge` for the shells of a test

Such a process has arguments, environment, folder, streams and signals of its own. Not tried here, but by the files that
start Python itself: that a command imports what it needs and no more, and how Python ends.
"""

import atexit
import contextlib
import dataclasses
import functools
import gc
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import traceback

HANDLE = "MERINO_TESTS_FORKED"  # of the socket, in what a shell of the tests starts
PROGRAM = """#!{python} -S
import sys
sys.path.insert(0, {here!r})
import forked
sys.exit(forked.Forked(sys.argv[1:], stdin=0, stdout=1, stderr=2, first={first!r}).wait())
"""
# What each process has loaded, and what those of one command have besides.
ALL = ("merino_edge.cli.app", "merino_edge.cli.tables", "merino_runtime.api", "numpy")
DESIGN = ("merino_edge.cli.design_tables", "merino_edge.design.recommend", "scipy.optimize")
SSH = ("merino_edge.cli.over_ssh", "merino_edge.delivery.ssh.flash", "merino_edge.delivery.ssh.remote_chat")
RUN = ("merino_runtime.backends.onnx", "merino_runtime.chat.session", "onnxruntime", "tokenizers")
TORCH = ("merino_edge.export.export", "merino_edge.export.source")
BY_COMMAND = {
    "design": DESIGN, "recommend": DESIGN, "flash": SSH, "calibrate": (*SSH, *DESIGN),
    "generate": (*RUN, *SSH), "chat": (*RUN, *SSH), "bench": (*RUN, *SSH, *TORCH),
    "deploy": (*DESIGN, *RUN, *SSH, *TORCH),
    "export": (*DESIGN, *RUN, *TORCH), "train": (*TORCH, "merino_edge.training.train"),
}  # fmt: skip

SMALL = "import forked; forked.search_less()"


def search_less(put=setattr):
    """`recommend` of this process searches few decoders by default. put: as setattr."""
    from merino_edge.design import recommend, space

    less = dataclasses.replace(
        space.SPACE, depths=(3, 4, 8, 16), widths=(64, 128, 256, 512, 1024), ffn_ratios=(1.0, 2.0, 4.0),
        kv_heads=(1, 4, None),
    )  # fmt: skip
    search = recommend.recommend
    put(search, "__kwdefaults__", {**search.__kwdefaults__, "space": less})


def ask_less(put=setattr):
    """An export of this process compares 4 answers of the model with the bundle's instead of 64, which take most of its
    time. What they tell: test_calibrate.py."""
    from merino_edge.export import divergence, export

    put(export, "answers_of", functools.partial(export.answers_of, questions=divergence.QUESTIONS[::16]))


@functools.lru_cache(maxsize=1)
def server():
    """A socket to the process that is forked; it ends with this one."""
    if HANDLE in os.environ:
        return socket.socket(fileno=int(os.environ[HANDLE]))
    own, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    path = os.pathsep.join([os.path.dirname(__file__), *filter(None, sys.path)])
    subprocess.Popen(
        [sys.executable, "-c", f"import forked; forked.serve({other.fileno()})"], pass_fds=[other.fileno()],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    other.close()
    return own


class Forked:
    """A started command. stdin, stdout, stderr: file descriptors; first: code that runs before it."""

    def __init__(self, words, first="", cwd=None, env=None, stdin=None, stdout=None, stderr=None):
        request = {"words": [str(word) for word in words], "first": first, "cwd": str(cwd or os.getcwd()),
                   "env": dict(os.environ if env is None else env)}  # fmt: skip
        read, write = os.pipe()
        with open(os.devnull, "r+b") as null, tempfile.TemporaryFile() as file:
            file.write(json.dumps(request).encode())
            file.flush()
            streams = [null.fileno() if each is None else each for each in (stdin, stdout, stderr)]
            socket.send_fds(server(), [b"start"], [file.fileno(), write, *streams])
        os.close(write)
        self.status = os.fdopen(read, encoding="ascii")
        self.pid = int(self.status.readline())

    def wait(self):
        """The exit code, as subprocess has it."""
        with self.status:
            return int(self.status.readline())


def run(words, **options):
    """subprocess.CompletedProcess, with stdout and stderr as text where they were not given."""
    with contextlib.ExitStack() as opened:
        files = {name: opened.enter_context(tempfile.TemporaryFile()) for name in ("stdout", "stderr")}
        code = Forked(words, **{**{name: file.fileno() for name, file in files.items()}, **options}).wait()
        output = {name: b"" if file.seek(0) else file.read().decode() for name, file in files.items()}
    return subprocess.CompletedProcess(words, code, **output)


def program(path, first=""):
    """Writes it. -> what subprocess.run needs besides so that it works in what it starts."""
    path.write_text(PROGRAM.format(python=sys.executable, here=os.path.dirname(os.path.abspath(__file__)), first=first))
    path.chmod(0o755)
    return {"pass_fds": [server().fileno()]}, {HANDLE: str(server().fileno())}


def serve(handle):
    """Forks for each request until nobody asks any more."""
    requested = socket.socket(fileno=handle)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a ctrl-C at the terminal is for the tests
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # whose end nobody waits for
    load(ALL)
    while True:
        message, handles, *_ = socket.recv_fds(requested, 16, 5)
        if not message:
            return
        with os.fdopen(handles[0], "rb") as file:
            file.seek(0)
            request = json.load(file)
        load(BY_COMMAND.get(request["words"][0] if request["words"] else "", ()))
        if os.fork() == 0:
            requested.close()
            watch(request, *handles[1:])
        for each in handles[1:]:
            os.close(each)


def load(names):
    """Imports these modules, and leaves what is there out of each search for cycles."""
    new = [name for name in names if name not in sys.modules]
    for name in new:
        importlib.import_module(name)
    if "merino_edge.export.export" in new:
        ask_less()
    if new:
        gc.collect()
        gc.freeze()


def watch(request, pipe, *streams):
    """Starts the command, and writes its id and its exit code to the pipe."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    pid = os.fork()
    if pid == 0:
        os.close(pipe)
        become(request, streams)
    for each in streams:
        os.close(each)
    os.write(pipe, b"%d\n" % pid)
    os.write(pipe, b"%d\n" % os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    os._exit(0)


def become(request, streams):
    for place, each in enumerate(streams):
        os.dup2(each, place)
        os.close(each)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    sys.argv[:] = ["merino-edge", *request["words"]]
    sys.stdin, sys.stdout = open(0, closefd=False), open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115
    code = 0
    try:
        exec(request["first"], {})
        importlib.import_module("merino_edge.cli.app").main()
    except SystemExit as ended:
        code = ended.code or 0
    except BaseException:
        traceback.print_exc()
        code = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    os._exit(code)
