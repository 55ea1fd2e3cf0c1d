"""JSON that anyone may have written: the value, or one message with the reason."""
import json

import pytest

from merino_runtime.errors import MerinoError
from merino_runtime.io.json_file import DEEPEST, LARGEST_BYTES, read_json, value_of


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
