"""Codes and latents of one sentence -> samples at 22,050 Hz, whole or while it is still decoded.

Live: codes are rendered in growing chunks. Each chunk is a flow-matching window whose prompt is a
short reference followed by the mel already emitted, so mel continues by construction; a few codes
of lookahead give the vocoder right context and are made again in the next chunk. The vocoder sees
true left context, and the last two frames of a chunk are rendered again with true right context and
cross-faded.

Letters: N codes, F frames, T frames of a window.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from engine.backends.indextts2.cfm import STEPS, Window
from engine.backends.indextts2.config import HOP, MEL_BANDS, SAMPLE_RATE_HZ
from engine.backends.indextts2.model import Model
from engine.backends.indextts2.s2mel import frame_count, source_codes
from engine.backends.indextts2.sampling import philox
from engine.backends.indextts2.vocoder import CONTEXT_FRAMES
from engine.backends.indextts2.voice import VoiceFeatures

Samples = npt.NDArray[np.float32]

SCHEDULE = (10, 15, 25, 40, 60, 100)  # codes per chunk; the last one repeats
LOOKAHEAD = 4  # codes
MEL_CONTEXT = 43  # frames of emitted mel in a prompt: half a second
REGULATED = 258  # frames the regulator looks back on, at most: 150 codes
BLEND = 2  # frames at a join that are rendered twice
_FADE_IN_S, _FADE_OUT_S = 0.005, 0.02
_NOISE, _NOISE_BLOCK = 2, 64  # place in a request's random stream; frames per block
_HISS_FRAMES, _HISS_LONGEST_S, _HISS_TILT, _HISS_DIP = 3, 0.3, 1.0, 1.0


@dataclass(frozen=True, slots=True)
class Plan:
    """How a sentence is rendered.

    Attributes:
        live: in chunks, with the short prompt and a frame mapping that never changes; else whole,
            with the full prompt and the reference's mapping.
        ratio: length against the natural one.
        frames: exact length instead; not for live ones, whose natural length is not known.
        steps: Euler steps per window.
        first_steps: of the first chunk.
        schedule: codes per chunk.
        lookahead: codes.
    """

    live: bool = False
    ratio: float = 1.0
    frames: int | None = None
    steps: int = STEPS
    first_steps: int = STEPS
    schedule: tuple[int, ...] = SCHEDULE
    lookahead: int = LOOKAHEAD


class SentenceRenderer:
    """State of one sentence on its way from codes to samples."""

    def __init__(
        self, model: Model, voice: VoiceFeatures, plan: Plan, *, seed: int, number: int = 0
    ) -> None:
        """Prepare a sentence; `seed` and `number` (of the sentence) decide its noise."""
        self._model, self._voice, self._plan = model, voice, plan
        self._seed, self._number = seed, number
        self._semantic = torch.zeros(0, 0)
        self._chunks = 0
        self._end_code = 0  # codes covered by the current window
        self._final = False
        self._mel = torch.zeros(MEL_BANDS, 0, device=model.device)  # emitted
        self._tail: Samples = np.zeros(0, np.float32)
        self.done_codes = 0
        self.samples = 0

    @property
    def schedule(self) -> tuple[int, ...]:
        """Codes per chunk, as planned."""
        return self._plan.schedule

    @property
    def chunk(self) -> int:
        """Codes of the next chunk, by the schedule."""
        return self._plan.schedule[min(self._chunks, len(self._plan.schedule) - 1)]

    def is_ready(self, codes: int, ended: bool, *, chunk: int | None = None) -> bool:
        """Whether a window can be made of the codes that are there."""
        if ended:
            return True
        wanted = self.done_codes + (chunk or self.chunk) + self._plan.lookahead
        return self._plan.live and codes >= wanted

    @torch.inference_mode()
    def window(
        self,
        codes: Sequence[int],
        latents: Sequence[Tensor],
        ended: bool,
        *,
        chunk: int | None = None,
    ) -> Window:
        """The next window; `is_ready` must hold.

        Args:
            codes, latents: of the sentence so far.
            ended: no more will come.
            chunk: codes to render; by the schedule if None. What is too little for a chunk and its
                lookahead at the end is rendered with it.
        """
        count = len(codes)
        end = self.done_codes + (chunk or self.chunk)
        # whether the end is known already depends on who else was served: it must not decide
        self._final = ended and (not self._plan.live or count < end + self._plan.lookahead)
        self._end_code = count if self._final else end
        seen = count if self._final else end + self._plan.lookahead
        self._extend(codes[:seen], latents[:seen])  # no more: how many go in one call is heard
        emitted, frames = self._mel.shape[1], self._frames(seen)
        context = min(MEL_CONTEXT, emitted)
        condition = self._condition(seen, emitted - context, frames)
        first = self._chunks == 0
        return Window(
            self._model.dit,
            prompt=torch.cat([self._prompt[0], self._mel[:, emitted - context :]], 1),
            condition=torch.cat([self._prompt[1], condition]),
            style=self._voice.style,
            noise=self._noise(emitted, frames),
            steps=self._plan.first_steps if first else self._plan.steps,
        )

    def strip(self, window: Window) -> Tensor:
        """(80, F) what the vocoder needs for the sound of a finished window."""
        left, _ = self._context()
        return torch.cat([self._mel[:, self._mel.shape[1] - left :], window.mel], 1)

    def sound(self, window: Window, wave: Tensor) -> Samples:
        """Samples that a finished window adds, 256 per frame; the last window flushes.

        Args:
            window: see `window`.
            wave: (256 F,) the vocoder's of `strip(window)`.
        """
        mel, (left, again) = window.mel, self._context()
        fresh = self._frames(self._end_code) - self._mel.shape[1]
        samples = wave[(left - again) * HOP : (left + fresh) * HOP].float().cpu().numpy()
        if self._final:
            samples = mute_hiss(samples, mel[:, :fresh].float().cpu().numpy(), lead=again * HOP)
        out = self._joined(samples)
        self._mel = torch.cat([self._mel, mel[:, :fresh]], 1)
        self.done_codes = self._end_code
        self._chunks += 1
        self.samples += len(out)
        return out

    def _context(self) -> tuple[int, int]:
        """Emitted frames in front of a strip, and how many of them sound again in the blend."""
        emitted = self._mel.shape[1]
        again = min(BLEND, emitted) if len(self._tail) else 0
        return min(CONTEXT_FRAMES + again, emitted), again

    @property
    def is_done(self) -> bool:
        """The last sample is out."""
        return self._final and self.samples == self._mel.shape[1] * HOP

    @property
    def _prompt(self) -> tuple[Tensor, Tensor]:
        if self._plan.live:
            return self._voice.short_mel, self._voice.short_condition
        return self._voice.mel, self._voice.condition

    def _frames(self, codes: int) -> int:
        if self._plan.frames is not None:
            return self._plan.frames
        return max(1, frame_count(codes, self._plan.ratio))

    def _extend(self, codes: Sequence[int], latents: Sequence[Tensor]) -> None:
        have = len(self._semantic) if self._semantic.numel() else 0
        if have == len(codes):
            return
        table = self._model.code_vectors
        index = torch.tensor(codes[have:], device=table.device)
        fresh = table[index] + self._model.projection(torch.stack(list(latents[have:])).float())
        self._semantic = torch.cat([self._semantic, fresh]) if have else fresh

    def _condition(self, codes: int, first: int, last: int) -> Tensor:
        """(last - first, C) condition of frames [first, last)."""
        regulator, semantic = self._model.regulator, self._semantic[None, :codes]
        if not self._plan.live:
            whole: Tensor = regulator(semantic, last)
            return whole[0]
        start = 0 if first == 0 else min(first, max(0, last - REGULATED))
        index = source_codes(start, last, codes, self._plan.ratio)
        return regulator.mapped(semantic, index)[0, first - start :]

    def _noise(self, first: int, last: int) -> Tensor:
        """(80, last - first) noise of absolute frames, the same in every window they are in."""
        blocks = [
            philox(self._seed, _NOISE, self._number, block).standard_normal(
                (_NOISE_BLOCK, MEL_BANDS), dtype=np.float32
            )
            for block in range(first // _NOISE_BLOCK, -(-last // _NOISE_BLOCK))
        ]
        at = first % _NOISE_BLOCK
        frames = np.concatenate(blocks)[at : at + last - first]
        return torch.from_numpy(np.ascontiguousarray(frames.T)).to(self._model.device)

    def _joined(self, wave: Samples) -> Samples:
        """Blend with the held tail, hold a new one, fade the ends of the sentence."""
        wave = wave.copy()
        held = len(self._tail)
        if held:
            rise = _raised_cosine(held)
            wave[:held] = self._tail * (1 - rise) + wave[:held] * rise
        if self.samples == 0:
            fade = _raised_cosine(min(len(wave), int(_FADE_IN_S * SAMPLE_RATE_HZ)))
            wave[: len(fade)] *= fade
        if self._final:
            fade = _raised_cosine(min(len(wave), int(_FADE_OUT_S * SAMPLE_RATE_HZ)))[::-1]
            wave[len(wave) - len(fade) :] *= fade
            self._tail = wave[:0]
            return wave
        keep = max(0, len(wave) - BLEND * HOP)
        self._tail = wave[keep:]
        return wave[:keep]


def _raised_cosine(samples: int) -> Samples:
    """(samples,) rising from 0 to 1."""
    at = (np.arange(samples, dtype=np.float32) + 0.5) / max(samples, 1)
    return np.asarray(0.5 - 0.5 * np.cos(math.pi * at), dtype=np.float32)


def hiss_start(mel: npt.NDArray[np.float32]) -> int | None:
    """First frame of a breath of noise at the end of a sentence, or None.

    A few surplus codes before the stop code sound as 35 to 170 ms of hiss: the last frames have
    more energy in the upper bands than in the lower, and a dip stands before them. Consonants at
    the end of a word have no dip.

    Args:
        mel: (80, F) log-mel of the end of a sentence.
    """
    bands = len(mel) * 2 // 5
    tilt = mel[-bands:].mean(0) - mel[:bands].mean(0)
    longest = int(_HISS_LONGEST_S * SAMPLE_RATE_HZ / HOP)
    first = len(tilt)
    while first > 0 and tilt[first - 1] > _HISS_TILT and len(tilt) - first < longest:
        first -= 1
    if len(tilt) - first < _HISS_FRAMES or first < _HISS_FRAMES:
        return None
    dip = mel[:, first:].mean() - mel[:, first - _HISS_FRAMES : first].mean()
    return first if dip >= _HISS_DIP else None


def mute_hiss(wave: Samples, mel: npt.NDArray[np.float32], *, lead: int) -> Samples:
    """Silence a hiss at the end of the last chunk; the number of samples stays.

    Args:
        wave: `lead` samples of earlier frames, then 256 per frame of `mel`.
        mel: (80, F) log-mel of the chunk.
        lead: see `wave`.
    """
    first = hiss_start(mel)
    if first is None:
        return wave
    quiet = wave.copy()
    at = lead + first * HOP
    fade = _raised_cosine(min(HOP, len(quiet) - at))[::-1]
    quiet[at : at + len(fade)] *= fade
    quiet[at + len(fade) :] = 0
    return quiet
