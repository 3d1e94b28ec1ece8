"""Who writes T_opt: an endpoint, or an MLLM on this machine. Both turn a record into the text of an answer."""

from __future__ import annotations

import hashlib
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from mindedit_core.prompts import optimizer_prompt, training_prompt
from train.chat_endpoint import ChatEndpoint, data_url
from train.records import EditRecord

PLACES = {"instruction": "{instruction}", "source_caption": "{source_caption}", "target_caption": "{target_caption}"}


class Asker(Protocol):
    """model: who answers;  prompt: hash of all that shapes the question"""

    model: str
    prompt: str

    def ask(self, record: EditRecord) -> str: ...


@dataclass(frozen=True)
class Sight:
    """What is shown beside the source and T_raw. template: of `prompts.TEMPLATES`;  form, max_side: of the pictures"""

    template: str = "mind_edit"
    target: bool = False
    captions: bool = False
    form: str = "jpeg"
    max_side: int = 1024

    def question(self, instruction: str, **captions: str | None) -> str:
        return training_prompt(instruction, self.template, self.target, **(captions if self.captions else {}))


class EndpointAsker:
    """An OpenAI-compatible endpoint."""

    def __init__(self, endpoint: ChatEndpoint, sight: Sight):
        self.endpoint, self.sight, self.model = endpoint, sight, endpoint.model
        self.prompt = digest(sight.question(**PLACES))

    def ask(self, record: EditRecord) -> str:
        """Raises AskFailed, EndpointUnusable, Interrupted; ValueError for a record without the target to be shown."""
        if self.sight.target and record.target is None:
            raise ValueError("the record has no target to show; ask without --see target")
        question = self.sight.question(
            record.instruction, source_caption=record.source_caption, target_caption=record.target_caption
        )
        shown = [record.source, *([record.target] if self.sight.target else [])]
        return self.endpoint.ask(question, [data_url(image, self.sight.form, self.sight.max_side) for image in shown])


class LocalAsker:
    """The designer of a system on this machine. It sees the source alone, with its own prompt, at temperature 0."""

    def __init__(self, designer: Any, max_tokens: int, stop: threading.Event):
        self.designer, self.max_tokens, self.stop = designer, max_tokens, stop
        self.model = designer.mllm.mllm_id
        self.prompt = digest(optimizer_prompt(PLACES["instruction"], designer.mllm.template))

    def ask(self, record: EditRecord) -> str:
        """Raises Interrupted."""
        import torch

        image = torch.from_numpy(record.source.copy())[None].float() / 255.0
        options = {"max_new_tokens": self.max_tokens, "should_stop": self.stop.is_set}
        return self.designer.design(image, record.instruction, **options).sections["answer"]


def load_designer(name: str) -> Any:
    """The designer of a system (`mini`, a folder with a system.json), or of a LLaVA-OneVision folder as published."""
    if (Path(name) / "config.json").is_file():
        from mindedit_core.backbones.llava_onevision import LlavaOnevision
        from mindedit_core.designers.self_mllm import SelfMLLM

        return SelfMLLM(LlavaOnevision.from_folder(name))
    from mindedit_core.systems import load_system

    return load_system(name).designer


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
