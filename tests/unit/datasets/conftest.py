"""Pictures drawn on the spot, and the folder of real data where there is one."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def draw(seed: int, width: int = 40, height: int = 30) -> Image.Image:
    """A smooth random picture: JPEG keeps it well, unlike noise."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture
def class_folders(tmp_path: Path) -> Path:
    root = tmp_path / "pictures"
    for label, name in enumerate(("cat", "dog", "eel")):
        folder = root / name / ("nested" if name == "eel" else "")
        folder.mkdir(parents=True)
        for i in range(6):
            size = (60 + 7 * i, 50 + 3 * label)
            draw(10 * label + i, *size).save(folder / f"{i}.{'png' if i % 2 else 'jpg'}")
    return root


@pytest.fixture(scope="session")
def real_data() -> Path:
    here = Path(__file__).parents[3]
    path = Path(os.environ.get("DEEPSEEK_TEST_DATA", here.parent / "shared" / "data"))
    if not path.is_dir():
        pytest.skip(f"no real data at {path}; set DEEPSEEK_TEST_DATA")
    return path
