"""Words of a sentence and of names: what may name a device or a place, what tells a domain, and which mean the same.

`answer` and `candidates` compare by them.
"""
import re
from functools import lru_cache
from typing import Dict, FrozenSet

EVERYTHING = "all"
# Words that name neither a device nor a place.
LITTLE_TEXT = (
    "a all also an and around as at both each entire every everywhere here house i in inside is it me my of on one our "
    "please plus room rooms single so that the this to us well whole")
LITTLE = frozenset(LITTLE_TEXT.split())
KIND_TEXTS = {
    "light": "light lighting lamp bulb", "switch": "switch plug socket outlet appliance", "fan": "fan",
    "cover": "blind shade curtain shutter window cover", "lock": "door lock",
    "climate": "heating heat thermostat radiator temperature ac air", "media_player":
    "music speaker sound volume", "vacuum": "vacuum robot cleaner hoover cleaning",
    "scene": "scene mode mood", "script": "script routine", "todo": "list", EVERYTHING: "everything",
}
# Words for any device of a domain, in the singular.
KINDS = {domain: frozenset(words.split()) for domain, words in KIND_TEXTS.items()}
HINT_TEXTS = {
    "light": "dark darker dim dimmer bright brighter brighten brightness light illuminate color colour red green blue "
    "yellow orange purple pink white gloomy see read reading blinding glare glow murky squint lit lumen shine",
    "cover": "open close closed shut raise lower sun sunlight daylight outside neighbor neighbour view privacy roll "
    "draw pull halfway position drape garage gate awning",
    "lock": "lock locked unlock unlocked bolt secure key door safe",
    "climate": "warm warmer hot hotter cold colder cool cooler chilly freezing degree temperature heat celsius "
    "heater sweating boiling frozen icy thermostat temp cosy cozy toasty stuffy shivering",
    "media_player": "play pause louder quieter volume mute unmute song track music loud quiet noise noisy hear listen "
    "movie film podcast skip next previous playing sound audio resume album show silence turn tv "
    "radio telly television",
    "vacuum": "clean cleaning vacuum dust dusty dirty floor crumb dock base charger sweep hoover spill dirt mess",
    "fan": "breeze air stuffy blow spin speed ventilate fresh hot",
    "scene": "scene mood mode activate time watch going bed good night morning goodbye",
    "script": "run script routine start activate",
    "todo": "list add put shopping grocery groceries need buy todo task write remember",
}
# Words of commands that tell a domain without naming it.
HINTS = {domain: frozenset(words.split()) for domain, words in HINT_TEXTS.items()}
# Words that people use for each other: a word of a name counts as said if one of its row is.
ALIKE_ROWS = """
tv television telly tele screen tube
vacuum hoover robot roomba cleaner vac mop
blind shade curtain drape shutter roller
awning canopy sunshade
lamp light bulb lighting spot spotlight downlight
coffee espresso coffeemaker brew cappuccino
kettle tea water
stereo hifi speaker soundbar sonos music
ac conditioner conditioning aircon cooling
heater heating radiator thermostat heat
projector beamer
hood extractor cooker
purifier cleaner
dryer drier tumble
washing washer laundry clothes
computer pc
outlet socket plug
sprinkler lawn watering grass
movie film cinema theater
bedtime night sleep slumber bed
morning wake breakfast sunrise
goodbye leaving away leave bye
welcome home arrive back
party guests friends celebrate dance
dinner supper meal cooking eat
relax cozy chill calm unwind
reading read book
romantic date
game games gaming
work focus homework concentrate study office
workout gym exercise training
yoga meditation meditate
christmas xmas tree
lounge living sitting family
bathroom toilet loo washroom restroom
hall hallway corridor entrance
backyard yard garden
office study
kid child children
door gate
dishwasher dish
toaster toast bread
oven bake roast
rice cooker
popcorn
charger charge
printer print
iron ironing
fountain pond pump
towel
blanket
router internet wifi
microwave
fryer fry chip
treadmill run running jog
mower mow
bathtub bath
desk
pool swim
fireplace fire
blender smoothie
doorbell camera
letterbox mail post
"""
# Words of sentences that ask for what a name has: "i could do with a cuppa" for the kettle.
MEANT_ROWS = """
coffee espresso: brew brewing caffeine cappuccino joe latte pot pour sleepy
kettle tea: boil boiling cuppa mug pasta
toaster: bread crisp slice toast
dishwasher: dirty dishes glasses plates sink wash washed washing
washing: clothes laundry shirts socks towels wash washed
dryer: clothes drying laundry sheets tumble
oven: bake bread cake chicken cookies pie pizza preheat roast
towel: shower towels
sprinkler sprinklers: dried drink drying flower flowers grass irrigate lawn look plants rained sprinkle thirsty watering
christmas: lit sparkle tree twinkle
blanket: cold cosy freezing ice
router: online internet wifi
rice: boil steam
charger: batteries bike car charge charged charging drill scooter
printer: letter photos print ticket warmed
iron: dress shirt trousers
fountain: bubbling flowing hear splash splashing
pond: air circulate circulating fish flowing moving oxygen pump
water: bath shower
computer pc: boot homework
dehumidifier: air humidity moisture reduce
microwave: food leftovers lunch nuke soup zap
slow: beef braise chili pork stew
fryer: chicken chips fries fry nuggets wings
treadmill: indoors jog miles
mower: cut grass lawn mow
bathtub: bath draw fill
fireplace: fire
blender: blend milkshake smoothie
letterbox: check mail
movie film cinema: grab popcorn watch
bedtime night sleep slumber: dreams goodnight hay heading nighty sweet
dinner: eat food sitting
reading story: book curling read settling
romantic date: anniversary boyfriend girlfriend romance
away leaving goodbye: bye heading shops
morning wake: awake begins shine wakey woke
work focus homework: concentrate deadline essay study write
relax cozy: chill feet unwind wind
game games: cards play
cooking: lunch
guests: arrived company visitors
christmas: happy holidays merry presents santa tree
nap: lie snooze taking
yoga meditation: mat meditate roll
"""
NUMBER_TEXT = "zero one two three four five six seven eight nine ten eleven twelve"
NUMBER_WORDS = NUMBER_TEXT.split()
NUMBERS = {word: str(number) for number, word in enumerate(NUMBER_WORDS)}
ALIKE = 0.8  # least ratio of two words that a typing error tells apart


def spoken(name: str) -> str:
    """A name as the model reads it: in lower case, without punctuation."""
    return " ".join(re.findall(r"[^\W_]+(?:'[^\W_]+)*", name.lower().replace("\u2019", "'")))


def split_words(text: str) -> "list[str]":
    """The words in lower case and the singular, numbers as digits."""
    spelled = re.findall(r"[^\W_]+", text.lower().replace("'", ""))
    return [singular(NUMBERS.get(word, word)) for word in spelled]


def content_words(text: str) -> FrozenSet[str]:
    """The words that may name a device or a place."""
    spelled = re.findall(r"[^\W_]+", text.lower().replace("'", ""))
    return frozenset(singular(NUMBERS.get(word, word)) for word in spelled if word not in LITTLE)


def singular(word: str) -> str:
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word


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


def rows_by_word() -> Dict[str, FrozenSet[str]]:
    """By a word of a sentence, what it may mean in a name."""
    rows = {}  # type: Dict[str, FrozenSet[str]]
    pairs = [(row, row) for row in ALIKE_ROWS.strip().splitlines()]
    pairs += [(row.partition(": ")[2], row.partition(": ")[0]) for row in MEANT_ROWS.strip().splitlines()]
    for said, names in pairs:
        for word in split_words(said):
            rows[word] = rows.get(word, frozenset()) | frozenset(split_words(names))
    return rows


ROWS = rows_by_word()
