"""Reason codes of failures as people read them in a row or on a card: a code, a fixed sentence.

Never an exception's text: that may hold what nobody in the table should see.
"""

from __future__ import annotations

from collections.abc import Mapping

REASONS: Mapping[str, tuple[str, str]] = {
    "too_long": ("the notes are too long for one recording", "内容太长，一次读不完"),
    "unspeakable": ("nothing is left to say", "没有可朗读的内容"),
    "bad_request": ("a setting cannot be used", "设置无法使用"),
    "unknown_voice": ("no voice has this name", "没有这个名字的音色"),
    "unsupported_language": ("this language is not spoken here", "暂不支持这种语言"),
    "unsupported_feature": ("the voice engine lacks what was asked for", "语音引擎不支持所需功能"),
    "engine_failed": ("the voice engine failed again and again", "语音引擎多次出错"),
    "row_gone": ("the row is not there any more", "该行已不存在"),
    "tool_refused": ("the tool did not let us read the row", "工具拒绝读取该行"),
    "wrong_column": ("a column is missing or renamed", "列不存在或已改名"),
    "tool_unavailable": ("the tool did not answer for too long", "工具长时间没有回应"),
    "daily_cap": ("today's limit of this table is reached", "该表今天的播报次数已用完"),
    "stopped": ("stopped by hand", "已被人工停止"),
    "poison": ("speaking it failed again and again", "多次朗读失败"),
}
_ELSE = ("could not be read aloud; operators see more", "无法朗读，详情请联系管理员")


def reason(code: str, lang: str) -> str:
    """`too_long: the notes are too long for one recording`.

    Args:
        lang: `zh`, or anything else for English.
    """
    english, chinese = REASONS.get(code, _ELSE)
    return f"{code}：{chinese}" if lang == "zh" else f"{code}: {english}"
