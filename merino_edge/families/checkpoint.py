"""A checkpoint's folder, judged without torch."""

from collections.abc import Iterator
from pathlib import Path

from merino_edge.storage.faults import shortened
from merino_runtime.errors import MerinoError
from merino_runtime.json_file import read_json

CONFIG = "config.json"
TOKENIZER = "tokenizer.json"
WEIGHTS, SHARDS = "model.safetensors", "model.safetensors.index.json"
COPY_AGAIN = "Copy the checkpoint again."


def check_checkpoint(folder: Path) -> None:
    """Raises MerinoError where the folder has no config.json, or not all weights as safetensors."""
    if not (folder / CONFIG).is_file():
        ggufs = sorted(path.name for path in folder.glob("*.gguf"))
        remedy = (
            f"It holds {shortened(', '.join(ggufs))}: export a GGUF by the path of the file" if ggufs
            else "`merino-edge train -o` writes one, and so do models downloaded from Hugging Face"
        )  # fmt: skip
        raise MerinoError(f"{folder} is no checkpoint: it has no {CONFIG}. {remedy}")
    missing = [name for name in weight_files(folder) if not (folder / name).is_file()]
    if missing == [WEIGHTS]:
        pickles = sorted(path.name for path in folder.glob("*.bin"))
        raise MerinoError(
            f"{folder} has no {WEIGHTS}"
            + (
                f", and {shortened(', '.join(pickles))} is a pickle, which may run code and is not read: convert it"
                " with transformers.AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(NEW)"
                if pickles else f". {COPY_AGAIN}"
            )
        )  # fmt: skip
    if missing:
        raise MerinoError(
            f"{folder} lacks {len(missing)} of the files that {SHARDS} names: {shortened(', '.join(missing))}."
            f" {COPY_AGAIN}"
        )


def weight_files(folder: Path) -> list[str]:
    """The names of the files with the folder's weights, whether they are there or not."""
    if (folder / WEIGHTS).is_file() or not (folder / SHARDS).is_file():
        return [WEIGHTS]
    return sorted(set(shards(folder)))


def shards(folder: Path) -> Iterator[str]:
    path = folder / SHARDS
    content = read_json(str(path), COPY_AGAIN)
    names = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(names, dict) or not names:
        raise MerinoError(f"{path} has no weight_map. {COPY_AGAIN}")
    for name in names.values():
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
            raise MerinoError(f"{path} names {shortened(repr(name))}, which is no safetensors file beside it")
        yield name


def check_tokenizer(folder: Path) -> None:
    """Raises MerinoError where the folder has no tokenizer.json, without which a bundle cannot read or write text."""
    if (folder / TOKENIZER).is_file():
        return
    others = [name for name in ("tokenizer.model", "merges.txt", "vocab.json") if (folder / name).is_file()]
    remedy = (
        f"write one from its {others[0]} with"
        " transformers.AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"
        if others else "copy it from where the weights came from; on the hub it lies beside config.json"
    )  # fmt: skip
    raise MerinoError(f"{folder} has no {TOKENIZER}, without which a bundle reads and writes no text: {remedy}")
