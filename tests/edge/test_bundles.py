"""A bundle's folder without torch: what is written is read back, what is packed, and which boards it fits."""

import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

import merino_bench
import merino_runtime
from merino_edge.bundles.board_app import packed_files, write_board_app
from merino_edge.bundles.description import GraphFormat, ModelFacts, backends_of, describe, fitting_boards, write_bundle
from merino_edge.bundles.files import bundle_bytes, is_bundle
from merino_edge.families.operators import FORMATS
from merino_edge.families.zoo import model as published
from merino_edge.prediction.cost_model import cost_model
from merino_edge.prediction.shape import InferenceShape
from merino_edge.profiles.reading import list_profiles, load_profile, profile_ids
from merino_runtime.bundle import Golden, Port, Threads, load_bundle

ROOT = Path(__file__).resolve().parents[2]
RUNTIME_CHOOSES = Threads(None, None)


@dataclass(frozen=True)
class Graph:
    """A graph that is no ONNX: bundles/ does not look into it."""

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...] = (Port("logits", "float32", (1, 1, 300)),)
    weight_bytes: int = 4000
    decode_weight_bytes: int = 3000
    oldest: str = "1.10"
    own_kernels: tuple = ()

    def save(self, folder):
        (folder / "model.onnx").write_bytes(b"graph")
        (folder / "model.onnx.data").write_bytes(bytes(4000))


@pytest.fixture
def graph(tiny_arch):
    caches = [
        Port(f"past_key_values.{index}.{part}", "float32", (1, heads, 64, size))
        for index, (heads, size) in enumerate(tiny_arch.kv_layers) for part in ("key", "value")
    ]
    ids = [Port(name, "int64", (1, axis)) for name, axis in (("input_ids", "sequence"), ("attention_mask", "total"))]
    return Graph((*ids, *caches))


@pytest.fixture
def model(tiny_arch):
    return ModelFacts("tiny", "a new family", tiny_arch, "trained", "a run", (0,))


def test_a_description_is_read_as_it_was_written(graph, model, tmp_path):
    (tmp_path / "tokenizer.json").write_text('{"model": {"merges": [["a", "b"], ["ab", "é"]]}}', encoding="utf-8")
    folder = tmp_path / "bundle"
    folder.mkdir()
    assert not is_bundle(folder)
    form, golden = GraphFormat("int8", "fused", 64), Golden((1, 2), (3,))
    written = write_bundle(
        folder, model, graph, form, golden, threads=Threads(4, 2), tokenizer=tmp_path / "tokenizer.json"
    )
    assert is_bundle(folder) and load_bundle(str(folder)) == written
    assert [file.path for file in written.files] == ["model.onnx", "model.onnx.data", "tokenizer.json"]
    assert (folder / "tokenizer.json").read_text(encoding="utf-8") == '{"model":{"merges":["a b","ab é"]}}'
    assert (written.golden, written.threads, written.backends[0].min_version) == (golden, Threads(4, 2), "1.18")
    assert written.head_flops == 2 * 300 * 32
    assert bundle_bytes(folder) > sum(file.bytes for file in written.files)


def test_a_bundles_description_does_not_depend_on_the_runtime_beside_it(graph, model, tmp_path):
    written = write_bundle(tmp_path, model, graph, GraphFormat("fp32", "fused", 64), Golden((1,), (1,)))
    before = (tmp_path / "bundle.json").read_bytes()
    (tmp_path / "merino.pyz").write_bytes(b"of tomorrow")
    again = describe(tmp_path, model, graph, GraphFormat("fp32", "fused", 64), written.golden, written.threads)
    assert again == written == load_bundle(str(tmp_path))
    assert (tmp_path / "bundle.json").read_bytes() == before


def test_the_application_holds_both_packages_whole_and_is_the_same_each_time(tmp_path):
    for name in ("a", "b"):
        write_board_app(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    packages = [Path(package.__file__).parent for package in (merino_runtime, merino_bench)]
    expected = {
        f"{package.name}/{path.relative_to(package).as_posix()}"
        for package in packages for path in package.rglob("*")
        if path.is_file() and path.parent.name != "__pycache__"
    }
    with zipfile.ZipFile(tmp_path / "a") as archive:
        assert set(archive.namelist()) == {"__main__.py", *expected}


def test_data_files_beside_the_sources_travel_in_the_application(tmp_path):
    files = {"code.py": b"1", "inner/graphs.tar.xz": b"zip", "inner/facts.json": b"{}"}
    for name, content in {**files, "__pycache__/code.pyc": b"?", "notes.txt": b"?"}.items():
        (tmp_path / "package" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "package" / name).write_bytes(content)
    assert dict(packed_files(tmp_path / "package")) == {f"package/{name}": data for name, data in files.items()}


def needs(*names):
    """What a portable graph requires of these backends."""
    return [need for need in backends_of(GraphFormat("fp32", "portable", 64)) if need.name in names]


@pytest.mark.parametrize("large", [False, True])
def test_two_thread_counts_take_the_memory_of_two_sessions(tiny_arch, large):
    """A board whose free memory lies between the two needs: the bundle fits with one count and not with two. Of few
    weights the runtime opens two sessions by itself."""
    board = load_profile("raspberry-pi-5")
    operators = (published("opt-350m").geometry if large else tiny_arch).operators
    costs = cost_model(board, InferenceShape("fp32", 64, 32))
    one, two = (costs.memory_mb(operators, sessions) for sessions in (1, 2))
    assert one < two
    between = board.memory.model_copy(
        update={"free_mb": board.memory.free_mb.model_copy(update={"value": (one + two) / 2})}
    )
    small = board.model_copy(update={"memory": between})

    def fits(threads):
        return bool(fitting_boards(operators, "fp32", 64, threads, needs("onnxruntime"), [small]))

    assert fits(Threads(4, 4)) and not fits(Threads(4, 2))
    assert fits(RUNTIME_CHOOSES) is fits(Threads(None, 2)) is large
    assert fits(Threads(16, 8))  # more than its four cores: both are four


def test_by_default_the_boards_are_the_shipped_ones(tiny_arch):
    def boards(precision, *backends):
        return fitting_boards(tiny_arch.operators, precision, 64, RUNTIME_CHOOSES, needs(*backends))

    with_gpu = tuple(board.id for board in list_profiles() if board.gpu)
    assert boards("fp32", "onnxruntime", "tensorrt") == boards("fp32", "onnxruntime") == tuple(profile_ids())
    assert boards("fp16", "onnxruntime", "tensorrt") == with_gpu == boards("fp32", "tensorrt")
    assert boards("fp16", "onnxruntime") == ()  # of no use on a CPU
    assert boards("int8", "onnxruntime") == tuple(profile_ids())


def test_a_board_fits_the_formats_of_each_of_its_backends(tiny_arch):
    """The Nano's CPU has int8 and int4, its GPU float16."""
    nano = [load_profile("jetson-nano")]
    backends = {form: backends_of(GraphFormat(form, "portable", 64)) for form in FORMATS}
    fits = [form for form in FORMATS
            if fitting_boards(tiny_arch.operators, form, 64, RUNTIME_CHOOSES, backends[form], nano)]  # fmt: skip
    assert fits == ["fp32", "fp16", "int8", "int4"]


def test_an_engine_must_fit_beside_the_cuda_context(tiny_arch):
    nano = load_profile("jetson-nano")
    on_gpu = cost_model(nano, InferenceShape("fp16", 64, 32)).memory_mb(tiny_arch.operators)
    on_cpu = cost_model(nano.with_backend("onnxruntime"), InferenceShape("fp32", 64, 32)).memory_mb(tiny_arch.operators)
    assert on_cpu < on_gpu
    between = nano.memory.free_mb.model_copy(update={"value": (on_cpu + on_gpu) / 2})
    small = [nano.model_copy(update={"memory": nano.memory.model_copy(update={"free_mb": between})})]
    for precision, backends, fits in (("fp16", ["onnxruntime", "tensorrt"], False), ("fp32", ["tensorrt"], False),
                                      ("fp32", ["onnxruntime", "tensorrt"], True)):  # fmt: skip
        fitting = fitting_boards(tiny_arch.operators, precision, 64, RUNTIME_CHOOSES, needs(*backends), small)
        assert bool(fitting) == fits
