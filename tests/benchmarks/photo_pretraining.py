"""What pretraining on captions of photos is worth, and each part of its masking, where labels are few.

    python tests/benchmarks/photo_pretraining.py FLICKR8K WORKSPACE [--seeds 3] [--epochs 8]
        [--labels 1,10,100] [--variant "plain masking"] [--without-words] [--retrieval-minutes 0]

FLICKR8K is Flickr8k in its publisher's layout; photos are divided as for the models that ship (5,500 to learn
from, 500 to choose epochs by, 1,000 of the development set to report on). Pretrains once a variant and seed
on all captions of the first, then runs `tbkin finetune --task vqa` with the defaults on questions that were
made of the captions of 1, 10 and 100 % of these photos, and with --retrieval-minutes `--task retrieval`. The
variants add up, as in examples/ablation.py: plain masking, + text structure, + image structure, + cross-modal
structure, + interference removal; before them stands what begins from words alone. --without-words leaves out
the words that are told from an image (`direct_width: 0`), to see what masking alone teaches. Prints the
accuracy on the 1,000 photos, and of several seeds mean and standard deviation. Stopped and started again, it
goes on.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from simple_vqa import tbkin

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from examples.ablation import SWITCHES, VARIANTS
from examples.shipped_models.photo_models import own_accuracy, write_data

NONE = "no pretraining"


def write_share(data: Path, place: Path, percent: int) -> None:
    """Questions about a share of the training photos, and all others."""
    (place / "questions").mkdir(parents=True, exist_ok=True)
    if not (place / "images").exists():
        (place / "images").symlink_to((data / "images").resolve())
    files = {file.name: json.loads(file.read_text()) for file in (data / "questions").iterdir()}
    asked = files["v2_OpenEnded_captions_train_questions.json"]["questions"]
    images = sorted({str(row["image_id"]) for row in asked})
    order = np.random.default_rng(0).permutation(len(images))
    kept = {images[number] for number in order[: max(round(percent / 100 * len(images)), 1)]}
    for name, content in files.items():
        rows = "annotations" if "annotations" in content else "questions"
        if "_train_" in name:
            content[rows] = [row for row in content[rows] if str(row["image_id"]) in kept]
        (place / "questions" / name).write_text(json.dumps(content))


def pretrained(workspace: Path, variant: str, seed: int, epochs: int, words: bool) -> str:
    """Pretrain, or go on; the name of the checkpoint."""
    switches = VARIANTS[variant]
    if switches is None:
        return "words"
    name = variant.replace("+ ", "").replace(" ", "-") + ("" if words else "-without-words")
    settings = ["masking:", *(f"  {switch}: {str(switch in switches).lower()}" for switch in SWITCHES)]
    (workspace / f"{name}.yaml").write_text("\n".join([*settings, *([] if words else ["direct_width: 0"])]))
    out = f"pretrained-{name}-{seed}"
    line = f"pretrain data --size tiny --epochs {epochs} --seed {seed} --config {name}.yaml --out {out}"
    values, seconds = tbkin(line, workspace)
    found = {name: value for name, value in values["validation"].items() if "accuracy" in name}
    known = ", ".join(f"{name[4:]} {value:.1f}" for name, value in found.items())
    print(f"{variant}, seed {seed}: pretrained, {seconds:.0f} s; {known}", flush=True)
    return out


def main(
    flickr: Annotated[Path, typer.Argument()],
    workspace: Annotated[Path, typer.Argument()],
    seeds: Annotated[int, typer.Option(min=1)] = 3,
    epochs: Annotated[int, typer.Option(help="Of pretraining.")] = 8,
    labels: Annotated[
        str, typer.Option(help="Shares of the photos with questions, in percent.")
    ] = "1,10,100",
    variant: Annotated[list[str] | None, typer.Option(help="These alone.")] = None,
    without_words: Annotated[bool, typer.Option()] = False,
    retrieval_minutes: Annotated[float, typer.Option(help="0 leaves retrieval out.")] = 0.0,
) -> None:
    """Run all and print a table."""
    data = workspace / "data"
    if not (data / "captions.jsonl").exists():
        write_data(flickr, data)
    tbkin("extract-features data --extractor photo", workspace)
    tbkin("build-graphs data --questions", workspace)
    shares = [int(share) for share in labels.split(",")]
    for share in shares:
        write_share(data, workspace / f"labels-{share}", share)
    found = defaultdict[tuple[str, str], list[float]](list)
    for seed in range(seeds):
        for name in variant or VARIANTS:
            source = pretrained(workspace, name, seed, epochs, not without_words)
            begun = f"--seed {seed} --init {source} --out {source}-{seed}"
            for share in shares:
                line = f"finetune --task vqa --data labels-{share} --features data/features"
                values, seconds = tbkin(f"{line} --max-minutes 15 {begun}-vqa-{share}", workspace)
                found[name, f"{share} %"].append(own_accuracy(values))
                print(f"{name}, seed {seed}, {share} %: {found[name, f'{share} %'][-1]:.1f}, {seconds:.0f} s")
            if retrieval_minutes:
                line = f"finetune --task retrieval --data data --max-minutes {retrieval_minutes:g}"
                values, seconds = tbkin(f"{line} {begun}-retrieval", workspace)
                found[name, "retrieval"].append(own_accuracy(values))
                print(f"{name}, seed {seed}, R@1: {found[name, 'retrieval'][-1]:.1f}, {seconds:.0f} s")
            sys.stdout.flush()
    for (name, what), values in found.items():
        spread = f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
        print(f"{name}, {what}: {np.mean(values):.1f}{spread}")


if __name__ == "__main__":
    typer.run(main)
