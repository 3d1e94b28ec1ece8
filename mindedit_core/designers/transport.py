"""One POST to an endpoint, sent again after failures that may pass, and given up the moment the run is stopped.

Written on urllib: no client library to install, redirects are not followed (the key stays with the host it was meant
for). The key is asked for when a request is sent and taken out of all that comes back: servers like to repeat it.
"""

from __future__ import annotations

import http.client
import json
import queue
import random
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from ..contracts import Interrupted

AGAIN = {408, 409, 425, 429, *range(500, 600)}  # statuses that may pass
NEVER = {  # statuses that every request will get, and what to do about them
    **dict.fromkeys((301, 302, 303, 307, 308), "redirects are not followed, write the address that it points to"),
    401: "set {key} to one that this server knows",
    403: "{key} may not use this model, or this address",
    404: "look at the address, which ends in /v1 at most servers, and at the model's name",
    405: "look at the address, which ends in /v1 at most servers",
}
REFUSED = "look at the model's name, at whether it sees pictures, and at the options that it takes"
SLOW = (
    "; the whole answer is awaited in silence: raise timeout (now {seconds:g} seconds) if the model is slow or still "
    "being loaded"
)
SILENCES = 2  # the first may be a lost request; one more says that the model is slow, and each costs its whole timeout
FIRST_WAIT, LONGEST_WAIT, LONGEST_ASKED = 0.5, 60.0, 600.0  # seconds; the last: a Retry-After beyond it is cut
POLL = 0.05  # seconds between two looks at `should_stop`
PATIENCE = 10  # times the timeout: what one request may take, however much it sends
PIECE, LARGEST, LONGEST_ERROR = 2**16, 2**24, 2000  # bytes
SECRET = 8  # characters; servers without keys are given words such as "none", which an answer may hold
ShouldStop = Callable[[], bool]


class EndpointError(OSError):
    """There is no answer; the message says why and what to do, and never holds the key."""


class AskFailed(EndpointError):
    """This one question has no answer. passing: the endpoint failed, not the question;  reply: its refusal, if any"""

    def __init__(self, reason: str, passing: bool = False, reply: Reply | None = None):
        super().__init__(reason)
        self.passing, self.reply = passing, reply


class EndpointUnusable(EndpointError):
    """No question will be answered: a wrong key, model or address."""


class Reply(NamedTuple):
    """What came back. status: 0 if nothing did, and then data says why;  wait: seconds that the server asks for

    timed_out: it was reached, and was silent for too long or never done
    """

    status: int
    data: bytes
    wait: float | None = None
    timed_out: bool = False


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None  # so that urllib raises the 3xx as an error


class Endpoint:
    """base_url: up to and with /v1;  key: gives the bearer token whenever one is needed, or None;  key_name: for errors

    timeout: seconds of silence, in which the whole answer is written, since nothing is streamed
    tries: requests for one question, of which SILENCES may time out;  longest_asked: a Retry-After beyond it is cut
    opener: as urllib's `open`;  clock: has monotonic() and sleep()
    """

    def __init__(
        self,
        base_url: str,
        key: Callable[[], str | None],
        *,
        key_name: str = "the key",
        timeout: float = 60.0,
        tries: int = 4,
        longest_asked: float = LONGEST_ASKED,
        opener: Callable[..., Any] | None = None,
        clock: Any = time,
    ):
        self.url = checked_url(base_url, key_name) + "/chat/completions"
        self.key, self.key_name = key, key_name
        self.timeout, self.tries, self.longest_asked = timeout, tries, longest_asked
        self.opener = opener or urllib.request.build_opener(_NoRedirects).open
        self.clock = clock
        self.not_before = 0.0  # one rate limit for all threads

    def post(
        self,
        body: Mapping[str, Any],
        should_stop: ShouldStop | None = None,
        is_whole: Callable[[bytes], bool] = lambda data: True,
    ) -> bytes:
        """The answer's bytes, without the key. is_whole: whether they are all there, else they are asked for again.

        Raises AskFailed, EndpointUnusable, Interrupted.
        """
        data, stop, silences = json.dumps(body).encode(), should_stop or (lambda: False), 0
        for attempt in range(self.tries):
            self._wait(self.not_before - self.clock.monotonic(), stop)
            reply = self._ask(data, stop)
            if 200 <= reply.status < 300 and is_whole(reply.data):
                return reply.data
            reason, silences = self._reason(reply), silences + reply.timed_out
            if silences == SILENCES or attempt + 1 == self.tries:
                break
            self._back_off(attempt, reply.wait, stop)
        raise AskFailed(f"no answer from {self.url} after {attempt + 1} requests; the last: {reason}", passing=True)

    # One request ------------------------------------------------------------------------------------------------------

    def _ask(self, data: bytes, should_stop: ShouldStop) -> Reply:
        """What comes of one request; nothing in it holds the key."""
        key = self._checked_key()
        try:
            reply = self._in_thread(data, key, should_stop)
        except (OSError, http.client.HTTPException) as error:  # refused, reset, timed out, cut off
            said = f"{type(error).__name__}: {getattr(error, 'reason', error)}"
            # of a connection that was never made urllib raises its own URLError, which is no TimeoutError
            reply = Reply(0, said.encode("utf-8", "replace"), timed_out=isinstance(error, TimeoutError))
        return reply._replace(data=hidden(reply.data, key, always=not 200 <= reply.status < 300))

    def _in_thread(self, data: bytes, key: str | None, should_stop: ShouldStop) -> Reply:
        """`_send` in a thread of its own: a server that hangs does not keep an interrupt waiting."""
        came: queue.Queue = queue.Queue()
        given_up = threading.Event()
        work = (data, key, given_up, came)
        threading.Thread(target=self._send_into, args=work, daemon=True).start()
        try:
            return self._received(came, should_stop)
        finally:
            given_up.set()

    def _received(self, came: queue.Queue, should_stop: ShouldStop) -> Reply:
        deadline = time.monotonic() + PATIENCE * self.timeout
        while time.monotonic() < deadline:
            _raise_if(should_stop)
            try:
                reply, error = came.get(timeout=POLL)
            except queue.Empty:
                continue
            if error is not None:
                raise error
            return reply
        raise TimeoutError(f"the answer was not complete after {PATIENCE * self.timeout:g} seconds")

    def _send_into(self, data: bytes, key: str | None, given_up: threading.Event, came: queue.Queue) -> None:
        try:
            came.put((self._send(data, key, given_up), None))
        except BaseException as error:  # raised again where the answer is waited for
            came.put((None, error))

    def _send(self, data: bytes, key: str | None, given_up: threading.Event) -> Reply:
        headers = {"Content-Type": "application/json", "User-Agent": "mindedit"}
        if key:
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(self.url, data, headers)
        try:
            response = self.opener(request, timeout=self.timeout)
        except urllib.error.HTTPError as error:
            with error:
                return Reply(error.code, _error_text(error), retry_after(error.headers.get("Retry-After")))
        with response:
            return Reply(response.status, _whole_body(response, given_up))

    def _checked_key(self) -> str | None:
        """The key as it goes into a header; http.client would repeat one that cannot in its error."""
        key = (self.key() or "").strip()
        if not key.isascii() or not key.isprintable() or " " in key:
            raise EndpointUnusable(f"{self.key_name} holds blanks or characters that no key has; copy it again")
        return key or None

    # Failures ---------------------------------------------------------------------------------------------------------

    def _reason(self, reply: Reply) -> str:
        """Why there is no answer, if asking again makes sense; else it is raised."""
        said = " ".join(reply.data.decode("utf-8", "replace").split())[:300]
        if reply.status == 0:
            return said + SLOW.format(seconds=self.timeout) if reply.timed_out else said
        if 200 <= reply.status < 300:
            return f"the answer was cut off: {said[:100]}"
        reason = f"status {reply.status}: {said or '(no text)'}"
        if reply.status in NEVER:
            remedy = NEVER[reply.status].format(key=self.key_name)
            raise EndpointUnusable(f"{self.url} answers with {reason}; {remedy}")
        if reply.status not in AGAIN:
            raise AskFailed(f"{self.url} answers with {reason}; {REFUSED}", reply=reply)
        return reason

    def _back_off(self, attempt: int, asked: float | None, should_stop: ShouldStop) -> None:
        if asked is None:
            self._wait(min(LONGEST_WAIT, FIRST_WAIT * 2**attempt) * random.uniform(0.5, 1.0), should_stop)
        else:
            self.not_before = max(self.not_before, self.clock.monotonic() + min(asked, self.longest_asked))

    def _wait(self, seconds: float, should_stop: ShouldStop) -> None:
        until = self.clock.monotonic() + seconds
        _raise_if(should_stop)
        while (left := until - self.clock.monotonic()) > 0:
            self.clock.sleep(min(POLL, left))
            _raise_if(should_stop)


def _raise_if(should_stop: ShouldStop) -> None:
    if should_stop():
        raise Interrupted("stopped while waiting for the endpoint; run again")


def _error_text(error: urllib.error.HTTPError) -> bytes:
    try:
        return error.read(LONGEST_ERROR)
    except (OSError, http.client.HTTPException):
        return b"(its text was cut off)"


def _whole_body(response: Any, given_up: threading.Event) -> bytes:
    """All that a response sends, piece by piece, so that nobody reads on for a run that was stopped."""
    size, body = response.length, bytearray()
    while (size is None or len(body) < size) and not given_up.is_set():
        piece = response.read1(PIECE)
        body += piece
        if not piece:
            break
        if len(body) > LARGEST:
            raise ConnectionAbortedError(f"the answer is larger than {LARGEST} bytes")
    if size is not None and len(body) < size:
        raise http.client.IncompleteRead(bytes(body), size - len(body))
    return bytes(body)


def hidden(data: bytes, key: str | None, always: bool = True) -> bytes:
    r"""Without the key, also where JSON escapes it. always: even a key so short that it is no secret

    >>> hidden(b"wrong key sk-1/2 (sk-1\\/2)", "sk-1/2")
    b'wrong key [key] ([key])'
    >>> hidden(b"none of the lemons", "none", always=False)
    b'none of the lemons'
    """
    if not key or (len(key) < SECRET and not always):
        return data
    for form in (key, json.dumps(key)[1:-1], key.replace("/", "\\/")):
        data = data.replace(form.encode(), b"[key]")
    return data


def retry_after(said: str | None) -> float | None:
    """Seconds, from a number or an HTTP date; None if nothing readable is said.

    >>> retry_after("2.5"), retry_after("-1"), retry_after("soon"), retry_after("nan"), retry_after(None)
    (2.5, 0.0, None, None, None)
    """
    try:
        seconds = float(said)
        return max(0.0, seconds) if seconds == seconds else None
    except (TypeError, ValueError):
        pass
    try:
        return max(0.0, (parsedate_to_datetime(said) - datetime.now(timezone.utc)).total_seconds())
    except (TypeError, ValueError):
        return None


def checked_url(base_url: str, key_name: str = "the key") -> str:
    """The address without what comes after it. Raises ValueError for one that cannot be asked, or that holds a secret.

    >>> checked_url(" https://api.example.org/v1/chat/completions ")
    'https://api.example.org/v1'
    >>> checked_url("file:///etc/passwd")
    Traceback (most recent call last):
    ValueError: the base URL must begin with http:// or https://, got 'file:///etc/passwd'
    """
    url = base_url.strip()
    if "@" in url or "?" in url or "#" in url:  # before anything that repeats the address
        raise ValueError(
            "the base URL must hold no @, ? or #: addresses are written into workflows, files and logs, where a name, "
            f"a password or a key does not belong; leave them out and set {key_name}"
        )
    if not url.isascii() or not url.isprintable() or " " in url or not _names_a_host(url):
        raise ValueError(f"the base URL must begin with http:// or https://, got {base_url!r}")
    return url.rstrip("/").removesuffix("/chat/completions").rstrip("/")


def _names_a_host(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
