"""Invented houses: what a house may have, and one of them by a seed.

Names and areas stand in lists: what comes after `|` is held out, so a test asks for names that no training house had. Words
without a meaning are spelled from syllables; one in eight of them is held out, by its hash.
"""

import random
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from house import Device, House

SPLITS = ("train", "test")
# The listing of a house in characters: about 90 tokens, so a sentence fits beside it in 128.
LONGEST_LISTING = 265

AREAS = """kitchen, living room, bedroom, bathroom, hallway, hall, office, study, nursery, dining room, garage, basement, attic,
    guest room, garden, balcony, terrace, lounge, drawing room, sitting room, master bedroom, laundry room, playroom, kids room,
    upstairs, downstairs, library, gym, workshop, toilet, entrance, corridor, stairs, landing, cloakroom, family room, porch,
    sauna, utility room, front room, small bedroom, big bedroom, media room, music room, game room, barn, home office, lobby,
    ensuite, backyard, shower, sunroom, shop, cabin, craft room, bar, top floor, first floor
    | cellar, loft, den, pantry, conservatory, patio, studio, greenhouse, foyer, mudroom, tea room, snug, boathouse, ground floor"""
OWNED_AREAS = "room, bedroom, office, study, den, bathroom, corner | studio, workshop, playroom"
PEOPLE = """emma, tom, anna, ben, lucy, jack, sarah, mia, noah, grandma, grandpa, mum, dad, mom, leo, nina, oscar, julia, max, ella,
    sam, alice, paul, zoe, peter, maria, ahmed, yuki, lena, carlos, ivy, omar, kate, jim, olga, rosa, finn, aunt may, ravi, chloe
    | hugo, priya, walter, grace, diego, freya, nana, kenji, martha, felix"""
BRANDS = """philips, ikea, bosch, sony, samsung, lg, dyson, siemens, hue, sonos, tapo, shelly, aqara, nest, xiaomi, tp link, miele,
    panasonic, bose, nanoleaf, eve, meross, kasa, govee, braun, smeg, lifx, osram
    | wemo, tradfri, denon, honeywell, hisense, wiz, delonghi, tuya"""
ADJECTIVES = """old, new, big, small, little, left, right, front, back, main, second, tall, round, smart, red, blue, green, white, black,
    corner, upper, lower, side, middle, vintage, wooden, glass, spare, cheap, long, antique
    | yellow, tiny, copper, outer, inner, crooked, golden, rear, fancy, paper"""
NAMES = {
    "light": """ceiling light, lamp, bedside lamp, desk lamp, floor lamp, reading lamp, table lamp, counter lamp, spotlight, spotlights,
        chandelier, led strip, fairy lights, string lights, night light, wall light, mirror light, pendant light, lava lamp,
        track lights, main light, big light, porch light, lantern, hanging lamp, standing lamp, cabinet lights, sofa lamp,
        reading light, overhead light, corner lamp, piano lamp, bed light, light strip, light bulb, wall lamp, window lights,
        shelf light, closet light, flood light, moon lamp, picture light, stair lights, sink light, vanity lights, workbench lamp
        | salt lamp, pathway lights, sconce, neon sign, downlights, bunk light, stove light, easel lamp, globe, tree lights""",
    "switch": """coffee maker, coffee machine, espresso machine, kettle, toaster, smart plug, socket, dishwasher, washing machine, dryer,
        oven, christmas tree, fountain, electric blanket, iron, charger, printer, computer, pc, water heater, towel warmer, microwave,
        space heater, rice cooker, slow cooker, aquarium, pond pump, router, outlet, power strip, wall plug, stove, air fryer,
        dehumidifier, game console, freezer, sewing machine, lawn sprinkler, doorbell, treadmill
        | humidifier, coffee pot, pool pump, sprinklers, diffuser, soldering station, waffle iron, tea maker, incubator""",
    "fan": """ceiling fan, tower fan, desk fan, exhaust fan, extractor fan, table fan, cooker hood, floor fan, ventilator, standing fan,
        window fan, air purifier, bath fan | attic fan, box fan, range hood, pedestal fan""",
    "cover": """blinds, curtains, shutters, roller blinds, garage door, awning, window blinds, roller shutters, venetian blinds, shades,
        drapes, sun blinds, skylight, window shades, blackout curtains, gate, driveway gate, velvet curtains
        | bamboo blinds, canopy, sheer curtains, roman shades, bay shutters, barn door""",
    "lock": """front door, back door, side door, door lock, main door, smart lock, garden gate, shed, cellar door, entry door, safe,
        porch door, bike shed, balcony door | kitchen door, patio door, wine cabinet, side gate, study door""",
    "climate": """thermostat, heating, radiator, air conditioner, ac, heat pump, floor heating, heater, air conditioning, wall heater,
        underfloor heating, central heating | baseboard heater, mini split, towel radiator, convector""",
    "media_player": """tv, television, speaker, radio, soundbar, stereo, record player, speakers, hifi, smart tv, projector, music box,
        smart speaker, kitchen radio, bluetooth speaker, media center, home cinema, echo, media player, shower radio
        | jukebox, boombox, turntable, alarm radio, gramophone""",
    "vacuum": """robot vacuum, vacuum, hoover, roomba, vacuum cleaner, cleaning robot, robot cleaner, robot, vacuum robot, mop robot
        | robo vac, robot mop, dust buster""",
    "scene": """movie night, good night, good morning, bedtime, dinner, party, reading, relax, romantic, movie, sunset, away, homework,
        game night, breakfast, focus, cozy evening, date night, story time, yoga, wake up, christmas, cooking, nap time, goodbye,
        work, sleep, evening, summer rain, cinema, guests, leaving home, welcome home, dance, meditation, morning coffee
        | tropical dawn, candlelight, deep sea, board games, slumber, tea time, workout, film night""",
}  # fmt: skip
ROBOTS = "rosie, dusty, dobby, alfred, bertha, wally, hazel, kirby, speedy, gustav | henry, mopsy, igor, daisy"
WEIGHTS = {
    "light": 38, "switch": 15, "cover": 11, "media_player": 12, "climate": 8, "fan": 6, "lock": 5, "vacuum": 4, "scene": 6,
}  # fmt: skip
# The last word that a made-up name of a domain may have: "zorbo lamp".
HEADS = {
    "light": ("lamp", "light", "lights", "lamp"), "switch": ("plug", "socket", "switch"), "fan": ("fan",), "cover": ("blinds", "curtains"),
    "lock": ("door", "lock"), "climate": ("heating", "thermostat"), "media_player": ("speaker", "tv"), "vacuum": ("robot", "vacuum"),
    "scene": ("mood", "time"),
}  # fmt: skip


@cache
def words(listed: str, split: str) -> tuple[str, ...]:
    """The names of a list that a split may have. A test has its own only, a training never those."""
    train, _, test = (" ".join(listed.split())).partition("|")
    return tuple(name.strip() for name in (train if split == "train" else test).split(","))


def held_out_names() -> list[str]:
    """What no training house has: names of areas, devices, people, brands, and adjectives."""
    return [name for listed in (AREAS, PEOPLE, BRANDS, ADJECTIVES, ROBOTS, *NAMES.values()) for name in words(listed, "test")]


def invented(rng: random.Random, split: str) -> str:
    while True:
        pieces = [
            rng.choice("b d f g h j k l m n p r s t v w z br dr fl gl kr pl sh st tr th qu".split()) + rng.choice("aeiou")
            for _ in range(rng.choice((2, 2, 3)))
        ]
        word = "".join(pieces) + rng.choice(("", "", "", "n", "x", "l", "r", "s", "nd"))
        if (zlib.crc32(word.encode()) % 8 == 0) == (split == "test"):
            return word


def area_name(rng: random.Random, split: str) -> str:
    how = rng.random()
    # Half of a test's areas are usual ones: a house of none but strange ones would be another task.
    listed = "train" if split == "train" or rng.random() < 0.5 else "test"
    if how < 0.84:
        return rng.choice(words(AREAS, listed)[: rng.choice((16, 200))])
    if how < 0.95:
        return f"{rng.choice(words(PEOPLE, split))}'s {rng.choice(words(OWNED_AREAS, 'train'))}"
    return rng.choice((invented(rng, split), f"{invented(rng, split)} room"))


def device_name(rng: random.Random, domain: str, area: str, split: str) -> str:
    how, listed = rng.random(), "train" if split == "train" or rng.random() < 0.4 else "test"
    base = rng.choice(words(NAMES[domain], listed))
    if domain == "scene":
        return base if how < 0.85 else f"{rng.choice(words(PEOPLE, split))}'s {base}" if how < 0.9 else invented(rng, split)
    if domain == "vacuum" and how < 0.3:
        return rng.choice(words(ROBOTS, split))
    if how < 0.56 or len(base.split()) > 2:
        return base
    if how < 0.66 and not {area, area.split()[-1]} & set(base.split()):
        return f"{area} {base}"
    if how < 0.74:
        return f"{rng.choice(words(PEOPLE, split))}'s {base}"
    if how < 0.80:
        return f"{rng.choice(words(BRANDS, split))} {base.split()[-1] if rng.random() < 0.5 else base}"
    if how < 0.89:
        return f"{rng.choice(words(ADJECTIVES, split))} {base}"
    return rng.choice((invented(rng, split), f"{invented(rng, split)} {rng.choice(HEADS[domain])}"))


def make_house(rng: random.Random, split: str) -> House:
    """A house whose listing is short enough. Names differ from each other, and from areas."""
    areas = list(dict.fromkeys(area_name(rng, split) for _ in range(rng.randint(3, 7))))
    wanted = rng.randint(6, 14)
    # Rooms are filled unevenly, and a house has not every domain.
    domains = rng.choices(list(WEIGHTS), [weight * rng.choice((0, 1, 1, 2)) + 0.01 for weight in WEIGHTS.values()], k=wanted)
    devices: list[Device] = []
    generic = {"light", "lights", "fan", "lock", *areas}
    length = len("here: ") + max(map(len, areas))
    for place, domain in enumerate(domains):
        area = areas[place] if place < len(areas) else rng.choice(areas)
        name = device_name(rng, domain, area, split)
        length += len(name) + len(domain) + 3 + (len(area) + 2 if place < len(areas) else 0)
        if length > LONGEST_LISTING and place >= 4:
            break
        if name not in generic:
            generic.add(name)
            devices.append(Device(name, domain, area))
    kept = [area for area in areas if any(device.area == area for device in devices)]
    rng.shuffle(kept)
    ordered = tuple(device for area in kept for device in devices if device.area == area)
    return House(ordered, rng.choice(kept))


def near(areas: list[str]) -> Iterator[str]:
    """Areas that a speaker could mean by another word for one of these: no refusal may ask for them."""
    groups = (
        "living room, lounge, sitting room, family room, drawing room, front room, den, snug, media room, tv room",
        "bathroom, toilet, ensuite, shower, restroom, washroom",
        "hall, hallway, corridor, entrance, foyer, lobby, landing, stairs, mudroom, porch, cloakroom",
        "study, office, home office, library, studio",
        "bedroom, master bedroom, small bedroom, big bedroom, guest room, nursery, kids room, playroom, upstairs",
        "garden, balcony, terrace, patio, backyard, porch, conservatory, greenhouse",
        "basement, cellar, downstairs, ground floor, first floor", "attic, loft, top floor, upstairs", "kitchen, dining room, pantry",
    )  # fmt: skip
    for group in groups:
        named = group.split(", ")
        if any(word in area for area in areas for word in named):
            yield from named


@dataclass(frozen=True)
class Known:
    """What a speaker knows of a device beside its name: words for its kind, in the singular and the plural."""

    single: tuple[str, ...] = ()
    plural: tuple[str, ...] = ()


# By a word of the name: what else one calls such a device. A kind without an entry is called by the name's last word.
KINDS = {
    "lamp": Known(("lamp",), ("lamps",)),
    "spotlight": Known(("spotlight", "spot"), ("spotlights", "spots")),
    "spotlights": Known((), ("spotlights", "spots")),
    "strip": Known(("strip", "led strip"), ("strips",)),
    "blinds": Known((), ("blinds", "blinds", "shades")),
    "shades": Known((), ("shades", "blinds")),
    "curtains": Known((), ("curtains", "curtains", "drapes")),
    "drapes": Known((), ("drapes", "curtains")),
    "shutters": Known((), ("shutters", "rollers")),
    "awning": Known(("awning", "sunshade"), ("awnings",)),
    "tv": Known(("tv", "tv", "telly", "television", "tv set"), ("tvs",)),
    "television": Known(("television", "tv", "tv", "telly", "tele"), ("tvs", "televisions")),
    "speaker": Known(("speaker",), ("speakers",)),
    "speakers": Known((), ("speakers",)),
    "radio": Known(("radio",), ("radios",)),
    "stereo": Known(("stereo", "hifi"), ()),
    "hifi": Known(("hifi", "stereo"), ()),
    "thermostat": Known(("thermostat",), ("thermostats",)),
    "radiator": Known(("radiator",), ("radiators",)),
    "ac": Known(("ac", "a c", "air conditioner", "air conditioning", "air con", "aircon"), ()),
    "conditioner": Known(("air conditioner", "ac", "air conditioning", "a c", "air con"), ()),
    "conditioning": Known(("air conditioning", "ac", "air conditioner", "aircon"), ()),
    "coffee": Known(("coffee maker", "coffee machine", "coffee", "coffeemaker"), ()),
    "espresso": Known(("espresso machine", "coffee machine", "coffee maker"), ()),
    "kettle": Known(("kettle", "water kettle", "electric kettle", "tea kettle"), ()),
    "washing": Known(("washing machine", "washer", "laundry machine"), ()),
    "vacuum": Known(("vacuum", "vacuum cleaner", "hoover", "robot vacuum", "robot", "vacuum robot", "cleaner"), ("vacuums",)),
    "hoover": Known(("hoover", "vacuum", "vacuum cleaner"), ("hoovers",)),
    "roomba": Known(("roomba", "vacuum", "robot vacuum", "vacuum cleaner", "hoover"), ()),
    "robot": Known(("robot", "vacuum", "robot vacuum", "cleaner", "hoover", "vacuum cleaner"), ()),
    "vac": Known(("robot vacuum", "vacuum", "hoover"), ()),
    "plug": Known(("plug",), ("plugs",)),
    "socket": Known(("socket",), ("sockets",)),
    "outlet": Known(("outlet",), ("outlets",)),
    "computer": Known(("computer", "pc"), ()),
    "pc": Known(("pc", "computer"), ()),
}  # fmt: skip


@cache
def known(name: str, domain: str) -> Known:
    """The kind of a device, by the last word of its name that tells one."""
    for word in reversed(name.split()):
        if word in KINDS and not (domain == "vacuum" and word == "mop"):
            return KINDS[word]
    return KINDS["robot"] if domain == "vacuum" else Known()
