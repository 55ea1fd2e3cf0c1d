"""Numbers, times, and how a sentence reaches the model: as typed, or as a speech recognizer heard it."""

import random
import re
from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher

from grammar import blocks, numbered

from merino_runtime.house.words import NUMBER_WORDS

ONES = [*NUMBER_WORDS, "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"]
TENS = ["zero", "ten", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]


def number_words(number: int) -> str:
    if number < 20:
        return ONES[number]
    if number < 100:
        return TENS[number // 10] + (f" {ONES[number % 10]}" if number % 10 else "")
    return "one hundred" if number == 100 else str(number)


def spelled(number: int, rng: random.Random) -> str:
    if number == 100 and rng.random() < 0.4:
        return "a hundred"
    return number_words(number) if rng.random() < 0.55 else str(number)


def share(rng: random.Random) -> tuple[str, int]:
    """A percentage as said."""
    how = rng.random()
    if how < 0.1:
        return rng.choice(numbered("shares"))
    number = rng.choice((*range(10, 101, 10), *range(10, 101, 10), *range(5, 101, 5), rng.randint(11, 99)))
    text = spelled(number, rng)
    if how < 0.16 and number > 10:
        return text, number
    return text + (rng.choice(("%", " %", " percent")) if text.isdigit() else " percent"), number


def level(rng: random.Random) -> tuple[str, int]:
    number = rng.randint(1, 10)
    return f"level {spelled(number, rng)}", 10 * number


def degrees(number: int, rng: random.Random) -> str:
    text, usual = spelled(number, rng), " degrees"
    sign = "°" if text.isdigit() else usual
    return text + rng.choice(("", "", usual, usual, usual, usual, " celsius", " degrees celsius", sign))


def duration(rng: random.Random) -> tuple[str, int]:
    """A time span as said, in minutes."""
    how = rng.random()
    if how < 0.6:
        usual = 1, 2, 3, 5, 5, 10, 10, 10, 15, 15, 20, 20, 25, 30, 30, 40, 45, 50, 60, 90
        number = rng.choice((*usual, rng.randint(2, 120)))
        unit = rng.choice(("minute", "min")) if number == 1 else rng.choice(("minutes", "minutes", "minutes", "mins"))
        return f"{'a' if number == 1 and rng.random() < 0.6 else spelled(number, rng)} {unit}", number
    if how < 0.85:
        return rng.choice(numbered("durations"))
    number = rng.randint(2, 12)
    if how < 0.92:
        return f"{spelled(number, rng)} hours", 60 * number
    number = rng.choice((1, 1, 1, number))
    hours = rng.choice(("an hour", "one hour", "1 hour")) if number == 1 else f"{spelled(number, rng)} hours"
    if number > 1 and rng.random() < 0.3:
        return f"{spelled(number, rng)} and a half hours", 60 * number + 30
    extra = rng.choice((5, 10, 15, 15, 20, 30, 30, 40, 45))
    return f"{hours}{rng.choice((' and ', ' and ', ' '))}{spelled(extra, rng)} minutes", 60 * number + extra


def clock(rng: random.Random) -> tuple[str, int, int]:
    """An hour of twelve and a minute as said."""
    hour = rng.randint(1, 12)
    minute = rng.choice((0, 0, 0, 0, 30, 30, 15, 45, 10, 20, 40, 50, 5, 55, 35, 25))
    after = hour % 12 + 1
    word = number_words(hour)
    forms = [f"{hour}:{minute:02d}", f"{hour} {minute:02d}", f"{word} {number_words(minute)}", f"{hour}.{minute:02d}"]
    if minute == 0:
        forms = [str(hour), word, word, f"{word} o'clock", f"{hour} o'clock", f"{hour}:00"]
    elif minute == 5:
        forms = [f"{hour}:05", f"{word} oh five", f"five past {word}"]
    elif minute == 30:
        forms += [f"half past {word}", f"half past {hour}"]
    elif minute == 15:
        forms += [f"quarter past {word}", f"a quarter past {hour}", f"quarter after {word}"]
    elif minute == 45:
        forms += [f"quarter to {number_words(after)}", f"a quarter to {after}"]
    elif minute <= 20:
        forms += [f"{number_words(minute)} past {word}", f"{minute} past {hour}"]
    elif minute >= 40:
        forms += [f"{number_words(60 - minute)} to {number_words(after)}", f"{60 - minute} to {after}"]
    return rng.choice(forms), hour % 12, minute


OCLOCK = " o'clock"


def at_time(rng: random.Random) -> tuple[str, dict[str, str]]:
    """A time of the day as said, and as an argument: "from seven tomorrow morning". No action can name a day, so any
    morning is the next one. Where neither morning nor evening is said, six to eleven are in the morning and one to
    five in the afternoon."""
    text, values = plain_time(rng)
    if rng.random() < 0.3:
        before = rng.choice(("around", "from", "from", "by", "when it's", "at about", "as soon as it's", "starting at"))
        text = re.sub(r"\bat (?=[a-z0-9.: ]*$)", f"{before} ", text, count=1)
    if rng.random() < 0.3:
        text = re.sub("in the (?=evening|afternoon)", "this ", text)
        text = re.sub("in the (?=morning)", rng.choice(("tomorrow ", "tomorrow in the ")), text)
    sharp = " sharp" if rng.random() < 0.04 and text.startswith("at ") else ""
    return text + sharp, values


def plain_time(rng: random.Random) -> tuple[str, dict[str, str]]:
    """The same without a word for another day, and with "at" before the clock."""
    how = rng.random()
    if how < 0.06:
        return rng.choice((("at noon", {"at": "12:00"}), ("at midnight", {"at": "00:00"})))
    if how < 0.22:
        hour, minute = rng.randint(13, 23), rng.choice((0, 15, 30, 45, rng.randint(1, 59)))
        return f"at {hour}:{minute:02d}", {"at": f"{hour:02d}:{minute:02d}"}
    text, hour, minute = clock(rng)
    # "quarter to twelve" names the hour after; its half of the day is that of the hour itself.
    if hour == 11 and " to " in text or hour == 0:
        return plain_time(rng)
    half_said = rng.random()
    if half_said < 0.12 and not (hour == 5 and " to " in text):
        later = hour < 6
        text = f"at {text}"
    elif half_said < 0.5:
        later = rng.random() < 0.55
        mark = rng.choice(("pm", "pm", "p m", "p.m.") if later else ("am", "am", "a m", "a.m."))
        apart = rng.random() < 0.85 or " " in text
        text = f"at {text.replace(OCLOCK, '')} {mark}" if apart else f"at {text}{mark.replace(' ', '')}"
    else:
        later = hour < 3 or hour > 4 and rng.random() < 0.5
        if not later and (hour < 4):
            return plain_time(rng)
        if later and hour > 4:
            night = "at night" if hour > 8 else "in the evening"
            part = rng.choice(("in the evening", "in the evening", "tonight", night))
            text = f"tonight at {text}" if part == "tonight" and rng.random() < 0.5 else f"at {text} {part}"
        else:
            text = f"at {text} {'in the afternoon' if later else 'in the morning'}"
    return text, {"at": f"{hour + (12 if later else 0):02d}:{minute:02d}"}


# Words that may stand between two parts of one reference, as in "lights in the hall".
BETWEEN = {"in", "inside", "at", "on", "of", "the", "my", "our", "all", "and", "plus", "also", "well", "as", "to"}


def plain(sentence: str) -> list[str]:
    """The words in lower case, without apostrophes and punctuation."""
    return [word.strip(",.?!") for word in sentence.lower().replace("'", "").split()]


def places_of(parts: Sequence[str], words: list[str]) -> Iterator[tuple[int, int]]:
    """Of each part that is among the words its first place there: (first, end)."""
    for part in filter(None, map(plain, parts)):
        at = next((at for at in range(len(words)) if part == words[at : at + len(part)]), None)
        if at is not None:
            yield at, at + len(part)


def parts_said(sentence: str, parts: Sequence[str]) -> tuple[str, ...]:
    """The parts found in the sentence, in its order. Parts with only words of BETWEEN between them are joined."""
    own, words = sentence.split(), plain(sentence)
    joined: list[tuple[int, int]] = []
    for first, end in sorted(places_of(parts, words)):
        if joined and set(words[joined[-1][1] : first]) <= BETWEEN:
            joined[-1] = joined[-1][0], max(end, joined[-1][1])
        else:
            joined.append((first, end))
    return tuple(" ".join(own[first:end]) for first, end in joined)


def first_said(sentence: str, words: Sequence[str]) -> tuple[str, ...]:
    """The first of the words that the sentence has; () for none."""
    return next(filter(None, (parts_said(sentence, (word,)) for word in words)), ())


def as_heard(parts: Sequence[str], sentence: str, result: str) -> str:
    """The parts of a sentence with the recognition and typing errors of `result`, in lower case."""
    words, other = plain(sentence), plain(result)
    shown = result.lower().split()
    changes = SequenceMatcher(None, words, other, autojunk=False).get_opcodes()

    def kept(first: int, end: int) -> Iterator[str]:
        for _, low, high, other_low, other_high in changes:
            if high - low == other_high - other_low:
                yield from (shown[other_low + at - low] for at in range(max(low, first), min(high, end)))
            elif first < high and low < end:
                yield from shown[other_low:other_high]

    return ", ".join(" ".join(kept(*place)).rstrip(",.?!") for place in places_of(parts, words))


ASKING = "can", "could", "would", "will", "what", "how", "is ", "why", "who", "do ", "are ", "where", "when"


def heard(sentence: str, rng: random.Random, mistyped_share: float) -> str:
    """The sentence with the faults of typing and hearing that some sentences have."""
    words = sentence.split()
    if rng.random() < 0.09:
        words = [word for word in words if word not in ("the", "a", "my") or rng.random() < 0.2] or words
    if rng.random() < 0.05:
        places = [place for place, word in enumerate(words) if word in blocks("heard")]
        if places:
            place = rng.choice(places)
            words[place] = rng.choice(blocks("heard")[words[place]])
    if rng.random() < mistyped_share:
        places = [place for place, word in enumerate(words) if len(word) > 3 and word.isalpha()]
        if places:
            place = rng.choice(places)
            words[place] = mistyped(words[place], rng)
    if rng.random() < 0.012:
        place = rng.randrange(len(words))
        words.insert(place, rng.choice(("um", "uh", "er", "like", "erm", words[place])))
    sentence = " ".join(words)
    if rng.random() < 0.12:
        sentence = sentence.replace("'", "")
    how = rng.random()
    if how < 0.1:
        end = "?" if sentence.startswith(ASKING) else rng.choice((".", ".", "!"))
        return sentence[0].upper() + sentence[1:] + end
    if how < 0.13:
        return sentence[0].upper() + sentence[1:]
    return sentence.replace(",", "") if how < 0.8 else sentence


def mistyped(word: str, rng: random.Random) -> str:
    at = rng.randrange(1, len(word) - 1)
    before, letter, after = word[:at], word[at], word[at + 1 :]
    swapped = before + after[0] + letter + after[1:]
    wrong = before + rng.choice("aeiostrnl") + after
    return rng.choice((before + after, before + letter + letter + after, swapped, wrong))
