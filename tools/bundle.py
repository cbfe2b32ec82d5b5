"""Makes bundled weights of a finished training: the two files, their card, and the small text files of the run.

    python tools/bundle.py RUN NAME DATASET VALIDATION_LIST

From RUN/ema.safetensors (the average of weights at the last epoch: no epoch is picked) to src/cmunext/zoo/NAME.{safetensors,onnx,json,md} and
results/NAME/{recipe.json,history.csv,scores.csv}. The card's scores are measured here, through both runtimes.
"""

import json
import shutil
import sys
from pathlib import Path

from cmunext import weights
from cmunext.benchmark.evaluate import evaluate
from cmunext.data.layout import Layout
from cmunext.export.onnx import export
from cmunext.inference.segmenter import Segmenter
from cmunext.storage import write_json, write_text
from cmunext.training.run import AVERAGE

ROOT = Path(__file__).resolve().parents[1]


def bundle(run: Path, name: str, dataset: Path, validation_list: str) -> None:
    """Write the files of the module's header."""
    zoo, results = ROOT / "src" / "cmunext" / "zoo", ROOT / "results" / name
    results.mkdir(parents=True, exist_ok=True)
    shutil.copy(run / AVERAGE, zoo / f"{name}.safetensors")
    loaded = weights.load(zoo / f"{name}.safetensors")
    export(loaded, zoo / f"{name}.onnx")

    layout = Layout.open(dataset)
    names = layout.read_list(validation_list)
    scores = {}
    for size in ("native", "network"):
        evaluation = evaluate(Segmenter.load(zoo / f"{name}.onnx"), layout, names, at=size)
        scores[f"{size} size, onnxruntime"] = _told(evaluation.summary())
        if size == "native":
            evaluation.write(results / "scores.csv")
    through_torch = evaluate(Segmenter.load(zoo / f"{name}.safetensors"), layout, names)
    scores["native size, torch"] = _told(through_torch.summary())

    metadata, training = loaded.metadata, loaded.metadata.training
    card = {
        "name": name,
        "network": metadata.network,
        "parameters": sum(parameter.numel() for parameter in loaded.network.parameters()),
        "classes": metadata.classes,
        "data": "BUSI, Al-Dhabyani et al., Data in Brief 28 (2020) 104863: B-mode ultrasound of breast lesions from one hospital",
        "train_list": f"{training['train_list']} ({training['train_cases']} images)",
        "validation_list": f"{training['validation_list']} ({training['validation_cases']} images), not trained on",
        "epochs": training["epochs"],
        "seed": training["seed"],
        "weights": training["weights"],
        "recipe": training["recipe"],
        "scores": scores,
        "licence": metadata.licence,
        "intended_use": metadata.intended_use,
        "limits": [
            "Roughly 28 % of the validation list shows nearly the same frame as an image of the training list: the scores are too good.",
            "BUSI comes from one hospital; images of other scanners, depths and presets are untested.",
            "It was trained on images with a lesion in them and expects one: on a normal breast it may outline something.",
            "One training with one seed; the spread over seeds is not measured.",
        ],
    }
    write_json(zoo / f"{name}.json", card)
    write_text(zoo / f"{name}.md", page(card))
    for file in ("recipe.json", "history.csv"):
        shutil.copy(run / file, results / file)
    recipe = json.loads((results / "recipe.json").read_text())
    write_json(results / "recipe.json", {**recipe, "dataset": dataset.resolve().name})  # not where it lay on that machine


def page(card: dict) -> str:
    """The card as Markdown."""
    told = [f"# {card['name']}", ""]
    told += [f"{card['network']}, {card['parameters']:,} parameters. {card['intended_use']}", "", "| | |", "|---|---|"]
    told += [
        f"| {key.replace('_', ' ')} | {card[key]} |"
        for key in ("data", "train_list", "validation_list", "epochs", "seed", "weights", "licence")
    ]
    told += ["", "Mean over the images of the validation list, and the 95 % bootstrap interval over images:", ""]
    told += ["| | IoU | Dice | share of images under IoU 0.1 |", "|---|---|---|---|"]
    for name, scores in card["scores"].items():
        cells = [
            f"{scores[key]:.4f} ({scores[f'{key}_interval'][0]:.3f} to {scores[f'{key}_interval'][1]:.3f})"
            for key in ("iou", "dice")
        ]
        told.append(f"| {name} | {cells[0]} | {cells[1]} | {scores['share_iou_below_0.1']:.1%} |")
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
    if len(sys.argv) != 5:
        sys.exit(__doc__)
    bundle(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), sys.argv[4])
