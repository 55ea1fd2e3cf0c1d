"""A model for one job: a sentence and the items that there are in, one call of the job's tools out.

The bundle holds `job.json`: the tools and the least probability of a call that is carried out without a question. The
prompt lists the items by kind; the model copies their names, so it need not know them.
"""
import json
import math
import os
from typing import TYPE_CHECKING, Any, Dict, List, Mapping, NamedTuple, Optional, Sequence

from merino_runtime.errors import MerinoError
from merino_runtime.io.json_file import read_json

if TYPE_CHECKING:
    from merino_runtime.api import LanguageModel

JOB, SCHEMA = "job.json", 1
ITEM = "x-item"  # in the schema of an argument: the kind of item that it names
REFUSE = "refuse"
MOST_TOKENS = 96


class JobAnswer(NamedTuple):
    """`name`: the tool, `refuse` if nothing is asked for. `sure`: whether to carry it out without a question."""
    name: str
    arguments: Dict[str, Any]
    probability: float
    sure: bool


class JobModel(NamedTuple):
    model: "LanguageModel"
    tools: List[Dict[str, Any]]
    threshold: float

    def answer(self, items: Mapping[str, Sequence[str]], sentence: str) -> JobAnswer:
        """Return the call for a sentence. `items`: the names of what there is, by kind."""
        from merino_runtime.generation.generate import Token, TokenLogprobs
        from merino_runtime.sampling import GREEDY

        listed = {kind: [name.lower() for name in items.get(kind, ())] for kind in item_kinds(self.tools)}
        events = list(self.model.generate(listing(listed) + said(sentence), tools=constrained(self.tools, listed),
                                          max_new_tokens=MOST_TOKENS, sampling=GREEDY, top=0))
        text = "".join(event.text for event in events if isinstance(event, Token))
        probability = math.exp(sum(event.logprob for event in events if isinstance(event, TokenLogprobs)))
        call = json.loads(text)
        sure = call["name"] == REFUSE or probability >= self.threshold
        return JobAnswer(call["name"], call["arguments"], probability, sure)


def open_job(folder: str, model: Optional["LanguageModel"] = None, **options: Any) -> JobModel:
    """Open the bundle of a job. options: of `open_model`. Raise MerinoError if it is a bundle of no job."""
    from merino_runtime.api import open_model

    path = os.path.join(folder, JOB)
    if not os.path.isfile(path):
        raise MerinoError("{} has no {}, so it is no bundle of a job: `merino-edge job make` writes one".format(
            folder, JOB))
    content = job_content(path)
    return JobModel(model or open_model(folder, **options), content["tools"], content["threshold"])


def job_content(path: str) -> Dict[str, Any]:
    """Read a job.json. Raise MerinoError if it is of another version."""
    content = read_json(path, "Make the bundle again.")
    if not isinstance(content, dict) or content.get("schema") != SCHEMA or not {"tools", "threshold"} <= set(content):
        raise MerinoError("{} is not of this version: make the bundle again".format(path))
    return content


def item_kinds(tools: Sequence[Dict[str, Any]]) -> List[str]:
    """Return the kinds of items that the tools' arguments name, in their order."""
    schemas = [schema for tool in tools for schema in tool["function"]["parameters"].get("properties", {}).values()]
    return list(dict.fromkeys(schema[ITEM] for schema in schemas if ITEM in schema))


def listing(items: Mapping[str, Sequence[str]]) -> str:
    return "".join("{}: {}\n".format(kind, ", ".join(names)) for kind, names in items.items())


def said(sentence: str) -> str:
    return "> {}\n".format(" ".join(sentence.lower().split()))


def call_text(name: str, arguments: Dict[str, Any]) -> str:
    """Return a call as the model writes it."""
    return json.dumps({"name": name, "arguments": arguments}, separators=(",", ":"), ensure_ascii=False)


REFUSAL = call_text(REFUSE, {})


def constrained(tools: Sequence[Dict[str, Any]], items: Mapping[str, Sequence[str]]) -> List[Dict[str, Any]]:
    """Return the tools whose arguments name only what there is, and the refusal. A tool is left out if it needs an item
    and there is none."""
    result = []
    for tool in tools:
        parameters = tool["function"]["parameters"]
        properties, required = parameters.get("properties", {}), list(parameters.get("required", ()))
        if any(ITEM in properties[name] and not items.get(properties[name][ITEM]) for name in required):
            continue
        schemas = {}
        for name, schema in properties.items():
            if ITEM not in schema:
                schemas[name] = {key: value for key, value in schema.items() if key != "description"}
            elif items.get(schema[ITEM]):
                schemas[name] = {"enum": list(items[schema[ITEM]])}
        result.append(function(tool["function"]["name"], schemas, required))
    return result + [function(REFUSE, {}, [])]


def function(name: str, properties: Dict[str, Any], required: List[str]) -> Dict[str, Any]:
    parameters = {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
    return {"type": "function", "function": {"name": name, "parameters": parameters}}
