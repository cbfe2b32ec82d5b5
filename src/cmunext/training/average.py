"""The mean of the weights of several trainings of one network, which is one network of the same cost (Izmailov et al., "Averaging weights
leads to wider optima and better generalization", UAI 2018; Wortsman et al., "Model soups", ICML 2022).

It is worth something only where the trainings lie in one valley, as the cycles of one chain do, or trainings from the same start.
"""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from cmunext import weights
from cmunext.errors import UsageError
from cmunext.metadata import LEARNT_FROM
from cmunext.training import lineage
from cmunext.training.lineage import Ancestor


def write_average(files: Sequence[str | os.PathLike[str]], out: str | os.PathLike[str]) -> None:
    """Write the mean of weights files, each counting alike, as a `.safetensors` file.

    Means are taken in float64, those of BatchNorm's running statistics among them; what is no fraction is the last file's. So is the
    description, but for what it says of learning: the files averaged, and every image that one of them learnt from.

    Parameters
    ----------
    files : two or more, of one network with the same preprocessing and classes.

    Raises
    ------
    UsageError : fewer than two files, one given twice, or of another network, preprocessing or classes than the last; `out` has another suffix.
    InputError : see `weights.load`.
    OSError : `out` cannot be written; what was there stays.
    """
    if Path(out).suffix != ".safetensors":
        raise UsageError(f"{out} would be a .safetensors file; name it so")
    if len(files) < 2:
        raise UsageError(f"there is {len(files)} weights file to average; give two or more")
    averaged = [lineage.load_ancestor(file) for file in files]
    last = averaged[-1]
    for path, one in zip(files, averaged[:-1], strict=False):
        _require_match(Path(path), one, last)
    if len({one.digest for one in averaged}) < len(averaged):
        raise UsageError(f"of the {len(averaged)} weights files to average two are the same; give each once")
    network = last.weights.network
    states = [one.weights.network.state_dict() for one in averaged]
    mean = {
        name: (sum(state[name].double() for state in states) / len(states)).to(tensor.dtype)
        for name, tensor in network.state_dict().items()
        if tensor.is_floating_point()
    }
    network.load_state_dict(mean, strict=False)
    metadata = last.weights.metadata
    told = {key: value for key, value in metadata.training.items() if key not in (LEARNT_FROM, "epoch", "validation")}
    told |= {"weights": f"mean of {len(averaged)} weights files", "mean_of": [one.describe() for one in averaged]}
    seen = lineage.learnt_from((), averaged)
    if seen is not None:
        told[LEARNT_FROM] = seen
    weights.save(out, network, replace(metadata, training=told))


def _require_match(path: Path, one: Ancestor, last: Ancestor) -> None:
    theirs, ours = (
        {"network": held.network, "arguments": held.arguments, "classes": held.classes, **vars(held.preprocessing)}
        for held in (one.weights.metadata, last.weights.metadata)
    )
    if differing := [what for what in ours if theirs[what] != ours[what]]:
        what = differing[0]
        raise UsageError(
            f"{path} has {what} {theirs[what]!r} and {last.file} {ours[what]!r}; average weights of one network that see images alike"
        )
