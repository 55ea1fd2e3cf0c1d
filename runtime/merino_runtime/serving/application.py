"""The application: a request -> a response, or one that is still generated. Knows paths and keys, no HTTP library."""
import json
import sys
import traceback
from functools import partial
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple, Union

from merino_runtime import __version__
from merino_runtime.errors import MerinoError
from merino_runtime.io.memory import freeze_loaded_objects
from merino_runtime.serving import fields, metrics, models, ollama, openai_requests, openai_responses, responses_api
from merino_runtime.serving.access import WrongKeys, check_origin, cors_of, foreign_page, network_of
from merino_runtime.serving.metrics import Burden, Sensors
from merino_runtime.serving.models import Model
from merino_runtime.serving.openai_requests import Target
from merino_runtime.serving.requests import Client, Event, Finished, RefusedError
from merino_runtime.serving.scheduler import Job, Scheduler

JSON = "application/json"
PUBLIC = ("/", "/health", "/v1/health")  # without a key

Deliver = Callable[[int, Event], None]  # the index of a prompt, an event of its completion


class Request(NamedTuple):
    method: str
    path: str
    headers: Dict[str, str]  # names in lower case
    body: bytes
    address: str  # of the client
    owner: str = ""  # the name of its key


class Response(NamedTuple):
    status: int
    body: bytes
    content_type: str = JSON
    headers: Tuple[Tuple[str, str], ...] = ()


class Settings(NamedTuple):
    keys: Tuple[str, ...] = ()
    origins: Tuple[str, ...] = ()  # of web pages that may use the server
    local: bool = True  # served on this machine's own address alone
    most_waiting: int = 32
    limit_s: Optional[float] = None
    ceiling_c: Optional[float] = None  # of the hottest sensor


class PendingResponse:
    """A response that is still generated. Its events go to `deliver`; the HTTP task passes them to `take`, which
    returns the bytes that a stream writes."""

    def __init__(self, scheduler: Scheduler, model: Model, requests: Sequence[Any], writer: Any,
                 deliver: Deliver) -> None:
        self._scheduler, self._model, self._writer = scheduler, model, writer
        self.jobs = [Job(request, model.loaded, partial(deliver, index)) for index, request in enumerate(requests)]
        self.stream, self.content_type = writer.stream, writer.content_type

    @property
    def over(self) -> bool:
        return bool(self._writer.over or self._writer.refusal)

    def take(self, index: int, event: Event) -> bytes:
        written: bytes = self._writer.take(index, event)
        if isinstance(event, Finished):
            # A later request may send this text back; tokens of a stop string are not part of it.
            job, text = self.jobs[index], self._writer.choices[index].raw
            known = event.reason in ("stop", "length", "context") and job.request.begins and not job.request.stops
            if known and job.completion is not None and text and "\ufffd" not in text:
                self._model.prompts.remember(text, job.completion.ids, job.request.client.owner)
        return written

    def response(self) -> Response:
        """Return the whole response, if it was not streamed and is over."""
        if self._writer.refusal:
            return refused(self._writer.refusal, self._writer.error_of)
        return _json(self._writer.whole())

    def cancel(self) -> None:
        for job in self.jobs:
            self._scheduler.cancel(job)


Handled = Union[Response, PendingResponse]
Call = Callable[[Request, Deliver], Handled]


class Application:
    def __init__(self, known: Dict[str, Model], settings: Settings, sensors: Sensors = Sensors(),  # noqa: B008
                 page: Optional[Response] = None) -> None:
        self.models, self.settings = known, settings
        self.metrics = metrics.Metrics()
        self.scheduler = Scheduler(settings.most_waiting, Burden(sensors, settings.ceiling_c), self.metrics.watch,
                                   self.metrics.batched)
        self.ready, self._sensors, self._wrong_keys = False, sensors, WrongKeys()
        self._routes: Dict[str, Dict[str, Call]] = {
            "/health": {"GET": self._health}, "/v1/health": {"GET": self._health},
            "/v1/models": {"GET": self._listed}, "/v1/models/{id}": {"GET": self._model},
            "/v1/chat/completions": {"POST": partial(self._generated, read=openai_requests.chat_of,
                                                     write=openai_responses.ResponseWriter)},
            "/v1/completions": {"POST": partial(self._generated, read=openai_requests.completions_of,
                                                write=openai_responses.ResponseWriter)},
            "/v1/responses": {"POST": partial(self._generated, read=responses_api.response_of,
                                              write=responses_api.ResponseWriter)},
            "/v1/embeddings": {"POST": partial(self._generated, read=openai_requests.embeddings_of,
                                               write=openai_responses.EmbeddingWriter)},
            "/api/embed": {"POST": partial(self._generated, read=partial(openai_requests.embeddings_of, truncates=True),
                                           write=ollama.EmbeddingWriter)},
            "/metrics": {"GET": self._metrics}, "/v1/stats": {"GET": self._stats},
            "/api/version": {"GET": lambda *_: _json({"version": __version__})}, "/api/tags": {
                "GET": lambda *_: _json({"models": [ollama.tag_of(model) for model in self._choices()]})},
            "/api/ps": {"GET": self._running}, "/api/show": {"POST": self._show}, "/api/pull": {"POST": self._pull},
            "/api/chat": {"POST": partial(self._generated, read=ollama.chat_of, write=ollama.ResponseWriter,
                                          field="messages")},
            "/api/generate": {"POST": partial(self._generated, read=ollama.generate_of, write=ollama.ResponseWriter,
                                              field="prompt")},
        }
        if page:
            self._routes["/"] = {"GET": lambda *_: page}

    def serve_models(self, load: Callable[[Model], None]) -> None:
        """Load the models one after another, then run requests until `close`."""
        for model in self.models.values():
            load(model)
        freeze_loaded_objects()
        self.ready = True
        self.scheduler.run()

    def handle(self, call: Call, request: Request, deliver: Deliver) -> Handled:
        """Handle a request by what `route` returned; never raise. deliver: gets events with the index of their prompt,
        from another thread."""
        try:
            return call(request, deliver)
        except MerinoError as error:
            refusal = error if isinstance(error, RefusedError) else RefusedError(str(error))
        except Exception:  # a bug in one request must not end the others
            traceback.print_exc(file=sys.stderr)
            refusal = RefusedError("the server failed at this request. Look into its log.", 500)
        return refused(refusal, error_of(request))

    def route(self, request: Request) -> Tuple[Call, str]:
        """Return what handles a request, and the name of its key. Raise RefusedError for a foreign web page, and for a
        wrong key, path or method: nothing needs the body."""
        cors = self.cors(request)
        if request.method == "OPTIONS" and "origin" in request.headers:  # a browser's preflight, which has no key
            if not cors:
                raise foreign_page(request.headers["origin"])
            return (lambda *_: Response(204, b"")), ""
        if not self.settings.keys:
            check_origin(request.headers, self.settings.local, allowed=bool(cors))
        path = request.path.rstrip("/") or "/"
        methods = self._routes.get(path) or self._routes.get("/v1" + path)
        if path.startswith(("/v1/models/", "/models/")):
            methods = self._routes["/v1/models/{id}"]
        owner = ""
        if path not in PUBLIC:
            owner = self._wrong_keys.check(self.settings.keys, request.headers, network_of(request.address))
        if methods is None:
            raise RefusedError(f"there is no {request.path[:80]} here, there is: {', '.join(self._routes)}.", 404)
        call = methods.get("GET" if request.method == "HEAD" else request.method)
        if call is None:
            raise RefusedError(f"{path} does not take {request.method[:20]}, allowed: {', '.join(methods)}.",
                               405)
        return call, owner

    def cors(self, request: Request) -> Tuple[Tuple[str, str], ...]:
        """Return the headers that each response to a web page has, if its origin is allowed."""
        return cors_of(request.headers, self.settings.origins)

    def _health(self, *_: Any) -> Response:
        if self.ready and not self.scheduler.stalled:
            return _json({"status": "ok"})
        message = "A request blocks all others" if self.ready else "Loading model"
        error = {"message": message, "type": "unavailable_error", "code": 503}
        return _json({"error": error}, 503)

    def _choices(self) -> List[Model]:
        return list(models.choices(self.models).values())

    def _listed(self, *_: Any) -> Response:
        return _json({"object": "list", "data": models.listed(self._choices())})

    def _model(self, request: Request, *_: Any) -> Response:
        name = request.path.rstrip("/").partition("/models/")[2]
        return _json(models.listed([models.model_of(self.models, name)])[0])

    def _generated(self, request: Request, deliver: Deliver, read: Callable[..., Any], write: Callable[..., Any],
                   field: str = "") -> Handled:
        """Start the completions of a body. field: of Ollama's, without which a model is only loaded."""
        body = fields.body_of(request.body)
        model = self._named(body)
        fields.check_fields(body)
        if field and not body.get(field):
            return _json(ollama.loaded(model.name, field == "messages"))
        client = Client(request.owner or network_of(request.address), model.owner_of(request.owner))
        requests, options = read(body, Target(model.prompts, client, self.settings.limit_s))
        requests = [one._replace(adapter=model.adapter) for one in requests]
        writer = write(options._replace(model=model.name), len(requests), model.loaded.model.tokenizer)
        response = PendingResponse(self.scheduler, model, requests, writer, deliver)
        self.scheduler.submit(response.jobs)
        return response

    def _running(self, *_: Any) -> Response:
        return _json({"models": [ollama.running(model) for model in self.models.values() if model.loaded]})

    def _show(self, request: Request, *_: Any) -> Response:
        return _json(ollama.shown(self._named(fields.body_of(request.body))))

    def _pull(self, request: Request, *_: Any) -> Response:
        """Report success for a model that is served. Nothing is downloaded."""
        self._named(fields.body_of(request.body))
        return _json({"status": "success"})

    def _named(self, body: fields.Body) -> Model:
        """Return the model that the body names. Ollama's older clients call the field `name`."""
        return models.model_of(self.models, fields.text(body, "model") or fields.text(body, "name", ""))

    def _metrics(self, *_: Any) -> Response:
        text = self.metrics.text(len(self.scheduler.running), len(self.scheduler.waiting))
        return Response(200, text.encode("utf-8"), metrics.CONTENT_TYPE)

    def _stats(self, *_: Any) -> Response:
        temperatures = self._sensors.temperatures_c()
        return _json(dict(self.metrics.stats(), temperatures_c=temperatures, running=len(self.scheduler.running),
                          waiting=len(self.scheduler.waiting), models=metrics.of_models(self.models)))


def error_of(request: Request) -> Callable[[RefusedError], Any]:
    return ollama.error_of if request.path.startswith("/api/") else openai_responses.error_of


def _json(value: Any, status: int = 200, headers: Tuple[Tuple[str, str], ...] = ()) -> Response:
    return Response(status, json.dumps(value, ensure_ascii=False).encode("utf-8", "replace"), JSON, headers)


def refused(refusal: RefusedError, form: Callable[[RefusedError], Any] = openai_responses.error_of) -> Response:
    headers = [] if refusal.retry_s is None else [("Retry-After", str(refusal.retry_s))]
    if refusal.status == 401:
        headers.append(("WWW-Authenticate", "Bearer"))
    return _json(form(refusal), refusal.status, tuple(headers))
