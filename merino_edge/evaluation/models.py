"""The model that a SOURCE names, ready to be scored: a bundle in the board's runtime, any other as a torch model in
float32.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import Tokenizer

from merino_edge.bundles.files import DESCRIPTION_FILE, TOKENIZER_FILE, is_bundle
from merino_edge.export.request import find_source
from merino_edge.families.operators import params
from merino_edge.text.tokenizer import load_tokenizer
from merino_runtime.api import LanguageModel, open_model
from merino_runtime.bundle import quantized_cache, sha256_of
from merino_runtime.errors import MerinoError

Say = Callable[[str], None]


class Scored(NamedTuple):
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
def opened(what: str, say: Say) -> Iterator[Scored]:
    """Raises MerinoError where `what` is no source, or has no tokenizer."""
    resolved = find_source(what)
    if isinstance(resolved, Path) and is_bundle(resolved):
        with open_model(str(resolved), say=say) as model:
            yield bundle_model(model, what)
    else:
        yield torch_model(what, say)


def bundle_model(model: LanguageModel, what: str) -> Scored:
    bundle = model.bundle
    path = Path(bundle.folder) / TOKENIZER_FILE
    if not path.is_file():
        raise no_tokenizer(what, bundle.weights)
    facts = {
        "model": bundle.name, "source": what, "sha256": sha256_of(str(Path(bundle.folder) / DESCRIPTION_FILE)),
        "engine": model.backend.engine, "precision": bundle.precision, "dialect": bundle.dialect,
        "kv": quantized_cache(bundle), "weights": bundle.weights, "params": bundle.params, "context": bundle.context,
    }  # fmt: skip
    tokens = bundle.chat.tokens if bundle.chat else {}
    return Scored(
        bundle.name, facts, bundle.context, load_tokenizer(path), tokens, bundle.stop_ids, model, None
    )  # fmt: skip


def torch_model(what: str, say: Say) -> Scored:
    from merino_edge.export.source import load_source
    from merino_edge.families.hugging_face import weights_hash

    source = load_source(what, say=say)
    if source.tokenizer is None:
        raise no_tokenizer(what, source.weights)
    model = source.model.float().eval()
    facts = {
        "model": source.name, "source": what, "sha256": weights_hash(source.model),
        "engine": f"torch {version('torch')} CPU", "precision": "fp32", "dialect": None, "kv": None,
        "weights": source.weights, "params": params(source.arch.operators), "context": source.arch.context,
    }  # fmt: skip
    tokens = source.chat.tokens if source.chat else {}
    return Scored(
        source.name, facts, source.arch.context, load_tokenizer(source.tokenizer), tokens, source.stop_ids, None,
        source._replace(model=model),
    )  # fmt: skip


def no_tokenizer(what: str, weights: str) -> MerinoError:
    return MerinoError(f"{what} has no tokenizer (weights: {weights}), so it cannot read a text: give a trained model")

