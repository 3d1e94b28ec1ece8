"""The benchmarks run and print what they say; their numbers are not judged here."""

import re

import pytest

from train.bench import dim, encode_once


@pytest.mark.weights
def test_encode_once_prints_both_rates_and_their_ratio(monkeypatch, capsys):
    settings = ("batch_size=2", "data_options=count=14", "trackers=")
    words = [word for setting in settings for word in ("--set", setting)]
    monkeypatch.setattr(encode_once, "ROUNDS", 1)
    monkeypatch.setattr("sys.argv", ["encode_once", *words])
    encode_once.main()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["encoding", "step"]
    for line in lines:
        anew, kept, ratio = map(float, re.findall(r"\d+\.\d+", line))
        assert ratio == pytest.approx(kept / anew, rel=0.1)


def test_what_draw_in_mind_saves_is_measured_side_by_side(monkeypatch, capsys):
    """On tiny shapes: both ways give the same, and the second reading costs the picture's tokens once more."""
    sana = {"num_attention_heads": 2, "num_cross_attention_heads": 2, "cross_attention_head_dim": 32,
            "cross_attention_dim": 64, "caption_channels": 2304}
    narrow = {"hidden_size": 64, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 48}
    text = {"hidden_size": 48, "intermediate_size": 64, "num_attention_heads": 3, "num_key_value_heads": 3,
            "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]}}
    for name, tiny in (("SANA", sana), ("VISION", narrow), ("TEXT", text)):
        monkeypatch.setattr(dim, name, {**getattr(dim, name), **tiny})
    monkeypatch.setattr(dim, "WORDS", 4_000_000)  # never in memory
    monkeypatch.setattr(dim, "PADDED", 2048)
    monkeypatch.setattr("sys.argv", ["dim", "--blocks", "1", "--layers", "1", "--depth", "1", "--rounds", "1"])
    dim.main()
    weights, padding, readings = capsys.readouterr().out.splitlines()
    one, two = map(float, re.findall(r"(\d+\.\d+) GB", weights))
    assert two == pytest.approx(2 * one, rel=0.3)
    assert float(re.search(r"differ by (\d+\.\d+)%", padding)[1]) < 2.0 and "2048 padded" in padding
    once, twice = map(int, re.findall(r"(\d+) tokens", readings))
    assert twice - once > 37 * 37 and float(re.search(r"differ by (\S+)", readings)[1]) < 1e-2
