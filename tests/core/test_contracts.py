"""Contracts hold what they say and refuse what cannot be."""

from dataclasses import FrozenInstanceError
from types import SimpleNamespace

import pytest
import torch

from mindedit_core.contracts import (
    CapturedStates,
    Condition,
    Insight,
    Misfit,
    PaintSettings,
    Plan,
    Region,
    require_fit,
)


class Bridge(SimpleNamespace):
    emits = frozenset({"image_tokens"})


class Painter(SimpleNamespace):
    accepts = frozenset({"text_tokens", "image_tokens"})


class TextPainter(SimpleNamespace):
    accepts = frozenset({"text_tokens"})


class Reader(SimpleNamespace):
    pass


def test_contracts_are_frozen():
    for contract in (Plan("a", "b"), Insight(None, None), Condition(), PaintSettings(), Region("background")):
        with pytest.raises(FrozenInstanceError):
            contract.note = "changed"


def test_a_plan_with_states_can_be_compared_and_hashed():
    states = CapturedStates(torch.zeros(1, 2, 3), torch.ones(1, 2, dtype=torch.bool), 1, "key", "mini")
    plan = Plan("a", "b", states=states)
    assert plan == plan and plan != Plan("a", "b", states=states) and len({plan, plan}) == 1


def test_states_belong_to_one_picture_and_one_mllm():
    states = CapturedStates(torch.zeros(1, 2, 3), torch.ones(1, 2, dtype=torch.bool), 1, "key", "mini")
    assert states.belongs_to("key", "mini")
    assert not states.belongs_to("other", "mini") and not states.belongs_to("key", "other")


@pytest.mark.parametrize(
    ("kind", "box"),
    [
        ("box", None),
        ("background", (0, 0, 1, 1)),
        ("circle", None),
        ("keep", None),
        ("box", (5, 0, 5, 9)),
        ("box", (0, 9, 5, 1)),
        ("box", (-1, 0, 5, 9)),
        ("box", (0, 0, 5, 1001)),
        ("box", (0, 0, 5)),
    ],
)
def test_an_impossible_region_is_refused(kind, box):
    with pytest.raises(ValueError, match="region|box"):
        Region(kind, box)


def test_the_whole_picture_is_a_box():
    assert Region("box", (0, 0, 1000, 1000)).box == (0, 0, 1000, 1000)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps must be 1 or more, got 0"),
        ({"strength": 1.5}, "strength must be in 0..1, got 1.5"),
        ({"start": 0.7, "end": 0.3}, "start <= end <= 1, got 0.7 and 0.3"),
        ({"end": 1.2}, "start <= end <= 1"),
        ({"seed": -1}, "seed must be in"),
        ({"seed": 2**64}, "seed must be in"),
        ({"strenght": 1.0}, "unknown paint setting strenght; have steps"),
    ],
)
def test_impossible_settings_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        PaintSettings().but(**change)


def test_but_changes_only_what_it_is_told():
    settings = PaintSettings(steps=7, seed=3).but(strength=0.5)
    assert (settings.steps, settings.seed, settings.strength) == (7, 3, 0.5)


def test_a_condition_knows_its_streams():
    tokens = torch.zeros(1, 4, 8)
    assert Condition().streams == frozenset()
    assert Condition(image_tokens=tokens, negative_image_tokens=tokens).streams == {"image_tokens"}


def test_parts_that_fit_pass():
    require_fit(
        Reader(clip_space="a", embed_dim=4), Bridge(clip_space="a", embed_dim=4, token_dim=8), Painter(token_dim=8)
    )


def test_silence_is_no_misfit():
    require_fit(Reader(), Bridge(clip_space="a"), Painter(token_dim=8))
    require_fit(Reader(clip_space=None), Bridge(clip_space="a"), Painter())


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (
            (Reader(), Bridge(), TextPainter()),
            "TextPainter has no place for image_tokens from Bridge; it accepts text_tok",
        ),
        (
            (Reader(clip_space="a"), Bridge(clip_space="b"), Painter()),
            "Reader gives clip_space 'a', Bridge takes 'b'; load",
        ),
        ((Reader(embed_dim=4), Bridge(embed_dim=5), Painter()), "Reader gives embed_dim 4, Bridge takes 5"),
        (
            (Reader(embed_form="global", embed_dim=4), Bridge(embed_form="states", embed_dim=5), Painter()),
            "gives embed_form 'global', Bridge takes 'states'; a base IP-Adapter reads the global embedding, a plus",
        ),
        (
            (Reader(), Bridge(token_dim=768), Painter(token_dim=2048)),
            "token_dim 768, Painter takes 2048; use an IP-Adapt",
        ),
    ],
)
def test_a_misfit_names_both_parts_and_the_remedy(parts, message):
    with pytest.raises(Misfit, match=message):
        require_fit(*parts)
