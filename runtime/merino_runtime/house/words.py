"""Words of a sentence and of names: what may name a device or a place, what tells a domain, and which mean the same.

`answer` and `candidates` compare by them.
"""
import json
import pkgutil
import re
from functools import lru_cache
from typing import Any, Dict, FrozenSet, List, NamedTuple, Pattern

from merino_runtime.errors import MerinoError

LANGUAGES = ("de", "en", "es", "fr")


class Words(NamedTuple):
    """What a language's file, `languages/LANGUAGE.json`, tells.

    `little`: words that name neither a device nor a place. `kinds`: by domain, words for any device of it. `hints`: by
    domain, words of commands that tell it without naming it. `rows`: by a word of a sentence, what it may mean in a
    name: words that people use for each other, and those of sentences that ask for what a name has ("i could do with a
    cuppa" for the kettle). `numbers`: digits by words. `every`: words that mean all devices. `plural`: letters that end
    a plural. `later`: finds a time or a delay. `timer`: what is no part of a timer's name."""
    little: FrozenSet[str]
    kinds: Dict[str, FrozenSet[str]]
    hints: Dict[str, FrozenSet[str]]
    rows: Dict[str, FrozenSet[str]]
    numbers: Dict[str, str]
    every: FrozenSet[str]
    plural: str
    later: Pattern[str]
    timer: Pattern[str]


def content_of(language: str) -> Dict[str, Any]:
    if language not in LANGUAGES:
        raise MerinoError("language {!r} is not known: choose from {}".format(language, ", ".join(LANGUAGES)))
    data = pkgutil.get_data("merino_runtime.house", "languages/{}.json".format(language))
    assert data
    return dict(json.loads(data.decode("utf-8")))


@lru_cache(maxsize=None)
def words_of(language: str) -> Words:
    """The words of a language. Raises MerinoError for one of which they are not known."""
    content = content_of(language)
    numbers = {word: str(number) for number, word in enumerate(content["numbers"].split())}

    def split(text: str) -> FrozenSet[str]:
        return frozenset(split_by(text, numbers, content["plural"]))

    rows = {}  # type: Dict[str, FrozenSet[str]]
    pairs = [(row, row) for row in content["alike"]]
    pairs += [(row.partition(": ")[2], row.partition(": ")[0]) for row in content["meant"]]
    for said, names in pairs:
        for word in split(said):
            rows[word] = rows.get(word, frozenset()) | split(names)
    kinds, hints = ({domain: frozenset(listed.split()) for domain, listed in content[part].items()}
                    for part in ("kinds", "hints"))
    return Words(frozenset(content["little"].split()), kinds, hints, rows, numbers, split(content["every"]),
                 content["plural"], re.compile(content["later"]), re.compile(content["timer"]))


ALIKE = 0.8  # least ratio of two words that a typing error tells apart


def spoken(name: str) -> str:
    """A name as the model reads it: in lower case, without punctuation."""
    return " ".join(re.findall(r"[^\W_]+(?:'[^\W_]+)*", name.lower().replace("\u2019", "'")))


def spelled_words(text: str) -> List[str]:
    return re.findall(r"[^\W_]+", text.lower().replace("'", ""))


def split_words(text: str, language: str) -> List[str]:
    """The words in lower case and the singular, numbers as digits."""
    words = words_of(language)
    return split_by(text, words.numbers, words.plural)


def split_by(text: str, numbers: Dict[str, str], plural: str) -> List[str]:
    return [singular(numbers.get(word, word), plural) for word in spelled_words(text)]


def content_words(text: str, language: str) -> FrozenSet[str]:
    """The words that may name a device or a place."""
    words = words_of(language)
    return frozenset(singular(words.numbers.get(word, word), words.plural)
                     for word in spelled_words(text) if word not in words.little)


def singular(word: str, plural: str) -> str:
    return word[:-1] if len(word) > 3 and word[-1] in plural and word[-2] != word[-1] else word


def among(said: FrozenSet[str], names: FrozenSet[str]) -> FrozenSet[str]:
    """Of the words that were said those that are among the names; a longer word with a typing error too."""
    return frozenset(word for word in said if word in names or any(alike(word, name) for name in names))


@lru_cache(maxsize=200000)
def alike(word: str, name: str) -> bool:
    """Whether a typing error may tell them apart."""
    return len(word) > 3 < len(name) and ratio(word, name, ALIKE) >= ALIKE


def ratio(word: str, name: str, least: float) -> float:
    """How much of two words is equal: twice their longest common subsequence of both lengths; 0 below `least`."""
    both = len(word) + len(name)
    if 2 * min(len(word), len(name)) < least * both:
        return 0.0
    masks = letter_masks(word)
    every = row = (1 << len(word)) - 1
    for letter in name:  # Hyyro's bits: a zero for each letter of the subsequence
        found = row & masks.get(letter, 0)
        row = (row + found) | (row - found)
    how = 2 * (len(word) - bin(row & every).count("1")) / both
    return how if how >= least else 0.0


@lru_cache(maxsize=4096)
def letter_masks(word: str) -> Dict[str, int]:
    masks = {}  # type: Dict[str, int]
    for place, letter in enumerate(word):
        masks[letter] = masks.get(letter, 0) | 1 << place
    return masks
