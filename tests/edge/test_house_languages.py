"""Houses in German, French and Spanish: what their phrases say, their words at run time, and the shipped models."""

import json
import random
import sys
from pathlib import Path

import jsonschema
import pytest

pytest.importorskip("home_assistant_intents", reason="no home-assistant-intents: install the extra test")
HOUSE = Path(__file__).parents[2] / "examples" / "house"
sys.path[:0] = [str(HOUSE), str(HOUSE.parents[1] / "bench" / "experiments")]
import house as evaluate  # noqa: E402
import languages  # noqa: E402
import samples as program  # noqa: E402
from grammar import value  # noqa: E402
from refer import MARKS  # noqa: E402

from merino_edge.house.intents import texts_of  # noqa: E402
from merino_edge.jobs.folder import read_job  # noqa: E402
from merino_edge.jobs.make import HOUSE as HOUSE_MODEL  # noqa: E402
from merino_runtime.api import open_model  # noqa: E402
from merino_runtime.house.answer import answer, language_of, threshold  # noqa: E402
from merino_runtime.house.house import (  # noqa: E402
    TOOLS,
    Device,
    House,
    meanings,
    read_calls,
    schema,
    write_calls,
)
from merino_runtime.house.words import LANGUAGES, words_of  # noqa: E402

OTHERS = tuple(language for language in LANGUAGES if language != "en")
COUNT = 400


@pytest.mark.parametrize("language", OTHERS)
def test_a_folder_is_a_job_whose_phrases_can_be_said(language):
    languages.check(language)
    job = read_job(HOUSE / language)
    assert job.settings.language == language and job.program and len(job.tools) == len(TOOLS)


@pytest.mark.parametrize("language", OTHERS)
@pytest.mark.parametrize("split", ["train", "test"])
def test_a_sample_is_an_answer_that_the_schema_of_its_house_allows(language, split):
    rng, any_house = random.Random(f"{language} {split}"), jsonschema.Draft202012Validator(schema())
    kinds = set()
    for _ in range(COUNT // 10):
        house = program.a_house(rng, split, language)
        for sample in (program.a_sample(rng, split, house) for _ in range(10)):
            kinds.add(sample.kind)
            assert not set(MARKS) & set(sample.sentence + "".join(call.words for call in sample.calls))
            assert any_house.is_valid(json.loads(write_calls(sample.calls)))
            for call in sample.calls:
                program.check(sample.house, call)
                assert all(part in sample.sentence.lower() for part in call.words.split(", "))
            refused = sample.kind.startswith(("missing.", "no."))
            assert bool(meanings(sample.calls, sample.house)) != refused or sample.kind == "list.add"
    assert len(kinds) > 50 and bool(kinds & program.new_wordings(language)) == (split == "test")


@pytest.mark.parametrize("language", OTHERS)
def test_no_training_house_has_a_name_of_the_test(language):
    held, rng = languages.names_of(language).held_out, random.Random(1)
    houses = [program.a_house(rng, "train", language) for _ in range(200)]
    assert len(held) > 40 and not held & {device.name for house in houses for device in house.devices}


@pytest.mark.parametrize("language", OTHERS)
def test_a_time_that_is_said_is_found_in_the_sentence(language):
    """Without it the assistant would not ask about a time that the call lacks. German "um 5" is a time or a step."""
    rng = random.Random(2)
    said = [value("when", rng, language)[0] for _ in range(1000)]
    assert sum(bool(words_of(language).later.search(text)) for text in said) >= 990
    rows = [row for row in program.tests(600, 6, language=language) if row["family"].startswith("ha.")]
    untimed = [row for row in rows if '"a' not in row["call"].partition("{")[2]]  # neither after nor at
    plain = [row["sentence"].lower() for row in untimed]
    assert len(plain) > 60 and sum(bool(words_of(language).later.search(text)) for text in plain) <= len(plain) / 30


@pytest.mark.parametrize("language", OTHERS)
def test_the_candidates_of_a_large_house_have_the_targets(language):
    """At least 98 of 100, of 150 devices."""
    cases = [(program.read_house(row["items"]), row) for row in program.tests(300, 5, 150, language=language)]
    found = [evaluate.recalled(house, row["sentence"], read_calls(row["call"])) for house, row in cases]
    assert sum(found) >= 0.98 * len(found)


HOMES = {
    "de": ("küche", ("deckenlampe", "kaffeemaschine", "stehlampe", "haustür"), "wohnzimmer", {
        "mach das licht an": [["on", ["küche/light"]]], "ich brauche einen kaffee": [["on", ["kaffeemaschine"]]],
        "schließ die haustür auf": [["unlock", ["haustür"]]], "erzähl mir einen witz": []}),
    "fr": ("cuisine", ("plafonnier", "cafetière", "lampadaire", "porte d'entrée"), "salon", {
        "allume la lumière": [["on", ["cuisine/light"]]], "j'ai besoin d'un café": [["on", ["cafetière"]]],
        "déverrouille la porte d'entrée": [["unlock", ["porte d'entrée"]]], "raconte-moi une blague": []}),
    "es": ("cocina", ("lámpara de techo", "cafetera", "lámpara de pie", "puerta principal"), "salón", {
        "enciende la luz": [["on", ["cocina/light"]]], "necesito un café": [["on", ["cafetera"]]],
        "abre la puerta principal": [["unlock", ["puerta principal"]]], "cuéntame un chiste": []}),
}  # fmt: skip


@pytest.mark.parametrize("language", OTHERS)
def test_the_shipped_model_answers_in_its_language(language):
    here, (ceiling, coffee, standing, door), other, answers = HOMES[language]
    home = House((Device(ceiling, "light", here), Device(coffee, "switch", here), Device(standing, "light", other),
                  Device(door, "lock", other)), here, language=language)  # fmt: skip
    folder = str(HOUSE_MODEL.with_name(f"house-{language}"))
    assert language_of(folder) == language and 0 < threshold(folder) < 1
    with open_model(folder) as model:
        for sentence, wanted in answers.items():
            given = answer(model, home, sentence, threshold(folder))
            assert [[TOOLS[call.tool].short, list(call.targets)] for call in given.calls] == wanted, sentence
            assert given.asks or "unlock" not in str(wanted)


@pytest.mark.parametrize("language", OTHERS)
def test_what_is_said_is_there_in_each_language(language):
    def shape(texts):
        return {name: shape(one) if isinstance(one, dict) else type(one) for name, one in texts.items()}

    assert shape(texts_of(language)) == shape(texts_of("en"))
