"""The page at `/`: one response from the files in `page/` beside this module, which may be in a zip application.

Its policy allows only its own script and style, by their hashes, and requests to this server. So nothing in an answer
or in a bundle's name can run.
"""
import base64
import hashlib
import pkgutil

from merino_runtime.serving.application import Response


def page() -> Response:
    html, style, script = (_part("page." + end) for end in ("html", "css", "js"))
    allowed = {"default-src": "'none'", "script-src": _hash(script), "style-src": _hash(style), "img-src": "data:",
               "connect-src": "'self'", "base-uri": "'none'", "form-action": "'none'", "frame-ancestors": "'none'"}
    text = html.replace("<style></style>", f"<style>{style}</style>").replace(
        "<script></script>", f"<script>{script}</script>")
    return Response(200, text.encode("utf-8"), "text/html; charset=utf-8", (
        ("Content-Security-Policy", "; ".join(f"{name} {value}" for name, value in allowed.items())),
        ("X-Content-Type-Options", "nosniff"), ("Referrer-Policy", "no-referrer"), ("Cache-Control", "no-cache")))


def _part(name: str) -> str:
    data = pkgutil.get_data("merino_runtime.serving", "page/" + name)
    assert data is not None
    return data.decode("utf-8")


def _hash(text: str) -> str:
    return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii") + "'"
