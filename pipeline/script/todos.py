"""To-dos in their spoken form: what, whose, and by when."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.script.clean import Cleaner, has_letters
from pipeline.script.speakers import fold
from pipeline.script.words import NAMES, SECTION_NAMES, is_han

_OWNER_FIRST = re.compile(r"(?P<owner>[^\W\d_][\w .·'’-]{0,19}?)\s*[:：]\s*(?P<task>.+)")
_BRACKET = re.compile(r"(?P<task>.+?)\s*[（(](?P<inside>[^（）()]{1,80})[）)]\s*[。.]?")
_WHO_WORDS = "|".join(sorted(map(re.escape, NAMES["owner"]), key=len, reverse=True))
_DUE_WORDS = "|".join(sorted(map(re.escape, NAMES["due"]), key=len, reverse=True))
_WHO = re.compile(rf"(?P<label>{_WHO_WORDS})\s*[:：]?\s*(?P<value>\S.{{0,19}})", re.I)
_DUE = re.compile(
    rf"(?P<label>{_DUE_WORDS})(?:\s*[:：]\s*|\s+|(?<=[\u4e00-\u9fff]))(?P<value>\S.{{0,29}})", re.I
)
_DATE = re.compile(
    r"\d{4}[-/.年]\d{1,2}([-/.月]\d{1,2}日?)?|\d{1,2}月\d{1,2}[日号]?|\d{1,2}[/-]\d{1,2}"
    r"|(本|下|这)?(周|星期|礼拜)[一二三四五六日天末]|今天|明天|后天|(本|下)?月底|月末"
    r"|(next |this )?(mon|tues|wednes|thurs|fri|satur|sun)day|today|tomorrow|next week|eod|eow"
    r"|(jan|feb|mar|apr|may|june?|july?|aug|sept?|oct|nov|dec)[a-z]* \d{1,2}(st|nd|rd|th)?"
    r"|\d{1,2}(st|nd|rd|th)? (jan|feb|mar|apr|may|june?|july?|aug|sept?|oct|nov|dec)[a-z]*",
    re.I,
)


@dataclass(frozen=True, slots=True)
class Todo:
    """A task with whose it is and when it is due, where the line says so."""

    task: str
    owner: str = ""
    due: str = ""

    @classmethod
    def read(cls, text: str, speakers: Mapping[str, str], cleaner: Cleaner) -> Todo:
        """`Alice: send it (due Friday)`, `写文档（负责人：李雷，周五前）`; the unclear stays."""
        task, owner, due = text, "", ""
        bracket = _BRACKET.fullmatch(task) if task.endswith((")", "）", "。", ".")) else None
        if bracket and has_letters(bracket["task"]):
            parts = [part.strip() for part in re.split(r"[,，;；、]", bracket["inside"])]
            read = [_who_or_when(part, speakers) for part in parts]
            kinds = {kind for kind, _, _ in read}
            if "" not in kinds and len(kinds) == len(read):
                for kind, label, value in read:
                    cleaner.skip(label, "label")
                    owner, due = (value, due) if kind == "owner" else (owner, value)
                task = bracket["task"]
        first = _OWNER_FIRST.fullmatch(task) if not owner else None
        if first and has_letters(first["task"]) and _is_name(first["owner"]):
            owner, task = first["owner"].strip(), first["task"]
        return cls(task.strip(), owner, due)

    def said(self, lang: str) -> str:
        """The spoken form of section "to-dos": Chinese, English, or as it stands."""
        if lang == "zh":
            parts = [f"待办：{self.task.rstrip('。')}"]
            if self.owner:
                parts.append(f"负责人{self.owner}")
            if self.due:
                parts.append(self.due if self.due.endswith("前") else f"{self.due}前")
            return "，".join(parts) + "。"
        due = f", due {self.due}" if self.due else ""
        task = self.task.rstrip(".") + due
        if lang != "en":
            return ": ".join(part for part in (self.owner, task) if part)
        if not self.owner:
            named = re.match(r"[A-Z][\w.-]* (?:to|will|should|must) ", task)
            return f"{task}." if named else f"To do: {task}."
        if re.match(r"(to|will|should|must|I|I'll|I’ll)\b", self.task):
            return (
                f"{self.owner} {task}."
                if not self.task.startswith("I")
                else f"{self.owner}: {task}."
            )
        lower = task[:1].lower() + task[1:] if task[1:2].islower() else task
        return f"{self.owner} to {lower}."


def _who_or_when(part: str, speakers: Mapping[str, str]) -> tuple[str, str, str]:
    """(`owner` or `due`, the label, the value), or empty kind when it is neither."""
    due = _DUE.fullmatch(part)
    if due:
        return "due", due["label"], due["value"]
    who = _WHO.fullmatch(part)
    if who:
        return "owner", who["label"], who["value"]
    bare = part.lstrip("@")
    if fold(bare) in speakers:
        return "owner", "", bare
    if _DATE.fullmatch(part.removesuffix("前")):
        return "due", "", part
    return "", "", ""


def _is_name(text: str) -> bool:
    """At most three words, or at most four Han characters, and no label."""
    name = text.strip()
    return (
        fold(name) not in SECTION_NAMES.not_people
        and len(name.split()) <= 3
        and (len(name) <= 4 or not is_han(name[0]))
    )
