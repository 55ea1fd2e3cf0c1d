"""Open WebUI itself, by its own interface, at a server: as a browser uses it. `make test-open-webui` installs it."""

import contextlib
import json
import os
import subprocess
import time
import urllib.request
from pathlib import Path

import pytest
from chat_bundle import make_bundle
from served import Server, free_port

ROOT = Path(os.environ.get("MERINO_OPEN_WEBUI", "none"))
START_S = 180
TASKS = ("title", "tags", "follow_up")  # which it asks for behind an answer

pytestmark = [
    pytest.mark.slow,
    pytest.mark.nightly,
    pytest.mark.skipif(not (ROOT / "bin").exists(), reason="no Open WebUI (make test-open-webui installs it)"),
]


@pytest.fixture(scope="module")
def bundle(decoder, tmp_path_factory):
    return make_bundle(tmp_path_factory.mktemp("bundle") / "chat", decoder, dialect="fused", context=8192)


@contextlib.contextmanager
def program(folder, **settings):
    """A function: (path, field=value, ...) -> what it answers."""
    port = free_port()
    usual = {"DATA_DIR": str(folder), "WEBUI_SECRET_KEY": "grinds-at-night", "RAG_EMBEDDING_ENGINE": "openai",
             "OFFLINE_MODE": "true", "HF_HUB_OFFLINE": "1", "ANONYMIZED_TELEMETRY": "false"}  # fmt: skip
    headers = {"Content-Type": "application/json"}

    def call(path, **body):
        data = json.dumps(body).encode() if body else None
        request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data, headers)
        with urllib.request.urlopen(request, timeout=120) as response:
            return response.read().decode()

    words = [ROOT / "bin" / "open-webui", "serve", "--host", "127.0.0.1", "--port", str(port)]
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen(words, cwd=folder, stdout=log, stderr=log, env={**os.environ, **usual, **settings})
        try:
            end = time.monotonic() + START_S
            while not is_there(call):
                assert process.poll() is None and time.monotonic() < end, (folder / "log").read_text()[-3000:]
                time.sleep(0.5)
            person = {"name": "keeper", "email": "keeper@mill.example", "password": "Grinds-at-night-1"}
            headers["Authorization"] = "Bearer " + json.loads(call("/api/v1/auths/signup", **person))["token"]
            yield call
        finally:
            process.terminate()
            process.wait(30)


def is_there(call):
    with contextlib.suppress(OSError):
        return bool(call("/health"))
    return False


@pytest.mark.parametrize("kind", ["openai", "ollama"])
def test_a_talk_with_its_tasks_by_either_connection(kind, bundle, tmp_path):
    with Server(bundle, options=["--set=cache_mb=0"]) as server, program(
        tmp_path, OPENAI_API_BASE_URL=server.url + "/v1", OPENAI_API_KEY="any", OLLAMA_BASE_URL=server.url,
        ENABLE_OPENAI_API=str(kind == "openai"), ENABLE_OLLAMA_API=str(kind == "ollama"),
    ) as call:  # fmt: skip
        (model,) = [each for each in json.loads(call("/api/models"))["data"] if each["owned_by"] == kind]
        dialogue = [{"role": "user", "content": "What does the miller do in the evening, and who buys his flour? " * 8}]
        text = call("/api/chat/completions", model=model["id"], messages=dialogue, stream=True, max_tokens=30)
        chunks = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
        deltas = [choice["delta"] for chunk in chunks for choice in chunk.get("choices", ())]
        answer = "".join(delta.get("content") or "" for delta in deltas)
        assert answer and "data: [DONE]" in text
        dialogue.append({"role": "assistant", "content": answer})
        for task in TASKS:
            path = f"/api/v1/tasks/{task}/completions"
            done = json.loads(call(path, model=model["id"], messages=dialogue, chat_id="1"))
            assert done["choices"][0]["message"], done
        before = server.call("GET", "/v1/stats")[1]
        dialogue.append({"role": "user", "content": "And in the morning?"})
        call("/api/chat/completions", model=model["id"], messages=dialogue, stream=True, max_tokens=5)
        stats = server.call("GET", "/v1/stats")[1]
    assert stats["requests_failed_total"] == 0 and stats["requests_total"] == 2 + len(TASKS)
    assert stats["prompt_tokens_cached_total"] - before["prompt_tokens_cached_total"] > 200  # the talk kept its slot
