"""Asks any endpoint with OpenAI's chat format about pictures: a hosted model, vLLM, llama.cpp, `transformers serve`.

What is sent, and sent again, is `mindedit_core.designers.chat` and `.transport`, which the designer behind an endpoint
uses too. Training data is stricter than a designer: an answer that was cut off or says nothing is a failure.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from mindedit_core.designers.chat import FORMS, Chat, data_url
from mindedit_core.designers.transport import AskFailed, Endpoint, EndpointUnusable

__all__ = ["FORMS", "AskFailed", "ChatEndpoint", "EndpointUnusable", "data_url"]


class ChatEndpoint:
    """base_url: up to and with /v1;  key: sent as a bearer token, never written anywhere;  timeout: seconds of silence

    tries: requests for one question;  body: more entries of the request, None takes one out;  stop: ends every wait

    >>> ChatEndpoint("ftp://example.org", "teacher")
    Traceback (most recent call last):
    ValueError: the base URL must begin with http:// or https://, got 'ftp://example.org'
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
        self.chat = Chat(Endpoint(base_url, lambda: key, timeout=timeout, tries=tries), model)
        self.model, self.body, self.stop = model, dict(body or {}), stop or threading.Event()

    def ask(self, prompt: str, pictures: Sequence[str] = ()) -> str:
        """The answer's text. pictures: data URLs, before the text. Raises AskFailed, EndpointUnusable, Interrupted."""
        answer = self.chat.ask(prompt, pictures, self.body, self.stop.is_set)
        if answer.finish == "length":
            raise AskFailed(f"the answer was cut off for its length: {answer.text[:200]}")
        if not answer.text.strip():
            raise AskFailed(f"the answer has no text: {json.dumps(answer.choice)[:200]}")
        return answer.text
