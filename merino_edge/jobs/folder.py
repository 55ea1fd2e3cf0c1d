"""The folder of a job, read and checked. docs/jobs.md describes its files."""

import hashlib
import importlib.util
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from merino_edge.jobs.templates import parsed, slots_of
from merino_edge.storage.atomic import write_text
from merino_edge.storage.faults import fault_list
from merino_edge.text.documents import read_json_lines
from merino_runtime.errors import MerinoError
from merino_runtime.io.json_file import read_json, read_text
from merino_runtime.job import ITEM, REFUSE, item_kinds

SETTINGS, ITEMS, PHRASES, REFUSALS = "job.toml", "items.jsonl", "phrases", "refusals.txt"
LEAST_ITEMS = 10
REMEDY = "`merino-edge job new FOLDER` writes an example."


class Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Data(Part):
    """`samples`: of `turns` sentences about the same items. `refusals`: their share. `held_out`: families of phrases
    that training never sees."""

    samples: int = Field(default=20_000, ge=1)
    turns: int = Field(default=4, ge=1, le=16)
    refusals: float = Field(default=0.25, ge=0, lt=1)
    test: int = Field(default=500, ge=10)
    held_out: list[str] = []
    most_items: int = Field(default=8, ge=2)


class Decoder(Part):
    """`budget`: as the options of `design`, such as decode_ms. `architecture`: a file of the folder, not searched."""

    architecture: str = ""
    device: str = "raspberry-pi-zero-2w"
    budget: dict[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]] = {"decode_ms": 4.0, "params_m": 2.0}
    context: int = Field(default=256, ge=64)
    vocab: int = Field(default=768, ge=300, le=1_000_000)
    precision: Literal["fp32", "fp16", "int8", "int4"] = "int8"


class Training(Part):
    """`begin`: the model whose weights, tokenizer and architecture the job starts from: `house`, the one of this
    package, a bundle or checkpoint of the folder, or nothing. `own_tokenizer`: whether the tokenizer is of the job's
    samples all the same, as another language needs it. `settings`: further ones of `train --set`."""

    begin: str = "house"
    own_tokenizer: bool = False
    settings: dict[str, Any] = {}
    steps: int = Field(default=3000, ge=1)
    batch: int = Field(default=16, ge=1)
    seed: int = Field(default=0, ge=0, lt=2**31)


class Settings(Part):
    """job.toml. `language`: of the sentences. `program`, `tools`: files, by their paths from the folder.
    `wrong_costs`: of a wrong call, in questions."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")  # of files too
    language: str = Field(default="en", pattern="^[a-z]{2,3}$")
    program: str = "samples.py"
    tools: str = "tools.json"
    wrong_costs: float = Field(default=20.0, gt=0, allow_inf_nan=False)
    data: Data = Data()
    decoder: Decoder = Decoder()
    training: Training = Training()


class Item(NamedTuple):
    name: str
    spoken: tuple[str, ...]  # the name and its aliases


class Job(NamedTuple):
    """`phrases`: templates by family; a family is TOOL or TOOL.NAME. `items`: by kind. `sha256`: of all files.
    `program`: the module samples.py, if the folder has one: it makes the samples and judges answers."""

    folder: Path
    settings: Settings
    tools: list[dict[str, Any]]
    items: dict[str, list[Item]]
    phrases: dict[str, list[str]]
    refusals: list[str]
    sha256: str
    program: ModuleType | None = None


def read_job(folder: Path) -> Job:
    """Raises MerinoError for a missing file, and for the first fault with its place."""
    if not (folder / SETTINGS).is_file():
        raise MerinoError(f"{folder} is no job: it has no {SETTINGS}. {REMEDY}")
    try:
        settings = Settings.model_validate(tomllib.loads(read_text(str(folder / SETTINGS), "TOML", REMEDY)))
    except (tomllib.TOMLDecodeError, ValidationError) as error:
        fault = fault_list(error) if isinstance(error, ValidationError) else error
        raise MerinoError(f"{folder / SETTINGS}: {fault}. Correct it") from error
    if settings.decoder.architecture and not (folder / settings.decoder.architecture).is_file():
        raise MerinoError(f"{folder / SETTINGS}: decoder.architecture names no file of {folder}. Correct it")
    program, listed = folder / settings.program, folder / settings.tools
    files = {*folder.rglob("*"), *program.parent.glob("*.py"), listed}
    read = sorted(file for file in files if file.suffix in (".toml", ".json", ".jsonl", ".txt", ".py"))
    content = hashlib.sha256(b"".join(file.name.encode() + file.read_bytes() for file in read)).hexdigest()
    if "program" in settings.model_fields_set and not program.is_file():
        raise MerinoError(f"{folder / SETTINGS}: program names no file: {program} is missing. Correct it")
    if program.is_file():
        return Job(folder, settings, list(read_json(str(listed), REMEDY)), {}, {}, [], content, loaded(program))
    tools = checked_tools(listed)
    items: dict[str, list[Item]] = {}
    path = folder / ITEMS
    if path.is_file():
        for where, row in read_json_lines(path, str(path)):
            if not all(isinstance(row.get(key), str) and row[key].strip() for key in ("kind", "name")):
                raise MerinoError(f"{where}, must have `kind` and `name`, with `aliases` or without")
            aliases = row.get("aliases", [])
            if not (isinstance(aliases, list) and all(isinstance(alias, str) for alias in aliases)):
                raise MerinoError(f"{where}: `aliases` must be a list of texts")
            items.setdefault(row["kind"], []).append(Item(row["name"].lower(), (row["name"], *aliases)))
    for kind in item_kinds(tools):
        if (count := len(items.get(kind, ()))) < LEAST_ITEMS:
            raise MerinoError(
                f"{path} has {count} items of kind {kind}: give {LEAST_ITEMS} or more, since the test has others than"
                " training"
            )
    phrases = {file.stem: list(lines_of(file)) for file in sorted((folder / PHRASES).glob("*.txt"))}
    check_phrases(folder, tools, phrases, settings)
    refusals = list(lines_of(folder / REFUSALS)) if (folder / REFUSALS).is_file() else []
    if settings.data.refusals and not refusals:
        raise MerinoError(f"{folder / REFUSALS} has no lines: write what is no command, or set data.refusals = 0")
    return Job(folder, settings, tools, items, phrases, refusals, content)


def loaded(program: Path) -> ModuleType:
    """Return a job's program as a module. It imports its neighbors by their names."""
    folder = program.parent
    sys.path.insert(0, str(folder.resolve()))
    spec = importlib.util.spec_from_file_location(f"samples of {folder.name}", program)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except ImportError as error:
        raise MerinoError(f"{program}: {error}. Install what {folder / 'requirements.txt'} lists") from error
    except Exception as error:  # of the user's own program
        raise MerinoError(f"{program} cannot be run: {type(error).__name__}: {error}. Correct it") from error
    if lacking := [name for name in ("samples", "tests", "judge") if not hasattr(module, name)]:
        raise MerinoError(f"{program} has no {', '.join(lacking)}: write them as docs/jobs.md has them")
    return module


def checked_tools(path: Path) -> list[dict[str, Any]]:
    tools = read_json(str(path), REMEDY)
    try:
        for tool in tools:
            function = tool["function"]
            properties = function["parameters"].get("properties", {})
            if function["name"] == REFUSE or not function["name"].isidentifier():
                raise ValueError(f"the name {function['name']!r} is not allowed: use letters, digits and _")
            for name, schema in properties.items():
                if not (ITEM in schema or "enum" in schema or schema.get("type") == "integer"):
                    raise ValueError(f"{name} of {function['name']} must have {ITEM}, enum, or type integer")
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise MerinoError(f"{path} is no list of tools in OpenAI's form: {error}. {REMEDY}") from error
    if not tools:
        raise MerinoError(f"{path} is empty: give at least one tool. {REMEDY}")
    return list(tools)


def lines_of(path: Path) -> Iterator[str]:
    for number, line in enumerate(read_text(str(path), "text", REMEDY).splitlines(), 1):
        if line.strip() and not line.startswith("#"):
            try:
                parsed(line.strip())
            except (MerinoError, RecursionError) as error:
                why = error if isinstance(error, MerinoError) else "its brackets are nested too deeply"
                raise MerinoError(f"{path}, line {number}: {why}") from error
            yield line.strip()


def check_phrases(folder: Path, tools: list[dict[str, Any]], phrases: dict[str, list[str]], settings: Settings) -> None:
    named = {tool["function"]["name"]: tool["function"]["parameters"] for tool in tools}
    trained = {family.partition(".")[0] for family, lines in phrases.items()
               if lines and family not in settings.data.held_out}  # fmt: skip
    if missing := [name for name in named if name not in trained]:
        raise MerinoError(f"{folder / PHRASES} has no sentences for {missing[0]}: write some to {missing[0]}.txt")
    for family, lines in phrases.items():
        tool = family.partition(".")[0]
        if tool not in named:
            raise MerinoError(f"{folder / PHRASES}/{family}.txt: there is no tool {tool} in {settings.tools}")
        known, required = set(named[tool].get("properties", {})), set(named[tool].get("required", ()))
        for line in lines:
            slots = slots_of(parsed(line))
            if slots - known or required - slots:
                fault = f"{{{sorted(slots - known)[0]}}} is no argument of {tool}" if slots - known else (
                    f"it lacks {{{sorted(required - slots)[0]}}}, which {tool} requires")  # fmt: skip
                raise MerinoError(f"{folder / PHRASES}/{family}.txt, {line!r}: {fault}")
    if odd := [family for family in settings.data.held_out if family not in phrases]:
        raise MerinoError(f"{folder / SETTINGS}: held_out names {odd[0]}, and there is no {PHRASES}/{odd[0]}.txt")


def new_job(folder: Path) -> None:
    """Write an example, a kiosk's menu. Raises MerinoError if the folder has files."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise MerinoError(f"{folder} exists and is not empty: choose another folder")
    example = Path(__file__).parent / "example"
    for path in sorted(path for path in example.rglob("*") if path.is_file()):
        write_text(folder / path.relative_to(example), path.read_text(encoding="utf-8"))
