"""The authors' losses and metrics on random cases (goldens/losses_metrics.json), the cases made again from their recipes."""

import json
from pathlib import Path

import numpy as np

_GOLDENS = Path(__file__).parent / "goldens" / "losses_metrics.json"


def cases(group: str) -> list[dict]:
    """The cases of "bce_dice", "boundary_dou" or "metrics"; those of metrics have the recipes of their namesakes in bce_dice."""
    return json.loads(_GOLDENS.read_text())[group]


def _disk(shape: tuple[int, int], radius: float, n: int = 0) -> np.ndarray:
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    return (rows - shape[0] // 2 - 3 * n) ** 2 + (columns - shape[1] // 2 + 3 * n) ** 2 <= radius**2


def bce_dice_case(case: dict) -> tuple[np.ndarray, np.ndarray]:
    """Logits and target, float32 N x 1 x H x W. Checked against the sums that the case records."""
    if "logits_array" in case:
        logits, target = (np.array(case[key], np.float32)[None, None] for key in ("logits_array", "target_array"))
        return logits, target
    shape, kind, wanted = tuple(case["shape"]), case["logits"], case["target"]
    generator = np.random.default_rng(np.random.PCG64(case["seed"]))
    constants = {"neg5": -5.0, "pos5": 5.0, "zero": 0.0}
    logits = (3 * generator.standard_normal(shape)).astype(np.float32)  # drawn in every case, used in some

    if wanted.startswith("bern"):
        target = generator.random(shape) < float(wanted[4:])
    elif wanted == "soft":
        target = generator.random(shape)
    elif wanted.startswith("disk"):
        target = np.stack([_disk(shape[2:], float(wanted[4:]), n)[None] for n in range(shape[0])])
    elif wanted == "firstempty":
        target = np.stack([_disk(shape[2:], shape[2] // 5, n)[None] for n in range(shape[0])])
        target[0] = False
    else:
        target = np.full(shape, {"zeros": 0.0, "ones": 1.0}[wanted])
    target = target.astype(np.float32)

    if kind == "match":
        logits = 10 * target - 5
    elif kind == "diskshift":
        logits = 10 * np.roll(target, 4, axis=-1) - 5
    elif kind in constants:
        logits = np.full(shape, constants[kind], np.float32)
    assert np.isclose(logits.sum(dtype=np.float64), case["logits_sum"], rtol=1e-9), case["name"]
    assert np.isclose(target.sum(dtype=np.float64), case["target_sum"], rtol=1e-6), case["name"]
    return logits, target


def boundary_dou_case(case: dict) -> tuple[np.ndarray, np.ndarray]:
    """Logits float32 N x K x H x W and class numbers int64 N x H x W. Checked against the sums that the case records."""
    batch, _, height, width = shape = tuple(case["shape"])
    wanted, classes = case["target"], case["n_classes"]
    generator = np.random.default_rng(np.random.PCG64(case["seed"]))
    logits = (2 * generator.standard_normal(shape)).astype(np.float32)
    target = np.zeros((batch, height, width), np.int64)
    if wanted == "randint":
        target = generator.integers(0, classes, (batch, height, width))
    elif wanted == "border":
        target[:, : height // 3, : width // 2] = 1
    elif wanted == "rings":
        rows, columns = np.mgrid[:height, :width]
        distance = np.hypot(rows - height / 2, columns - width / 2)
        for radius, label in ((18, 1), (12, 2), (6, 3)):
            target[:, distance < radius] = label % classes
    elif wanted == "onepixel":
        target[:, 5, 7] = 1
    elif wanted == "ones":
        target[:] = 1
    elif wanted != "zeros":
        radius = 28.0 if wanted == "bigdisk" else float(wanted[4:])
        target = np.stack([_disk((height, width), radius, n) for n in range(batch)]).astype(np.int64)
    assert np.isclose(logits.sum(dtype=np.float64), case["logits_sum"], rtol=1e-9), case["name"]
    assert target.sum() == case["target_sum"], case["name"]
    return logits, target
