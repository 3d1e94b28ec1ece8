"""The blueprint: a designer's answer in any dress gives the published form back, and garbage never raises."""

from __future__ import annotations

import doctest
import random
import time

import pytest

from mindedit_core import blueprint
from mindedit_core.blueprint import IMAGINATION, INSTRUCTION, PROMPTS, SECTIONS, blueprint_prompt, format_blueprint
from mindedit_core.blueprint_parser import MAX_BLUEPRINT, parse_blueprint, read_sections

WISH = "remove the lemons"
TEXTS = (
    "Remove the three lemons that lie on the table.",
    "A vase stands left of the middle. Fruit: right, in front of it.",
    "- Vase: blue glass, 3*4 facets\n  - rim: gold\n- Lemons: yellow, with snake_case names",
    "The lemons, lower right (about a tenth of the frame).",
    "The table is empty where they lay.\n\nIts grain shows; the light is as before.",
)
WHOLE = dict(zip(SECTIONS, TEXTS, strict=True))
FORM = format_blueprint(WHOLE)


def dressed(line, texts=TEXTS, names=SECTIONS) -> str:
    """All sections, their headings as `line` writes them: line(number, name) -> all that stands before the text."""
    laid_out = [format_blueprint({name: text}).partition(":")[2] for name, text in zip(SECTIONS, texts, strict=True)]
    headings = [line(number, name) for number, name in enumerate(names, 1)]
    return "\n\n".join(heading + body for heading, body in zip(headings, laid_out, strict=True))


def test_docstring_examples_hold():
    results = doctest.testmod(blueprint)
    assert results.attempted and not results.failed


# The form ------------------------------------------------------------------------------------------------------------


def test_the_published_form_is_numbered_headings_with_an_empty_line_between():
    assert FORM.startswith("1. Edit Instruction: Remove the three lemons that lie on the table.\n\n2. Global Layout ")
    assert "\n\n3. Local Object Perception:\n   - Vase: blue glass, 3*4 facets\n     - rim: gold\n   - Lem" in FORM


def test_a_blueprint_in_its_form_comes_back_letter_by_letter():
    parsed = parse_blueprint(FORM, WISH)
    assert (parsed.text, parsed.sections, parsed.note, parsed.found) == (FORM, WHOLE, "", True)
    assert list(parsed.sections) == list(SECTIONS)


def test_what_the_world_and_the_mini_write_comes_back():
    from mindedit_core.scenes import sample
    from mindedit_core.scenes.blueprint import true_blueprint

    for number in range(40):
        text = true_blueprint(sample(number))
        assert parse_blueprint(text, sample(number).instruction).text == text


def test_the_edit_area_names_what_is_touched_and_where():
    from mindedit_core.scenes import Scene, Thing
    from mindedit_core.scenes.blueprint import edit_area

    before = Scene("snow", (Thing(1, "cat", "red", "small"),))
    moved = Scene("snow", (Thing(0, "cat", "red", "small"),))
    assert edit_area(before, moved) == "cat at top middle, nothing at top left"
    assert edit_area(before, Scene("beach", before.things)) == "snow background"


# Dresses -------------------------------------------------------------------------------------------------------------

HEADINGS = {
    "1)": lambda number, name: f"{number}) {name}:",
    "(1)": lambda number, name: f"({number}) {name}:",
    "[1]": lambda number, name: f"[{number}] {name}:",
    "1 -": lambda number, name: f"{number} - {name}:",
    "no number": lambda number, name: f"{name}:",
    "Step 1:": lambda number, name: f"Step {number}: {name}:",
    "STEP 1 -": lambda number, name: f"STEP {number} - {name}:",
    "Section 1.": lambda number, name: f"Section {number}. {name}:",
    "### 1.": lambda number, name: f"### {number}. {name}:",
    "# no number": lambda number, name: f"# {name}\n",
    "## closed ##": lambda number, name: f"## {number}. {name} ##\n",
    "### Step 1:": lambda number, name: f"### **Step {number}: {name}**\n",
    "emoji": lambda number, name: f"{number}\ufe0f\u20e3 {name}:",
    "circled": lambda number, name: f"{'①②③④⑤'[number - 1]} {name}:",
    "roman": lambda number, name: f"{('I', 'II', 'III', 'IV', 'V')[number - 1]}. {name}:",
    "bold": lambda number, name: f"**{number}. {name}:**",
    "bold name": lambda number, name: f"{number}. **{name}**:",
    "bold, colon inside": lambda number, name: f"{number}. **{name}:**",
    "bold, no colon": lambda number, name: f"**{number}. {name}**",
    "italic": lambda number, name: f"*{number}. {name}:*",
    "underlined": lambda number, name: f"__{number}. {name}:__",
    "code": lambda number, name: f"{number}. `{name}`:",
    "bullet": lambda number, name: f"- {number}. {name}:",
    "bold bullet": lambda number, name: f"* **{name}**:",
    "capitals": lambda number, name: f"{number}. {name.upper()}:",
    "small letters": lambda number, name: f"{number}. {name.lower()}:",
    "British": lambda number, name: f"{number}. {name.replace('iza', 'isa')}:",
    "plural": lambda number, name: f"{number}. {name}s:",
    "hyphens": lambda number, name: f"{number}. {name.replace(' ', '-')}:",
    "snake": lambda number, name: f"{number}. {name.replace(' ', '_').lower()}:",
    "dash": lambda number, name: f"{number}. {name} –",
    "blank before the colon": lambda number, name: f"{number}. {name} :",
    "full-width colon": lambda number, name: f"{number}. {name}：",
    "no colon": lambda number, name: f"{number}. {name}",
    "with an aside": lambda number, name: f"{number}. {name} (as asked):",
    "wrong numbers": lambda number, name: f"{number - 1}. {name}:",
    "below": lambda number, name: f"{number}. {name}:\n" if number != 3 else f"{number}. {name}:",
    "a word more": lambda number, name: f"{number}. {name} Details:",
}


@pytest.mark.parametrize("dress", HEADINGS)
def test_headings_are_known_in_any_dress(dress):
    parsed = parse_blueprint(dressed(HEADINGS[dress]), WISH)
    assert parsed.text == FORM and not parsed.note


SHORT = ("Edit Instruction", "Global Layout", "Local Objects", "Edit Area", "Edited Image")
OTHER = ("Editing Instructions", "Layout Perception", "Object Perception", "Area Localisation", "Image Imagination")
FREE = ("Instruction", "Global Layout Description", "Local Object Analysis", "Edited Area Location", "Imagination")


@pytest.mark.parametrize("names", [SHORT, OTHER, FREE])
def test_a_heading_may_lack_a_word_or_have_another(names):
    assert parse_blueprint(dressed(lambda number, name: f"{number}. {name}:", names=names), WISH).text == FORM


def test_headings_without_numbers_may_lack_a_word():
    assert parse_blueprint(dressed(lambda number, name: f"{name}:", names=SHORT), WISH).text == FORM


def test_all_on_one_line_is_parted():
    line = " ".join(f"{number}. {name}: {text}" for number, (name, text) in enumerate(WHOLE.items(), 1) if number != 3)
    assert parse_blueprint(line.replace("\n\n", " "), WISH).sections == {
        name: text.replace("\n\n", " ") for name, text in WHOLE.items() if name != "Local Object Perception"
    }


WRAPPINGS = {
    "thoughts": lambda text: f"<think>2. Global Layout Perception: a draft\n5. Edited</think>\n{text}",
    "thoughts without a beginning": lambda text: f"A draft: 5. Edited Image Imagination: no.\n</think>\n\n{text}",
    "thoughts cut off": lambda text: f"{text}\n<think>Wait, 1. Edit Instruction: another",
    "thinking": lambda text: f"<Thinking>\n1. Edit Instruction: draft\n</Thinking>{text}",
    "answer": lambda text: f"<think>x</think><answer>{text}</answer>",
    "answer without an end": lambda text: f"So here it is. <answer>\n{text}",
    "two answers": lambda text: f"<answer>1. Edit Instruction: no</answer> Better: <answer>{text}</answer>",
    "fence": lambda text: f"```\n{text}\n```",
    "markdown fence": lambda text: f"Here you go:\n```markdown\n{text}\n```\n",
    "preamble": lambda text: f"Sure! Here is the blueprint for your edit:\n\n{text}",
    "epilogue": lambda text: f"{text}\n\nLet me know if you would like anything else: I can change it.",
    "epilogue on the next line": lambda text: f"{text}\nI hope this helps!",
    "rules": lambda text: "\n\n---\n\n".join(text.split("\n\n")) + "\n\n***",
    "quote": lambda text: "\n".join(f"> {line}" for line in text.split("\n")),
    "indented": lambda text: "\n".join(f"    {line}" for line in text.split("\n")),
    "Windows": lambda text: text.replace("\n", "\r\n"),
    "special tokens": lambda text: f"<|begin_of_box|>{text}<|end_of_box|><|im_end|>",
    "echoed prompt": lambda text: f"{blueprint_prompt(WISH)}\n\n{text}",
    "a draft first": lambda text: f"{format_blueprint({name: 'A draft.' for name in SECTIONS})}\n\nFinal:\n\n{text}",
    "begun again": lambda text: f"{text}\n\n1. Edit Instruction: Remove the th",
    "spread": lambda text: text.replace("\n\n", "\n\n\n\n"),
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_what_stands_around_a_blueprint_falls_away(wrapping):
    assert parse_blueprint(WRAPPINGS[wrapping](FORM), WISH).text == FORM


def test_sections_are_put_in_order():
    numbered = [format_blueprint({name: text}) for name, text in WHOLE.items()]
    random.Random(3).shuffle(numbered)
    parsed = parse_blueprint("\n\n".join(numbered), WISH)
    assert parsed.sections == WHOLE and list(parsed.sections) == list(SECTIONS)


def test_markup_within_a_section_is_taken_off_and_lists_are_kept():
    answer = "3. Local Object Perception:\n  * **Vase**: *blue* __glass__\n    * _rim_: gold\n  #### Lemons\n  1. first"
    assert read_sections(answer)["Local Object Perception"] == "* Vase: blue glass\n  * rim: gold\nLemons\n1. first"


@pytest.mark.parametrize("entry", [
    "- Edited image: soft", "   - **Edit area**: soft", "The edited image shows a table: soft", "2. Vase: blue",
    "* Local objects: two", "The edited image shows: a table", "Edited image", "Edited image – soft", "4. Area: soft",
    "   1. Instruction: none", "1. The: soft", "3. Object: soft",
])
def test_an_entry_of_a_list_is_no_heading(entry):
    answer = FORM.replace("Lemons: yellow", f"Lemons:\n{entry}\n   - yellow")
    assert list(parse_blueprint(answer, WISH).sections.values())[3:] == list(TEXTS[3:])
    assert entry.replace("*", "").strip(" -") in parse_blueprint(answer, WISH).sections["Local Object Perception"]


def test_an_entry_with_a_sections_own_number_is_a_heading():
    answer = "- 1. Edit Instruction: soften it\n- 2. Global Layout: a vase\n  - 4. Edit Area: the vase"
    assert list(read_sections(answer).values()) == ["soften it", "a vase", "the vase"]


def test_a_list_may_begin_behind_its_heading():
    answer = "3. Local Object Perception: - Vase: blue\n\t- Lemons: yellow\n\t\t- peel: rough\x00"
    parsed = parse_blueprint(answer, WISH)
    assert parsed.sections["Local Object Perception"] == "- Vase: blue\n- Lemons: yellow\n    - peel: rough"
    assert parse_blueprint(parsed.text, WISH).text == parsed.text


def test_thoughts_whose_beginning_the_template_wrote_fall_away():
    assert parse_blueprint("A vase? Yes.</think>A table without lemons.", WISH).text == "A table without lemons."


def test_words_of_a_heading_are_text_once_the_heading_was_there():
    answer = f"{FORM}\nEdit area: also the plate.\nEdited image: calm."
    assert parse_blueprint(answer, WISH).sections == {
        **WHOLE, IMAGINATION: f"{TEXTS[-1]}\nEdit area: also the plate.\nEdited image: calm.",
    }


# What is missing -----------------------------------------------------------------------------------------------------


def test_a_missing_instruction_is_the_users_own_and_a_paraphrase_stays():
    rest = {name: text for name, text in WHOLE.items() if name != INSTRUCTION}
    parsed = parse_blueprint(format_blueprint(rest), WISH)
    assert parsed.sections == {**WHOLE, INSTRUCTION: WISH} and parsed.text == format_blueprint(parsed.sections)
    assert parsed.note == "the designer's answer lacks 1. Edit Instruction; the wish stands there as it was written"
    assert parse_blueprint(FORM, "do it").sections[INSTRUCTION] == TEXTS[0]


def test_missing_sections_are_said_and_the_others_used():
    some = {name: WHOLE[name] for name in (INSTRUCTION, IMAGINATION)}
    parsed = parse_blueprint(format_blueprint(some), WISH)
    assert parsed.sections == some and parsed.found and parsed.text == format_blueprint(some)
    for name in SECTIONS[1:4]:
        assert name in parsed.note
    assert INSTRUCTION not in parsed.note and IMAGINATION not in parsed.note


@pytest.mark.parametrize("nothing", ["", "  \n ", "[describe it here]", "<your text>", "...", "**"])
def test_a_section_that_says_nothing_is_missing(nothing):
    answer = FORM.replace(TEXTS[3], nothing)
    parsed = parse_blueprint(answer, WISH)
    assert "Edit Area Localization" not in parsed.sections and "4. Edit Area Localization" in parsed.note
    assert parsed.sections[IMAGINATION] == TEXTS[4]


def test_an_answer_in_another_form_is_used_as_it_is():
    parsed = parse_blueprint("<think>hm</think>\nA table without lemons.", WISH)
    assert (parsed.text, parsed.sections, parsed.found) == ("A table without lemons.", {}, False)
    assert "not in the form of a blueprint and is used as it is" in parsed.note and "A table" in parsed.note


@pytest.mark.parametrize("answer", ["", "  \n\t", "<think>I see lemons", "<think>a</think>", "```\n```", "...", "**"])
def test_an_answer_without_words_leaves_the_wish(answer):
    parsed = parse_blueprint(answer, WISH)
    assert (parsed.text, parsed.sections, parsed.found) == (WISH, {}, False)
    assert "the wish is used as it was written" in parsed.note


def test_a_refusal_is_not_painted():
    parsed = parse_blueprint("I'm sorry, but I can't help with editing this picture.", WISH)
    assert parsed.text == WISH and not parsed.found and "declines" in parsed.note and "can't help" in parsed.note


# What is too long ----------------------------------------------------------------------------------------------------


def test_a_section_without_end_is_cut_at_a_sentence_and_the_others_stay_whole():
    endless = "The wall is white. " * 2000
    parsed = parse_blueprint(format_blueprint({**WHOLE, SECTIONS[1]: endless.strip()}), WISH)
    assert len(parsed.text) <= MAX_BLUEPRINT and len(parsed.text) > MAX_BLUEPRINT // 2
    assert {name: text for name, text in parsed.sections.items() if name != SECTIONS[1]} == {
        name: text for name, text in WHOLE.items() if name != SECTIONS[1]
    }
    assert parsed.sections[SECTIONS[1]].endswith("The wall is white.") and "was cut to 8000" in parsed.note
    assert parse_blueprint(parsed.text, WISH).text == parsed.text


@pytest.mark.parametrize("endless", ["A wall. " * 3000, "wall " * 5000, "w" * 20_000, "A wall. " + "white " * 4000])
def test_an_overlong_answer_in_another_form_is_cut_too(endless):
    parsed = parse_blueprint(endless, WISH)
    assert MAX_BLUEPRINT // 2 < len(parsed.text) <= MAX_BLUEPRINT and endless.startswith(parsed.text)
    assert "is used as it is" in parsed.note and "was cut to 8000" in parsed.note


# Garbage -------------------------------------------------------------------------------------------------------------

BITS = [
    *SECTIONS, *SHORT, "1.", "2)", "(3)", "Step 4:", "###", "**", "__", "*", "_", "- ", ":", "：", "–", "\n", "\n\n",
    "    ", "<think>", "</think>", "<answer>", "</answer>", "```", "[x]", "<y>", "|", "\x00", "\ud800", "é", "🍋", "图",
    "Let me know", "The vase is blue.", "> ", "---", "{", "}", "\\", "\t", "\u2028", "(", ")", "edit", "image",
]


def test_random_garbage_never_raises_and_what_comes_of_it_is_stable():
    bits = random.Random(0)
    for _ in range(3000):
        answer = "".join(bits.choice(BITS) + bits.choice(["", " ", "\n"]) for _ in range(bits.randint(0, 30)))
        parsed = parse_blueprint(answer, WISH)
        assert parsed.text.strip() and len(parsed.text) <= MAX_BLUEPRINT
        assert parsed.found == bool(parsed.sections) and (parsed.found or parsed.note)
        parsed.text.encode("utf-8")
        if parsed.found:
            assert list(parsed.sections) == [name for name in SECTIONS if name in parsed.sections]
            assert parsed.text == format_blueprint(parsed.sections)


def test_random_characters_never_raise():
    bits = random.Random(1)
    for _ in range(300):
        parse_blueprint("".join(chr(bits.randrange(0x110000)) for _ in range(bits.randint(0, 200))), WISH)


def test_any_blueprint_survives_any_dress_in_any_wrapping():
    bits = random.Random(2)
    words = "vase lemon table red blue left right glass light of in the with a, b; c (d) 3.5 e-f".split()
    for _ in range(600):
        lines = [" ".join(bits.choices(words, k=bits.randint(2, 12))).capitalize() + "." for _ in range(12)]
        texts = [lines[0], f"{lines[1]}\n{lines[2]}", f"- {lines[3]}\n- {lines[4]}", lines[5]]
        texts.append(f"{lines[6]}\n\n{lines[7]}")
        form = format_blueprint(dict(zip(SECTIONS, texts, strict=True)))
        heading, wrapping = bits.choice(list(HEADINGS)), bits.choice(list(WRAPPINGS))
        answer = WRAPPINGS[wrapping](dressed(HEADINGS[heading], texts))
        assert parse_blueprint(answer, WISH).text == form, (heading, wrapping)


@pytest.mark.parametrize("bit", [
    "*", "_ ", "__a ", "**a", "# ", "1. ", "- ", "- x\n", "Edit ", "(", "a ", "<think>", "<answer>", "```", "[(", "> ",
    "Edited Image Imagination ", "1. Edit Instruction: ", "1 -", "\n", "3. Local Object Perception:\n- x\n", "*a* ",
])
def test_a_model_that_loops_is_read_in_time(bit):
    started = time.process_time()
    parse_blueprint(bit * (60_000 // len(bit)), WISH)
    assert time.process_time() - started < 5.0  # measured: below 0.3; quadratic would take minutes


# Prompts -------------------------------------------------------------------------------------------------------------


def test_the_prompt_names_the_five_headings_in_order_and_ends_with_the_wish():
    prompt = blueprint_prompt("  let it\n squat ")
    places = [prompt.index(f"\n{number}. {name}: ") for number, name in enumerate(SECTIONS, 1)]
    assert places == sorted(places) and prompt.endswith("The wish for this picture: let it squat")
    assert blueprint_prompt("let it squat", "mini") == "design: let it squat" and set(PROMPTS) == {"dim", "mini"}


def test_an_unknown_prompt_lists_the_known_ones():
    with pytest.raises(ValueError, match="unknown blueprint prompt 'gpt'; have dim, mini"):
        blueprint_prompt(WISH, "gpt")
