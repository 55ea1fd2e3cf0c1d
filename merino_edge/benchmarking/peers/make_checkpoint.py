"""A transformers checkpoint with random weights, and CTranslate2's conversion of one."""

from pathlib import Path
from typing import Any

from merino_edge.families.geometry import Geometry


def write_checkpoint(path: Path, geometry: Geometry) -> None:
    from merino_edge.families.hugging_face import random_model  # loads torch

    random_model(geometry).save_pretrained(path)


def convert_for_ctranslate2(checkpoint: Path, path: Path, vocab: int, precision: str) -> None:
    """By CTranslate2's own converter, with made-up tokens t0, t1, ... in place of a tokenizer.

    Raises ValueError for a model that it does not know, and for a vocabulary that it would pad.
    """
    from ctranslate2.converters import TransformersConverter

    import merino_edge.families.hugging_face  # noqa: F401 - registers what transformers does not have

    class Vocabulary:
        bos_token = eos_token = f"t{min(2, vocab - 1)}"
        unk_token = f"t{min(3, vocab - 1)}"

        def get_vocab(self) -> dict[str, int]:
            return {f"t{index}": index for index in range(vocab)}

    class Converter(TransformersConverter):
        def load_tokenizer(self, *_: Any, **__: Any) -> Vocabulary:
            return Vocabulary()

    if vocab % 8:
        raise ValueError(f"CTranslate2's converter pads a vocabulary to a multiple of 8, this one has {vocab} entries")
    Converter(str(checkpoint)).convert(str(path), quantization=precision)
