"""docs/reference/errors.md: the beginning of each message of a MerinoError, and its remedy, from the syntax trees."""

import ast
import re
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {
    "Workstation": "merino_edge",
    "Board": "runtime/merino_runtime",
    "Benchmark": "bench/merino_bench",
}
GAP = "…"
LONGEST = 100  # characters of a beginning
# What is filled in under these names is a remedy, or another message, which ends with its own.
CARRIED = {"remedy", "refusal", "refusals"}
IN_THE_MESSAGE = "The message ends with it"
LATER = "Try again, after the seconds in Retry-After"  # of an answer of the server with `retry_s`
# How a remedy begins: by what to do, by a command, or by what is allowed.
VERBS = """
accept add allow begin change check choose compare connect convert copy correct cut decode delete design download
enlarge export fetch finish flash free give insert install join leave let look make measure mend mount move must name
omit open pack pass put raise read remove rename repair report request restart run save search see send serve set
shorten sign slide start stop take train trust try type unmount use wait write
"""
ALLOWED = "allowed|expected|there is:|(?:known|supported|exported) (?:is|are)"
WORDS = rf"(?:or |{GAP})?(?:{'|'.join(VERBS.split())}|{ALLOWED})(?![\w/-])"
DO = rf"{WORDS}|`|--\w|/\w|(?:pip|python3?|sudo) |{GAP} takes "



def raised(path: Path) -> Iterator[tuple[str, str]]:
    """(what is wrong, what to do) of the errors that a file raises, with GAP for what is filled in."""
    for scope, node in calls(tree_of(path)):
        name = node.func.id if isinstance(node.func, ast.Name) else ""
        if name in ("MerinoError", "RefusedError") and node.args:
            for message in literals(node.args[0], (scope, path)):
                what, remedy = parts(message)
                if not remedy and any(each.arg == "retry_s" for each in node.keywords):
                    remedy = LATER
                if len(re.findall(r"[^\W\d]", what)) >= 4:
                    yield what, remedy


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def calls(node: ast.AST, scope: ast.AST | None = None) -> Iterator[tuple[ast.AST | None, ast.Call]]:
    """Each call with the function that it stands in."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Call):
            yield scope, child
        yield from calls(child, child if isinstance(child, ast.FunctionDef) else scope)


Place = tuple[ast.AST | None, Path]  # the function and the file that an expression stands in


def literals(node: ast.expr | None, place: Place, depth: int = 0) -> list[str]:
    """The texts that an expression may become, one per choice at its end; `<NAME>` for what a name of CARRIED holds."""

    def each(node: ast.expr) -> list[str]:
        return literals(node, place, depth)

    def joined(nodes: Sequence[ast.expr]) -> list[str]:
        begin = "".join(texts[0] if len(texts := each(node)) == 1 else GAP for node in nodes[:-1])
        return [re.sub(f"{GAP}+", GAP, begin + text) for text in each(nodes[-1])]

    if isinstance(node, ast.Constant):
        return [GAP if node.value is None else str(node.value)]
    if isinstance(node, ast.JoinedStr):
        return joined(node.values)
    if isinstance(node, ast.FormattedValue):
        return each(node.value)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return joined([node.left, node.right])
    if isinstance(node, ast.IfExp):
        return each(node.body) + each(node.orelse)
    carried = {each.id for each in ast.walk(node) if isinstance(each, ast.Name)} & CARRIED if node else set()
    if carried and not (isinstance(node, ast.Name) and node.id == "remedy"):  # which may be a text in its function
        return [f"<{carried.pop()}>"]
    if isinstance(node, ast.Name | ast.Attribute | ast.Call) and depth < 4:
        texts = [text for value, there in values(node, place) for text in literals(value, there, depth + 1)]
        if any(re.search(r"\w{3}", text) for text in texts):
            return texts
    return [f"<{carried.pop()}>" if carried else GAP]


def values(node: ast.expr, place: Place) -> list[tuple[ast.expr | None, Place]]:
    """What a name is given in its function, or in its file, or in the one that it is imported from; what a function
    returns."""
    scope, path = place
    named = node.func if isinstance(node, ast.Call) else node
    if isinstance(named, ast.Attribute) and isinstance(named.value, ast.Name):
        return in_file(named.attr, source_of(named.value.id, path))
    if not isinstance(named, ast.Name):
        return []
    here = [each.value for each in ast.walk(scope) if gives(each, named.id)] if scope else []
    return [(value, place) for value in here] or in_file(named.id, path)


def in_file(name: str, path: Path | None) -> list[tuple[ast.expr | None, Place]]:
    for node in tree_of(path).body if path else []:
        if gives(node, name):
            return [(node.value, (None, path))]
        if isinstance(node, ast.FunctionDef) and node.name == name:
            return [(each.value, (node, path)) for each in ast.walk(node) if isinstance(each, ast.Return)]
        if isinstance(node, ast.ImportFrom) and name in [each.name for each in node.names]:
            return in_file(name, file_of(node.module or ""))
    return []


def gives(node: ast.AST, name: str) -> bool:
    return isinstance(node, ast.Assign) and any(isinstance(each, ast.Name) and each.id == name for each in node.targets)


def source_of(module: str, path: Path) -> Path | None:
    """The file of a module that another file imports from its folder."""
    for node in tree_of(path).body:
        if isinstance(node, ast.ImportFrom) and module in [each.name for each in node.names]:
            return file_of(f"{node.module}.{module}")
    return None


def file_of(module: str) -> Path | None:
    """The project's file of a module."""
    first, *rest = module.split(".")
    folder = next((ROOT / each for each in PACKAGES.values() if Path(each).name == first), None)
    places = [folder.joinpath(*rest).with_suffix(".py"), folder.joinpath(*rest, "__init__.py")] if folder else []
    return next((each for each in places if each.is_file()), None)


def parts(message: str) -> tuple[str, str]:
    """(what is wrong, what to do): from the first colon or comma on behind which stands what to do, or the begin of its
    sentence. Where another message ends this one, so does its remedy."""
    message = " ".join(message.split()).rstrip(". ")
    if re.match(r"<\w+>", message):
        return "", ""
    message = message.replace(f".{GAP} ", f"{GAP}. ")
    masked = re.sub(r"`[^`]*`|\([^()]*\)|\{.*\}", lambda match: "_" * len(match[0]), message)
    cuts = list(re.finditer(r"[:;,.] (?:it )?| (?=must (?:be|have|lie|both|together)\b)", masked))
    begins = [re.compile(WORDS if each[0] == ", " else DO, re.IGNORECASE) for each in cuts]
    cut = next((each for each, begin in zip(cuts, begins, strict=True) if begin.match(message, each.end())), None)
    cut = cut or next((each for each in cuts if each[0] == ". " and re.search(r"`| --", message[each.end() :])), None)
    sentences = [each for each in cuts if cut and each[0] == ". " != cut[0] and each.start() < cut.start()]
    cut = sentences[-1] if sentences else cut or re.search(r" ?(?=<\w+>)", message)
    if not cut:
        return message, ""
    remedy = re.sub(r"<\w+>", IN_THE_MESSAGE, message[cut.end() :])
    return re.sub(r"<\w+>", GAP, message[: cut.start()]).rstrip(":."), begun(remedy)


def begun(remedy: str) -> str:
    """With a capital, where it does not begin with a command."""
    return remedy[:1].upper() + remedy[1:] if re.match(WORDS, remedy) else remedy


def shortened(text: str) -> str:
    return text if len(text) <= LONGEST else text[:LONGEST].rsplit(" ", 1)[0] + f" {GAP}"


def cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("`", "").replace("*", "\\*").replace("_", "\\_")


def room_of(path: Path, folder: str) -> str:
    """The folder or file of a package that a file belongs to."""
    return path.relative_to(ROOT / folder).parts[0].removesuffix(".py")


def table() -> dict[str, list[tuple[str, str]]]:
    """What is wrong and what to do, by heading."""
    rows_of: dict[str, set[tuple[str, str]]] = {}
    for title, folder in PACKAGES.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            rows_of.setdefault(f"{title}: {room_of(path, folder)}", set()).update(raised(path))
    return {heading: sorted(rows) for heading, rows in rows_of.items() if rows}


def text() -> str:
    lines = [
        "# Errors",
        "",
        "Made from the code: how each message of a `MerinoError` begins, and its remedy. … stands for what is",
        "filled in, such as a path or a number. Messages that the code puts together in other ways are left out.",
        "A command then ends with exit code 1. The site's search finds words of a message.",
    ]
    for heading, rows in table().items():
        lines += ["", f"## {heading}", "", "| message | remedy |", "| --- | --- |"]
        lines += [f"| {cell(shortened(what))} | {cell(remedy)} |" for what, remedy in rows]
    return "\n".join(lines) + "\n"
