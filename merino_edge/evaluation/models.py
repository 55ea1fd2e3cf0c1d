"""Open the model that a SOURCE names, ready to be scored: a bundle in the board's runtime, any other as a torch model
in float32.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import Tokenizer

from merino_edge.bundles.files import DESCRIPTION_FILE, TOKENIZER_FILE, is_bundle
from merino_edge.bundles.source_name import find_source
from merino_edge.families.operators import params
from merino_edge.text.tokenizer import load_tokenizer
from merino_runtime.api import LanguageModel, open_model
from merino_runtime.bundle import quantized_cache, sha256_of
from merino_runtime.errors import MerinoError

Say = Callable[[str], None]


class SourceModel(NamedTuple):
    """`bundle`: the model in the board's runtime; None: `source`, an export's source, holds a torch model. `facts`: the
    keys that all rows of a record share."""

    name: str
    facts: dict[str, Any]
    context: int
    tokenizer: Tokenizer
    tokens: dict[str, str]  # special ones, by their names in a chat template
    stop_ids: tuple[int, ...]
    bundle: LanguageModel | None
    source: Any


@contextmanager
def open_source(what: str, say: Say) -> Iterator[SourceModel]:
    """Yield the model of a source. Raise MerinoError if `what` is not a source, or has no tokenizer."""
    resolved = find_source(what)
    if isinstance(resolved, Path) and is_bundle(resolved):
        with open_model(str(resolved), say=say) as model:
            bundle = model.bundle
            path = Path(bundle.folder) / TOKENIZER_FILE
            facts = {
                "model": bundle.name, "source": what, "sha256": sha256_of(str(Path(bundle.folder) / DESCRIPTION_FILE)),
                "engine": model.backend.engine, "precision": bundle.precision, "dialect": bundle.dialect,
                "kv": quantized_cache(bundle), "weights": bundle.weights, "params": bundle.params,
                "context": bundle.context,
            }  # fmt: skip
            yield SourceModel(
                name=bundle.name, facts=facts, context=bundle.context,
                tokenizer=tokenizer_of(path if path.is_file() else None, facts),
                tokens=bundle.chat.tokens if bundle.chat else {}, stop_ids=bundle.stop_ids, bundle=model, source=None,
            )  # fmt: skip
        return
    from merino_edge.export.source import load_source
    from merino_edge.families.hugging_face import weights_hash

    source = load_source(what, say=say)
    facts = {
        "model": source.name, "source": what, "sha256": weights_hash(source.model),
        "engine": f"torch {version('torch')} CPU", "precision": "fp32", "dialect": None, "kv": None,
        "weights": source.weights, "params": params(source.arch.operators), "context": source.arch.context,
    }  # fmt: skip
    yield SourceModel(
        name=source.name, facts=facts, context=source.arch.context, tokenizer=tokenizer_of(source.tokenizer, facts),
        tokens=source.chat.tokens if source.chat else {}, stop_ids=source.stop_ids, bundle=None,
        source=source._replace(model=source.model.float().eval()),
    )  # fmt: skip


def tokenizer_of(tokenizer: Path | str | None, facts: dict[str, Any]) -> Tokenizer:
    """Load a tokenizer. Raise MerinoError if there is none."""
    if tokenizer is None:
        raise MerinoError(
            f"{facts['source']} has no tokenizer (weights: {facts['weights']}), so it cannot read a text: give a"
            " trained model"
        )
    return load_tokenizer(tokenizer)

