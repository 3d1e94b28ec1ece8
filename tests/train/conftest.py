"""Small datasets in their published formats: rows of the world's scenes and of real photographs, by `published`."""

from __future__ import annotations

import io
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

PICTURE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])  # Hugging Face's Image feature in parquet
PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket")  # in scikit-image's wheel: nothing is downloaded


def png(array: np.ndarray, **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG", **options)
    return buffer.getvalue()


def cell(array: np.ndarray) -> dict:
    return {"bytes": png(array), "path": None}


def scene(number: int) -> SimpleNamespace:
    """A scene of the world and its edit: source, target uint8[128, 128, 3], mask bool[128, 128], texts."""
    from mindedit_core.scenes import sample

    item = sample(number)
    return SimpleNamespace(name=f"scene{number}", source=item.source_image, target=item.target_image,
                           mask=item.mask.astype(bool), instruction=item.instruction, optimized=item.optimized,
                           captions=(item.source_caption, item.target_caption), kind=item.operation)


def photograph(name: str) -> SimpleNamespace:
    """A photograph in half its resolution, and a made-up edit: the colours of its middle are inverted."""
    import skimage.data

    source = np.ascontiguousarray(getattr(skimage.data, name)()[::2, ::2])
    mask = np.zeros(source.shape[:2], bool)
    height, width = mask.shape
    mask[height // 3:height // 2, width // 4:width // 2] = True
    target = np.where(mask[..., None], 255 - source, source)
    return SimpleNamespace(name=name, source=source, target=target, mask=mask, instruction=f"invert the {name}",
                           optimized=f"{name}, inverted colours", captions=(f"a photograph: {name}", None),
                           kind="Replace")


def painted(row: SimpleNamespace, paint: int) -> np.ndarray:
    """The source with its mask painted over, as HumanEdit (0) and MagicBrush (255) publish masks."""
    return np.where(row.mask[..., None], paint, row.source).astype(np.uint8)


def human_edit_rows(rows) -> pa.Table:
    return pa.table({
        "IMAGE_ID": [row.name for row in rows],
        "EDITING_TYPE": [row.kind for row in rows],
        "CORE": pa.array([number % 2 for number in range(len(rows))], pa.int32()),
        "MASK": pa.array([1] * len(rows), pa.int32()),
        "EDITING_INSTRUCTION": [row.instruction for row in rows],
        "OUTPUT_DESCRIPTION": [row.optimized for row in rows],
        "INPUT_CAPTION_BY_LLAMA": [row.captions[0] for row in rows],
        "OUTPUT_CAPTION_BY_LLAMA": [row.captions[1] for row in rows],
        "INPUT_IMG": pa.array([cell(row.source) for row in rows], PICTURE),
        "MASK_IMG": pa.array([cell(painted(row, 0)) for row in rows], PICTURE),
        "OUTPUT_IMG": pa.array([cell(row.target) for row in rows], PICTURE),
    })


def magic_brush_rows(rows) -> pa.Table:
    return pa.table({
        "img_id": [row.name for row in rows],
        "turn_index": pa.array([1 + number for number in range(len(rows))], pa.int32()),
        "source_img": pa.array([cell(row.source) for row in rows], PICTURE),
        "mask_img": pa.array([cell(painted(row, 255)) for row in rows], PICTURE),
        "instruction": [row.instruction for row in rows],
        "target_img": pa.array([cell(row.target) for row in rows], PICTURE),
    })


def multistep_rows(rows) -> pa.Table:
    """Its columns are not published: plausible ones, the instruction being neither first nor shortest."""
    return pa.table({
        "category": ["scene"] * len(rows),
        "image_a": pa.array([png(row.source) for row in rows], pa.binary()),
        "image_b": pa.array([png(row.target) for row in rows], pa.binary()),
        "steps": [f"{row.instruction}, then leave it as it is" for row in rows],
    })


def write(folder, name: str, table: pa.Table, shards: int = 1, **options):
    """table as NAME-00000-of-00002.parquet, ...: with row groups of its own length, as Hugging Face's writer does."""
    folder.mkdir(parents=True, exist_ok=True)
    length = -(-len(table) // shards)
    for number in range(shards):
        file = folder / f"{name}-{number:05d}-of-{shards:05d}.parquet"
        pq.write_table(table.slice(number * length, length), file, **options)
    return folder


@pytest.fixture(autouse=True)
def threads_as_before():
    """A recipe sets torch's threads for its process; sums of another count of threads round differently."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def published() -> SimpleNamespace:
    """Rows, and writers of the published formats."""
    return SimpleNamespace(scene=scene, photograph=photograph, painted=painted, png=png, cell=cell, write=write,
                           photographs=PHOTOGRAPHS, human_edit=human_edit_rows, magic_brush=magic_brush_rows,
                           multistep=multistep_rows)


@pytest.fixture(scope="session")
def rows() -> list[SimpleNamespace]:
    """Four scenes of the world and four photographs."""
    return [*map(scene, range(4)), *map(photograph, PHOTOGRAPHS)]
