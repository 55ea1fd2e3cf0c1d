"""The page at `/` in a real browser, headless: a conversation, settings and keys, what goes wrong, phone and dark."""

import contextlib
import json
import os
import re
import socket
import time
import zipfile

import pytest

pytest.importorskip("uvicorn")
pytest.importorskip("torch")  # of the workstation, which makes the bundle

from chat_bundle import make_bundle  # noqa: E402
from processes import headless  # noqa: E402
from served import SLOW, Server  # noqa: E402

pytestmark = pytest.mark.slow
CONTEXT = 4096  # an answer that nobody stops takes seconds
EVIL = "<img src=x onerror='window.hacked = 1'><script>window.hacked = 1</script>"


@pytest.fixture(scope="module")
def browser():
    with headless() as driver:
        yield driver


@pytest.fixture(scope="module")
def bundle(decoder, tmp_path_factory):
    return make_bundle(tmp_path_factory.mktemp("bundle") / "chat", decoder, context=CONTEXT)


@pytest.fixture(scope="module")
def server(bundle):
    """Of a model that talks, and one that continues texts."""
    from merino_edge.embedded import FOLDER

    with Server(bundle, FOLDER, options=["--set=cache_mb=0", "--set=queue=0", "--slots", 2]) as running:
        yield running


@pytest.fixture
def opened(browser):
    """A function: (server, width, scheme) -> its page. What the page said and asked for is judged at the end."""
    contexts, output, requested = [], [], []

    def open_page(server, width=1280, scheme="light", height=800, has_template=True):
        context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: output.append(message.text))
        page.on("pageerror", lambda error: output.append(str(error)))
        page.on("request", lambda request: requested.append((server.url, request.url)))
        page.goto(server.url)
        if has_template:
            until(page, SHOWS_MEMORY)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert [text for text in output if "Failed to load resource" not in text] == []  # a refusal, which the page words
    assert [url for own, url in requested if not url.startswith((own, "data:"))] == []


SHOWS_MEMORY = "document.getElementById('memory').textContent !== '–'"
LENGTH = "[...document.querySelectorAll('.text')].pop().textContent.length"  # of the answer that grows


def until(page, condition):
    """playwright's `wait_for_function` evaluates in the page, which its policy forbids."""
    for _ in range(600):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(50)
    raise AssertionError(condition)


def counted(server, **wanted):
    """Waits until the server has so many requests."""
    for _ in range(3000):
        stats = server.call("GET", "/v1/stats")[1]
        if wanted.items() <= stats.items():
            return
        time.sleep(0.01)
    raise AssertionError((wanted, stats))


def setting(page, name, value):
    if page.locator("#settings").is_hidden():
        page.get_by_role("button", name="Settings").click()
    page.locator("#" + name).fill(str(value))


def send(page, text):
    page.get_by_label("Message", exact=True).fill(text)
    page.keyboard.press("Enter")


def finished(page):
    page.locator("#conversation:not(:has([aria-busy])) button.again").wait_for()
    return page.locator("li.assistant .text").last.inner_text()


def bodies(page):
    """What the page sends from now on."""
    results = []
    page.on("request", lambda request: results.append(request.post_data_json) if request.method == "POST" else None)
    return results


def never_ending(page):
    """A random model may end at any token."""
    page.route("**/v1/chat/completions", lambda route: route.continue_(
        post_data=json.dumps(dict(route.request.post_data_json, ignore_eos=True))))


def test_a_conversation_with_settings_that_outlives_a_reload(server, opened):
    page = opened(server)
    sent = bodies(page)
    for name, value in (("system", "You count."), ("temperature", 0), ("max_tokens", 9), ("seed", 7), ("top_p", 0.5)):
        setting(page, name, value)
    send(page, "How many " + EVIL)
    first = finished(page)
    whole = server.post("/v1/chat/completions", **dict(sent[0], stream=False))
    assert first.strip() == whole["choices"][0]["message"]["content"].strip() != ""
    assert [each["content"] for each in sent[0]["messages"]] == ["You count.", "How many " + EVIL]
    assert [sent[0][name] for name in ("temperature", "max_tokens", "seed", "top_p", "stream")] == [0, 9, 7, 0.5, True]
    assert "Cut after 9 tokens" in page.locator("li.assistant .note").inner_text()
    assert re.fullmatch(r"[\d.]+ tokens/s", page.locator("#speed").inner_text())
    assert re.fullmatch(r"\d+ MB", page.locator("#memory").inner_text())
    send(page, "And now?")
    page.locator("li.assistant").nth(1).wait_for()
    finished(page)
    assert [each["role"] for each in sent[1]["messages"]] == ["system", "user", "assistant", "user"]
    page.reload()
    assert page.locator("#conversation > li").count() == 4 and page.locator("#temperature").input_value() == "0"
    assert page.evaluate("typeof window.hacked") == "undefined" and page.locator("#conversation img").count() == 0
    page.get_by_role("button", name="New", exact=True).click()
    assert page.locator("#conversation > li").count() == 0
    page.get_by_role("button", name="Undo").click()
    page.get_by_role("button", name="Again").click()
    finished(page)
    assert page.locator("#conversation > li").count() == 4 and sent[2]["messages"] == sent[1]["messages"]


@pytest.fixture
def slow_server(bundle):
    with Server(bundle, before=SLOW, options=["--set=cache_mb=0", "--set=queue=0"]) as running:
        yield running


def test_tokens_appear_as_they_come_and_stop_ends_them_by_key_and_by_button(slow_server, opened):
    page = opened(slow_server, 390, height=700)
    never_ending(page)
    for stop in (lambda: page.keyboard.press("Escape"), lambda: page.get_by_role("button", name="Stop").click()):
        send(page, "Go on")
        text = page.locator("li.assistant .text").last
        lengths = []
        for _ in range(3):
            until(page, f"{LENGTH} > {lengths[-1] + 20 if lengths else 0}")
            lengths.append(len(text.text_content()))
        stop()
        finished(page)
        assert page.locator("li.assistant .note").last.inner_text() == "Stopped."
        assert page.evaluate("document.activeElement.id") == "text"
        box = page.locator("#scroll")
        assert box.evaluate("box => box.scrollHeight - box.scrollTop - box.clientHeight") < 60
    while slow_server.call("GET", "/v1/stats")[1]["running"]:  # within a token
        time.sleep(0.01)


def test_a_model_that_does_not_talk_continues_the_text(server, opened):
    page = opened(server)
    sent = bodies(page)
    names = [each["id"] for each in server.call("GET", "/v1/models")[1]["data"]]
    page.get_by_label("Model").select_option(names[1])
    setting(page, "max_tokens", 8)
    setting(page, "temperature", 0)
    send(page, "Once upon a time")
    text = finished(page)
    assert sent[0]["prompt"] == "Once upon a time" and sent[0]["model"] == names[1] and "messages" not in sent[0]
    page.reload()
    page.get_by_label("Model").locator("option").nth(1).wait_for(state="attached")  # the models come after the page
    assert page.get_by_label("Model").input_value() == names[1]
    send(page, " Then")
    page.locator("li.assistant").nth(1).wait_for()
    finished(page)
    assert sent[1]["prompt"].startswith("Once upon a time") and sent[1]["prompt"].endswith(text.rstrip()[-5:] + " Then")


MARKDOWN = """Flour is *mostly* **wheat**, see `a * b` and [the mill](https://mill.example/x?y=1).
Second line, 2 * 3 * 4, snake_case_name, [no](javascript:alert(1)) <b onclick=x>

# Steps
1. Clean it.
2. Grind it:
   - coarse
   - fine
3) Sieve.

~~~python
print("**no mark**")
~~~
| Flour | Use |
|:--- | ---: |
| cake | *soft* |
> dry place
```
never closed"""
RENDERED = (
    '<p>Flour is <em>mostly</em> <strong>wheat</strong>, see <code>a * b</code> and '
    '<a href="https://mill.example/x?y=1" rel="noreferrer" target="_blank">the mill</a>.\n'
    'Second line, 2 * 3 * 4, snake_case_name, [no](javascript:alert(1)) &lt;b onclick=x&gt;</p><h3>Steps</h3>'
    '<ol start="1"><li><p>Clean it.</p></li><li><p>Grind it:</p>'
    '<ul><li><p>coarse</p></li><li><p>fine</p></li></ul></li><li><p>Sieve.</p></li></ol>'
    '<div><pre tabindex="0"><code>print("**no mark**")</code></pre><button type="button">Copy</button></div>'
    '<div><table><tr><th>Flour</th><th>Use</th></tr><tr><td>cake</td><td><em>soft</em></td></tr></table></div>'
    '<blockquote><p>dry place</p></blockquote>'
    '<div><pre tabindex="0"><code>never closed</code></pre><button type="button">Copy</button></div>')


def test_an_answer_is_markdown_and_nothing_in_it_is_markup(server, opened):
    page = opened(server)
    page.evaluate("value => sessionStorage.setItem('merino.conversation', JSON.stringify(value))", [
        {"role": "user", "content": "*Why*? " + EVIL}, {"role": "assistant", "content": MARKDOWN + "\n```\n\n" + EVIL}])
    page.reload()
    until(page, SHOWS_MEMORY)
    written = page.locator("li.assistant .text").inner_html()
    assert re.sub(' class="[^"]*"', "", written).startswith(RENDERED)
    assert page.locator("li.user .text").inner_text() == "*Why*? " + EVIL
    assert page.evaluate("typeof window.hacked") == "undefined" and page.locator("#conversation img").count() == 0
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    for nth, text in ((0, 'print("**no mark**")'), (2, MARKDOWN + "\n```\n\n" + EVIL)):
        page.locator("li.assistant button.copy").nth(nth).click()
        until(page, f"document.querySelectorAll('li.assistant button.copy')[{nth}].textContent === 'Copied'")
        assert page.evaluate("navigator.clipboard.readText()") == text
    page.locator("#text").focus()
    page.keyboard.type("one")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("two")
    assert page.get_by_label("Message", exact=True).input_value() == "one\ntwo"


def test_what_a_full_server_says_and_the_words_are_not_lost(server, opened):
    page = opened(server)
    body = json.dumps({"messages": [{"role": "user", "content": "x"}], "ignore_eos": True, "temperature": 0}).encode()
    counted(server, running=0, waiting=0)  # what an earlier page left would make the server refuse one of these
    with contextlib.ExitStack() as stack:
        for nth in range(3):  # two slots; a third that arrives before both run would be refused
            counted(server, running=nth)
            holder = stack.enter_context(contextlib.closing(socket.create_connection(("127.0.0.1", server.port))))
            holder.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%s"
                           % (len(body), body))
        counted(server, running=2, waiting=1)
        send(page, "Hello")
        alert = page.get_by_role("alert")
        alert.filter(has_text="busy").wait_for()
        assert re.search(r"Send again in \d+ s", alert.inner_text())
        assert page.get_by_label("Message", exact=True).input_value() == "Hello"
        assert page.locator("#conversation > li").count() == 0


def test_a_key_is_asked_for_and_a_server_that_stops_is_told(bundle, opened, tmp_path):
    (tmp_path / "keys").write_text("open-sesame\n")
    with Server(bundle, options=["--api-key-file", tmp_path / "keys", "--set=cache_mb=0"], wait=False) as server:
        while not server.ready():
            time.sleep(0.01)
        page = opened(server, has_template=False)
        alert = page.get_by_role("alert")
        alert.filter(has_text="needs an API key").wait_for()
        assert page.evaluate("document.activeElement.id") == "key"
        page.keyboard.type("open-sesame")
        page.keyboard.press("Tab")
        until(page, SHOWS_MEMORY)
        assert alert.is_hidden()
        never_ending(page)
        send(page, "Hello")
        until(page, LENGTH + " > 50")
        server.close()
        page.locator("li.assistant .note").filter(has_text="the server was stopped").wait_for()
        send(page, "And now?")
        alert.filter(has_text="does not answer").wait_for()
        assert page.get_by_label("Message", exact=True).input_value() == "And now?"
        stored = page.evaluate("JSON.stringify([{...localStorage}])")
        assert "open-sesame" not in stored


# Texts whose contrast with what lies behind them is under 4.5, by WCAG's formula.
PALE = """() => {
  const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
  const linear = (v) => v / 255 <= .03928 ? v / 255 / 12.92 : ((v / 255 + .055) / 1.055) ** 2.4;
  const light = (c) => { const [r, g, b] = c.slice(0, 3).map(linear); return .2126 * r + .7152 * g + .0722 * b; };
  const behind = (node) => { for (; node; node = node.parentElement) {
    const c = rgb(getComputedStyle(node).backgroundColor); if (c.length < 4 || c[3] > 0) return c; } };
  return [...document.querySelectorAll('body *')].filter((node) => node.checkVisibility() && !node.closest('script')
    && [...node.childNodes].some((each) => each.nodeType === 3 && each.data.trim())).filter((node) => {
      const a = light(rgb(getComputedStyle(node).color)), b = light(behind(node));
      return (Math.max(a, b) + .05) / (Math.min(a, b) + .05) < 4.5; }).map((node) => node.outerHTML.slice(0, 80)); }"""
SMALL = """[...document.querySelectorAll('button, select, input, textarea')].filter((node) => node.checkVisibility()
  && node.getBoundingClientRect().height < (node.closest('li') ? 30 : 44)).map((node) => node.id)"""
UNNAMED = "[...document.querySelectorAll('select, input, textarea')].filter((one) => !one.labels.length).length"
BY_DAY = [(320, "dark"), (1280, "light")]
CONVERSATION = [{"role": "user", "content": "What is flour made of?"},
        {"role": "assistant", "model": "SmolLM2", "content": "Flour is made of grain. " * 12, "thinking": "Bread?"},
        {"role": "user", "content": "w" * 300}, {"role": "assistant", "content": "x" * 300, "note": "Stopped."}]


@pytest.mark.parametrize(("width", "scheme"), [
    pytest.param(width, scheme, marks=() if (width, scheme) in BY_DAY else pytest.mark.nightly)
    for width in (320, 390, 768, 1280) for scheme in ("light", "dark")
])
def test_it_fits_and_can_be_read(server, opened, width, scheme, tmp_path):
    page = opened(server, width, scheme, 760)
    page.evaluate("value => sessionStorage.setItem('merino.conversation', JSON.stringify(value))", CONVERSATION)
    page.reload()
    until(page, SHOWS_MEMORY)
    pictures = os.environ.get("MERINO_PICTURES", str(tmp_path))
    for name in ("conversation", "settings"):
        page.screenshot(path=os.path.join(pictures, f"page-{name}-{width}-{scheme}.png"))
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate(PALE) == [] and page.evaluate(SMALL) == [] and page.evaluate(UNNAMED) == 0
        assert page.locator("#text").bounding_box()["y"] < 760
        page.get_by_role("button", name="Settings").click()
    page.locator("#text").focus()
    reached = set()
    for _ in range(12):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id || document.activeElement.textContent"))
    assert {"model", "new", "set", "scroll", "send", "Again", "Thinking"} <= reached


def test_the_policy_lets_nothing_else_run_and_the_application_has_the_page(server, browser, tmp_path):
    connection, response = server.open("GET", "/")
    text = response.read().decode("utf-8")
    policy = response.getheader("Content-Security-Policy")
    connection.close()
    assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
    page = browser.new_page()
    messages = []
    page.on("console", lambda message: messages.append(message.text))
    page.goto(server.url)
    page.evaluate("""() => {
        const script = document.createElement('script'), image = document.createElement('img');
        script.textContent = 'window.hacked = 1'; image.src = 'http://127.0.0.1:9/x.png';
        document.body.append(script, image);
    }""")
    page.wait_for_timeout(200)
    assert page.evaluate("typeof window.hacked") == "undefined"
    assert len([each for each in messages if "Content Security Policy" in each]) == 2, messages
    page.close()
    from merino_edge.bundles.board_app import write_board_app

    write_board_app(tmp_path / "merino.pyz")
    folder = "merino_runtime/serving/page/"
    with zipfile.ZipFile(tmp_path / "merino.pyz") as archive:
        for name in ("page.css", "page.js"):
            assert archive.read(folder + name).decode() in text
        lines = sum(len(archive.read(folder + "page." + end).splitlines()) for end in ("html", "js"))
    assert lines < 500
