"""The tools that notes come from; each is one file, this is the door to all of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from connectors.airtable import Airtable
from connectors.base import Connector
from connectors.errors import ConfigError, nearest
from connectors.feishu import Feishu
from connectors.feishu_automation import FeishuAutomation
from connectors.feishu_minutes import FeishuMinutes
from connectors.google_sheets import GoogleSheets
from connectors.notion import Notion
from connectors.robots import DingTalkRobot, FeishuRobot, WeComRobot
from connectors.slack import Slack
from connectors.webhook import Webhook

CONNECTORS: Mapping[str, type[Connector]] = {
    kind.name: kind
    for kind in (
        Webhook,
        FeishuAutomation,
        Feishu,
        FeishuMinutes,
        GoogleSheets,
        Airtable,
        Notion,
        Slack,
        FeishuRobot,
        DingTalkRobot,
        WeComRobot,
    )
}


def make_connector(name: str, endpoint: str, config: Mapping[str, Any]) -> Connector:
    """Build the connector of an endpoint.

    Args:
        name: a key of `CONNECTORS`.
        config: the connector's own keys, secrets as plain text.

    Raises:
        ConfigError: unknown connector, unknown key or bad value; never shows a value.
    """
    kind = CONNECTORS.get(name)
    if kind is None:
        raise ConfigError("connector", f"unknown {name!r}; {nearest(name, CONNECTORS)}")
    try:
        return kind(endpoint, kind.Config.model_validate(dict(config)))
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        fields = kind.Config.model_fields
        if len(first["loc"]) > 1:
            fields = getattr(fields[str(first["loc"][0])].annotation, "model_fields", fields)
        raise ConfigError(key, f"unknown key; {nearest(str(first['loc'][-1]), fields)}") from None
    raise ConfigError(key, first["msg"].removeprefix("Value error, ")) from None
