"""Draws the templates of workflows/ in the real frontend, from the layouts below, and writes them with their prompts.

    python tests/host/make_workflows.py ADDRESS        a running ComfyUI with this pack, e.g. 127.0.0.1:8188

The frontend itself numbers the sockets, orders the widgets and converts to API format: nothing here knows how it does.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent
WORKFLOWS = HERE.parents[1] / "workflows"
VERSION = "0.1.0"
CORE_VERSION = "0.10.0"
COLOURS = ("#3f789e", "#88a")  # of groups, in turn
TITLE = 30  # height of a node's title bar, above its position
MARGIN, HEADING = 20, 50  # between a group's frame and its nodes


class Node(NamedTuple):
    type: str
    pos: tuple[int, int]
    size: tuple[int, int]
    links: dict[str, tuple[str, str]] = {}  # input -> (name of the source node, its output)
    widgets: dict[str, Any] = {}
    models: list[dict] = []
    title: str = ""
    collapsed: bool = False


class Layout(NamedTuple):
    nodes: dict[str, Node]
    groups: dict[str, list[str]]  # heading -> names of its nodes


class File(NamedTuple):
    """A model file of a template: where it is found, where it goes. folder: below the directory, of its own"""

    url: str
    directory: str
    size: str = ""
    folder: str = ""

    @property
    def name(self) -> str:
        """As the host lists it, and as a loader's combo holds it: below its directory."""
        own = self.url.rpartition("/")[2]
        return f"{self.folder}/{own}" if self.folder else own

    @property
    def models(self) -> list[dict]:
        """As the host offers it for download."""
        return [{"name": self.name, "url": self.url, "directory": self.directory}]

    @property
    def row(self) -> str:
        """Of the note's table."""
        size, folder = f" ({self.size})" if self.size else "", f"/{self.folder}" if self.folder else ""
        return f"| [{self.url.rpartition('/')[2]}]({self.url}){size} | `models/{self.directory}{folder}` |"


HUB = "https://huggingface.co"
MLLM_FOLDER = "llava-onevision-qwen2-0.5b-ov-hf"
MLLM_URL = f"{HUB}/llava-hf/{MLLM_FOLDER}"
ADAPTERS = f"{HUB}/h94/IP-Adapter/resolve/main"
SD15_INPAINTING = File(
    f"{HUB}/webui/stable-diffusion-inpainting/resolve/main/sd-v1-5-inpainting.safetensors", "checkpoints", "4.3 GB"
)
SDXL_BASE = File(
    f"{HUB}/stabilityai/stable-diffusion-xl-base-1.0/resolve/main/sd_xl_base_1.0.safetensors", "checkpoints", "6.9 GB"
)
IP2P = File(
    f"{HUB}/timbrooks/instruct-pix2pix/resolve/main/instruct-pix2pix-00-22000.safetensors", "checkpoints", "7.7 GB"
)
ADAPTER_SD15 = File(f"{ADAPTERS}/models/ip-adapter_sd15.safetensors", "ipadapter", "45 MB")
ADAPTER_SDXL = File(f"{ADAPTERS}/sdxl_models/ip-adapter_sdxl_vit-h.safetensors", "ipadapter", "698 MB")

QWEN_FOLDER = "Qwen2.5-VL-3B-Instruct"
DC_AE_FOLDER = "dc-ae-f32c32-sana-1.1-diffusers"


def dim_file(name: str) -> File:
    """Of a repository of stdKonjac: all of them call it model.safetensors, so each has a folder of its own."""
    return File(f"{HUB}/stdKonjac/{name}/resolve/main/model.safetensors", "diffusion_models", folder=name)


DIM_EDIT, DIM_T2I = dim_file("DIM-4.6B-Edit"), dim_file("DIM-4.6B-T2I")

MINI_NOTE = """\
# MindEdit in a minute

Press **Run**. Nothing to download: the models are built in and need a few seconds on a CPU.

1. **Sample Scene** draws a picture and a *vague* wish for it. Its seed counts up, so every run is another scene.
2. **Instruction Optimizer** looks at the picture and writes what is *precisely* meant. Watch the text appear.
3. **Insight Embedding** predicts how the result will look: one CLIP image embedding, from the same thought.
4. **IP-Adapter Bridge** gives text and insight to the painter. Set **λ** to 0 to see what the insight does.
5. **Edit Sampler** repaints the mask and puts the source back around it.

### Models
All are in `custom_nodes/<this pack>/mindedit_core/weights/mini` (46 MB). They know drawn 128×128 scenes, \
not photographs.

### Next
- Type a wish of your own: unlink *instruction*.
- Without a mask: unlink *mask* and set the loader to **img2img**.
- Photographs: open the template **mind_edit_sd15**. It is this graph with other loaders.
"""


def full_size_note(title: str, beginning: str, checkpoint: File, adapter: File, first: str, last: str) -> str:
    """The note of a template with models of full size."""
    return f"""\
# {title}

{beginning}

| file | folder |
|---|---|
{checkpoint.row}
{adapter.row}
| [{MLLM_FOLDER}]({MLLM_URL}) (1.8 GB, the whole folder) | `models/LLM/{MLLM_FOLDER}` |
| a MIND-Edit adapter for that LLaVA (optional) | `models/mindedit` |

1. {first}
2. Say what you want, as loosely as you like, and press **Run**.

Without a MIND-Edit adapter the text is still rewritten, *Insight Embedding* says that the insight is off, and the \
painter gets the text alone. With one, choose it in **MLLM Loader**.

{last}
"""


PAINT_A_MASK = (
    "Load a picture. Right-click it, **Open in MaskEditor**, paint what may change. Until then the mask is empty: "
    "the picture comes back as it is, and *Edit Sampler* says why."
)

DIM_MINI_NOTE = """\
# Draw-In-Mind in a minute

Press **Run**. Nothing to download: the models are built in and need a few seconds on a CPU.

1. **Sample Scene** draws a picture and a *vague* wish for it. Its seed counts up, so every run is another scene.
2. **Instruction Optimizer** designs: it looks at the picture and writes a *blueprint* in five sections, from what is \
there to what will be. Watch it appear.
3. **Insight Embedding** hands on what the language model thinks of picture and blueprint. The picture was read once, \
for both.
4. **IP-Adapter Bridge** turns these states into what the painter reads.
5. **Edit Sampler** paints. No mask: the painter sees the picture and the blueprint says what changes.

### Try
- *designer* **as typed** in Instruction Optimizer, and write the blueprint yourself.
- **Endpoint Designer** in place of MLLM Loader at Instruction Optimizer: any OpenAI-compatible server designs.
- Photographs: open the template **dim_edit**. It is this graph with other loaders.

### Models
All are in `custom_nodes/<this pack>/mindedit_core/weights`. They know drawn 128×128 scenes, not photographs.
"""

DIM_FILES = f"""\
| file | folder |
|---|---|
{{row}}
| [{QWEN_FOLDER}]({HUB}/Qwen/{QWEN_FOLDER}) (7.5 GB, the whole folder) | `models/LLM/{QWEN_FOLDER}` |
| [{DC_AE_FOLDER}]({HUB}/mit-han-lab/{DC_AE_FOLDER}) (for a converted painter) | `models/diffusers/{DC_AE_FOLDER}` |

Licences are the owners': DIM-4.6B is CC BY-NC 4.0 (not for commercial use), Qwen2.5-VL-3B Qwen Research, SANA1.5 and \
its autoencoder NVIDIA's. The folder keeps one *model.safetensors* from replacing another. `mindedit convert dim \
model.safetensors dim_edit.safetensors` keeps the painter's part alone.
"""

DIM_EDIT_NOTE = f"""\
# Draw-In-Mind

The same graph as **dim_mini**, with the published models of full size. Language model and painter take turns on the \
GPU. These nodes have been run on random weights of full size; the published ones could not be \
downloaded where this was made. If a file is refused, please report the message.

{DIM_FILES.format(row=DIM_EDIT.row)}
1. Load a picture and say what you want, as loosely as you like.
2. Press **Run**. The blueprint appears on *Instruction Optimizer*; it is kept, and not written again for the same \
picture and wish.

The painter works at 1024×1024 or as many pixels; *framing* in **Edit Sampler** says how other shapes are seen. \
Published settings: 30 steps, cfg 7.5, seed 233, dpm_solver_flow with flow.
"""

DIM_T2I_NOTE = f"""\
# Draw-In-Mind: text to image

A text instead of a picture: **Text Insight** reads it, the painter starts from noise. The blank picture gives the size.

{DIM_FILES.format(row=DIM_T2I.row)}
Write long and exact: this painter learnt from captions of 150 words.
"""

SD15_NOTE = full_size_note(
    "MIND-Edit on Stable Diffusion 1.5",
    "The same graph as **mind_edit_mini**, with models of full size. About 6 GB of VRAM; a CPU works and is slow.",
    SD15_INPAINTING,
    ADAPTER_SD15,
    PAINT_A_MASK,
    "Any SD 1.5 checkpoint, LoRA or ControlNet fits between loader and bridge; without a mask use an ordinary "
    "checkpoint.",
)

SDXL_NOTE = full_size_note(
    "MIND-Edit on Stable Diffusion XL",
    "The same graph as **mind_edit_sd15**, with an SDXL checkpoint and an IP-Adapter made for it. About 10 GB of VRAM.",
    SDXL_BASE,
    ADAPTER_SDXL,
    PAINT_A_MASK,
    "An ordinary checkpoint is held to the mask; an SDXL **inpainting** one also sees where the mask ends. Any SDXL "
    "checkpoint, LoRA or ControlNet fits between loader and bridge. Pictures of about one megapixel suit SDXL best.",
)

IP2P_NOTE = full_size_note(
    "MIND-Edit on InstructPix2Pix",
    "A painter that *sees* the picture and needs no mask. About 6 GB of VRAM; a CPU works and is slow.",
    IP2P,
    ADAPTER_SD15,
    "Load a picture.",
    "In **Edit Sampler**, *cfg* is how closely the text is followed and *image_guidance_scale* how closely the picture "
    "is: too little changed, lower it to 1.2; too much, raise it to 1.8. A mask may be wired as well. For CosXL-edit "
    "use its checkpoint and an IP-Adapter made for SDXL.",
)

# The loaders stand at the top: what they give runs along a lane above the nodes that think, straight to the painter.
MINI = Layout(
    nodes={
        "note": Node("MarkdownNote", (0, 110), (420, 640), widgets={"text": MINI_NOTE}),
        "mini": Node("MindEditMiniLoader", (500, 110), (320, 160)),
        "scene": Node("MindEditSampleScene", (500, 390), (320, 230), widgets={"seed": 2**31, "control": "increment"}),
        "larger": Node(
            "ImageScaleBy",
            (500, 680),
            (320, 100),
            {"image": ("scene", "image")},
            {"upscale_method": "bicubic", "scale_by": 2.25},
            title="enlarge to look at",
            collapsed=True,
        ),
        "before": Node("PreviewImage", (500, 740), (320, 340), {"images": ("larger", "IMAGE")}, title="Before"),
        "optimizer": Node(
            "MindEditInstructionOptimizer",
            (900, 390),
            (400, 400),
            {
                "mllm": ("mini", "mllm"),
                "image": ("scene", "image"),
                "instruction": ("scene", "instruction"),
            },
            {"control": "fixed", "instruction": ""},
        ),
        "insight": Node(
            "MindEditInsightEmbedding",
            (900, 850),
            (400, 230),
            {"mllm": ("mini", "mllm"), "image": ("scene", "image"), "plan": ("optimizer", "plan")},
        ),
        "bridge": Node(
            "MindEditIPAdapterBridge",
            (1380, 110),
            (340, 360),
            {
                "model": ("mini", "model"),
                "clip": ("mini", "clip"),
                "ipadapter": ("mini", "ipadapter"),
                "insight": ("insight", "insight"),
                "plan": ("optimizer", "plan"),
            },
        ),
        "sampler": Node(
            "MindEditEditSampler",
            (1800, 110),
            (340, 360),
            {
                "model": ("bridge", "model"),
                "positive": ("bridge", "positive"),
                "negative": ("bridge", "negative"),
                "vae": ("mini", "vae"),
                "image": ("scene", "image"),
                "mask": ("scene", "mask"),
            },
            {"control": "fixed", "steps": 10, "cfg": 3.0},
        ),
        "largest": Node(
            "ImageScaleBy",
            (2220, 110),
            (320, 100),
            {"image": ("sampler", "image")},
            {"upscale_method": "bicubic", "scale_by": 3.5},
            title="enlarge to look at",
            collapsed=True,
        ),
        "after": Node("PreviewImage", (2220, 180), (480, 520), {"images": ("largest", "IMAGE")}, title="After"),
        "saved": Node(
            "SaveImage", (2220, 760), (480, 320), {"images": ("sampler", "image")}, {"filename_prefix": "MindEdit"}
        ),
    },
    groups={
        "Models · built in": ["mini"],
        "1 · A picture and a wish": ["scene", "larger", "before"],
        "2 · Think": ["optimizer", "insight"],
        "3 · Tell the painter": ["bridge"],
        "4 · Paint": ["sampler"],
        "5 · Result": ["largest", "after", "saved"],
    },
)


FLOW = {"sampler_name": "dpm_solver_flow", "scheduler": "flow"}


def by_states(
    note: str, models: dict[str, Node], source: dict[str, Node], image: tuple[str, str], wish: dict, sampling: dict
) -> Layout:
    """An edit by Draw-In-Mind. models: mllm and painter;  source: nodes that give the picture;  image: which output

    wish: links and widgets of Instruction Optimizer;  sampling: widgets of Edit Sampler
    """
    painted = ("sampler", "image")
    return Layout(
        nodes={
            "note": Node("MarkdownNote", (0, 110), (420, 640), widgets={"text": note}),
            **models,
            **source,
            "optimizer": Node(
                "MindEditInstructionOptimizer",
                (900, 480),
                (400, 420),
                {"mllm": ("mllm", "mllm"), "image": image, **wish["links"]},
                {"control": "fixed", **wish["widgets"]},
            ),
            "insight": Node(
                "MindEditInsightEmbedding",
                (900, 960),
                (400, 150),
                {"mllm": ("mllm", "mllm"), "image": image, "plan": ("optimizer", "plan")},
            ),
            "bridge": Node(
                "MindEditIPAdapterBridge",
                (1380, 110),
                (340, 360),
                {
                    "model": ("painter", "model"),
                    "clip": ("painter", "clip"),
                    "insight": ("insight", "insight"),
                    "plan": ("optimizer", "plan"),
                },
            ),
            "sampler": Node(
                "MindEditEditSampler",
                (1800, 110),
                (340, 400),
                {
                    "model": ("bridge", "model"),
                    "positive": ("bridge", "positive"),
                    "negative": ("bridge", "negative"),
                    "vae": ("painter", "vae"),
                    "image": image,
                },
                {"control": "fixed", **FLOW, **sampling},
            ),
            "largest": Node(
                "ImageScaleBy",
                (2220, 110),
                (320, 100),
                {"image": painted},
                {"upscale_method": "bicubic", "scale_by": 3.5 if "larger" in source else 1.0},
                title="enlarge to look at",
                collapsed=True,
            ),
            "after": Node("PreviewImage", (2220, 180), (480, 520), {"images": ("largest", "IMAGE")}, title="After"),
            "saved": Node("SaveImage", (2220, 760), (480, 320), {"images": painted}, {"filename_prefix": "MindEdit"}),
        },
        groups={
            "Models": list(models),
            "1 · A picture and a wish": list(source),
            "2 · Design": ["optimizer", "insight"],
            "3 · Tell the painter": ["bridge"],
            "4 · Paint": ["sampler"],
            "5 · Result": ["largest", "after", "saved"],
        },
    )


def dim_models(mllm: str, painter: str, models: list[dict]) -> dict[str, Node]:
    return {
        "mllm": Node("MindEditMLLMLoader", (500, 110), (320, 130), widgets={"model": mllm, "adapter": "none"}),
        "painter": Node("MindEditPainterLoader", (500, 290), (320, 110), widgets={"painter": painter}, models=models),
    }


DIM_MINI = by_states(
    DIM_MINI_NOTE,
    dim_models("dim-mini (built in)", "dim-mini (built in)", []),
    {
        "scene": Node("MindEditSampleScene", (500, 560), (320, 230), widgets={"seed": 2**31, "control": "increment"}),
        "larger": Node(
            "ImageScaleBy",
            (500, 850),
            (320, 100),
            {"image": ("scene", "image")},
            {"upscale_method": "bicubic", "scale_by": 2.25},
            title="enlarge to look at",
            collapsed=True,
        ),
        "before": Node("PreviewImage", (500, 910), (320, 340), {"images": ("larger", "IMAGE")}, title="Before"),
    },
    ("scene", "image"),
    {"links": {"instruction": ("scene", "instruction")}, "widgets": {"instruction": ""}},
    {"steps": 10, "cfg": 2.0},
)
DIM = by_states(
    DIM_EDIT_NOTE,
    dim_models(QWEN_FOLDER, DIM_EDIT.name, DIM_EDIT.models),
    {"picture": Node("LoadImage", (500, 560), (320, 540), widgets={"image": "example.png"})},
    ("picture", "IMAGE"),
    {"links": {}, "widgets": {"instruction": "dress her for a cold evening", "max_new_tokens": 1024}},
    {"steps": 30, "cfg": 7.5, "seed": 233},
)
TEXT = "A red bicycle leans against a whitewashed wall in the late sun; its long shadow falls over cobblestones."
TEXT_TO_IMAGE = Layout(
    nodes={
        "note": Node("MarkdownNote", (0, 110), (420, 640), widgets={"text": DIM_T2I_NOTE}),
        **dim_models(QWEN_FOLDER, DIM_T2I.name, DIM_T2I.models),
        "blank": Node("EmptyImage", (500, 560), (320, 130), widgets={"width": 1024, "height": 1024}),
        "insight": Node(
            "MindEditTextInsight", (900, 110), (400, 300), {"mllm": ("mllm", "mllm")}, widgets={"text": TEXT}
        ),
        "bridge": Node(
            "MindEditIPAdapterBridge",
            (1380, 110),
            (340, 360),
            {
                "model": ("painter", "model"),
                "clip": ("painter", "clip"),
                "insight": ("insight", "insight"),
                "plan": ("insight", "plan"),
            },
        ),
        "sampler": Node(
            "MindEditEditSampler",
            (1800, 110),
            (340, 400),
            {
                "model": ("bridge", "model"),
                "positive": ("bridge", "positive"),
                "negative": ("bridge", "negative"),
                "vae": ("painter", "vae"),
                "image": ("blank", "IMAGE"),
            },
            {"control": "fixed", **FLOW, "steps": 30, "cfg": 7.5, "seed": 233},
        ),
        "after": Node(
            "SaveImage", (2220, 110), (480, 560), {"images": ("sampler", "image")}, {"filename_prefix": "MindEdit"}
        ),
    },
    groups={
        "Models": ["mllm", "painter"],
        "1 · A size": ["blank"],
        "2 · A text": ["insight"],
        "3 · Tell the painter": ["bridge"],
        "4 · Paint": ["sampler"],
        "5 · Result": ["after"],
    },
)


def full_size(note: str, checkpoint: File, adapter: File, wish: str, sampling: dict, masked: bool = True) -> Layout:
    """A photograph, models from disk. sampling: widgets of Edit Sampler"""
    mask = {"mask": ("picture", "MASK")} if masked else {}
    return Layout(
        nodes={
            "note": Node("MarkdownNote", (0, 110), (420, 640), widgets={"text": note}),
            "mllm": Node(
                "MindEditMLLMLoader", (500, 110), (320, 130), widgets={"model": MLLM_FOLDER, "adapter": "none"}
            ),
            "checkpoint": Node(
                "CheckpointLoaderSimple",
                (500, 280),
                (320, 100),
                widgets={"ckpt_name": checkpoint.name},
                models=checkpoint.models,
            ),
            "picture": Node("LoadImage", (500, 480), (320, 540), widgets={"image": "example.png"}),
            "optimizer": Node(
                "MindEditInstructionOptimizer",
                (900, 480),
                (400, 330),
                {"mllm": ("mllm", "mllm"), "image": ("picture", "IMAGE")},
                {"control": "fixed", "instruction": wish},
            ),
            "insight": Node(
                "MindEditInsightEmbedding",
                (900, 870),
                (400, 150),
                {"mllm": ("mllm", "mllm"), "image": ("picture", "IMAGE"), "plan": ("optimizer", "plan")},
            ),
            "bridge": Node(
                "MindEditIPAdapterBridge",
                (1380, 110),
                (340, 360),
                {
                    "model": ("checkpoint", "MODEL"),
                    "clip": ("checkpoint", "CLIP"),
                    "insight": ("insight", "insight"),
                    "plan": ("optimizer", "plan"),
                },
                {"negative_text": "blurry, deformed, text, watermark", "adapter": adapter.name},
                adapter.models,
            ),
            "sampler": Node(
                "MindEditEditSampler",
                (1800, 110),
                (340, 360),
                {
                    "model": ("bridge", "model"),
                    "positive": ("bridge", "positive"),
                    "negative": ("bridge", "negative"),
                    "vae": ("checkpoint", "VAE"),
                    "image": ("picture", "IMAGE"),
                    **mask,
                },
                {"control": "fixed", **sampling},
            ),
            "after": Node(
                "SaveImage", (2220, 110), (480, 560), {"images": ("sampler", "image")}, {"filename_prefix": "MindEdit"}
            ),
        },
        groups={
            "Models": ["mllm", "checkpoint"],
            "1 · A picture and a wish": ["picture"],
            "2 · Think": ["optimizer", "insight"],
            "3 · Tell the painter": ["bridge"],
            "4 · Paint": ["sampler"],
            "5 · Result": ["after"],
        },
    )


WISH = "dress her for a cold evening"
SD15 = full_size(SD15_NOTE, SD15_INPAINTING, ADAPTER_SD15, WISH, {"steps": 25, "cfg": 7.5})
SDXL = full_size(SDXL_NOTE, SDXL_BASE, ADAPTER_SDXL, WISH, {"steps": 25, "cfg": 7.0})
INSTRUCTED = {"steps": 25, "cfg": 7.5, "image_guidance_scale": 1.5}
INSTRUCT = full_size(IP2P_NOTE, IP2P, ADAPTER_SD15, WISH, INSTRUCTED, masked=False)

LAYOUTS = {"mind_edit_mini": MINI, "mind_edit_sd15": SD15, "mind_edit_sdxl": SDXL, "mind_edit_instruct": INSTRUCT}
LAYOUTS |= {"dim_mini": DIM_MINI, "dim_edit": DIM, "dim_text_to_image": TEXT_TO_IMAGE}

DRAW = """
(async layout => {
  app.graph.clear();
  const nodes = {};
  for (const [name, spec] of Object.entries(layout.nodes)) {
    const node = LiteGraph.createNode(spec.type);
    if (!node) throw new Error(`no node ${spec.type}`);
    app.graph.add(node);
    node.pos = spec.pos;
    for (const [key, value] of Object.entries(spec.widgets)) {
      const called = key === 'control' ? ['control_after_generate', 'control after generate'] : [key, 'value'];
      let widget = node.widgets.find(w => called.includes(w.name));
      if (!widget && node.type === 'MarkdownNote') widget = node.widgets[0];
      if (!widget) throw new Error(`${spec.type} has no widget ${key}`);
      widget.value = value;
      if (node.type === 'MarkdownNote') node.properties.text = value;
    }
    if (spec.title) node.title = spec.title;
    if (spec.collapsed) node.flags.collapsed = true;
    node.setSize([spec.size[0], Math.max(spec.size[1], node.computeSize()[1])]);
    nodes[name] = node;
  }
  for (const [name, spec] of Object.entries(layout.nodes))
    for (const [input, [source, output]] of Object.entries(spec.links)) {
      const from = nodes[source].outputs.findIndex(o => o.name === output);
      const to = nodes[name].inputs.findIndex(i => i.name === input);
      if (from < 0 || to < 0) throw new Error(`${source}.${output} -> ${name}.${input}`);
      nodes[source].connect(from, nodes[name], to);
    }
  await new Promise(done => setTimeout(done, 500));
  const sizes = Object.fromEntries(Object.entries(nodes).map(([name, node]) => [name, [...node.size]]));
  const ids = Object.fromEntries(Object.entries(nodes).map(([name, node]) => [name, node.id]));
  return {ids, sizes, graph: app.graph.serialize()};
})
"""


def neighbour(name: str):
    spec = importlib.util.spec_from_file_location(name, HERE / f"{name}.py")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def frame(layout: Layout, sizes: dict, names: list[str]) -> list[float]:
    """x, y, width, height of a group around its nodes."""
    collapsed = {name: (sizes[name][0], 0) for name in names if layout.nodes[name].collapsed}
    boxes = [(*layout.nodes[name].pos, *(sizes | collapsed)[name]) for name in names]
    left, top = min(box[0] for box in boxes) - MARGIN, min(box[1] for box in boxes) - TITLE - HEADING
    right, bottom = max(box[0] + box[2] for box in boxes), max(box[1] + box[3] for box in boxes)
    return [left, top, right + MARGIN - left, bottom + MARGIN - top]


def publishable(layout: Layout, drawn: dict) -> dict:
    """The drawn graph, with what another machine needs to find packs and models, without what only this one knows."""
    graph, by_id = drawn["graph"], {number: name for name, number in drawn["ids"].items()}
    for node in graph["nodes"]:
        spec = layout.nodes[by_id[node["id"]]]
        ours = node["type"].startswith("MindEdit")
        node["properties"] = {
            "Node name for S&R": node["type"],
            "cnr_id": "mindedit" if ours else "comfy-core",
            "ver": VERSION if ours else CORE_VERSION,
            **({"models": spec.models} if spec.models else {}),
        }
        node.update(pos=list(spec.pos), size=[round(side) for side in drawn["sizes"][by_id[node["id"]]]])
    graph["groups"] = [
        {"id": number, "title": title, "bounding": frame(layout, drawn["sizes"], names), "flags": {}}
        | {"color": COLOURS[number % len(COLOURS)]}
        for number, (title, names) in enumerate(layout.groups.items(), start=1)
    ]
    for key in ("id", "revision"):
        graph.pop(key, None)
    graph["extra"] = {"ds": {"scale": 0.6, "offset": [60, 60]}}
    return graph


def main(address: str) -> None:
    chromium = neighbour("chromium")
    with chromium.Chromium(chromium.find_chromium()) as page:
        frontend = chromium.Frontend(page, address)
        for name, layout in LAYOUTS.items():
            spec = {"nodes": {key: node._asdict() for key, node in layout.nodes.items()}}
            graph = publishable(layout, page.run(f"{DRAW}({json.dumps(spec)})"))
            write(WORKFLOWS / f"{name}.json", graph)
            frontend.load(graph)
            write(WORKFLOWS / "api" / f"{name}.json", frontend.prompt())
            sys.stdout.write(f"{name}: {len(graph['nodes'])} nodes\n")


def write(path: Path, content: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
