"""What is measured against the truth: masks that weights give, or those that any other program left in a folder."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cmunext.data.layout import Layout, files_by_name
from cmunext.errors import InputError, UsageError
from cmunext.image.files import read_levels
from cmunext.inference.results import MASK, output_names
from cmunext.inference.segmenter import Segmenter
from cmunext.metadata import unnamed_classes


@dataclass(frozen=True)
class MaskFolder:
    """Masks that some program made, one a case: NAME.png, or as `segment` names them, NAME_mask.png. Of K classes 0/NAME.png,
    1/NAME.png, ..., or NAME_mask_CLASS.png.

    Attributes
    ----------
    root : the folder.
    classes : the names of its classes, in the order of the folders 0, 1, ...
    files : for each class, name (or NAME_mask) -> its mask files.
    """

    root: Path
    classes: tuple[str, ...]
    files: tuple[Mapping[str, tuple[Path, ...]], ...] = field(repr=False)

    @classmethod
    def open(cls, root: str | os.PathLike[str], classes: Sequence[str] = unnamed_classes(1)) -> "MaskFolder":
        """List a folder of masks of these classes; nothing is decoded. One class may lie in the folder itself.

        Raises UsageError when it is not a folder, one of the classes is not there, or there are more.
        """
        root = Path(root)
        folders = [root / str(number) for number in range(len(classes))]
        if len(classes) == 1 and not folders[0].is_dir():
            folders = [root]
        if (root / str(len(classes))).is_dir():
            raise UsageError(
                f"{root} has masks of more classes than the dataset, which has {len(classes)}; leave only 0/, 1/, ... of these"
            )
        if len(classes) > 1 and not folders[0].is_dir() and (written := _written_by_segment(root, classes)):
            return cls(root, tuple(classes), written)
        files = tuple(files_by_name(folder) if folder.is_dir() else {} for folder in folders)
        for folder, found in zip(folders, files, strict=True):
            if not found:
                raise UsageError(
                    f"{folder} holds no mask; give a folder of masks called as the images are, NAME.png, or weights (of a run, a file in it)"
                )
        return cls(root, tuple(classes), files)

    def read(self, name: str, size: tuple[int, int]) -> NDArray[np.bool_]:
        """The masks of a case, bool K x H x W, `size` = (H, W); foreground is what is not black.

        Raises InputError when one is missing, of another size, or has other levels than black and one more.
        """
        return np.stack([_read(self._only(files, name), size) for files in self.files])

    def _only(self, files: Mapping[str, tuple[Path, ...]], name: str) -> Path:
        found = files.get(name) or files.get(name + MASK, ())
        if not found:
            raise InputError(f"{name!r} has no mask in {self.root}; add {name}.png, all black where nothing was found")
        if len(found) > 1:
            raise InputError(f"{name!r} has {len(found)} masks ({' and '.join(path.name for path in found)}); keep one of them")
        return found[0]


def predicted(
    source: Segmenter | MaskFolder, name: str, image: NDArray[np.uint8], size: tuple[int, int]
) -> tuple[NDArray[np.bool_], NDArray[np.float32] | None]:
    """The masks of a case at a size (H, W), bool K x H x W; and, of weights, the probabilities float32 K x H x W. Raises InputError."""
    if isinstance(source, MaskFolder):
        return source.read(name, size), None
    probability = source.preprocessing.to_probability(source.predict_logits(image), size)
    return source.preprocessing.binarise(probability), probability


def common_classes(source: Segmenter | MaskFolder, layout: Layout) -> tuple[str, ...]:
    """The names of all classes, which weights or masks and the dataset must agree on; where one of them names none, those of the other.

    Raises InputError when they differ in their number of classes, or in the names of several.
    """
    what, classes = ("masks", source.classes) if isinstance(source, MaskFolder) else ("weights", source.metadata.classes)
    unnamed = unnamed_classes(layout.classes)
    if classes == unnamed:
        return layout.class_names
    if len(classes) == layout.classes and (layout.classes == 1 or layout.class_names in (unnamed, classes)):
        return classes
    names = "" if layout.class_names == unnamed else f" ({', '.join(layout.class_names)})"
    raise InputError(
        f"the {what} have {len(classes)} classes ({', '.join(classes)}) and {layout.root} has masks of "
        f"{layout.classes}{names}; give both of the same classes"
    )


def _written_by_segment(root: Path, classes: Sequence[str]) -> tuple[Mapping[str, tuple[Path, ...]], ...] | None:
    """For each class, name -> its mask as `segment` names it in one folder; None where one of the classes has none."""
    found = files_by_name(root) if root.is_dir() else {}
    endings = [Path(name).stem for name in output_names("", classes)["mask"]]
    files = tuple({name.removesuffix(end): paths for name, paths in found.items() if name.endswith(end)} for end in endings)
    return files if all(files) else None


def _read(path: Path, size: tuple[int, int]) -> NDArray[np.bool_]:
    levels = read_levels(path)
    if levels.shape != size:
        raise InputError(
            f"{path} is {levels.shape[0]} x {levels.shape[1]} pixels and its image {size[0]} x {size[1]}; bring the mask to the image's size"
        )
    values = np.unique(levels)
    if len(values) > 2 or (len(values) == 2 and values[0] != 0):
        raise InputError(
            f"{path} has {len(values)} levels from {values[0]:g} to {values[-1]:g}, and a mask is black and one other; threshold it"
        )
    return levels != 0
