"""The operators of runtime/kernels in onnxruntime, against the same arithmetic in numpy; the library's bytes."""

import functools
import hashlib
import platform
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper
from processes import has_headers

from merino_edge.export.dialects.tiles import tiles_of
from merino_edge.export.quantize.matrix import Outliers, QuantizedMatrix, dequantize, quantize_groups
from merino_edge.export.quantize.outliers import input_order
from merino_runtime.bundle.fit import library_path

ROOT = Path(__file__).parents[2]
KERNELS = ROOT / "runtime" / "kernels"
F, U8, I8, I32, I64 = (getattr(TensorProto, name) for name in ("FLOAT", "UINT8", "INT8", "INT32", "INT64"))
TYPES = {np.dtype(np.float32): F, np.dtype(np.uint8): U8, np.dtype(np.int8): I8, np.dtype(np.int32): I32,
         np.dtype(np.int64): I64}  # fmt: skip


def model_of(kind, inputs, outputs, **attributes):
    """A model of one node. `inputs`, `outputs`: types by name."""
    node = helper.make_node(kind, list(inputs), list(outputs), domain="merino", **attributes)
    ports, results = (
        [helper.make_tensor_value_info(name, kind_of, None) for name, kind_of in each.items()]
        for each in (inputs, outputs)
    )
    return helper.make_model(
        helper.make_graph([node], "one", ports, results),
        opset_imports=[helper.make_opsetid("", 15), helper.make_opsetid("merino", 1)], ir_version=8,
    ).SerializeToString()  # fmt: skip


def session_of(kind, inputs, outputs, threads=2, **attributes):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    options.register_custom_ops_library(library_path(platform.machine()))
    model = model_of(kind, inputs, outputs, **attributes)
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


MATMUL = {"x": F, "w": U8}, {"y": F}
ORDERED = {**MATMUL[0], "order": I32}, {"y": F}
ROWS = {"w": U8, "ids": I64}, {"y": F}


def matmul(x, weights, rows, columns, minimums, threads=2, bits=4, order=None):
    kind, given = MATMUL, {"x": x, "w": weights}
    if order is not None:
        kind, given["order"] = ORDERED, order
    session = session_of(f"MatMul{bits}", *kind, threads=threads, rows=rows, columns=columns, minimums=int(minimums))
    return session.run(None, given)[0]


def rounded_rows(x, bits):
    """x [n, columns] as the kernel rounds it: codes and scales of each 32, in 6 bits of each 16."""
    groups = x.reshape(len(x), -1, 16 if bits == 6 else 32)
    largest = np.abs(groups).max(-1, keepdims=True)
    times = np.where(largest > np.float32(1e-30), np.float32(127) / np.maximum(largest, np.float32(1e-30)), 0)
    codes = np.rint(groups * times.astype(np.float32))
    return codes, largest * np.float32(1 / 127)


MINIMUMS = {4: 1, 5: 1, 6: 0, 8: 1}  # by bits: whether a matrix may have any
BITS = st.sampled_from(list(MINIMUMS))


def random_matrix(rng, rows, columns, with_minimums, bits=4):
    weights = rng.standard_normal((rows, columns)).astype(np.float32)
    result = quantize_groups(weights, 4 if bits == 4 else 8, 16 if bits == 6 else 32)
    if bits in (5, 6):
        result = result._replace(codes=rng.integers(0, 2**bits, result.codes.shape, np.uint8), bits=bits)
    scales = result.scales.astype(np.float16).astype(np.float32)
    lowest = rng.standard_normal(scales.shape).astype(np.float16).astype(np.float32) if with_minimums else None
    return result._replace(scales=scales, minimums=lowest)


@given(
    rows=st.integers(1, 70), columns=st.integers(1, 12).map(lambda n: 32 * n), count=st.integers(1, 23),
    with_minimums=st.booleans(), threads=st.integers(1, 3), size=st.sampled_from([1e-3, 1.0, 1e6]),
    bits=BITS, seed=st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_a_product_is_that_of_its_rounded_input(rows, columns, count, with_minimums, threads, size, bits, seed):
    rng = np.random.default_rng(seed)
    with_minimums = with_minimums and MINIMUMS[bits]
    result = random_matrix(rng, rows, columns, with_minimums, bits)
    x = (rng.standard_normal((count, columns)) * size).astype(np.float32)
    x[0, rng.integers(columns)] *= 1000  # an outlier, and a group of zeros
    x[-1, :32] = 0
    codes, steps = rounded_rows(x, bits)
    weights = dequantize(result._replace(minimums=None)).astype(np.float64)
    expected = (codes * steps).reshape(x.shape).astype(np.float64) @ weights.T
    if with_minimums:
        expected += x.reshape(count, -1, 32).sum(-1, dtype=np.float64) @ result.minimums.T.astype(np.float64)
    got = matmul(x, tiles_of("w", result), rows, columns, with_minimums, threads, bits)
    assert got.shape == (count, rows)
    unit = np.abs(x).max(-1, keepdims=True) * columns * np.abs(result.scales).max() * 2 ** (bits - 1)
    assert (np.abs(got - expected) <= 1e-6 * (unit + np.abs(expected))).all()


@given(
    size=st.sampled_from([32, 64]), groups=st.integers(1, 5), count=st.integers(1, 18), bits=BITS,
    with_minimums=st.booleans(), data=st.data(), seed=st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_groups_with_outliers_are_multiplied_twice(size, groups, count, bits, with_minimums, data, seed):
    """To the bit as if x had been gathered."""
    rng = np.random.default_rng(seed)
    twice = data.draw(st.lists(st.integers(0, groups - 1), unique=True, min_size=1))
    channels = st.lists(st.integers(0, size - 1), unique=True, min_size=1)
    outliers = [Outliers(group * size, size, group * size + np.array(data.draw(channels))) for group in twice]
    columns, with_minimums = groups * size, with_minimums and MINIMUMS[bits]
    whole = columns + size * len(outliers)
    weights = tiles_of("w", random_matrix(rng, 21, whole, with_minimums, bits))
    x = rng.standard_normal((count, columns)).astype(np.float32)
    order = input_order(columns, columns, outliers)
    gathered = np.pad(x, ((0, 0), (0, 1)))[:, order]
    expected = matmul(gathered, weights, 21, whole, with_minimums, bits=bits)
    order = order.astype(np.int32)
    np.testing.assert_array_equal(matmul(x, weights, 21, whole, with_minimums, bits=bits, order=order), expected)


@pytest.mark.parametrize("bits", MINIMUMS)
def test_the_largest_sums_do_not_overflow(bits):
    """Codes of -8 against 127 in each column, 32 * 8 * 127 in 16 bits; and of -16, -32 and -128."""
    size = 16 if bits == 6 else 32
    codes = np.full((8, 128 // size, 16 if bits == 4 else size), 0, np.uint8)
    result = QuantizedMatrix(codes, np.ones(codes.shape[:2], np.float32), bits, size)
    for sign in (1, -1):
        x = np.full((1, 128), sign * 127, np.float32)
        expected = sign * -(2 ** (bits - 1)) * 127 * 128
        assert (matmul(x, tiles_of("w", result), 8, 128, False, bits=bits) == expected).all()


@pytest.mark.parametrize("bits", MINIMUMS)
def test_rows_are_the_weights_themselves(bits):
    rng = np.random.default_rng(1)
    for with_minimums in range(MINIMUMS[bits] + 1):
        result = random_matrix(rng, 21, 96, with_minimums, bits)
        ids = np.array([[0, 20, 7, 8]], np.int64)
        sizes = {"rows": 21, "columns": 96, "minimums": with_minimums}
        session = session_of(f"Rows{bits}", *ROWS, **sizes)
        given = {"w": tiles_of("w", result), "ids": ids}
        np.testing.assert_array_equal(session.run(None, given)[0], dequantize(result)[ids])


def test_what_is_not_finite_stays_so():
    result = random_matrix(np.random.default_rng(2), 8, 64, False)
    for value in (np.nan, np.inf, -np.inf):
        x = np.ones((5, 64), np.float32)
        x[3, 40] = value
        finite = np.isfinite(matmul(x, tiles_of("w", result), 8, 64, False))
        assert not finite[3].any() and finite[[0, 1, 2, 4]].all()


# What attention needs to be defined: (heads, KV heads, channels, cached, new, window, int8).
SHAPES = [
    (8, 1, 64, 0, 1, 0, False), (16, 1, 64, 447, 1, 0, False), (9, 3, 64, 100, 1, 0, True),
    (4, 1, 256, 33, 1, 16, False), (9, 3, 64, 0, 37, 0, False), (6, 2, 32, 50, 40, 0, True),
    (16, 1, 64, 300, 70, 100, False), (3, 3, 16, 5, 2, 0, True),
    (12, 4, 128, 1100, 1, 0, True), (16, 2, 64, 1500, 3, 1024, False),
]  # fmt: skip


def attention_case(heads, kv_heads, size, past, new, window, int8):
    rng = np.random.default_rng(window)
    slots, normal = past + new + 7, rng.standard_normal
    arrays = {
        "qkv": normal((1, new, (heads + 2 * kv_heads) * size)).astype(np.float32),
        "past_key": normal((1, kv_heads, slots, size)).astype(np.float32),
        "past_value": normal((1, kv_heads, slots, size)).astype(np.float32),
        "last": np.array([past + new - 1], np.int32),
    }
    angles = np.arange(slots)[:, None] / 10000 ** (np.arange(size // 2) / (size // 2))
    arrays |= {"cos": np.cos(angles).astype(np.float32), "sin": np.sin(angles).astype(np.float32)}
    if int8:
        scales = [(0.02 + 0.02 * rng.random((1, kv_heads, 1, size))).astype(np.float32) for _ in range(2)]
        for name, scale in zip(("past_key", "past_value"), scales, strict=True):
            arrays[name] = np.clip(np.rint(arrays[name] / scale), -128, 127).astype(np.int8)
        arrays |= {"key_scale": scales[0], "value_scale": scales[1]}
    return arrays


def expected_attention(arrays, heads, kv_heads, size, past, new, window, int8):
    """(result [1, new, heads * size], keys, values) in float64."""
    split = arrays["qkv"][0].reshape(new, -1, size).transpose(1, 0, 2)
    query, key, value = np.split(split, [heads, heads + kv_heads])
    cos, sin = (arrays[name][past : past + new] for name in ("cos", "sin"))

    def turned(x):
        left, right = np.split(x, 2, -1)
        return np.concatenate([left * cos - right * sin, right * cos + left * sin], -1)

    caches = []
    for name, fresh in (("key", turned(key)), ("value", value)):
        cache = arrays[f"past_{name}"][0].copy()
        scale = arrays[f"{name}_scale"][0] if int8 else None
        coded = np.clip(np.rint(fresh / scale), -128, 127).astype(np.int8) if int8 else fresh
        cache[:, past : past + new] = coded
        caches.append((cache, cache.astype(np.float64) * (scale if int8 else 1)))
    keys, values = (np.repeat(each[:, : past + new], heads // kv_heads, 0) for _, each in caches)
    scores = turned(query).astype(np.float64) @ keys.transpose(0, 2, 1) * size**-0.5
    at, slot = past + np.arange(new)[:, None], np.arange(past + new)
    hidden = (slot > at) | ((slot <= at - window) if window else False)
    scores = np.where(hidden, -np.inf, scores)
    shares = np.exp(scores - scores.max(-1, keepdims=True))
    mixed = shares / shares.sum(-1, keepdims=True) @ values
    return mixed.transpose(1, 0, 2).reshape(1, new, -1), caches[0][0], caches[1][0]


def own_attention(arrays, heads, kv_heads, size, window, threads=2):
    int8 = "key_scale" in arrays
    cache = I8 if int8 else F
    session = session_of(
        "GroupAttention8" if int8 else "GroupAttention", {name: TYPES[value.dtype] for name, value in arrays.items()},
        {"mixed": F, "present_key": cache, "present_value": cache}, threads=threads, heads=heads, kv_heads=kv_heads,
        window=window, rotary=1, scale=size**-0.5,
    )  # fmt: skip
    return session, session.run(None, arrays)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "-".join(map(str, shape)))
def test_attention_by_groups_is_attention(shape):
    heads, kv_heads, size, past, new, window, int8 = shape
    arrays = attention_case(*shape)
    mixed, keys, values = expected_attention(arrays, *shape)
    _, (got, got_keys, got_values) = own_attention(arrays, heads, kv_heads, size, window)
    np.testing.assert_allclose(got, mixed, atol=3e-6)
    for result, right in ((got_keys[0], keys), (got_values[0], values)):
        if int8:  # a rotated key between two codes may fall on either side
            assert np.abs(result[:, : past + new].astype(int) - right[:, : past + new]).max() <= 1
        else:
            np.testing.assert_allclose(result[:, : past + new], right[:, : past + new], atol=1e-6)


def test_a_shared_buffer_is_written_in_place():
    arrays = attention_case(6, 2, 32, 20, 1, 0, False)
    session, (expected, keys, _) = own_attention(arrays, 6, 2, 32, 0)
    binding = session.io_binding()
    for name, value in arrays.items():
        binding.bind_input(name, "cpu", 0, value.dtype.type, value.shape, value.ctypes.data)
    mixed = np.zeros_like(expected)
    binding.bind_output("mixed", "cpu", 0, np.float32, mixed.shape, mixed.ctypes.data)
    for name in ("key", "value"):
        past = arrays[f"past_{name}"]
        binding.bind_output(f"present_{name}", "cpu", 0, np.float32, past.shape, past.ctypes.data)
    session.run_with_iobinding(binding)
    np.testing.assert_array_equal(mixed, expected)
    np.testing.assert_array_equal(arrays["past_key"][:, :, :21], keys[:, :, :21])


@pytest.mark.parametrize("int8", [False, True])
def test_each_sequence_of_a_batch_is_as_alone(int8):
    heads, kv_heads, size, pasts = 9, 3, 64, (300, 0, 41)
    cases = [attention_case(heads, kv_heads, size, past, 2, 0, int8) for past in pasts]
    slots = cases[0]["past_key"].shape[2]
    for case in cases:
        for name in ("past_key", "past_value"):
            case[name] = np.pad(case[name], ((0, 0), (0, 0), (0, slots - case[name].shape[2]), (0, 0)))
        case |= {name: value for name, value in cases[0].items() if name in ("cos", "sin") or "scale" in name}
    alone = [own_attention(case, heads, kv_heads, size, 0)[1] for case in cases]
    each = ("qkv", "past_key", "past_value", "last")
    batch = cases[0] | {name: np.concatenate([case[name] for case in cases]) for name in each}
    mixed, keys, values = own_attention(batch, heads, kv_heads, size, 0)[1]
    for row, (past, right) in enumerate(zip(pasts, alone, strict=True)):
        np.testing.assert_array_equal(mixed[row], right[0][0])
        for result, expected in ((keys, right[1]), (values, right[2])):
            np.testing.assert_array_equal(result[row, :, : past + 2], expected[0, :, : past + 2])


def test_threads_change_no_bit():
    arrays = attention_case(16, 1, 64, 900, 1, 0, False)
    one, three = (own_attention(arrays, 16, 1, 64, 0, threads)[1][0] for threads in (1, 3))
    np.testing.assert_array_equal(one, three)


@pytest.mark.parametrize(("change", "message"), [
    ({"last": np.array([40], np.int32)}, "fewer entries are cached"),
    ({"last": np.array([-5], np.int32)}, "fewer entries"),
    ({"last": np.array([20, 20], np.int32)}, "for each sequence"),
    ({"cos": np.zeros((3, 16), np.float32)}, "more positions than angles"),
    ({"qkv": np.zeros((1, 1, 64), np.float32)}, "qkv is not"), ({"qkv": np.zeros((2, 1, 320), np.float32)}, "qkv is"),
    ({"past_value": np.zeros((1, 2, 9, 32), np.float32)}, "differ in shape"),
    ({"past_key": np.zeros((2, 32), np.float32)}, "a cache is not"),
])  # fmt: skip
def test_wrong_shapes_are_an_error_and_no_crash(change, message):
    arrays = attention_case(6, 2, 32, 20, 1, 0, False)
    session, _ = own_attention(arrays, 6, 2, 32, 0)
    with pytest.raises(Exception, match=message):
        session.run(None, arrays | change)
    with pytest.raises(Exception, match="columns"):
        matmul(np.zeros((1, 64), np.float32), np.zeros(288, np.uint8), 8, 32, False)
    with pytest.raises(Exception, match="for each column"):
        matmul(np.zeros((1, 32), np.float32), np.zeros(576, np.uint8), 8, 64, False, order=np.zeros(32, np.int32))
    with pytest.raises(Exception, match="another size"):
        matmul(np.zeros((1, 32), np.float32), np.zeros(287, np.uint8), 8, 32, False)


def test_calls_at_once_on_one_session_and_on_two():
    arrays = attention_case(16, 1, 64, 300, 5, 0, False)
    sessions = [own_attention(arrays, 16, 1, 64, 0)[0] for _ in range(2)]
    expected = sessions[0].run(["mixed"], arrays)[0]
    with ThreadPoolExecutor(6) as pool:
        for got in pool.map(lambda index: sessions[index % 2].run(["mixed"], arrays)[0], range(120)):
            np.testing.assert_array_equal(got, expected)


OLDER = """
import sys, numpy, onnxruntime
options = onnxruntime.SessionOptions()
options.register_custom_ops_library(sys.argv[1])
session = onnxruntime.InferenceSession(sys.argv[2], options, providers=["CPUExecutionProvider"])
numpy.save(sys.argv[4], session.run(None, dict(numpy.load(sys.argv[3])))[0])
try:
    right = bool(numpy.isnan(session.run(None, dict(numpy.load(sys.argv[5])))[0]).all())
except Exception as error:
    right = sys.argv[6] in str(error)
print(onnxruntime.__version__, right)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("python", "version"), [
    (".venv36", "1.10.0"), pytest.param(".venv38", "1.19.2", marks=pytest.mark.nightly),
    pytest.param(".venv310", "1.23.2", marks=pytest.mark.nightly),
])  # fmt: skip
def test_older_versions_of_onnxruntime_run_the_library(python, version, tmp_path):
    """To the bit; a fault is an error, before 1.16 a result that is no number."""
    interpreter = ROOT / python / "bin" / "python"
    if not interpreter.exists():
        pytest.skip(f"no {python} on this machine (make test sets it up)")
    rng = np.random.default_rng(3)
    x, weights = rng.standard_normal((5, 96)).astype(np.float32), tiles_of("w", random_matrix(rng, 20, 96, False))
    order = rng.integers(-2, 99, 96).astype(np.int32)  # what x has not is 0
    given, ids = {"x": x, "w": weights}, np.array([[3, 19]])
    cases = [
        ("MatMul4", MATMUL, given, {"w": weights[1:]}, "another size"),
        ("MatMul4", ORDERED, {**given, "order": order}, {"w": weights[1:]}, "another size"),
        ("Rows4", ROWS, {"w": weights, "ids": ids}, {"ids": ids + 1}, "an id is outside of the table"),
        ("Rows4", ROWS, {"w": weights, "ids": ids}, {"ids": -ids}, "an id is outside of the table"),
    ]
    paths = [tmp_path / name for name in ("model.onnx", "given.npz", "out.npy", "wrong.npz")]
    for kind, ports, given, wrong, message in cases:
        paths[0].write_bytes(model_of(kind, *ports, rows=20, columns=96, minimums=0))
        np.savez(paths[1], **given)
        np.savez(paths[3], **(given | wrong))
        words = [interpreter, "-c", OLDER, library_path(platform.machine()), *paths, message]
        done = subprocess.run(words, capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (0, f"{version} True\n"), (kind, done.stderr)
        session = session_of(kind, *ports, rows=20, columns=96, minimums=0)
        np.testing.assert_array_equal(np.load(paths[2]), session.run(None, given)[0])


RUN_ONCE = """
import sys, numpy, onnxruntime
options = onnxruntime.SessionOptions()
options.register_custom_ops_library(sys.argv[1])
session = onnxruntime.InferenceSession(sys.argv[2], options, providers=["CPUExecutionProvider"])
session.run(None, dict(numpy.load(sys.argv[3])))
"""


@pytest.mark.nightly
@pytest.mark.skipif(platform.machine() != "x86_64" or not has_headers("gcc-14"), reason="no gcc-14 for x86")
def test_an_empty_cache_without_memory_is_defined_behavior(tmp_path):
    """A tensor of no elements that the graph itself computes has the address NULL. Undefined behavior is a trap."""
    words = [KERNELS / "build.sh", "x86_64", tmp_path / "traps.so", "-O1", "-fsanitize=undefined"]
    words.append("-fsanitize-undefined-trap-on-error")
    subprocess.run(words, env={"CC": "gcc-14", "PATH": "/usr/bin:/bin"}, check=True)
    arrays = attention_case(6, 2, 32, 0, 3, 0, False)
    given = {name: arrays[name] for name in ("qkv", "last", "cos", "sin")}
    model = onnx.load_from_string(model_of(
        "GroupAttention", {name: TYPES[value.dtype] for name, value in arrays.items()},
        {"mixed": F, "present_key": F, "present_value": F}, heads=6, kv_heads=2, window=0, rotary=1, scale=0.2,
    ))  # fmt: skip
    for name in ("past_key", "past_value"):
        model.graph.node.insert(0, helper.make_node("ConstantOfShape", ["shape"], [name]))
    ports = [port for port in model.graph.input if port.name in given]
    ports.append(helper.make_tensor_value_info("shape", I64, [4]))
    del model.graph.input[:]
    model.graph.input.extend(ports)
    onnx.save(model, tmp_path / "model.onnx")
    np.savez(tmp_path / "given.npz", shape=np.array([1, 2, 0, 32]), **given)
    words = [tmp_path / name for name in ("traps.so", "model.onnx", "given.npz")]
    done = subprocess.run([sys.executable, "-c", RUN_ONCE, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@functools.cache
def release_of(compiler):
    """Of the compiler, without the revision of its package; "" without it or the headers of its C library."""
    if not has_headers(compiler):
        return ""
    return subprocess.run([compiler, "-dumpfullversion"], capture_output=True, text=True).stdout.strip()


@pytest.mark.parametrize(("machine", "compiler"), [
    pytest.param("aarch64", "aarch64-linux-gnu-gcc", marks=pytest.mark.nightly), ("x86_64", "gcc-14"),
])  # fmt: skip
def test_the_packaged_library_is_what_its_source_builds(machine, compiler, tmp_path):
    if not release_of(compiler).startswith("14."):
        pytest.skip(f"{compiler} is not gcc 14 (apt-get install gcc-14 gcc-aarch64-linux-gnu libc6-dev-arm64-cross)")
    subprocess.run([KERNELS / "build.sh", machine, tmp_path / "one.so"], env={"CC": compiler, "PATH": "/usr/bin:/bin"},
                   check=True)  # fmt: skip
    paths = tmp_path / "one.so", Path(library_path(machine))
    built, packaged = (hashlib.sha256(path.read_bytes()).hexdigest() for path in paths)
    assert built == packaged, "make kernels builds it anew"


# Causal taps


def taps_case(width, taps, pasts, new, gated):
    random = np.random.default_rng(2)
    rows, half = len(pasts), width // 2
    cache = random.standard_normal((2, rows, 1, max(pasts) + new + 3, half), np.float32)
    return {
        "x": random.standard_normal((rows, new, width * (3 if gated else 1)), np.float32),
        "past_key": cache[0], "past_value": cache[1], "last": np.array(pasts, np.int32) + new - 1,
        "weights": random.standard_normal((taps, 1, width), np.float32),
    }  # fmt: skip


def own_taps(arrays, gated):
    session = session_of(
        "Taps", {name: TYPES[value.dtype] for name, value in arrays.items()},
        {"mixed": F, "present_key": F, "present_value": F}, gated=int(gated),
    )  # fmt: skip
    return session, session.run(None, arrays)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize(("width", "taps", "pasts", "new"), [
    (64, 4, (7,), 1), (20, 3, (0,), 5), (34, 3, (1, 9, 0), 2), (1024, 4, (2,), 40),
])  # fmt: skip
def test_taps_weigh_each_position_and_those_before_it(width, taps, pasts, new, gated):
    arrays = taps_case(width, taps, pasts, new, gated)
    _, (mixed, keys, values) = own_taps(arrays, gated)
    for row, past in enumerate(pasts):
        a, b, c = np.split(arrays["x"][row], 3, axis=-1) if gated else (arrays["x"][row], 1, 1)
        cached = np.concatenate([arrays["past_key"][row, 0, :past], arrays["past_value"][row, 0, :past]], -1)
        rows = np.concatenate([np.zeros((taps - 1, width), np.float32), cached, a * c])
        right = sum(rows[past + tap : past + tap + new] * arrays["weights"][tap] for tap in range(taps)) * b
        np.testing.assert_allclose(mixed[row], right, atol=1e-5)
        written = np.concatenate([keys[row, 0], values[row, 0]], -1)[: past + new]
        np.testing.assert_array_equal(written, rows[taps - 1 :])


@pytest.mark.parametrize(("change", "message"), [
    ({"last": np.array([40], np.int32)}, "fewer entries are cached"),
    ({"last": np.zeros(2, np.int32)}, "each sequence"),
    ({"weights": np.zeros((3, 1, 62), np.float32)}, "weights are not"),
    ({"x": np.zeros((1, 1, 66), np.float32)}, "x is not"),
    ({"past_value": np.zeros((1, 1, 9, 32), np.float32)}, "differ in shape"),
    ({"past_key": np.zeros((1, 2, 11, 32), np.float32)}, "a cache is not"),
])  # fmt: skip
def test_taps_of_wrong_shapes_are_an_error_and_no_crash(change, message):
    arrays = taps_case(64, 3, (7,), 1, False)
    session, _ = own_taps(arrays, False)
    with pytest.raises(Exception, match=message):
        session.run(None, arrays | change)
