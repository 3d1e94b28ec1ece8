"""Blueprints kept on disk: asked once, also after a restart, in other processes and beside damaged files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from mindedit_core.backbones.qwen2_5_vl import Answer, Qwen25VL
from mindedit_core.blueprint import SECTIONS, format_blueprint
from mindedit_core.blueprint_parser import parse_blueprint
from mindedit_core.contracts import Designer, Interrupted, Plan
from mindedit_core.designers.blueprint import BlueprintDesigner
from mindedit_core.designers.cache import CachedDesigner
from mindedit_core.designers.self_mllm import SelfMLLM
from mindedit_core.systems.tiny_dim import tiny_qwen, tiny_qwen_tokenizer

WISH = "remove the lemons"
WHOLE = {name: f"What is said of {name.lower()}, « ünï »." for name in SECTIONS}
FORM = format_blueprint(WHOLE)
PICTURE = torch.rand(1, 24, 32, 3, generator=torch.Generator().manual_seed(0))
SLY = "\ud800 a lone surrogate"


class Writes:
    """A designer that writes what it is told to and counts; real ones are tested beside it."""

    def __init__(self, answer: str = FORM):
        self.answer, self.asked = answer, []

    def design(self, image, instruction, **options):
        self.asked.append(options)
        parsed = parse_blueprint(self.answer, instruction)
        return Plan(instruction, parsed.text, "writes", sections=parsed.sections, note=parsed.note)


@pytest.fixture
def writes() -> Writes:
    return Writes()


@pytest.fixture
def cached(writes, tmp_path) -> CachedDesigner:
    return CachedDesigner(writes, tmp_path / "kept", "writes, v1")


def entries(cached: CachedDesigner) -> list[Path]:
    return sorted(cached.folder.glob("*")) if cached.folder.exists() else []


def same(one: Plan, other: Plan) -> bool:
    return all(getattr(one, name) == getattr(other, name) for name in ("raw", "text", "designer", "sections", "note"))


# Once ----------------------------------------------------------------------------------------------------------------


def test_the_same_question_is_asked_once_and_answered_alike(cached, writes):
    first, second = cached.design(PICTURE, WISH), cached.design(PICTURE, WISH)
    assert len(writes.asked) == 1 and same(first, second) and second.text == FORM and second.sections == WHOLE
    assert isinstance(cached, Designer) and len(entries(cached)) == 1


def test_it_is_remembered_after_a_restart(cached, writes):
    first = cached.design(PICTURE, WISH)
    again = CachedDesigner(Writes("something else"), cached.folder, "writes, v1")
    assert same(again.design(PICTURE, WISH), first) and not again.designer.asked


def test_it_is_remembered_by_another_process(cached, root):
    cached.design(PICTURE, WISH)
    script = (
        "import sys, torch\nfrom mindedit_core.designers.cache import CachedDesigner\n"
        "picture = torch.rand(1, 24, 32, 3, generator=torch.Generator().manual_seed(0))\n"
        "plan = CachedDesigner(None, sys.argv[1], 'writes, v1').design(picture, ' remove the  lemons')\n"
        "sys.stdout.buffer.write(plan.text.encode())\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(root), "PYTHONHASHSEED": "7", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, "-c", script, str(cached.folder)], capture_output=True, env=environment)
    assert done.stdout.decode() == FORM, done.stderr.decode()


def test_words_in_another_dress_are_the_same_wish(cached, writes):
    cached.design(PICTURE, WISH)
    assert cached.design(PICTURE.double(), "  remove\nthe   lemons ").text == FORM and len(writes.asked) == 1


CHANGES = {
    "picture": ((PICTURE.flip(1), WISH), {}),
    "wish": ((PICTURE, "remove the vase"), {}),
    "length": ((PICTURE, WISH), {"max_new_tokens": 9}),
    "temperature": ((PICTURE, WISH), {"temperature": 0.5, "generator": torch.Generator().manual_seed(1)}),
    "another option": ((PICTURE, WISH), {"detail": "low"}),
}


@pytest.mark.parametrize("change", CHANGES)
def test_another_question_is_asked(cached, writes, change):
    cached.design(PICTURE, WISH)
    (image, wish), options = CHANGES[change]
    for _ in range(2):
        cached.design(image, wish, **options)
    assert len(writes.asked) == 2 and len(entries(cached)) == 2


def test_another_designer_is_asked(cached, writes):
    cached.design(PICTURE, WISH)
    other = CachedDesigner(writes, cached.folder, "writes, v2")
    other.design(PICTURE, WISH)
    assert len(writes.asked) == 2


def test_options_that_leave_the_answer_as_it_is_do_not_count(cached, writes):
    cached.design(PICTURE, WISH, should_stop=lambda: False, generator=torch.Generator().manual_seed(1))
    cached.design(PICTURE, WISH, temperature=0.0, on_token=lambda _: None, should_stop=None)
    assert len(writes.asked) == 1


def test_drawn_words_are_kept_by_their_seed_and_never_without_one(cached, writes):
    def design(seed):
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        return cached.design(PICTURE, WISH, temperature=0.7, generator=generator)

    for seed in (1, 1, 2, None, None):
        design(seed)
    assert len(writes.asked) == 4 and len(entries(cached)) == 2


def test_the_words_of_a_kept_plan_come_at_once(cached):
    cached.design(PICTURE, WISH)
    words = []
    cached.design(PICTURE, WISH, on_token=words.append)
    assert words == [[FORM]]


def test_a_plan_from_disk_is_told_in_the_log_with_its_file_and_not_in_its_note(cached, caplog):
    caplog.set_level("INFO")
    cached.design(PICTURE, WISH)
    assert not caplog.messages
    (path,) = entries(cached)
    assert cached.design(PICTURE, WISH).note == ""
    assert caplog.messages == [f"the blueprint was kept and is not designed anew; to have another, delete {path}"]


# What is kept --------------------------------------------------------------------------------------------------------


def test_an_entry_is_small_and_says_what_the_plan_says_and_nothing_else(cached):
    plan = cached.design(PICTURE, WISH)
    (path,) = entries(cached)
    said = json.loads(path.read_text(encoding="utf-8"))
    assert said == {"version": 1, "raw": WISH, "text": plan.text, "designer": "writes", "sections": WHOLE, "note": ""}
    assert path.stat().st_size < 4000 and len(path.stem) == 64


@pytest.mark.parametrize("answer", ["", "I see lemons.", "I'm sorry, I can't.", "<think>hm"])
def test_an_answer_without_a_blueprint_is_asked_for_again(cached, writes, answer):
    writes.answer = answer
    note = cached.design(PICTURE, WISH).note
    assert note and not entries(cached)
    writes.answer = FORM
    assert cached.design(PICTURE, WISH).text == FORM and len(writes.asked) == 2 and len(entries(cached)) == 1


def test_a_note_is_kept_with_its_plan(cached, writes):
    writes.answer = "5. Edited Image Imagination: an empty table"
    first, second = cached.design(PICTURE, WISH), cached.design(PICTURE, WISH)
    assert "lacks 1. Edit Instruction" in second.note == first.note and len(writes.asked) == 1


def test_words_that_no_file_takes_are_kept_all_the_same(cached, writes):
    plans = [cached.design(PICTURE, f"{WISH} {SLY}") for _ in range(2)]
    assert same(*plans) and len(writes.asked) == 1


def test_plans_of_another_form_pass_through(tmp_path):
    """MIND-Edit's plans hold regions and states that an entry does not know."""

    class Generates:
        def generate(self, images, instructions, **_):
            from types import SimpleNamespace

            return [SimpleNamespace(text="optimized instruction: an empty table\nregion: background", states=None)]

    cached = CachedDesigner(SelfMLLM(Generates()), tmp_path, "self")
    plans = [cached.design(PICTURE, WISH) for _ in range(2)]
    assert all(plan.regions for plan in plans) and not entries(cached)


def test_states_are_not_kept_and_encode_finds_them_again(tmp_path):
    torch.manual_seed(0)
    tokenizer = tiny_qwen_tokenizer()
    mllm = Qwen25VL(tiny_qwen(tokenizer).eval().requires_grad_(False), tokenizer, side=126)
    mllm.write = lambda *_, **__: Answer(FORM)  # tiny random weights never write a blueprint
    designing = BlueprintDesigner(mllm)
    cached = CachedDesigner(designing, tmp_path, designing.identity)
    first, second = cached.design(PICTURE, WISH), cached.design(PICTURE, WISH)
    assert first.states is not None and second.states is None and same(first, second)
    torch.testing.assert_close(mllm.encode(PICTURE, second).hidden, first.states.hidden, atol=1e-4, rtol=1e-4)


# Trouble -------------------------------------------------------------------------------------------------------------


def spoilt(text: str) -> list[bytes]:
    said = json.loads(text)
    changed = [{**said, **change} for change in (
        {"version": 2}, {"raw": "another"}, {"text": ""}, {"text": 3}, {"note": None}, {"sections": {}},
        {"sections": ["a"]}, {"sections": {"Edit Instruction": 1}}, {"sections": {"Title": "a"}}, {"designer": []},
    )]
    lacking = [{name: value for name, value in said.items() if name != gone} for gone in said]
    whole = [b"", b"{", b"null", b"[]", b"3", b"\xff\x00", b"[" * 100_000, text[:-20].encode()]
    return [*whole, *(json.dumps(each).encode() for each in (*changed, *lacking))]


def test_a_damaged_or_foreign_entry_is_written_anew(cached, writes):
    cached.design(PICTURE, WISH)
    (path,) = entries(cached)
    good = path.read_text(encoding="utf-8")
    for number, data in enumerate(spoilt(good), 2):
        path.write_bytes(data)
        assert cached.design(PICTURE, WISH).text == FORM and len(writes.asked) == number, data[:400]
        assert path.read_text(encoding="utf-8") == good and entries(cached) == [path], data[:400]


def test_an_interrupted_or_failing_designer_leaves_nothing(cached, writes):
    for error in (Interrupted("stop"), OSError("no answer")):
        def fail(*_, error=error, **__):
            raise error

        writes.design = fail
        with pytest.raises(type(error)):
            cached.design(PICTURE, WISH)
    assert not entries(cached)


def test_a_disk_that_takes_nothing_is_said_and_the_plan_is_there(writes, tmp_path):
    (tmp_path / "file").write_text("in the way")
    cached = CachedDesigner(writes, tmp_path / "file" / "kept", "writes")
    plan = cached.design(PICTURE, WISH)
    assert plan.text == FORM and "could not be kept in" in plan.note


def test_a_write_that_is_cut_off_leaves_no_entry(cached, monkeypatch):
    def full(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    assert "No space left" in cached.design(PICTURE, WISH).note and not entries(cached)


def test_the_oldest_entries_go_and_other_files_stay(writes, tmp_path):
    cached = CachedDesigner(writes, tmp_path, "writes", max_entries=3)
    for name in ("notes.json", "a" * 63 + ".json", "a" * 64 + ".txt"):
        (tmp_path / name).write_text("mine")
    for number in range(5):
        cached.design(PICTURE, f"{WISH} {number}")
        for path in tmp_path.glob("*.json"):  # a minute passes
            os.utime(path, (path.stat().st_atime, path.stat().st_mtime - 60))
    assert len(list(tmp_path.iterdir())) == 3 + 3
    asked = len(writes.asked)
    for number in (2, 3, 4):
        cached.design(PICTURE, f"{WISH} {number}")
    assert len(writes.asked) == asked
    cached.design(PICTURE, f"{WISH} 0")
    assert len(writes.asked) == asked + 1


def test_many_at_once_write_whole_entries(cached):
    plans, threads = [], []
    for number in range(24):
        wish = f"{WISH} {number % 3}"
        threads.append(threading.Thread(target=lambda wish=wish: plans.append(cached.design(PICTURE, wish))))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(plans) == 24 and {plan.note for plan in plans} == {""} and len(entries(cached)) == 3
    assert all(json.loads(path.read_text(encoding="utf-8"))["text"] == FORM for path in entries(cached))


@pytest.mark.parametrize(("wish", "word"), [("", "say what to change"), ("x" * 3000, "shorten it")])
def test_an_empty_or_overlong_wish_is_refused_before_anything_is_asked(cached, writes, wish, word):
    with pytest.raises(ValueError, match=word):
        cached.design(PICTURE, wish)
    assert not writes.asked
