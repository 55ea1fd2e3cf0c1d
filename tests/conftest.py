"""Models and bundles that several test files need, made once per session by the project's own code.

Imports on Python 3.6 with nothing but pytest: the board side's tests run there, on bundles made elsewhere.
"""
import atexit
import gc
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from functools import lru_cache, partial

import pytest

# A cache of the tests' own, shared by all their processes and removed at the end: what is measured while tests run
# must never become the user's. The emulated boards are the user's and stay where they are.
if "MERINO_TESTS_CACHE" not in os.environ:
    users = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    os.environ["MERINO_USERS_CACHE"] = users
    os.environ["MERINO_TESTS_CACHE"] = tempfile.mkdtemp(prefix="merino-tests-")
    atexit.register(shutil.rmtree, os.environ["MERINO_TESTS_CACHE"], ignore_errors=True)
os.environ["XDG_CACHE_HOME"] = os.environ["MERINO_TESTS_CACHE"]

# What runs in the background without job control, as under nohup, ignores SIGINT, and so does all that it starts. Tests
# interrupt processes.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# One thread each: the models are tiny, and test processes run side by side. Before torch and numpy are imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")  # else torch.compile starts processes that load torch too

# onnxruntime 1.10, the last for Python 3.6, asks for an executable stack. glibc 2.41 refuses that to late libraries.
os.environ.setdefault("GLIBC_TUNABLES", "glibc.rtld.execstack=2")

# Some tests import onnxruntime before merino_runtime, which sets this.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

try:
    import hypothesis
except ImportError:  # a board's Python may have none
    hypothesis = None

if hypothesis is not None:
    hypothesis.settings.register_profile("default", deadline=None, max_examples=25)
    hypothesis.settings.register_profile("fast", deadline=None, max_examples=5)
    hypothesis.settings.register_profile("nightly", deadline=None, max_examples=100, print_blob=True)
    hypothesis.settings.register_profile("long", deadline=None, max_examples=5000)  # 30,000 cases of each file's fuzz
    hypothesis.settings.register_profile("ci", deadline=None, max_examples=25, derandomize=True, print_blob=True)
    hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "default")

DIALECTS = ("fused", "portable")
VOCAB = 300
TEXT = (
    "The river runs past the old mill, and the miller counts the sacks of flour in the evening. "
    "In the morning the baker buys three of them; the children wait for warm bread at the door. "
)


@pytest.fixture(scope="session")
def nightly(request):
    """Whether tests run in full, as by `make test-nightly`."""
    return hypothesis is not None and request.config.getoption("--hypothesis-profile") in ("nightly", "long")


def pytest_addoption(parser):
    parser.addoption("--part", metavar="K/N", help="of N parts of the nightly files, that of number K modulo N")


@pytest.hookimpl(tryfirst=True)  # before -m is judged
def pytest_collection_modifyitems(config, items):
    """Marks what runs with more examples or more cases in `make test-nightly`, and keeps the files of --part."""
    for item in items:
        counted = getattr(getattr(item, "obj", None), "is_hypothesis_test", False)
        if counted or "nightly" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.more)
    if config.getoption("--part"):
        number, parts = (int(word) for word in config.getoption("--part").split("/"))
        nightly = (item for item in items if item.get_closest_marker("nightly") or item.get_closest_marker("more"))
        part = set(sorted({item.fspath for item in nightly})[number % parts :: parts])
        config.hook.pytest_deselected(items=[item for item in items if item.fspath not in part])
        items[:] = [item for item in items if item.fspath in part]


def pytest_sessionstart():
    """Imports and 5,000 tests leave little to collect, and behind torch a search for cycles takes 0.3 s."""
    gc.disable()


def pytest_collection_finish():
    """Leaves what is loaded out of each search for cycles: many tests ask for one."""
    gc.enable()
    if hasattr(gc, "freeze"):  # not in Python 3.6
        gc.collect()
        gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def few_answers():
    """For the exports of this process: see ask_less."""
    with pytest.MonkeyPatch.context() as patch:
        if "merino_edge.export.export" in sys.modules:  # by a file that has tests of exports
            from forked import ask_less

            ask_less(patch.setattr)
        yield


def on_a_workstation():
    """Whether merino_edge is meant to be importable here: if it then is not, the tests must say so."""
    from importlib.util import find_spec

    return all(find_spec(name) is not None for name in ("torch", "transformers", "onnx", "merino_edge"))


@pytest.fixture(scope="session")
def randomize():
    """A function that fills a torch model with seeded weights, so large that no two logits are near-tied."""
    import torch

    def fill(model, seed):
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, weight in model.named_parameters():
                noise = torch.randn(weight.shape, generator=generator)
                if weight.dim() > 1:
                    weight.copy_(noise if "embed" in name else noise / weight.shape[-1] ** 0.5)
                else:
                    weight.copy_(0.1 * noise if name.endswith("bias") else 1 + 0.3 * noise)
        return model.eval()

    return fill


@pytest.fixture(scope="session")
def decoder(randomize):
    """A function: (geometry of any family, seed, config keys) -> its torch model with random weights."""
    from merino_edge.families.hugging_face import build_model

    no_ids = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}

    def build(arch, seed=0, **keys):
        return randomize(build_model(arch, **{**no_ids, **keys}), seed)

    return build


@pytest.fixture(scope="session")
def saved(decoder, tmp_path_factory):
    """A function: (geometry, seed) -> the source that a checkpoint of it with random weights gives."""
    from merino_edge.export.source import load_source

    def load(arch, seed):
        folder = tmp_path_factory.mktemp("saved") / "model"
        decoder(arch, seed).save_pretrained(folder)
        return load_source(str(folder))

    return load


@pytest.fixture(scope="session")
def tiny_arch():
    """Two blocks whose width changes, the second one shared."""
    from merino_edge.families.designed import Architecture

    return Architecture(
        blocks=(
            {"width": 32, "ffn_ratio": 1.5, "depth": 1},
            {"width": 64, "ffn_ratio": 1.0, "depth": 2, "shared": True},
        ),
        vocab=VOCAB,
        head_size=32,
        context=64,
    )


@pytest.fixture(scope="session")
def tiny_checkpoint(tiny_arch, decoder, tmp_path_factory):
    """A checkpoint folder with a tokenizer, as training leaves it; nobody writes to it."""
    from transformers import PreTrainedTokenizerFast

    from merino_edge.text.documents import END_OF_TEXT
    from merino_edge.text.tokenizer import train_tokenizer

    folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
    decoder(tiny_arch, seed=1, bos_token_id=0, eos_token_id=0).save_pretrained(folder)
    tokenizer = train_tokenizer([TEXT], VOCAB)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END_OF_TEXT).save_pretrained(folder)
    return folder


@pytest.fixture
def here(capfd, monkeypatch):
    """A function: words of `merino-edge` -> (exit code, stdout, stderr), in this process: an exception that becomes no
    message is the test's."""
    from contextlib import chdir

    from merino_edge.cli.app import main

    monkeypatch.setenv("COLUMNS", "200")

    def run(*words, cwd="."):
        capfd.readouterr()
        with chdir(cwd), pytest.raises(SystemExit) as ended:
            main([str(word) for word in words])
        out, err = capfd.readouterr()
        return ended.value.code or 0, out, err

    return run


@pytest.fixture
def small_space(monkeypatch):
    """`recommend` of this process searches few decoders by default."""
    from forked import search_less

    search_less(monkeypatch.setattr)


@pytest.fixture(scope="module")
def quick_benchmarks():
    """Of this process: see quick_bench."""
    from quick_bench import quicken

    with pytest.MonkeyPatch.context() as patch:
        quicken(patch.setattr)
        yield


@pytest.fixture(scope="session")
def bundle_dirs(request):
    """Folders of the tiny model's bundles by dialect; on a board those that MERINO_TEST_BUNDLE holds."""
    if not on_a_workstation():
        return given_bundles()
    from pathlib import Path

    def make(dialect, path):
        from merino_edge.export.export import export
        from merino_edge.export.request import ExportRequest
        from merino_edge.export.source import load_source

        export(load_source(str(request.getfixturevalue("tiny_checkpoint"))), Path(path), ExportRequest(dialect=dialect))

    return {dialect: made_once("tiny-" + dialect, partial(make, dialect)) for dialect in DIALECTS}


@pytest.fixture(scope="session")
def chat_dir(request):
    """Folder of a random model's bundle that talks in ChatML; on a board `chat` in MERINO_TEST_BUNDLE."""
    if not on_a_workstation():
        folder = os.path.join(os.environ.get("MERINO_TEST_BUNDLE", ""), "chat")
        if not os.path.isdir(folder):
            pytest.skip("no merino_edge here to make a bundle, and MERINO_TEST_BUNDLE names none that talks")
        return folder
    from pathlib import Path

    from chat_bundle import make_bundle

    return made_once("chat", lambda path: make_bundle(Path(path), request.getfixturevalue("decoder")))


def made_once(name, make):
    """The path `name` in a folder that all test processes share. The first that asks makes it by `make(path)`, the
    others wait for it. Nobody writes to it."""
    from filelock import FileLock

    path = os.path.join(os.environ["MERINO_TESTS_CACHE"], "shared", name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with FileLock(path + ".lock"):
        if not os.path.exists(path):
            make(path)
    return path


@pytest.fixture(scope="session")
def embedded_bundles():
    """Folders of the packaged model's bundles by (dialect, precision), exported by today's code: all CPU formats."""
    from pathlib import Path

    from merino_edge.embedded import FOLDER
    from merino_edge.export.export import export
    from merino_edge.export.request import ExportRequest
    from merino_edge.export.source import load_source

    kinds = [(dialect, precision) for dialect in DIALECTS for precision in ("fp32", "int8", "int4")]
    source = lru_cache(maxsize=1)(lambda: load_source(str(FOLDER)))

    def make(kind, path):
        dialect, precision = kind
        export(source(), Path(path), ExportRequest(precision=precision, dialect=dialect))

    # In another order in each process, so that they make different ones at a time.
    shuffled = random.sample(kinds, len(kinds))
    made = {kind: made_once("embedded-" + "-".join(kind), partial(make, kind)) for kind in shuffled}
    return {kind: Path(made[kind]) for kind in kinds}


@pytest.fixture(scope="session")
def assert_same_choices():
    """A function: logits computed and expected [n, vocab] are near by the precision's measure, and so are the choices.

    float32 is compared by the largest logit, and every argmax must agree. Kernels of quantized weights differ by a
    few percent of the RMS from one CPU class or version to the next: there an argmax must agree where
    it leads by more than three times what the difference of two logits is off by, and such rows must be the most.
    """
    import numpy as np

    def check(computed, expected, precision):
        assert computed.shape == expected.shape and np.isfinite(computed).all()
        off = computed - expected
        if precision == "fp32":
            assert (np.abs(off).max(1) < 1e-4 * np.abs(expected).max(1)).all()
            clear = np.full(len(expected), True)
        else:
            assert (off ** 2).mean() < 0.05 ** 2 * (expected ** 2).mean()
            first, second = np.sort(expected)[:, ::-1].T[:2]
            clear = first - second > 3 * 2 ** 0.5 * np.sqrt((off ** 2).mean(1))
        assert clear.mean() > 0.5, clear
        assert (computed.argmax(1) == expected.argmax(1))[clear].all(), clear

    return check


@pytest.fixture(params=["full", "read-only"])
def no_room(request, tmp_path):
    """(folder `disk` in tmp_path, `full` or `read-only`): a file system that takes nothing more."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.call("mount -t tmpfs -o size=64k tmpfs disk", cwd=str(tmp_path), shell=True,
                       stderr=subprocess.DEVNULL):
        pytest.skip("nothing can be mounted here")
    try:
        if request.param == "read-only":
            subprocess.check_call(["mount", "-o", "remount,ro", str(folder)])
        else:
            with pytest.raises(OSError), open(str(folder / "filler"), "wb", buffering=0) as file:
                while True:
                    file.write(bytes(4096))
        yield folder, request.param
    finally:
        subprocess.check_call(["umount", str(folder)])


def given_bundles():
    folder = os.environ.get("MERINO_TEST_BUNDLE")
    if not folder:
        pytest.skip("no merino_edge here to make a bundle, and MERINO_TEST_BUNDLE names no folder of them")
    paths = {dialect: os.path.join(folder, dialect) for dialect in DIALECTS}
    bundles = {dialect: path for dialect, path in paths.items() if os.path.isdir(path)}
    assert bundles, "MERINO_TEST_BUNDLE is {!r}, which holds neither {}".format(folder, " nor ".join(DIALECTS))
    return bundles
