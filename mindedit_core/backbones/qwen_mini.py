"""Sizes and vocabulary of dim-mini's MLLM: a Qwen2.5-VL of the real class, small enough to train on two CPU cores.

A picture of 126 pixels is cut into 6 x 6 patches of 21, of which 2 x 2 become one token: 9 tokens. The dialogue is
Qwen's own, special tokens and system sentence included; the words are those of the mini (`mini_tokenizer`).
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast, Qwen2_5_VLConfig

from .mini_tokenizer import build_core

PAD, START, END, VISION_START, VISION_END, IMAGE, VIDEO = SPECIALS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
SYSTEM = "You are a helpful assistant."
CHAT = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\n" + SYSTEM + "<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PATCH, MERGE = 21, 2
SIDE = 126  # pixels: 3 x 3 tokens


def build_qwen_tokenizer(texts: Iterable[str], vocab_size: int = 1024) -> PreTrainedTokenizerFast:
    """A tokenizer whose words are those of `texts` and whose special tokens are Qwen's."""
    return wrap_qwen(build_core(texts, vocab_size, SPECIALS))


def load_qwen_tokenizer(path: str | Path) -> PreTrainedTokenizerFast:
    """The tokenizer stored in one `tokenizer.json`."""
    return wrap_qwen(Tokenizer.from_file(str(path)))


def wrap_qwen(core: Tokenizer) -> PreTrainedTokenizerFast:
    """A `tokenizers.Tokenizer` with its special tokens named and Qwen's dialogue."""
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token=END,
        pad_token=PAD,
        unk_token=PAD,  # never produced: every byte has a token
        additional_special_tokens=[START, VISION_START, VISION_END, IMAGE, VIDEO],
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
        add_prefix_space=True,
        chat_template=CHAT,
    )


def qwen_mini_config(
    tokenizer: PreTrainedTokenizerBase,
    *,
    hidden_size: int = 192,
    intermediate_size: int = 512,
    heads: int = 6,
    text_layers: int = 6,
    vision_layers: int = 4,
    full_attention: tuple[int, ...] | None = None,
    patch: int = PATCH,
    window: int = SIDE,
) -> Qwen2_5_VLConfig:
    """full_attention: vision layers that look beyond their window of `window` pixels; None: all of them."""
    token = tokenizer.convert_tokens_to_ids
    quarter = hidden_size // heads // 8  # of the rotary frequencies: time, and what is left for height and width
    side = (hidden_size // heads // 2 - quarter) // 2
    vision = {
        "depth": vision_layers,
        "hidden_size": hidden_size,
        "intermediate_size": intermediate_size,
        "num_heads": heads,
        "patch_size": patch,
        "spatial_merge_size": MERGE,
        "window_size": window,
        "out_hidden_size": hidden_size,
        "fullatt_block_indexes": list(range(vision_layers) if full_attention is None else full_attention),
    }
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": hidden_size,
        "intermediate_size": intermediate_size,
        "num_hidden_layers": text_layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "rope_scaling": {"type": "mrope", "mrope_section": [hidden_size // heads // 2 - 2 * side, side, side]},
        "tie_word_embeddings": True,
        "bos_token_id": token(PAD),
        "eos_token_id": token(END),
        "pad_token_id": token(PAD),
    }
    return Qwen2_5_VLConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=token(IMAGE),
        video_token_id=token(VIDEO),
        vision_start_token_id=token(VISION_START),
        vision_end_token_id=token(VISION_END),
        tie_word_embeddings=True,
    )
