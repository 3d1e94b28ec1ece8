"""Configurations of transformers, whatever version wrote them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def config_from(config_class: type, said: Mapping[str, Any]) -> Any:
    """The configuration that `said` describes, as `to_dict` of any version gave it."""
    return with_rope(config_class.from_dict(dict(said)))


def with_rope(config: Any) -> Any:
    """`config`, its text's rotary positions under the names that transformers 4 reads too.

    transformers 5 writes `rope_parameters`; 4 keeps that as a stranger and reads `rope_scaling` and `rope_theta`.
    """
    text = getattr(config, "text_config", None)
    said = getattr(text, "rope_parameters", None)
    if said and getattr(text, "rope_scaling", None) is None:
        text.rope_scaling = {name: value for name, value in said.items() if name != "rope_theta"}
        text.rope_theta = said.get("rope_theta", text.rope_theta)
    return config
