"""How fast the embedded voice is: against the graph as shipped, and against peers on its weights.

    python bench/voice.py                        # rewritten graph against shipped, first audio
    python bench/voice.py --first-audio 30       # more starts for a steadier median
    python bench/voice.py --peers                # and kokoro-onnx, fastkokoro (into bench/out/)
    python bench/voice.py --peer-python PATH     # peers of an environment that is there already

Everything that is compared takes turns line by line in one run, so that a busy machine is busy for
all; read the ratios first. Peers run offline, in processes and in an environment of their own.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.metadata
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from collections import defaultdict
from pathlib import Path

# A peer's interpreter runs this file too: nothing of ours may be imported up here.

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "bench" / "out"
PEERS = {"kokoro-onnx": ("kokoro-onnx",), "fastkokoro": ("fastkokoro[cpu]",)}
RATE_HZ = 24_000

ENGLISH = [
    "The weekly sync began on time, with twelve people in the room and four on the phone.",
    "Maya will send the revised budget to finance before Friday, and copy the whole team.",
    "Signups rose by a third after the new checkout page went live on Monday.",
    "We agreed to postpone the launch; marketing needs two weeks, and legal wants another look.",
    "Could someone please own the migration plan?",
    "The next meeting is on Tuesday afternoon, in the large conference room upstairs.",
    "Nobody objected to the proposal, so the draft becomes the plan of record from today.",
    "Thanks everyone, the recording and the notes will be in the shared folder tonight.",
]
CHINESE = [
    "本次周会准时开始，共有十二人参加，另有四人通过电话加入。",
    "大家同意推迟发布，因为市场部还需要两周，法务也没有签字。",
    "下次会议定在星期二下午三点，地点是三楼的上海会议室。",
    "谢谢各位，会议录音和纪要今晚会放到共享文件夹里。",
]


def main() -> None:
    args = arguments()
    if args.worker:
        work(args.worker, args.model, args.voices, args.threads)
        return
    sys.path.insert(0, str(ROOT))
    report = {"machine": machine(args.threads)}
    report["graph"] = graph_against_shipped(args.threads, args.rounds)
    report["first audio"] = first_audio(args.threads, args.first_audio)
    python = args.peer_python or (peer_environment() if args.peers else None)
    if python:
        report["peers"] = against_peers(python, args.threads, args.rounds)
    report["machine"]["load at the end"] = round(os.getloadavg()[0], 2)
    if args.json:
        print(json.dumps(report, indent=1))
    else:
        show(report)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=2, help="times each line is spoken (2)")
    parser.add_argument("--first-audio", type=int, default=8, help="starts per voice (8)")
    parser.add_argument("--threads", type=int, default=2, help="threads for everybody (2)")
    parser.add_argument("--peers", action="store_true", help="install peers into bench/out/peers")
    parser.add_argument("--peer-python", type=Path, help="interpreter that has the peers")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--worker", choices=PEERS, help=argparse.SUPPRESS)
    parser.add_argument("--model", help=argparse.SUPPRESS)
    parser.add_argument("--voices", help=argparse.SUPPRESS)
    return parser.parse_args()


# ours -------------------------------------------------------------------------------------------


def graph_against_shipped(threads: int, rounds: int) -> dict:
    """Real-time factors of the same tokens through both graphs, sentence by sentence."""
    import numpy as np
    import onnx

    from engine.backends.kokoro import Kokoro, model
    from engine.backends.kokoro.durations import natural_frames
    from engine.backends.kokoro.job import prepared
    from engine.backends.kokoro.prepare import prepared_graphs
    from engine.backends.kokoro.stages import Stages, open_session
    from engine.backends.kokoro.voices import DEFAULTS, VoicePack
    from engine.base import SpeechRequest, Turn

    backend, pack = Kokoro(threads=threads), VoicePack()
    stages = Stages(prepared_graphs(cache_dir(), threads=threads), threads=threads)
    shipped = open_session(
        onnx.load_from_string(model.model_bytes()).SerializeToString(), threads=threads
    )

    def rewritten(tokens: tuple[int, ...], style: np.ndarray) -> int:
        draft = stages.plan(tokens, style)
        return len(stages.voice(stages.score(draft, natural_frames(draft.raw))))

    def as_shipped(tokens: tuple[int, ...], style: np.ndarray) -> int:
        feeds = {
            "tokens": np.array([[0, *tokens, 0]], np.int64),
            "style": style,
            "speed": np.ones(1, np.float32),
        }
        return len(shipped.run([model.AUDIO], feeds)[0])

    sentences = []
    for lang, texts in (("en", ENGLISH), ("zh", CHINESE)):
        for text in texts:
            (sentence,) = backend.plan(SpeechRequest((Turn(text, DEFAULTS[lang]),))).sentences
            (line,) = prepared(sentence).lines
            sentences.append((line.tokens, pack.style(DEFAULTS[lang], len(line.tokens))))
    rtf: dict[str, list[float]] = defaultdict(list)
    ways = {"rewritten": rewritten, "shipped": as_shipped}
    for number in range(rounds + 1):
        for tokens, style in sentences:
            for name, way in ways.items():
                started = time.perf_counter()
                samples = way(tokens, style)
                if number:  # the first round warms up
                    rtf[name].append((time.perf_counter() - started) * RATE_HZ / samples)
    ratios = [b / a for a, b in zip(rtf["rewritten"], rtf["shipped"], strict=True)]
    return {
        "shipped / rewritten": spread(ratios),
        "rewritten RTF": spread(rtf["rewritten"]),
        "shipped RTF": spread(rtf["shipped"]),
    }


def first_audio(threads: int, starts: int) -> dict:
    """Milliseconds from a live request to its first sound, through the engine, one at a time."""
    from engine.backends.kokoro import Kokoro
    from engine.base import SpeechRequest, Turn
    from engine.engine import Engine

    voices = {
        "hibari, English": ("", ENGLISH),
        "Kokoro, English": ("af_heart", ENGLISH),
        "Kokoro, Chinese": ("", CHINESE),
    }
    first: dict[str, list[float]] = defaultdict(list)
    rtf: dict[str, list[float]] = defaultdict(list)
    with Engine(Kokoro(cache_dir=cache_dir(), threads=threads)) as engine:
        engine.warm(["en", "zh"])
        for number in range(starts + 1):
            for name, (voice, texts) in voices.items():
                turn = Turn(texts[number % len(texts)], voice)
                started = time.perf_counter()
                sound_at, samples = None, 0
                for chunk in engine.speak(SpeechRequest((turn,), live=True)):
                    sound_at = sound_at or time.perf_counter()
                    samples += len(chunk.pcm) if chunk.kept else 0
                if number:
                    first[name].append((sound_at - started) * 1000)
                    rtf[name].append((time.perf_counter() - started) * RATE_HZ / samples)
    result = {f"{name}, ms": spread(values) for name, values in first.items()}
    result["hibari RTF, whole sentence"] = spread(rtf["hibari, English"])
    return result


# peers ------------------------------------------------------------------------------------------


def against_peers(python: Path, threads: int, rounds: int) -> dict:
    """Whole lines and first sound of a stream, ours and theirs in turns, voice af_heart."""
    from engine.backends.kokoro import Kokoro
    from engine.engine import Engine

    with tempfile.TemporaryDirectory() as folder:
        workers = {name: Worker(python, name, Path(folder), threads) for name in PEERS}
        with Engine(Kokoro(cache_dir=cache_dir(), threads=threads)) as engine:
            whole, first = taking_turns(engine, workers, rounds)
        labels = {name: f"{name} {worker.version}" for name, worker in workers.items()}
        for worker in workers.values():
            worker.close()
    result: dict = {}
    for name, label in labels.items():
        result[f"{label} / ours, RTF"] = ratios(whole[name], whole["ours"])
        result[f"{label} / ours, first audio"] = ratios(first[name], first["ours"])
    for name in ("ours", *PEERS):
        result[f"{name} RTF"] = spread(whole[name])
        result[f"{name} first audio, ms"] = spread(first[name])
    return result


def taking_turns(engine, workers: dict[str, Worker], rounds: int) -> tuple[dict, dict]:
    """RTF of whole lines and milliseconds to the first sound, by name."""
    whole: dict[str, list[float]] = defaultdict(list)
    first: dict[str, list[float]] = defaultdict(list)
    lines = [ENGLISH[0], *ENGLISH * rounds]  # the first one warms up
    for number, (text, live) in enumerate(itertools.product(lines, (False, True))):
        answers = {"ours": ours(engine, text, live)}
        answers |= {name: worker.ask(text, live) for name, worker in workers.items()}
        for name, answer in answers.items():
            if number > 1 and live:
                first[name].append(answer["first"] * 1000)
            elif number > 1:
                whole[name].append(answer["total"] * RATE_HZ / answer["samples"])
    return whole, first


def ours(engine, text: str, live: bool) -> dict:
    """One line in our engine, with the voice that the peers have too."""
    from engine.base import SpeechRequest, Turn

    started = time.perf_counter()
    sound_at, samples = None, 0
    for chunk in engine.speak(SpeechRequest((Turn(text, "af_heart"),), live=live)):
        sound_at = sound_at or time.perf_counter() - started
        samples += len(chunk.pcm) if chunk.kept else 0
    return {"first": sound_at, "total": time.perf_counter() - started, "samples": samples}


class Worker:
    """A peer in its own process: a JSON line in, a JSON line out."""

    def __init__(
        self, python: Path, name: str, folder: Path, threads: int, **environment: str
    ) -> None:
        model, voices = folder / "kokoro.onnx", folder / f"{name}.npz"
        write_assets(model, voices)
        command = [str(python), __file__, "--worker", name, "--model", str(model)]
        command += ["--voices", str(voices), "--threads", str(threads)]
        offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | offline | environment,
        )
        self.version = self._answer()["version"]

    def ask(self, text: str, live: bool) -> dict:
        assert self._process.stdin is not None
        print(json.dumps({"text": text, "live": live}), file=self._process.stdin, flush=True)
        return self._answer()

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(30)
        self._process.stdout.close()

    def _answer(self) -> dict:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("a peer did not start; its message stands above")
        return json.loads(line)


def write_assets(model: Path, voices: Path) -> None:
    """The same weights and the same voice, in the files the peers read."""
    import numpy as np

    from engine.backends.kokoro.model import model_bytes
    from engine.backends.kokoro.voices import VoicePack

    model.write_bytes(model_bytes())
    np.savez(voices, af_heart=VoicePack().table("af_heart").reshape(510, 1, 256))


def peer_environment() -> Path:
    """An environment for the peers; ours stays as it is."""
    folder = OUT / "peers"
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
    packages = [package for group in PEERS.values() for package in group]
    subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True)
    return python


def work(name: str, model: str, voices: str, threads: int) -> None:
    """Inside a peer's interpreter."""
    speak = {"kokoro-onnx": kokoro_onnx, "fastkokoro": fastkokoro}[name](model, voices, threads)
    print(json.dumps({"version": importlib.metadata.version(name)}), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        started = time.perf_counter()
        sound_at, samples = None, 0
        for count in speak(asked["text"], asked["live"]):
            sound_at = sound_at or time.perf_counter() - started
            samples += count
        answer = {"first": sound_at, "total": time.perf_counter() - started, "samples": samples}
        print(json.dumps(answer), flush=True)


def kokoro_onnx(model: str, voices: str, threads: int):
    import onnxruntime
    from kokoro_onnx import Kokoro

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    kokoro = Kokoro.from_session(session, voices)

    def speak(text: str, live: bool):
        if not live:
            yield len(kokoro.create(text, voice="af_heart", lang="en-us")[0])
            return
        stream = kokoro.create_stream(text, voice="af_heart", lang="en-us")
        yield from (len(audio) for audio, _ in drained(stream))

    return speak


def fastkokoro(model: str, voices: str, threads: int):
    os.environ |= {
        "FASTKOKORO_MODEL_PATH": model,
        "FASTKOKORO_VOICES_PATH": voices,
        "FASTKOKORO_DEFAULT_VOICE": "af_heart",
        "FASTKOKORO_ONNX_INTRA_OP_NUM_THREADS": str(threads),
    }
    from fastkokoro.config import Settings
    from fastkokoro.engine import FastKokoro

    engine = FastKokoro(Settings.from_env())

    def speak(text: str, live: bool):
        asked = {"voice": "af_heart", "lang": "en-us", "response_format": "pcm"}
        if not live:
            yield len(engine.create(text, **asked)) // 2
            return
        yield from (len(part) // 2 for part in drained(engine.create_stream(text, **asked)))

    return speak


def drained(stream):
    """An async iterator as a plain one, each item as soon as it is there."""
    loop = asyncio.new_event_loop()
    try:
        while True:
            yield loop.run_until_complete(anext(stream))
    except StopAsyncIteration:
        return
    finally:
        loop.close()


# report -----------------------------------------------------------------------------------------


def machine(threads: int) -> dict:
    versions = {name: importlib.metadata.version(name) for name in ("onnxruntime", "hibari-tts")}
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = dict(line.split(":", 1) for line in info.read_text().splitlines() if ":" in line)
        named = {key.strip(): value.strip() for key, value in lines.items()}
        cpu = named.get("model name", cpu) + (" VNNI" if "vnni" in named.get("flags", "") else "")
    return {
        "cpu": f"{cpu}, {os.cpu_count()} cores, {threads} threads used",
        "python": platform.python_version(),
        **versions,
        "load at the start": round(os.getloadavg()[0], 2),
    }


def spread(values: list[float]) -> dict[str, float]:
    ordered = sorted(values)
    return {
        "n": len(ordered),
        "min": ordered[0],
        "median": statistics.median(ordered),
        "p90": ordered[min(len(ordered) - 1, round(0.9 * len(ordered)))],
        "max": ordered[-1],
    }


def ratios(theirs: list[float], ours: list[float]) -> dict[str, float]:
    return spread([a / b for a, b in zip(theirs, ours, strict=True)])


def cache_dir() -> Path:
    return Path.home() / ".cache" / "notecast"


def show(report: dict) -> None:
    for name, value in report["machine"].items():
        print(f"{name:20} {value}")
    for title in ("graph", "first audio", "peers"):
        rows = report.get(title, {})
        if rows:
            print(f"\n{title:42}{'n':>5}{'min':>9}{'median':>9}{'p90':>9}{'max':>9}")
        for name, row in rows.items():
            digits = 0 if name.endswith("ms") else 3
            numbers = "".join(f"{row[k]:9.{digits}f}" for k in ("min", "median", "p90", "max"))
            print(f"{name:42}{row['n']:5}{numbers}")


if __name__ == "__main__":
    main()
