"""The meaning of a name on the command line: the packaged model, a model of the zoo, or a path.

One rule for sources, bundles and baselines: a name that is also a file or folder here is refused, not guessed.
"""

from pathlib import Path

from merino_edge.embedded import EMBEDDED, FOLDER
from merino_edge.families.zoo import Model, exportable_models
from merino_runtime.errors import MerinoError

MAGIC = b"GGUF"


def resolve(text: str) -> Model | str:
    """Return a model of the zoo that can be exported, or a path (for `embedded` the packaged bundle's).

    Raise MerinoError if `text` is a name and a path at once.
    """
    models = exportable_models()
    if text != EMBEDDED and text not in models:
        return text
    if Path(text).exists():
        named = "the packaged model" if text == EMBEDDED else f"the name of {models[text].name}"
        kind = "folder" if Path(text).is_dir() else "file"
        raise MerinoError(
            f"{text!r} is both {named} and a {kind} here: write ./{text} for the {kind}; for the model, rename the"
            f" {kind} or run this in another folder"
        )
    return str(FOLDER) if text == EMBEDDED else models[text]


def bundle_path(text: str) -> str:
    """Return the folder of a bundle. Raise MerinoError for a model of the zoo, which is not a bundle yet."""
    resolved = resolve(text)
    if isinstance(resolved, Model):
        raise MerinoError(
            f"{text!r} names {resolved.name}, which is no bundle yet: write one with"
            f" `merino-edge export {text} -o {text}-bundle`, and give {text}-bundle"
        )
    return resolved


def is_gguf(path: Path) -> bool:
    """Return whether a file begins like a GGUF, or is named as one."""
    try:
        with open(path, "rb") as file:
            return file.read(len(MAGIC)) == MAGIC or path.suffix == ".gguf"
    except OSError:
        return path.suffix == ".gguf"
