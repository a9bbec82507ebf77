"""The page itself: one HTML file with its styles, scripts and data inside.

The data is packed and holds no markup, and the scripts write texts as texts, so that nothing that a
model has written can become part of the page. The page's own policy forbids any request.
"""

from __future__ import annotations

import base64
import gzip
import html
import json
from collections.abc import Mapping
from pathlib import Path
from string import Template
from typing import Any

_ASSETS = Path(__file__).parent / "assets"
_SCRIPTS = ("vendor/uPlot.iife.min.js", "state.js", "curves.js", "summary.js", "browser.js")
_STYLES = ("vendor/uPlot.min.css", "page.css")


def render(payload: Mapping[str, Any], title: str) -> str:
    """The page of some runs.

    Args:
        payload: as `rl4lm.report.payload` makes it.
        title: of the page.
    """
    text = json.dumps(payload, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    # A fixed time stamp: the same run gives the same bytes.
    packed = gzip.compress(text.encode("utf-8", errors="replace"), compresslevel=6, mtime=0)
    return Template(_asset("page.html")).substitute(
        title=html.escape(title),
        styles="\n".join(map(_asset, _STYLES)),
        scripts="\n".join(f"<script>\n{_asset(name)}\n</script>" for name in _SCRIPTS),
        data=base64.b64encode(packed).decode("ascii"),
    )


def _asset(name: str) -> str:
    return (_ASSETS / name).read_text(encoding="utf-8")
