"""Whether a library that was just built computes what it should: bundled weights on a simulated image, beside ONNX Runtime.

Run as `python -m cmunext.inference.native.proof LIBRARY` in a process of its own, for a library that was built for instructions which this
machine does not have ends it. The exit code is 0 when all is right.
"""

import sys
from pathlib import Path

import numpy as np

from cmunext.inference.backends import native, onnx
from cmunext.inference.named_weights import weights_path
from cmunext.inference.native.library import open_library
from cmunext.phantom import simulate

WEIGHTS = "cmunext-s-busi"
FLOAT32 = 1e-4  # largest difference of logits, as a part of the largest logit
BFLOAT16 = 0.99  # least IoU of the masks


def prove(path: Path) -> str | None:
    """None when the library is right, or what is wrong."""
    weights = weights_path(WEIGHTS, ".onnx")
    reference = onnx.load(weights, threads=1)
    preprocessing = reference.metadata.preprocessing
    batch = preprocessing.to_input(simulate(0, 256, 256)[0])
    expected = reference(batch)
    library = open_library(path)
    for threads in (1, 2):
        difference = np.abs(native.open_network(weights, library, threads, "float32")(batch) - expected).max()
        if not difference <= FLOAT32 * np.abs(expected).max():
            return f"error: in float32 the logits differ by {difference:.2g}"
        if library.cmunext_bfloat16():
            mask, wanted = native.open_network(weights, library, threads, "bfloat16")(batch) > 0, expected > 0
            iou = np.count_nonzero(mask & wanted) / np.count_nonzero(mask | wanted)
            if not iou >= BFLOAT16:
                return f"error: in bfloat16 the masks agree with {iou:.3f}"
    return None


if __name__ == "__main__":
    sys.exit(prove(Path(sys.argv[1])))
