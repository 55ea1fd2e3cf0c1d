"""A checkpoint's folder, judged without torch."""

from pathlib import Path

from merino_runtime.errors import MerinoError

CONFIG = "config.json"


def check_checkpoint(folder: Path) -> None:
    """Raises MerinoError where the folder has no config.json."""
    if not (folder / CONFIG).is_file():
        raise MerinoError(
            f"{folder} is no checkpoint: it has no {CONFIG}. `merino-edge train -o` writes one, and so do models"
            " downloaded from Hugging Face"
        )
