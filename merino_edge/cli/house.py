"""The command `merino-edge house`, and the service `merino-house`."""

import asyncio
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from merino_edge.cli.terminal import put, say
from merino_runtime.errors import MerinoError
from merino_runtime.io.streams import exit_code

if TYPE_CHECKING:
    from merino_runtime.house.house import House

BundleOption = Annotated[
    Path | None, typer.Option("--bundle", help="bundle of a house model; default: the one of this package")
]


def house(
    sentences: Annotated[list[str], typer.Argument(metavar="SENTENCE", help="such as 'it is dark in here'")],
    devices: Annotated[
        Path, typer.Option(help="JSON of the house: `devices`, and `here`, `floors` and `language` if you like")
    ],
    bundle: BundleOption = None,
) -> None:
    """Print the calls for house commands, one JSON object per call; without arguments `refuse`."""
    from merino_runtime.api import open_model

    home = read_house(devices)
    folder = model_folder(bundle, home.language)
    if not all(sentence.strip() for sentence in sentences):
        raise MerinoError("a sentence is empty: give words, such as 'it is dark in here'")
    from merino_runtime.house.answer import answer, language_of, threshold

    limit = threshold(str(folder))
    if language_of(str(folder)) != home.language:
        raise MerinoError(
            f"--devices {devices} is of language {home.language!r}, and --bundle {folder} of"
            f" {language_of(str(folder))!r}: give `language` of the bundle, or another bundle"
        )
    with open_model(str(folder), say=say) as model:
        for sentence in sentences:
            start = time.perf_counter()
            given: Any = answer(model, home, sentence, limit)
            for call in given.calls:
                put(json.dumps(call.openai(), ensure_ascii=False))
            if not given.calls:
                put(json.dumps({"name": "refuse", "arguments": {}}))
            sure = "not sure, so an assistant asks first" if given.asks else "sure"
            say(f"{sentence}: {sure} ({given.probability:.0%}, {1000 * (time.perf_counter() - start):.0f} ms)")


def read_house(path: Path) -> "House":
    """Read a house: `{"here": AREA, "devices": [[NAME, DOMAIN, AREA, ALIAS...]], "floors": {FLOOR: [AREA]}, "language":
    "en"}`. Raises MerinoError for a file that is none."""
    from merino_edge.house.home_assistant import DOMAINS
    from merino_runtime.house.house import Device, House
    from merino_runtime.house.words import spoken, words_of
    from merino_runtime.io.json_file import read_json

    form = '{"here": "kitchen", "devices": [["ceiling light", "light", "kitchen"]]}'
    content = read_json(str(path), f"Write one such as {form}.")
    try:
        made = [
            Device(spoken(name), domain, spoken(area), tuple(map(spoken, aliases)))
            for name, domain, area, *aliases in content["devices"]
        ]
        listed = content.get("floors", {}).items()
        floors = tuple((spoken(floor), tuple(map(spoken, areas))) for floor, areas in listed)
        here, language = spoken(content.get("here", "")), content.get("language", "en")
        unread = any(isinstance(areas, str) for _, areas in listed) or not isinstance(language, str)
        if not all(device.name for device in made) or unread:
            raise ValueError
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise MerinoError(f"--devices {path} is no house: write name, domain and area of each, as in {form}") from error
    if unknown := [device.domain for device in made if device.domain not in list(DOMAINS)]:  # it may be unhashable
        allowed = ", ".join(sorted(DOMAINS))
        raise MerinoError(f"--devices {path}: domain {unknown[0]!r} is not known, allowed: {allowed}")
    words_of(language)
    return House(tuple(made), here, floors, language=language)


def model_folder(bundle: Path | None, language: str) -> Path:
    """Return the folder of a language's model, unless one is given. Raises MerinoError if this installation has
    none."""
    from merino_edge import embedded

    folder = bundle or Path(embedded.__file__).parent / ("house" if language == "en" else f"house-{language}")
    if bundle is None and not (folder / "bundle.json").is_file():
        raise MerinoError(
            f"this installation has no house model of language {language!r}: give --bundle FOLDER of one that"
            " `merino-edge job make examples/house` trained in a checkout of the repository"
        )
    return folder


def run_service(
    uri: Annotated[str, typer.Option(help="address to listen on")] = "tcp://0.0.0.0:10500",
    home_assistant: Annotated[
        str | None, typer.Option(metavar="URL", help="Home Assistant's address; default: the Supervisor, in an add-on")
    ] = None,
    token_file: Annotated[Path | None, typer.Option(help="file with a long-lived access token")] = None,
    bundle: BundleOption = None,
    language: Annotated[str, typer.Option(help="of the sentences: en, de, fr or es")] = "en",
) -> None:
    """Answer Home Assistant's sentences over Wyoming, as a conversation agent that runs its intents."""
    from merino_edge.house.home_assistant import HomeAssistant
    from merino_edge.house.service import Agent, access, serve
    from merino_edge.storage.extras import import_extra
    from merino_runtime.api import open_model

    import_extra("wyoming")
    url, token = access(home_assistant, token_file)
    folder = model_folder(bundle, language)
    from merino_runtime.house.answer import answer, language_of, threshold

    language = language_of(str(folder))
    limit = threshold(str(folder))
    with open_model(str(folder), say=say) as model:
        home = HomeAssistant(url, token, say)
        agent = Agent(lambda house, sentence: answer(model, house, sentence, limit), home, language)
        asyncio.run(serve(uri, agent, say))


def service() -> None:
    """The entry point of `merino-house`."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(run_service)

    def called() -> Any:
        try:
            return app()
        except SystemExit as stop:
            return stop.code

    sys.exit(exit_code(called, lambda text: say(f"merino-house: {text}")))
