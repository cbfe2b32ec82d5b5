"""Simulated B-mode ultrasound of a breast with one lesion, its outline known exactly. NumPy and OpenCV only; no image is copied.

The picture is made in the order in which a scanner makes it. Tissue is a map of echogenicity (decibels) and one of attenuation
(decibels a millimetre). Scatterers are complex Gaussian noise of that strength; the point spread function of the probe (Gaussian along
and across the beam, wider away from the focus) turns them into fully developed, Rayleigh distributed speckle (Wagner et al., IEEE
Transactions on Sonics and Ultrasonics 30 (1983) 156). A few independent looks are compounded, as scanners do; attenuation is summed
down each beam, which leaves shadows and enhancement behind what attenuates more or less than its surroundings; noise is added, and
the logarithm of the power is mapped to grey levels.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from cmunext.errors import UsageError

Map = NDArray[np.float32]

FIELD_WIDTH = 40.0  # millimetres across the image: a linear probe
DYNAMIC_RANGE = 60.0  # decibels from black to white
LOOKS = 6  # compounded; the speckle's contrast falls with their square root
MIN_SIDE = 64  # pixels; below it speckle has no room


@dataclass(frozen=True)
class Kind:
    """A kind of lesion: strengths in decibels, lengths in millimetres, each drawn uniformly from its range.

    Attributes
    ----------
    half_width, flatness : of the ellipse that the outline departs from; flatness is width over height.
    lobes, irregularity : highest angular frequency of the departure, and its size relative to the radius.
    echo : of the inside, relative to glandular tissue.
    texture : spread of the inside's echo.
    blur : width of the transition at the margin.
    capsule, halo : a thin bright skin, and a broad bright rim of reacting tissue around it.
    attenuation : beyond that of the surroundings, per millimetre; negative gives enhancement behind.
    edge_shadow : per millimetre, where the beam grazes the margin and is refracted.
    """

    half_width: tuple[float, float]
    flatness: tuple[float, float]
    lobes: int
    irregularity: tuple[float, float]
    echo: tuple[float, float]
    texture: float
    blur: tuple[float, float]
    capsule: tuple[float, float]
    halo: tuple[float, float]
    attenuation: tuple[float, float]
    edge_shadow: tuple[float, float]


KINDS = {
    "cyst": Kind(
        half_width=(2.5, 7.5), flatness=(1.1, 1.7), lobes=3, irregularity=(0.01, 0.04), echo=(-34, -24), texture=1, blur=(0.1, 0.3),
        capsule=(2, 8), halo=(0, 1), attenuation=(-0.9, -0.4), edge_shadow=(0.5, 2.0),
    ),
    "benign": Kind(
        half_width=(3.5, 8.5), flatness=(1.3, 2.1), lobes=4, irregularity=(0.02, 0.07), echo=(-20, -13), texture=2, blur=(0.2, 0.5),
        capsule=(2, 8), halo=(0, 2), attenuation=(-0.3, 0.2), edge_shadow=(0.5, 2.0),
    ),
    "malignant": Kind(
        half_width=(4.0, 8.0), flatness=(0.9, 1.5), lobes=14, irregularity=(0.12, 0.2), echo=(-22, -14), texture=3, blur=(0.4, 0.9),
        capsule=(0, 1), halo=(1, 5), attenuation=(0.2, 0.9), edge_shadow=(0.0, 0.4),
    ),
}  # fmt: skip
SHARES = {"cyst": 0.2, "benign": 0.45, "malignant": 0.35}


def simulate(seed: int, height: int = 472, width: int = 568) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Simulate one image of a lesion.

    Parameters
    ----------
    seed : the same seed and size give the same image.
    height, width : pixels; the image always shows 40 mm across, and as much depth as `height` leaves.

    Returns
    -------
    The image, uint8 height x width (grey), and the truth, bool height x width: which pixels belong to the lesion.

    Raises UsageError when a side is shorter than 64 pixels.
    """
    if min(height, width) < MIN_SIDE:
        raise UsageError(f"a phantom of {height} x {width} pixels is too small; both sides must be at least {MIN_SIDE}")
    random = np.random.default_rng(seed)
    step = FIELD_WIDTH / width  # millimetres a pixel
    kind = KINDS[random.choice(list(SHARES), p=list(SHARES.values()))]
    truth = _outline(random, kind, height, width, step)
    echo = _tissue(random, height, width, step)
    echo, attenuation = _place(random, kind, truth, echo, step)
    power = _speckle(random, echo, step)
    loss = _loss(random, attenuation, step)
    noise = _smooth(random.exponential(1.0, truth.shape), 0.1 / step, 0.2 / step)  # of the electronics, on which gain has no hold
    decibels = 10 * np.log10(power * 10 ** (-loss / 10) + 10 ** (-5.6) * noise + 1e-12)
    gain = random.uniform(-2, 3)
    grey = _smooth(255 * (decibels + gain + 36) / DYNAMIC_RANGE, 0.05 / step, 0.06 / step)  # as scan conversion does
    return np.clip(np.round(grey), 0, 255).astype(np.uint8), truth


def _outline(random: np.random.Generator, kind: Kind, height: int, width: int, step: float) -> NDArray[np.bool_]:
    """The lesion: an ellipse whose radius departs by a few random harmonics, somewhere in the upper two thirds."""
    depth = height * step
    half_width = min(random.uniform(*kind.half_width), 0.22 * depth)
    half_height = half_width / random.uniform(*kind.flatness)
    centre_x = random.uniform(0.3, 0.7) * FIELD_WIDTH
    centre_y = random.uniform(max(0.24 * depth, half_height + 0.1 * depth), 0.5 * depth)
    tilt = random.normal(0, 0.15)
    x, y = np.meshgrid(np.arange(width) * step - centre_x, np.arange(height) * step - centre_y)
    along, beside = x * np.cos(tilt) + y * np.sin(tilt), y * np.cos(tilt) - x * np.sin(tilt)
    angle = np.arctan2(beside / half_height, along / half_width)
    orders = np.arange(2, kind.lobes + 1)
    amplitudes = random.uniform(*kind.irregularity) * random.normal(0, 1, len(orders)) / (orders / 2) ** 1.2
    phases = random.uniform(0, 2 * np.pi, len(orders))
    departure = sum(a * np.cos(k * angle + p) for a, k, p in zip(amplitudes, orders, phases, strict=True))
    return np.hypot(along / half_width, beside / half_height) <= 1 + np.clip(departure, -0.45, 0.6)


def _tissue(random: np.random.Generator, height: int, width: int, step: float) -> Map:
    """Echogenicity in decibels, the gland's about 0: skin, fat with septa, gland with strands, fascia, muscle with fibres."""
    depth = height * step
    y = (np.arange(height) * step)[:, None]
    skin = 1.2 + _curve(random, width, step, 0.15, 12)
    gland = random.uniform(0.12, 0.24) * depth + _curve(random, width, step, 1.0, 7)
    fat = random.uniform(0.55, 0.75) * depth + _curve(random, width, step, 1.2, 12)
    muscle = fat + random.uniform(1.0, 2.5) + _curve(random, width, step, 0.4, 8)

    stripes = _texture(random, height, width, 0.3 / step, 2.5 / step)
    clumps = _texture(random, height, width, 1.3 / step, 2.6 / step)
    islands = np.clip(_texture(random, height, width, 0.8 / step, 2.0 / step) - 1.0, 0, 1.2)  # of fat in the gland
    echo = 3.0 * stripes + 3.0 * clumps - 8 * islands
    echo = np.where(y < gland, -9 + 0.8 * stripes + 1.5 * clumps, echo)
    echo = np.where(y > fat, -8 + stripes + 1.5 * clumps, echo)
    echo = np.where(y > muscle, -11 + 3 * _texture(random, height, width, 0.2 / step, 4 / step), echo)
    echo = np.where(y < skin, 4.0, echo)
    echo = _reflect(random, echo, skin, 10, 0.12, step, gaps=False)
    echo = _reflect(random, echo, gland, 13, 0.2, step)
    echo = _reflect(random, echo, muscle, 16, 0.2, step)
    for _ in range(random.integers(2, 6)):  # septa in the fat
        echo = _reflect(random, echo, random.uniform(0.3, 0.95) * gland + _curve(random, width, step, 0.6, 6), 15, 0.12, step)
    for _ in range(random.integers(5, 12)):  # strands in the gland
        share = random.uniform(0.05, 0.95)
        echo = _reflect(random, echo, (1 - share) * gland + share * fat + _curve(random, width, step, 0.8, 5), 11, 0.15, step)
    for _ in range(random.integers(3, 8)):  # fibres of the muscle, seldom level
        slope = random.normal(0, 0.06) * (np.arange(width) * step - FIELD_WIDTH / 2)
        echo = _reflect(random, echo, muscle + random.uniform(0.5, 8) + slope, 13, 0.15, step)
    return echo.astype(np.float32)


def _place(random: np.random.Generator, kind: Kind, truth: NDArray[np.bool_], echo: Map, step: float) -> tuple[Map, Map]:
    """Put the lesion into the tissue: its echo map, and the attenuation beyond the surroundings' in decibels a millimetre."""
    inside = truth.astype(np.uint8)
    distance = (cv2.distanceTransform(1 - inside, cv2.DIST_L2, 5) - cv2.distanceTransform(inside, cv2.DIST_L2, 5)) * step
    across, down = (cv2.GaussianBlur(part, (0, 0), 0.4 / step) for part in np.gradient(distance)[::-1])
    norm = np.hypot(across, down) + 1e-6
    level, grazing = np.abs(down) / norm, np.abs(across) / norm  # how square to the beam, and how parallel, the margin runs

    halo = random.uniform(*kind.halo) * np.exp(-np.maximum(distance, 0) / 1.2)
    texture = kind.texture * _texture(random, echo.shape[0], echo.shape[1], 0.7 / step, 0.9 / step)
    content = random.uniform(*kind.echo) + texture
    share = 1 / (1 + np.exp(np.clip(distance / (random.uniform(*kind.blur) / 4), -30, 30)))
    placed = share * content + (1 - share) * (echo + halo)
    placed = placed + random.uniform(*kind.capsule) * level**2 * np.exp(-(((distance - 0.15) / 0.15) ** 2))

    attenuation = random.uniform(*kind.attenuation) * share
    attenuation = attenuation + random.uniform(*kind.edge_shadow) * grazing**6 * np.exp(-((distance / 0.35) ** 2))
    return placed.astype(np.float32), attenuation.astype(np.float32)


def _speckle(random: np.random.Generator, echo: Map, step: float) -> Map:
    """Received power: scatterers seen through the point spread function, mean 1 where the echo is 0 dB, averaged over looks."""
    height, width = echo.shape
    strength = (10 ** (echo / 20)).astype(np.float32)
    focus = random.uniform(0.25, 0.45) * height
    defocus = np.clip(np.abs(np.arange(height) - focus) / (0.75 * height), 0, 1)[:, None].astype(np.float32)
    power = np.zeros_like(echo)
    for _ in range(LOOKS):
        for _ in range(2):  # in phase, and in quadrature
            scatterers: Map = strength * random.standard_normal((height, width), np.float32)
            sharp, wide = (_unit_blur(scatterers, 0.13 / step, lateral / step) for lateral in (0.2, 0.45))
            mixed = (1 - defocus) * sharp + defocus * wide
            power += mixed**2 / (2 * LOOKS)
    return power


def _loss(random: np.random.Generator, attenuation: Map, step: float) -> Map:
    """Decibels lost on the way down and back: what gain does not make up for, the lesion's own, poor contact with the skin."""
    height, width = attenuation.shape
    own = np.cumsum(attenuation, axis=0) * step
    own = cv2.GaussianBlur(own, (0, 0), sigmaX=0.5 / step, sigmaY=0.01 + 0.2 / step)
    share = np.linspace(0, 1, height)[:, None]
    start = random.uniform(0.1, 0.3)
    general = random.uniform(18, 32) * np.clip((share - start) / (1 - start), 0, 1) ** 1.2
    contact = 2.5 * _curve(random, width, step, 1.0, 5) * np.clip(share / 0.3, 0, 1)
    return (np.clip(own, -12, 25) + general + contact).astype(np.float32)


def _reflect(
    random: np.random.Generator,
    echo: NDArray[np.floating],
    line: NDArray[np.floating],
    gain: float,
    thickness: float,
    step: float,
    gaps: bool = True,
) -> NDArray[np.floating]:
    """Add a specular reflector along `line` (depth of each column, mm). It fades where it is steep and, with `gaps`, at random."""
    y = (np.arange(len(echo)) * step)[:, None]
    visible = 1 / (1 + (3 * np.gradient(line, step)) ** 2)
    if gaps:
        visible = visible * np.clip(0.4 + 0.7 * _curve(random, echo.shape[1], step, 1.0, 4), 0, 1.3)
    return echo + gain * visible * np.exp(-(((y - line) / thickness) ** 2))


def _curve(random: np.random.Generator, width: int, step: float, spread: float, length: float) -> NDArray[np.float64]:
    """A smooth random curve over the columns: standard deviation `spread`, correlated over `length` mm."""
    sigma = length / 2 / step
    margin = int(3 * sigma)
    noise = random.standard_normal((1, width + 2 * margin), np.float32)
    return spread * _unit_blur(noise, 0, sigma)[0, margin : margin + width].astype(np.float64)


def _texture(random: np.random.Generator, height: int, width: int, axial: float, lateral: float) -> Map:
    """Correlated Gaussian noise of unit variance; correlation lengths in pixels."""
    return _unit_blur(random.standard_normal((height, width), np.float32), axial, lateral)


def _unit_blur(noise: Map, axial: float, lateral: float) -> Map:
    """Gaussian blur of white noise that keeps its variance: the kernel has unit energy."""
    across, down = _energy_kernel(lateral), _energy_kernel(axial)
    return cv2.sepFilter2D(noise, cv2.CV_32F, across, down, borderType=cv2.BORDER_REFLECT)


def _energy_kernel(sigma: float) -> NDArray[np.float32]:
    reach = int(np.ceil(3 * sigma))
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / max(sigma, 1e-6)) ** 2)
    return (kernel / np.sqrt((kernel**2).sum())).astype(np.float32)


def _smooth(field: NDArray[np.float64], axial: float, lateral: float) -> Map:
    return cv2.GaussianBlur(field.astype(np.float32), (0, 0), sigmaX=lateral, sigmaY=axial)
