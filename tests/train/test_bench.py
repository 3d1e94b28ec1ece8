"""The benchmarks run and print what they say; their numbers are not judged here."""

import re

import pytest

from train.bench import encode_once


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
