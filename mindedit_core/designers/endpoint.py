"""Draw-In-Mind's designer behind an endpoint (arXiv 2509.01986: GPT-4o by default): any model that speaks OpenAI's
chat format writes the blueprint, of which the painter's own MLLM gives the states.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import torch
from torch import Tensor

from ..blueprint import blueprint_prompt
from ..blueprint_parser import ParsedBlueprint, parse_blueprint
from ..contracts import Plan
from ..pictures import to_uint8
from ..prompts import check_instruction
from ..tensors import to_rgb
from .chat import Answer, Chat, data_url
from .transport import AskFailed, Endpoint, ShouldStop

KEY_VARIABLE, OTHER_KEY_VARIABLE = "MINDEDIT_API_KEY", "OPENAI_API_KEY"
HOSTS = "MINDEDIT_API_HOSTS"  # environment variable: host names that the key may be sent to, with commas between them
OPENAI, LOCAL = "api.openai.com", ("localhost", "127.0.0.1", "::1")
MAX_NEW_TOKENS = 2048  # a blueprint of a photograph takes 350 to 450; models that think aloud need more
MAX_SIDE = 1024  # pixels of a picture's longest side when it travels
SEED = 233  # of the published designer
# options that OpenAI's reasoning models answer 400 to, and what these take in their place
INSTEAD = {"max_tokens": "max_completion_tokens", "temperature": None}
LONGEST_ASKED = 60.0  # seconds: nobody sits before a picture for longer because a server says so


class EndpointDesigner:
    """base_url: up to and with /v1;  model: the endpoint's name of it;  template: of `blueprint.PROMPTS`

    key_variable: environment variable with the key, OPENAI_API_KEY if that is empty; read when it is sent, kept
        nowhere, and sent to this machine, over https to OpenAI, and to the hosts of MINDEDIT_API_HOSTS alone; for
        these the user decided, and an address with http:// sends it to them in clear text
    timeout: seconds of silence, in which the whole answer is written;  tries: requests for one plan, two if they time
        out;  form: how pictures travel, jpeg or png
    body: more entries of the request, None takes one out. Those of INSTEAD that the endpoint refuses are asked for
        otherwise or not at all, from then on
    opener, clock: of `Endpoint`, for tests
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        key_variable: str = KEY_VARIABLE,
        timeout: float = 60.0,
        tries: int = 4,
        template: str = "dim",
        form: str = "jpeg",
        body: Mapping[str, Any] | None = None,
        opener: Callable[..., Any] | None = None,
        clock: Any = time,
    ):
        blueprint_prompt("?", template)  # an unknown one is said now
        target = _target(base_url)
        name = f"the key in the environment variable {_checked_name(key_variable)}{_where_it_goes(*target)}"
        patience = {"timeout": timeout, "tries": tries, "longest_asked": LONGEST_ASKED}
        key = partial(read_key, key_variable, *target)
        endpoint = Endpoint(base_url, key, key_name=name, opener=opener, clock=clock, **patience)
        self.chat, self.template, self.form, self.body = Chat(endpoint, model), template, form, dict(body or {})
        self.refused: frozenset[str] = frozenset()  # of INSTEAD: what this endpoint was found not to take

    @property
    def identity(self) -> str:
        """All that shapes its answers beside picture, wish and options; for `CachedDesigner`."""
        return repr((self.chat.endpoint.url, self.chat.model, self.template, self.form, sorted(self.body.items())))

    def design(
        self,
        image: Tensor,
        instruction: str,
        *,
        max_new_tokens: int = MAX_NEW_TOKENS,
        temperature: float = 0.0,
        generator: torch.Generator | None = None,
        on_token: Callable[[list[str]], None] | None = None,
        should_stop: ShouldStop | None = None,
    ) -> Plan:
        """The plan for one picture, float[1, H, W, C] in 0..1.

        temperature: 0 takes the likeliest words;  generator: its seed is sent;  on_token: called once, with the answer
        An answer without a blueprint is used as far as it goes, and the plan's note says so; also that the endpoint
        takes no temperature.
        Raises ValueError for an instruction or a batch that cannot be designed, EndpointError, Interrupted.
        """
        raw = check_instruction(instruction)
        if len(image) != 1:
            raise ValueError(f"a plan is about one picture, got {len(image)}; design and paint one by one")
        options = {"max_tokens": max_new_tokens, "temperature": temperature, "seed": _seed(temperature, generator)}
        picture = data_url(to_uint8(to_rgb(image)[0]), self.form, MAX_SIDE)
        answer = self._ask(blueprint_prompt(raw, self.template), picture, {**options, **self.body}, should_stop)
        if on_token is not None:
            on_token([answer.text])
        return _plan(raw, answer, parse_blueprint(answer.text, raw), max_new_tokens, self.refused)

    def _ask(self, prompt: str, picture: str, options: Mapping[str, Any], should_stop: ShouldStop | None) -> Answer:
        """The answer. A refused option is asked for otherwise, once each, and remembered if that helps.

        Raises AskFailed, EndpointUnusable, Interrupted.
        """
        refused = self.refused
        while True:
            try:
                answer = self.chat.ask(prompt, [picture], _without(refused, options), should_stop)
            except AskFailed as error:
                found = _refused(error, options) - refused
                if not found:
                    raise
                refused |= found
            else:
                self.refused |= refused
                return answer


def _refused(error: AskFailed, options: Mapping[str, Any]) -> frozenset[str]:
    """The options of INSTEAD that a status 400 names, if they were asked for."""
    if error.reply is None or error.reply.status != 400:
        return frozenset()
    said = error.reply.data.decode("utf-8", "replace")
    asked = (name for name in INSTEAD if options.get(name) is not None)
    # no \b: some servers write the quote before a name as \u0027, and a digit is a letter to \b
    return frozenset(name for name in asked if re.search(f"(?<![a-z_]){name}(?![a-z_])", said))


def _without(refused: frozenset[str], options: Mapping[str, Any]) -> dict[str, Any]:
    """The options under the names that the endpoint takes; what the user says of such a name himself holds."""
    renamed = {INSTEAD[name]: options[name] for name in refused if INSTEAD[name]}
    return renamed | {name: value for name, value in options.items() if name not in refused}


def read_key(variable: str, scheme: str, host: str) -> str | None:
    """The key as the environment holds it at this moment, None if it holds none, or if it is not meant to go there.

    An address may come with somebody else's workflow: a key goes to this machine, over https to OpenAI, and to HOSTS
    alone.
    """
    if not is_trusted(scheme, host):
        return None
    return os.environ.get(variable) or os.environ.get(OTHER_KEY_VARIABLE)


def _target(base_url: str) -> tuple[str, str]:
    """Scheme and host that an address names; empty for one that `Endpoint` will refuse."""
    try:
        parts = urlsplit(base_url.strip())
        return parts.scheme, parts.hostname or ""
    except ValueError:
        return "", ""


def is_trusted(scheme: str, host: str) -> bool:
    """Whether a key may be sent there: over https, or on this machine, which no network sees.

    The hosts that the user's own environment names get it over http too: networks of one's own may have no https.
    """
    return host in LOCAL or host in named_hosts() or (scheme, host) == ("https", OPENAI)


def named_hosts() -> list[str]:
    """The user's own list, in the environment, where no workflow writes."""
    return [name.strip().lower() for name in os.environ.get(HOSTS, "").split(",") if name.strip()]


def _where_it_goes(scheme: str, host: str) -> str:
    if is_trusted(scheme, host):
        return ""
    if host == OPENAI:
        return f" (which is sent to {host} over https only: write https:// in the address)"
    return f" (which is sent to {host} only if the environment variable {HOSTS} names it)"


def _checked_name(variable: str) -> str:
    """A variable's name; what is not one may be the key itself and is not repeated."""
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", variable):
        raise ValueError(
            "key_variable is the name of an environment variable (letters, digits and _), got something else, not "
            f"shown here because it may be the key; put the key into {KEY_VARIABLE}"
        )
    return variable


def _seed(temperature: float, generator: torch.Generator | None) -> int | None:
    """None, which is not sent, if nobody asked for the same words again; else below 2**31, which all servers take."""
    if generator is not None:
        return generator.initial_seed() % 2**31
    return SEED if temperature <= 0.0 else None


def _plan(raw: str, answer: Answer, parsed: ParsedBlueprint, max_new_tokens: int, refused: frozenset[str]) -> Plan:
    notes = [parsed.note]
    if "temperature" in refused:
        notes.append("the endpoint takes no temperature; its own was used")
    if answer.finish == "length":
        notes.append(f"the endpoint cut the answer off at {max_new_tokens} tokens; allow more to have it whole")
    if refusal := (answer.choice.get("message") or {}).get("refusal"):
        notes.append(f"the endpoint declines: {' '.join(str(refusal).split())[:200]}")
    note = "; ".join(filter(None, notes))
    return Plan(raw, parsed.text, "endpoint", sections=parsed.sections, note=note)
