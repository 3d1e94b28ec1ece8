"""Asks any endpoint with OpenAI's chat format about pictures: a hosted model, vLLM, llama.cpp, `transformers serve`.

Written on urllib: no client library to install, redirects are not followed (the key stays with the host it was meant
for), and every wait ends at once when the run is stopped.
"""

from __future__ import annotations

import base64
import http.client
import io
import json
import random
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from typing import Any

import numpy as np
from PIL import Image

from mindedit_core.contracts import Interrupted

AGAIN = {408, 409, 425, 429, *range(500, 600)}  # statuses that may pass
NEVER = {301, 302, 303, 307, 308, 401, 403, 404, 405}  # statuses that every request will get
FIRST_WAIT, LONGEST_WAIT, LONGEST_ASKED = 0.5, 60.0, 600.0  # seconds; the last: a Retry-After beyond it is cut
FORMS = {"jpeg": {"format": "JPEG", "quality": 92}, "png": {"format": "PNG"}}


class AskFailed(RuntimeError):
    """This one question has no answer. passing: the endpoint failed, not the question."""

    def __init__(self, reason: str, passing: bool = False):
        super().__init__(reason)
        self.passing = passing


class EndpointUnusable(RuntimeError):
    """No question will be answered: a wrong key, model or address."""


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None  # so that urllib raises the 3xx as an error


class ChatEndpoint:
    """base_url: up to and with /v1;  key: sent as a bearer token, never written anywhere;  timeout: seconds of silence

    tries: requests for one question;  body: more entries of the request, None takes one out;  stop: ends every wait
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        key: str | None = None,
        *,
        timeout: float = 120.0,
        tries: int = 6,
        body: Mapping[str, Any] | None = None,
        stop: threading.Event | None = None,
    ):
        if not base_url.startswith(("http://", "https://")):
            raise ValueError(f"the base URL must begin with http:// or https://, got {base_url!r}")
        self.url, self.model, self.key = base_url.rstrip("/") + "/chat/completions", model, key
        self.timeout, self.tries, self.body = timeout, tries, dict(body or {})
        self.stop = stop or threading.Event()
        self.not_before = 0.0  # one rate limit for all threads
        self.opener = urllib.request.build_opener(_NoRedirects)

    def ask(self, prompt: str, pictures: Sequence[str] = ()) -> str:
        """The answer's text. pictures: data URLs, before the text. Raises AskFailed, EndpointUnusable, Interrupted."""
        content = [{"type": "image_url", "image_url": {"url": url}} for url in pictures]
        content.append({"type": "text", "text": prompt})
        body = {"model": self.model, "messages": [{"role": "user", "content": content}], **self.body}
        body = {name: value for name, value in body.items() if value is not None}
        return self._text(self._persist(json.dumps(body).encode()))

    def _persist(self, data: bytes) -> bytes:
        """The response, asked for again after failures that may pass."""
        for attempt in range(self.tries):
            self._wait(self.not_before - time.monotonic())
            try:
                return self._send(data)
            except urllib.error.HTTPError as error:
                reason, wait = self._status(error), _retry_after(error.headers.get("Retry-After"))
            except (OSError, http.client.HTTPException) as error:  # refused, reset, timed out, cut off
                reason, wait = f"{type(error).__name__}: {getattr(error, 'reason', error)}", None
            if attempt + 1 < self.tries:
                self._back_off(attempt, wait)
        raise AskFailed(self._safe(f"no answer after {self.tries} requests; the last: {reason}"), passing=True)

    def _send(self, data: bytes) -> bytes:
        headers = {"Content-Type": "application/json", "User-Agent": "mindedit"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        request = urllib.request.Request(self.url, data, headers)
        with self.opener.open(request, timeout=self.timeout) as response:
            return response.read()

    def _status(self, error: urllib.error.HTTPError) -> str:
        """The reason, if asking again makes sense; else it is raised."""
        with error:
            reason = self._safe(f"status {error.code}: {_body(error)}")
        if error.code in NEVER:
            raise EndpointUnusable(f"{self.url} answers with {reason}; look at the address, the model and the key")
        if error.code not in AGAIN:
            raise AskFailed(reason) from None
        return reason

    def _back_off(self, attempt: int, asked: float | None) -> None:
        if asked is None:
            self._wait(min(LONGEST_WAIT, FIRST_WAIT * 2**attempt) * random.uniform(0.5, 1.0))
        else:
            self.not_before = max(self.not_before, time.monotonic() + min(asked, LONGEST_ASKED))

    def _wait(self, seconds: float) -> None:
        if self.stop.wait(max(0.0, seconds)):
            raise Interrupted("stopped while waiting for the endpoint")

    def _text(self, data: bytes) -> str:
        try:
            choice = _joined(data) if data.lstrip().startswith(b"data:") else json.loads(data)["choices"][0]
            text = choice["message"]["content"]
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            start = data[:200].decode("utf-8", "replace")
            raise AskFailed(self._safe(f"the response is not in the chat format ({error!r}): {start}")) from None
        if choice.get("finish_reason") == "length":
            raise AskFailed(self._safe(f"the answer was cut off for its length: {str(text)[:200]}"))
        if not isinstance(text, str) or not text.strip():
            raise AskFailed(self._safe(f"the answer has no text: {json.dumps(choice)[:200]}"))
        return text

    def _safe(self, text: str) -> str:
        """What may be printed and written: servers like to repeat the key that they refuse."""
        return text.replace(self.key, "[key]") if self.key else text


def _joined(stream: bytes) -> dict[str, Any]:
    r"""One choice of the pieces of a stream: there are servers that stream whether they are asked to or not.

    >>> _joined(b'data: {"choices": [{"delta": {"content": "a cup"}}]}\n\ndata: [DONE]\n')
    {'message': {'content': 'a cup'}, 'finish_reason': None}
    """
    lines = (line.removeprefix(b"data:").strip() for line in stream.splitlines() if line.startswith(b"data:"))
    pieces = [choice for line in lines if line != b"[DONE]" for choice in json.loads(line).get("choices", [])[:1]]
    text = "".join(piece["delta"].get("content") or "" for piece in pieces)
    reasons = [piece["finish_reason"] for piece in pieces if piece.get("finish_reason")]
    return {"message": {"content": text}, "finish_reason": reasons[-1] if reasons else None}


def _body(error: urllib.error.HTTPError) -> str:
    try:
        return " ".join(error.read(2000).decode("utf-8", "replace").split())[:300]
    except (OSError, http.client.HTTPException):
        return "(its text was cut off)"


def _retry_after(said: str | None) -> float | None:
    """Seconds, from a number or an HTTP date; None if nothing readable is said.

    >>> _retry_after("2.5"), _retry_after("soon"), _retry_after(None)
    (2.5, None, None)
    """
    try:
        return max(0.0, float(said))
    except (TypeError, ValueError):
        pass
    try:
        return max(0.0, (parsedate_to_datetime(said) - datetime.now(timezone.utc)).total_seconds())
    except (TypeError, ValueError):
        return None


def data_url(image: np.ndarray, form: str = "jpeg", max_side: int = 1024) -> str:
    """uint8[H, W, 3] as a data URL, made smaller if a side is longer than max_side. form: jpeg or png"""
    if form not in FORMS:
        raise ValueError(f"the picture format must be one of {', '.join(FORMS)}, got {form!r}")
    picture = Image.fromarray(image)
    picture.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, **FORMS[form])
    return f"data:image/{form};base64,{base64.b64encode(buffer.getvalue()).decode()}"
