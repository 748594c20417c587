"""The page at `/docs`, and what `/openapi.json` says of tokens.

Swagger UI comes from a network of copies (CDN): there is no package of it that is kept up to date
and small. Where that network cannot be reached, the page says so.
"""

from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse

OPENAPI = "/openapi.json"
_PLACE = '<div id="swagger-ui">'
_NOTE = (
    "<p>This page needs the internet: it loads Swagger UI from cdn.jsdelivr.net. While you read"
    f' this, it has not come. The interface without it: <a href="{OPENAPI}">{OPENAPI}</a></p>'
)


def add_interface(app: FastAPI, *, has_tokens: bool) -> None:
    """Add `/docs`; say in the schema that every request needs a token, if it does."""

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        page = get_swagger_ui_html(openapi_url=OPENAPI, title=app.title)
        html = bytes(page.body).decode().replace(_PLACE, _PLACE + _NOTE)  # Swagger UI replaces it
        return HTMLResponse(html)

    describe = app.openapi

    def describe_tokens() -> dict:
        schema = describe()
        if has_tokens:
            schemes = schema.setdefault("components", {}).setdefault("securitySchemes", {})
            schemes["token"] = {"type": "http", "scheme": "bearer"}
            schema["security"] = [{"token": []}]
        return schema

    app.openapi = describe_tokens
