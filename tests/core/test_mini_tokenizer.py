"""The mini's tokenizer: words are tokens, nothing is unsayable, one file for the MLLM and for CLIP."""

import pytest

from mindedit_core.backbones import mini_tokenizer as mt
from mindedit_core.prompts import format_answer, optimizer_prompt

TEXTS = [
    "the small red cat, at bottom left",
    "cat's tree",
    optimizer_prompt("the cat", "mini"),
    format_answer("red cat"),
]


@pytest.fixture(scope="module")
def tokenizer():
    return mt.build_tokenizer(TEXTS, 512)


def ids(tokenizer, text):
    return tokenizer(text, add_special_tokens=False).input_ids


def test_a_word_is_one_token_wherever_it_stands(tokenizer):
    alone = ids(tokenizer, "cat")
    assert len(alone) == 1
    assert ids(tokenizer, "the cat")[1:] == alone == ids(tokenizer, "Cat") == ids(tokenizer, " cat")
    assert ids(tokenizer, "<|user|><image>cat<|assistant|>")[2:3] == alone
    assert len(ids(tokenizer, TEXTS[3])) == len(["optimized", "instruction", ":", "red", "cat"])


def test_wrapping_changes_no_token(tokenizer):
    core = tokenizer.backend_tokenizer
    for text in (*TEXTS, "<|user|><image>rewrite: the cat<|assistant|>red cat<|end|>", "wholly unknown, 12!"):
        assert ids(tokenizer, text) == core.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("text", ["small red cat", "zebra 🦓, naïve ünïcödé\nline", "a  b", "日本"])
def test_any_text_comes_back_in_lower_case(tokenizer, text):
    assert tokenizer.decode(ids(tokenizer, text)).strip() == text.lower()


def test_clip_s_view_has_both_ends_and_pads_to_77(tokenizer):
    row = tokenizer("red cat", padding="max_length", truncation=True).input_ids
    assert len(row) == 77 and row[0] == tokenizer.bos_token_id and row[3] == tokenizer.eos_token_id
    assert set(row[4:]) == {tokenizer.pad_token_id}
    assert tokenizer("red " * 200, truncation=True).input_ids[-1] == tokenizer.eos_token_id


def test_transformers_clip_pools_at_the_end_token_and_not_at_the_largest_id(tokenizer):
    assert tokenizer.eos_token_id != 2  # CLIPTextModel: `if eos_token_id == 2` takes the argmax of the ids


def test_special_tokens_have_the_first_ids_and_stay_whole(tokenizer):
    assert [tokenizer.convert_tokens_to_ids(token) for token in mt.SPECIALS] == list(range(len(mt.SPECIALS)))
    assert ids(tokenizer, "".join(mt.SPECIALS)) == list(range(len(mt.SPECIALS)))


def test_the_same_texts_give_the_same_tokenizer_in_any_order(tokenizer):
    assert mt.build_tokenizer(TEXTS[::-1], 512).get_vocab() == tokenizer.get_vocab()


def test_a_vocabulary_that_would_split_words_is_refused():
    with pytest.raises(ValueError, match=r"vocab_size 264 splits \d+ of \d+ words, first: .*; raise vocab_size"):
        mt.build_tokenizer(TEXTS, 264)


def test_one_file_holds_it_all(tokenizer, tmp_path):
    mt.save_tokenizer(tokenizer, tmp_path / "tokenizer.json")
    loaded = mt.load_tokenizer(tmp_path / "tokenizer.json")
    for text in (*TEXTS, "unknown"):
        assert loaded(text).input_ids == tokenizer(text).input_ids
    assert loaded.all_special_tokens == tokenizer.all_special_tokens and loaded.chat_template == tokenizer.chat_template


def test_the_chat_template_writes_short_turns(tokenizer):
    parts = [{"type": "image"}, {"type": "text", "text": "rewrite: the cat"}]
    turns = [
        {"role": "user", "content": parts},
        {"role": "assistant", "content": [{"type": "text", "text": "red cat"}]},
    ]
    assert tokenizer.apply_chat_template(turns, tokenize=False) == (
        "<|user|><image>rewrite: the cat<|assistant|>red cat<|end|>"
    )
