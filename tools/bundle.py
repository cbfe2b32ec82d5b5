"""Makes bundled weights of a finished training: the two files, their card, a picture of failures, and the small text files of the run.

    python tools/bundle.py RUN NAME DATASET VALIDATION_LIST
    python tools/bundle.py RUN NAME DATASET --instead WEIGHTS       where nothing was held out: WEIGHTS, which never saw DATASET, are scored

From RUN/ema.safetensors (the average of weights at the last epoch: no epoch is picked; or a mean of several such) to
src/cmunext/zoo/NAME.{safetensors,onnx,json,md}, docs/cards/NAME.png and results/NAME/{recipe.json,history.csv,scores.csv}, a mean of weights
without the first two. Large networks go to zoo/ instead, their weights as float16; the largest as .onnx alone. The card's scores are measured
here; what cannot be measured stands in FACTS. The picture shows the worst of 64 phantoms, because images of patients are not ours to publish.
"""

import argparse
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from cmunext import weights
from cmunext.benchmark.evaluate import evaluate
from cmunext.benchmark.worst import worst_of, write_worst
from cmunext.data.dataset import load_cases
from cmunext.data.layout import Layout
from cmunext.demo import demonstrate
from cmunext.errors import InputError, UsageError
from cmunext.export.onnx import export
from cmunext.image.preprocess import Preprocessing
from cmunext.inference.segmenter import Segmenter
from cmunext.storage import read_json, write_bytes, write_json, write_text
from cmunext.training.run import AVERAGE

ROOT = Path(__file__).resolve().parents[1]
PHANTOMS, WORST = 64, 6
LARGE = ("cmunext-busi", "cmunext-l-busi")
ONNX_ALONE = ("cmunext-l-busi",)  # what a repository may weigh


BUSI = "BUSI, Al-Dhabyani et al., Data in Brief 28 (2020) 104863: B-mode ultrasound of breast lesions from one hospital"
BUSBRA = "BUS-BRA, Gomez-Flores et al., Medical Physics 51 (2024) 3110: four scanners, one institute"
ONE_SEED = "One training with one seed; the spread over seeds is not measured."
NORMALS = "It was trained on images with a lesion in them and expects one: on a normal breast it may outline something."
LEAKS = "About a quarter (26 to 28 %) of the validation list shows nearly the same frame as a training image: the scores are too good."
ELSEWHERE = "BUSI comes from one hospital; images of other scanners, depths and presets are untested."
FACTS = {
    "cmunext-s-busi": {
        "data": f"{BUSI}; and, before it, {BUSBRA}",
        "limits": [
            "Trained in five cycles, 178 epochs of the train list, after BUS-BRA, and the mean of the weights at the ends of the last three: "
            "results/three-lists. The recipe is the last cycle's.",
            LEAKS,
            "All of BUS-BRA was learnt from: do not evaluate it there. Images of further scanners, depths and presets are untested.",
            NORMALS,
            ONE_SEED,
        ],
    },
    **{
        name: {"data": BUSI, "limits": [how, LEAKS, ELSEWHERE, NORMALS, ONE_SEED]}
        for name, how in (
            (
                "cmunext-busi",
                "Trained on CPUs and shortly: 30 epochs at 128 x 128 on the same list (its start), then 30 at 256 x 256; the paper takes 300.",
            ),
            (
                "cmunext-l-busi",
                "Trained at 128 x 128 for 40 epochs, on CPUs; the small network cmunext-s-busi-alone was trained for longer at 256 x 256.",
            ),
        )
    },
    "cmunext-s-breast": {
        "data": f"{BUSI}; and {BUSBRA}",
        "limits": [
            "All of BUSI and of BUS-BRA was trained on, so this model has no held-out score on them; do not evaluate it there.",
            "What to expect on other scanners is told by the score above: weights that learnt alike from BUS-BRA alone, on all of BUSI.",
            NORMALS,
            ONE_SEED,
        ],
    },
}


def bundle(run: Path, name: str, dataset: Path, validation_list: str, instead: Path | None) -> None:
    """Write the files of the module's header. Raises UsageError when the scores would be of images that were learnt from."""
    layout = Layout.open(dataset)
    names = layout.read_list(validation_list) if validation_list else layout.cases
    _require_unseen(instead or run / AVERAGE, layout, names)
    large = name in LARGE
    zoo, results = ROOT / "zoo" if large else ROOT / "src" / "cmunext" / "zoo", ROOT / "results" / name
    results.mkdir(parents=True, exist_ok=True)
    write_bytes(zoo / f"{name}.safetensors", weights.halved(run / AVERAGE) if large else (run / AVERAGE).read_bytes())
    loaded = weights.load(zoo / f"{name}.safetensors")
    export(loaded, zoo / f"{name}.onnx", precision="float16" if large else "float32")
    segmenter = Segmenter.load(zoo / f"{name}.onnx")

    scores = {}
    if instead:
        evaluation = evaluate(Segmenter.load(instead), layout, names)
        evaluation.write(results / "scores.csv")
        scores[f"{instead.stem} on {dataset.resolve().name}, native size, torch"] = _told(evaluation.summary())
    else:
        for size in ("native", "network"):
            evaluation = evaluate(segmenter, layout, names, at=size)
            scores[f"{size} size, onnxruntime"] = _told(evaluation.summary())
            if size == "native":
                evaluation.write(results / "scores.csv")
        through_torch = evaluate(Segmenter.load(zoo / f"{name}.safetensors"), layout, names)
        scores["native size, torch"] = _told(through_torch.summary())

    metadata, training = loaded.metadata, loaded.metadata.training
    start = training.get("start", {}).get("file", "")  # the average of an earlier run of a grid has a name that tells nothing
    card = {
        "name": name,
        "network": metadata.network,
        "parameters": sum(parameter.numel() for parameter in loaded.network.parameters()),
        "classes": metadata.classes,
        "data": FACTS[name]["data"],
        "train_list": f"{training['train_list']} ({training['train_cases']} images)",
        "validation_list": "none"
        if instead
        else f"{training['validation_list']} ({training['validation_cases']} images), not trained on",
        **({"started_from": start} if start not in ("", AVERAGE) else {}),
        **({} if "mean_of" in training else {"epochs": training["epochs"]}),  # which would be those of its last part
        "seed": training["seed"],
        "weights": training["weights"],
        "recipe": training["recipe"],
        "scores": scores,
        "phantoms": failures(segmenter, name),
        "licence": metadata.licence,
        "intended_use": metadata.intended_use,
        "limits": FACTS[name]["limits"],
    }
    write_json(zoo / f"{name}.json", card)
    write_text(zoo / f"{name}.md", page(card))
    for file in ("recipe.json", "history.csv"):
        (results / file).unlink(missing_ok=True)
    if "mean_of" not in training:
        recipe = read_json(run / "recipe.json")
        write_json(results / "recipe.json", {**recipe, "dataset": training["dataset"]})  # not where it lay on that machine
        shutil.copy(run / "history.csv", results / "history.csv")
    if name in ONNX_ALONE:
        (zoo / f"{name}.safetensors").unlink()


def _require_unseen(scored: Path, layout: Layout, names: Sequence[str]) -> None:
    """Raise UsageError when weights learnt from one of the cases, or do not say what they learnt from."""
    learnt = weights.load(scored).metadata.learnt_from
    if learnt is None:
        raise UsageError(f"{scored} does not say what it learnt from, so its card could not call a score honest; train it anew")
    digests = load_cases(layout, names, Preprocessing()).image_digests
    if seen := [name for name, digest in zip(names, digests, strict=True) if digest in learnt]:
        raise UsageError(
            f"{scored} learnt from {len(seen)} of the {len(names)} images to score, {seen[0]!r} among them; "
            "give a validation list, or with --instead weights that never saw the dataset"
        )


def failures(segmenter: Segmenter, name: str) -> dict:
    """Draw the worst of the phantoms into docs/cards/NAME.png: image, truth, prediction. Gives the mean IoU and how many were lost."""
    with tempfile.TemporaryDirectory() as folder:
        demonstrate(segmenter, Path(folder) / "phantoms", PHANTOMS)
        layout = Layout.open(Path(folder) / "phantoms")
        evaluation = evaluate(segmenter, layout, layout.cases)
        write_worst(Path(folder) / "worst", segmenter, layout, evaluation, worst_of(evaluation, WORST), name)
        cards = ROOT / "docs" / "cards"
        cards.mkdir(exist_ok=True)
        shutil.copy(Path(folder) / "worst" / "worst-1.png", cards / f"{name}.png")
    summary = _told(evaluation.summary())
    return {"n": summary["n"], "iou": summary["iou"], "share_iou_below_0.1": summary["share_iou_below_0.1"]}


def page(card: dict) -> str:
    """The card as Markdown."""
    told = [f"# {card['name']}", ""]
    told += [f"{card['network']}, {card['parameters']:,} parameters. {card['intended_use']}", "", "| | |", "|---|---|"]
    told += [
        f"| {key.replace('_', ' ')} | {card[key]} |"
        for key in ("data", "train_list", "validation_list", "started_from", "epochs", "seed", "weights", "licence")
        if key in card
    ]
    told += ["", "Mean over images that were not trained on, and the 95 % bootstrap interval over images:", ""]
    told += ["| | IoU | Dice | share of images under IoU 0.1 |", "|---|---|---|---|"]
    for name, scores in card["scores"].items():
        cells = [
            f"{scores[key]:.4f} ({scores[f'{key}_interval'][0]:.3f} to {scores[f'{key}_interval'][1]:.3f})"
            for key in ("iou", "dice")
        ]
        told.append(f"| {name} | {cells[0]} | {cells[1]} | {scores['share_iou_below_0.1']:.1%} |")
    phantoms = card["phantoms"]
    told += [
        "",
        f"Failures: the {WORST} worst of {phantoms['n']} phantoms (mean IoU {phantoms['iou']:.3f}) stand in the repository, in",
    ]
    told += [f"docs/cards/{card['name']}.png: image, truth, prediction. Phantoms are easier than patients."]
    told += ["", "Limits:", "", *(f"- {limit}" for limit in card["limits"])]
    told += ["", "The recipe, whole, stands in the card's JSON and in the files' metadata."]
    return "\n".join(told) + "\n"


def _told(summary: dict) -> dict:
    intervals = summary["intervals"]
    return {
        "n": summary["n"],
        **{key: summary["per_image"][key] for key in ("iou", "dice")},
        **{f"{key}_interval": intervals[key] for key in ("iou", "dice")},
        "share_iou_below_0.1": summary["share_iou_below_0.1"],
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("name", choices=FACTS)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("validation_list", nargs="?", default="")
    parser.add_argument("--instead", type=Path)
    chosen = parser.parse_args()
    try:
        bundle(**vars(chosen))
    except InputError as error:
        sys.exit(f"error: {error}")
