"""Two hundred short questions, on whose answers the formats of a model are compared."""

CAPITALS = (
    "France, Japan, Italy, Spain, Egypt, Canada, Brazil, India, China, Kenya, Peru, Norway, Sweden, Greece, "
    "Poland, Chile, Cuba, Iran, Turkey, Austria, Portugal, Ireland, Finland, Denmark, Hungary, Mexico, Thailand, "
    "Vietnam, Germany, Russia"
)
THINGS = (
    "gravity, photosynthesis, a volcano, a rainbow, democracy, inflation, an atom, DNA, a prime number, a verb, "
    "an eclipse, a glacier, a novel, a haiku, a sonnet, evolution, electricity, magnetism, a vaccine, a virus, a "
    "computer, the internet, an algorithm, a database, a triangle, a fraction, a continent, a desert, a comet, a "
    "galaxy, a black hole, a lever, friction, a mammal, a reptile, yeast, sourdough, a sonata, an orchestra, "
    "jazz, a budget, a mortgage, a telescope, a microscope, a thermometer, a compass, a fossil, coral, pollen, a "
    "tide"
)
NAMED = (
    "animals, fruits, colors, planets, oceans, rivers, countries in Europe, countries in Africa, musical "
    "instruments, sports, vegetables, metals, gases, birds, trees, flowers, languages, programming languages, "
    "cities in Italy, cities in the United States, painters, composers, writers, insects, fish, spices, kinds of "
    "cheese, kinds of bread, tools, pieces of furniture, shapes, months, seasons, desserts, drinks, things in a "
    "kitchen, things in a garden, jobs in a hospital, ways to save water, ways to relax"
)
WHYS = (
    "is the sky blue, do leaves fall in autumn, does ice float, do we sleep, do cats purr, is the sea salty, do "
    "birds migrate, does the moon shine, do we need vitamins, does bread rise, do bees make honey, do onions make "
    "us cry, does iron rust, is recycling useful, do we have leap years, is exercise healthy, do dogs bark, does "
    "thunder follow lightning, do plants need light, are forests important"
)
HOWS = (
    "boil an egg, make tea, learn a language, write a letter, change a tire, plant a tree, fall asleep faster, "
    "clean a window, save money, tie a knot, cook rice, bake a cake, make a paper plane, take a good photo, train "
    "a dog, paint a wall, remove a stain, start running, read more books, prepare for an interview"
)
SUMS = (
    "2 + 2, 7 + 5, 10 - 3, 6 times 7, 9 times 8, 100 divided by 4, 15 + 27, 50 - 18, 12 times 12, 81 divided by "
    "9, 3 + 4 + 5, 20 percent of 50, half of 90, the square of 5, the square root of 49, 1000 - 1, 25 times 4, 11 "
    "+ 13, 60 divided by 5, 8 times 3"
)
OTHERS = (
    "Who wrote Romeo and Juliet?", "Who painted the Mona Lisa?", "Who discovered penicillin?", "Who was Marie Curie?",
    "Who was Albert Einstein?", "What color is a banana?", "What color is snow?", "How many legs does a spider have?",
    "How many days are in a week?", "How many minutes are in an hour?", "What is the largest planet?",
    "What is the longest river?", "What is the highest mountain?", "What language do people speak in Brazil?",
    "What do cows eat?", "Where do penguins live?", "When did World War II end?", "Write a sentence about the sea.",
    "Translate 'good morning' into French.", "Say hello.",
)  # fmt: skip


def questions(count: int = 200) -> list[str]:
    """Return `count` of the questions, spread evenly over their kinds."""
    kinds = (
        ("What is the capital of {}?", CAPITALS), ("What is {}?", THINGS), ("Name three {}.", NAMED),
        ("Why {}?", WHYS), ("How do I {}?", HOWS), ("What is {}?", SUMS),
    )  # fmt: skip
    every = [form.format(topic) for form, listed in kinds for topic in listed.split(", ")] + list(OTHERS)
    return [every[place * len(every) // count] for place in range(count)]
