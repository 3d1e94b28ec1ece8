"""Settings of a recipe: one frozen dataclass, presets by name, `--set key=value`. What is unknown fails.

    python -m train.mind_edit --config llava-0.5b --set steps=4000 --set rank=32
    python -m train.mind_edit --config runs/mind_edit/config.json      # what a run was, again

A recipe's dataclass adds its own fields to `Training`, and its PRESETS are instances of it.
"""

from __future__ import annotations

import argparse
import difflib
import json
import types
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from mindedit_core.model_files import MINI_FOLDER

CONFIG = "config.json"
NOTHING = (None, "none", "None", "")


@dataclass(frozen=True, kw_only=True)
class Training:
    """What every recipe can be told. The learning rate warms up, stays, and falls linearly over the last `decay`.

    One optimiser step sees batch_size * accumulate samples on every process. A step is one of the optimiser.
    """

    steps: int = 1000
    learning_rate: float = 1e-3
    batch_size: int = 16  # samples that go through the model at once
    accumulate: int = 1  # such batches for one step
    warm_up: int = 100  # steps
    decay: float = 0.3  # share of the steps, at the end
    weight_decay: float = 0.01
    matrices: Literal["adamw", "muon"] = "adamw"  # the optimiser of linear layers; all else has AdamW
    clip_norm: float = 1.0  # of the gradients
    ema: float = 0.999  # of the weights that are saved; 0: the last ones
    precision: Literal["bf16", "fp16", "no"] = "bf16"  # autocast of accelerate; no: fp32
    checkpoint_activations: bool = False  # compute them again on the way back: less memory, a third more time
    seed: int = 0
    threads: int = 1  # of torch, on a CPU
    workers: int = 0  # processes that prepare batches; 0: the training process itself
    log_every: int = 50  # steps
    validate_every: int = 500  # steps
    save_every: float = 300.0  # seconds between two checkpoints
    keep: int = 1  # checkpoints that stay
    trackers: tuple[str, ...] = ("tensorboard",)  # of accelerate: tensorboard, wandb, ...; "none": log.jsonl alone
    warm: bool = False  # start from the file in `weights`, not at random
    runs: Path = Path("runs")  # checkpoints and logs, not tracked
    weights: Path = MINI_FOLDER  # folder of the mini: read and written

    def rate(self, step: int) -> float:
        """Factor on the learning rate at a step, 0..1."""
        left = (self.steps - step) / max(1.0, self.decay * self.steps)
        return min(1.0, (step + 1) / max(1, self.warm_up), max(0.0, left))


Config = TypeVar("Config", bound=Training)
HARMLESS = ("log_every", "validate_every", "save_every", "keep", "trackers", "threads", "workers", "runs")  # may differ


def read_config(presets: Mapping[str, Config], description: str, arguments: Sequence[str] | None = None) -> Config:
    """What the command line says: a preset or a saved config, changed by every `--set`. Exits 2 for a bad one."""
    first = next(iter(presets))
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = ", ".join(presets)
    parser.add_argument("--config", default=first, help=f"{known} (default {first}), or a {CONFIG} that a run saved")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change one setting")
    parser.add_argument("--show", action="store_true", help="print all settings and stop")
    said = parser.parse_args(arguments)
    try:
        config = changed(start(presets, said.config), said.set)
    except ValueError as error:
        parser.error(str(error))
    if said.show:
        print(json.dumps(plain(config), indent=1))
        parser.exit()
    return config


def start(presets: Mapping[str, Config], name: str) -> Config:
    """A preset, or the config in a file. Raises ValueError if it is neither."""
    if name in presets:
        return presets[name]
    path = Path(name)
    if path.suffix != ".json" or not path.is_file():
        raise ValueError(f"a config is one of {', '.join(presets)}, or a {CONFIG} that a run saved, got {name!r}")
    said = json.loads(path.read_text())
    said.pop("recipe", None)
    return from_plain(next(iter(presets.values())), said)


def changed(config: Config, settings: Sequence[str]) -> Config:
    """The config with each "key=value" applied, later ones over earlier ones. Raises ValueError, naming the key."""
    found = {}
    for setting in settings:
        key, separator, value = setting.partition("=")
        if not separator:
            raise ValueError(f"--set takes KEY=VALUE, got {setting!r}")
        found[key.strip()] = value
    return from_plain(config, found)


def from_plain(config: Config, said: Mapping[str, Any]) -> Config:
    """The config with these values, texts or what JSON holds, in place of its own."""
    hints = get_type_hints(type(config))
    if unknown := [key for key in said if key not in hints]:
        near = difflib.get_close_matches(unknown[0], hints, 3) or sorted(hints)
        raise ValueError(f"there is no setting {unknown[0]!r}; did you mean {', '.join(near)}?")
    return replace(config, **{key: parsed(key, value, hints[key]) for key, value in said.items()})


def parsed(key: str, value: Any, hint: Any) -> Any:
    """A text, or a value of JSON, as the type that the setting has. Raises ValueError if it is none."""
    options = get_args(hint)
    if get_origin(hint) in (Union, types.UnionType):  # an optional one
        return None if value in NOTHING else parsed(key, value, options[0])
    if get_origin(hint) is Literal:
        if value not in options:
            raise ValueError(f"{key} is one of {', '.join(options)}, got {value!r}")
        return value
    if get_origin(hint) is tuple:
        parts = value.split(",") if isinstance(value, str) else value
        return tuple(parsed(key, part.strip() if isinstance(part, str) else part, options[0])
                     for part in parts if part not in NOTHING)
    if hint is bool:
        return truth(key, value)
    try:
        return hint(value)
    except (TypeError, ValueError):
        raise ValueError(f"{key} takes {'an' if hint is int else 'a'} {hint.__name__}, got {value!r}") from None


def truth(key: str, value: Any) -> bool:
    word = str(value).lower()
    if word not in ("true", "false", "1", "0", "yes", "no"):
        raise ValueError(f"{key} takes true or false, got {value!r}")
    return word in ("true", "1", "yes")


def plain(config: Training) -> dict[str, Any]:
    """The config as JSON holds it."""
    return {key: written(value) for key, value in asdict(config).items()}


def written(value: Any) -> Any:
    """Tuples as lists, paths as text, those below the working folder relative to it."""
    if isinstance(value, Path):
        return str(value.relative_to(Path.cwd()) if value.is_relative_to(Path.cwd()) else value)
    return list(value) if isinstance(value, tuple) else value


def save_config(config: Training, recipe: str, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"recipe": recipe, **plain(config)}, indent=1) + "\n")


def require_same(config: Training, path: Path) -> None:
    """Raise ValueError if a run in progress, whose config lies at `path`, was begun with other settings."""
    if not path.exists():
        return
    before, now = json.loads(path.read_text()), plain(config)
    names = [field.name for field in fields(config) if field.name not in HARMLESS]
    if other := [name for name in names if name in before and before[name] != now[name]]:
        said = ", ".join(f"{name} was {before[name]!r} and is {now[name]!r}" for name in other)
        raise ValueError(
            f"the run in {path.parent} was begun with other settings ({said}); go on with its own "
            f"(--config {path}), or move that folder away and begin anew"
        )
