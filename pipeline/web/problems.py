"""Errors as people and programs see them: `{"ok": false, "error": {code, message, field?}}`."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException as StarletteHTTPException

from connectors.payload import json_pointer
from pipeline.errors import DatabaseUnavailable, PipelineError, Refused
from pipeline.storage import StorageUnavailable
from pipeline.web.proofs import ListenRefused

log = logging.getLogger(__name__)


def install(app: FastAPI) -> None:
    """Answer every error of the application in the same shape."""
    app.exception_handler(PipelineError)(_pipeline_error)
    app.exception_handler(RequestValidationError)(_validation_error)
    app.exception_handler(StarletteHTTPException)(_http_error)
    app.exception_handler(Exception)(_internal_error)


def problem(
    status: int,
    code: str,
    message: str,
    *,
    field: str = "",
    details: Mapping[str, str] | None = None,
    headers: dict[str, str] | None = None,
) -> JSONResponse:
    """An error answer; `field` is a JSON pointer or the name of a parameter."""
    error: dict[str, Any] = {"code": code, "message": message, **(details or {})}
    if field:
        error["field"] = field
    return JSONResponse({"ok": False, "error": error}, status, headers=headers)


async def _pipeline_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, PipelineError)
    headers = {}
    if isinstance(error, (DatabaseUnavailable, StorageUnavailable)):
        log.warning("cannot answer: %s", error)
        headers["Retry-After"] = str(round(getattr(error, "after_s", 2.0)))
        return problem(503, error.code, "not available at the moment, try again", headers=headers)
    field = error.field if isinstance(error, Refused) else ""
    details = error.details if isinstance(error, ListenRefused) else None
    return problem(error.status, error.code, str(error), field=field, details=details)


async def _validation_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        return problem(422, "bad_request", f"the body is not JSON: {first['ctx']['error']}")
    pointer = json_pointer(part for part in first["loc"] if part != "body")
    return problem(422, "bad_request", first["msg"], field=pointer)


async def _http_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, StarletteHTTPException)
    code = {401: "unauthenticated", 404: "not_found", 405: "method_not_allowed"}
    return problem(
        error.status_code,
        code.get(error.status_code, "error"),
        str(error.detail),
        headers=dict(error.headers or {}),
    )


async def _internal_error(_request: Request, error: Exception) -> Response:
    log.exception("request failed", exc_info=error)
    return problem(500, "internal", "something broke here; it is in our log")
