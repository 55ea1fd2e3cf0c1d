"""Reading bundles, and JSON that anyone may have written: a whole one, and every way in which one can be broken. Hashes
are computed once: a stamp spares them while nothing changed, and every change is noticed."""
import hashlib
import json
import os
import shutil
import tempfile
import time
from argparse import Namespace

import pytest

from merino_runtime import bundle as bundle_module
from merino_runtime import commands
from merino_runtime.api import open_model
from merino_runtime.bundle import Bundle, Chat, Golden, KvLayer, Port, SystemParts, file_path, load_bundle, verified
from merino_runtime.errors import MerinoError
from merino_runtime.io.json_file import DEEPEST, LARGEST_BYTES, read_json, value_of

FILES = {"model.onnx": b"graph", "model.onnx.data": bytes(range(256)) * 20, "tokenizer.json": b"{}"}

PARTS = {"begin": "<s>", "system": {"before": "<s>system\n", "after": "\n"}, "answer": "\n", "user": "\n",
         "generation": "\n", "no_think": None, "date_format": "%d %b %Y",
         "texts": {"system": "whole", "user": "stripped", "assistant": "answer"}}


def description():
    return {
        "schema": 2, "name": "tiny", "family": "merino", "architecture": {"blocks": []}, "precision": "fp32",
        "dialect": "fused", "weights": "random", "weights_source": "a seed", "context": 64, "vocab": 260,
        "stop_ids": [], "kv_layers": [{"heads": 2, "head_size": 32, "format": "fp32"}],
        "inputs": [{"name": "input_ids", "dtype": "int64", "shape": [1, "sequence"]},
                   {"name": "attention_mask", "dtype": "int64", "shape": [1, "total"]},
                   {"name": "past_key_values.0.key", "dtype": "float32", "shape": [1, 2, 64, 32]},
                   {"name": "past_key_values.0.value", "dtype": "float32", "shape": [1, 2, 64, 32]}],
        "outputs": [{"name": "logits", "dtype": "float32", "shape": [1, 1, 260]}],
        "params": 1000, "flops_per_token": 2000, "head_flops": 1000, "weight_bytes": 4000,
        "decode_weight_bytes": 4000, "kv_bytes": 32768, "boards": ["raspberry-pi-5"],
        "kernels": [],
        "adapters": [],
        "backends": [{"name": "onnxruntime", "min_version": "1.18", "refused_versions": ["1.21.0"]}],
        "threads": {"prefill": None, "decode": 1}, "golden": {"prompt_ids": [1, 2], "greedy_ids": [3, 4]}, "chat": None,
        "files": [{"path": path, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
                  for path, data in sorted(FILES.items())],
    }


@pytest.fixture
def folder(tmp_path):
    for path, data in FILES.items():
        (tmp_path / path).write_bytes(data)
    rewrite(tmp_path, description())
    return tmp_path


def rewrite(folder, described):
    (folder / "bundle.json").write_text(json.dumps(described), encoding="utf-8")


def refusal(folder, **options):
    with pytest.raises(MerinoError) as caught:
        load_bundle(str(folder), **options)
    return str(caught.value)


def test_a_whole_bundle_is_read(folder):
    bundle = load_bundle(folder)
    assert isinstance(bundle, Bundle) and bundle.folder == str(folder)
    assert bundle.kv_layers == (KvLayer(2, 32),) and bundle.golden == Golden((1, 2), (3, 4))
    assert bundle.inputs[1] == Port("attention_mask", "int64", (1, "total"))
    assert bundle.stop_ids == () and bundle.chat is None
    assert bundle.threads.prefill is None and bundle.threads.decode == 1
    assert bundle.backends[0].refused_versions == ("1.21.0",) and len(bundle.files) == 3
    assert file_path(bundle, "tokenizer.json") == os.path.join(str(folder), "tokenizer.json")
    assert file_path(bundle, "other.json") is None


@pytest.mark.parametrize("name", sorted(FILES))
@pytest.mark.parametrize("place", [0, 1, -1])
def test_a_flipped_bit_is_found_and_the_file_named(folder, name, place):
    data = bytearray(FILES[name])
    data[place] ^= 1
    (folder / name).write_bytes(bytes(data))
    message = refusal(folder)
    assert name + " has sha256" in message and hashlib.sha256(FILES[name]).hexdigest() in message
    assert hashlib.sha256(bytes(data)).hexdigest() in message and "again" in message
    load_bundle(str(folder), verify=False)  # sizes agree


@pytest.mark.parametrize("name", sorted(FILES))
@pytest.mark.parametrize("verify", [True, False])
def test_a_file_of_another_size_or_missing_is_found_without_hashing_too(folder, name, verify):
    (folder / name).write_bytes(FILES[name][:-1])
    message = refusal(folder, verify=verify)
    assert f"{name} has {len(FILES[name]) - 1} bytes, expected {len(FILES[name])}" in message
    (folder / name).write_bytes(FILES[name] + b"x")
    assert f"{len(FILES[name]) + 1} bytes" in refusal(folder, verify=verify)
    for path in FILES:
        (folder / path).unlink()
    assert all(f"{path} is missing" in refusal(folder, verify=verify) for path in FILES)


def test_every_missing_key_is_named_at_once(folder):
    described = {key: value for key, value in description().items() if key in ("schema", "name", "backends")}
    del described["backends"][0]["min_version"]
    rewrite(folder, described)
    message = refusal(folder)
    assert all(f"{key}: missing" in message for key in description() if key not in described)
    assert "backends[0].min_version: missing" in message


def test_unknown_missing_and_wrong_keys_are_named_together(folder):
    described = description()
    described.update(color="green", context="64", vocab=True, kv_layers={}, kernels=[1], stop_ids=[-1], params=1.0)
    described["inputs"][0]["shape"] = [1, 0]
    described["files"][0]["note"] = "?"
    described["threads"]["decode"] = 0
    del described["golden"]
    rewrite(folder, described)
    message = refusal(folder)
    for part in ("color: unknown key", 'context is "64"', "vocab is true",
                 "kv_layers is an object, must be a list",
                 "kernels[0] is 1", "stop_ids[0] is -1", "params is 1.0", "inputs[0].shape[1] is 0",
                 "files[0].note: unknown key", "threads.decode is 0", "golden: missing"):
        assert part in message, part


@pytest.mark.parametrize("key, value", [
    ("context", 10 ** 9), ("vocab", 10 ** 9), ("params", 10 ** 300), ("weight_bytes", 2 ** 54), ("kv_bytes", -1),
    ("kv_layers", [{"heads": 10 ** 9, "head_size": 32, "format": "fp32"}]),
    ("kv_layers", [{"heads": 2, "head_size": 32, "format": "int2"}]), ("threads", {"prefill": 10 ** 6, "decode": 1}),
    ("name", "two\nlines"), ("weights_source", "\x1b[2J"), ("kernels", ["a\0"]), ("family", "x" * 1001),
    ("backends", [{"name": "onnxruntime", "min_version": "new", "refused_versions": []}]),
    ("backends", [{"name": "onnxruntime", "min_version": "1.18", "refused_versions": ["1." + "9" * 5000]}]),
    ("chat", {"template": "../x", "tokens": {}, "parts": None}), ("chat", "chatml"),
    ("chat", {"template": "x", "tokens": {"bos_token": 7}, "parts": None}),
    ("chat", {"template": "x", "tokens": {}, "parts": dict(PARTS, begin="x" * 100001)}),
    ("chat", {"template": "x", "tokens": {}, "parts": dict(PARTS, date_format="%d\n")}),
    ("chat", {"template": "x", "tokens": {}, "parts": dict(PARTS, texts=dict(PARTS["texts"], user="upper"))})])
def test_a_value_beyond_its_bounds_is_refused_by_one_line(folder, key, value):
    rewrite(folder, dict(description(), **{key: value}))
    message = refusal(folder)
    assert key in message and "must be" in message and "\n" not in message and len(message) < 1000


@pytest.mark.parametrize("change, message", [
    (lambda described: described["inputs"][2].update(shape=[1, 2, 2 ** 40, 32]), "past_key_values.0.key is float32 ["),
    (lambda described: described["inputs"][2].update(dtype="int64"), "past_key_values.0.key is int64 ["),
    (lambda described: described["inputs"].append(dict(described["inputs"][3], name="past_key_values.7.key")),
     "of no layer"),
    (lambda described: described.update(kv_bytes=1), "kv_bytes is 1, the inputs hold 32768"),
    (lambda described: described["outputs"].clear(), "outputs has no logits")])
def test_a_cache_that_would_take_other_memory_than_is_judged_is_refused(folder, change, message):
    described = description()
    change(described)
    rewrite(folder, described)
    assert message in refusal(folder)


def test_of_very_many_problems_the_first_are_listed_and_the_others_counted(folder):
    rewrite(folder, dict(description(), **{f"unheard of {index}\n": 1 for index in range(1000)}))
    message = refusal(folder)
    assert len(message) < 5000 and "and 950 more" in message and "\n" not in message


@pytest.mark.parametrize("schema", [0, 1, 3, "2", None, True, 1.5, 1.0, 2.0])
def test_another_schema_is_refused_by_number_alone(folder, schema):
    rewrite(folder, dict(description(), schema=schema, unheard_of=1))
    message = refusal(folder)
    assert "schema" in message and "reads schema 2" in message and "unheard_of" not in message


@pytest.mark.parametrize("path", ["../model.onnx", "/etc/passwd", "a/../../b", "..", "", ".", "a\\..\\b",
                                  "C:x", "a\0b", "\u00e9", "a\nb", 7])
def test_a_path_out_of_the_bundle_is_refused(folder, path):
    described = description()
    described["files"][0]["path"] = path
    rewrite(folder, described)
    assert "files[0].path" in refusal(folder)


def test_a_chat_template_is_read_with_its_parts(folder):
    described = description()
    described["chat"] = {"template": "tokenizer.json", "tokens": {"bos_token": "<s>"}, "parts": PARTS}
    rewrite(folder, described)
    chat = load_bundle(folder).chat
    assert chat.parts.system == SystemParts("<s>system\n", "\n") and chat.parts.texts.assistant == "answer"
    described["chat"].update(parts=None)
    rewrite(folder, described)
    assert load_bundle(folder).chat == Chat("tokenizer.json", {"bos_token": "<s>"}, None)
    described["chat"].update(template="absent.jinja")
    rewrite(folder, described)
    assert "files has no absent.jinja, which is chat.template" in refusal(folder)


def test_keys_that_contradict_each_other_are_refused(folder):
    described = description()
    described["golden"]["greedy_ids"] = [260]
    described["files"] = [file for file in described["files"] if file["path"] != "model.onnx"] * 2
    del described["inputs"][2]
    rewrite(folder, described)
    message = refusal(folder)
    for part in ("260", "no model.onnx", "tokenizer.json twice", "no past_key_values.0.key"):
        assert part in message


def test_a_list_of_files_that_is_too_long_is_refused(folder):
    described = description()
    described["files"] = [dict(described["files"][0], path=f"file{index}") for index in range(100000)]
    rewrite(folder, described)
    assert "files is a list of 100000, must be a list of at most 256" in refusal(folder)


@pytest.mark.parametrize("content", [b"", b"{", b"not json", b"\xff\xfe", b"[" * 100000])
def test_what_is_not_json_is_refused(folder, content):
    (folder / "bundle.json").write_bytes(content)
    assert "is not JSON" in refusal(folder)


def test_what_is_no_bundle_is_said_plainly(folder, tmp_path):
    assert "no such bundle" in refusal(tmp_path / "nowhere")
    assert "is a file" in refusal(folder / "model.onnx")
    (folder / "bundle.json").unlink()
    assert "no bundle.json" in refusal(folder)


@pytest.fixture
def nobodys(folder):
    """The bundle where everyone may look for it; where root runs this, the test goes on as somebody else."""
    outer, root = tempfile.mkdtemp(), os.geteuid() == 0
    try:
        os.chmod(outer, 0o755)
        shutil.copytree(str(folder), os.path.join(outer, "bundle"))
        yield os.path.join(outer, "bundle"), lambda: os.seteuid(65534) if root else None
    finally:
        if root:
            os.seteuid(0)
        shutil.rmtree(outer)


@pytest.mark.parametrize("name", ["bundle.json", "model.onnx"])
def test_a_file_that_this_user_may_not_read_is_told(nobodys, name):
    folder, as_somebody_else = nobodys
    path = os.path.join(folder, name)
    os.chmod(folder, 0o755)
    for other in os.listdir(folder):
        os.chmod(os.path.join(folder, other), 0 if other == name else 0o644)
    as_somebody_else()
    assert refusal(folder).startswith(f"cannot read {path}: Permission denied. Check the folder's permissions.")


def short(value):
    """A name for a case: pytest's own of 64 MB took 26 s to make."""
    return repr(value)[:24]


@pytest.mark.parametrize("text, reason", [
    ("", "Expecting value"), ("{", "Expecting property name"), ('{"a": 1, "b": 2, "a": 3}', 'the key "a" twice'),
    ('[{"a": {"b": 1, "b": 1}}]', 'the key "b" twice'), ("[NaN]", "NaN is not a number"),
    ("[-Infinity]", "-Infinity is not a number"), ("[1e400]", "1e400 is too large"),
    ("1" * 4301, "digits"), ("[" * 100000, "nested too deeply"), ('{"a":' * 100000, "nested too deeply"),
    ("[" * (DEEPEST + 1) + "]" * (DEEPEST + 1), "nested too deeply"),
    ('["\\ud800"]', "half of a surrogate pair"), ('{"\\uDFFF": 1}', "half of a surrogate pair")], ids=short)
def test_what_is_wrong_is_said(text, reason):
    with pytest.raises(ValueError, match=reason) as caught:
        value_of(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [
    [[[]]] * 100, {"a": {"a": {"a": []}}}, "\U0001f600", ["\u00e9\u4e2d", 1e308, -2 ** 63, True, None],
    eval("[" * DEEPEST + "]" * DEEPEST)], ids=short)  # noqa: S307
def test_what_is_right_is_the_value(value):
    assert value_of(json.dumps(value)) == value == value_of(json.dumps(value, ensure_ascii=False))


@pytest.mark.parametrize("content, reason", [
    (b"\xff\xfe{", "byte 0 is not UTF-8"), (b'["abc\xe9"]', "byte 5 is not UTF-8"), (b"{", "Expecting property name"),
    (b" " * (LARGEST_BYTES + 1), "more than 64 MB")], ids=short)
def test_a_file_that_is_not_json_is_one_line_with_its_name_and_the_remedy(tmp_path, content, reason):
    path = tmp_path / "file.json"
    path.write_bytes(content)
    with pytest.raises(MerinoError, match=reason) as caught:
        read_json(str(path), "Write it anew.")
    message = str(caught.value)
    assert message.startswith(f"{path} is not JSON") and message.endswith(" Write it anew.") and "\n" not in message


@pytest.mark.parametrize("name", ["absent", ".", "a\0b", "x" * 300])
def test_a_path_that_cannot_be_read_is_said_too(tmp_path, name):
    with pytest.raises(MerinoError, match="cannot read.*Write it anew"):
        read_json(str(tmp_path) + "/" + name, "Write it anew.")


def test_a_byte_order_mark_is_no_fault(tmp_path):
    (tmp_path / "file.json").write_bytes(b"\xef\xbb\xbf[1]")
    assert read_json(str(tmp_path / "file.json"), "") == [1]


DATA = "model.onnx.data"


def verify(stamped):
    return commands.run_verify(Namespace(bundle=str(stamped), trust=[], json=False))


@pytest.fixture
def stamped(bundle_dirs, tmp_path, monkeypatch):
    """A copy of a bundle whose files are old enough for a stamp, and a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(verified, "LEAST_AGE_NS", -10 ** 9)
    copy = tmp_path / "bundle"
    shutil.copytree(str(bundle_dirs["portable"]), str(copy))
    return copy


@pytest.fixture
def hashed(monkeypatch):
    """Names of the files that were hashed, as a list that grows."""
    names, sha256_of = [], bundle_module.sha256_of
    monkeypatch.setattr(bundle_module, "sha256_of", lambda path: (names.append(os.path.basename(path)),
                                                                  sha256_of(path))[1])
    return names


def opened(stamped):
    with open_model(str(stamped)) as model:
        return model.bundle


def flip(path, place=-1):
    time.sleep(0.02)  # a step of the kernel's clock for file times
    data = bytearray(path.read_bytes())
    data[place] ^= 0x40
    with open(str(path), "r+b") as file:
        file.write(bytes(data))


def test_the_second_start_hashes_nothing(stamped, hashed):
    bundle = opened(stamped)
    assert sorted(hashed) == sorted(file.path for file in bundle.files)
    del hashed[:]
    opened(stamped)
    assert hashed == []


def test_verify_always_hashes(stamped, hashed, capsys):
    for _ in range(2):
        del hashed[:]
        verify(stamped)
        assert DATA in hashed
    del hashed[:]
    opened(stamped)  # verified just now
    assert hashed == [] and capsys.readouterr().out.count("ok: ") == 2


@pytest.mark.parametrize("keep_times", [False, True])
@pytest.mark.parametrize("way", ["in place", "replaced"])
def test_a_changed_file_is_noticed(stamped, way, keep_times):
    opened(stamped)
    status = os.stat(str(stamped / DATA))
    if way == "in place":
        flip(stamped / DATA)
    else:
        shutil.copy(str(stamped / DATA), str(stamped / "other"))
        flip(stamped / "other")
        os.replace(str(stamped / "other"), str(stamped / DATA))
    if keep_times:
        os.utime(str(stamped / DATA), ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(MerinoError, match=DATA + " has sha256"):
        opened(stamped)


def test_another_expected_hash_is_noticed(stamped):
    opened(stamped)
    described = json.loads((stamped / "bundle.json").read_text())
    described["files"][0]["sha256"] = "0" * 64
    (stamped / "bundle.json").write_text(json.dumps(described))
    with pytest.raises(MerinoError, match="expected 0000"):
        opened(stamped)


def test_a_link_out_of_the_folder_is_refused_by_verify_as_by_a_start(stamped, tmp_path):
    os.rename(str(stamped / DATA), str(tmp_path / "elsewhere"))
    os.symlink(str(tmp_path / "elsewhere"), str(stamped / DATA))
    for use in (lambda: verify(stamped), lambda: opened(stamped)):
        with pytest.raises(MerinoError, match=DATA + " is a link out of the folder, to .*elsewhere"):
            use()
    os.rename(str(tmp_path / "elsewhere"), str(stamped / "inside"))
    os.unlink(str(stamped / DATA))
    os.symlink("inside", str(stamped / DATA))
    assert verify(stamped) == 0
    opened(stamped)


def test_damage_leaves_no_stamp(stamped):
    flip(stamped / DATA)
    for _ in range(2):
        with pytest.raises(MerinoError, match=DATA + " has sha256"):
            opened(stamped)


def test_files_that_changed_a_moment_ago_are_hashed_again(stamped, hashed, monkeypatch):
    """Within a step of the file system's clock a second change would look like the first."""
    monkeypatch.setattr(verified, "LEAST_AGE_NS", 3600 * 10 ** 9)
    opened(stamped)
    del hashed[:]
    opened(stamped)
    assert DATA in hashed


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"schema": 2, "files": []}'])
def test_a_stamp_that_is_none_means_hashing(stamped, hashed, content):
    path = verified._path(load_bundle(str(stamped), verify=False))
    os.makedirs(os.path.dirname(path))
    with open(path, "w") as file:
        file.write(content)
    opened(stamped)
    assert DATA in hashed


def test_a_cache_that_cannot_be_written_means_hashing(stamped, hashed, tmp_path, monkeypatch):
    (tmp_path / "a file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "a file"))
    for _ in range(2):
        del hashed[:]
        opened(stamped)
        assert DATA in hashed
