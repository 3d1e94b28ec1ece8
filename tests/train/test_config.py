"""A recipe's settings: presets, `--set`, and what fails."""

import json
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path

import pytest

from train.config import Training, changed, plain, read_config, require_same, save_config


@dataclass(frozen=True, kw_only=True)
class Own(Training):
    name: str | None = None
    parts: tuple[str, ...] = ()


PRESETS = {"small": Own(steps=5), "large": Own(steps=500)}
RECIPES = ("autoencoder", "clip", "ip_adapter", "mind_edit", "mllm", "tower", "unet")


def read(*arguments: str) -> Own:
    return read_config(PRESETS, "a recipe", arguments)


def test_the_first_preset_is_the_default_and_others_go_by_name():
    assert read() == PRESETS["small"] and read("--config", "large").steps == 500


def test_set_changes_one_setting_in_its_own_type():
    config = read("--set", "steps=7", "--set", "learning_rate=2e-4", "--set", "warm=true", "--set", "name=x",
                  "--set", "parts=a, b", "--set", "runs=some/runs", "--set", "precision=no", "--set", "steps=8")
    assert (config.steps, config.learning_rate, config.warm, config.name) == (8, 2e-4, True, "x")
    assert config.parts == ("a", "b") and config.runs == Path("some/runs") and config.precision == "no"
    for nothing in ("none", ""):
        assert read("--set", f"name={nothing}").name is None and read("--set", f"parts={nothing}").parts == ()


@pytest.mark.parametrize(("setting", "said"), [
    ("step=3", "did you mean steps"), ("steps=many", "takes an int"), ("steps", "KEY=VALUE"),
    ("precision=fp8", "one of bf16, fp16, no"), ("warm=perhaps", "true or false"), ("ema=", "takes a float")])
def test_a_bad_setting_fails_and_says_why(setting, said, capsys):
    with pytest.raises(SystemExit) as stopped:
        read("--set", setting)
    assert stopped.value.code == 2 and said in capsys.readouterr().err


def test_an_unknown_preset_lists_the_known_ones(capsys):
    with pytest.raises(SystemExit):
        read("--config", "huge")
    assert "small, large" in capsys.readouterr().err


def test_a_saved_config_is_read_back_whole(tmp_path):
    config = changed(PRESETS["large"], ["parts=a,b", "warm=yes", "name=n"])
    save_config(config, "train.own", tmp_path / "config.json")
    assert plain(read("--config", str(tmp_path / "config.json"))) == plain(config)
    assert json.loads((tmp_path / "config.json").read_text())["recipe"] == "train.own"


def test_show_prints_everything_and_stops(capsys):
    with pytest.raises(SystemExit) as stopped:
        read("--set", "steps=9", "--show")
    assert stopped.value.code == 0 and json.loads(capsys.readouterr().out) == plain(replace(PRESETS["small"], steps=9))


def test_a_run_in_progress_keeps_its_settings_but_for_harmless_ones(tmp_path):
    path = tmp_path / "config.json"
    require_same(PRESETS["small"], path)  # nothing was begun
    save_config(PRESETS["small"], "train.own", path)
    require_same(replace(PRESETS["small"], workers=3, log_every=1), path)
    with pytest.raises(ValueError, match="learning_rate was 0.001 and is 0.5"):
        require_same(replace(PRESETS["small"], learning_rate=0.5), path)


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_has_presets_and_tells_its_command(recipe):
    module = import_module(f"train.{recipe}")
    assert f"python -m train.{recipe}" in module.__doc__ and module.PRESETS
    assert all(isinstance(preset, Training) for preset in module.PRESETS.values())
