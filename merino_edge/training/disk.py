"""The disk of a training run: room for its saved states, and the message where it is full all the same."""

import errno
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from merino_edge.families.designed import Architecture
from merino_edge.families.operators import params
from merino_edge.training.memory import size
from merino_edge.training.states import remove_torn, saved_states
from merino_runtime.errors import MerinoError
from merino_runtime.io.outputs import check_room

STATES = 3  # two are kept while one is written
STATE_BYTES, MODEL_BYTES = 12, 4  # per parameter: weights and AdamW's two moments; weights
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# Of safetensors (Rust) and of torch's archive writer, which raise errors of their own.
WORDS = re.compile(r"No space left|File too large|quota exceeded|PytorchStreamWriter|unexpected pos|file write failed")


def check_disk(arch: Architecture, out: Path, resume: bool) -> None:
    """Raises MerinoError where nothing can be written, or the saved states and the model would not fit. `out` need not
    exist."""
    count = params(arch.operators)
    need = count * (STATE_BYTES * (1 if resume else STATES) + MODEL_BYTES)
    folder = next(path for path in (out.absolute(), *out.absolute().parents) if path.is_dir())
    check_room(str(out), str(folder))  # a read-only place has no bytes free either
    there = shutil.disk_usage(folder).free
    if need > there:
        raise MerinoError(
            f"the saved states and the model take {size(need)} in {out}, {size(there)} are free: free some, or choose"
            " an -o on another disk"
        )


@contextmanager
def disk_told(folder: Path) -> Iterator[None]:
    """Raises MerinoError where the disk is full in the body. The saved state that it cut short is removed."""
    try:
        yield
    except Exception as error:  # torch, safetensors and tokenizers each raise their own
        cause = error.__cause__ if isinstance(error, MerinoError) else error
        if not (getattr(cause, "errno", None) in FULL or WORDS.search(str(cause))):
            raise
        remove_torn(folder)
        step = next((state.name for state in saved_states(folder)), None)
        go_on = f"go on from {step} with the same command and --resume" if step else "give the same command again"
        raise MerinoError(f"cannot write {folder}: {cause}. Free some space, then {go_on}") from error
