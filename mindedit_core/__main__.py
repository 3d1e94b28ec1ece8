"""The headless door: `mindedit edit | demo | doctor | convert`, or `python -m mindedit_core ...`."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

IP_ADAPTER, DIM, SANA = "ip-adapter", "dim", "sana"  # a KIND of `mindedit convert`
CONVERT_HELP = (
    "what it must be; anything, if this is left out. dim: a model.safetensors as Draw-In-Mind publishes it, of which "
    "the painter's part is kept. sana: a SANA as NVlabs publishes it (.pth), for diffusers and Painter Loader"
)
DEMO_SEED = 2**31  # the first scene that training never saw
DEMO_FOLDER = Path("build") / "demo"
PAINT_OPTIONS = (
    *("steps", "seed", "strength", "guidance_scale", "image_guidance_scale"),
    *("insight_scale", "negative", "framing"),
)


# edit ----------------------------------------------------------------------------------------------------------------


def edit_file(arguments: argparse.Namespace) -> int:
    """`mindedit edit IMAGE "instruction"`: writes the edited picture and a before/after picture."""
    from .pictures import picture_format, read_mask, read_picture, save_picture, side_by_side
    from .prompts import check_instruction

    out = Path(arguments.out or f"{Path(arguments.image).stem}-edited.png")
    picture_format(out)  # said before the work, not after it
    check_instruction(arguments.instruction)
    image, notes = read_picture(arguments.image)
    mask, mask_notes = read_mask(arguments.mask) if arguments.mask else (None, [])
    for note in (*notes, *mask_notes):
        say_note(note)
    system = load(arguments.system, arguments.device)
    if system.name in ("mini", "dim-mini") and image.shape[1:3] != (128, 128):
        say_note(f"the minis know drawn scenes of 128x128 pixels; {arguments.image} is {size_of(image)}, expect little")
    if arguments.own_mask and mask is not None:
        raise ValueError("--mask and --own-mask exclude each other: whose mask is it to be?")
    where = image[..., 0] if arguments.own_mask else mask
    settings = settings_from(arguments, system, where).but(composite=not arguments.no_composite)
    result, seconds = run(system, image, arguments.instruction, settings, arguments)
    print(f"edited in {seconds:.1f} s -> {save_picture(result.image, out)}")
    compared = side_by_side([image, result.image])
    print(f"before and after -> {save_picture(compared, out.with_name(f'{out.stem}-before-after.png'))}")
    return 0


def load(name: str, device: str | None) -> Any:
    """The system, on a GPU if there is one and no other device was said."""
    from .systems import load_system, usual_device

    started, device = time.perf_counter(), device or usual_device()
    system = load_system(name).to(device)
    print(f"system {system.name}, loaded in {time.perf_counter() - started:.1f} s on {device}")
    return system


def settings_from(arguments: argparse.Namespace, system: Any, mask: Any) -> Any:
    """The system's own settings for this mask, changed by what was said on the command line."""
    said = {name: value for name in PAINT_OPTIONS if (value := getattr(arguments, name)) is not None}
    return system.settings_for(mask).but(**said)


def run(system: Any, image: Any, instruction: str, settings: Any, arguments: argparse.Namespace) -> tuple[Any, float]:
    """The edit with its progress bars; T_raw and T_opt are printed as soon as they are known. Also its seconds."""
    import torch

    from .pipeline import edit

    design = {"max_new_tokens": arguments.max_new_tokens, "temperature": arguments.temperature}
    design["generator"] = torch.Generator().manual_seed(settings.seed)
    started = time.perf_counter()
    with bar("reading and writing", arguments.max_new_tokens) as tokens, bar("painting", settings.steps) as steps:
        result = edit(
            system,
            image,
            instruction,
            settings,
            own_mask=arguments.own_mask,
            design={**design, "on_token": lambda _: tokens()},
            on_plan=lambda plan: tell(lambda: print(f"T_raw: {plan.raw}\nT_opt: {plan.text}"), tokens),
            on_step=lambda _done, _of: steps(),
            on_note=lambda note: tell(lambda: say_note(note)),
        )
    for note in result.notes:
        say_note(note)
    return result, time.perf_counter() - started


def tell(speak: Callable[[], None], *finished: Callable[..., None]) -> None:
    """Speak between progress bars without breaking them; close the bars that have finished."""
    from tqdm import tqdm

    for advance in finished:
        advance(close=True)
    with tqdm.external_write_mode(file=sys.stdout):
        speak()


@contextmanager
def bar(what: str, total: int):
    """A progress bar on stderr that appears with its first step: yields a function that advances it."""
    from tqdm import tqdm

    shown: list[tqdm] = []

    def advance(close: bool = False) -> None:
        if not close and not shown:
            shown.append(tqdm(desc=what, total=total, leave=False, dynamic_ncols=True))
        for each in shown:
            each.close() if close else each.update()

    try:
        yield advance
    finally:
        advance(close=True)


def say_note(text: str) -> None:
    print(f"note: {text}", file=sys.stderr)


def size_of(image: Any) -> str:
    return f"{image.shape[2]}x{image.shape[1]}"


# demo ----------------------------------------------------------------------------------------------------------------


def demo(arguments: argparse.Namespace) -> int:
    """`mindedit demo`: draws a scene, edits it, and lets the picture judge say what came of it."""
    import torch

    from .blueprint import IMAGINATION
    from .pictures import save_picture, side_by_side, to_uint8
    from .pipeline import own_masks
    from .scenes import judge_picture, judge_text, sample

    scene = sample(arguments.scene, operation=arguments.operation)
    image = torch.from_numpy(scene.source_image.copy())[None].float() / 255.0
    mask = torch.from_numpy(scene.mask.copy())[None].float()
    system = load(arguments.system, arguments.device)
    settings = settings_from(arguments, system, None if arguments.no_mask and not arguments.own_mask else mask)
    print(f"scene {arguments.scene}: {scene.source_caption}")
    result, seconds = run(system, image, scene.instruction, settings, arguments)
    said = (result.plan.sections or {}).get(IMAGINATION, result.plan.text)
    print(f"text judge:    {judge_text(said, scene)}")
    print(f"picture judge: {judge_picture(to_uint8(result.image[0]), scene.target)}")
    print(f"the edit took {seconds:.1f} s")
    if arguments.own_mask:
        mask = own_masks(result.plans, image)
    shown = {"source": image, "mask": mask[..., None].expand(-1, -1, -1, 3), "result": result.image}
    shown["before_after"] = side_by_side([image, result.image])
    for name, picture in shown.items():
        save_picture(picture, arguments.out / f"{name}.png")
    print(f"pictures -> {arguments.out}/{{{','.join(shown)}}}.png")
    return 0


# doctor --------------------------------------------------------------------------------------------------------------


def doctor(_: argparse.Namespace) -> int:
    """`mindedit doctor`: 0 if both minis can run here, else 1."""
    from . import inventory
    from .model_files import DIM_FILES, DIM_FOLDER

    sections = {
        "packages": list(inventory.packages()),
        "the built-in mini": list(inventory.mini()),
        "the built-in dim-mini": list(inventory.mini(DIM_FOLDER, DIM_FILES)),
        "ComfyUI and models of full size": list(inventory.comfyui(inventory.find_comfyui())),
    }
    for title, lines in sections.items():
        print(title, *lines, sep="\n")
    missing = [line.what for lines in sections.values() for line in lines if line.state == inventory.MISSING]
    print(f"missing: {', '.join(missing)}" if missing else "all that the minis need is here: try `mindedit demo`")
    return int(bool(missing))


# convert -------------------------------------------------------------------------------------------------------------


def convert(arguments: argparse.Namespace) -> int:
    """`mindedit convert [KIND] IN OUT`: the tensors of a pickle, and nothing else of it; or the painter of DIM."""
    from .checkpoint import save_checkpoint
    from .kinds import kind_of, shapes_of
    from .pickles import read_pickle

    if arguments.out.suffix != ".safetensors":
        raise ValueError(f"OUT must end in .safetensors, by which it is found, got {arguments.out}")
    if arguments.out.exists() and arguments.out.samefile(arguments.source):
        raise ValueError(f"OUT must be another file than IN, which would be lost, got {arguments.out} for both")
    if arguments.kind in (DIM, SANA):
        return convert_painter(arguments)
    tensors, said = read_pickle(arguments.source), {"recipe": "mindedit convert"}
    kind = kind_of(shapes_of(tensors)) or "of no kind known here"
    if arguments.kind == IP_ADAPTER:
        tensors, config = of_ip_adapter(tensors, arguments.source)
        kind, said = config.pop("said"), {"component": "ip_adapter", "class": "IPAdapter", "config": config, **said}
    save_checkpoint(arguments.out, tensors, said)
    print(f"{len(tensors)} tensors, {kind} -> {arguments.out}")
    return 0


def convert_painter(arguments: argparse.Namespace) -> int:
    """A published painter in diffusers' keys: of Draw-In-Mind tensor by tensor, and compared with what it is from."""
    from .systems.dim_convert import convert_dim, convert_sana

    if arguments.kind == SANA:
        print(f"{convert_sana(arguments.source, arguments.out)} tensors, a SANA -> {arguments.out}")
        return 0
    count = convert_dim(arguments.source, arguments.out)
    print(f"{count} tensors, a painter of Draw-In-Mind, each compared with {arguments.source} -> {arguments.out}")
    return 0


def of_ip_adapter(tensors: dict[str, Any], source: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The tensors of a complete IP-Adapter of a known layout, and what it is; raises CheckpointError for any other."""
    from .bridges.ip_adapter import IPAdapter
    from .bridges.ip_adapter_layouts import PARTS

    tensors = {key: tensor for key, tensor in tensors.items() if key.partition(".")[0] in PARTS}
    adapter = IPAdapter.from_state_dict(tensors, name=str(source), dtype=None)
    return tensors, {**adapter.config, "said": f"IP-Adapter: {adapter.layout}"}


# The command line ----------------------------------------------------------------------------------------------------


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="mindedit", description="Edit a picture as an instruction says.")
    commands = top.add_subparsers(dest="command", required=True)
    one = commands.add_parser("edit", help="edit a picture")
    one.add_argument("image", type=Path, help="the picture")
    one.add_argument("instruction", help="what should change, in plain words; it may be vague")
    one.add_argument("--mask", type=Path, help="white where the picture may change; without it, everywhere")
    one.add_argument("--out", type=Path, help="where the result goes (default: NAME-edited.png here)")
    one.add_argument("--no-composite", action="store_true", help="do not put the source back outside the mask")
    one.set_defaults(run=edit_file)
    show = commands.add_parser("demo", help="draw a scene, edit it, judge the result")
    show.add_argument(
        "--scene", type=int, default=DEMO_SEED, help="number of the scene; training saw those below 2**31"
    )
    show.add_argument("--operation", help="add, remove, replace, recolour, resize, move or background (default: any)")
    show.add_argument("--no-mask", action="store_true", help="edit without the mask, as in the paper")
    show.add_argument("--out", type=Path, default=DEMO_FOLDER, help="folder for the pictures (default: %(default)s)")
    show.set_defaults(run=demo)
    for command in (one, show):
        add_common(command)
    look = commands.add_parser("doctor", help="what is installed, which models are where, what is missing")
    look.set_defaults(run=doctor)
    turn = commands.add_parser("convert", help="weights to what this pack reads: pickles (.bin, .pt, .ckpt), DIM")
    turn.add_argument("kind", nargs="?", choices=[IP_ADAPTER, DIM, SANA], help=CONVERT_HELP)
    turn.add_argument("source", type=Path, metavar="IN", help="the file; of a pickle, nothing is run")
    turn.add_argument("out", type=Path, metavar="OUT", help="the .safetensors file to write")
    turn.set_defaults(run=convert)
    return top


def add_common(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("--system", default="mini", help="mini, dim-mini, or a folder with a system.json (default: mini)")
    add("--device", help="of torch, e.g. cuda:1 or cpu (default: a GPU if there is one)")
    add("--own-mask", action="store_true", help="paint where the language model says, in place of a mask of yours")
    add("--seed", type=int, help="of the noise, and of the wording above temperature 0 (default: the system's)")
    add("--steps", type=int, help="sampler steps (default: the system's)")
    add("--strength", type=float, help="0 keeps the picture, 1 starts from noise (default: the system's)")
    add("--guidance-scale", type=float, help="how strictly the text is obeyed; 1 is off (default: the system's)")
    said = "how closely an InstructPix2Pix or CosXL-edit painter keeps to the picture; 1 is off (default: 1.5)"
    add("--image-guidance-scale", type=float, help=said)
    said = "how a SANA sees a picture that is no square of its size: bins, pad or crop (default: bins)"
    add("--framing", help=said)
    add("--insight-scale", type=float, help="weight of the visual insight; 0 is off (default: 1)")
    add("--negative", help="what the picture should not show")
    add("--max-new-tokens", type=int, default=1024, help="longest answer of the language model (default: %(default)s)")
    add("--temperature", type=float, default=0.0, help="of the wording; 0 takes the likeliest words (default: 0)")


def main(words: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(words)
    try:
        return arguments.run(arguments)
    except (ValueError, OSError) as error:
        print(f"mindedit {arguments.command}: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"mindedit {arguments.command}: interrupted; nothing was written", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
