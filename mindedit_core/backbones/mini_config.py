"""Sizes of the mini's MLLM: a LLaVA-OneVision of the real class, small enough to train on two CPU cores."""

from transformers import LlavaOnevisionConfig, PreTrainedTokenizerBase, Qwen2Config, SiglipVisionConfig

from .mini_tokenizer import BOS, END, IMAGE, PAD

TILE = 126  # pixels: 6 x 6 patches of 21
PATCH = 21


def mini_config(
    tokenizer: PreTrainedTokenizerBase,
    *,
    hidden_size: int = 192,
    intermediate_size: int = 512,
    heads: int = 6,
    text_layers: int = 6,
    vision_layers: int = 4,
    tile: int = TILE,
    patch: int = PATCH,
) -> LlavaOnevisionConfig:
    """One square tile beside the base view: 36 + 6 * 7 = 78 tokens (each row of the tile ends in a newline).

    The vocabulary and the special ids come from `tokenizer` (mini_tokenizer.build_tokenizer).
    """
    ids = {name: tokenizer.convert_tokens_to_ids(token) for name, token in _SPECIAL.items()}
    image_token_id = tokenizer.convert_tokens_to_ids(IMAGE)
    size = {"hidden_size": hidden_size, "intermediate_size": intermediate_size, "num_attention_heads": heads}
    vision = SiglipVisionConfig(
        **size, num_hidden_layers=vision_layers, image_size=tile, patch_size=patch, vision_use_head=False
    )
    text = Qwen2Config(
        **size,
        **ids,
        num_hidden_layers=text_layers,
        num_key_value_heads=heads,
        vocab_size=len(tokenizer),
        max_position_embeddings=2048,
        tie_word_embeddings=True,
    )
    return LlavaOnevisionConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=image_token_id,
        image_token_index=image_token_id,  # the name of transformers before 4.52 and of published configs
        video_token_id=tokenizer.convert_tokens_to_ids(BOS),  # no videos; the MLLM's prompts never hold <bos>
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        vision_aspect_ratio="anyres_max_9",
        image_grid_pinpoints=[[tile, tile]],
        tie_word_embeddings=True,
    )


_SPECIAL = {"pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": END}
