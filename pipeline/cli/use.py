"""`notecast say`, `speak`, `listen` and the voices."""

from __future__ import annotations

import getpass
import json
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.markup import escape

from pipeline.cli.shell import AsJson, Data, EngineChoice, ModelDir, console, show_table
from pipeline.settings import load_settings

app = typer.Typer()


@app.command(rich_help_panel="Use")
def say(
    text: Annotated[str, typer.Argument(help="What to say; - reads standard input.")],
    out: Annotated[Path, typer.Option("-o", "--out", help=".wav, .mp3, .ogg or .flac file.")],
    voice: Annotated[str, typer.Option(help="See: notecast voices list.")] = "",
    lang: Annotated[str, typer.Option(help="en, zh, ja, ... or auto.")] = "auto",
    speed: Annotated[float, typer.Option(min=0.5, max=2.0, help="Times the natural pace.")] = 1.0,
    duration: Annotated[float | None, typer.Option(help="Exact length in seconds.")] = None,
    emotion: Annotated[str, typer.Option(help="calm, serious, lively, urgent, ...")] = "",
    engine: EngineChoice = None,
    model_dir: ModelDir = None,
    data: Data = None,
    as_json: AsJson = False,
) -> None:
    """Speak a text into a file, in this process, without any server."""
    from pipeline.say import say_to_file

    spoken = sys.stdin.read() if text == "-" else text
    settings = load_settings(data=data, engine=engine, model_dir=model_dir)
    result = say_to_file(
        settings,
        spoken,
        out,
        voice=voice,
        lang=lang,
        speed=speed,
        target_s=duration,
        emotion=emotion,
        show_progress=not as_json and console.is_terminal,
    )
    if as_json:
        print(json.dumps(result, ensure_ascii=False))
        return
    console.print(
        f"{out}: {result['audio_s']:.2f} s in {result['wall_s']:.2f} s "
        f"(real-time factor {result['rtf']:.2f}), voice {', '.join(result['voices'])}",
        highlight=False,
    )
    for line in result["notes"]:
        console.print(f"  [yellow]note:[/] {escape(line)}", highlight=False)


@app.command(rich_help_panel="Use")
def speak(
    text: Annotated[str, typer.Argument(help="What to say; - reads standard input.")],
    title: Annotated[str, typer.Option(help="Title of the episode.")] = "",
    voice: Annotated[str, typer.Option(help="See: notecast voices list.")] = "",
    data: Data = None,
    as_json: AsJson = False,
) -> None:
    """Send a text to the running notecast up; prints the live link."""
    from pipeline.client import send_text

    spoken = sys.stdin.read() if text == "-" else text
    answer = send_text(load_settings(data=data), spoken, title=title, voice=voice)
    if as_json:
        print(json.dumps(answer, ensure_ascii=False))
    else:
        console.print(f"episode {answer['id']} is {answer['status']}", highlight=False)
        console.print(f"listen: {answer['listen_url']}", highlight=False, soft_wrap=True)


@app.command(rich_help_panel="Use")
def listen(
    link: Annotated[str, typer.Argument(help="A live link, http://.../l/...#t=...")],
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Write the sound here.")] = None,
) -> None:
    """Follow a live link from a terminal: captions scroll, the sound goes to a file."""
    from pipeline.follow import follow

    raise typer.Exit(follow(link, out, console))


voices_app = typer.Typer(help="The voices that can be asked for.", no_args_is_help=True)
app.add_typer(voices_app, name="voices", rich_help_panel="Use")


@voices_app.command("list")
def voices_list(
    lang: Annotated[str, typer.Option(help="Only this language.")] = "",
    engine: EngineChoice = None,
    model_dir: ModelDir = None,
    data: Data = None,
    as_json: AsJson = False,
) -> None:
    """List the engine's voices."""
    from dataclasses import asdict

    from pipeline.voices import list_voices

    settings = load_settings(data=data, engine=engine, model_dir=model_dir)
    found = [one for one in list_voices(settings) if lang in ("", one.lang)]
    if as_json:
        print(json.dumps([asdict(one) for one in found], ensure_ascii=False))
        return
    show_table("Voices", ("id", "name", "language", "gender", "grade"), [
        (one.id, one.name, one.lang, one.gender, one.grade) for one in found
    ])  # fmt: skip


@voices_app.command("add")
def voices_add(
    name: Annotated[str, typer.Argument(help="Id of the voice: lower-case letters, digits, - _.")],
    clip: Annotated[Path, typer.Argument(help="3 to 60 s of one speaker, any audio format.")],
    speaker: Annotated[str, typer.Option(help="Whose voice it is.")],
    consent: Annotated[
        Literal["own_voice", "recorded_statement", "signed_document"],
        typer.Option(help="How the speaker agreed to be cloned."),
    ],
    evidence: Annotated[
        str, typer.Option(help="Where the statement or document lies; not for one's own voice.")
    ] = "",
    given_by: Annotated[str, typer.Option(help="Who enters it; you, if not given.")] = "",
    given_on: Annotated[str, typer.Option(help="Date of the consent, 2026-11-22; today.")] = "",
    lang: Annotated[Literal["zh", "en"], typer.Option(help="Language of the clip.")] = "zh",
    gender: Annotated[str, typer.Option(help="female, male or nothing.")] = "",
    engine: EngineChoice = None,
    model_dir: ModelDir = None,
    data: Data = None,
) -> None:
    """Clone a voice from a recording, with its speaker's consent (engine indextts2)."""
    from pipeline.voices import add_voice

    settings = load_settings(data=data, engine=engine, model_dir=model_dir)
    with console.status(f"adding {name} ..."):
        is_ready = add_voice(
            settings,
            name,
            clip,
            speaker=speaker,
            method=consent,
            given_by=given_by or getpass.getuser(),
            given_on=given_on,
            evidence=evidence,
            lang=lang,
            gender=gender,
        )
    when = "it can speak at once" if is_ready else "a worker learns it when it is first asked for"
    console.print(f"voice {name} is added; {when}", highlight=False)


@voices_app.command("remove")
def voices_remove(name: str, engine: EngineChoice = None, data: Data = None) -> None:
    """Delete a cloned voice, its recording and what was computed from it."""
    from pipeline.voices import remove_voice

    remove_voice(load_settings(data=data, engine=engine), name)
    console.print(f"voice {name} is removed", highlight=False)
