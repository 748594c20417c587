"""Slices of a scan as small pictures for a page: axial, coronal, sagittal, with what was found.

As radiologists hang them: the patient's right and front are left, the head is up. A picture is a
grey JPEG and, on it, a transparent PNG of classes and circles in SVG, measured in millimetres.

Shapes: D H W voxels of a scan oriented `SPL`; R rows and C columns of a slice.
"""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from deepseek.datasets.volume import Volume
from deepseek.deploy.report.markup import text

MAX_SIDE = 384
"""Pixels of a picture."""
QUALITY = 80
TINT, EDGE = 70, 235
"""How opaque a found class is, inside and at its edge."""
COLORS = ("#56b4e9", "#f0883e", "#2fc79b", "#df9ac4", "#f0c14b", "#9ecae8")
KNOWN = "#ffffff"
LEAST_RADIUS_MM = 3.0
AROUND_MM = 2.0
"""Between a finding and its circle."""
VIEWS = ("axial", "coronal", "sagittal")
_ROWS_COLUMNS = ((1, 2), (0, 2), (0, 1))
"""Which axis of the scan is down, and which to the right, in each view."""
_LETTERS = (("R", "L", "A", "P"), ("R", "L", "S", "I"), ("A", "P", "S", "I"))
"""Left, right, top and bottom of each view."""


@dataclass(frozen=True)
class Circle:
    """A sphere to be shown where a slice cuts it.

    Attributes:
        place: d, h, w in voxels of the scan.
        radius_mm: of the sphere.
        kind: `hit`, `false`, `found` or `known`: how it is drawn.
        label: a few letters beside it.
        words: what it is.
    """

    place: tuple[float, float, float]
    radius_mm: float
    kind: str
    label: str
    words: str


@dataclass(frozen=True, eq=False)
class Slices:
    """A scan to be drawn.

    Attributes:
        volume: oriented `SPL`; its first channel is drawn.
        window: what is black and what is white.
        found: class of each voxel (D, H, W), 0 for none; `None`: nothing of the kind.
        known: likewise.
        circles: spheres.
    """

    volume: Volume
    window: tuple[float, float]
    found: np.ndarray | None = None
    known: np.ndarray | None = None
    circles: Sequence[Circle] = ()

    def draw(self, view: int, place: Sequence[float], around_mm: float | None = None) -> str:
        """Return an `<svg>` of the slice through a place.

        Args:
            view: number in `VIEWS`.
            place: d, h, w in voxels.
            around_mm: draw only so much around the place, on each side.
        """
        sizes, spacing = self.volume.voxels.shape[1:], self.volume.spacing_mm
        index = min(max(round(place[view]), 0), sizes[view] - 1)
        axes = _ROWS_COLUMNS[view]
        box = [_range(place[axis], sizes[axis], spacing[axis], around_mm) for axis in axes]
        cut: list[slice | int] = [index] * 3
        for axis, (low, high) in zip(axes, box, strict=True):
            cut[axis] = slice(low, high)
        # slices lie from the feet up: the head is up where they are turned over
        flip = -1 if axes[0] == 0 else 1
        tall, wide = (
            (high - low) * spacing[axis] for axis, (low, high) in zip(axes, box, strict=True)
        )
        layers = [_image(self._grey(tuple(cut), flip), "jpeg", wide, tall)]
        overlay = self._overlay(tuple(cut), flip)
        if overlay is not None:
            layers.append(_image(overlay, "png", wide, tall, ' class="overlay"'))
        # of letters; in a flat view two must find room above each other
        size = min(wide / (10 if around_mm else 18), tall / 2.4)
        circles = [
            drawn
            for circle in self.circles
            if (drawn := self._circle(circle, view, index, box, (tall, wide), size))
        ]
        name = f"{VIEWS[view]}, slice {index + 1} of {sizes[view]}"
        shown = "; ".join(
            circle.words for circle in self.circles if self._is_cut(circle, view, index)
        )
        return (
            f'<svg class="slice" viewBox="0 0 {wide:.1f} {tall:.1f}" role="img"'
            f' aria-label="{text(name)}{text(": " + shown) if shown else ""}">'
            f'{"".join(layers)}<g class="overlay">{"".join(circles)}</g>'
            f"{_letters(view, wide, tall, size)}</svg>"
        )

    def _grey(self, cut: tuple, flip: int) -> Image.Image:
        low, high = self.window
        voxels = self.volume.voxels[0][cut][::flip].astype(np.float32)
        scaled = np.clip((voxels - low) / max(high - low, 1e-9), 0, 1) * 255
        picture = Image.fromarray(scaled.astype(np.uint8))
        picture.thumbnail((MAX_SIDE, MAX_SIDE))
        return picture

    def _overlay(self, cut: tuple, flip: int) -> Image.Image | None:
        """Return found classes, tinted and with an edge, and the edges of the known ones."""
        found, known = (
            None if labels is None else labels[cut][::flip] for labels in (self.found, self.known)
        )
        layers = [each for each in (found, known) if each is not None]
        if not any(each.any() for each in layers):
            return None
        # an edge is a pixel wide: of coarse slices it would hide half a class
        larger = max(1, MAX_SIDE // max(layers[0].shape))
        pixels = np.zeros((*(size * larger for size in layers[0].shape), 4), np.uint8)
        if found is not None:
            fine = np.kron(found, np.ones((larger, larger), found.dtype))
            for number in np.unique(fine[fine > 0]).tolist():
                inside = fine == number
                pixels[inside] = (*color_of(number), TINT)
                pixels[_edge(inside)] = (*color_of(number), EDGE)
        if known is not None:
            fine = np.kron(known, np.ones((larger, larger), known.dtype))
            for number in np.unique(fine[fine > 0]).tolist():
                pixels[_edge(fine == number)] = (*_rgb(KNOWN), EDGE)
        picture = Image.fromarray(pixels)
        picture.thumbnail((MAX_SIDE, MAX_SIDE))
        return picture

    def _is_cut(self, circle: Circle, view: int, index: int) -> bool:
        step = self.volume.spacing_mm[view]
        away = abs(circle.place[view] - index) * step
        return away <= max(circle.radius_mm, step / 2)

    def _circle(
        self, circle: Circle, view: int, index: int, box: Sequence[tuple[int, int]],
        extent: tuple[float, float], size: float,
    ) -> str:  # fmt: skip
        if not self._is_cut(circle, view, index):
            return ""
        rows, columns = _ROWS_COLUMNS[view]
        spacing = self.volume.spacing_mm
        x = (circle.place[columns] - box[1][0] + 0.5) * spacing[columns]
        y = (circle.place[rows] - box[0][0] + 0.5) * spacing[rows]
        tall, wide = extent
        y = tall - y if rows == 0 else y
        if not (0 <= x <= wide and 0 <= y <= tall):
            return ""
        radius = max(circle.radius_mm, LEAST_RADIUS_MM) + AROUND_MM
        side = radius + size * 0.3
        anchor, at = ("end", x - side) if x > wide * 0.8 else ("start", x + side)
        return (
            f'<g class="{circle.kind}"><title>{text(circle.words)}</title>'
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}" stroke-width="{size / 9:.2f}"/>'
            f'<text x="{at:.1f}" y="{y + size / 3:.1f}" text-anchor="{anchor}"'
            f' style="font-size:{size:.1f}px">{text(circle.label)}</text></g>'
        )


def color_of(number: int) -> tuple[int, int, int]:
    """Return the colour of a class, from 1, as red, green and blue."""
    return _rgb(COLORS[(number - 1) % len(COLORS)])


def _rgb(color: str) -> tuple[int, int, int]:
    return int(color[1:3], 16), int(color[3:5], 16), int(color[5:7], 16)


def _range(place: float, size: int, step_mm: float, around_mm: float | None) -> tuple[int, int]:
    if around_mm is None:
        return 0, size
    reach = around_mm / step_mm
    low, high = max(0, round(place - reach)), min(size, round(place + reach) + 1)
    return (low, high) if low < high else (0, size)


def _edge(inside: np.ndarray) -> np.ndarray:
    """Return the pixels of a mask (R, C) that have a neighbour outside of it."""
    around = np.pad(inside, 1)
    deep = around[:-2, 1:-1] & around[2:, 1:-1] & around[1:-1, :-2] & around[1:-1, 2:]
    return inside & ~deep


def _image(picture: Image.Image, kind: str, wide: float, tall: float, more: str = "") -> str:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **({"quality": QUALITY} if kind == "jpeg" else {"optimize": True}))
    address = f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return (
        f'<image{more} width="{wide:.1f}" height="{tall:.1f}" preserveAspectRatio="none"'
        f' href="{address}"/>'
    )


def _letters(view: int, wide: float, tall: float, size: float) -> str:
    left, right, top, bottom = _LETTERS[view]
    places = (
        (left, size * 0.3, tall / 2, "start"), (right, wide - size * 0.3, tall / 2, "end"),
        (top, wide / 2, size, "middle"), (bottom, wide / 2, tall - size * 0.4, "middle"),
    )  # fmt: skip
    return "".join(
        f'<text class="side" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
        f' style="font-size:{size:.1f}px">{letter}</text>'
        for letter, x, y, anchor in places
    )
