"""What the mini sets draw: outlines of squares and disks, closed or open, on uneven grey.

Everything is integer arithmetic on numpy's frozen `RandomState` stream.
"""

import numpy as np

SIDE = 128  # pixels of an image
SHAPES = ("square", "disk")
# Outlines as corners around (0, 0), within -1000..1000.
_SHAPES = {
    "square": [(-880, -880), (880, -880), (880, 880), (-880, 880)],
    "disk": [
        *[(1000, 0), (924, 383), (707, 707), (383, 924)],
        *[(0, 1000), (-383, 924), (-707, 707), (-924, 383)],
        *[(-1000, 0), (-924, -383), (-707, -707), (-383, -924)],
        *[(0, -1000), (383, -924), (707, -707), (924, -383)],
    ],
}
# Rotations (cos, sin, denominator) from Pythagorean triples: exact, unlike libm's sine.
ROTATIONS = [
    (1, 0, 1),
    (12, 5, 13),
    (12, -5, 13),
    (4, 3, 5),
    (4, -3, 5),
    (24, 7, 25),
    (24, -7, 25),
]
_Y, _X = np.mgrid[0:SIDE, 0:SIDE]


def corners(shape: str, radius: int, center: tuple[int, int], rotation: int) -> np.ndarray:
    """Corners in half pixels, (n, 2) of (x, y)."""
    cos, sin, den = ROTATIONS[rotation]
    points = np.array(_SHAPES[shape], dtype=np.int64)
    turned = np.stack(
        [points[:, 0] * cos - points[:, 1] * sin, points[:, 0] * sin + points[:, 1] * cos], axis=1
    )
    return 2 * np.array(center) + (turned * 2 * radius) // (1000 * den)


def inside(corners: np.ndarray) -> np.ndarray:
    """Pixels whose centre lies inside the polygon (even-odd rule), bool (SIDE, SIDE)."""
    x, y = 2 * _X + 1, 2 * _Y + 1  # pixel centres in half pixels
    within = np.zeros((SIDE, SIDE), dtype=bool)
    for (x0, y0), (x1, y1) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        if y0 == y1:
            continue
        if y0 > y1:
            x0, y0, x1, y1 = x1, y1, x0, y0
        crosses = (y0 <= y) & (y < y1) & ((x - x0) * (y1 - y0) < (x1 - x0) * (y - y0))
        within ^= crosses
    return within


def outline(shape: str, radius: int, center: tuple[int, int], rotation: int) -> np.ndarray:
    """The contour, 2 to 4 px wide."""
    width = 2 + radius // 24
    outer = inside(corners(shape, radius, center, rotation))
    return outer & ~inside(corners(shape, radius - width, center, rotation))


def ink(rng: np.random.RandomState) -> int:
    """A grey that stands out from the background."""
    return int(rng.choice([rng.randint(0, 40), rng.randint(216, 256)]))


def background(rng: np.random.RandomState) -> np.ndarray:
    """Uneven grey: no colour but that of the objects that show the image's."""
    coarse = rng.randint(-14, 15, (SIDE // 8, SIDE // 8, 1)).repeat(8, axis=0).repeat(8, axis=1)
    fine = rng.randint(-10, 11, (SIDE, SIDE, 3))
    return rng.randint(90, 166) + coarse + fine


def object_radius(rng: np.random.RandomState) -> int:
    """Half the object's size in pixels: from smaller than a window to most of the image."""
    tier = rng.choice(4, p=[0.75, 0.15, 0.07, 0.03])
    low, high = [(6, 11), (12, 22), (23, 44), (45, 61)][tier]
    return int(rng.randint(low, high + 1))


def place(rng: np.random.RandomState, reach: int, taken: list) -> tuple[int, int] | None:
    """A centre (x, y) so that contours keep apart; a small shape may lie inside a large one.

    Args:
        reach: how far the shape extends from its centre, in pixels.
        taken: (x, y, reach) of what is drawn already.

    Returns:
        None if there is no room.
    """
    if 2 * reach > SIDE:
        return None
    for _ in range(20):
        x, y = (int(v) for v in rng.randint(reach, SIDE - reach + 1, 2))
        if all(
            max(abs(x - u), abs(y - v)) > reach + r + 1
            or max(abs(x - u), abs(y - v)) < abs(reach - r) // 2 - 4
            for u, v, r in taken
        ):
            return x, y
    return None


def extent(shape: str, radius: int, rotation: int) -> int:
    """Pixels that a shape extends from its centre along an axis, at most."""
    return int(np.abs(corners(shape, radius, (0, 0), rotation)).max() + 1) // 2


def draw_open(rng: np.random.RandomState, image: np.ndarray, taken: list) -> None:
    """Clutter: at most half of an object's outline, which by itself is no object."""
    radius = int(rng.randint(10, 40))
    shape, rotation = SHAPES[rng.randint(len(SHAPES))], int(rng.randint(len(ROTATIONS)))
    reach = extent(shape, radius, rotation)
    center = place(rng, reach, taken)
    if center is None:
        return
    taken.append((*center, reach))
    contour = outline(shape, radius, center, rotation)
    u, v = rng.randint(-8, 9, 2)
    half = (_X - center[0]) * (2 * u + 1) + (_Y - center[1]) * (2 * v + 1) > 0
    image[contour & half] = ink(rng)
