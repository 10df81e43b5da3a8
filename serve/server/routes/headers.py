"""Which adapter answers and why, as headers of a response."""

from __future__ import annotations

from urllib.parse import quote

from serve.engine.router import Route


def route_headers(way: Route) -> dict[str, str]:
    """x-slm-adapter and x-slm-route-reason; percent-encoded where a header could not carry it."""
    reason = quote(way.reason, safe=" ,;:'%()", errors="replace")
    return {"x-slm-adapter": quote(way.adapter or "base"), "x-slm-route-reason": reason}
