"""The models of a server by name: descriptions, loading, and the number of slots that memory allows."""
import copy
import os
from typing import Any, Callable, Dict, Iterable, List, Mapping, Optional, Sequence

from merino_runtime.api import open_model
from merino_runtime.bundle import Bundle, load_bundle
from merino_runtime.errors import MerinoError
from merino_runtime.io import board
from merino_runtime.sampling import Sampling
from merino_runtime.serving.prompts import Prompts
from merino_runtime.serving.requests import RefusedError
from merino_runtime.serving.scheduler import LoadedModel
from merino_runtime.serving.slots import PrefixCache, Slots

SLOTS, SINGLE_SLOTS = 16, 4  # of people, where memory allows: if a run of the graph steps several requests; if not
SHARE = 0.5  # of the memory that is available when the server starts


class Model:
    """A bundle, or one of its LoRA adapters, which requests name like a model."""
    adapter: Optional[str] = None

    def __init__(self, bundle: Bundle, modified_s: float) -> None:
        self.bundle, self.name, self.modified_s = bundle, bundle.name, modified_s
        self.loaded: Any = None  # LoadedModel, once it is loaded
        self.prompts: Any = None  # Prompts

    def adapted(self, name: str) -> "Model":
        """Return the model with one of its adapters, over the same weights and slots."""
        twin = copy.copy(self)
        twin.name = twin.adapter = name
        return twin

    def owner_of(self, key: str) -> str:
        """Return under which name the requests of a key share prefixes: those of an adapter are its own."""
        return key if self.adapter is None else f"{key}@{self.bundle.adapters.index(self.adapter)}"


def described(paths: Sequence[str]) -> Dict[str, Model]:
    """Read the bundles' descriptions -> models by name, in order. Raise MerinoError for a bundle that cannot be read,
    and for two with the same name, adapters included."""
    models: Dict[str, Model] = {}
    taken: Dict[str, str] = {}
    for path in paths:
        bundle = load_bundle(path, verify=False)
        for name in (bundle.name, *bundle.adapters):
            if name in taken:
                raise MerinoError(f"{path} and {taken[name]} are both called {name!r} or have an adapter with that "
                                  "name, and requests name the model. Serve one of them, or export with another "
                                  "--name.")
            taken[name] = path
        models[bundle.name] = Model(bundle, os.path.getmtime(os.path.join(bundle.folder, "bundle.json")))
    return models


def slots_of(bundles: Sequence[Bundle], count: Optional[int], memory_mb: Optional[float]) -> int:
    """Return the number of slots per model for interactive requests; one more is for background requests.

    memory_mb: limit for all slots of all models; None: half of the available memory. Raise MerinoError if `count` needs
    more.
    """
    kv_mb = sum(bundle.kv_bytes for bundle in bundles) / board.MB
    together = all(bundle.dialect == "fused" for bundle in bundles)
    usual = SLOTS if together else SINGLE_SLOTS
    if memory_mb is None:
        available = board.read_memory_mb(board.read_text("/proc/meminfo")).get("MemAvailable")
        memory_mb = SHARE * available if available else (SINGLE_SLOTS + 1) * kv_mb
    most = int(memory_mb / kv_mb) - 1 if kv_mb else usual
    if count is not None and count > max(most, 0):
        raise MerinoError(f"{count} slots and one for background requests need {(count + 1) * kv_mb:,.0f} MB of KV "
                          f"cache, {memory_mb:,.0f} MB are allowed: {max(most, 0)} slots. Give fewer --slots, "
                          "more --set memory_mb, or export with a shorter --context.")
    if most < 1:
        raise MerinoError(f"a slot and one for background requests need {2 * kv_mb:,.0f} MB of KV cache, "
                          f"{memory_mb:,.0f} MB are allowed. Stop other programs, give more --set memory_mb, or export "
                          "with a shorter --context.")
    return min(most, usual) if count is None else count


def load(model: Model, slots: int, options: Mapping[str, Any], cache_folder: str, cache_mb: float,
         say: Callable[[str], None]) -> None:
    """Open a model with this number of slots. options: of `open_model`. cache_mb: limit of the prefix cache in
    `cache_folder`; 0: no cache."""
    opened = open_model(model.bundle.folder, say=say, **options)
    model.prompts = Prompts(opened.bundle, opened.tokenizer)
    prefixes = PrefixCache(opened.bundle, cache_folder, cache_mb, say) if cache_mb else None
    model.loaded = LoadedModel(Slots(opened, slots), prefixes)


def close(model: Model) -> None:
    if model.loaded is not None:
        if model.loaded.prefixes is not None:
            model.loaded.prefixes.close()
        model.loaded.slots.close()


def choices(models: Dict[str, Model]) -> Dict[str, Model]:
    """Return the models and their adapters by name."""
    return {choice.name: choice for model in models.values()
            for choice in (model, *map(model.adapted, model.bundle.adapters))}


def model_of(models: Dict[str, Model], name: str) -> Model:
    """Return the model or adapter that a request names; the first one if it names none. Ollama's clients append
    `:latest`."""
    known = choices(models)
    model = known.get(name) or known.get(name.rpartition(":")[0]) if name else next(iter(models.values()))
    if model is None:
        raise RefusedError(f"there is no model {name[:80]!r} here, there is: {', '.join(known)}.", 404,
                           param="model", code="model_not_found")
    if model.loaded is None:
        raise RefusedError("Loading model", 503, retry_s=5)
    return model


def listed(models: Iterable[Model]) -> List[Dict[str, Any]]:
    """Describe models and adapters for /v1/models."""
    defaults = {"temperature": Sampling().temperature, "top_p": Sampling().top_p}  # of requests that set nothing
    return [{"id": model.name, "object": "model", "created": int(model.modified_s), "owned_by": "this machine",
             "parent": model.bundle.name if model.adapter else None,
             "meta": {"n_ctx_train": model.bundle.context, "n_vocab": model.bundle.vocab,
                      "n_params": model.bundle.params, "size": sum(file.bytes for file in model.bundle.files),
                      "chat": model.bundle.chat is not None, "defaults": defaults}}
            for model in models]
