"""`notecast listen`: a live link in a terminal; captions scroll, the sound goes to a file."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
from rich.console import Console
from rich.markup import escape

from pipeline.errors import Refused
from streaming.client import Audio, Event, listen
from streaming.errors import ListenError
from streaming.frames import unpack_packets

_PACKET_TICKS = 960  # 20 ms of 48 kHz


def follow(link: str, out: Path | None, console: Console) -> int:
    """Follow a link to its end.

    Args:
        link: a live link.
        out: `.ogg` file for what is heard; None keeps nothing.

    Returns:
        Exit status: 0 if all was heard and its digest agrees.

    Raises:
        Refused: `out` does not end in `.ogg`.
    """
    if out is not None and out.suffix not in (".ogg", ".opus"):
        raise Refused(f"{out}: live sound is Opus, name the file .ogg", field="/out")
    heard: list[Audio] = []
    status = 0
    try:
        for item in listen(link):
            if isinstance(item, Audio):
                heard.append(item)
            else:
                _show(item, console)
                if item["t"] == "cut":
                    heard = [one for one in heard if one.header.seg < item["from_seg"]]
    except KeyboardInterrupt:
        status = 130
    except ListenError as error:
        console.print(f"[red]{escape(str(error))}[/]", highlight=False)
        if error.url:
            console.print(f"the recording: {error.url}", highlight=False, soft_wrap=True)
        status = 1
    if out is not None and heard:
        save_ogg([packet for one in heard for packet in unpack_packets(one.payload)], out)
        console.print(f"{out}: {sum(one.header.dur for one in heard) / 48_000:.1f} s")
    return status


def save_ogg(packets: list[bytes], out: Path) -> None:
    """Write 20 ms Opus packets as they are into an Ogg file."""
    with av.open(str(out), "w", format="ogg") as container:
        stream: Any = container.add_stream("libopus", rate=48_000, layout="mono")
        stream.codec_context.open()
        for n, body in enumerate(packets):
            packet = av.Packet(body)
            packet.stream = stream
            packet.time_base = Fraction(1, 48_000)
            packet.pts = packet.dts = n * _PACKET_TICKS
            packet.duration = _PACKET_TICKS
            container.mux(packet)


def _show(event: Event, console: Console) -> None:
    kind = event["t"]
    if kind == "opened":
        console.print(f"[bold]{escape(event.get('title') or 'untitled')}[/]", highlight=False)
    elif kind == "queued":
        wait_s = (event.get("eta_ms") or 0) / 1000
        console.print(f"[dim]queued, position {event.get('pos')}, about {wait_s:.0f} s[/]")
    elif kind == "seg":
        at_s = event["ms"] // 1000
        text = escape(event["text"])
        console.print(f"[dim]{at_s // 60}:{at_s % 60:02}[/] {text}", highlight=False)
    elif kind == "cut":
        console.print("[yellow]the speaker was interrupted and says the sentence again[/]")
    elif kind == "end":
        console.print(
            f"[green]end[/] after {event['dur_ms'] / 1000:.1f} s, sha256 {event['sha256'][:16]}...",
            highlight=False,
        )
