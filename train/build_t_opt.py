"""T_raw -> T_opt for any dataset, asked of any endpoint with OpenAI's chat format or of an MLLM on this machine.

    python -m train.build_t_opt --reader human_edit --set path=HumanEdit/data --set split=train --see target captions \\
        --base-url https://api.openai.com/v1 --model gpt-4o --out runs/t_opt/human_edit
    python -m train.build_t_opt --reader folder --set path=my_edits --local mini --out runs/t_opt/mine

OUT/pairs.jsonl: id, raw, optimized, regions, steps, note, model, prompt (hash), reader, attempt, seconds, time.
OUT/failures.jsonl: the same without an answer, with the reason. Every line is on the disk before it is counted, so a
run that was stopped or killed goes on where it was, with the same command; what failed is asked again by --retry.
The key is read from the environment and sent, and never printed or written.
Exit code: 0 all have a T_opt, 1 some failed, 2 nothing could be asked, 130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mindedit_core.contracts import Interrupted
from mindedit_core.prompts import TEMPLATES, parse_optimized
from train.askers import Asker, EndpointAsker, LocalAsker, Sight, load_designer
from train.chat_endpoint import FORMS, AskFailed, ChatEndpoint, EndpointUnusable
from train.in_threads import in_threads
from train.journal import Journal
from train.pairs_file import FAILURES, PAIRS
from train.readers import READERS, open_records, options_from
from train.readers.cells import from_regions
from train.records import EditRecord, Records, Rejected

IN_A_ROW = 10  # questions without any answer from the endpoint, after which the run stops
THINKING = re.compile(r"<think>.*?</think>", re.DOTALL)


@dataclass(frozen=True)
class Outcome:
    """What came of one question. line: for the pairs, or with a reason, for the failures

    passing: the endpoint failed, not the question;  fatal: why no other question need be asked
    """

    line: dict[str, Any]
    passing: bool = False
    fatal: Exception | None = None


# One question --------------------------------------------------------------------------------------------------------


def attempt(asker: Asker, record: EditRecord | Rejected, facts: dict[str, Any]) -> Outcome:
    """Asks once and reads the answer. facts: what is known of this question before."""
    started = time.monotonic()
    if isinstance(record, Rejected):
        return Outcome({**facts, "reason": str(record)})
    try:
        answer = asker.ask(record)
    except (EndpointUnusable, Interrupted) as error:
        return Outcome(facts, fatal=error)
    except AskFailed as error:
        return Outcome({**facts, "raw": record.instruction, "reason": str(error)}, passing=error.passing)
    except ValueError as error:
        return Outcome({**facts, "raw": record.instruction, "reason": str(error)})
    return read_answer(answer, record, {**facts, "seconds": round(time.monotonic() - started, 3)})


def read_answer(answer: str, record: EditRecord, facts: dict[str, Any]) -> Outcome:
    """The pair in an answer; a failure where it has no T_opt, never the raw instruction in its place."""
    parsed = parse_optimized(THINKING.sub("", answer), record.instruction)
    if not parsed.found:
        return Outcome({**facts, "raw": record.instruction, "reason": parsed.note, "answer": answer[:500]})
    pair = {"raw": record.instruction, "optimized": parsed.text, "regions": from_regions(parsed.regions)}
    return Outcome({**facts, **pair, "steps": list(parsed.steps), "note": parsed.note})


# All of them ---------------------------------------------------------------------------------------------------------


class Build:
    """A folder of pairs, and what is still to be asked.

    Raises ValueError for pairs of another model, prompt or reader in it, unless `mix` allows them.
    """

    def __init__(self, folder: Path, records: Records, asker: Asker, reader: str, mix: bool = False):
        self.records, self.asker = records, asker
        self.first = {name: row for row, name in reversed(list(enumerate(records.ids)))}
        self.facts = {"model": asker.model, "prompt": asker.prompt, "reader": reader}
        self.pairs = Journal(folder / PAIRS)
        self.failures = Journal(folder / FAILURES)
        self.notes = [note for note in (self.pairs.note, self.failures.note, self._others()) if note]
        if (repeated := len(records) - len(self.first)) > 0:
            self.notes.append(f"{repeated} rows repeat the id of another; only the first of each is asked")
        if self._others() and not mix:
            self.close()
            raise ValueError(f"{self._others()}; choose another --out, or say --mix to have both in one file")
        self.done = {line["id"] for line in self.pairs.lines}
        self.failed = Counter(line["id"] for line in self.failures.lines if line["id"] not in self.done)

    def _others(self) -> str:
        """Which pairs were not written by this model with this prompt for this reader; "" if all were."""
        found = Counter(tuple(line.get(name) for name in self.facts) for line in self.pairs.lines)
        found.pop(tuple(self.facts.values()), None)
        if not found:
            return ""
        (model, prompt, reader), count = found.most_common(1)[0]
        mine = f"this is model {self.asker.model}, prompt {self.asker.prompt}, reader {self.facts['reader']}"
        return f"{self.pairs.path} has {count} pairs by model {model}, prompt {prompt}, reader {reader}; {mine}"

    def todo(self, retry: bool = False) -> list[int]:
        """Rows never asked; with retry, rows that failed and have no pair yet. An id is asked once."""
        return [row for name, row in self.first.items() if name not in self.done and (name in self.failed) == retry]

    def job(self, row: int) -> Callable[[], Outcome]:
        """The row is read here, in the main thread; the question is asked where the job is called."""
        name = self.records.ids[row]
        facts = {"id": name, **self.facts, "attempt": 1 + self.failed[name], "time": now()}
        try:
            record: EditRecord | Rejected = self.records[row]
        except Rejected as error:
            record = error
        return lambda: attempt(self.asker, record, facts)

    def keep(self, outcome: Outcome) -> None:
        journal = self.failures if "reason" in outcome.line else self.pairs
        journal.append(outcome.line)

    def run(self, rows: Iterable[int], concurrency: int, stop: threading.Event) -> Counter:
        """Asks and keeps. Returns how many pairs and failures came of it. Raises what makes going on useless."""
        tally: Counter = Counter()

        def take(outcome: Outcome) -> None:
            if outcome.fatal:
                raise outcome.fatal
            self.keep(outcome)
            tally["failures" if "reason" in outcome.line else "pairs"] += 1
            tally["silent"] = tally["silent"] + 1 if outcome.passing else 0
            if tally["silent"] >= IN_A_ROW:
                said = outcome.line["reason"]
                raise EndpointUnusable(f"{tally['silent']} questions in a row had no answer; the last: {said}")

        in_threads(map(self.job, rows), take, concurrency, stop)
        return tally

    def close(self) -> None:
        self.pairs.close()
        self.failures.close()


def now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


# The command line ----------------------------------------------------------------------------------------------------


def arguments(words: Iterable[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--reader", required=True, choices=sorted(READERS))
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="an option of the reader")
    add("--out", type=Path, required=True, help=f"folder of {PAIRS} and {FAILURES}")
    who = parser.add_mutually_exclusive_group(required=True)
    who.add_argument("--base-url", help="of the endpoint, up to and with /v1")
    who.add_argument("--local", metavar="NAME", help="mini, a folder with a system.json, or LLaVA-OneVision's folder")
    add("--model", help="the endpoint's name of the model")
    add("--key-env", default="OPENAI_API_KEY", help="environment variable with the key (default: %(default)s)")
    add("--see", nargs="*", choices=("target", "captions"), default=[], help="what is shown beside source and T_raw")
    add("--template", choices=sorted(TEMPLATES), default="mind_edit", help="the prompt (default: %(default)s)")
    add("--picture-format", choices=sorted(FORMS), default="jpeg", help="how pictures travel (default: %(default)s)")
    add("--max-side", type=int, default=1024, help="longest side of a picture sent, in pixels (default: %(default)s)")
    add("--max-tokens", type=int, default=300, help="longest answer (default: %(default)s)")
    add("--body", action="append", default=[], metavar="KEY=VALUE", help="an entry of the request; null takes one out")
    add("--concurrency", type=int, default=4, help="questions at a time (default: %(default)s)")
    add("--timeout", type=float, default=120.0, help="seconds of silence before a request is given up")
    add("--tries", type=int, default=6, help="requests for one question, with growing waits between (default: 6)")
    add("--limit", type=int, help="ask so many and stop")
    add("--retry", action="store_true", help="ask what failed, and nothing else")
    add("--mix", action="store_true", help="go on in a file of another model, prompt or reader")
    return parser.parse_args(words)


def make_asker(options: argparse.Namespace, stop: threading.Event) -> Asker:
    if options.local:
        if options.see or options.model:
            raise ValueError("a local MLLM sees the source alone and is its own model; leave --see and --model out")
        return LocalAsker(load_designer(options.local), options.max_tokens, stop)
    if not options.model:
        raise ValueError("an endpoint needs --model, the name by which it knows the model")
    body = {"temperature": 0, "max_tokens": options.max_tokens, **options_from(options.body)}
    endpoint = ChatEndpoint(options.base_url, options.model, os.environ.get(options.key_env),
                            timeout=options.timeout, tries=options.tries, body=body, stop=stop)
    sight = Sight(options.template, "target" in options.see, "captions" in options.see, options.picture_format,
                  options.max_side)
    return EndpointAsker(endpoint, sight)


def build(options: argparse.Namespace) -> int:
    stop = threading.Event()
    records = open_records(options.reader, **options_from(options.set))
    work = Build(options.out, records, make_asker(options, stop), options.reader, options.mix)
    rows = work.todo(options.retry)[: options.limit]
    for note in work.notes:
        print(f"note: {note}")
    left = f"; {len(work.failed)} failed before, --retry asks them" if work.failed and not options.retry else ""
    print(f"{len(records)} records, {len(work.done)} have a T_opt, {len(rows)} are asked now{left}", flush=True)
    try:
        with tqdm(rows, unit="question", disable=None) as bar:
            tally = work.run(bar, 1 if options.local else options.concurrency, stop)
    finally:
        work.close()
    failed = len({line["id"] for line in work.failures.lines} - {line["id"] for line in work.pairs.lines})
    print(f"{tally['pairs']} new pairs, {tally['failures']} failures -> {options.out}"
          + (f"; {failed} have no T_opt, see {FAILURES}" if failed else ""))
    return int(bool(failed))


def main(words: Iterable[str] | None = None) -> int:
    options = arguments(words)
    again = "what was answered is kept: the same command goes on from there"
    try:
        return build(options)
    except (KeyboardInterrupt, Interrupted):
        print(f"build_t_opt: interrupted; {again}", file=sys.stderr)
        return 130
    except EndpointUnusable as error:
        print(f"build_t_opt: error: {error}\n{again}", file=sys.stderr)
        return 2
    except (ValueError, OSError) as error:
        print(f"build_t_opt: error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
