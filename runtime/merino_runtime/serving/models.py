"""The models of a server by name: descriptions at once, weights when they are loaded; how many slots memory allows."""
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple

from merino_runtime.api import open_model
from merino_runtime.bundle import Bundle, load_bundle
from merino_runtime.errors import MerinoError
from merino_runtime.io import board
from merino_runtime.serving.prefix_cache import PrefixCache
from merino_runtime.serving.prompts import Prompts
from merino_runtime.serving.requests import NOT_FOUND, RefusedError
from merino_runtime.serving.scheduler import Served
from merino_runtime.serving.slots import Slots

SLOTS = 4  # for requests of people, where memory allows
SHARE = 0.5  # of the memory that is available when the server starts


class Model:
    def __init__(self, bundle: Bundle, modified_s: float) -> None:
        self.bundle, self.modified_s = bundle, modified_s
        self.served: Any = None  # Served, once it is loaded
        self.prompts: Any = None  # Prompts

    @property
    def name(self) -> str:
        return self.bundle.name


class Opening(NamedTuple):
    """How bundles are opened."""
    threads: Optional[int] = None
    prefill_threads: Optional[int] = None
    verify: bool = True
    allow_slow: bool = False
    backend: Optional[str] = None


def described(paths: Sequence[str]) -> Dict[str, Model]:
    """By name, in order. Raises MerinoError for a bundle that cannot be read, and for two of one name."""
    import os

    models: Dict[str, Model] = {}
    for path in paths:
        bundle = load_bundle(path, verify=False)
        if bundle.name in models:
            raise MerinoError(f"{path} and {models[bundle.name].bundle.folder} are both called {bundle.name!r}, and "
                              "requests name the model. Serve one of them.")
        models[bundle.name] = Model(bundle, os.path.getmtime(os.path.join(bundle.folder, "bundle.json")))
    return models


def slots_of(bundles: Sequence[Bundle], count: Optional[int], memory_mb: Optional[float]) -> int:
    """How many slots each model gets for requests of people; one more is for background requests.

    memory_mb: of all slots of all models; None: half of what is available. MerinoError where `count` needs more.
    """
    kv_mb = sum(bundle.kv_bytes for bundle in bundles) / board.MB
    if memory_mb is None:
        available = board.read_memory_mb(board.read_text("/proc/meminfo")).get("MemAvailable")
        memory_mb = SHARE * available if available else 2 * (SLOTS + 1) * kv_mb
    most = int(memory_mb / kv_mb) - 1 if kv_mb else SLOTS
    if count is not None and count > max(most, 0):
        raise MerinoError(f"{count} slots and one for background requests need {(count + 1) * kv_mb:,.0f} MB of KV "
                          f"cache, {memory_mb:,.0f} MB are allowed: {max(most, 0)} slots. Give fewer --slots, "
                          "more --memory-mb, or export with a shorter --context.")
    if most < 1:
        raise MerinoError(f"a slot and one for background requests need {2 * kv_mb:,.0f} MB of KV cache, "
                          f"{memory_mb:,.0f} MB are allowed. Stop other programs, give more --memory-mb, or export "
                          "with a shorter --context.")
    return min(most, SLOTS) if count is None else count


def load(model: Model, count: int, opening: Opening, kept: Tuple[str, float], say: Callable[[str], None]) -> None:
    """count: of slots. kept: the folder of the prefix cache, and how many MB it may hold, 0: none."""
    opened = open_model(model.bundle.folder, say=say, **opening._asdict())
    model.prompts = Prompts(opened.bundle, opened.tokenizer)
    folder, most_mb = kept
    prefixes = PrefixCache(opened.bundle, folder, most_mb, say) if most_mb else None
    model.served = Served(Slots(opened, count), prefixes)


def closed(model: Model) -> None:
    if model.served is not None:
        if model.served.prefixes is not None:
            model.served.prefixes.close()
        model.served.slots.close()


def model_of(models: Dict[str, Model], name: str) -> Model:
    """The one that a request names; the first where it names none. Ollama's clients add `:latest`."""
    model = models.get(name) or models.get(name.rpartition(":")[0]) if name else next(iter(models.values()))
    if model is None:
        raise RefusedError(f"there is no model {name[:80]!r} here, there is: {', '.join(models)}.", NOT_FOUND,
                      param="model", code="model_not_found")
    if model.served is None:
        raise RefusedError("Loading model", 503, retry_s=5)
    return model


def listed(models: Dict[str, Model]) -> List[Dict[str, Any]]:
    """As /v1/models has them."""
    return [{"id": model.name, "object": "model", "created": int(model.modified_s), "owned_by": "this machine",
             "meta": {"n_ctx_train": model.bundle.context, "n_vocab": model.bundle.vocab,
                      "n_params": model.bundle.params, "size": sum(file.bytes for file in model.bundle.files),
                      "chat": model.bundle.chat is not None}}
            for model in models.values()]
