"""Templates to text: HTML and Markdown in which foreign text can't act.

Both environments escape every value by default; nothing in a template has to remember to.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Mapping
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from narrowtune.core import numbers
from narrowtune.report import text
from narrowtune.report.verdict import points
from narrowtune.version import __version__

FILTERS = {
    "count": text.count,
    "interval": numbers.interval,
    "moment": text.moment,
    "number": numbers.number,
    "p_value": text.p_value,
    "percent": text.percent,
    "plural": text.plural,
    "points": points,
    "signed": numbers.signed,
    "small": text.small,
    "tested": text.tested,
}


def _shown_in_html(value: Any) -> Any:
    """Make control characters visible; jinja escapes the result."""
    if isinstance(value, str) and not isinstance(value, Markup):
        return text.visible(value)
    return value


def _shown_in_markdown(value: Any) -> str:
    return text.markdown(str(value))


def _environment(*, html: bool) -> Environment:
    environment = Environment(
        loader=PackageLoader("narrowtune.report", "templates"),
        autoescape=html,
        finalize=_shown_in_html if html else _shown_in_markdown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(FILTERS)
    return environment


def render_html(template: str, values: Mapping[str, Any]) -> str:
    """Render a page that carries its own style and script and forbids all others."""
    style, script = _asset("style.css"), _asset("gallery.js")
    return (
        _environment(html=True)
        .get_template(template)
        .render(
            style=Markup(style),
            script=Markup(script),
            style_hash=_hash(style),
            script_hash=_hash(script),
            version=__version__,
            **values,
        )
    )


def render_markdown(template: str, values: Mapping[str, Any]) -> str:
    """Render Markdown in which every value is escaped."""
    return _environment(html=False).get_template(template).render(**values)


def render_json(values: Mapping[str, Any]) -> str:
    """JSON that every reader takes: numbers that are not finite become strings."""
    return json.dumps(_finite(values), ensure_ascii=False, allow_nan=False, indent=1) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def _asset(name: str) -> str:
    folder = resources.files("narrowtune.report") / "templates"
    return (folder / name).read_text(encoding="utf-8")


def _hash(content: str) -> str:
    return base64.b64encode(hashlib.sha256(content.encode("utf-8")).digest()).decode("ascii")
