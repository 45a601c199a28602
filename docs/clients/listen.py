"""Hear a Notecast link: python listen.py LINK OUT.ogg (needs only the package `websockets`)."""

import asyncio
import hashlib
import json
import sys
from contextlib import suppress

import ogg_file  # beside this file: a container for the packets
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed


async def hear(link: str) -> tuple[list[tuple[int, bytes]], dict]:  # chunks, the last message
    url, _, token = link.partition("#t=")
    url = "ws" + url.partition("/l/")[0].removeprefix("http") + "/v1/live"
    chunks, seen = [], [-2, 0]
    async for ws in connect(url, subprotocols=["notecast.v1"], compression=None):
        with suppress(ConnectionClosed):  # then on, after what has come
            await ws.send(json.dumps({"t": "hello", "v": 1, "token": token, "codecs": ["opus"]}))
            async for data in ws:
                frame = isinstance(data, bytes)
                audio = {"t": "audio", "p": [int.from_bytes(data[12:16]), 0]} if frame else {}
                event = audio or json.loads(data)
                if event.get("p", [1 << 32]) <= seen:
                    continue  # it had come before the connection broke
                seen = event.get("p", seen)
                if event["t"] == "welcome":
                    start = {"at": "start"} if seen[0] < -1 else {"seq": seen[0], "k": seen[1]}
                    sid = event["grants"][0]["sid"]
                    await ws.send(json.dumps({"t": "open", "sid": sid, "from": start}))
                elif event["t"] == "audio" and data[1] & 15 == 1:  # else silence, or the end
                    chunks.append((int.from_bytes(data[10:12]), data[32:]))
                elif event["t"] == "seg":
                    print(f"{event['ms'] / 1000:7.1f}  {event['text']}", flush=True)
                    await ws.send(json.dumps({"t": "ack", "sid": sid, "play_ms": event["ms"]}))
                elif event["t"] == "cut":  # this sentence, and what follows, is said anew
                    chunks = [chunk for chunk in chunks if chunk[0] < event["from_seg"]]
                elif event["t"] == "end" or (event["t"] == "error" and event["code"] != "internal"):
                    return chunks, event


chunks, end = asyncio.run(hear(sys.argv[1]))
ogg_file.write(sys.argv[2], bodies := [body for _, body in chunks])
print(digest := hashlib.sha256(b"".join(bodies)).hexdigest())
sys.exit(0 if digest == end.get("sha256") else end.get("message", "this is not all that was said"))
