"""The optimiser prompt and the parser of its answer."""

import pytest

from mindedit_core.contracts import Region
from mindedit_core.prompts import (
    AFTER,
    CLIP_TOKENS,
    MAX_INSTRUCTION,
    TEMPLATES,
    estimate_clip_tokens,
    format_answer,
    optimizer_prompt,
    parse_optimized,
    training_prompt,
    trim_to_clip,
)

BOX = Region("box", (120.0, 40.0, 300.0, 260.0))
WELL_FORMED = {
    "as asked": "optimized instruction: red cat, green grass",
    "as in the paper's figure, with a space": "optimized instruction : red cat, green grass",
    "in capitals": "OPTIMIZED INSTRUCTION: red cat, green grass",
    "in British spelling": "Optimised instruction: red cat, green grass",
    "in Markdown": "**Optimized Instruction:** red cat, green grass",
    "wholly bold": "**optimized instruction: red cat, green grass**",
    "in quotes": 'optimized instruction: "red cat, green grass"',
    "in a code fence": "```text\noptimized instruction: red cat, green grass\n```",
    "after a preamble": "Sure, here it is.\n\noptimized instruction: red cat, green grass\n\nHope that helps!",
    "on the next line": "Optimized instruction:\n\nred cat, green grass",
    "as a list item": "- optimized_instruction: red cat,  green   grass",
    "after an echo of the form": "optimized instruction: <description>\noptimized instruction: red cat, green grass",
    "with a full-width colon": "optimized instruction：red cat, green grass",
}
MALFORMED = [
    "",
    "I see a cat.",
    "optimized instruction:",
    "optimized instruction: <the description>",
    "***",
    "```\n```",
]
MALFORMED += ["optimized instruction:\nregion: 1 2 3 4", "instruction: red cat"]


@pytest.mark.parametrize("how", WELL_FORMED)
def test_a_well_formed_answer_is_read(how):
    parsed = parse_optimized(WELL_FORMED[how], "make it red")
    assert (parsed.text, parsed.regions, parsed.note) == ("red cat, green grass", (), "")


@pytest.mark.parametrize("answer", MALFORMED)
def test_a_malformed_answer_falls_back_to_the_raw_instruction_and_says_so(answer):
    parsed = parse_optimized(answer, "make it red")
    assert parsed.text == "make it red" and parsed.regions == ()
    assert "optimized instruction" in parsed.note and "as it was written" in parsed.note


def test_regions_are_read_and_unreadable_ones_are_said():
    answer = "optimized instruction: red cat\nregion: 120 40 300 260\n- Region: background.\nregion: top left"
    parsed = parse_optimized(answer, "raw")
    assert parsed.regions == (BOX, Region("background")) and "top left" in parsed.note


def test_steps_and_kept_boxes_are_read_in_any_dress():
    answer = "Step 1: red cat\n- **step:** night sky.\noptimized instruction: red cat, night\nregion: background\n"
    parsed = parse_optimized(answer + "keep: 120 40 300 260\nKEEP: background", "raw")
    assert parsed.steps == ("red cat", "night sky.") and parsed.text == "red cat, night"
    assert parsed.regions == (Region("background"), Region("keep", BOX.box)) and "background" in parsed.note


def test_boxes_are_ordered_and_clipped_to_the_picture():
    parsed = parse_optimized("optimized instruction: x\nregion: [300, 1260, 120, -5]\nregion: 5 5 5 9", "raw")
    assert parsed.regions == (Region("box", (120.0, 0.0, 300.0, 1000.0)),) and "5 5 5 9" in parsed.note


def test_what_is_written_is_read_back():
    answer = format_answer("small red cat at bottom left, grass background", [BOX, Region("background")])
    parsed = parse_optimized(answer, "raw")
    assert parsed.text == "small red cat at bottom left, grass background"
    assert parsed.regions == (BOX, Region("background")) and parsed.note == ""
    whole = format_answer("night", [Region("background"), Region("keep", BOX.box)], ["red cat", "night"])
    parsed = parse_optimized(whole, "raw")
    assert (parsed.text, parsed.steps) == ("night", ("red cat", "night"))
    assert parsed.regions == (Region("background"), Region("keep", BOX.box)) and parsed.note == ""


def test_a_long_description_is_cut_at_a_comma_to_what_clip_reads():
    phrases = [f"red cat number {number} on the green grass" for number in range(30)]
    parsed = parse_optimized(f"optimized instruction: {', '.join(phrases)}", "raw", lambda text: len(text.split()) + 2)
    kept = parsed.text.split(", ")
    assert kept == phrases[: len(kept)] and len(parsed.text.split()) + 2 <= CLIP_TOKENS
    assert len(", ".join(phrases[: len(kept) + 1]).split()) + 2 > CLIP_TOKENS  # one phrase more would not have fitted
    assert "77 tokens" in parsed.note and phrases[len(kept)][:20] in parsed.note


def test_one_endless_phrase_is_cut_between_words():
    text, note = trim_to_clip("word " * 200, lambda text: len(text.split()) + 2)
    assert text == " ".join(["word"] * 75) and note


def test_the_estimate_does_not_fall_short_of_real_tokenizers_for_plain_words():
    # CLIP's BPE: every one of these words is a single token, the comma too, each digit one
    assert estimate_clip_tokens("a small red cat, 12 dogs") == 2 + 8


def test_the_full_template_holds_the_paper_s_contract():
    prompt = optimizer_prompt("let it squat")
    assert prompt.endswith("The wish for this picture: let it squat")
    assert "optimized instruction: " in prompt and "region: background" in prompt and "Stable Diffusion" in prompt
    assert set(TEMPLATES) == {"mind_edit", "mini"}


def test_training_data_are_asked_for_with_the_optimisers_own_prompt_and_what_is_known_after_it():
    plain = optimizer_prompt("remove it")
    assert training_prompt("remove it") == plain == training_prompt("remove it", source_caption=None)
    asked = training_prompt("remove it", after=True, target_caption="a lawn", source_caption="a cat on a lawn")
    assert asked.startswith(f"{plain}\n\n{AFTER}\n\n") and asked.index("a cat on") < asked.index("result: a lawn")
    with pytest.raises(ValueError, match="unknown caption caption; have source_caption, target_caption"):
        training_prompt("remove it", caption="a lawn")


def test_only_an_answer_with_a_description_is_one():
    assert parse_optimized("optimized instruction: red cup", "make it red").found
    assert not parse_optimized("a red cup", "make it red").found


def test_braces_in_an_instruction_are_only_text():
    assert optimizer_prompt("make {it} {instruction}", "mini") == "rewrite: make {it} {instruction}"


@pytest.mark.parametrize(("instruction", "remedy"), [(" \n", "say what to change"), ("x" * 10_000, "shorten it")])
def test_an_empty_or_overlong_instruction_is_refused_with_a_remedy(instruction, remedy):
    with pytest.raises(ValueError, match=remedy):
        optimizer_prompt(instruction)
    assert optimizer_prompt("x" * MAX_INSTRUCTION, "mini")
