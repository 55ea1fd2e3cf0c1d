"""Packed files as an enemy writes them: a good one, and kinds that differ from it in one respect each.

Headers are made here by offset, not by the code under test. Where a kind lies in its manifest, the rest of the file
agrees with the lie, so that only a rule on it can refuse the file. Python 3.6, no packages.
"""
import base64
import collections
import gzip
import hashlib
import io
import json
import zipfile

from tests import ed25519_signer

BLOCK = 512
END = bytes(2 * BLOCK)
SEED, OTHER_SEED = b"the key that boards trust".ljust(32), b"another key".ljust(32)
FILES = collections.OrderedDict([
    ("merino.pyz", b"app" * 300), ("bundles/0/bundle.json", b"{}\n"), ("bundles/0/model.onnx", bytes(range(256)) * 5),
    ("bundles/0/tokenizer.json", b"{}"), ("bundles/0/whole_blocks", b"w" * 2 * BLOCK), ("bundles/0/empty", b"")])
MODEL = "bundles/0/model.onnx"
Kind = collections.namedtuple("Kind", "name data refusal")  # refusal: a pattern of its message

# Offset and length of a header's fields (POSIX ustar).
FIELDS = {"name": (0, 100), "mode": (100, 8), "uid": (108, 8), "gid": (116, 8), "size": (124, 12), "mtime": (136, 12),
          "type": (156, 1), "link": (157, 100), "magic": (257, 8), "user": (265, 32), "group": (297, 32),
          "major": (329, 8), "minor": (337, 8), "prefix": (345, 155), "rest": (500, 12)}


def head(path, size_bytes, checksum=None, **fields):
    """A header; `fields` replace those of an ordinary file. A long path is cut at the first / that makes both fit."""
    name, prefix = path.encode("utf-8", "surrogateescape"), b""
    if len(name) > 100:
        cut = name.find(b"/", len(name) - 101)
        name, prefix = (name[cut + 1:], name[:cut]) if cut > 0 else (name[:100], b"")
    values = {"name": name[:100], "mode": b"0000644\0", "uid": b"0000000\0", "gid": b"0000000\0",
              "size": b"%011o\0" % size_bytes, "mtime": b"00000000000\0", "type": b"0", "magic": b"ustar\x0000",
              "major": b"0000000\0", "minor": b"0000000\0", "prefix": prefix[:155]}
    values.update(fields)
    made = bytearray(BLOCK)
    for field, value in values.items():
        start, length = FIELDS[field]
        made[start:start + length] = value.ljust(length, b"\0")
    made[148:156] = b" " * 8
    made[148:156] = b"%06o\0 " % sum(made) if checksum is None else checksum
    return bytes(made)


def padding(data):
    return bytes(-len(data) % BLOCK)


def member(path, data, **fields):
    return head(path, len(data), **fields) + data + padding(data)


def description(files=None):
    files = FILES if files is None else files
    return {
        "schema": 1, "name": "sample", "version": "0.1.0", "boards": [], "bundles": ["bundles/0"], "wheels": [],
        "counter": 1, "withdrawn": [],
        "files": [{"path": path, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
                  for path, data in files.items()]}


def canonical(value):
    return (json.dumps(value, sort_keys=True, separators=(",", ":")) + "\n").encode("ascii")


A_KEY = base64.b64encode(ed25519_signer.public_key_of(SEED)).decode("ascii")


def checksum(manifest):
    return hashlib.sha256(manifest).hexdigest().encode("ascii") + b"  manifest.json\n"


def text64(data):
    return base64.b64encode(data).decode("ascii")


def signature(manifest, seed=SEED):
    key, value = ed25519_signer.sign(seed, b"merino manifest 1\n" + manifest)
    return canonical({"algorithm": "ed25519", "key": text64(key),
                      "signature": text64(value)})


def beginning(manifest, signed=None):
    """The members before the files. signed: the content of manifest.sig."""
    return b"".join([member("manifest.json", manifest), member("manifest.sha256", checksum(manifest)),
                     member("manifest.sig", signed) if signed is not None else b""])


def archive(manifest=None, files=None, signed=None, end=END, **members):
    """A file of these parts. `members` replaces those of files by other bytes: path -> header and content."""
    files = FILES if files is None else files
    manifest = canonical(description(files)) if manifest is None else manifest
    return beginning(manifest, signed) + b"".join(
        members.get(path, member(path, data)) for path, data in files.items()) + end


def changed(data, **changes):
    """An archive whose MODEL has another member in its place."""
    return archive(**{MODEL: data}, **changes)


def good(seed=SEED):
    manifest = canonical(description())
    return archive(manifest, signed=signature(manifest, seed))


def listing(change):
    """An archive whose manifest is changed, and whose members are those that it then lists."""
    value = description()
    contents = {file["sha256"]: FILES[file["path"]] for file in value["files"]}
    change(value)
    parts = []
    for file in value["files"]:
        data = contents.get(file.get("sha256"), b"")
        parts.append(member(str(file.get("path")).replace("\ud800", "?"), data))
    return beginning(canonical(value)) + b"".join(parts) + END


def renamed(path):
    """The manifest lists the model under another path, and there it is."""
    return listing(lambda value: value["files"][2].update(path=path))


def another(path, data=b"more"):
    """The manifest lists one more file."""
    entry = {"path": path, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    value = description()
    value["files"].append(entry)
    return archive(canonical(value), end=member(path, data) + END)


def given(**values):
    return listing(lambda value: value.update(values))


def of_file(**values):
    return listing(lambda value: value["files"][2].update(values))


def text(manifest):
    """An archive whose manifest is this text, canonical or not."""
    return archive(manifest)


# The rule is one pattern of allowed characters and parts.
PATHS = [
    ("dot-dot", "bundles/0/../../../evil"), ("absolute", "/tmp/evil"), ("backslash", "bundles/0\\..\\..\\evil"),
    ("drive", "C:/evil"), ("dot", "bundles/0/./model.onnx"), ("empty part", "bundles//0/model.onnx"),
    ("hidden", "bundles/0/.bashrc"), ("option", "bundles/0/-rf"), ("variable", "bundles/0/$HOME"), ("empty", ""),
    ("NUL", "bundles/0/a\0b"), ("line break", "bundles/0/a\nb"), ("escape sequence", "bundles/0/\x1b[2Jb"),
    ("decomposed", "bundles/0/mode\u0301l"), ("right to left", "bundles/0/\u202excod.a"),
    ("half of a pair", "bundles/0/\ud800"), ("long", "bundles/0/" + "a" * 300),
    ("deep", "bundles/0/" + "a/" * 5000 + "b")]  # fmt: skip

NUMBERS = [-1, 1.5, True, "1280", 10 ** 400, 8 ** 11]


def kinds():
    """All kinds, unsigned but where the signature is what is wrong."""
    results = [Kind("path " + name, renamed(path), r"manifest\.json .*files\[2\]\.path|half of a surrogate")
             for name, path in PATHS]
    results += [Kind(f"bytes {number}", of_file(bytes=value), r"files\[2\]\.bytes|too large|model\.onnx has .* allowed")
              for number, value in enumerate(NUMBERS)]
    return results + _manifests() + _places() + _headers() + _sizes() + _layouts() + _signatures() + _wrappings()


def kinds_with(app):
    """All kinds, with this application in each of them."""
    before = FILES["merino.pyz"]
    FILES["merino.pyz"] = app
    try:
        return kinds()
    finally:
        FILES["merino.pyz"] = before


def _places():
    """Paths that are valid by themselves and not where they stand."""
    return [
        Kind("outside of all folders", renamed("evil"), r"evil lies in no folder"),
        Kind("a release's own file", renamed("release.json"), r"release\.json lies in no folder"),
        Kind("beside the bundle", renamed("bundles/1/model.onnx"), r"bundles/1/model\.onnx lies in no folder"),
        Kind("a file twice", another(MODEL, FILES[MODEL]), r"model\.onnx is listed twice"),
        Kind("names that differ in case", another("bundles/0/Model.onnx"), r"model\.onnx is listed twice.*case"),
        Kind("a file that is a folder", another("bundles/0/model.onnx/a"), r"is a file and a folder"),
        Kind("the manifest again", another("manifest.json"), r"manifest\.json lies in no folder"),
        Kind("bundles elsewhere", given(bundles=["bundles/../.."]), r"bundles\[0\]"),
        Kind("no bundle", given(bundles=[]), r"no bundle"),
        Kind("no application", listing(lambda value: value["files"].pop(0)), r"no merino\.pyz"),
        Kind("no description", listing(lambda value: value["files"].pop(1)), r"no bundles/0/bundle\.json"),
        Kind("wheels elsewhere", given(wheels=[wheels_of("wheels/../../evil")]), r"wheels\[0\]\.path"),
        Kind("wheels in the bundle", given(wheels=[wheels_of("bundles/0")]), r"bundles/0 are not in a folder of")]


def wheels_of(path):
    return {"path": path, "python": "3.11", "architecture": "aarch64", "glibc": "2.28", "packages": {"pip": "1"},
            "unpacked_bytes": 100}


def _manifests():
    plain = canonical(description())
    value = description()
    return [
        Kind("not JSON", text(b"nonsense\n"), r"manifest\.json is not JSON"),
        Kind("empty manifest", text(b""), r"manifest\.json"),
        Kind("not ASCII", text(plain.replace(b"sample", "s\u00e9mple".encode("utf-8"))), r"manifest\.json"),
        Kind("a counter below 0", given(counter=-1), r"counter"),
        Kind("a counter that is too large", given(counter=2 ** 53 + 1), r"counter"),
        Kind("no key", given(withdrawn=["x"]), r"withdrawn\[0\]"),
        Kind("a withdrawn key twice", given(withdrawn=[A_KEY, A_KEY]), r"is listed twice"),
        Kind("deep lists", text(b"[" * 500000), r"nested too deeply"),
        Kind("many empty lists", text(b"[" + b"[]," * 349000 + b"[]]"), r"manifest\.json holds a list of 349001"),
        Kind("many files", given(files=[value["files"][2]] * 5000), r"model\.onnx is listed twice"),
        Kind("a long number", text(b"1" * 900000), r"manifest\.json"),
        Kind("NaN", text(plain.replace(b'"schema":1', b'"schema":NaN')), r"NaN is not a number"),
        Kind("other schema", given(schema=2), r"has schema 2"),
        Kind("unknown key", given(evil=1), r"evil: unknown key"),
        Kind("no files", listing(lambda each: each.pop("files") and each.update(files=[])), r"no merino\.pyz"),
        Kind("a key twice", text(plain.replace(b'"schema":1', b'"schema":1,"schema":1')), r'"schema" twice'),
        Kind("spaces", text(json.dumps(value, sort_keys=True).encode("ascii") + b"\n"), r"canonical form"),
        Kind("upper-case hash", of_file(sha256=value["files"][2]["sha256"].upper()), r"files\[2\]\.sha256"),
        Kind("another hash", of_file(sha256="0" * 64), r"in place of bundles/0/model\.onnx|model\.onnx is damaged"),
        Kind("name with an escape", given(name="\x1b[2J"), r"name is .*control characters"),
        Kind("name of a million", given(name="a" * 10 ** 6), r"name is|at most"),
        Kind("a manifest of 2 MB", text(b" " * 2 ** 21), r"manifest\.json of at most")]


def _headers():
    """Another header for the model, where its manifest is right. A reader makes the header that it expects, and
    compares all of its bytes: so a few fields stand for all."""
    data = FILES[MODEL]
    fields = {
        "a hard link": {"type": b"1", "link": b"/etc/passwd"}, "a link": {"type": b"2", "link": b"/etc/passwd"},
        "a device": {"type": b"4"}, "a folder": {"type": b"5"}, "set-uid": {"mode": b"0004755\0"},
        "an owner": {"uid": b"0001750\0"}, "rest of the header": {"rest": b"evil"}, "a prefix": {"prefix": b"/etc"},
        "name with more": {"name": MODEL.encode("ascii") + b"\0evil"}, "name that leads out": {"name": b"../../evil"},
        "checksum": {"checksum": b"000000\0 "}}
    results = [Kind("header: " + name, changed(member(MODEL, data, **values)), r"in place of " + MODEL)
               for name, values in fields.items()]
    return results + [
        Kind("long name before", changed(member("././@LongLink", b"/etc/passwd\0", type=b"L") + member(MODEL, data)),
             r"in place of " + MODEL),
        Kind("link, then a file through it",
             changed(member("bundles/0", b"", type=b"2", link=b"/tmp") + member(MODEL, data)), r"in place of " + MODEL)]


def _sizes():
    """A size that lies: the manifest's right one, another in the header, or content of another length."""
    data, words = FILES[MODEL], {
        "smaller": b"%011o\0" % 10, "larger": b"%011o\0" % (10 ** 9), "base-256": b"\x80" + bytes(9) + b"\x05\0",
        "empty": b""}
    results = [Kind("size " + name, changed(member(MODEL, data, size=value)), r"in place of " + MODEL)
             for name, value in words.items()]
    results += [Kind("content " + name, changed(head(MODEL, len(data)) + content + padding(content)), refusal)
              for name, content, refusal in (
                  ("shorter by blocks", data[:100], "in place of bundles/0/tokenizer|bytes, its manifest"),
                  ("longer by blocks", data * 2, "in place of bundles/0/tokenizer"),
                  ("of another byte", b"x" + data[1:], "model.onnx is damaged"),
                  ("with more in the padding", data + b"evil", "model.onnx is damaged"))]
    huge = [(2 ** 40, r"bytes, allowed are"), (8 ** 11 - 1, r"in place of bundles/0/tokenizer\.json")]
    for size, refusal in huge:  # manifest and header agree, and promise more than there is
        value = description()
        value["files"][2]["bytes"] = size
        field = b"%011o\0" % size if size < 8 ** 11 else b"\x80" + size.to_bytes(11, "big")
        results.append(Kind(f"{size} bytes promised",
                          archive(canonical(value), **{MODEL: member(MODEL, data, size=field)}), refusal))
    return results


def _layouts():
    manifest, plain = canonical(description()), archive()
    first, second = member("manifest.json", manifest), member("manifest.sha256", checksum(manifest))
    rest = plain[len(first) + len(second):]
    app, model = member("merino.pyz", FILES["merino.pyz"]), member(MODEL, FILES[MODEL])
    return [
        Kind("empty file", b"", r"not a packed file"),
        Kind("the manifest behind", second + first + rest, r"not a packed file"),
        Kind("a pax header before the manifest", member("g", b"14 size=99999\n", type=b"g") + plain,
             r"not a packed file"),
        Kind("two manifests, two sums", first + second + plain, r"in place of merino\.pyz"),
        Kind("no checksum", first + rest, r"manifest\.sha256 is not that"),
        Kind("checksum of another", first + member("manifest.sha256", checksum(b"x")) + rest, r"manifest\.sha256"),
        Kind("manifest's padding", member("manifest.json", manifest)[:-1] + b"x" + second + rest, r"manifest\.json"),
        Kind("manifest of 8 GB in its header", head("manifest.json", 8 ** 11 - 1) + plain[BLOCK:], r"at most"),
        Kind("manifest longer than the file", head("manifest.json", 2 ** 20) + plain[BLOCK:], r"manifest\.json is cut"),
        Kind("members swapped", plain.replace(app + member("bundles/0/bundle.json", b"{}\n") + model,
                                              app + model + member("bundles/0/bundle.json", b"{}\n")),
             r"in place of bundles/0/bundle\.json"),
        Kind("a member more", archive(end=member("bundles/0/evil", b"x") + END), r"bytes, its manifest gives"),
        Kind("a member twice", plain.replace(model, model + model), r"in place of bundles/0/tokenizer"),
        Kind("no end", plain[:-2 * BLOCK], r"its manifest gives|end is not zeros"),
        Kind("data behind the end", plain + b"evil", r"its manifest gives"),
        Kind("a second archive behind the end", plain + plain, r"its manifest gives"),
        Kind("an end that is not zeros", plain[:-1] + b"x", r"end is not zeros")]


def _signatures():
    manifest = canonical(description())
    right = signature(manifest)
    value = json.loads(right.decode("ascii"))

    def with_values(**changes):
        return archive(manifest, signed=canonical(dict(value, **changes)))

    s = int.from_bytes(base64.b64decode(value["signature"])[32:], "little") + ed25519_signer.ORDER
    beyond = text64(base64.b64decode(value["signature"])[:32] + s.to_bytes(32, "little"))
    weak = ed25519_signer.encode(ed25519_signer.ZERO)
    other = description(collections.OrderedDict(FILES, **{"merino.pyz": b"evil"}))
    return [
        Kind("signature of another manifest", archive(manifest, signed=signature(canonical(other))), r"manifest\.sig"),
        Kind("manifest of another signature",
             archive(canonical(other), dict(FILES, **{"merino.pyz": b"evil"}), signed=right), r"manifest\.sig"),
        Kind("signature by another key", good(OTHER_SEED), r"not trusted here"),
        Kind("another key named", with_values(key=text64(ed25519_signer.public_key_of(OTHER_SEED))), r"manifest\.sig"),
        Kind("signature plus the order", with_values(signature=beyond), r"manifest\.sig"),
        Kind("signature by a weak key", with_values(key=text64(weak), signature=text64(weak + bytes(32))),
             r"manifest\.sig"),
        Kind("signature that is no base64", with_values(signature="!" * 88), r"manifest\.sig"),
        Kind("another algorithm", with_values(algorithm="none"), r"in place of merino\.pyz|manifest\.sig"),
        Kind("signature's padding", good().replace(right + bytes(5), right + b"evil\0"), r"manifest\.sig"),
        Kind("two signatures", archive(manifest, signed=right).replace(
            member("manifest.sig", right), member("manifest.sig", right) * 2), r"in place of merino\.pyz"),
        Kind("signature behind the files", archive(manifest, end=member("manifest.sig", right) + END),
             r"its manifest gives"),
        Kind("signature before the checksum", member("manifest.json", manifest) + member("manifest.sig", right)
             + archive(manifest)[len(member("manifest.json", manifest)):], r"manifest\.sha256")]


def _wrappings():
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as made:
        made.writestr("a.merino", archive())
    return [Kind(name, data, r"not a packed file") for name, data in (
        ("gzip of a good one", gzip.compress(archive())), ("zip of a good one", zipped.getvalue()))]
