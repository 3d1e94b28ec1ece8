"""A headless Chromium, driven over its DevTools protocol: the real frontend, JavaScript in it, and screenshots."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

from websocket import create_connection

FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --hide-scrollbars --remote-debugging-port=0 --remote-allow-origins=*"
)
NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
START_SECONDS, ANSWER_SECONDS = 120, 300  # only to end a test that hangs


def find_chromium() -> str | None:
    """CHROMIUM_PATH, or a browser on the PATH."""
    names = (os.environ.get("CHROMIUM_PATH"), *NAMES)
    return next((found for name in names if name and (found := shutil.which(name))), None)


class Chromium:
    """`with Chromium(path, width, height) as page:` one empty page of that size."""

    def __init__(self, path: str, width: int = 1920, height: int = 1080) -> None:
        self.path, self.size, self.last = path, (width, height), 0

    def __enter__(self) -> Chromium:
        self.profile = tempfile.mkdtemp(prefix="chromium-")
        size = f"--window-size={self.size[0]},{self.size[1]}"
        command = [self.path, *FLAGS.split(), size, f"--user-data-dir={self.profile}", "about:blank"]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.socket = create_connection(self._page_address(), timeout=ANSWER_SECONDS)
        self.send("Page.enable")
        width, height = self.size
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.send("Emulation.setDeviceMetricsOverride", **metrics)
        return self

    def __exit__(self, *_: Any) -> None:
        self.socket.close()
        self.process.kill()
        self.process.wait()
        shutil.rmtree(self.profile, ignore_errors=True)

    def _page_address(self) -> str:
        port_file, deadline = Path(self.profile, "DevToolsActivePort"), time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if port_file.is_file() and (lines := port_file.read_text().split()):
                with urllib.request.urlopen(f"http://127.0.0.1:{lines[0]}/json/list", timeout=30) as answer:
                    pages = [page for page in json.load(answer) if page["type"] == "page"]
                if pages:
                    return pages[0]["webSocketDebuggerUrl"]
            time.sleep(0.2)
        raise RuntimeError(f"{self.path} opened no page within {START_SECONDS} s")

    def send(self, method: str, **parameters: Any) -> dict:
        """One DevTools command and its answer; events in between are dropped."""
        self.last += 1
        self.socket.send(json.dumps({"id": self.last, "method": method, "params": parameters}))
        while True:
            message = json.loads(self.socket.recv())
            if message.get("id") == self.last:
                if "error" in message:
                    raise RuntimeError(f"{method}: {message['error']['message']}")
                return message["result"]

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression, which may be a promise."""
        answer = self.send("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer:
            details = answer["exceptionDetails"]
            raise RuntimeError(details.get("exception", {}).get("description") or details["text"])
        return answer["result"].get("value")

    def wait_for(self, condition: str) -> None:
        """Until a JavaScript expression, or what it promises, is true."""
        deadline = time.monotonic() + ANSWER_SECONDS
        while not self.run(f"Promise.resolve({condition}).then(Boolean)"):
            if time.monotonic() > deadline:
                raise RuntimeError(f"still not true after {ANSWER_SECONDS} s: {condition}")
            time.sleep(0.2)

    def screenshot(self, path: Path) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(self.send("Page.captureScreenshot", format="png")["data"]))
        return path


class Frontend:
    """ComfyUI's own frontend in a Chromium page."""

    def __init__(self, page: Chromium, address: str) -> None:
        self.page = page
        page.send("Page.navigate", url=f"http://{address}/")
        page.wait_for("document.readyState === 'complete'")
        page.run("fetch('/api/settings/Comfy.TutorialCompleted', {method: 'POST', body: 'true'}).then(a => a.status)")
        page.send("Page.navigate", url=f"http://{address}/")  # now without the greeting of a first start
        page.wait_for("document.readyState === 'complete'")
        page.wait_for("window.app && app.graph && app.extensionManager && LiteGraph.registered_node_types.KSampler")
        page.wait_for("LiteGraph.registered_node_types.MindEditEditSampler")

    def load(self, workflow: dict) -> None:
        """Open a workflow as a user would."""
        self.page.run(f"app.loadGraphData({json.dumps(workflow)})")

    def prompt(self) -> dict:
        """The open workflow in API format, as the Run button sends it."""
        return self.page.run("app.graphToPrompt().then(prompt => prompt.output)")

    def workflow(self) -> dict:
        """The open workflow in UI format, as it is saved."""
        return self.page.run("app.graph.serialize()")
