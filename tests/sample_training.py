"""What tests of training share: a tiny decoder, and text that it learns within seconds."""

import random

from merino_edge.families.designed import Architecture
from merino_edge.text.documents import END_OF_TEXT

ARCH = Architecture(
    blocks=[{"width": 32, "ffn_ratio": 1.0, "depth": 1}, {"width": 64, "ffn_ratio": 1.0, "depth": 2, "shared": True}],
    vocab=290,
    head_size=32,
    context=32,
)


def story(seed, sentences=12):
    words = random.Random(seed)
    lines = (
        f"{words.choice(['the miller', 'the baker', 'a child'])} {words.choice(['counts', 'carries', 'sells'])}"
        f" {words.choice(['flour', 'bread', 'water'])}."
        for _ in range(sentences)
    )
    return " ".join(lines)


def write_stories(path, seeds=range(60)):
    path.write_text(END_OF_TEXT.join(map(story, seeds)), encoding="utf-8")
    return path
