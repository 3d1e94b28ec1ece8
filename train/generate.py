"""Paints the pictures of a benchmark with a system, under the names that the benchmark's own scorer reads.

    python -m train.generate --benchmark imgedit --data ImgEdit/Benchmark --system mini --out runs/imgedit/mini
    python -m train.generate --benchmark gedit --data GEdit-Bench --language en --system mini --out runs/gedit/mini \\
        --blueprints blueprints.jsonl --set steps=20

imgedit (ImgEdit-Bench): basic_edit.json, {key: {id, prompt, edit_type}}, with its pictures at id beside it or in
    singleturn/ there; or a .jsonl of id, image_path, prompt. -> OUT/{key}.png
gedit (GEdit-Bench): a folder that `datasets` saved, parquet, or a .jsonl with image_path in the place of input_image.
    -> OUT/{system}/fullset/{task_type}/{language}/{key}.png, and {key}_SRCIMG.png: what was edited

--blueprints: lines of id (or key) and prompt, a blueprint that takes the place of the designer. A prompt of the
benchmark that is a blueprint itself does so too.
OUT/run.json: what was painted with what, how many, in how many seconds. OUT/failures.jsonl: what failed, when and why.
A folder of a run with other samples, weights or settings is refused.
Every picture is there whole or not at all, so a run that was stopped or killed goes on with the same command, which
tries again what failed. Exit code: 0 all are painted, 1 some failed, 2 nothing could be painted, 130 interrupted.
"""

from __future__ import annotations

import argparse
import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from mindedit_core.contracts import Interrupted, PaintSettings, require_fit
from mindedit_core.designers.transport import EndpointUnusable
from mindedit_core.systems import SYSTEMS, load_system, usual_device
from train.benchmarks import BENCHMARKS, Sample, first_of_each
from train.config import changed
from train.painted_run import AGAIN, FAILURES, RUN, Run, digest, now
from train.written_blueprints import notes_on_blueprints, read_blueprints, with_blueprints

LANGUAGES = ("en", "cn")
SECRET = re.compile(
    r"(?i)(?<=key=)\S+|(?<=token=)\S+|(?<=secret=)\S+|(?<=password=)\S+|\b(?:sk-|hf_)[\w-]{8,}|(?<=://)[^/@\s]+(?=@)"
)


# The command line ----------------------------------------------------------------------------------------------------


def arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--benchmark", required=True, choices=sorted(BENCHMARKS))
    add("--data", type=Path, required=True, help="the benchmark's folder or file")
    add("--system", required=True, help=f"{', '.join(SYSTEMS)}, or the folder of one")
    add("--out", type=Path, required=True, help=f"folder of the pictures, {RUN} and {FAILURES}")
    add("--blueprints", type=Path, metavar="FILE", help="a .jsonl of blueprints that take the designer's place")
    add("--language", choices=LANGUAGES, default="en", help="of GEdit-Bench's instructions (default: %(default)s)")
    add("--n", type=int, help="the first so many samples; all, if this is left out")
    add("--device", default=usual_device(), help="of torch, e.g. cuda:1 or cpu (default: a GPU if there is one)")
    add("--seed", type=int, help="of the noise, the same for every picture (default: the system's)")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="change one of the system's paint settings")
    options = parser.parse_args(words)
    if options.n is not None and options.n < 1:
        parser.error(f"--n must be 1 or more, got {options.n}")
    return options


def read_samples(options: argparse.Namespace, model: str) -> tuple[list[Sample], list[str]]:
    """All samples with their blueprints, and notes."""
    samples, notes = BENCHMARKS[options.benchmark](options.data, language=options.language, model=model)
    samples, repeated = first_of_each(samples)
    if options.blueprints:
        samples = with_blueprints(samples, read_blueprints(options.blueprints, options.language))
    elif designed := sum(sample.blueprint is not None for sample in samples):
        notes = [*notes, f"{designed} prompts of {options.data} are blueprints: they take the designer's place"]
    return samples, [*notes, *repeated]


def settings_of(system: Any, seed: int | None, said: Sequence[str]) -> PaintSettings:
    """The system's own for a picture without a mask, changed by what was said."""
    if other := [word for word in said if word.partition("=")[0].strip() in ("seed", "mask")]:
        raise ValueError(f"--set takes neither seed nor mask, got {other[0]!r}; --seed says the seed, and no benchmark "
                         "has masks")
    own = system.settings_for(None)
    return changed(own if seed is None else own.but(seed=seed), said)


def facts_of(options: argparse.Namespace, system: Any, settings: PaintSettings, samples: Sequence[Sample]) -> dict:
    """What must be the same, for a run to go on. The provenance leaves out the weights' configs."""
    provenance = {file: {name: value for name, value in said.items() if name != "config"}
                  for file, said in system.provenance.items()}
    names = [each.name for each in fields(settings) if each.name not in ("seed", "mask")]
    return {
        "benchmark": options.benchmark,
        "language": options.language,
        "samples": digest([(sample.name, sample.wish) for sample in samples]),
        "system": options.system if options.system in SYSTEMS else str(Path(options.system).resolve()),
        "designer": "file" if options.blueprints else designer_of(system),
        "mllm": system.mllm.mllm_id,
        "seed": settings.seed,
        "settings": {name: getattr(settings, name) for name in names},
        "provenance": provenance,
    }


def designer_of(system: Any) -> str:
    """Its class, and a hash of all that shapes its answers."""
    identity = getattr(system.designer, "identity", None)
    return type(system.designer).__name__ + (f" {digest(identity)}" if identity else "")


def command(words: Sequence[str]) -> str:
    """The command line, without what looks like a secret.

    >>> command(["--data", "https://me:pass@host/a b", "--set", "api_key=abc", "hf_abcdefgh12"])
    "python -m train.generate --data 'https://[secret]@host/a b' --set 'api_key=[secret]' '[secret]'"
    """
    return shlex.join(["python", "-m", "train.generate", *(SECRET.sub("[secret]", word) for word in words)])


def generate(options: argparse.Namespace, said: str) -> int:
    model = options.system if options.system in SYSTEMS else Path(options.system).resolve().name
    samples, notes = read_samples(options, model)
    chosen = samples[:options.n]
    system = load_system(options.system).to(options.device)
    require_fit(system.mllm, system.bridge, system.painter)
    settings = settings_of(system, options.seed, options.set)
    about = {"data": str(options.data), "n": options.n, "command": said}
    run = Run(options.out, chosen, facts_of(options, system, settings, samples), about)
    for note in [*notes, *notes_on_blueprints(chosen), *filter(None, [run.failures.note])]:
        print(f"note: {note}", flush=True)
    try:
        run.paint(system, settings)
        run.write(finished=now())
    finally:
        run.close()
    failed = f"; {run.counts['failed']} failed, see {FAILURES}" if run.counts["failed"] else ""
    print(f"{run.counts['painted']} of {len(chosen)} samples are painted, {run.seconds:.1f} s in all{failed} "
          f"-> {options.out}")
    return int(bool(failed))


def main(words: Sequence[str] | None = None) -> int:
    options = arguments(words)
    try:
        return generate(options, command(sys.argv[1:] if words is None else words))
    except (KeyboardInterrupt, Interrupted):
        print(f"generate: interrupted; {AGAIN}", file=sys.stderr)
        return 130
    except EndpointUnusable as error:
        print(f"generate: error: {error}\n{AGAIN}", file=sys.stderr)
        return 2
    except (ValueError, OSError) as error:
        print(f"generate: error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
