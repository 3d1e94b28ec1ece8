"""Run by the host's Python: imports the pack as ComfyUI's loader does and prints as JSON what that did.

python import_probe.py COMFYUI PACK
"""

import asyncio
import gc
import importlib.util
import json
import sys
import time

comfyui, pack = sys.argv[1:3]
sys.argv = ["main.py", "--cpu"]
sys.path.insert(0, comfyui)

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()
import utils.install_util  # noqa: E402, F401, I001  as main.py: later, another `utils` is first on the path
import server  # noqa: E402, F401
import nodes  # noqa: E402, F401  ComfyUI's own; it is there when packs are loaded
import comfy_api.latest  # noqa: E402, F401
import torch  # noqa: E402

events: list[str] = []
WATCHED = ("socket.", "subprocess.", "os.mkdir", "os.remove", "os.rename", "urllib.", "ctypes.dlopen", "pickle.")


def watch(event, arguments):
    writes = event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")
    weights = event == "open" and str(arguments[0]).endswith((".safetensors", ".bin", ".pt"))
    if (event.startswith(WATCHED) or writes or weights) and ".pyc" not in str(arguments):
        events.append(f"{event} {arguments}")


def tensors() -> int:
    gc.collect()
    return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())


async def load() -> list:
    """As load_custom_node in ComfyUI's nodes.py."""
    name = pack.replace(".", "_x_")
    spec = importlib.util.spec_from_file_location(name, f"{pack}/__init__.py")
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    extension = await module.comfy_entrypoint()
    classes = await extension.get_node_list()
    return [cls.GET_SCHEMA().node_id for cls in classes]


loop = asyncio.new_event_loop()  # opens a socket pair of its own
before, modules = tensors(), set(sys.modules)
sys.addaudithook(watch)
started = time.process_time()
ids = loop.run_until_complete(load())
seconds = time.process_time() - started
sys.stdout.write(
    json.dumps(
        {
            "ids": ids,
            "seconds": seconds,
            "tensors": tensors() - before,
            "events": events.copy(),
            "modules": sorted(name.split(".")[0] for name in set(sys.modules) - modules),
            "sys_path": pack in sys.path,
        }
    )
)
