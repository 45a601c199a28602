"""How written forms are said: one rule book per language, tried by `engine.text.normalise`."""

from __future__ import annotations

from functools import cache

from engine.readings.rules import Rule, RuleBook


@cache
def book_for(lang: str) -> RuleBook:
    """The rules of a language; one without its own gets those for addresses alone."""
    return RuleBook(_rules(lang))


def _rules(lang: str) -> list[Rule]:
    # Imported here: a job pays only for the tables of the languages it speaks.
    if lang == "en":
        from engine.readings import en

        return en.rules()
    if lang == "zh":
        from engine.readings import zh

        return zh.rules()
    if lang == "ja":
        from engine.readings import ja

        return ja.rules()
    from engine.readings import addresses

    return addresses.rules(at=" @ ", dot=".")
