"""Pictures of the templates for the template browser, which shows them as squares.

    python tests/host/make_thumbnails.py ADDRESS [--unpainted]       a running ComfyUI with this pack

A mini's is what its template paints when Run is pressed for the first time, with wish and description; unpainted, or
for the full-size templates, whose models are not shipped, it is the graph as it opens.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from io import BytesIO
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from mindedit_core.blueprint import IMAGINATION
from mindedit_core.blueprint_parser import parse_blueprint

HERE = Path(__file__).resolve().parent
WORKFLOWS = HERE.parents[1] / "workflows"
SIDE, EDGE, TOP, PICTURE = 768, 32, 72, 336
FULL_SIZE = ("mind_edit_sd15", "mind_edit_sdxl", "mind_edit_instruct", "dim_edit", "dim_text_to_image")
MINIS = ("mind_edit_mini", "dim_mini")
BACK, PALE, BRIGHT = "#1d2530", "#9db4cc", "#ffffff"

SHOW = """
(([x, y, side]) => {
  const box = app.canvas.canvas.getBoundingClientRect();
  app.canvas.ds.scale = Math.min(box.width, box.height) / side;
  app.canvas.ds.offset = [-x, -y];
  const graph = [app.canvas.canvas, ...document.querySelectorAll('.dom-widget')];
  const shown = part => graph.some(kept => kept.contains(part) || part.contains(kept));
  for (const part of document.querySelectorAll('body *')) if (!shown(part)) part.style.visibility = 'hidden';
  app.canvas.show_info = false;
  app.canvas.setDirty(true, true);
  return new Promise(done => setTimeout(() => done(Math.min(box.width, box.height)), 1500));
})
"""


def neighbour(name: str):
    spec = importlib.util.spec_from_file_location(name, HERE / f"{name}.py")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def edit(client, graph) -> tuple[Image.Image, Image.Image, str, str]:
    """Source, result, wish and description of the mini's template."""
    source = graph.add("PreviewImage", images=graph.link("MindEditSampleScene"))
    wish = graph.add("PreviewAny", source=graph.link("MindEditSampleScene", 2))
    text = graph.add("PreviewAny", source=graph.link("MindEditInstructionOptimizer"))
    run = client.run_well(graph.prompt)
    before, after = (Image.fromarray(client.pictures(run, node)[0]) for node in (source, graph.id("SaveImage")))
    return before, after, client.text(run, wish), result(client.text(run, text))


def result(text: str) -> str:
    """Of a blueprint its last section alone, what the picture is to show; any other text as it is."""
    parsed = parse_blueprint(text, "")
    return parsed.sections[IMAGINATION] if parsed.found else text


def before_and_after(before: Image.Image, after: Image.Image, wish: str, text: str) -> Image.Image:
    card = Image.new("RGB", (SIDE, SIDE), BACK)
    draw, right = ImageDraw.Draw(card), SIDE - EDGE - PICTURE
    for picture, x in ((before, EDGE), (after, right)):
        card.paste(picture.resize((PICTURE, PICTURE), Image.Resampling.LANCZOS), (x, TOP))
    y = TOP + PICTURE + 36
    for label, words, colour, size in (("you say", wish, BRIGHT, 40), ("it understands", text, PALE, 30)):
        draw.text((EDGE, y), label, PALE, ImageFont.load_default(22))
        y = paragraph(draw, words, y + 32, colour, size) + 26
    return card


def paragraph(draw: ImageDraw.ImageDraw, words: str, y: int, colour: str, size: int) -> int:
    """Wrapped text; returns where it ends."""
    font, line = ImageFont.load_default(size), ""
    for word in [*words.split(), None]:
        longer = f"{line} {word}".strip()
        if word is None or draw.textlength(longer, font) > SIDE - 2 * EDGE:
            draw.text((EDGE, y), line, colour, font)
            y, longer = y + size * 5 // 4, word
        line = longer
    return y


def screenshot(page, workflow: dict, corner: tuple[int, int], side: int) -> Image.Image:
    """A square of the open workflow, in graph units."""
    page.load(workflow)
    page.page.run("new Promise(done => setTimeout(done, 1000))")
    pixels = round(page.page.run(f"{SHOW}({json.dumps([*corner, side])})"))
    data = page.page.screenshot(HERE.parents[1] / "build" / "template.png").read_bytes()
    picture = Image.open(BytesIO(data)).convert("RGB")
    left, top = page.page.run("(({x, y}) => [x, y])(app.canvas.canvas.getBoundingClientRect())")
    square = picture.crop((round(left), round(top), round(left) + pixels, round(top) + pixels))
    return square.resize((SIDE, SIDE), Image.Resampling.LANCZOS)


def main(address: str, unpainted: bool) -> None:
    opened = [*FULL_SIZE, *(MINIS if unpainted else [])]
    if not unpainted:
        client = neighbour("comfy_client").ComfyClient(address)
        for name in MINIS:
            graph = neighbour("prompt_graph").Graph.load(WORKFLOWS / "api" / f"{name}.json")
            save(before_and_after(*edit(client, graph)), name)
    chromium = neighbour("chromium")
    with chromium.Chromium(chromium.find_chromium(), 1200, 1200) as tab:
        page = chromium.Frontend(tab, address)
        for name in opened:
            workflow = json.loads((WORKFLOWS / f"{name}.json").read_text(encoding="utf-8"))
            save(screenshot(page, workflow, (470, 20), 1080), name)


def save(picture: Image.Image, name: str) -> None:
    picture.save(WORKFLOWS / f"{name}.jpg", quality=88, optimize=True)


if __name__ == "__main__":
    main(sys.argv[1], "--unpainted" in sys.argv[2:])
