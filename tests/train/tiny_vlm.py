"""A LLaVA that says one sentence whatever it is shown: real classes, weights that let one token follow another.

Its attention and MLPs add nothing, its embedding is one-hot, and the head maps token i to token i + 1 of the sentence.
"""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

try:
    from transformers import CLIPImageProcessorPil as ImageProcessor  # transformers 5 without torchvision
except ImportError:
    from transformers import CLIPImageProcessor as ImageProcessor

SPECIALS = ["<unk>", "<pad>", "<s>", "</s>", "<image>", "<user>", "<assistant>"]
CHAT = (
    "{% for message in messages %}<{{ message.role }}>{% for part in message.content %}"
    "{% if part.type == 'image' %} <image> {% else %} {{ part.text }}{% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %} <assistant>{% endif %}"
)
SIDE, PATCH, WIDTH = 28, 14, 32


def save_parrot(folder: Path, words: list[str]) -> Path:
    """A folder that transformers loads; the model answers `words`, all different, joined by spaces."""
    tokenizer = _tokenizer(SPECIALS + words)
    model = LlavaForConditionalGeneration(_config(tokenizer))
    _teach(model, [SPECIALS.index("<assistant>"), *tokenizer.convert_tokens_to_ids(words), SPECIALS.index("</s>")])
    images = ImageProcessor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    processor = LlavaProcessor(image_processor=images, tokenizer=tokenizer, patch_size=PATCH, image_token="<image>",
                               vision_feature_select_strategy="default", num_additional_image_tokens=1,
                               chat_template=CHAT)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def _tokenizer(words: list[str]) -> PreTrainedTokenizerFast:
    raw = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    raw.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="<unk>", pad_token="<pad>", bos_token="<s>",
                                   eos_token="</s>", additional_special_tokens=SPECIALS[4:], chat_template=CHAT,
                                   model_input_names=["input_ids", "attention_mask"])


def _config(tokenizer: PreTrainedTokenizerFast) -> LlavaConfig:
    vision = CLIPVisionConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
                              image_size=SIDE, patch_size=PATCH, projection_dim=16)
    text = LlamaConfig(vocab_size=len(tokenizer), hidden_size=WIDTH, intermediate_size=WIDTH, num_hidden_layers=1,
                       num_attention_heads=2, num_key_value_heads=2, pad_token_id=1, bos_token_id=2, eos_token_id=3,
                       tie_word_embeddings=False, max_position_embeddings=4096)
    return LlavaConfig(vision_config=vision, text_config=text, image_token_index=4, vision_feature_layer=-1)


@torch.no_grad()
def _teach(model: LlavaForConditionalGeneration, sentence: list[int]) -> None:
    language = model.model.language_model
    for layer in language.layers:
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
    language.embed_tokens.weight.copy_(torch.eye(*language.embed_tokens.weight.shape))
    model.lm_head.weight.zero_()
    model.lm_head.weight[sentence[1:], sentence[:-1]] = 1.0
    model.generation_config.update(eos_token_id=3, pad_token_id=1, max_new_tokens=64, do_sample=False)
