"""Small datasets that tests make for themselves."""

from pathlib import Path

import cv2
import numpy as np


def write_dataset(root: Path, cases: int = 12, side: int = 48, classes: int = 1, seed: int = 0) -> list[str]:
    """Bright disks on noise in the official layout, plus `train.txt` (all but a third) and `val.txt`; gives the names."""
    generator = np.random.default_rng(seed)
    rows, columns = np.mgrid[:side, :side]
    names = [f"{('benign', 'malignant')[case % 2]} ({case + 1})" for case in range(cases)]
    (root / "images").mkdir(parents=True)
    for number in range(classes):
        (root / "masks" / str(number)).mkdir(parents=True)
    for name in names:
        image = generator.integers(0, 90, (side, side), dtype=np.uint8)
        for number in range(classes):
            row, column = generator.integers(side // 4, 3 * side // 4, 2)
            radius = generator.integers(5, side // 4)
            mask = (rows - row) ** 2 + (columns - column) ** 2 <= radius**2
            image[mask] = np.minimum(image[mask] + 100 + 40 * number, 255)
            cv2.imwrite(str(root / "masks" / str(number) / f"{name}.png"), 255 * mask.astype(np.uint8))
        cv2.imwrite(str(root / "images" / f"{name}.png"), image)
    held_out = cases // 3
    (root / "train.txt").write_text("\n".join(names[held_out:]) + "\n")
    (root / "val.txt").write_text("\n".join(names[:held_out]) + "\n")
    return names
