"""Story tellers beside each other: bits per byte of held-out stories, and how varied what they write is.

    python bench/experiments/stories.py BUNDLE... --held-out STORIES -o bench/results/stories-x86-2cores.json

By the board's runtime. Varied: the share of different ones among the 3-grams of words in 200 texts, sampled at
temperature 0.7 behind "Once upon a time", 120 tokens each, seeds 0 to 199.
"""

import argparse
from pathlib import Path

from write_record import write_record

from merino_edge.evaluation.answers import Answers
from merino_edge.evaluation.perplexity import evaluate_text
from merino_runtime.api import open_model
from merino_runtime.sampling import Sampling

TEXTS, TOKENS, TEMPERATURE, PROMPT, LIMIT = 200, 120, 0.7, "Once upon a time", 100


def distinct_share(bundle):
    """Of the 3-grams of words in all texts together."""
    seen = []
    with open_model(bundle) as model:
        for seed in range(TEXTS):
            sampling = Sampling(temperature=TEMPERATURE, seed=seed)
            words = "".join(model.stream(PROMPT, max_new_tokens=TOKENS, sampling=sampling)).split()
            seen += zip(words, words[1:], words[2:], strict=False)
    return len(set(seen)) / len(seen)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", nargs="+")
    parser.add_argument("--held-out", type=Path, required=True)
    parser.add_argument("-o", type=Path, required=True)
    given = parser.parse_args()
    rows = []
    for row in evaluate_text(given.bundles, given.held_out, LIMIT, Answers()):
        share = round(distinct_share(row.source), 4)
        rows.append({**row.model_dump(mode="json", exclude={"command"}), "source": Path(row.source).name,
                     "distinct_3grams": share})  # fmt: skip
        print(row.source, row.metrics["bits_per_byte"].value, share, flush=True)
    write_record(given.o, {"schema": 1, "about": __doc__.split("\n\n")[0], "temperature": TEMPERATURE, "rows": rows})


if __name__ == "__main__":
    main()
