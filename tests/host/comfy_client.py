"""A real ComfyUI server in its own process and base directory, and a client for it: HTTP, WebSocket, pictures."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from safetensors.numpy import load
from websocket import WebSocketTimeoutException, create_connection

PACK_FOLDER = "ComfyUI-Mind.Edit"  # a folder name that is no Python identifier: users choose such names
NOT_PART_OF_THE_PACK = (".git", ".venv*", "build", "runs", "__pycache__", ".pytest_cache", ".ruff_cache", "*.egg-info")
NEEDED = "torch, torchvision, torchsde, transformers, diffusers, einops, safetensors, aiohttp, alembic, av, kornia"
ENDS = ("execution_success", "execution_error", "execution_interrupted")
API_KEY = "sk-of-the-host-tests-0123456789"  # in the server's environment, and nowhere else
START_SECONDS, RUN_SECONDS = 300, 1800  # only to end a test that hangs: a busy machine is slow


def find_python(comfyui: Path) -> str | None:
    """A Python that can run ComfyUI: COMFYUI_PYTHON, one inside its folder, ~/comfy-venv, or that of the tests."""
    venvs = [comfyui / ".venv", comfyui / "venv", Path.home() / "comfy-venv"]
    places = [os.environ.get("COMFYUI_PYTHON"), *(str(venv / "bin" / "python") for venv in venvs), sys.executable]
    return next((place for place in places if place and _can_run(place)), None)


def _can_run(python: str) -> bool:
    if shutil.which(python) is None:
        return False
    return subprocess.run([python, "-c", f"import {NEEDED}"], capture_output=True, check=False).returncode == 0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def install_pack(root: Path, base: Path, weights: dict[str, Path]) -> Path:
    """Copy the pack as a user has it: what the repository holds, without its working folders.

    weights: {"mini": folder, "dim": folder}, its own or others in their place
    """
    folder, place = base / "custom_nodes" / PACK_FOLDER, Path("mindedit_core", "weights")
    shutil.copytree(root, folder, ignore=shutil.ignore_patterns(*NOT_PART_OF_THE_PACK))
    for name, source in weights.items():
        if source != root / place / name:
            shutil.rmtree(folder / place / name, ignore_errors=True)
            shutil.copytree(source, folder / place / name)
    return folder


class Refused(Exception):
    """A node of the prompt did not pass the host's validation. `.answer` is the host's JSON.

    The host answers HTTP 400 if nothing is left to run, else it says so and runs the other outputs.
    """

    def __init__(self, answer: dict) -> None:
        super().__init__(json.dumps(answer, indent=1))
        self.answer = answer

    @property
    def details(self) -> str:
        errors = [error for node in self.answer["node_errors"].values() for error in node["errors"]]
        return "\n".join(f"{error['message']}: {error['details']}" for error in errors)


@dataclass
class Run:
    """What one prompt did: its WebSocket events, texts streamed to nodes, and outputs by node id."""

    prompt_id: str
    events: list[dict] = field(default_factory=list)
    texts: dict[str, list[str]] = field(default_factory=dict)
    outputs: dict[str, dict] = field(default_factory=dict)

    @property
    def end(self) -> str:
        """execution_success, execution_error or execution_interrupted."""
        return next(event["type"] for event in reversed(self.events) if event["type"] in ENDS)

    @property
    def error(self) -> dict | None:
        return next((event["data"] for event in self.events if event["type"] == "execution_error"), None)

    @property
    def message(self) -> str:
        return self.error["exception_message"] if self.error else ""

    @property
    def ran(self) -> set[str]:
        """Ids of nodes that ran rather than came from the cache."""
        started = {event["data"]["node"] for event in self.events if event["type"] == "executing"}
        return started - {None}


class ComfyClient:
    """Talks to a running ComfyUI at `address`, host:port."""

    def __init__(self, address: str) -> None:
        self.address = address

    def log(self) -> str:
        """What the server has printed, where that is known."""
        return ""

    def get_bytes(self, path: str, **query: str) -> bytes:
        url = f"http://{self.address}{path}" + (f"?{urllib.parse.urlencode(query)}" if query else "")
        with urllib.request.urlopen(url, timeout=60) as answer:
            return answer.read()

    def get(self, path: str, **query: str) -> Any:
        return json.loads(self.get_bytes(path, **query))

    def post(self, path: str, body: dict) -> Any:
        request = urllib.request.Request(
            f"http://{self.address}{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                text = answer.read()
        except urllib.error.HTTPError as error:
            if error.code != 400:
                raise
            raise Refused(json.loads(error.read())) from None
        return json.loads(text) if text else None

    # Prompts

    def run(self, prompt: dict, *, on_event=None) -> Run:
        """Post a prompt and listen until it has ended; `on_event(run, event)` sees every event."""
        client = uuid.uuid4().hex
        listener = create_connection(f"ws://{self.address}/ws?clientId={client}", timeout=RUN_SECONDS)
        try:
            answer = self.post("/prompt", {"prompt": prompt, "client_id": client})
            run = Run(answer["prompt_id"])
            self._listen(listener, run, on_event)
        except WebSocketTimeoutException as error:
            raise RuntimeError(f"no event for {RUN_SECONDS} s:\n{self.log()[-2000:]}") from error
        finally:
            listener.close()
        if answer["node_errors"]:
            raise Refused(answer)
        history = self.get(f"/history/{run.prompt_id}")
        run.outputs = history.get(run.prompt_id, {}).get("outputs", {})
        return run

    def _listen(self, listener, run: Run, on_event) -> None:
        """Until the host says that it has put the prompt into its history: "executing" no node."""
        while True:
            message = listener.recv()
            if isinstance(message, bytes):
                _note_text(run, message)
                continue
            event = json.loads(message)
            if event["data"].get("prompt_id", run.prompt_id) != run.prompt_id:
                continue
            run.events.append(event)
            if on_event:
                on_event(run, event)
            if event["type"] == "executing" and event["data"]["node"] is None:
                return

    def run_well(self, prompt: dict) -> Run:
        """As `run`, and the prompt must succeed."""
        run = self.run(prompt)
        assert run.error is None, f"{run.error['node_type']}: {run.message}\n{''.join(run.error['traceback'])}"
        assert run.end == "execution_success"
        return run

    # Results

    def pictures(self, run: Run, node: str) -> list[np.ndarray]:
        """uint8[H, W, C] pictures that a SaveImage or PreviewImage node showed."""
        files = [self.get_bytes("/view", **image) for image in run.outputs[node]["images"]]
        return [np.array(Image.open(BytesIO(file))) for file in files]

    def latent(self, run: Run, node: str) -> np.ndarray:
        """float[B, C, h, w] of a SaveLatent node."""
        return load(self.get_bytes("/view", **run.outputs[node]["latents"][0]))["latent_tensor"]

    def text(self, run: Run, node: str) -> str:
        """What a PreviewAny ("Preview as Text") node showed."""
        return run.outputs[node]["text"][0]


class ComfyServer(ComfyClient):
    """`with ComfyServer(comfyui, python, root, weights, base) as server:` starts and ends the process."""

    def __init__(self, comfyui: Path, python: str, root: Path, weights: dict[str, Path], base: Path):
        self.comfyui, self.python, self.root, self.weights, self.base = comfyui, python, root, weights, base
        super().__init__(f"127.0.0.1:{free_port()}")
        self.log_path = base / "server.log"
        self.process: subprocess.Popen | None = None

    def __enter__(self) -> ComfyServer:
        for folder in ("custom_nodes", "models", "input", "output", "user"):
            (self.base / folder).mkdir(parents=True, exist_ok=True)
        self.pack = install_pack(self.root, self.base, self.weights)
        port = self.address.split(":")[1]
        command = [self.python, "main.py", "--cpu", "--port", port, "--base-directory", str(self.base)]
        command += ["--disable-api-nodes", "--disable-assets-autoscan"]
        command += ["--database-url", f"sqlite:///{self.base / 'user' / 'comfyui.db'}"]
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        environment["MINDEDIT_API_KEY"] = API_KEY
        self._log = self.log_path.open("w")
        self.process = subprocess.Popen(
            command, cwd=self.comfyui, env=environment, stdout=self._log, stderr=subprocess.STDOUT
        )
        self._wait_until_up()
        return self

    def __exit__(self, *_: Any) -> None:
        if self.process is not None:
            self.process.kill()  # SIGINT may be ignored by a background server
            self.process.wait()
        self._log.close()

    def _wait_until_up(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise RuntimeError(f"ComfyUI ended with code {self.process.returncode}:\n{self.log()[-4000:]}")
            try:
                self.get("/system_stats")
                return
            except OSError:
                time.sleep(0.5)
        raise RuntimeError(f"ComfyUI did not answer within {START_SECONDS} s:\n{self.log()[-4000:]}")

    def log(self) -> str:
        return self.log_path.read_text(errors="replace")


def _note_text(run: Run, message: bytes) -> None:
    """Binary event 3 (text): uint32 kind, uint32 length of the node id, node id, text."""
    if int.from_bytes(message[:4], "big") == 3:
        end = 8 + int.from_bytes(message[4:8], "big")
        run.texts.setdefault(message[8:end].decode(), []).append(message[end:].decode())


def names_of(object_info: dict) -> dict:
    """Of /object_info: what saved workflows depend on, for all nodes of this pack."""
    return {node: _names(info) for node, info in sorted(object_info.items()) if node.startswith("MindEdit")}


def _names(info: dict) -> dict:
    order = info["input_order"]
    inputs = [
        [name, _type(info["input"][group][name][0]), group]
        for group in ("required", "optional")
        for name in order.get(group, [])
    ]
    return {"inputs": inputs, "outputs": [list(pair) for pair in zip(info["output_name"], info["output"], strict=True)]}


def _type(kind: Any) -> str:
    return "COMBO" if isinstance(kind, list) else kind
