"""How is "no" said to a client?

Always the same JSON: `error` for people, `code` for programs. `STATUS` is the whole list of codes.
"""

from __future__ import annotations

import asyncio

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from cpe_controller.store import StoreError

STATUS = {
    "bad_request": 400,
    "csr_bad": 400,
    "token_unknown": 403,
    "revoked": 403,
    "site_unknown": 404,
    "token_used": 409,
    "token_expired": 410,
    "token_replaced": 410,
    "too_large": 413,
    "busy": 503,
}
RETRY_AFTER_S = 5
# For a body of some kilobytes, over the worst of links.
BODY_S = 20.0


class Refused(Exception):
    """What was asked is not given; `code` is one of STATUS, `text` says why, and what to do."""

    def __init__(self, code: str, text: str, *, status: int | None = None, retry_after_s: int | None = None) -> None:
        super().__init__(text)
        self.code = code
        self.text = text
        self.status = STATUS[code] if status is None else status
        self.retry_after_s = retry_after_s


def refusal(error: Refused) -> Response:
    headers = {} if error.retry_after_s is None else {"Retry-After": str(error.retry_after_s)}
    return JSONResponse({"error": error.text, "code": error.code}, status_code=error.status, headers=headers)


async def refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    return refusal(error)


async def unavailable(request: Request, error: Exception) -> Response:
    assert isinstance(error, StoreError)
    return refusal(Refused("busy", "the store cannot be used now", retry_after_s=RETRY_AFTER_S))


async def body_of(request: Request, at_most: int) -> bytes:
    """The request's body. Raises Refused if it is longer, or drips."""
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_S):
            async for chunk in request.stream():
                body += chunk
                if len(body) > at_most:
                    raise Refused("too_large", f"at most {at_most} bytes are read")
    except TimeoutError:
        raise Refused("bad_request", f"the body was not there after {BODY_S:g} s") from None
    return bytes(body)
