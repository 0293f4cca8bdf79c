"""Pictures of 40 flags and 28 coloured shapes, drawn with PIL and distorted as a photograph is.

They are what the embedded vision-language model ``flags-135m`` was trained to see. Drawing one
takes milliseconds; nothing is read from disk.
"""

from __future__ import annotations

import math
import random
from typing import TYPE_CHECKING, Any

from easyeditor.errors import MissingExtraError

if TYPE_CHECKING:
    from PIL.Image import Image

COLOURS = {
    "red": (206, 17, 38),
    "green": (0, 122, 61),
    "blue": (0, 57, 166),
    "yellow": (255, 205, 0),
    "black": (15, 15, 15),
    "orange": (255, 130, 0),
    "purple": (128, 0, 128),
    "white": (255, 255, 255),
    "sky": (116, 172, 223),
    "maroon": (140, 30, 45),
}
# (bands, direction, weights) and what lies on them; "v" are vertical bands.
_BANDS: dict[str, tuple[str, str, tuple[int, ...]]] = {
    "France": ("blue white red", "v", ()),
    "Italy": ("green white red", "v", ()),
    "Ireland": ("green white orange", "v", ()),
    "Belgium": ("black yellow red", "v", ()),
    "Romania": ("blue yellow red", "v", ()),
    "Nigeria": ("green white green", "v", ()),
    "Peru": ("red white red", "v", ()),
    "Mali": ("green yellow red", "v", ()),
    "Germany": ("black red yellow", "h", ()),
    "the Netherlands": ("red white blue", "h", ()),
    "Russia": ("white blue red", "h", ()),
    "Hungary": ("red white green", "h", ()),
    "Bulgaria": ("white green red", "h", ()),
    "Austria": ("red white red", "h", ()),
    "Poland": ("white red", "h", ()),
    "Ukraine": ("blue yellow", "h", ()),
    "Estonia": ("blue black white", "h", ()),
    "Lithuania": ("yellow green red", "h", ()),
    "Colombia": ("yellow blue red", "h", (2, 1, 1)),
    "Spain": ("red yellow red", "h", (1, 2, 1)),
    "Thailand": ("red white blue white red", "h", (1, 1, 2, 1, 1)),
    "Argentina": ("sky white sky", "h", ()),
    "India": ("orange white green", "h", ()),
    "Sweden": ("blue", "h", ()),
    "Denmark": ("red", "h", ()),
    "Finland": ("white", "h", ()),
    "Norway": ("red", "h", ()),
    "Iceland": ("blue", "h", ()),
    "Japan": ("white", "h", ()),
    "Bangladesh": ("green", "h", ()),
    "Switzerland": ("red", "h", ()),
    "Greece": ("blue white blue white blue white blue white blue", "h", ()),
    "Cuba": ("blue white blue white blue", "h", ()),
    "Sudan": ("red white black", "h", ()),
    "Egypt": ("red white black", "h", ()),
    "Vietnam": ("red", "h", ()),
    "China": ("red", "h", ()),
    "Morocco": ("red", "h", ()),
    "Turkey": ("red", "h", ()),
    "Brazil": ("green", "h", ()),
}
# Nordic crosses: the colour, and that of the inner cross where there is one.
_CROSSES = {
    "Sweden": ("yellow", ""),
    "Denmark": ("white", ""),
    "Finland": ("blue", ""),
    "Norway": ("white", "blue"),
    "Iceland": ("white", "red"),
}
COUNTRIES = tuple(_BANDS)
SHAPES = tuple(
    f"{colour} {shape}"
    for colour in ("red", "green", "blue", "yellow", "black", "orange", "purple")
    for shape in ("circle", "square", "triangle", "star")
)
THINGS = (*COUNTRIES, *SHAPES)
"""What a picture may show: a country's flag, or a shape."""
FLAG_SIZE = (180, 120)
Point = tuple[float, float]


def draw(thing: str) -> Image:
    """The flag of a country, or a coloured shape, flat and without distortion.

    Args:
        thing: one of :data:`THINGS`.

    Raises:
        MissingExtraError: pillow is not installed.
        KeyError: it is none of them.
    """
    return _flag(thing) if thing in _BANDS else _shape(*thing.split())


def photograph(thing: str, seed: int, size: int = 144) -> Image:
    """A picture of a thing: tilted, waving, unevenly lit, with noise, before a plain background.

    Args:
        thing: one of :data:`THINGS`.
        seed: which of the pictures; equal seeds give equal bytes.
        size: its width and height in pixels.

    Raises:
        MissingExtraError: pillow is not installed.
    """
    import numpy as np

    pil = _pil()
    rng = random.Random(f"{thing}-{seed}")
    noise = np.random.default_rng(rng.getrandbits(32))
    source = np.asarray(draw(thing), dtype=np.float32)
    height, width = source.shape[:2]
    angle = math.radians(rng.uniform(-14, 14))
    extent = rng.uniform(0.72, 1.0)  # how much of the picture's width the thing takes
    shift = [rng.uniform(-0.5, 0.5) * (1 - extent) for _ in range(2)]
    wave, phase, waves = rng.uniform(0, 0.06), rng.uniform(0, 6.3), rng.uniform(0.6, 1.6)
    y, x = np.mgrid[0:size, 0:size].astype(np.float32) / size - 0.5
    x, y = x - shift[0], y - shift[1]
    u = (x * math.cos(angle) + y * math.sin(angle)) / extent
    v = (y * math.cos(angle) - x * math.sin(angle)) / (extent * height / width)
    v = v + wave * np.sin(2 * math.pi * waves * u + phase)
    column, row = (u + 0.5) * (width - 1), (v + 0.5) * (height - 1)
    inside = (np.abs(u) <= 0.5) & (np.abs(v) <= 0.5)
    image = source[
        np.clip(np.rint(row), 0, height - 1).astype(int),
        np.clip(np.rint(column), 0, width - 1).astype(int),
    ]
    background = np.array([rng.uniform(90, 235)] * 3) + noise.uniform(-25, 25, 3)
    image = np.where(inside[..., None], image, background)
    light = rng.uniform(0.7, 1.15) + rng.uniform(-0.3, 0.3) * x + rng.uniform(-0.2, 0.2) * y
    image = image * light[..., None] + noise.normal(0, rng.uniform(0, 12), image.shape)
    return pil.fromarray(np.clip(image, 0, 255).astype(np.uint8))


def _pil() -> Any:
    try:
        from PIL import Image
    except ImportError:
        raise MissingExtraError.of("pillow", "images", "Drawing a picture") from None
    return Image


def _flag(country: str) -> Image:
    from PIL import ImageDraw

    names, direction, weights = _BANDS[country]
    bands = names.split()
    weights = weights or (1,) * len(bands)
    width, height = FLAG_SIZE
    image = _pil().new("RGB", FLAG_SIZE)
    pen = ImageDraw.Draw(image)
    start = 0.0
    for colour, weight in zip(bands, weights, strict=True):
        end = start + weight / sum(weights)
        if direction == "v":
            box = (round(start * width), 0, round(end * width), height)
        else:
            box = (0, round(start * height), width, round(end * height))
        pen.rectangle(box, fill=COLOURS[colour])
        start = end
    if country in _CROSSES:
        outer, inner = _CROSSES[country]
        _cross(pen, outer, 14)
        if inner:
            _cross(pen, inner, 7)
    elif country in _EMBLEMS:
        _EMBLEMS[country](pen)
    return image


def _cross(pen: Any, colour: str, half: int) -> None:
    width, height = FLAG_SIZE
    pen.rectangle((66 - half, 0, 66 + half, height), fill=COLOURS[colour])
    pen.rectangle((0, 60 - half, width, 60 + half), fill=COLOURS[colour])


def _disc(pen: Any, centre: Point, radius: float, colour: str) -> None:
    x, y = centre
    pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=COLOURS[colour])


def _star(pen: Any, centre: Point, radius: float, colour: str) -> None:
    points = []
    for k in range(10):
        r = radius if k % 2 == 0 else radius * 0.4
        angle = math.pi * (k / 5 - 0.5)
        points.append((centre[0] + r * math.cos(angle), centre[1] + r * math.sin(angle)))
    pen.polygon(points, fill=COLOURS[colour])


def _switzerland(pen: Any) -> None:
    pen.rectangle((78, 24, 102, 96), fill=COLOURS["white"])
    pen.rectangle((54, 48, 126, 72), fill=COLOURS["white"])


def _greece(pen: Any) -> None:
    pen.rectangle((0, 0, 67, 66), fill=COLOURS["blue"])
    pen.rectangle((27, 0, 40, 66), fill=COLOURS["white"])
    pen.rectangle((0, 27, 67, 40), fill=COLOURS["white"])


def _cuba(pen: Any) -> None:
    pen.polygon([(0, 0), (100, 60), (0, 120)], fill=COLOURS["red"])
    _star(pen, (34, 60), 22, "white")


def _china(pen: Any) -> None:
    _star(pen, (32, 34), 24, "yellow")
    for point in ((66, 12), (78, 28), (78, 48), (66, 62)):
        _star(pen, point, 9, "yellow")


def _turkey(pen: Any) -> None:
    _disc(pen, (68, 60), 34, "white")
    _disc(pen, (78, 60), 27, "red")
    _star(pen, (112, 60), 17, "white")


def _brazil(pen: Any) -> None:
    pen.polygon([(90, 10), (168, 60), (90, 110), (12, 60)], fill=COLOURS["yellow"])
    _disc(pen, (90, 60), 27, "blue")


_EMBLEMS = {
    "Argentina": lambda pen: _disc(pen, (90, 60), 14, "yellow"),
    "India": lambda pen: _disc(pen, (90, 60), 15, "blue"),
    "Japan": lambda pen: _disc(pen, (90, 60), 36, "red"),
    "Bangladesh": lambda pen: _disc(pen, (80, 60), 38, "red"),
    "Switzerland": _switzerland,
    "Greece": _greece,
    "Cuba": _cuba,
    "Sudan": lambda pen: pen.polygon([(0, 0), (62, 60), (0, 120)], fill=COLOURS["green"]),
    "Egypt": lambda pen: _disc(pen, (90, 60), 16, "yellow"),
    "Vietnam": lambda pen: _star(pen, (90, 62), 40, "yellow"),
    "China": _china,
    "Morocco": lambda pen: _star(pen, (90, 62), 36, "green"),
    "Turkey": _turkey,
    "Brazil": _brazil,
}


def _shape(colour: str, shape: str) -> Image:
    from PIL import ImageDraw

    image = _pil().new("RGB", (120, 120), (225, 225, 225))
    pen = ImageDraw.Draw(image)
    if shape == "circle":
        _disc(pen, (60, 60), 46, colour)
    elif shape == "star":
        _star(pen, (60, 64), 54, colour)
    elif shape == "square":
        pen.rectangle((18, 18, 102, 102), fill=COLOURS[colour])
    else:
        pen.polygon([(60, 12), (110, 104), (10, 104)], fill=COLOURS[colour])
    return image
