"""The command line on tiny parts: what is printed, what is written, what is said when something is wrong."""

import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from mindedit_core.__main__ import main
from mindedit_core.checkpoint import load_tensors, read_metadata
from mindedit_core.pictures import read_picture


def opened(path):
    with Image.open(path) as picture:
        return picture.copy()


QUICK = ["--steps", "2", "--max-new-tokens", "4"]


@pytest.fixture
def picture(tmp_path, monkeypatch):
    """in.png, 40 x 30, and a working folder of its own."""
    monkeypatch.chdir(tmp_path)
    noise = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    Image.fromarray(noise).save("in.png")
    return tmp_path / "in.png"


@pytest.fixture
def mindedit(tiny_folder, capsys):
    """Runs the command on the tiny mini; returns (exit code, stdout, stderr)."""

    def call(*words, system=tiny_folder):
        code = main([*map(str, words), *([] if system is None else ["--system", str(system), *QUICK])])
        return code, *capsys.readouterr()

    return call


# edit ----------------------------------------------------------------------------------------------------------------


def test_edit_prints_both_texts_and_writes_both_pictures(mindedit, picture):
    code, out, err = mindedit("edit", picture, "make it red")
    assert code == 0
    assert "T_raw: make it red" in out and "T_opt: make it red" in out and "edited in" in out
    assert "reading and writing" in err and "painting" in err  # progress bars
    edited, compared = opened("in-edited.png"), opened("in-edited-before-after.png")
    assert edited.size == (40, 30) and compared.size == (84, 30)
    assert np.array_equal(np.asarray(compared)[:, :40], np.asarray(opened(picture)))
    assert np.array_equal(np.asarray(compared)[:, 44:], np.asarray(edited))


def test_the_same_seed_writes_the_same_file(mindedit, picture, tmp_path):
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        assert mindedit("edit", picture, "make it red", "--seed", seed, "--out", tmp_path / f"{name}.png")[0] == 0
    a, b, c = ((tmp_path / f"{name}.png").read_bytes() for name in "abc")
    assert a == b != c


def test_a_mask_of_another_size_is_fitted_and_said(mindedit, picture):
    mask = Image.new("L", (20, 15))
    mask.paste(255, (5, 5, 12, 12))
    mask.save("mask.png")
    code, _, err = mindedit("edit", picture, "make it red", "--mask", "mask.png", "--out", "out.png")
    assert code == 0 and "the mask is 20x15, the picture 40x30: the mask was resized to fit" in err
    before, after = np.asarray(opened(picture)), np.asarray(opened("out.png"))
    assert np.array_equal(before[:8], after[:8]) and not np.array_equal(before, after)


def test_an_empty_mask_gives_the_source_back_and_says_why(mindedit, picture):
    Image.new("L", (40, 30)).save("mask.png")
    code, _, err = mindedit("edit", picture, "make it red", "--mask", "mask.png", "--out", "out.png")
    assert code == 0 and "the mask is empty" in err
    assert np.array_equal(np.asarray(opened(picture)), np.asarray(opened("out.png")))


def test_no_composite_lets_the_painter_have_the_whole_picture(mindedit, picture):
    mask = Image.new("L", (40, 30))
    mask.paste(255, (0, 0, 20, 30))
    mask.save("mask.png")
    mindedit("edit", picture, "x", "--mask", "mask.png", "--no-composite", "--out", "out.png")
    assert not np.array_equal(np.asarray(opened(picture))[:, 30:], np.asarray(opened("out.png"))[:, 30:])


def test_one_pixel_and_alpha_are_handled_and_said(mindedit, picture):
    Image.new("RGBA", (1, 1), (9, 9, 9, 0)).save("dot.png")
    code, _, err = mindedit("edit", "dot.png", "make it red", "--out", "out.png")
    assert code == 0 and opened("out.png").size == (1, 1)
    assert "transparent parts: they were laid over white" in err
    assert "the minis know drawn scenes of 128x128 pixels; dot.png is 1x1" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["in.png", "  "], "the instruction is empty; say what to change"),
        (["in.png", "x" * 10_000], "the instruction has 10000 characters, at most 2000 are read"),
        (["gone.png", "x"], "there is no file gone.png"),
        (["in.png", "x", "--mask", "gone.png"], "there is no file gone.png"),
        (["in.png", "x", "--strength", "2"], "strength must be in 0..1, got 2.0"),
        (["in.png", "x", "--out", "out.xyz"], "cannot write a picture to out.xyz"),
    ],
)
def test_a_wrong_word_is_one_line_and_writes_nothing(mindedit, picture, tmp_path, words, message):
    code, _, err = mindedit("edit", *words)
    said = [line for line in err.replace("\r", "\n").splitlines() if "error" in line]
    assert code == 1 and len(said) == 1 and said[0].startswith("mindedit edit: error: ") and message in said[0]
    assert "Traceback" not in err and sorted(path.name for path in tmp_path.iterdir()) == ["in.png"]


def test_an_unknown_system_is_named(mindedit, picture):
    code, _, err = mindedit("edit", picture, "x", "--system", "nowhere", system=None)
    assert code == 1 and "unknown system 'nowhere'; have dim, dim-mini, mind_edit, mini" in err


def test_an_interrupt_writes_nothing(mindedit, picture, tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("mindedit_core.painters.unet.UNetPainter.paint", interrupted)
    code, _, err = mindedit("edit", picture, "x")
    assert code == 130 and "interrupted; nothing was written" in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.png"]


# demo ----------------------------------------------------------------------------------------------------------------


def test_demo_judges_its_own_picture(mindedit, picture, tmp_path):
    code, out, _ = mindedit("demo", "--out", tmp_path / "demo")
    assert code == 0 and "the edit took" in out and "T_opt:" in out
    verdict = next(line for line in out.splitlines() if line.startswith("picture judge: "))
    assert verdict.startswith("picture judge: failure: ") and "wanted" in verdict  # random weights paint noise
    names = ["before_after.png", "mask.png", "result.png", "source.png"]
    assert sorted(path.name for path in (tmp_path / "demo").iterdir()) == names
    assert {opened(tmp_path / "demo" / name).size for name in names[1:]} == {(128, 128)}


def test_demo_says_success_for_the_right_picture(mindedit, picture, tmp_path, monkeypatch):
    from mindedit_core.scenes import sample

    truth = torch.from_numpy(sample(2**31 + 5).target_image.copy())[None].float() / 255
    monkeypatch.setattr("mindedit_core.painters.unet.UNetPainter.paint", lambda *_, **__: truth)
    _, out, _ = mindedit("demo", "--scene", 2**31 + 5, "--out", tmp_path / "demo")
    assert "picture judge: success\n" in out
    assert torch.equal(read_picture(tmp_path / "demo" / "result.png")[0], truth)


def test_demo_names_the_operations_it_has(mindedit, picture):
    code, _, err = mindedit("demo", "--operation", "explode")
    assert code == 1 and "recolour" in err


def test_a_system_of_blueprints_demonstrates_and_edits(mindedit, picture, tmp_path):
    from mindedit_core.systems.tiny_dim import save_tiny_dim

    tiny_dim = save_tiny_dim(tmp_path / "tiny")
    code, out, _ = mindedit("demo", "--no-mask", "--out", tmp_path / "demo", system=tiny_dim)
    assert code == 0 and "text judge:    failure: " in out and "picture judge: failure: " in out
    for framing, size in (("bins", (40, 30)), ("pad", (40, 30)), ("crop", (128, 128))):
        code, _, err = mindedit("edit", picture, "make it red", "--framing", framing, system=tiny_dim)
        assert code == 0 and opened("in-edited.png").size == size and "is painted at" in err
    code, _, err = mindedit("edit", picture, "make it red", "--framing", "round", system=tiny_dim)
    assert code == 1 and "framing is one of bins, pad, crop, got 'round'" in err


# doctor --------------------------------------------------------------------------------------------------------------


def test_doctor_finds_what_is_there_and_says_what_is_not(mindedit, tmp_path, tiny_folder, monkeypatch):
    host = tmp_path / "ComfyUI"
    for folder in (
        "comfy",
        "custom_nodes",
        "models/LLM/llava",
        "models/LLM/broken",
        "models/ipadapter",
        "models/mindedit",
    ):
        (host / folder).mkdir(parents=True)
    (host / "main.py").write_text("")
    (host / "comfyui_version.py").write_text('__version__ = "0.10.0"')
    for name in ("llava", "broken"):
        (host / "models/LLM" / name / "config.json").write_text('{"model_type": "llava_onevision"}')
    (host / "models/LLM/llava/model.safetensors").write_bytes((tiny_folder / "mllm.safetensors").read_bytes())
    (host / "models/ipadapter/ip.safetensors").write_bytes((tiny_folder / "ip_adapter.safetensors").read_bytes())
    (host / "models/ipadapter/cut.safetensors").write_bytes(b"cut")
    torch.save({"image_proj": {}}, host / "models/ipadapter/ip-adapter-plus_sd15.bin")
    (host / "models/mindedit/mine.safetensors").write_bytes((tiny_folder / "mind_edit.safetensors").read_bytes())
    (host / "models/mindedit/wrong.safetensors").write_bytes((tiny_folder / "unet.safetensors").read_bytes())
    monkeypatch.setenv("COMFYUI_PATH", str(host))
    _, out, _ = mindedit("doctor", system=None)
    lines = {tuple(line.split(None, 2)[:2]): line for line in out.splitlines()}
    assert ("ok", "transformers") in lines and ("ok", "torch") in lines
    assert "ComfyUI                   0.10.0 at" in out
    assert "LLM/llava\n" in out and "broken (unusable: " in out
    assert "ok      IP-Adapter                ipadapter/ip.safetensors: base, tokens of 32, reads 24\n" in out
    assert "--      IP-Adapter                ipadapter/cut.safetensors: " in out and "wrong" not in out
    pickled = host / "models/ipadapter/ip-adapter-plus_sd15.bin"
    assert "is a pickle, which can run code when it is read" in out
    assert f"`mindedit convert ip-adapter {pickled} {pickled.with_suffix('.safetensors')}`" in out
    assert "mindedit/mine.safetensors: predicts 24, CLIP space tiny-clip\n" in out
    assert f"goes into {host / 'models' / 'checkpoints'}" in out


def test_doctor_reports_every_file_of_a_mini(tiny_folder, tmp_path):
    from mindedit_core.inventory import MISSING, OK, mini
    from mindedit_core.model_files import MINI_FILES

    whole = list(mini(tiny_folder))
    assert [line.what for line in whole] == list(MINI_FILES) and {line.state for line in whole} == {OK}
    assert "MB, recipe tiny, random, steps 0" in whole[0].detail
    (tmp_path / "unet.safetensors").write_bytes(b"cut")
    damaged = {line.what: line for line in mini(tmp_path)}
    assert {line.state for line in damaged.values()} == {MISSING}
    assert "not a complete safetensors file" in damaged["unet.safetensors"].detail
    assert f"goes into {tmp_path}" in damaged["clip.safetensors"].detail


def test_doctor_finds_the_parts_of_draw_in_mind(tmp_path):
    from mindedit_core.inventory import OPTIONAL, comfyui
    from mindedit_core.systems.tiny_dim import save_tiny_dim

    for folder in ("LLM/Qwen2.5-VL-3B-Instruct", "diffusion_models", "diffusers/sana/vae"):
        (tmp_path / "models" / folder).mkdir(parents=True)
    absent = {line.what: line for line in comfyui(tmp_path)}
    assert {absent[name].state for name in ("Qwen2.5-VL", "Draw-In-Mind or SANA", "DC-AE")} == {OPTIONAL}
    qwen = tmp_path / "models/LLM/Qwen2.5-VL-3B-Instruct"
    qwen.joinpath("config.json").write_text('{"model_type": "qwen2_5_vl"}')
    (tmp_path / "models/diffusers/sana/vae/config.json").write_text('{"_class_name": "AutoencoderDC"}')
    tiny = save_tiny_dim(tmp_path / "tiny")
    (tmp_path / "models/diffusion_models/dim.safetensors").write_bytes((tiny / "dim.safetensors").read_bytes())
    found = {line.what: line.detail for line in comfyui(tmp_path)}
    assert found["Qwen2.5-VL"].startswith("LLM/Qwen2.5-VL-3B-Instruct (unusable: ")  # it has no weights
    assert found["Draw-In-Mind or SANA"] == "diffusion_models/dim.safetensors: dim"
    assert found["DC-AE"] == "diffusers/sana/vae"
    published = {key: torch.zeros(1) for key in ("projector.0.weight", "decoder.model.x_embedder.proj.weight")}
    mllm = {"mllm.lm_head.weight": torch.zeros(1)}
    for more, said in (({}, "(unusable: "), (mllm, "(no weights of its own: those ")):
        save_file(published | more, tmp_path / "models/diffusion_models/edit.safetensors")
        found = {line.what: line.detail for line in comfyui(tmp_path)}
        assert found["Qwen2.5-VL"].startswith(f"LLM/Qwen2.5-VL-3B-Instruct {said}")


def test_doctor_names_a_package_that_is_too_old(monkeypatch):
    from mindedit_core import inventory

    versions = {"transformers": "4.9.1", "diffusers": "0.35.0.dev0"}
    monkeypatch.setattr(inventory.metadata, "version", lambda name: versions.get(name, "99.1"))
    lines = {line.what: line for line in inventory.packages()}
    assert lines["transformers"].state == inventory.MISSING
    assert lines["transformers"].detail == "4.9.1 is too old: pip install 'transformers>=4.57'"
    assert lines["diffusers"].state == lines["torch"].state == inventory.OK


# convert -------------------------------------------------------------------------------------------------------------


def test_convert_keeps_the_tensors_of_a_pickle(mindedit, picture, tiny_folder, tmp_path):
    flat = load_tensors(tiny_folder / "ip_adapter.safetensors")
    nested = {"image_proj": {}, "ip_adapter": {}}
    for key, tensor in flat.items():
        head, _, tail = key.partition(".")
        nested[head][tail] = tensor
    torch.save({**nested, "epoch": 3}, tmp_path / "ip.bin")
    code, out, _ = mindedit("convert", tmp_path / "ip.bin", tmp_path / "ip.safetensors", system=None)
    assert code == 0 and f"{len(flat)} tensors, ip_adapter -> " in out
    converted = load_tensors(tmp_path / "ip.safetensors")
    assert set(converted) == set(flat) and all(torch.equal(converted[key], flat[key]) for key in flat)
    assert read_metadata(tmp_path / "ip.safetensors")["recipe"] == "mindedit convert"


LAYOUTS = {
    "base": ({}, 4),
    "plus": ({"width": 48, "heads": 2, "depth": 4, "inner": 192}, 16),
    "full-face": ({"inner": 40}, None),
}


@pytest.fixture(params=LAYOUTS)
def adapter(request):
    """A small IP-Adapter of each layout."""
    from mindedit_core.bridges.ip_adapter import IPAdapter
    from mindedit_core.bridges.ip_adapter_layouts import Layout

    torch.manual_seed(0)
    return IPAdapter(Layout(request.param, 40, 32, (16, 16, 24), LAYOUTS[request.param][1], LAYOUTS[request.param][0]))


def nested(state):
    parts = {"image_proj": {}, "ip_adapter": {}}
    for key, tensor in state.items():
        part, _, name = key.partition(".")
        parts[part][name] = tensor
    return parts


@pytest.mark.parametrize("zipped", [True, False])
def test_an_ip_adapter_comes_through_convert_as_it_was(mindedit, adapter, tmp_path, zipped):
    """A nested .bin as published -> flat safetensors in the stored dtype -> the same adapter; old pickles too."""
    from mindedit_core.bridges.ip_adapter import IPAdapter

    state = {key: tensor.half() for key, tensor in adapter.state_dict().items()}
    pickled = {**nested(state), "optimizer": {"step": torch.zeros(1)}}
    torch.save(pickled, tmp_path / "ip.bin", _use_new_zipfile_serialization=zipped)
    out = tmp_path / "ip.safetensors"
    code, said, _ = mindedit("convert", "ip-adapter", tmp_path / "ip.bin", out, system=None)
    assert code == 0 and f"{len(state)} tensors, IP-Adapter: {adapter.layout} -> {out}" in said
    converted = load_tensors(out)
    assert set(converted) == set(state)
    assert all(torch.equal(converted[key], tensor) and tensor.dtype == torch.float16 for key, tensor in state.items())
    loaded = IPAdapter.from_file(out)
    assert loaded.layout == adapter.layout and loaded.clip_space is None
    assert read_metadata(out)["config"]["kind"] == adapter.layout.kind


def test_tensors_that_share_memory_are_all_written(mindedit, tmp_path):
    shared = torch.arange(6.0)
    torch.save({"a": shared, "b": shared, "c": shared[:3], "d": shared.reshape(2, 3)}, tmp_path / "tied.pt")
    assert mindedit("convert", tmp_path / "tied.pt", tmp_path / "out.safetensors", system=None)[0] == 0
    converted = load_tensors(tmp_path / "out.safetensors")
    assert {key: tuple(value.shape) for key, value in converted.items()} == {
        "a": (6,),
        "b": (6,),
        "c": (3,),
        "d": (2, 3),
    }
    assert torch.equal(converted["d"].flatten(), shared)


@pytest.mark.parametrize(
    ("content", "out", "words"),
    [
        ({"image_proj": {"latents": torch.zeros(1, 4, 8)}, "ip_adapter": {}}, "x.safetensors", "got layers []"),
        ({"ip_adapter": {"0.to_q_lora.down.weight": torch.zeros(2, 2)}}, "x.safetensors", "found a FaceID IP-Adapter"),
        ({"conv_in.weight": torch.zeros(1)}, "x.safetensors", "found 0 keys"),
        ({"image_proj": {}}, "x.safetensors", "holds no named tensors, got dict; give a state dict"),
        ({"a": torch.zeros(1)}, "x.bin", "OUT must end in .safetensors"),
    ],
)
def test_what_is_no_ip_adapter_is_not_written(mindedit, tmp_path, content, out, words):
    torch.save(content, tmp_path / "in.bin")
    code, _, err = mindedit("convert", "ip-adapter", tmp_path / "in.bin", tmp_path / out, system=None)
    assert code == 1 and words in err and not (tmp_path / out).exists()


class Bomb:
    def __reduce__(self):
        return (open, ("exploded", "w"))


def test_a_pickle_with_code_is_refused_and_not_run(mindedit, picture, tmp_path):
    torch.save({"a": Bomb()}, tmp_path / "bomb.bin")
    (tmp_path / "raw.bin").write_bytes(pickle.dumps(Bomb(), protocol=2))
    for name in ("bomb.bin", "raw.bin"):
        code, _, err = mindedit("convert", tmp_path / name, tmp_path / "x.safetensors", system=None)
        assert code == 1 and "holds more than tensors, or is damaged" in err
    assert not (tmp_path / "exploded").exists() and not (tmp_path / "x.safetensors").exists()


# The door ------------------------------------------------------------------------------------------------------------


def test_help_needs_nothing_heavy():
    code = (
        "import sys\nfrom mindedit_core.__main__ import parser\nparser()\n"
        "assert not {'torch', 'transformers', 'PIL'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_module_runs_as_a_program(root):
    done = subprocess.run(
        [sys.executable, "-m", "mindedit_core", "--help"], capture_output=True, text=True, check=True, cwd=root
    )
    assert all(command in done.stdout for command in ("edit", "demo", "doctor", "convert"))


def test_masks_of_two_owners_are_refused(tmp_path, capsys):
    picture = tmp_path / "in.png"
    Image.new("RGB", (64, 64)).save(picture)
    assert main(["edit", str(picture), "make it red", "--mask", str(picture), "--own-mask"]) == 1
    assert "exclude each other" in capsys.readouterr().err
