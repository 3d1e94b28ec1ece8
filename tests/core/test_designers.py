"""Designers: from the user's wish to a plan."""

from types import SimpleNamespace

import pytest
import torch

from mindedit_core.contracts import CapturedStates, Region
from mindedit_core.designers import DESIGNERS, designer
from mindedit_core.designers.self_mllm import SelfMLLM
from mindedit_core.designers.verbatim import Verbatim

IMAGE = torch.zeros(1, 8, 8, 3)
GOOD = "optimized instruction: red cat, grass\nregion: background"


class Answering:
    """Gives back what it is told to and keeps what it was asked; a generation of the real model is tested beside it."""

    def __init__(self, *answers):
        self.answers, self.asked = answers, None
        self.states = [
            CapturedStates(torch.zeros(1, 1, 1), torch.ones(1, 1, dtype=torch.bool), 1, str(n), "id")
            for n, _ in enumerate(answers)
        ]

    def generate(self, images, instructions, **options):
        self.asked = (len(images), list(instructions), options)
        return [SimpleNamespace(text=t, states=s) for t, s in zip(self.answers, self.states, strict=True)]


def test_the_plan_holds_what_the_answer_says_and_its_states():
    mllm = Answering(GOOD)
    plan = SelfMLLM(mllm).design(IMAGE, " make\nit red ", max_new_tokens=5)
    assert (plan.raw, plan.text, plan.designer, plan.note) == ("make it red", "red cat, grass", "self", "")
    assert plan.regions == (Region("background"),) and plan.sections["answer"] == GOOD
    assert plan.states is mllm.states[0]
    assert mllm.asked == (1, ["make it red"], {"max_new_tokens": 5})


def test_a_malformed_answer_obeys_the_raw_instruction_and_says_so():
    plan = SelfMLLM(Answering("I see a cat.")).design(IMAGE, "make it red")
    assert plan.text == plan.raw == "make it red" and "I see a cat." in plan.note and plan.states is not None


def test_descriptions_are_cut_by_the_painter_s_own_count():
    answer = "optimized instruction: " + ", ".join(["red cat"] * 60)
    plan = SelfMLLM(Answering(answer), lambda text: 1 + len(text)).design(IMAGE, "make it red")
    assert plan.text == ", ".join(["red cat"] * 8) and "77 tokens" in plan.note


def test_each_picture_gets_its_own_plan_from_one_generation():
    mllm = Answering(GOOD, "nothing")
    plans = SelfMLLM(mllm).design_each(IMAGE.expand(2, -1, -1, -1), ["a", "b"])
    assert [plan.text for plan in plans] == ["red cat, grass", "b"]
    assert [plan.states.image_key for plan in plans] == ["0", "1"] and mllm.asked[:2] == (2, ["a", "b"])


def test_one_plan_for_several_pictures_is_refused():
    with pytest.raises(ValueError, match="one picture, got 2; use design_each"):
        SelfMLLM(Answering(GOOD)).design(IMAGE.expand(2, -1, -1, -1), "a")


@pytest.mark.parametrize("name", DESIGNERS)
@pytest.mark.parametrize(("wish", "remedy"), [("", "say what to change"), ("x" * 10_000, "shorten it")])
def test_an_empty_or_overlong_instruction_is_refused_before_the_mllm_runs(name, wish, remedy):
    mllm = Answering(GOOD)
    mllm.read = mllm.write = mllm.turn = mllm.generate
    arguments = {"verbatim": (), "typed": ("a table",), "endpoint": ("http://127.0.0.1:1/v1", "m")}
    made = designer(name)(*arguments.get(name, (mllm,)))
    with pytest.raises(ValueError, match=remedy):
        made.design(IMAGE, wish)
    assert mllm.asked is None


def test_verbatim_changes_nothing():
    plan = Verbatim().design(IMAGE, "make it red", max_new_tokens=5)
    assert (plan.raw, plan.text, plan.designer, plan.states) == ("make it red", "make it red", "verbatim", None)


def test_an_unknown_designer_lists_the_known_ones():
    with pytest.raises(ValueError, match="unknown designer 'oracle'; have blueprint, endpoint, self, typed, verbatim"):
        designer("oracle")
