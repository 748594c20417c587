"""The page at `/docs`, and what `/openapi.json` says of tokens.

The page is our own: Swagger UI comes from a network of copies (CDN), and there is no package of it
that is kept up to date and small. It is made in the browser from `/openapi.json` and loads nothing
else.
"""

from importlib.resources import files

from fastapi import FastAPI
from fastapi.responses import HTMLResponse

OPENAPI = "/openapi.json"
OPEN_PAGES = ("/", "/docs")
"""Files that are the same whatever is served, and ask for the token themselves."""
_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline';"
    " connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)


def add_interface(app: FastAPI, *, has_tokens: bool) -> None:
    """Add `/docs`; say in the schema that every request needs a token, if it does."""
    page = files("deepseek.deploy.service").joinpath("interface.html").read_text(encoding="utf-8")

    @app.get("/docs", include_in_schema=False)  # it says nothing of what is served
    async def docs() -> HTMLResponse:
        return HTMLResponse(page, headers={"Content-Security-Policy": _POLICY})

    describe = app.openapi

    def describe_tokens() -> dict:
        schema = describe()
        if has_tokens:
            schemes = schema.setdefault("components", {}).setdefault("securitySchemes", {})
            schemes["token"] = {"type": "http", "scheme": "bearer"}
            schema["security"] = [{"token": []}]
        return schema

    app.openapi = describe_tokens
