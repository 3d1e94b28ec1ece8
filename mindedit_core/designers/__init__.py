"""Designers by name: who turns the user's wish into a plan. A new one is one file and one line here."""

from typing import Any

from ..registry import lookup

DESIGNERS = {
    "self": ".self_mllm:SelfMLLM",
    "verbatim": ".verbatim:Verbatim",
    "blueprint": ".blueprint:BlueprintDesigner",
    "endpoint": ".endpoint:EndpointDesigner",
    "typed": ".typed:Typed",
}


def designer(name: str) -> Any:
    """The class of a designer; an unknown name lists the known ones."""
    return lookup(DESIGNERS, name, __name__, "designer")
