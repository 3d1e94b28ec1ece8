"""PORT: the mini as an endpoint in OpenAI's chat format, on uvicorn. Run as a process of its own by the tests.

It answers what the mini says of the picture in the request, so pictures really travel.
"""

import base64
import io
import sys
import threading

import numpy as np
import torch
import uvicorn
from fastapi import FastAPI
from PIL import Image

from mindedit_core.systems import load_system

PREFIX = "rewrite: "  # of the template `mini`
mllm = load_system("mini").mllm
app = FastAPI()
one_at_a_time = threading.Lock()


@app.get("/health")
def health() -> dict:
    return {"status": "ok"}


@app.post("/v1/chat/completions")
def completions(body: dict) -> dict:
    *pictures, text = body["messages"][0]["content"]
    (url,) = [each["image_url"]["url"] for each in pictures]
    data = base64.b64decode(url.partition("base64,")[2])
    image = torch.from_numpy(np.array(Image.open(io.BytesIO(data)).convert("RGB")))[None].float() / 255.0
    with one_at_a_time:
        (said,) = mllm.generate(image, [text["text"].removeprefix(PREFIX)], max_new_tokens=body["max_tokens"])
    message = {"role": "assistant", "content": said.text}
    return {"id": "1", "object": "chat.completion", "model": body["model"],
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}


uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning")
