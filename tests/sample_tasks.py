"""A few items of four tasks of lm-evaluation-harness, written for this project: small enough to be committed."""

import json

from merino_edge.evaluation.tasks import LOCAL_TASKS

QUESTIONS = (  # the first answer is right
    ("What do bees make?", "honey", "milk", "wool", "bread"),
    ("Which of these melts in the sun?", "ice", "stone", "glass", "iron"),
    ("What does a plant need to grow?", "light", "music", "paint", "smoke"),
    ("Which animal can fly?", "a swallow", "a cow", "a carp", "a mole"),
    ("What is bread made of?", "flour", "sand", "coal", "leather"),
    ("Where does rain come from?", "clouds", "roots", "stones", "lamps"),
    ("Which tool cuts wood?", "a saw", "a spoon", "a pillow", "a cup"),
    ("What keeps a person warm in winter?", "a coat", "a fan", "a fork", "a map"),
    ("Which of these is a planet?", "Mars", "Paris", "Monday", "copper"),
    ("What pulls a dropped ball down?", "gravity", "sound", "color", "smell"),
    ("Which part of a fish takes oxygen from water?", "its gills", "its tail", "its eyes", "its scales"),
    ("What do we measure with a thermometer?", "temperature", "weight", "distance", "speed"),
)
TASKS = (  # the first way works
    ("Warm a slice of bread", "Put it into a toaster.", "Put it into a freezer."),
    ("Open a tin of beans", "Turn a can opener around its rim.", "Turn a pillow around its rim."),
    ("Keep a door from closing", "Push a wedge under it.", "Push a letter under it."),
    ("Dry wet shoes", "Stuff them with newspaper.", "Stuff them with wet leaves."),
    ("Hang a picture", "Drive a nail into the wall.", "Drive a grape into the wall."),
    ("Clean a window", "Wipe it with a damp cloth.", "Wipe it with a muddy brick."),
    ("Light a candle", "Hold a burning match to its wick.", "Hold a burning match to its base."),
    ("Cool a drink", "Add a few cubes of ice.", "Add a few spoons of salt."),
    ("Sharpen a pencil", "Turn it in a sharpener.", "Turn it in a glass of milk."),
    ("Find out the time", "Look at a clock.", "Look at a ruler."),
    ("Water a plant", "Pour water on its soil.", "Pour sand on its leaves."),
    ("Carry soup", "Put it into a bowl.", "Put it into a net."),
)
ENTAILMENTS = (  # 0: it follows
    ("The mill stands at a river, and its wheel turns all day.", "There is a mill at a river.", 0),
    ("Anna sold her boat to Peter in May.", "Peter sold a boat to Anna.", 1),
    ("All shops in the village close at six.", "The baker's shop in the village closes at six.", 0),
    ("The train was late because of snow.", "It did not snow.", 1),
    ("The museum has paintings and no statues.", "The museum has paintings.", 0),
    ("Only two of the five bridges are open.", "All bridges are open.", 1),
    ("The cook used twelve eggs for the cake.", "The cake has eggs in it.", 0),
    ("Mr Brown teaches chemistry in Leeds.", "Mr Brown teaches history.", 1),
    ("The lake froze in December.", "The lake froze in winter.", 0),
    ("No child was hurt in the accident.", "A child was hurt.", 1),
    ("The film lasts three hours.", "The film lasts longer than an hour.", 0),
    ("The dog sleeps under the table.", "The dog sleeps on the roof.", 1),
)
SCENES = (  # the first ending follows
    ("Baking", "A man stirs flour and water in a bowl.", "he", "kneads the dough.", "paints the fence.",
     "closes his umbrella.", "feeds the parrot."),
    ("Fishing", "A woman throws a line into the lake.", "she", "waits for a fish.", "reads the meter.",
     "folds a shirt.", "tunes the piano."),
    ("Cycling", "A boy sits down on his bicycle.", "he", "starts to pedal.", "boils the soup.", "shuts the oven.",
     "waters the cat."),
    ("Gardening", "A girl digs a small hole in the soil.", "she", "puts a seed into it.", "puts a phone into it.",
     "sails away.", "types a letter."),
    ("Washing", "A man fills the sink with water and soap.", "he", "washes the plates.", "washes the moon.",
     "paints the plates.", "burns the plates."),
    ("Painting", "A woman dips her brush into blue paint.", "she", "paints the wall.", "drinks the wall.",
     "eats the brush.", "plants the ladder."),
    ("Skiing", "A man stands on the top of a snowy hill.", "he", "skis down the hill.", "swims down the hill.",
     "bakes the hill.", "reads the hill."),
    ("Music", "A woman lifts her violin to her chin.", "she", "begins to play.", "begins to swim.", "begins to bake.",
     "begins to saw."),
    ("Reading", "A child opens a book at the first page.", "he", "begins to read.", "begins to dig.", "begins to ski.",
     "begins to mow."),
    ("Haircut", "A barber picks up his scissors.", "he", "cuts the man's hair.", "cuts the man's car.",
     "eats the scissors.", "waters the hair."),
    ("Camping", "Two friends unpack a tent in a meadow.", "they", "put the tent up.", "put the sun up.",
     "fry the tent.", "drink the tent."),
    ("Tea", "A man pours boiling water over tea leaves.", "he", "waits some minutes.", "waits some years.",
     "sells the water.", "plants the kettle."),
)  # fmt: skip


def write_tasks(folder):
    """Files as `eval --data` reads them; returns the number of items of each task. The right answer moves about."""
    rows = {"arc_easy": [], "piqa": [], "sglue_rte": [], "hellaswag": []}
    for index, (question, *answers) in enumerate(QUESTIONS):
        choices = turned(answers, index % 4)
        rows["arc_easy"].append({"question": question, "answerKey": "ABCD"[index % 4],
                                 "choices": {"text": choices, "label": list("ABCD")}})  # fmt: skip
    for index, (goal, *ways) in enumerate(TASKS):
        one, two = turned(ways, index % 2)
        rows["piqa"].append({"goal": goal, "sol1": one, "sol2": two, "label": index % 2})
    for premise, hypothesis, label in ENTAILMENTS:
        rows["sglue_rte"].append({"premise": premise, "hypothesis": hypothesis, "label": label})
    for index, (activity, before, who, *endings) in enumerate(SCENES):
        scene = {"activity_label": activity, "ctx_a": before, "ctx_b": who, "ctx": f"{before} {who}", "ind": index}
        rows["hellaswag"].append({**scene, "endings": turned(endings, index % 4), "label": str(index % 4)})
    for name, items in rows.items():
        (folder / LOCAL_TASKS[name].file).write_text("".join(json.dumps(item) + "\n" for item in items), "utf-8")
    return {name: len(items) for name, items in rows.items()}


def turned(answers, place):
    """With the first one at another place."""
    return [*answers[1 : place + 1], answers[0], *answers[place + 1 :]]
