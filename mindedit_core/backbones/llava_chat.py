"""The dialogue around a picture and a text, as the model's own chat template writes it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MARK = "\u241emindedit\u241e"  # stands for the text while a template is rendered
# LLaVA-OneVision's own layout, for a folder whose template file is missing
QWEN_CHAT = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + ' ' }}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ '\n' + part['text'] }}{% endfor %}"
    "{{ '<|im_end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@dataclass(frozen=True)
class Chat:
    """What stands before and after the user's text; the answer follows `after`."""

    before: str
    after: str

    def prompt(self, text: str) -> str:
        return f"{self.before}{text}{self.after}"


def read_chat(tokenizer: Any, image_token: str, template: str | None = None) -> Chat:
    """The Chat of a template (None: the tokenizer's own, or LLaVA-OneVision's where that knows no pictures)."""
    tried = [template] if template else [tokenizer.chat_template]
    if "<|im_start|>" in tokenizer.get_vocab():
        tried.append(QWEN_CHAT)
    for candidate in tried:
        chat = _render(tokenizer, candidate) if isinstance(candidate, str) else None
        if chat and (chat.before + chat.after).count(image_token) == 1:
            return chat
    raise ValueError(
        f"no chat template with one picture ({image_token}) and one text was found; put the model's chat_template.json "
        "or chat_template.jinja into its folder"
    )


def template_in(folder: str | Path) -> str | None:
    """The processor's chat template in a model folder, or None; newer folders use .jinja, older ones .json."""
    folder = Path(folder)
    if (folder / "chat_template.jinja").is_file():
        return (folder / "chat_template.jinja").read_text(encoding="utf-8")
    for name in ("chat_template.json", "processor_config.json"):
        if (folder / name).is_file():
            template = json.loads((folder / name).read_text(encoding="utf-8")).get("chat_template")
            if isinstance(template, str):
                return template
    return None


def _render(tokenizer: Any, template: str) -> Chat | None:
    """None if the template cannot show a picture beside a text, as text-only templates cannot."""
    parts = [{"type": "image"}, {"type": "text", "text": MARK}]
    try:
        rendered = tokenizer.apply_chat_template(
            [{"role": "user", "content": parts}], chat_template=template, add_generation_prompt=True, tokenize=False
        )
    except (TypeError, ValueError):
        return None
    except Exception as error:  # jinja2's own errors, without importing jinja2
        if type(error).__module__.startswith("jinja2"):
            return None
        raise
    before, mark, after = rendered.partition(MARK)
    return Chat(before, after) if mark else None
