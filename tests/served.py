"""A server as a process of its own on loopback, and the requests of tests to it. Runs on Python 3.6."""
import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
WAIT_S = 60
# For `before`: an answer takes seconds, so that a test on a busy machine can watch it or leave it.
SLOW = """
import time
from merino_runtime.serving.scheduler import Scheduler
turn = Scheduler._turn
Scheduler._turn = lambda self, job: (time.sleep(0.05), turn(self, job))[1]
"""


def free_port():
    """A port of loopback on which nothing listens."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


class Server:
    """options: of the verb `serve`. before: Python that runs first, such as a shorter limit. python: a path, or the
    words of a command."""

    def __init__(self, *bundles, options=(), python=sys.executable, wait=True, threads=1, before="", **environment):
        self.log = tempfile.TemporaryFile()  # noqa: SIM115, closed by `close`
        program = before + "\nimport sys; from merino_bench.__main__ import main; sys.exit(main())"
        words = [python] if isinstance(python, str) else python
        command = [*words, "-c", program, "serve", *map(str, bundles), "--port", "0", f"--set=threads={threads}",
                   *map(str, options)]
        self.process = subprocess.Popen(command, stderr=self.log, stdout=self.log,
                                        env=dict(os.environ, PYTHONPATH=os.path.join(ROOT, "runtime"), **environment))
        self.port = int(self._match_in_log(r"on http://\S+:(\d+)"))
        self.key = None
        while wait and not self.ready():
            time.sleep(0.05)

    def ready(self):
        try:
            return self.call("GET", "/health")[0] == 200
        except OSError as error:
            raise AssertionError("the server has ended: " + self.printed()) from error

    def printed(self):
        self.log.seek(0)
        return self.log.read().decode("utf-8", "replace")

    def _match_in_log(self, pattern):
        end = time.time() + WAIT_S
        while time.time() < end and self.process.poll() is None:
            match = re.search(pattern, self.printed())
            if match:
                return match.group(1)
            time.sleep(0.02)
        raise AssertionError("the server did not start: " + self.printed())

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def open(self, method, path, body=None, headers=(), timeout=WAIT_S):
        """The connection and its response, not read yet."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        given = dict(headers)
        if self.key:
            given["Authorization"] = "Bearer " + self.key
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode("utf-8")
        connection.request(method, path, data, given)
        return connection, connection.getresponse()

    def call(self, method, path, body=None, headers=(), timeout=WAIT_S):
        """(status, value of the JSON that came)"""
        connection, response = self.open(method, path, body, headers, timeout)
        with contextlib.closing(connection):
            data = response.read()
            return response.status, json.loads(data.decode("utf-8")) if data else None

    def post(self, path, **body):
        status, value = self.call("POST", path, body)
        assert status == 200, (status, value)
        return value

    def stream(self, path, **body):
        """The values of a stream's data, [DONE] as it is, and its comments."""
        connection, response = self.open("POST", path, dict(body, stream=True))
        with contextlib.closing(connection):
            assert response.status == 200, response.read()
            lines = response.read().decode("utf-8").split("\n\n")
        data = [line[len("data: "):] for line in lines if line.startswith("data: ")]
        assert data[-1] == "[DONE]" and lines[-1] == ""
        return [json.loads(each) for each in data[:-1]], [line for line in lines if line.startswith(":")]

    def rss_kb(self):
        with open(f"/proc/{self.process.pid}/status") as file:
            return int(re.search(r"VmRSS:\s*(\d+)", file.read()).group(1))

    def close(self, number=signal.SIGTERM):
        if self.process.poll() is None:
            self.process.send_signal(number)
        code = self.process.wait(WAIT_S)
        self.log.close()
        return code

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
