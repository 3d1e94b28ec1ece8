"""Supervision of the mini's image tokens: labels, packing and losses lie where the scene says."""

import pytest
import torch
from transformers import LlavaOnevisionForConditionalGeneration

from mindedit_core.backbones.llava_onevision import LlavaOnevision
from mindedit_core.backbones.mini_config import mini_config
from mindedit_core.scenes import KINDS, Scene, Thing
from train import image_tokens, tiles
from train.words import tokenizer

SCENE = Scene("snow", (Thing(0, "cat", "red", "small"), Thing(4, "tree", "blue", "large")))
TWINS = Scene("snow", (SCENE.things[0], Thing(4, "cat", "blue", "large"), Thing(5, "cup", "red", "small")))


def test_patches_are_labelled_by_the_slot_they_see():
    kinds = image_tokens.patch_labels([SCENE])["kind"].reshape(6, 6)
    assert (kinds[:2, :2] == KINDS.index("cat")).all() and (kinds[2:4, 2:4] == KINDS.index("tree")).all()
    assert int((kinds == len(KINDS)).sum()) == 36 - 8


def test_image_tokens_part_into_the_towers_patches():
    """Against LLaVA-OneVision's own packing: of its newlines nothing is left, and both views of one tile are equal."""
    torch.manual_seed(0)
    whole = LlavaOnevisionForConditionalGeneration(mini_config(tokenizer())).eval()
    with torch.no_grad():
        features = LlavaOnevision(whole, tokenizer(), template="mini", mllm_id="mini").image_features(
            tiles.tiles([SCENE, SCENE]))
        base, tile = image_tokens.by_view(features).chunk(2)
    assert features.shape[1] == image_tokens.IMAGE_TOKENS and base.shape == (2, 36, features.shape[2])
    assert torch.allclose(base, tile, atol=1e-5)
    newline = whole.model.image_newline
    assert (features == newline).all(-1).sum() == 12 and not (torch.cat([base, tile]) == newline).all(-1).any()


def test_every_word_is_one_token_of_its_own():
    words = [word for group in image_tokens.WORDS.values() for word in group]
    ids = [image_tokens.word_id(word) for word in words]
    assert len(set(ids)) == len(words) and [tokenizer().decode([token]).strip() for token in ids] == words


def test_word_loss_is_least_where_patches_are_their_words():
    labels = image_tokens.patch_labels([SCENE])
    embedding = 9 * torch.eye(len(tokenizer()))
    right = torch.zeros(36, len(tokenizer()))
    for name, words in image_tokens.WORDS.items():
        for patch, label in enumerate(labels[name][0].tolist()):
            if label >= 0:
                right[patch, image_tokens.word_id(words[label])] = 1.0
    both = torch.stack([right, right])
    assert image_tokens.word_loss(both, embedding, labels).item() < 0.01
    assert image_tokens.word_loss(both.roll(6, 1), embedding, labels).item() > 1.0


def test_a_kind_means_its_only_thing():
    said = torch.tensor([tokenizer()(" put the cat over the cup, large cat", add_special_tokens=False)["input_ids"]])
    words = [tokenizer().decode([token]).strip() for token in said[0]]
    once = dict(zip(words, image_tokens.meant_slots(said, [SCENE])[0].tolist(), strict=True))
    assert once["cat"] == 0 and {once[word] for word in words if word != "cat"} == {-100}
    twice = dict(zip(words, image_tokens.meant_slots(said, [TWINS])[0].tolist(), strict=True))
    assert twice["cup"] == 5 and twice["cat"] == -100


@pytest.mark.parametrize("slot", [0, 5, 8])
def test_attention_is_summed_over_the_patches_of_a_slot(slot):
    attention = torch.zeros(1, 1, image_tokens.IMAGE_TOKENS)
    row, column = 2 * (slot // 3), 2 * (slot % 3)
    base = [y * 6 + x for y in (row, row + 1) for x in (column, column + 1)]
    tile = [36 + y * 7 + x for y in (row, row + 1) for x in (column, column + 1)]
    attention[0, 0, base + tile] = 1 / 8
    assert image_tokens.by_slot(attention)[0, 0].tolist() == [float(other == slot) for other in range(9)]
    assert image_tokens.look_loss(attention, torch.tensor([[slot]])).item() == pytest.approx(0.0, abs=1e-6)
    elsewhere = image_tokens.look_loss(attention, torch.tensor([[(slot + 1) % 9]])).item()
    assert elsewhere > 10 and image_tokens.look_loss(attention, torch.tensor([[-100]])).item() == 0.0
