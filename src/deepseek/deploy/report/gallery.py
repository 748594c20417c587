"""The worst and best samples as pictures inside the page.

A sample's file name and its bytes are input from outside: only files below evaluation/ are opened,
their size in pixels is read before they are decoded, and what is embedded is our own encoding of
the pixels.
"""

import base64
import io
import math
from pathlib import Path

from PIL import Image

from deepseek.deploy.report.markup import Section, shorten, text
from deepseek.deploy.report.quantity import number, percent
from deepseek.deploy.report.run_folder import RunFolder

MAX_SAMPLES = 16
MAX_SIDE = 192
MAX_FILE_BYTES = 32 << 20
MAX_PIXELS = 50_000_000
PIXEL_ART_SIDE = 64

_TITLES = {"worst": "Worst samples: the highest loss", "best": "Best samples: the lowest loss"}


def gallery_section(run: RunFolder) -> Section:
    """Return the section drawn from evaluation/samples.json."""
    folder = run.path / "evaluation"
    parts = []
    for name in sorted(run.samples, key=lambda name: (name != "worst", name != "best", name)):
        rows = run.samples[name][:MAX_SAMPLES]
        if rows:
            items = "".join(_sample(folder, row) for row in rows)
            title = _TITLES.get(name, name)
            parts.append(f'<h3>{text(title)}</h3><ul class="gallery">{items}</ul>')
    reason = run.missing.get("samples.json", "evaluation/samples.json lists no samples.")
    return Section("samples", "Samples", "".join(parts), reason)


def embed_picture(path: Path) -> tuple[str, int]:
    """Return a picture of at most MAX_SIDE pixels a side as a `data:` address, and its longer side.

    Raises:
        OSError, ValueError: if the file is no picture, is damaged, or is beyond the limits.
    """
    if path.stat().st_size > MAX_FILE_BYTES:
        raise ValueError("file too large")
    with Image.open(path, formats=("PNG", "JPEG")) as picture:
        if picture.width * picture.height > MAX_PIXELS:
            raise ValueError("too many pixels")
        if picture.mode.startswith("I"):
            picture = picture.convert("I").point(lambda value: value / 256)
        picture = picture.convert("L" if picture.mode in ("1", "L", "I") else "RGB")
        picture.thumbnail((MAX_SIDE, MAX_SIDE))
        side = max(picture.size)
        buffer = io.BytesIO()
        kind = "png" if side <= PIXEL_ART_SIDE else "jpeg"
        picture.save(buffer, kind, **({"optimize": True} if kind == "png" else {"quality": 88}))
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}", side


def _sample(folder: Path, row: dict) -> str:
    target, predicted = shorten(row.get("target", "?"), 40), shorten(row.get("predicted", "?"), 40)
    is_right = target == predicted
    verdict = "right" if is_right else "wrong"
    alt = f"sample {row.get('index', '?')}: {target}, predicted {predicted}"
    words = (
        f'<span class="{verdict}">{"✓" if is_right else "✗"} {text(predicted)}</span>'
        f"<span>target {text(target)}</span><span class=quiet>{_numbers(row)}</span>"
    )
    return f"<li>{_picture(folder, row, alt)}<p>{words}</p></li>"


def _picture(folder: Path, row: dict, alt: str) -> str:
    try:
        path = (folder / str(row.get("file", ""))).resolve()
        if not path.is_relative_to(folder.resolve()):
            raise ValueError("outside the evaluation folder")
        source, side = embed_picture(path)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        # SyntaxError is how Pillow reports a broken PNG chunk.
        label = f"{text(alt)}, no picture"
        return f'<div class="no-picture" role="img" aria-label="{label}">no picture</div>'
    kind = ' class="pixels"' if side <= PIXEL_ART_SIDE else ""
    return f'<img{kind} src="{source}" alt="{text(alt)}">'


def _numbers(row: dict) -> str:
    out = []
    prob, loss = row.get("prob"), row.get("loss")
    if isinstance(prob, int | float) and math.isfinite(prob):
        out.append(f"p {percent(prob)}")
    if isinstance(loss, int | float):
        out.append(f"loss {number(float(loss))}")
    out.append(f"#{text(row.get('index', '?'))}")
    return " · ".join(out)
