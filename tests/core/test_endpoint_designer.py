"""The designer behind an endpoint, against a real server on loopback that answers, fails, lies and hangs."""

from __future__ import annotations

import base64
import doctest
import http.server
import io
import json
import logging
import socket
import struct
import threading
import time
import traceback
import urllib.error
import urllib.request
from collections.abc import Callable
from email.utils import format_datetime
from types import SimpleNamespace
from urllib.parse import urlsplit

import numpy as np
import pytest
import torch
from PIL import Image

from mindedit_core.blueprint import SECTIONS, blueprint_prompt, format_blueprint
from mindedit_core.contracts import Designer, Interrupted
from mindedit_core.designers import chat, transport
from mindedit_core.designers.cache import CachedDesigner
from mindedit_core.designers.endpoint import SEED, EndpointDesigner
from mindedit_core.designers.transport import AskFailed, EndpointError, EndpointUnusable

KEY = "sk-proj-Zq/8+secret_1234567890"
WISH = "remove the lemons"
WHOLE = {name: f"What is said of {name.lower()}." for name in SECTIONS}
FORM = format_blueprint(WHOLE)
PICTURE = torch.rand(1, 24, 32, 3, generator=torch.Generator().manual_seed(0))


# A server that does what a test wants --------------------------------------------------------------------------------


class Server(http.server.ThreadingHTTPServer):
    """Plays its scenes one a request, the last one for ever. seen: .body, .headers, .path of each request"""

    daemon_threads = True

    def __init__(self, scenes: list[Callable]):
        super().__init__(("127.0.0.1", 0), Handler)
        self.scenes, self.seen, self.over, self.lock = scenes, [], threading.Event(), threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, *_) -> None:
        """A client that has gone is no news."""


class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            scene = self.server.scenes[min(len(self.server.seen), len(self.server.scenes) - 1)]
            self.server.seen.append(self)
        scene(self)

    do_GET = do_POST

    def log_message(self, *_) -> None:
        pass


def sent(handler, status: int, body: bytes, headers: dict | None = None, reason: str | None = None) -> None:
    handler.send_response(status, reason)
    for name, value in {"Content-Length": len(body), **(headers or {})}.items():
        if value is not None:
            handler.send_header(name, str(value))
    handler.end_headers()
    handler.wfile.write(body)


def completion(content: object = FORM, finish: str = "stop", **message: object) -> bytes:
    return json.dumps({"choices": [{"message": {"content": content, **message}, "finish_reason": finish}]}).encode()


def good(handler) -> None:
    sent(handler, 200, completion())


def says(content: object, finish: str = "stop", **message: object) -> Callable:
    return lambda handler: sent(handler, 200, completion(content, finish, **message))


def raw(body: bytes, headers: dict | None = None) -> Callable:
    return lambda handler: sent(handler, 200, body, headers)


def status(code: int, text: str = "", reason: str | None = None, **headers: object) -> Callable:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda handler: sent(handler, code, text.encode(), named, reason)


def half(handler) -> None:
    """Tells the whole length, sends half of it and hangs up."""
    body = completion()
    sent(handler, 200, body[: len(body) // 2], {"Content-Length": len(body)})


def half_of_unknown(handler) -> None:
    body = completion()
    sent(handler, 200, body[: len(body) // 2], {"Content-Length": None})


def half_a_chunk(handler) -> None:
    handler.protocol_version = "HTTP/1.1"
    sent(handler, 200, b"40\r\n" + completion()[:20], {"Content-Length": None, "Transfer-Encoding": "chunked"})


def half_a_stream(handler) -> None:
    sent(handler, 200, b'data: {"choices": [{"delta": {"content": "1. Edit"}}]}\n\n', {"Content-Length": None})


def reset(handler) -> None:
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.rfile.close()
    handler.wfile.close()
    handler.connection.close()


def gone(handler) -> None:
    handler.connection.shutdown(socket.SHUT_RDWR)


def hang(handler) -> None:
    handler.server.over.wait(30)


def hang_after_an_error(handler) -> None:
    sent(handler, 500, b"", {"Content-Length": 100})
    handler.server.over.wait(30)


def drip(handler) -> None:
    """Never silent, never done."""
    sent(handler, 200, b"{", {"Content-Length": None})
    while not handler.server.over.wait(0.02):
        handler.wfile.write(b" ")
        handler.wfile.flush()


@pytest.fixture
def serve():
    """serve(*scenes) -> a running Server."""
    running = []

    def start(*scenes: Callable) -> Server:
        server = Server(list(scenes) or [good])
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        running.append(server)
        return server

    yield start
    for server in running:
        server.over.set()
        server.shutdown()
        server.server_close()


class Clock:
    """Time that passes only by sleeping."""

    def __init__(self):
        self.now, self.slept = 100.0, []

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.slept.append(seconds)


@pytest.fixture(autouse=True)
def no_keys(monkeypatch):
    monkeypatch.delenv("MINDEDIT_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ask(serve, clock):
    """ask(*scenes, **of the designer) -> (designer, server)"""

    def make(*scenes: Callable, **options) -> tuple[EndpointDesigner, Server]:
        server = serve(*scenes)
        return EndpointDesigner(server.url, "teacher", **{"clock": clock, "timeout": 5.0, **options}), server

    return make


def shown(server: Server) -> Image.Image:
    picture, _ = server.seen[-1].body["messages"][0]["content"]
    return Image.open(io.BytesIO(base64.b64decode(picture["image_url"]["url"].partition("base64,")[2])))


@pytest.mark.parametrize("module", [chat, transport])
def test_docstring_examples_hold(module):
    results = doctest.testmod(module)
    assert results.attempted and not results.failed


# What is asked -------------------------------------------------------------------------------------------------------


def test_a_good_answer_becomes_a_plan(ask):
    designing, server = ask()
    words = []
    plan = designing.design(PICTURE, " remove\n the lemons ", on_token=words.append)
    assert (plan.raw, plan.text, plan.designer, plan.note) == (WISH, FORM, "endpoint", "")
    assert plan.sections == WHOLE and plan.states is None and words == [[FORM]] and len(server.seen) == 1
    assert isinstance(designing, Designer)


def test_the_picture_goes_first_then_the_prompt_with_the_options(ask):
    designing, server = ask()
    designing.design(PICTURE, WISH, max_new_tokens=77)
    (request,) = server.seen
    assert request.path == "/v1/chat/completions" and request.body["model"] == "teacher"
    (turn,) = request.body["messages"]
    assert [part["type"] for part in turn["content"]] == ["image_url", "text"] and turn["role"] == "user"
    assert turn["content"][1]["text"] == blueprint_prompt(WISH, "dim")
    assert {name: request.body[name] for name in ("max_tokens", "temperature", "seed")} == {
        "max_tokens": 77, "temperature": 0.0, "seed": SEED,
    }
    assert set(request.body) == {"model", "messages", "max_tokens", "temperature", "seed"}


def test_a_png_shows_the_very_pixels_and_a_jpeg_nearly(ask):
    designing, server = ask(form="png")
    designing.design(PICTURE, WISH)
    pixels = (PICTURE[0] * 255).round().to(torch.uint8).numpy()
    assert np.array_equal(np.array(shown(server)), pixels) and shown(server).format == "PNG"
    designing, server = ask()
    smooth = torch.linspace(0, 1, 32).expand(3, 24, 32).permute(1, 2, 0)[None]
    designing.design(smooth, WISH)
    assert shown(server).format == "JPEG"
    assert np.abs(np.array(shown(server), float) - smooth[0].numpy() * 255).max() < 8


@pytest.mark.parametrize(("size", "wanted"), [((2048, 512, 3), (256, 1024)), ((30, 3000, 3), (1024, 10)),
                                              ((100, 40, 3), (40, 100)), ((20, 20, 4), (20, 20)), ((8, 8, 1), (8, 8))])
def test_a_large_picture_travels_small_and_of_any_channels(ask, size, wanted):
    designing, server = ask()
    designing.design(torch.zeros(1, *size), WISH)
    assert shown(server).size == wanted and shown(server).mode == "RGB"


def test_a_generators_seed_is_sent_and_without_one_warm_words_are_not_pinned(ask):
    designing, server = ask()
    designing.design(PICTURE, WISH, temperature=0.7, generator=torch.Generator().manual_seed(2**40 + 5))
    designing.design(PICTURE, WISH, temperature=0.7)
    first, second = (request.body for request in server.seen)
    assert first["seed"] == (2**40 + 5) % 2**31 and first["temperature"] == 0.7 and "seed" not in second


def test_entries_of_the_request_can_be_added_and_taken_out(ask):
    designing, server = ask(body={"temperature": None, "reasoning_effort": "low"}, template="mini")
    designing.design(PICTURE, WISH)
    assert "temperature" not in server.seen[0].body and server.seen[0].body["reasoning_effort"] == "low"
    assert server.seen[0].body["messages"][0]["content"][1]["text"] == f"design: {WISH}"


@pytest.mark.parametrize("ending", ["", "/", "/chat/completions", "/chat/completions/"])
def test_the_address_may_be_written_with_or_without_its_end(serve, ending):
    server = serve()
    EndpointDesigner(server.url + ending, "teacher").design(PICTURE, WISH)
    assert server.seen[0].path == "/v1/chat/completions"


@pytest.mark.parametrize(("wish", "pictures", "word"), [
    ("", PICTURE, "say what to change"), ("x" * 3000, PICTURE, "shorten it"),
    (WISH, PICTURE.expand(2, -1, -1, -1), "one picture, got 2"),
])
def test_what_cannot_be_designed_is_refused_before_anything_is_sent(ask, wish, pictures, word):
    designing, server = ask()
    with pytest.raises(ValueError, match=word):
        designing.design(pictures, wish)
    assert not server.seen


# Answers that are not what was hoped for -----------------------------------------------------------------------------


def test_nonsense_is_used_as_it_is_and_said(ask):
    plan = ask(says("I see a table."))[0].design(PICTURE, WISH)
    assert plan.text == "I see a table." and "not in the form of a blueprint" in plan.note and not plan.sections


def test_an_answer_cut_off_for_its_length_keeps_what_came_and_says_so(ask):
    plan = ask(says(FORM[: FORM.index("3. Local")], "length"))[0].design(PICTURE, WISH, max_new_tokens=60)
    assert list(plan.sections) == list(SECTIONS[:2]) and "at 60 tokens; allow more" in plan.note
    assert "lacks 3. Local Object Perception" in plan.note


@pytest.mark.parametrize("content", [None, "", "  "])
def test_an_answer_without_words_leaves_the_wish(ask, content):
    plan = ask(says(content, refusal="Not this one."))[0].design(PICTURE, WISH)
    assert plan.text == WISH and "is empty" in plan.note and "the endpoint declines: Not this one." in plan.note


def test_an_answer_in_parts_and_a_stream_that_nobody_asked_for_are_read(ask):
    parts = [{"type": "text", "text": FORM[:40]}, {"type": "text", "text": FORM[40:]}]
    pieces = [{"delta": {"content": FORM[start : start + 9]}} for start in range(0, len(FORM), 9)]
    pieces.append({"delta": {}, "finish_reason": "stop"})
    stream = ": at work\n\n" + "".join(f"data: {json.dumps({'choices': [piece]})}\n\n" for piece in pieces)
    designing, _ = ask(says(parts), raw(stream.encode()))
    assert designing.design(PICTURE, WISH).text == FORM == designing.design(PICTURE, WISH).text


@pytest.mark.parametrize(("body", "word"), [
    (b"<html>busy</html>", "<html>busy"), (b'{"choices": []}', '"choices": []'), (b"[1, 2]", "[1, 2]"),
    (b'{"error": {"message": "no such model"}}', "no such model"), (b'{"choices": [{"text": "a"}]}', '"text": "a"'),
    (b'"a' + b"b" * 5000 + b'"', "abbb"), (b"\xff\xfe", "chat format"),
])
def test_a_response_of_another_form_is_an_error_that_says_what_came(ask, body, word):
    designing, server = ask(raw(body))
    with pytest.raises(AskFailed, match="not in the chat format") as caught:
        designing.design(PICTURE, WISH)
    assert word in str(caught.value) and len(str(caught.value)) < 500 and len(server.seen) == 1


# Failures that may pass ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [408, 429, 500, 502, 503, 504])
def test_a_server_that_stumbles_is_asked_again(ask, clock, code):
    designing, server = ask(status(code, "oops"), good)
    assert designing.design(PICTURE, WISH).text == FORM and len(server.seen) == 2
    assert 0.25 <= sum(clock.slept) <= 0.5 and server.seen[0].body == server.seen[1].body


def test_retry_after_is_kept_in_seconds_and_as_a_date(ask, clock):
    from datetime import datetime, timedelta, timezone

    date = format_datetime(datetime.now(timezone.utc) + timedelta(seconds=20), usegmt=True)
    designing, server = ask(status(429, "slow", Retry_After=7), status(503, "slow", Retry_After=date), good)
    assert designing.design(PICTURE, WISH).text == FORM and len(server.seen) == 3
    assert 7 + 15 <= sum(clock.slept) <= 7 + 21


def test_nobody_is_kept_for_an_hour(ask, clock):
    designing, _ = ask(status(429, "quota", Retry_After=3600), good)
    designing.design(PICTURE, WISH)
    assert sum(clock.slept) == pytest.approx(60)


@pytest.mark.parametrize("scene", [half, half_of_unknown, half_a_chunk, half_a_stream, reset, gone])
def test_an_answer_that_breaks_off_is_asked_for_again(ask, scene):
    designing, server = ask(scene, scene, good)
    assert designing.design(PICTURE, WISH).text == FORM and len(server.seen) == 3


def test_a_server_that_never_recovers_is_given_up_with_growing_waits(ask, clock):
    designing, server = ask(status(500, "out of memory"))
    with pytest.raises(AskFailed, match="no answer from http://.*after 4 requests; the last: status 500: out of"):
        designing.design(PICTURE, WISH)
    assert len(server.seen) == 4 and 1.75 <= sum(clock.slept) <= 3.5
    waits = {round(time_of(ask, clock), 3) for _ in range(4)}
    assert len(waits) > 1  # with jitter


def time_of(ask, clock) -> float:
    before = sum(clock.slept)
    with pytest.raises(AskFailed):
        ask(status(500), tries=2)[0].design(PICTURE, WISH)
    return sum(clock.slept) - before


def test_an_answer_that_keeps_breaking_off_is_an_error(ask):
    failures = {half: "IncompleteRead", half_of_unknown: "the answer was cut off: {", gone: "Disconnected"}
    for scene, word in failures.items():
        with pytest.raises(AskFailed, match=word):
            ask(scene, tries=2)[0].design(PICTURE, WISH)


def test_nobody_there_is_said_with_the_address(serve, clock):
    server = serve()
    url = server.url
    server.shutdown()
    server.server_close()
    with pytest.raises(AskFailed, match=f"no answer from {url}/chat/completions after 2 requests.*refused"):
        EndpointDesigner(url, "teacher", tries=2, clock=clock).design(PICTURE, WISH)


@pytest.mark.parametrize(("scene", "word"), [
    (hang, "timed out"), (hang_after_an_error, "500: .its text was cut off"), (drip, "not complete after 0.6 seconds"),
])
def test_a_server_that_hangs_is_given_up_in_time(ask, monkeypatch, scene, word):
    monkeypatch.setattr(transport, "PATIENCE", 3)
    designing, server = ask(scene, timeout=0.2, tries=2)
    started = time.monotonic()
    with pytest.raises(AskFailed, match=word):
        designing.design(PICTURE, WISH)
    assert time.monotonic() - started < 3 and len(server.seen) == 2


@pytest.mark.parametrize("scene", [hang, drip])
def test_a_second_silence_is_the_last_and_the_error_says_what_to_raise(ask, monkeypatch, scene):
    """A cold server is not asked four times: each request costs its whole timeout, and may start it anew."""
    monkeypatch.setattr(transport, "PATIENCE", 2)
    designing, server = ask(scene, timeout=0.2)
    with pytest.raises(AskFailed, match=r"after 2 requests; .*raise timeout \(now 0.2 seconds\) if the model is slow"):
        designing.design(PICTURE, WISH)
    assert len(server.seen) == 2


def test_one_silence_among_other_failures_costs_no_try(ask):
    designing, server = ask(status(500), hang, status(500), good, timeout=0.2)
    assert designing.design(PICTURE, WISH).text == FORM and len(server.seen) == 4


def test_a_machine_that_is_not_reached_in_time_is_no_slow_model(serve, clock):
    tried = []

    def out_of_reach(request, **_):
        tried.append(request)
        raise urllib.error.URLError(TimeoutError("timed out"))  # what urllib makes of it while it connects

    with pytest.raises(AskFailed, match="after 4 requests; the last: URLError: timed out$"):
        EndpointDesigner("http://10.0.0.7/v1", "m", opener=out_of_reach, clock=clock).design(PICTURE, WISH)
    assert len(tried) == 4


# Interrupts ----------------------------------------------------------------------------------------------------------


class StopAfter:
    """Says stop from so many seconds on."""

    def __init__(self, seconds: float):
        self.until = time.monotonic() + seconds

    def __call__(self) -> bool:
        return time.monotonic() > self.until


@pytest.mark.parametrize("scene", [hang, hang_after_an_error, drip, status(429, "slow", Retry_After=50)])
def test_a_stop_is_heard_at_once_and_the_next_design_works(serve, scene):
    server = serve(scene, good)
    designing = EndpointDesigner(server.url, "teacher", timeout=60.0)
    started = time.monotonic()
    with pytest.raises(Interrupted):
        designing.design(PICTURE, WISH, should_stop=StopAfter(0.15))
    assert time.monotonic() - started < 0.65
    designing.chat.endpoint.not_before = 0.0  # the rate limit would be kept
    assert designing.design(PICTURE, WISH, should_stop=lambda: False).text == FORM


def test_a_stop_before_the_request_sends_nothing(ask):
    designing, server = ask()
    with pytest.raises(Interrupted):
        designing.design(PICTURE, WISH, should_stop=lambda: True)
    assert not server.seen


def test_nobody_reads_on_for_a_run_that_was_stopped(serve):
    server = serve(drip)
    before = set(threading.enumerate())
    with pytest.raises(Interrupted):
        EndpointDesigner(server.url, "teacher").design(PICTURE, WISH, should_stop=StopAfter(0.1))
    deadline = time.monotonic() + 3
    ours = [thread for thread in set(threading.enumerate()) - before if "_send_into" in thread.name]
    assert len(ours) <= 1 and all(thread.daemon for thread in ours)
    while any(thread.is_alive() for thread in ours) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(thread.is_alive() for thread in ours)


# Options that an endpoint does not take -----------------------------------------------------------------------------


def reasons(handler) -> None:
    """As OpenAI's reasoning models: one refusal at a time, then the answer."""
    said = {"max_tokens": "Unsupported parameter: 'max_tokens' is not supported with this model. Use "
            "'max_completion_tokens' instead.", "temperature": "Unsupported value: 'temperature' does not support 0.0"}
    for name, message in said.items():
        if name in handler.body:
            error = {"message": message, "type": "invalid_request_error", "param": name}
            return sent(handler, 400, json.dumps({"error": error}).encode())
    good(handler)


def options_of(server: Server) -> list[dict]:
    names = ("max_tokens", "max_completion_tokens", "temperature")
    return [{name: request.body[name] for name in names if name in request.body} for request in server.seen]


def test_what_a_reasoning_model_does_not_take_is_asked_for_otherwise_and_remembered(ask):
    designing, server = ask(reasons)
    before = designing.identity
    plans = [designing.design(PICTURE, WISH, max_new_tokens=77) for _ in range(2)]
    assert options_of(server) == [
        {"max_tokens": 77, "temperature": 0.0}, {"max_completion_tokens": 77, "temperature": 0.0},
        *[{"max_completion_tokens": 77}] * 2,
    ]
    for plan in plans:
        assert plan.text == FORM and plan.note == "the endpoint takes no temperature; its own was used"
    assert designing.identity == before and all(request.body["seed"] == SEED for request in server.seen)


def test_a_new_name_for_the_length_is_nothing_to_tell(ask):
    designing, server = ask(status(400, r'{"error": "unknown name \u0027max_tokens\u0027"}'), good)
    assert designing.design(PICTURE, WISH, max_new_tokens=77).note == ""
    assert options_of(server)[1] == {"max_completion_tokens": 77, "temperature": 0.0}


def test_a_refusal_that_stays_is_said_after_one_more_request_and_is_not_remembered(ask):
    designing, server = ask(status(400, "max_tokens or max_completion_tokens is too large: 77, at most 50"))
    for _ in range(2):
        with pytest.raises(AskFailed, match="status 400: max_tokens or .* at most 50; look at"):
            designing.design(PICTURE, WISH, max_new_tokens=77)
    old, new = {"max_tokens": 77, "temperature": 0.0}, {"max_completion_tokens": 77, "temperature": 0.0}
    assert options_of(server) == [old, new, old, new]


def test_what_the_user_says_of_the_length_himself_holds(ask):
    designing, server = ask(reasons, body={"max_completion_tokens": 5, "temperature": None})
    assert designing.design(PICTURE, WISH, max_new_tokens=77).note == ""
    assert options_of(server) == [{"max_tokens": 77, "max_completion_tokens": 5}, {"max_completion_tokens": 5}]


@pytest.mark.parametrize(("code", "text"), [(422, "temperature"), (400, "min_temperature"), (400, "max_tokens_x")])
def test_another_refusal_is_not_asked_again(ask, code, text):
    designing, server = ask(status(code, text), good)
    with pytest.raises(AskFailed, match="the options that it takes"):
        designing.design(PICTURE, WISH)
    assert len(server.seen) == 1


def test_an_option_that_was_not_sent_is_not_taken_out_again(ask):
    designing, server = ask(status(400, "temperature?"), good, body={"temperature": None})
    with pytest.raises(AskFailed, match="temperature"):
        designing.design(PICTURE, WISH)
    assert len(server.seen) == 1


# Failures that stay --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("code", "kind", "remedy"), [
    (400, AskFailed, "whether it sees pictures"), (422, AskFailed, "the options that it takes"),
    (401, EndpointUnusable, "set the key in the environment variable MINDEDIT_API_KEY to one"),
    (403, EndpointUnusable, "may not use this model"), (404, EndpointUnusable, "the model's name"),
])
def test_what_every_request_would_hear_is_not_asked_again_and_says_what_to_do(ask, code, kind, remedy):
    designing, server = ask(status(code, '{"error": "the reason"}'))
    with pytest.raises(kind, match=remedy) as caught:
        designing.design(PICTURE, WISH)
    assert len(server.seen) == 1 and f"status {code}" in str(caught.value) and "the reason" in str(caught.value)
    assert isinstance(caught.value, EndpointError) and isinstance(caught.value, OSError)


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed(ask, serve, monkeypatch, code):
    monkeypatch.setenv("MINDEDIT_API_KEY", KEY)
    elsewhere = serve()
    designing, _ = ask(status(code, "moved", Location=f"{elsewhere.url}/chat/completions"))
    with pytest.raises(EndpointUnusable, match="redirects are not followed"):
        designing.design(PICTURE, WISH)
    assert not elsewhere.seen


# The key -------------------------------------------------------------------------------------------------------------


def test_the_key_is_read_when_it_is_sent(ask, monkeypatch):
    designing, server = ask()
    designing.design(PICTURE, WISH)
    mine, other = "MINDEDIT_API_KEY", "OPENAI_API_KEY"
    for name, value in ((other, "of-openai"), (mine, f" {KEY}\n"), (mine, "new")):
        monkeypatch.setenv(name, value)
        designing.design(PICTURE, WISH)
    sent_keys = [request.headers["Authorization"] for request in server.seen]
    assert sent_keys == [None, "Bearer of-openai", f"Bearer {KEY}", "Bearer new"]


@pytest.mark.parametrize("address", ["http://evil.example/v1", "https://127.0.0.1.evil.example/v1", "http://10.0.0.7/v1"])
def test_a_key_goes_nowhere_that_only_a_workflow_names(address, monkeypatch):
    """The address may be somebody else's; the list of hosts is in the environment, where no workflow writes."""
    for name in ("MINDEDIT_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.setenv(name, KEY)
    seen = []

    def answers_401(request, **_):
        seen.append(request.get_header("Authorization"))
        raise urllib.error.HTTPError(address, 401, "Unauthorized", {}, io.BytesIO(b"no key"))

    def asked():
        with pytest.raises(EndpointError) as raised:
            EndpointDesigner(address, "m", opener=answers_401).design(PICTURE, WISH)
        return str(raised.value)

    assert "only if the environment variable MINDEDIT_API_HOSTS names it" in asked()
    monkeypatch.setenv("MINDEDIT_API_HOSTS", f"other.example, {urlsplit(address).hostname}")
    assert "MINDEDIT_API_HOSTS" not in asked()
    assert seen == [None, f"Bearer {KEY}"]


@pytest.mark.parametrize(("address", "hosts", "is_sent"), [
    ("https://api.openai.com/v1", "", True), ("HTTPS://API.OpenAI.com:443/v1", "", True),
    ("http://api.openai.com/v1", "", False), ("http://api.openai.com:443/v1", "other.example", False),
    ("http://10.0.0.7/v1", "10.0.0.7", True), ("http://[::1]/v1", "", True), ("http://localhost/v1", "", True),
])
def test_a_key_travels_in_clear_text_only_where_the_user_said_so(serve, monkeypatch, address, hosts, is_sent):
    monkeypatch.setenv("MINDEDIT_API_KEY", KEY)
    monkeypatch.setenv("MINDEDIT_API_HOSTS", hosts)
    server = serve(status(401, "who?"))

    def divert(request, timeout):
        request.full_url = server.url + "/chat/completions"
        return urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=timeout)

    with pytest.raises(EndpointUnusable) as raised:
        EndpointDesigner(address, "m", opener=divert).design(PICTURE, WISH)
    assert [request.headers["Authorization"] for request in server.seen] == [f"Bearer {KEY}" if is_sent else None]
    assert ("is sent to api.openai.com over https only: write https://" in str(raised.value)) is not is_sent


def test_another_variable_may_hold_it(ask, monkeypatch):
    monkeypatch.setenv("MY_KEY", KEY)
    monkeypatch.setenv("MINDEDIT_API_KEY", "another")
    designing, server = ask(key_variable="MY_KEY")
    designing.design(PICTURE, WISH)
    assert server.seen[0].headers["Authorization"] == f"Bearer {KEY}"


TELLTALES = {
    "good": good,
    "401": status(401, f"wrong key {KEY}"),
    "reason": status(403, "", reason=f"no {KEY}"),
    "late": status(400, "x" * 270 + f" {KEY} " + "y" * 300),
    "500": status(500, f"trace: Bearer {KEY}"),
    "redirect": status(302, KEY, Location=f"http://127.0.0.1:1/{KEY}"),
    "status line": lambda handler: handler.wfile.write(f"NONSENSE {KEY}\r\n\r\n".encode()),
    "no JSON": raw(f"<html>{KEY}</html>".encode()),
    "other JSON": raw(json.dumps({"you": KEY}).encode()),
    "escaped": raw(json.dumps({"you": KEY}).replace("/", "\\/").encode()),
    "half": lambda handler: sent(handler, 200, f'{{"key": "{KEY}'.encode()),
    "answer": says(FORM + f" Your key is {KEY}."),
    "nonsense": says(f"{KEY} is your key"),
    "refusal": says(None, refusal=f"not with {KEY}"),
    "gone": gone,
}


def everything_in(part: object, seen: set | None = None) -> str:
    """Whatever is reachable from an object through attributes, containers and the like, as text."""
    seen = set() if seen is None else seen
    if id(part) in seen or isinstance(part, type(threading)):
        return ""
    seen.add(id(part))
    inside = list(vars(part).values()) if hasattr(part, "__dict__") else []
    inside += [*part.keys(), *part.values()] if isinstance(part, dict) else []
    inside += list(part) if isinstance(part, list | tuple | set) else []
    inside += [part.func, part.args, part.keywords] if hasattr(part, "keywords") else []
    inside += [cell.cell_contents for cell in getattr(part, "__closure__", None) or ()]
    inside += [part.__self__] if hasattr(part, "__self__") else []
    return "\n".join([repr(part), *(everything_in(each, seen) for each in inside)])


def told(error: BaseException | None) -> str:
    """All that an error and what it came from may print."""
    if error is None:
        return ""
    said = "".join(traceback.format_exception(error)) + repr(error) + str(error) + repr(vars(error)) + repr(error.args)
    return said + told(error.__cause__) + told(error.__context__)


@pytest.mark.parametrize("telltale", TELLTALES)
def test_the_key_appears_nowhere_whatever_the_server_says(ask, monkeypatch, caplog, tmp_path, telltale):
    monkeypatch.setenv("MINDEDIT_API_KEY", KEY)
    caplog.set_level(logging.DEBUG)
    designing, server = ask(TELLTALES[telltale], tries=2)
    cached = CachedDesigner(designing, tmp_path, designing.identity)
    said = ""
    try:
        plan = cached.design(PICTURE, WISH, on_token=lambda texts: caplog.records.append(SimpleNamespace(texts=texts)))
        said += repr(plan) + everything_in(plan)
    except EndpointError as error:
        said += told(error)
    records = "".join(repr(vars(record)) for record in caplog.records)
    written = "".join(path.read_text() for path in tmp_path.rglob("*") if path.is_file())
    kept = everything_in(cached) + cached.identity
    assert server.seen[0].headers["Authorization"] == f"Bearer {KEY}"
    assert bool(written) == (telltale in ("good", "answer"))
    for text in (said, records, written, kept):
        assert KEY not in text and KEY.replace("/", "\\/") not in text and KEY[3:-2] not in text
    if telltale not in ("good", "gone", "redirect", "reason"):
        assert "[key]" in said  # the server's words are told, but for the key


@pytest.mark.parametrize("key", ["sk-line\nbreak-secret", "sk-blank secret", "sk-schlüssel-secret", "sk-\u2026secret"])
def test_a_key_that_no_header_takes_is_refused_without_being_shown(ask, monkeypatch, key):
    monkeypatch.setenv("MINDEDIT_API_KEY", key)
    designing, server = ask()
    with pytest.raises(EndpointUnusable, match="the environment variable MINDEDIT_API_KEY holds blanks or") as caught:
        designing.design(PICTURE, WISH)
    assert "secret" not in told(caught.value).replace("test_endpoint_designer", "") and not server.seen


@pytest.mark.parametrize("name", [KEY, "", "a b"])
def test_a_key_in_the_place_of_its_variables_name_is_refused_without_being_shown(name):
    with pytest.raises(ValueError, match="the name of an environment variable") as caught:
        EndpointDesigner("http://localhost/v1", "m", key_variable=name)
    assert KEY not in told(caught.value)


def test_a_word_that_stands_for_no_key_may_be_in_an_answer(ask, monkeypatch):
    monkeypatch.setenv("MINDEDIT_API_KEY", "none")
    assert ask(says("none of the lemons is left"))[0].design(PICTURE, WISH).text == "none of the lemons is left"


# Addresses -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("url", [
    "https://me:hunter2@api.example.org/v1", "https://hunter2@api.example.org", "api.example.org@hunter2",
    "https://api.example.org/v1?key=hunter2", "https://api.example.org/v1#hunter2", "http://a:hunter2@b:c/",
])
def test_an_address_with_a_secret_in_it_is_refused_without_repeating_it(url):
    with pytest.raises(ValueError, match="written into workflows, files and logs.*MINDEDIT_API_KEY") as caught:
        EndpointDesigner(url, "teacher")
    assert "hunter2" not in str(caught.value) and "hunter2" not in repr(caught.value.__context__)


@pytest.mark.parametrize("url", [
    "", "api.example.org/v1", "ftp://a/v1", "file:///etc/passwd", "data:,x", "http://", "http://a b/v1",
    "http://a\nb/v1", "http://[::1", "http://a:port/v1", "http://bücher.example/v1",
])
def test_an_address_that_cannot_be_asked_is_refused(url):
    with pytest.raises(ValueError, match="must begin with http:// or https://"):
        EndpointDesigner(url, "teacher")


def test_a_model_without_a_name_and_an_unknown_prompt_are_refused():
    with pytest.raises(ValueError, match="the name by which it knows the model"):
        EndpointDesigner("http://localhost/v1", " ")
    with pytest.raises(ValueError, match="unknown blueprint prompt 'full'"):
        EndpointDesigner("http://localhost/v1", "m", template="full")
    with pytest.raises(ValueError, match="jpeg, png"):
        EndpointDesigner("http://localhost/v1", "m", form="gif").design(PICTURE, WISH)


def test_identities_tell_apart_what_answers_differently():
    url = "http://a/v1"
    made = [EndpointDesigner(url, "m"), EndpointDesigner("http://b/v1", "m"), EndpointDesigner(url, "n")]
    for other in ({"template": "mini"}, {"body": {"top_p": 1}}, {"form": "png"}):
        made.append(EndpointDesigner(url, "m", **other))
    assert len({each.identity for each in made}) == len(made)
    assert EndpointDesigner("http://a/v1/", "m", timeout=3).identity == made[0].identity
