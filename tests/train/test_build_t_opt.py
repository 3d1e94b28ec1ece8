"""T_opt asked of real servers on loopback: one that fails as a test wants, `transformers serve`, and the mini."""

from __future__ import annotations

import base64
import http.server
import importlib.util
import io
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import transformers
from PIL import Image

from mindedit_core.contracts import Region
from mindedit_core.model_files import MINI_FILES, MINI_FOLDER
from mindedit_core.prompts import AFTER, optimizer_prompt
from mindedit_core.scenes import sample
from train.build_t_opt import main
from train.pairs_file import read_pairs, with_pairs
from train.readers import open_records
from train.rejects import usable

HERE = Path(__file__).parent
KEY = "sk-secret-1234567890"
GOOD = "step: red cup\nstep: dim light\noptimized instruction: small red cup, soft light\nregion: 100 200 300 400"
EVALUATION = 2**31
FIVE = int(transformers.__version__.partition(".")[0]) >= 5

needs_mini = pytest.mark.skipif(not all((MINI_FOLDER / name).exists() for name in MINI_FILES),
                                reason="the trained mini is not in mindedit_core/weights/mini")


# A server that does what a test wants --------------------------------------------------------------------------------


class Scripted(http.server.ThreadingHTTPServer):
    """Answers every request with `reply(request)`: (status, headers, text), the model's text if the status is 200.

    request: .number from 0, .wish, .text, .pictures (uint8 arrays), .headers
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, reply: Callable, port: int = 0):
        super().__init__(("127.0.0.1", port), Handler)
        self.reply, self.seen, self.lock = reply, [], threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def wishes(self) -> list[str]:
        return [request.wish for request in self.seen]

    def handle_error(self, *_) -> None:
        """A client that was killed is no news."""


class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        assert self.path == "/v1/chat/completions"
        self.body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        *pictures, text = self.body["messages"][0]["content"]
        self.text, self.pictures = text["text"], [decoded(each["image_url"]["url"]) for each in pictures]
        self.wish = self.text.partition("The wish for this picture: ")[2].partition("\n")[0]
        with self.server.lock:
            self.number, self.time = len(self.server.seen), time.monotonic()
            self.server.seen.append(self)
        status, headers, said = self.server.reply(self)
        if status == 200:
            said = json.dumps({"choices": [{"message": {"content": said}, "finish_reason": "stop"}]})
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(said.encode())

    def log_message(self, *_) -> None:
        pass


def decoded(url: str) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(base64.b64decode(url.partition("base64,")[2]))))


@pytest.fixture
def serve():
    """serve(reply) -> a running Scripted server."""
    running = []

    def start(reply: Callable, port: int = 0) -> Scripted:
        server = Scripted(reply, port)
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        running.append(server)
        return server

    yield start
    for server in running:
        server.shutdown()
        server.server_close()


def good(request) -> tuple:
    return 200, {}, GOOD


def words(server_url: str, out: Path, *more: str, count: int = 6) -> list[str]:
    return ["--reader", "world", "--set", f"count={count}", "--base-url", server_url, "--model", "teacher", "--out",
            str(out), *more]


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def wanted(count: int = 6) -> list[str]:
    return list(open_records("world", count=count).ids)


# What is asked and written -------------------------------------------------------------------------------------------


def test_pairs_say_who_wrote_them_and_a_recipe_reads_them(serve, tmp_path, capsys):
    server = serve(good)
    assert main(words(server.url, tmp_path)) == 0
    found = lines(tmp_path / "pairs.jsonl")
    assert sorted(line["id"] for line in found) == sorted(wanted())
    assert set(found[0]) == {"id", "raw", "optimized", "regions", "steps", "note", "model", "prompt", "reader",
                             "attempt", "seconds", "time"}
    assert {(line["model"], line["reader"], line["attempt"]) for line in found} == {("teacher", "world", 1)}
    assert "6 new pairs, 0 failures" in capsys.readouterr().out
    world = open_records("world", count=6)
    paired = with_pairs(world, tmp_path)
    assert paired.notes == [f"6 of 6 records have a T_opt in {tmp_path / 'pairs.jsonl'}"]
    assert paired[3].optimized == "small red cup, soft light" and np.array_equal(paired[3].source, world[3].source)
    assert paired[3].regions == (Region("box", (100.0, 200.0, 300.0, 400.0)),)
    assert paired[3].steps == ("red cup", "dim light")


def test_the_source_travels_with_our_prompt_and_the_key_in_the_header(serve, tmp_path, monkeypatch):
    monkeypatch.setenv("MY_KEY", KEY)
    server = serve(good)
    main(words(server.url, tmp_path, "--picture-format", "png", "--key-env", "MY_KEY", "--body", "seed=7", "--body",
               "temperature=null"))
    world = open_records("world", count=6)
    for request in server.seen:
        (row,) = [row for row in range(6) if world[row].instruction == request.wish]
        assert np.array_equal(request.pictures[0], world[row].source) and len(request.pictures) == 1
        assert request.text == optimizer_prompt(world[row].instruction)
        assert request.headers["Authorization"] == f"Bearer {KEY}"
        assert request.body["model"] == "teacher" and request.body["seed"] == 7 and "temperature" not in request.body


def test_training_data_may_show_the_target_and_captions(serve, tmp_path):
    server = serve(good)
    main(words(server.url, tmp_path, "--picture-format", "png", "--see", "target", "captions", "--max-side", "64"))
    world = open_records("world", count=6)
    for request in server.seen:
        (record,) = [record for record in map(world.__getitem__, range(6)) if record.instruction == request.wish]
        before, after = request.pictures
        assert before.shape == after.shape == (64, 64, 3) and not np.array_equal(before, after)
        assert AFTER in request.text and record.target_caption in request.text and record.source_caption in request.text


def test_no_key_is_no_header(serve, tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    server = serve(good)
    main(words(server.url, tmp_path, count=1))
    assert server.seen[0].headers["Authorization"] is None


def test_the_key_is_never_written_even_when_the_server_repeats_it(serve, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    replies = [(400, {}, f"bad request with {KEY}"), (200, {}, ""), (500, {}, KEY)]
    server = serve(lambda request: replies[min(request.number, 2)])
    assert main(words(server.url, tmp_path, "--concurrency", "1", "--tries", "1", count=3)) == 1
    refusing = serve(lambda request: (401, {}, f"wrong key {KEY}"))
    assert main(words(refusing.url, tmp_path / "b")) == 2
    said = capsys.readouterr()
    written = "".join(path.read_text() for path in tmp_path.rglob("*.jsonl"))
    assert "[key]" in written and "[key]" in said.err
    assert KEY not in written + said.out + said.err


# Failures ------------------------------------------------------------------------------------------------------------


def test_a_server_that_stumbles_once_is_asked_again(serve, tmp_path):
    server = serve(lambda request: (500, {}, "oops") if request.number == 0 else good(request))
    assert main(words(server.url, tmp_path)) == 0
    assert len(server.seen) == 7 and not lines(tmp_path / "failures.jsonl")


def test_a_rate_limit_is_kept_by_all_threads(serve, tmp_path):
    server = serve(lambda request: (429, {"Retry-After": "1"}, "slow down") if request.number == 0 else good(request))
    started = time.monotonic()
    assert main(words(server.url, tmp_path, "--concurrency", "1")) == 0
    assert server.seen[1].time - server.seen[0].time >= 1.0 and time.monotonic() - started < 30


def test_a_garbage_answer_fails_alone_and_is_asked_again_by_retry(serve, tmp_path, capsys):
    spoilt = open_records("world", count=6)[2].instruction
    server = serve(lambda request: (200, {}, "I see a cat.") if request.wish == spoilt else good(request))
    assert main(words(server.url, tmp_path)) == 1
    (failure,) = lines(tmp_path / "failures.jsonl")
    assert failure["id"] == wanted()[2] and failure["answer"] == "I see a cat." and failure["raw"] == spoilt
    assert "no line 'optimized instruction: ...'" in failure["reason"] and len(lines(tmp_path / "pairs.jsonl")) == 5
    assert main(words(server.url, tmp_path)) == 1 and len(server.seen) == 6  # not without --retry
    assert "1 failed before, --retry asks them" in capsys.readouterr().out
    server.reply = good
    assert main(words(server.url, tmp_path, "--retry")) == 0
    assert server.wishes()[6:] == [spoilt] and lines(tmp_path / "pairs.jsonl")[-1]["attempt"] == 2
    assert main(words(server.url, tmp_path, "--retry")) == 0 and len(server.seen) == 7


@pytest.mark.parametrize(("body", "word"), [
    ("<html>", "not in the chat format"), ('{"choices": []}', "not in the chat format"),
    ('{"choices": [{"message": {"content": null, "refusal": "no"}}]}', "the answer has no text"),
    ('{"choices": [{"message": {"content": "optimized instr"}, "finish_reason": "length"}]}', "cut off for its length"),
])
def test_a_response_of_another_form_is_a_failure_with_a_reason(serve, tmp_path, body, word):
    server = serve(lambda request: (201, {}, body))
    assert main(words(server.url, tmp_path, count=1)) == 1
    assert word in lines(tmp_path / "failures.jsonl")[0]["reason"]


def test_a_stream_that_nobody_asked_for_is_read(serve, tmp_path):
    words_of_it = [{"delta": {"content": GOOD[start:start + 7]}} for start in range(0, len(GOOD), 7)]
    pieces = [{"delta": {"role": "assistant"}}, *words_of_it, {"delta": {}, "finish_reason": "stop"}]
    stream = "".join(f"data: {json.dumps({'choices': [piece]})}\n\n" for piece in pieces) + "data: [DONE]\n\n"
    server = serve(lambda request: (201, {"Content-Type": "text/event-stream"}, stream))
    assert main(words(server.url, tmp_path, count=1)) == 0
    assert lines(tmp_path / "pairs.jsonl")[0]["optimized"] == "small red cup, soft light"


def test_thinking_is_not_taken_for_the_answer(serve, tmp_path):
    server = serve(lambda request: (200, {}, f"<think>optimized instruction: a draft</think>\n{GOOD}"))
    main(words(server.url, tmp_path, count=1))
    assert lines(tmp_path / "pairs.jsonl")[0]["optimized"] == "small red cup, soft light"


def test_a_slow_answer_is_given_up_and_asked_again(serve, tmp_path):
    server = serve(lambda request: time.sleep(3 if request.number == 0 else 0) or good(request))
    assert main(words(server.url, tmp_path, "--timeout", "0.5", count=1)) == 0
    assert len(server.seen) == 2


def test_nobody_there_stops_the_run_and_later_it_goes_on(serve, tmp_path, capsys):
    port = free_port()
    url = f"http://127.0.0.1:{port}/v1"
    assert main(words(url, tmp_path, "--tries", "2", count=14)) == 2
    assert "10 questions in a row had no answer" in capsys.readouterr().err
    failed = lines(tmp_path / "failures.jsonl")
    assert 10 <= len(failed) < 14 and "Connection" in failed[0]["reason"] and failed[0]["attempt"] == 1
    server = serve(good, port)
    assert main(words(url, tmp_path, count=14)) == 1  # those never asked
    assert main(words(url, tmp_path, "--retry", count=14)) == 0
    assert len(server.seen) == len(lines(tmp_path / "pairs.jsonl")) == 14


@pytest.mark.parametrize("status", [401, 404, 307])
def test_what_every_question_would_hear_stops_the_run_at_once(serve, tmp_path, capsys, status):
    elsewhere = serve(good)
    server = serve(lambda request: (status, {"Location": f"{elsewhere.url}/chat/completions"}, "no"))
    assert main(words(server.url, tmp_path, "--concurrency", "1")) == 2
    assert len(server.seen) == 1 and f"status {status}" in capsys.readouterr().err
    assert not lines(tmp_path / "failures.jsonl") and not elsewhere.seen  # the key went nowhere else


def test_a_bad_row_is_a_failure_of_its_own(serve, tmp_path, rows, published):
    (tmp_path / "a.png").write_bytes(published.png(rows[0].source))
    (tmp_path / "b.png").write_bytes(published.png(rows[0].source)[:100])
    (tmp_path / "records.jsonl").write_text("".join(
        json.dumps({"source": name, "instruction": "remove it"}) + "\n" for name in ("a.png", "b.png")))
    server = serve(good)
    options = ["--reader", "folder", "--set", f"path={tmp_path}", "--base-url", server.url, "--model", "m", "--out",
               str(tmp_path / "out")]
    assert main(options) == 1
    (failure,) = lines(tmp_path / "out" / "failures.jsonl")
    assert "truncated" in failure["reason"] and "records.jsonl, row 1" in failure["reason"]
    assert main([*options, "--see", "target", "--out", str(tmp_path / "seen")]) == 1
    reasons = [line["reason"] for line in lines(tmp_path / "seen" / "failures.jsonl")]
    assert len(reasons) == 2 and any("has no target to show" in reason for reason in reasons)


def test_an_id_that_is_there_twice_is_asked_once(serve, tmp_path, rows, published, capsys):
    (tmp_path / "a.png").write_bytes(published.png(rows[0].source))
    lines_of_it = [{"id": "one", "source": "a.png", "instruction": wish} for wish in ("remove it", "paint it red")]
    (tmp_path / "records.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines_of_it))
    server = serve(good)
    assert main(["--reader", "folder", "--set", f"path={tmp_path}", "--base-url", server.url, "--model", "m", "--out",
                 str(tmp_path / "out")]) == 0
    assert server.wishes() == ["remove it"] and "1 rows repeat the id of another" in capsys.readouterr().out


# Going on ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", [["--model", "another"], ["--see", "captions"]])
def test_another_model_or_prompt_is_said_and_refused_unless_asked_for(serve, tmp_path, capsys, change):
    server = serve(good)
    main(words(server.url, tmp_path, "--limit", "2"))
    assert main(words(server.url, tmp_path, *change)) == 2
    said = capsys.readouterr().err
    assert "has 2 pairs by model teacher, prompt " in said and "--mix" in said and len(server.seen) == 2
    assert main(words(server.url, tmp_path, *change, "--mix")) == 0
    written = {line["model"] + line["prompt"] for line in lines(tmp_path / "pairs.jsonl")}
    assert len(server.seen) == 6 and len(written) == 2


def test_a_torn_last_line_is_healed_and_asked_again(serve, tmp_path, capsys):
    server = serve(good)
    main(words(server.url, tmp_path, "--limit", "4", "--concurrency", "1"))
    data = (tmp_path / "pairs.jsonl").read_bytes()
    (tmp_path / "pairs.jsonl").write_bytes(data[:-20])
    assert len(read_pairs(tmp_path)) == 3  # a reader does not stumble over it either
    assert main(words(server.url, tmp_path)) == 0
    assert "the last line was cut off and has been taken away" in capsys.readouterr().out
    assert sorted(line["id"] for line in lines(tmp_path / "pairs.jsonl")) == sorted(wanted())
    (tmp_path / "pairs.jsonl").write_bytes((tmp_path / "pairs.jsonl").read_bytes()[:-1])
    assert main(words(server.url, tmp_path)) == 0 and len(lines(tmp_path / "pairs.jsonl")) == 6
    assert "has been ended" in capsys.readouterr().out


def test_a_broken_line_inside_is_named(serve, tmp_path, capsys):
    (tmp_path / "pairs.jsonl").write_text('{"id": "a"\n{"id": "b"}\n')
    assert main(words(serve(good).url, tmp_path)) == 2
    assert "pairs.jsonl, line 1 is no JSON object" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no advisory locks")
def test_two_builds_into_one_folder_are_refused(serve, tmp_path, capsys):
    from train.journal import Journal

    first = Journal(tmp_path / "pairs.jsonl")
    assert main(words(serve(good).url, tmp_path)) == 2
    assert "another process is writing" in capsys.readouterr().err
    first.close()
    assert main(words(serve(good).url, tmp_path)) == 0


def start(root: Path, arguments: list[str]) -> subprocess.Popen:
    """The command as a process of its own. A job in the background ignores Ctrl-C, and so would what it starts."""
    environment = {**os.environ, "PYTHONPATH": str(root), "CUDA_VISIBLE_DEVICES": ""}
    listen = None if sys.platform == "win32" else partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    return subprocess.Popen([sys.executable, "-m", "train.build_t_opt", *arguments], env=environment, cwd=root,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=listen)


def t_opt_of(request) -> tuple:
    time.sleep(0.02)
    return 200, {}, f"optimized instruction: {request.wish}, done"


def kill_and_resume(serve, root, out: Path, kills: int, seed: int, count: int) -> None:
    """SIGKILL at random moments; in the end every record has its own T_opt, once."""
    server, moments = serve(t_opt_of), random.Random(seed)
    for number in range(kills):
        child = start(root, words(server.url, out, count=count))
        enough = len(server.seen) + moments.randint(1, count // (kills + 1))
        while len(server.seen) < enough and child.poll() is None:
            time.sleep(0.005)
        time.sleep(moments.uniform(0, 0.03))
        child.kill()
        child.communicate()
        assert child.returncode == -signal.SIGKILL, f"run {number} ended before it was killed"
    asked = len(server.seen)
    child = start(root, words(server.url, out, count=count))
    said, error = child.communicate()
    assert child.returncode == 0, error
    world, found = open_records("world", count=count), lines(out / "pairs.jsonl")
    assert [line["id"] for line in sorted(found, key=lambda line: wanted(count).index(line["id"]))] == wanted(count)
    assert all(line["optimized"] == f"{line['raw']}, done" for line in found)
    assert all(world[row].instruction == read_pairs(out)[world.ids[row]].raw for row in range(0, count, 7))
    assert not lines(out / "failures.jsonl")
    assert len(server.seen) <= count + 4 * kills and asked > kills  # at most what was under way was asked twice


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
def test_a_build_killed_twice_has_every_pair_once(serve, root, tmp_path):
    kill_and_resume(serve, root, tmp_path, kills=2, seed=0, count=60)


@pytest.mark.slow
def test_a_build_killed_twelve_times_has_every_pair_once(serve, root, tmp_path):
    kill_and_resume(serve, root, tmp_path, kills=12, seed=1, count=400)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows sends Ctrl-C otherwise")
def test_ctrl_c_keeps_what_was_answered_and_does_not_wait_for_the_rest(serve, root, tmp_path):
    server = serve(lambda request: time.sleep(60 if request.number >= 5 else 0) or good(request))
    child = start(root, words(server.url, tmp_path, "--concurrency", "2", count=20))
    pairs = tmp_path / "pairs.jsonl"

    def written() -> int:
        return pairs.read_bytes().count(b"\n") if pairs.exists() else 0

    while child.poll() is None and (len(server.seen) < 7 or written() < 5):
        time.sleep(0.01)
    child.send_signal(signal.SIGINT)
    started = time.monotonic()
    _, error = child.communicate(timeout=30)
    assert child.returncode == 130 and "the same command goes on from there" in error, error
    assert time.monotonic() - started < 10 and len(lines(pairs)) == 5
    server.reply = good
    assert main(words(server.url, tmp_path, count=20)) == 0 and len(lines(pairs)) == 20


def test_a_mistake_in_a_thread_is_raised_and_nothing_hangs(serve, tmp_path, monkeypatch):
    from train import askers

    monkeypatch.setattr(askers, "data_url", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(words(serve(good).url, tmp_path))


@pytest.mark.parametrize(("change", "word"), [
    (["--model", ""], "an endpoint needs --model"), (["--base-url", "ftp://a"], "must begin with http:// or https://"),
    (["--set", "colour=red"], "reader world: got an unexpected keyword argument 'colour'"),
])
def test_a_wrong_command_ends_with_a_sentence(tmp_path, capsys, change, word):
    assert main(words("http://127.0.0.1:1/v1", tmp_path, *change)) == 2
    assert word in capsys.readouterr().err


# Pairs beside records ------------------------------------------------------------------------------------------------


def test_missing_unknown_and_outdated_pairs_are_reported(serve, tmp_path):
    main(words(serve(good).url, tmp_path))
    found = lines(tmp_path / "pairs.jsonl")
    found[0]["raw"] = "another wish"
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in found))
    paired = with_pairs(open_records("world", count=5, first=2), tmp_path / "pairs.jsonl")
    assert paired.notes == [
        f"4 of 5 records have a T_opt in {tmp_path / 'pairs.jsonl'}",
        "1 records have none and are left out, the first is world1-6",
        "2 pairs are for ids that are not among these records, the first is world1-0",
    ]
    whole = with_pairs(open_records("world", count=6), tmp_path)
    assert len(usable(whole, tmp_path / "check")) == 5
    (reject,) = lines(tmp_path / "check" / "rejects.jsonl")
    assert reject["reason"] == "its T_opt was written for another instruction, 'another wish'"
    with pytest.raises(ValueError, match="there is no .*nothing.*write it with python -m train.build_t_opt"):
        read_pairs(tmp_path / "nothing")
    (tmp_path / "bad.jsonl").write_text('{"id": "a", "raw": "b"}\n')
    with pytest.raises(ValueError, match="line 1 is no pair"):
        read_pairs(tmp_path / "bad.jsonl")


def test_a_pair_without_regions_leaves_the_record_its_own(tmp_path):
    world = open_records("world", count=1)
    pair = {"id": world.ids[0], "raw": world[0].instruction, "optimized": "a red cup"}
    for line, regions in ((pair, world[0].regions), ({**pair, "regions": ["background"]}, (Region("background"),))):
        (tmp_path / "pairs.jsonl").write_text(json.dumps(line) + "\n")
        assert with_pairs(world, tmp_path)[0].regions == regions


# Real models ---------------------------------------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def running(command: list[str], port: int, environment: dict, log: Path):
    """A server as a process of its own, from when it is healthy."""
    with open(log, "w") as out:
        child = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env={**os.environ, **environment})
    try:
        deadline = time.monotonic() + 180
        while not healthy(port):
            assert child.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        child.terminate()
        child.wait(20)


def healthy(port: int) -> bool:
    try:
        return urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2).status == 200
    except OSError:
        return False


@pytest.fixture(scope="module")
def transformers_serve(tmp_path_factory):
    """`transformers serve` with a tiny LLaVA that answers one T_opt."""
    for package in ("fastapi", "uvicorn", "openai"):
        pytest.importorskip(package, reason=f"transformers serve needs {package}")
    program = shutil.which("transformers", path=str(Path(sys.executable).parent))
    if program is None:
        pytest.skip("there is no command `transformers` beside this Python")
    spec = importlib.util.spec_from_file_location("tiny_vlm", HERE / "tiny_vlm.py")
    tiny_vlm = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tiny_vlm)
    folder = tmp_path_factory.mktemp("serve")
    answer = ["optimized", "instruction:", "blue", "bird,", "open", "wings\nregion:", "1", "2", "30", "40"]
    model = str(tiny_vlm.save_parrot(folder / "parrot", answer))
    port, offline = free_port(), {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    named = [model] if FIVE else ["--force_model", model]
    command = [program, "serve", *named, "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    with running(command, port, offline, folder / "log.txt") as url:
        yield url, model, folder / "log.txt"


def test_transformers_serve_answers_about_pictures(transformers_serve, tmp_path):
    url, model, log = transformers_serve
    side_by_side = "2" if FIVE else "1"  # 4.57 loads the model twice at once and serves neither
    options = words(url, tmp_path, "--see", "target", "--body", "temperature=null", "--concurrency", side_by_side,
                    count=3)
    options[options.index("teacher")] = model
    assert main(options) == 0, log.read_text()[-3000:]
    found = lines(tmp_path / "pairs.jsonl")
    assert len(found) == 3 and {line["optimized"] for line in found} == {"blue bird, open wings"}
    assert {json.dumps(line["regions"]) for line in found} == {"[[1.0, 2.0, 30.0, 40.0]]"}
    assert {line["model"] for line in found} == {model}


@pytest.mark.skipif(not FIVE, reason="transformers serve 4.57 does not say why an answer ended")
def test_transformers_serve_is_cut_off_where_the_answer_is_too_long(transformers_serve, tmp_path):
    url, model, _ = transformers_serve
    options = words(url, tmp_path, "--max-tokens", "3", count=1)
    options[options.index("teacher")] = model
    assert main(options) == 1
    assert "cut off for its length: optimized instruction: blue" in lines(tmp_path / "failures.jsonl")[0]["reason"]


@pytest.fixture(scope="module")
def asked_of_the_mini(root, tmp_path_factory) -> dict[str, list[dict]]:
    """Pairs for eight unseen scenes: "served" by the mini as an endpoint, and written "here" by the mini itself."""
    pytest.importorskip("fastapi")
    tmp_path = tmp_path_factory.mktemp("mini")
    port = free_port()
    command = [sys.executable, str(HERE / "mini_endpoint.py"), str(port)]
    environment = {"PYTHONPATH": str(root), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    with running(command, port, environment, tmp_path / "log.txt") as url:
        assert main([*words(url, tmp_path / "served", "--template", "mini", "--picture-format", "png", count=8),
                     "--set", f"first={EVALUATION}"]) == 0
    local = ["--reader", "world", "--set", "count=8", "--set", f"first={EVALUATION}", "--local", "mini"]
    assert main([*local, "--out", str(tmp_path / "here")]) == 0
    return {name: sorted(lines(tmp_path / name / "pairs.jsonl"), key=lambda line: line["id"])
            for name in ("served", "here")}


@needs_mini
def test_the_mini_says_the_same_behind_an_endpoint_and_here(asked_of_the_mini):
    served, here = asked_of_the_mini["served"], asked_of_the_mini["here"]
    assert len(here) == 8 and [line["optimized"] for line in here] == [line["optimized"] for line in served]
    assert here[0]["model"].startswith("mini") and served[0]["model"] == "teacher"
    assert here[0]["prompt"] == served[0]["prompt"]  # the same question


@needs_mini
@pytest.mark.skipif(not FIVE, reason="transformers 4.57 gives SigLIP's last state after the norm: the mini is blind")
def test_the_pictures_that_travel_are_read_right(asked_of_the_mini):
    found = [line["optimized"] == sample(int(line["id"].split("-")[1])).optimized
             for line in asked_of_the_mini["served"]]
    assert sum(found) >= 6  # 91 % of single edits are right, measured on 500


def test_a_local_mllm_sees_no_target(tmp_path, capsys):
    local = ["--reader", "world", "--local", "mini", "--out", str(tmp_path), "--see", "target"]
    assert main(local) == 2 and "a local MLLM sees the source alone" in capsys.readouterr().err
