"""What dim-mini's shipped weights must be able to do, from the command line too."""

import numpy as np
import pytest
from PIL import Image

from mindedit_core import load_system
from mindedit_core.__main__ import main
from mindedit_core.checkpoint import read_metadata
from mindedit_core.model_files import DIM_FILES, DIM_FOLDER
from mindedit_core.scenes import EVALUATION_SEEDS, OPERATIONS, judge_picture, sample
from train.evaluate_dim import designed, exact, judged, paint, varied
from train.unseen import pictures

WEIGHTS = [DIM_FOLDER / name for name in DIM_FILES if name.endswith(".safetensors")]


@pytest.fixture(scope="module")
def unseen():
    """Two samples of each operation."""
    return [sample(EVALUATION_SEEDS + 8_100_000 + number, operation=OPERATIONS[number % 7]) for number in range(14)]


@pytest.fixture(scope="module")
def system():
    return load_system("dim-mini")


@pytest.mark.parametrize("path", WEIGHTS, ids=lambda path: path.stem)
def test_each_file_is_under_16_mb_and_says_how_it_came_to_be(path):
    assert path.stat().st_size < 16 * 10**6
    assert {"component", "class", "config", "recipe", "seed", "steps", "data", "score"} <= set(read_metadata(path))


def test_it_designs_what_unseen_wishes_ask_for(system, unseen):
    plans = designed(system, unseen, pictures(unseen))
    assert all(len(plan.sections) == 5 for plan in plans) and sum(exact(unseen, plans)) >= 10


def test_it_paints_what_the_true_blueprints_say(system, unseen):
    plans, images = varied("true_blueprint", unseen, []), pictures(unseen)
    painted = paint(system, unseen, plans, images, seed=1)
    right = judged(system, unseen, painted, images, "success_no_mask")["success_no_mask"]
    assert sum(right) >= 10, [item.operation for item, ok in zip(unseen, right, strict=True) if not ok]


def test_the_command_line_edits_with_it(unseen, tmp_path, capsys):
    item = next(each for each in unseen if each.operation == "remove")
    Image.fromarray(item.source_image).save(tmp_path / "in.png")
    said = [str(tmp_path / "in.png"), item.instruction, "--system", "dim-mini", "--out", str(tmp_path / "out.png")]
    assert main(["edit", *said]) == 0
    assert "5. Edited Image Imagination: nothing at" in capsys.readouterr().out
    with Image.open(tmp_path / "out.png") as picture:
        assert picture.size == (128, 128) and judge_picture(np.asarray(picture.convert("RGB")), item.target).ok
