"""The door that every request goes through, in this order:

1. who asks (401), unless the route is marked `public`;
2. path and query (400);
3. the body: its size (413), its JSON (400), its model (400);
4. the handler, which answers with a ready `Response`.

FastAPI reads the handlers' signatures, for the door and for the OpenAPI document alike; its own request
handling is not used, because it validates before it authenticates and takes twice as long.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from fastapi._compat import ModelField
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.datastructures import QueryParams
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from fermata.edges.http.auth import get_caller, get_fermata, read_credential
from fermata.edges.http.body import BODY_LIMIT, parse_body, read_body
from fermata.edges.http.errors import error_response, unexpected_response
from fermata.edges.http.validation import explain, validate
from fermata.kit.errors import FermataError, InvalidRequestError

Handler = TypeVar("Handler", bound=Callable[..., Any])


@dataclass(frozen=True)
class Rules:
    """What a handler asks of the door. Set by the decorators below."""

    public: bool = False
    body_limit: int = BODY_LIMIT
    #: No body at all counts as `{}`.
    body_optional: bool = False
    #: Whatever cannot be parsed as a JSON object counts as `{}`.
    body_tolerant: bool = False


def rules_of(handler: Callable[..., Any]) -> Rules:
    return getattr(handler, "__door__", Rules())


def _rule(handler: Handler, **changes: Any) -> Handler:
    handler.__door__ = replace(rules_of(handler), **changes)  # type: ignore[attr-defined]
    return handler


def public(handler: Handler) -> Handler:
    """Nobody has to say who they are."""
    return _rule(handler, public=True)


def body(
    *, limit: int = BODY_LIMIT, optional: bool = False, tolerant: bool = False
) -> Callable[[Handler], Handler]:
    """How the handler's body is read."""
    return lambda handler: _rule(
        handler, body_limit=limit, body_optional=optional or tolerant, body_tolerant=tolerant
    )


class Door(APIRoute):
    """A route; what stands in braces in its path is text without a slash, or with `:path` any text."""

    methods: set[str]

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        super().__init__(path, endpoint, **options)
        self.rules = rules_of(endpoint)
        dependant = self.dependant
        self._caller_names: list[str] = []
        self._fermata_names: list[str] = []
        for dependency in dependant.dependencies:
            names = {get_caller: self._caller_names, get_fermata: self._fermata_names}
            if dependency.call not in names or dependency.name is None:
                raise TypeError(f"{path}: the door knows no dependency {dependency.call}")
            names[dependency.call].append(dependency.name)
        if self.rules.public == bool(self._caller_names):
            raise TypeError(f"{path}: a handler takes the caller, or is marked public, and not both")
        if dependant.cookie_params or dependant.header_params or len(dependant.body_params) > 1:
            raise TypeError(f"{path}: the door reads path, query and one body model")
        self._body: tuple[str, type[BaseModel]] | None = None
        for field in dependant.body_params:
            self._body = field.name, _model_of(field)
        self.app: ASGIApp = self.serve

    async def serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            response = await self._answer(Request(scope, receive))
        except FermataError as error:
            response = error_response(error)
        except ClientDisconnect:
            return
        except Exception as error:  # noqa: BLE001 - the street side: logged, and told in one sentence
            response = unexpected_response(error, method=scope["method"], path=scope["path"])
        await response(scope, receive, send)

    async def _answer(self, request: Request) -> Response:
        scope = request.scope
        fermata = scope["app"].fermata
        values: dict[str, Any] = {}
        if not self.rules.public:
            caller = await fermata.accounts.authenticate(read_credential(scope))
            for name in self._caller_names:
                values[name] = caller
        for name in self._fermata_names:
            values[name] = fermata
        dependant = self.dependant
        for field in dependant.path_params:
            values[field.name] = _parameter(field, scope["path_params"][field.alias])
        if dependant.query_params:
            query = QueryParams(scope["query_string"])
            for field in dependant.query_params:
                values[field.name] = _parameter(field, query.get(field.alias))
        if self._body is not None:
            values[self._body[0]] = await self._read_model(request, self._body[1])
        if dependant.request_param_name is not None:
            values[dependant.request_param_name] = request
        response: Response = await self.endpoint(**values)
        return response

    async def _read_model(self, request: Request, model: type[BaseModel]) -> BaseModel:
        raw = await read_body(request, self.rules.body_limit)
        # Kept for handlers that compare requests by their bytes.
        request.scope["fermata.body"] = raw
        if self.rules.body_optional and not raw.strip():
            return validate(model, {})
        if not self.rules.body_tolerant:
            return validate(model, parse_body(raw))
        try:
            value = parse_body(raw)
        except InvalidRequestError:
            value = {}
        return validate(model, value if isinstance(value, dict) else {})


def _model_of(field: ModelField) -> type[BaseModel]:
    """The model of a body, also where the signature allows None (for an optional body)."""
    annotation = field.field_info.annotation
    for candidate in (annotation, *getattr(annotation, "__args__", ())):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    raise TypeError(f"{field.name}: a body is a pydantic model")


def _parameter(field: ModelField, text: str | None) -> Any:
    """One parameter from the URL, checked; `text` None when it is absent."""
    info = field.field_info
    if text is None and not info.is_required():
        return field.default
    if text is None:
        raise explain([{"type": "missing", "loc": (field.alias,)}], info, (field.alias,))
    if "\0" in text:
        raise InvalidRequestError(f"{field.alias} holds a NUL character", field=(field.alias,))
    value, mistakes = field.validate(text, {})
    if mistakes:
        raise explain(mistakes, info, (field.alias,))
    return value
