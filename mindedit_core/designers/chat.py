"""OpenAI's chat format, about pictures: hosted models, vLLM, llama.cpp, `transformers serve` and many more speak it."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from .transport import AskFailed, Endpoint, ShouldStop

FORMS = {"jpeg": {"format": "JPEG", "quality": 92}, "png": {"format": "PNG"}}
STREAM = (b"data:", b"event:", b":")  # how a stream of pieces begins


class Answer(NamedTuple):
    """text: "" if there is none;  finish: why it ended, "length" if it was cut off;  choice: as it came, for errors"""

    text: str
    finish: str | None
    choice: Mapping[str, Any]


class Chat:
    """endpoint: who is asked;  model: the endpoint's name of it"""

    def __init__(self, endpoint: Endpoint, model: str):
        if not model.strip():
            raise ValueError("an endpoint needs the name by which it knows the model, got an empty one")
        self.endpoint, self.model = endpoint, model.strip()

    def ask(
        self,
        prompt: str,
        pictures: Sequence[str] = (),
        body: Mapping[str, Any] | None = None,
        should_stop: ShouldStop | None = None,
    ) -> Answer:
        """The answer to a prompt. pictures: data URLs, before the text;  body: more entries, None takes one out

        Raises AskFailed, EndpointUnusable, Interrupted.
        """
        content = [{"type": "image_url", "image_url": {"url": url}} for url in pictures]
        content.append({"type": "text", "text": prompt})
        said = {"model": self.model, "messages": [{"role": "user", "content": content}], **(body or {})}
        said = {name: value for name, value in said.items() if value is not None}
        return read_answer(self.endpoint.post(said, should_stop, is_whole))


def read_answer(data: bytes) -> Answer:
    """The first choice of a response. Raises AskFailed for what is not in the chat format, saying what came.

    >>> read_answer(b'{"choices": [{"message": {"content": "a cup"}, "finish_reason": "stop"}]}')[:2]
    ('a cup', 'stop')
    """
    try:
        choice = joined(data) if data.lstrip().startswith(STREAM) else json.loads(data)["choices"][0]
        return Answer(_text(choice["message"].get("content")), choice.get("finish_reason"), choice)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        problem = repr(error)[:200]
    start = " ".join(data[:1000].decode("utf-8", "replace").split())[:200]
    raise AskFailed(f"the response is not in the chat format ({problem}): {start or '(nothing)'}")


def _text(content: Any) -> str:
    """Some servers answer in parts, as they are asked."""
    if isinstance(content, list):
        return "".join(part.get("text") or "" for part in content)
    return content if isinstance(content, str) else ""


def joined(stream: bytes) -> dict[str, Any]:
    r"""One choice of the pieces of a stream: there are servers that stream whether they are asked to or not.

    >>> joined(b'data: {"choices": [{"delta": {"content": "a cup"}}]}\n\ndata: [DONE]\n')
    {'message': {'content': 'a cup'}, 'finish_reason': None}
    """
    lines = (line.removeprefix(b"data:").strip() for line in stream.splitlines() if line.startswith(b"data:"))
    pieces = [choice for line in lines if line != b"[DONE]" for choice in json.loads(line).get("choices", [])[:1]]
    text = "".join(piece["delta"].get("content") or "" for piece in pieces)
    reasons = [piece["finish_reason"] for piece in pieces if piece.get("finish_reason")]
    return {"message": {"content": text}, "finish_reason": reasons[-1] if reasons else None}


def is_whole(data: bytes) -> bool:
    r"""False for a response that breaks off: no length was told, and the connection ended before it did.

    >>> is_whole(b'{"choices": []}'), is_whole(b'{"choices": [{"mess'), is_whole(b"<html>"), is_whole(b"")
    (True, False, True, False)
    >>> is_whole(b'data: {"choices": [{"delta": {"content": "a"}}]}\n\n'), is_whole(b"data: {}\n\ndata: [DONE]\n")
    (False, True)
    """
    text = data.strip()
    if text.startswith(STREAM):
        return b"[DONE]" in text or re.search(rb'"finish_reason":\s*"', text) is not None
    if not text.startswith(b"{") or text.endswith(b"}"):
        return bool(text)
    try:
        return bool(json.loads(text))
    except ValueError:
        return False


def data_url(image: np.ndarray, form: str = "jpeg", max_side: int = 1024) -> str:
    """uint8[H, W, 3] as a data URL, made smaller if a side is longer than max_side. form: jpeg or png"""
    if form not in FORMS:
        raise ValueError(f"the picture format must be one of {', '.join(FORMS)}, got {form!r}")
    picture = Image.fromarray(image)
    picture.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, **FORMS[form])
    return f"data:image/{form};base64,{base64.b64encode(buffer.getvalue()).decode()}"
