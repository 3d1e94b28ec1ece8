"""The node classes in the host's Python: schemas that every host accepts, errors that say where, blocked outputs."""

from __future__ import annotations

import asyncio
import dataclasses
import importlib

import pytest
import torch


@pytest.fixture(scope="module")
def of_pack(pack):
    """A module of the loaded pack by its name: `of_pack("nodes.errors")`."""
    return lambda name: importlib.import_module(f"{pack.__name__}.{name}")


@pytest.fixture(scope="module")
def classes(pack):
    async def load():
        return await (await pack.comfy_entrypoint()).get_node_list()

    return {cls.GET_SCHEMA().node_id: cls for cls in asyncio.run(load())}


def test_schemas_name_the_declared_sockets(classes, of_pack):
    declared = of_pack("nodes.sockets").NODES
    assert set(classes) == set(declared)
    for node_id, cls in classes.items():
        schema = cls.GET_SCHEMA()
        assert sorted(each.id for each in schema.inputs) == sorted(declared[node_id].inputs), node_id
        assert tuple(each.id for each in schema.outputs) == declared[node_id].outputs, node_id
        assert schema.display_name == declared[node_id].title


def test_schema_fields_this_host_does_not_know_are_dropped(of_pack):
    schema = of_pack("nodes.schema").node_schema("MindEditMiniLoader", inputs=[], outputs=[], field_of_the_future=1)
    assert schema.display_name == "MindEdit Mini Loader"


@pytest.mark.parametrize("kind", [ValueError, TypeError, FileNotFoundError])
def test_errors_say_node_and_socket_and_keep_their_kind(of_pack, kind):
    with pytest.raises(kind, match="^Edit Sampler, mask: too big$") as raised:
        with of_pack("nodes.errors").blame("MindEditEditSampler", "mask"):
            raise kind("too big")
    assert isinstance(raised.value.__cause__, kind)


def test_errors_with_a_constructor_of_their_own_are_passed_on_as_text(of_pack):
    class Odd(ValueError):
        def __init__(self, one, two):
            super().__init__(f"{one} {two}")

    with pytest.raises(ValueError, match="^Edit Sampler, mask: a b$"):
        with of_pack("nodes.errors").blame("MindEditEditSampler", "mask"):
            raise Odd("a", "b")


def test_interrupts_pass_untouched(of_pack):
    from comfy.model_management import InterruptProcessingException

    with pytest.raises(InterruptProcessingException):
        with of_pack("nodes.errors").blame("MindEditEditSampler", "mask"):
            raise InterruptProcessingException


class WritingClip:
    """The three methods that newer hosts give a text encoder; this host has none that can write."""

    def tokenize(self, text, images=()):
        self.asked = text, images
        return text

    def generate(self, tokens, do_sample, max_length, temperature, seed):
        self.sampling = do_sample, max_length, seed
        return [1, 2, 3]

    def decode(self, ids):
        return "optimized instruction: small blue cat\nregion: 0 0 500 500"


def test_a_clip_that_can_write_designs(of_pack, classes):
    clip, image = WritingClip(), torch.rand(1, 8, 8, 3)
    optimizer = classes["MindEditInstructionOptimizer"].PREPARE_CLASS_CLONE(None)
    text, plan, mask = optimizer.execute(
        mllm=clip, image=image, instruction="make it blue", seed=3, max_new_tokens=20, temperature=0.0
    ).result
    assert text == "small blue cat" and plan.raw == "make it blue" and plan.states is None
    assert "make it blue" in clip.asked[0] and clip.asked[1][0].shape == (1, 8, 8, 3)
    assert clip.sampling == (False, 20, 3)
    assert mask.shape == (1, 8, 8) and mask[0, :4, :4].all() and mask.sum() == 16


def test_a_clip_that_cannot_write_is_refused_with_a_remedy(of_pack):
    with pytest.raises(TypeError, match="MLLM Loader"):
        of_pack("mindedit_core.hosts.comfy_text_clip").as_writer(object())


class Reading:
    """An MLLM that gives states and no embedding."""

    def __init__(self, insight):
        self.insight = insight

    def encode(self, image, plan):
        return self.insight


@pytest.fixture
def states(of_pack):
    return of_pack("mindedit_core.contracts").Insight(torch.zeros(1, 3, 48), torch.ones(1, 3).bool())


def shown(output):
    """What a node's preview says."""
    (text,) = output.ui.as_dict()["text"]
    return text


def test_states_without_an_embedding_are_said_as_they_are(classes, states):
    insight = dataclasses.replace(states, note="3 states of width 48, which a SANA reads")
    node = classes["MindEditInsightEmbedding"].PREPARE_CLASS_CLONE(None)
    output = node.execute(mllm=Reading(insight), image=torch.zeros(1, 8, 8, 3), plan=None)
    assert shown(output) == insight.note == output.result[1].message


def test_the_bridge_says_what_has_no_effect_on_a_sana(classes, of_pack, states, monkeypatch):
    sana = of_pack("mindedit_core.hosts.comfy_sana")
    monkeypatch.setattr(sana, "painter_of", lambda model: model)
    conds = [[torch.zeros(1, 3, 40), {}]]
    monkeypatch.setattr(sana, "conditioning", lambda painter, insight: (conds, conds))
    node = classes["MindEditIPAdapterBridge"].PREPARE_CLASS_CLONE(None)
    unused = {"negative_text": "", "insight_scale": 1.0, "start": 0.0, "end": 1.0, "adapter": "any"}
    output = node.execute(model="sana", clip=None, insight=states, plan=None, **unused)
    assert output.result == ("sana", conds, conds)
    assert shown(output).startswith("this SANA reads 3 states;") and "adapter have no effect" in shown(output)


def test_the_bridge_never_shows_an_empty_reason(classes, of_pack, states, monkeypatch):
    adapter, text = (of_pack(f"mindedit_core.hosts.{name}") for name in ("comfy_adapter", "comfy_text"))
    monkeypatch.setattr(adapter, "load_adapter", lambda source: None)
    monkeypatch.setattr(adapter, "attach", lambda model, *_, **__: model)
    monkeypatch.setattr(text, "encode_prompt", lambda *_, **__: [])
    node = classes["MindEditIPAdapterBridge"].PREPARE_CLASS_CLONE(None)
    plan = of_pack("mindedit_core.contracts").Plan("a", "a")
    options = {"negative_text": "", "insight_scale": 1.0, "start": 0.0, "end": 1.0, "adapter": "any", "ipadapter": {}}
    output = node.execute(model=object(), clip=None, insight=states, plan=plan, **options)
    assert shown(output) == "text only: the insight holds no CLIP embedding"


def test_an_adapter_for_an_endpoint_is_refused_in_words(classes, of_pack):
    endpoint = of_pack("mindedit_core.hosts.comfy_designers").ManagedEndpoint("http://127.0.0.1:9/v1", "m")
    node = classes["MindEditMLLMAdapter"].PREPARE_CLASS_CLONE(None)
    with pytest.raises(ValueError, match=r"^MLLM Adapter, adapter .*an endpoint's model runs elsewhere; wire MLLM"):
        node.execute(mllm=endpoint, adapter="mini (built in)", lora_strength=1.0)
    assert node.execute(mllm=endpoint, adapter="none", lora_strength=1.0).result[0] is endpoint


def test_edit_sampler_names_the_text_that_does_not_fit(classes, of_pack, monkeypatch):
    sampler = of_pack("mindedit_core.hosts.comfy_sampler")
    monkeypatch.setattr(sampler, "require_vae", lambda model, vae: None)
    node = classes["MindEditEditSampler"].PREPARE_CLASS_CLONE(None)
    of_states = [[torch.zeros(1, 3, 40), {of_pack("mindedit_core.hosts.comfy_sana").STATES: True}]]
    with pytest.raises(ValueError, match="^Edit Sampler, positive and negative: .*same IP-Adapter Bridge"):
        node.execute(model=object(), positive=of_states, negative=of_states, vae=None, image=None)


def test_a_blocked_output_carries_its_reason(of_pack):
    from comfy_execution.graph_utils import ExecutionBlocker

    blocked = of_pack("mindedit_core.hosts.comfy_ui").blocked("no head is loaded")
    assert isinstance(blocked, ExecutionBlocker) and blocked.message == "no head is loaded"
