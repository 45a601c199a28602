"""IndexTTS-2 with random weights: what each stage costs, and how many listeners a machine carries.

    python -m bench.indextts2 [--size tiny|full] [--device cpu|cuda] [--streams 1,4,8] [--json FILE]

Random weights have the shapes of real ones and never stop, so every sentence is as long as its
guard allows. On a CPU only the tiny release says anything useful. Where the reference
implementation is installed (package `indextts`), it speaks with the same weights in a process of
its own, and its real-time factor stands beside ours.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import wave
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

try:
    import torch
except ModuleNotFoundError:
    sys.exit("this benchmark needs torch: pip install 'notecast[indextts2]'")

from engine.backends.indextts2 import cfm, release, tiny, vocoder
from engine.backends.indextts2.cfm import STEPS, Window, bucket
from engine.backends.indextts2.config import HOP, SAMPLE_RATE_HZ
from engine.backends.indextts2.decode import Decoder, Reading
from engine.backends.indextts2.graphs import StaticCalls
from engine.backends.indextts2.model import Model, Placement
from engine.backends.indextts2.render import Plan
from engine.backends.indextts2.sampling import Sampling
from engine.backends.indextts2.serve import Stream, Synthesiser, Task
from engine.backends.indextts2.sizes import FULL, TINY
from engine.backends.indextts2.voice import VoiceCache, VoiceFeatures

PIECES = 10
UNDERRUN_S = 0.1
REFERENCE_CODES = 300
# what the reference loads from its own cache of the hub, by name in our release
HUB = {
    "facebook/w2v-bert-2.0": {
        "w2v_config": "config.json",
        "w2v_features": "preprocessor_config.json",
        "w2v": "model.safetensors",
    },
    "amphion/MaskGCT": {"codec": "semantic_codec/model.safetensors"},
    "funasr/campplus": {"campplus": "campplus_cn_common.bin"},
    "nvidia/bigvgan_v2_22khz_80band_256x": {
        "vocoder_config": "config.json",
        "vocoder": "bigvgan_generator.pt",
    },
}
REFERENCE = """
import sys, time, wave
from indextts.infer_v2 import IndexTTS2
folder, clip, text, out, codes, beams = sys.argv[1:]
tts = IndexTTS2(cfg_path=folder + "/config.yaml", model_dir=folder)
for _ in range(2):  # the second call counts: kernels are chosen, the voice is known
    began = time.perf_counter()
    tts.infer(spk_audio_prompt=clip, text=text, output_path=out,
              max_mel_tokens=int(codes), num_beams=int(beams))
    spent = time.perf_counter() - began
with wave.open(out) as file:
    print("rtf", spent / (file.getnframes() / file.getframerate()))
"""


@dataclass(frozen=True)
class Row:
    """One line of the result."""

    what: str
    value: float
    unit: str


class Bench:
    def __init__(self, model: Model, voice: VoiceFeatures, *, steps: int) -> None:
        self.model, self.voice, self.steps = model, voice, steps

    def decode(self, batches: list[int], codes: int = 30) -> Iterator[Row]:
        """Codes per second of all readings together."""
        ids = list(range(5, 5 + PIECES))
        with torch.inference_mode():
            prefix = self.model.gpt.prefix(self.voice.latents, self.voice.own_emotion, ids)
        for batch in batches:
            decoder = Decoder(self.model, slots=batch, exact=False, calls=self._calls())
            decoder.warm()
            readings = [Reading(prefix, PIECES, Sampling(), seed) for seed in range(batch)]
            for reading in readings:
                decoder.start(reading)
            decoder.step(readings)
            seconds = self._time(lambda d=decoder, r=readings: d.step(r), codes)
            yield Row(f"decode, batch {batch}", batch / seconds, "codes/s")

    def flow(self, rows: list[int], frames: list[int]) -> Iterator[Row]:
        """One guided Euler step of several windows in a call."""
        calls = self._calls()
        if calls is not None:
            self.model.solver.warm(calls, rows=max(rows))
        for size in frames:
            for count in rows:
                windows = [self._window(size) for _ in range(count)]

                def step(windows: list[Window] = windows, size: int = size) -> None:
                    for window in windows:
                        window.step = 0
                    self.model.solver.advance(windows, frames=bucket(size), calls=calls)

                seconds = self._time(step, 5)
                yield Row(f"flow step, {count} x {size} frames", seconds * 1000, "ms")

    def vocoder(self, rows: list[int], frames: list[int]) -> Iterator[Row]:
        """Strips of several streams in a call."""
        calls = self._calls()
        if calls is not None:
            self.model.vocoder.warm(calls, rows=max(rows))
        for size in frames:
            for count in rows:
                mel = [torch.randn(80, size, device=self.model.device) for _ in range(count)]
                seconds = self._time(lambda m=mel: self.model.vocoder.render(m, calls), 5)
                what = f"vocoder, {count} x {size} frames"
                yield Row(what, seconds * 1000, "ms")
                yield Row(what, count * size * HOP / SAMPLE_RATE_HZ / seconds, "x real time")

    def _calls(self) -> StaticCalls | None:
        return StaticCalls("cuda") if self.model.device.type == "cuda" else None

    def single(self) -> Iterator[Row]:
        """One sentence, nobody else: real-time factor, the better of two."""
        for live in (False, True):
            factors = []
            for _ in range(2):
                began, heard = self._serve([self._stream(0, live=live)], slots=1)
                sound_s = sum(samples for _, samples in heard[0]) / SAMPLE_RATE_HZ
                factors.append((heard[0][-1][0] - began) / sound_s)
            yield Row(f"single stream, {'live' if live else 'whole'}", min(factors), "RTF")

    def listeners(self, counts: list[int]) -> Iterator[Row]:
        """All ask in the same second: time to first audio, and who hears a gap."""
        for count in counts:
            random = np.random.default_rng(0)
            arrivals = sorted(random.uniform(0, 1, count).tolist()) if count > 1 else [0.0]
            streams = [self._stream(seed, live=True) for seed in range(count)]
            began, heard = self._serve(streams, slots=count, arrivals=arrivals)
            first = [h[0][0] - began - at for h, at in zip(heard, arrivals, strict=True)]
            fine = sum(_worst_underrun_s(h) <= UNDERRUN_S for h in heard)
            for share in (50, 95, 99):
                value = float(np.percentile(first, share)) * 1000
                yield Row(f"{count} streams, first audio p{share}", value, "ms")
            yield Row(f"{count} streams, C100", 100 * fine / count, "%")

    def memory(self) -> Iterator[Row]:
        if self.model.device.type == "cuda":
            yield Row("GPU memory, peak", torch.cuda.max_memory_allocated() / 2**30, "GiB")
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        yield Row("process memory, peak", peak / 2**20, "GiB")

    def _serve(
        self, streams: list[Stream], *, slots: int, arrivals: list[float] | None = None
    ) -> tuple[float, list[list[tuple[float, int]]]]:
        """Serve until all are done; when each piece of sound came, and its samples."""
        synthesiser = Synthesiser(self.model, slots=slots)
        synthesiser.warm()
        heard: list[list[tuple[float, int]]] = [[] for _ in streams]
        arrivals = arrivals or [0.0] * len(streams)
        began = time.perf_counter()
        while not all(s.is_done for s in streams):
            now = time.perf_counter() - began
            here = [
                s for s, at in zip(streams, arrivals, strict=True) if at <= now and not s.is_done
            ]
            if not here:
                time.sleep(0.001)
                continue
            here.sort(key=lambda s: s.runway_s(time.monotonic()))
            synthesiser.tick(here)
            self._wait()
            for stream, out in zip(streams, heard, strict=True):
                while stream.out:
                    out.append((time.perf_counter(), len(stream.out.popleft().wave)))
        return began, heard

    def _stream(self, seed: int, *, live: bool) -> Stream:
        ids = np.random.default_rng(seed).integers(3, 50, PIECES).tolist()
        plan = Plan(
            live=live, steps=self.steps, first_steps=max(1, self.steps // 2) if live else self.steps
        )
        tasks = iter([Task(0, tuple(ids), self.voice, self.voice.own_emotion, plan)])
        return Stream(lambda: next(tasks, None), seed=seed, live=live)

    @torch.inference_mode()
    def _window(self, frames: int) -> Window:
        device, prompt = self.model.device, min(215, frames // 2)
        return Window(
            self.model.dit,
            prompt=torch.randn(80, prompt, device=device),
            condition=torch.randn(frames, self.model.config.s2mel.content, device=device),
            style=self.voice.style,
            noise=torch.randn(80, frames - prompt, device=device),
            steps=self.steps,
        )

    @torch.inference_mode()
    def _time(self, call: Callable[[], object], times: int) -> float:
        """Seconds per call, after one that does not count."""
        call()
        self._wait()
        began = time.perf_counter()
        for _ in range(times):
            call()
        self._wait()
        return (time.perf_counter() - began) / times

    def _wait(self) -> None:
        if self.model.device.type == "cuda":
            torch.cuda.synchronize()


def _worst_underrun_s(heard: list[tuple[float, int]]) -> float:
    """How long a listener who plays at once waits in the middle, at worst."""
    start, played, worst = heard[0][0], 0.0, 0.0
    for at, samples in heard:
        late = at - (start + played)
        if late > 0:
            worst = max(worst, late)
            start += late
        played += samples / SAMPLE_RATE_HZ
    return worst


def reference(folder: Path, clip: Path, ours: float) -> Iterator[Row]:
    """Real-time factor of the reference implementation on the same weights, and ours against it.

    Args:
        folder: the release.
        clip: WAV file of the voice.
        ours: RTF of a whole sentence.
    """
    if importlib.util.find_spec("indextts") is None:
        print("reference: not measured, the package indextts is not installed")
        return
    for beams in (1, 3):
        command = [sys.executable, "-c", REFERENCE, str(folder), str(clip)]
        out = folder / "reference.wav"
        command += ["the quick brown fox jumps", str(out), str(REFERENCE_CODES), str(beams)]
        env = os.environ | {"HF_HUB_CACHE": str(hub_cache(folder)), "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
        found = [line for line in done.stdout.splitlines() if line.startswith("rtf ")]
        if done.returncode or not found:
            why = (done.stderr.strip().splitlines() or ["it says nothing"])[-1]
            print(f"reference, {beams} beams: not measured, it failed: {why}")
            continue
        theirs = float(found[-1].split()[1])
        yield Row(f"reference, {beams} beams, whole", theirs, "RTF")
        yield Row(f"reference, {beams} beams, over ours", theirs / ours, "times")


def hub_cache(folder: Path) -> Path:
    """The release's parts of other publishers as libraries of the hub look for them offline."""
    cache, revision = folder / "hub", "0" * 40
    for repository, files in HUB.items():
        home = cache / f"models--{repository.replace('/', '--')}"
        for name, path in files.items():
            link = home / "snapshots" / revision / path
            link.parent.mkdir(parents=True, exist_ok=True)
            if not link.exists():
                link.symlink_to(release.find(folder, name).resolve())
        (home / "refs").mkdir(exist_ok=True)
        (home / "refs" / "main").write_text(revision)
    return cache


def _voice() -> np.ndarray:
    t = np.arange(5 * SAMPLE_RATE_HZ) / SAMPLE_RATE_HZ
    return (0.3 * np.sin(2 * np.pi * 180 * t) * np.sin(2 * np.pi * 3 * t)).astype(np.float32)


def _write_wav(path: Path, samples: np.ndarray) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE_HZ)
        file.writeframes((samples * 32767).astype("<i2").tobytes())
    return path


def _load(folder: Path, size: str, device: str) -> Model:
    tiny.write(folder, sizes=FULL if size == "full" else TINY)
    placement = Placement()
    if device == "cuda":
        placement = Placement.best()
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    model = Model(folder, placement)
    model.config = replace(model.config, stop_bias=-1e4)  # as long as the guard allows
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    on_gpu = torch.cuda.is_available()
    parser.add_argument("--size", choices=("tiny", "full"), default="full" if on_gpu else "tiny")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if on_gpu else "cpu")
    parser.add_argument("--streams", default="1,4,8,16,32,64" if on_gpu else "1,4")
    parser.add_argument("--steps", type=int, default=STEPS if on_gpu else 4)
    parser.add_argument("--threads", type=int, default=1, help="of the CPU")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    streams = [int(n) for n in args.streams.split(",")]
    counts = [1, 8, 16] if args.device == "cuda" else [1, 4]
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        model = _load(Path(folder), args.size, args.device)
        rows = [Row("write and load", time.perf_counter() - began, "s")]
        voice = VoiceCache(model).of_wave(_voice(), SAMPLE_RATE_HZ)
        bench = Bench(model, voice, steps=args.steps)
        rows += bench.decode(streams)
        rows += bench.flow(counts, [*cfm.LIVE_BUCKETS, 1024])
        rows += bench.vocoder(counts, list(vocoder.LIVE_BUCKETS))
        single = list(bench.single())
        rows += single
        rows += bench.listeners(streams)
        rows += bench.memory()
        clip = _write_wav(Path(folder) / "voice.wav", _voice())
        rows += reference(Path(folder), clip, single[0].value)
    name = torch.cuda.get_device_name() if args.device == "cuda" else f"CPU, {args.threads} thread"
    when = datetime.now(UTC).date().isoformat()
    print(f"{when}, {name}, torch {torch.__version__}, {args.size} size, {args.steps} steps\n")
    print("| what | value | unit |\n|---|---|---|")
    for row in rows:
        print(f"| {row.what} | {row.value:.4g} | {row.unit} |")
    if args.json:
        found = {"date": when, "device": name, "size": args.size, "steps": args.steps}
        args.json.write_text(json.dumps(found | {"rows": [vars(r) for r in rows]}, indent=1))


if __name__ == "__main__":
    main()
