"""Each recipe's own parts: what it starts from, what it feeds, and that one step learns."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn
from transformers import CLIPConfig, CLIPModel, LlavaOnevisionForConditionalGeneration, Qwen2Config, Qwen2Model

from mindedit_core.backbones.llava_onevision import LlavaOnevision
from mindedit_core.backbones.lora import merge
from mindedit_core.backbones.mini_config import mini_config
from mindedit_core.backbones.mini_tokenizer import USER
from mindedit_core.contracts import Region
from mindedit_core.prompts import format_answer, parse_optimized
from mindedit_core.scenes import KINDS, PLACES, Scene, Thing, caption, instructions, sample
from mindedit_core.scenes.edits import references
from mindedit_core.scenes.grammar import changed_slots, parse, say
from mindedit_core.scenes.regions import around, edit_regions, in_thousandths
from mindedit_core.scenes.sampling import THEN
from train import facts, latents, lora, mind_edit, mllm, pairs, questions, slots, tiles, unet
from train.data import slot_labels, training_scene
from train.encoding import Cache
from train.texts import TextStates
from train.words import corpus, tokenizer

SCENE = Scene("snow", (Thing(0, "cat", "red", "small"), Thing(4, "tree", "blue", "large")))


def test_every_word_of_the_world_is_one_token():
    words = {word.strip(",") for text in corpus() for word in text.split()}
    known = tokenizer()
    split = [word for word in words if len(known("a " + word, add_special_tokens=False)["input_ids"]) != 2]
    assert len(words) > 100 and not [word for word in split if word.isalpha()]


def test_longest_program_fits_clip():
    texts = [sample(seed, steps=4).optimized for seed in range(40)]
    lengths = facts.tokens(texts)["attention_mask"].sum(1)
    assert int(lengths.max()) < 77


def test_fact_labels_follow_the_words():
    said = facts.caption_of(SCENE, [4, 7, 0, -1])
    facts_said = ["large blue tree at middle", "nothing at bottom middle", "small red cat at top left"]
    assert said.text.split(", ") == [*facts_said, "snow background"]
    labels = facts.fact_labels([SCENE], [said])
    assert labels["place"].tolist() == [4, 7, 0, 9]
    assert labels["kind"].tolist() == [KINDS.index("tree"), len(KINDS), KINDS.index("cat"), -100]
    assert int(facts.fact_ends(facts.tokens([said.text])["input_ids"]).sum()) == 4


def test_slot_labels_say_what_is_where():
    labels = slot_labels([SCENE])
    assert labels["kind"][0, 0] == KINDS.index("cat") and labels["kind"][0, 1] == len(KINDS)
    assert labels["colour"][0, 1] == -100


def test_reader_is_right_when_its_logits_are():
    labels = slot_labels([SCENE])
    logits = {name: nn.functional.one_hot(labels[name].clamp(min=0), 16).float() * 9 for name in labels}
    names = ("kind", "colour", "size", "background", "scene")
    assert slots.reading_accuracy(logits, labels) == dict.fromkeys(names, 1.0)


def test_training_scenes_are_none_of_evaluation():
    random = np.random.default_rng(0)
    assert not any(training_scene(random).for_evaluation for _ in range(200))


def test_questions_about_the_picture_have_their_answer_in_the_description():
    random = np.random.default_rng(1)
    for asks in (questions.at_place, questions.beside, questions.refer):
        for _ in range(30):
            question, answer = asks(SCENE, random)
            assert question and (answer in caption(SCENE) or answer.startswith("nothing at "))


def test_things_are_located_where_they_lie():
    random = np.random.default_rng(4)
    places = {phrase: PLACES[thing.slot] for thing in SCENE.things for phrase in references(SCENE, thing)}
    asked = [questions.locate(SCENE, random) for _ in range(60)]
    assert all(answer == places[question.removesuffix(" is at the")] for question, answer in asked)
    assert {"the cat", "the tree"} <= {question.removesuffix(" is at the") for question, _ in asked}


def outcome(wish: str) -> Scene:
    """What the world's own enumeration of edits makes of SCENE, one wish after the other."""
    scene = SCENE
    for step in wish.split(THEN):
        scene = next(edit.outcome() for _, edit in instructions(scene) if edit.instruction == step)
    return scene


def test_an_imagined_wish_says_what_the_enumerated_edit_leaves():
    random = np.random.default_rng(2)
    forms = set()
    for _ in range(200):
        question, answer = questions.imagine(SCENE, random)
        wish, _, rest = question.rpartition(", ")
        forms.add(rest.split(" ")[0])
        if rest == "where is the change":
            wanted = ", ".join(PLACES[slot] for slot in changed_slots(SCENE, outcome(wish))) or "background"
            assert answer == wanted
        elif rest.startswith("then what is"):
            after = outcome(wish)
            assert answer in {f"{after.background} background", *(say(slot, after.at(slot)) for slot in range(9))}
    assert {"where", "then"} <= forms


def test_what_a_wish_changes_is_told_whole_and_alone():
    random = np.random.default_rng(6)
    for _ in range(60):
        question, answer = questions.foresee(SCENE, random)
        wish, _, rest = question.rpartition(", ")
        if rest == "what changes":
            assert parse(answer) == difference(SCENE, outcome(wish))


def difference(before: Scene, after: Scene) -> dict:
    old, new = facts_of(before), facts_of(after)
    return {name: new[name] for name in new if new[name] != old[name]}


def test_a_wish_of_several_parts_is_followed_step_by_step():
    random, told = np.random.default_rng(6), 0
    for _ in range(60):
        question, answer = questions.follow(SCENE, random)
        wish, _, rest = question.rpartition(", ")
        if rest == "step by step":
            *steps, whole = [line.removeprefix("step: ") for line in answer.split("\n")]
            parts = wish.split(THEN)
            scenes = [SCENE, *(outcome(THEN.join(parts[:count + 1])) for count in range(len(parts)))]
            assert [parse(step) if step else {} for step in steps] == [difference(*pair) for pair in pairwise(scenes)]
            assert parse(whole) == difference(SCENE, scenes[-1]) | {"background": scenes[-1].background}
            told += 1
    assert told > 30


def test_a_marked_region_is_that_of_the_edit_and_a_thing_s_box_its_own():
    random, seen = np.random.default_rng(8), set()
    for _ in range(80):
        question, answer = questions.mark(SCENE, random)
        wish, _, rest = question.rpartition(", ")
        regions = parse_optimized(f"optimized instruction: x\n{answer}", "x").regions
        if rest == "which region":
            wanted = edit_regions(SCENE, outcome(wish))  # but for the jitter of a thing that is new in its slot
            assert [region.kind for region in regions] == [region.kind for region in wanted]
            edges = [(region.box or (), other.box or ()) for region, other in zip(regions, wanted, strict=True)]
            assert all(np.abs(np.subtract(*pair)).max(initial=0) < 35 for pair in edges)
            seen |= {region.kind for region in regions}
    assert seen == {"box", "background", "keep"}
    question, answer = questions.box(SCENE, random)
    assert answer in {questions.lines([in_thousandths("box", around(thing))]) for thing in SCENE.things}


def facts_of(scene: Scene) -> dict:
    things = {PLACES[slot]: thing.look if (thing := scene.at(slot)) else None for slot in range(9)}
    return things | {"background": scene.background}


def test_every_answer_weighs_the_same_however_long():
    logits, targets = torch.randn(2, 6, 11), torch.randint(11, (2, 6))
    targets[1, 2:] = -100
    alone = [mind_edit.text_losses(logits[row:row + 1], targets[row:row + 1]) for row in range(2)]
    torch.testing.assert_close(mind_edit.text_losses(logits, targets), torch.cat(alone))


def test_the_form_of_an_answer_is_said_before_lora_has_to():
    random = np.random.default_rng(7)
    asked = [questions.repeat(SCENE, random) for _ in range(120)]
    assert all(question == f"please {answer}" for question, answer in asked)
    said = {word for _, answer in asked for word in answer.split()}
    box = (1, 23, 456, 789)
    whole = format_answer("", [Region("background"), Region("box", box), Region("keep", box)], ["x"])
    assert {word for word in whole.split() if not word.isdigit()} <= {*said, "x"}
    assert set("0123456789") <= said


def test_every_sort_of_question_is_asked_and_none_sees_another_s_answer():
    random = np.random.default_rng(3)
    asked = questions.questions(SCENE, random, 300)
    assert {"describe the picture", "which region is the cat"} <= {question for question, _ in asked}
    wanted = ("what changes", "step by step", "which region")
    assert all(any(question.endswith(end) for question, _ in asked) for end in wanted)


@pytest.mark.parametrize("groups", [1, 3])
def test_questions_read_in_groups_are_those_read_alone(groups, monkeypatch):
    """The picture is read once for all its questions; states, looks and logits are those of one whole dialogue."""
    monkeypatch.setattr(mllm, "GROUPS", groups)
    monkeypatch.setattr(mllm, "LOOKS", 0)
    torch.manual_seed(0)
    model = LlavaOnevisionForConditionalGeneration(mini_config(tokenizer(), text_layers=2, vision_layers=1)).eval()
    model.model.language_model.config._attn_implementation = "eager"
    whole = LlavaOnevision(model, tokenizer(), template="mini", mllm_id="mini")
    turns = [("what is at the top left", "small red cat at top left"), ("describe the picture", caption(SCENE))]
    batch = mllm.asked([SCENE, SCENE], [turns, turns[:1]])
    with torch.no_grad():
        seen = mllm.look(whole, whole.image_features(batch["pixel_values"]))
        for group in batch["groups"]:
            together, looks = mllm.read(whole, seen, group)
            for row, ids in enumerate(group["input_ids"]):
                length = int((ids != mllm.PAD_ID).sum())
                alone, own = by_hand(whole, batch["pixel_values"][:1], ids[:length])
                torch.testing.assert_close(together[row, :length], alone, atol=1e-5, rtol=1e-5)
                torch.testing.assert_close(looks[row, :length], own, atol=1e-5, rtol=1e-5)
    assert sum(len(group["owner"]) for group in batch["groups"]) == 3


def by_hand(whole, pixel_values, ids):
    """The same question in one sequence behind its picture."""
    embed = whole.model.get_input_embeddings()
    parts = [embed(torch.tensor(mllm.ids(USER))), whole.image_features(pixel_values)[0], embed(ids)]
    out = whole.model.model.language_model(inputs_embeds=torch.cat(parts)[None], output_attentions=True)
    looks = out.attentions[0][0, :mllm.HEADS, -len(ids):, 1:1 + mllm.IMAGE_TOKENS].mean(0)
    return out.last_hidden_state[0, -len(ids):], looks


def test_a_batch_is_a_function_of_its_step():
    said = [[item.instruction for item in pairs.samples(0, step, 4)] for step in (5, 6, 5)]
    assert said[0] == said[2] != said[1]


def test_training_never_runs_into_the_samples_of_validation():
    with pytest.raises(ValueError, match="choose a seed of 0 to 15"):
        pairs.samples(16, 0, 4)


def test_tiles_equal_the_image_processors_view():
    from mindedit_core.backbones.llava_images import single_view
    from mindedit_core.backbones.mini_config import mini_config
    from mindedit_core.scenes import render

    images = torch.from_numpy(render(SCENE))[None]
    ours, theirs = tiles.tiles([SCENE]), single_view(images.numpy(), mini_config(tokenizer()))
    assert torch.allclose(ours, theirs, atol=1e-6)


def tiny_decoder() -> Qwen2Model:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2}
    return Qwen2Model(Qwen2Config(**sizes, num_key_value_heads=2, vocab_size=11)).eval()


def test_lora_starts_as_nothing_and_equals_its_merge():
    plain, branched = tiny_decoder(), tiny_decoder()
    lora.add_lora(branched, rank=2, alpha=4.0, layers=range(3))
    ids = torch.arange(8)[None]
    with torch.no_grad():
        assert torch.equal(plain(ids).last_hidden_state, branched(ids).last_hidden_state)
        for layer in lora.branches(branched).values():
            nn.init.normal_(layer.lora_B["default"].weight, std=0.1)
        expected = branched(ids).last_hidden_state
        assert not torch.allclose(plain(ids).last_hidden_state, expected)
        merge(plain, lora.pairs_of(branched))
        torch.testing.assert_close(plain(ids).last_hidden_state, expected, atol=1e-4, rtol=1e-4)


def test_lora_goes_into_the_layers_that_were_named_and_goes_on_from_what_was_saved():
    branched, other = tiny_decoder(), tiny_decoder()
    lora.add_lora(branched, rank=2, alpha=4.0, layers=[0, 1])
    assert len(lora.branches(branched)) == 2 * 7 and not [path for path in lora.branches(branched) if ".2." in path]
    assert all("lora" in name for name, parameter in branched.named_parameters() if parameter.requires_grad)
    lora.add_lora(other, rank=2, alpha=4.0, layers=[0, 1])
    lora.take_pairs(other, lora.pairs_of(branched))
    pairs = zip(lora.pairs_of(branched).values(), lora.pairs_of(other).values(), strict=True)
    assert all(torch.equal(one.down, two.down) and torch.equal(one.up, two.up) for one, two in pairs)
    with pytest.raises(ValueError, match="no Linear"):
        lora.add_lora(tiny_decoder(), rank=2, alpha=4.0, layers=[])


def test_widened_unet_starts_equal_to_the_first():
    torch.manual_seed(0)
    first = unet.build(16)
    wide = unet.widened(first)
    x, rest, text = torch.randn(1, 16, 8, 8), torch.randn(1, 17, 8, 8), torch.randn(1, 77, 192)
    with torch.no_grad():
        assert torch.allclose(first(x, 500, text).sample, wide(torch.cat([x, rest], 1), 500, text).sample, atol=1e-5)
    back = unet.narrowed(wide).state_dict()
    assert all(torch.equal(value, back[name]) for name, value in first.state_dict().items())


def test_rough_masks_cover_nearly_all_that_changes():
    """Not quite all: an MLLM's boxes may be off, and the core that it keeps of a thing may hold some old background."""
    missed = []
    for number in range(100):
        item = latents.drawn(number)
        changed = (item.source_image != item.target_image).any(-1)
        missed.append((changed & ~latents.rough_mask(item, number)).sum() / changed.sum())
    assert np.mean(np.array(missed) == 0) > 0.6 and np.mean(missed) < 0.03 and max(missed) < 0.6


def tiny_clip() -> CLIPConfig:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    return CLIPConfig(text_config={**sizes, "vocab_size": len(tokenizer())}, vision_config={**sizes, "image_size": 32})


class Halver(nn.Module):
    """An autoencoder's interface: latents are means over 16 px."""

    class config:
        scaling_factor = 2.0

    def encode(self, images):
        pooled = nn.functional.avg_pool2d(images, 16).repeat(1, 6, 1, 1)[:, :16]
        return type("Encoded", (), {"latent": pooled})


def test_an_interrupted_cache_goes_on_where_it_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(latents, "CHUNK", 2)
    latents.make(tmp_path / "whole.pt", Halver(), 6)
    chunk = latents.encode_chunk(Halver(), 0, 2)
    torch.save([chunk], tmp_path / "cut.part")
    latents.make(tmp_path / "cut.pt", Halver(), 6)
    whole, cut = (torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("whole", "cut"))
    assert whole["target"].shape == (6, 16, 8, 8) and whole["mask"].max() == 1
    assert all(torch.equal(whole[name], cut[name]) for name in whole)


def test_kept_texts_are_those_that_are_encoded_anew():
    clip = CLIPModel(tiny_clip()).eval()
    said = ["small red cat at middle", "", "nothing at top left", "small red cat at middle"]
    kept, anew = TextStates(clip, said[:2])(said), TextStates(clip, [])(said)
    assert torch.equal(kept[0], kept[3]) and not torch.allclose(kept[0], kept[2])
    torch.testing.assert_close(kept, anew, atol=2e-2, rtol=0)  # fp16, after bf16


def test_texts_are_encoded_once_for_a_clip(tmp_path, monkeypatch):
    clip, said = CLIPModel(tiny_clip()).eval(), ["small red cat at middle", ""]
    first = TextStates(clip, said, Cache(tmp_path))(said)
    monkeypatch.setattr(TextStates, "all_of", lambda *_: pytest.fail("encoded again"))
    assert torch.equal(TextStates(clip, said, Cache(tmp_path))(said), first)
    with torch.no_grad():
        next(clip.parameters()).add_(1)
    with pytest.raises(pytest.fail.Exception):
        TextStates(clip, said, Cache(tmp_path))


def test_quick_attention_is_the_usual_one_and_leaves_no_trace():
    torch.manual_seed(0)
    model = unet.build(16).eval()
    usual, inputs = model.attn_processors, (torch.randn(2, 16, 8, 8), 500, torch.randn(2, 77, 192))
    with torch.no_grad():
        expected = model(*inputs).sample
        with unet.quick_attention(model):
            torch.testing.assert_close(model(*inputs).sample, expected, atol=1e-5, rtol=0)
            assert model.attn_processors.keys() == usual.keys() and model.attn_processors != usual
    with pytest.raises(KeyError), unet.quick_attention(model):
        raise KeyError
    assert model.attn_processors == usual
