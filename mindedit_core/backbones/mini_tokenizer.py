"""The mini's tokenizer: byte-level BPE, one file `tokenizer.json`, shared by the mini's MLLM and its CLIP.

Any text can be encoded (all 256 bytes are in the vocabulary); the words of the world are one token each, with their
leading space. Text is lower-cased, as CLIP does. `tokenizer(text)` is CLIP's view, `<bos> text <eos>`; the MLLM always
asks for `add_special_tokens=False` and writes its own turns.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, processors, trainers
from tokenizers.pre_tokenizers import ByteLevel as _ByteLevel
from transformers import PreTrainedTokenizerFast

PAD, BOS, IMAGE, EOS, USER, ASSISTANT, END = SPECIALS = (
    "<pad>",
    "<bos>",
    "<image>",
    "<eos>",  # id 3, not 2: transformers' CLIP reads eos_token_id 2 as "pool at the largest id", a habit of old configs
    "<|user|>",
    "<|assistant|>",
    "<|end|>",
)
# one turn each: <|user|><image>text<|assistant|>answer<|end|>
CHAT = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' }}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
    "{% if message['role'] == 'assistant' %}{{ '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
CLIP_LENGTH = 77  # positions of CLIP's text model


def build_tokenizer(texts: Iterable[str], vocab_size: int = 1024) -> PreTrainedTokenizerFast:
    """A tokenizer of at most `vocab_size` tokens, specials and bytes included; the same texts give the same tokenizer.

    Raises ValueError when the words do not all fit in `vocab_size`.
    """
    core = build_core(texts, vocab_size, SPECIALS)
    core.post_processor = _clip_frame(core)
    return wrap(core)


def build_core(texts: Iterable[str], vocab_size: int, specials: Sequence[str]) -> Tokenizer:
    """The words of `texts` after these special tokens, which have the first ids.

    Every distinct word counts once, so a rare word of the world becomes one token as well as a frequent one.
    Raises ValueError when the words do not all fit in `vocab_size`.
    """
    core = _empty()
    core.pre_tokenizer = _ByteLevel(add_prefix_space=False)  # the words bring their own spaces
    words = sorted({word for text in texts for word in _words(core, text)})
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(specials),
        initial_alphabet=sorted(_ByteLevel.alphabet()),
        show_progress=False,
    )
    core.train_from_iterator(words, trainer)
    split = [word for word in words if len(core.encode(word).ids) > 1]
    if split:
        raise ValueError(
            f"vocab_size {vocab_size} splits {len(split)} of {len(words)} words, first: {split[:5]}; raise vocab_size"
        )
    # a leading space before the first word too, so that a word is the same token wherever it stands
    core.pre_tokenizer = _ByteLevel(add_prefix_space=True)
    return core


def load_tokenizer(path: str | Path, model_max_length: int = CLIP_LENGTH) -> PreTrainedTokenizerFast:
    """The tokenizer stored in one `tokenizer.json`, its special tokens named."""
    return wrap(Tokenizer.from_file(str(path)), model_max_length)


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, path: str | Path) -> None:
    """Writes `tokenizer.json`, the one file that `load_tokenizer` needs."""
    tokenizer.backend_tokenizer.save(str(path))


def wrap(core: Tokenizer, model_max_length: int = CLIP_LENGTH) -> PreTrainedTokenizerFast:
    """A `tokenizers.Tokenizer` as transformers and diffusers want it."""
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        unk_token=PAD,  # never produced: every byte has a token; named because CLIP code asks for one
        additional_special_tokens=[IMAGE, USER, ASSISTANT, END],
        model_max_length=model_max_length,
        padding_side="right",
        clean_up_tokenization_spaces=False,
        add_prefix_space=True,  # said again: transformers 4 would otherwise switch it off in `core`
        chat_template=CHAT,
    )


def _empty() -> Tokenizer:
    core = Tokenizer(models.BPE())
    core.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    core.decoder = decoders.ByteLevel()
    return core


def _words(core: Tokenizer, text: str) -> list[str]:
    """The pieces of `text` as byte-level BPE cuts it: a word with the space before it, or a punctuation mark."""
    normal = " " + core.normalizer.normalize_str(text).lstrip(" ")
    return [normal[start:stop] for _, (start, stop) in core.pre_tokenizer.pre_tokenize_str(normal)]


def _clip_frame(core: Tokenizer) -> processors.TemplateProcessing:
    ends = [(token, core.token_to_id(token)) for token in (BOS, EOS)]
    return processors.TemplateProcessing(single=f"{BOS} $A {EOS}", pair=None, special_tokens=ends)
