"""`tbkin extract-features`: images of a dataset, or features that lie in it, to its feature store."""

from __future__ import annotations

import contextlib

from tbkin_core.datasets import Dataset, open_dataset
from tbkin_core.features.extract import extract_dataset
from tbkin_core.features.extractors import recorded_extractor
from tbkin_core.features.pictures import darkness, used_bits
from tbkin_core.features.store import FeatureStore
from tbkin_core.results import ExtractFeaturesResult
from tbkin_core.settings import ExtractFeaturesConfig, dump_config
from tbkin_core.support.files import write_text
from tbkin_core.support.shards import store_place

_DEEP_SUFFIXES = (".png", ".tif", ".tiff")
_MOST_LOOKED_AT = 100  # files; those of 16 bits are decoded once more


def extract_features(config: ExtractFeaturesConfig) -> ExtractFeaturesResult:
    """Extract or import region features of every image of a dataset into its feature store.

    Raises:
        TbkinError: As `tbkin_core.features.extract.extract_dataset`.
    """
    dataset = open_dataset(config.data)
    out = store_place(config.out, config.data, "features")
    with contextlib.ExitStack() as stack:  # keeps other processes out until all is written
        extraction = extract_dataset(
            dataset,
            out,
            config.extractor,
            config.max_regions,
            config.workers,
            config.overwrite,
            config.devices,
            config.batch_size,
            config.backbone,
            config.backbone_side,
            stack,
        )
        write_text(out / "config.yaml", dump_config(config))
        counts = {name: getattr(extraction, name) for name in ("made", "present", "skipped", "missing")}
        problems = [*extraction.problems, *dataset.problems]
        if not extraction.missing:
            store = extraction.store
            counts |= {"images": len(store), "feature_size": store.feature_size}
            problems += _dark_notes(dataset, store) if extraction.made else []
            return ExtractFeaturesResult(out=out, problems=problems, extractor=store.extractor, **counts)
        problems.append(
            f"{extraction.missing} shards of other ranks are missing: the rank that ends last completes the"
            " store; what a rank has left out, the same command makes when it is run again"
        )
        return ExtractFeaturesResult(out=out, problems=problems, **counts)


def _dark_notes(dataset: Dataset, store: FeatureStore) -> list[str]:
    """A note on pictures of 16 bits that are nearly black because their values are of fewer."""
    extractor = recorded_extractor(store.settings)
    if extractor is None or not extractor.finds_boxes:  # then no picture was looked at
        return []
    # Other formats have 8 bits, or are scaled by what they say of themselves.
    read = (it.path for it in dataset.images() if it.path and it.image_id in store)
    paths = [path for path in read if path.suffix.lower() in _DEEP_SUFFIXES and path.is_file()]
    looked = paths[:: max(-(-len(paths) // _MOST_LOOKED_AT), 1)]
    found = {path.name: bits for path in looked if (bits := used_bits(path))}
    if not found:
        return []
    which = f"{len(found)} of {len(looked)} PNG and TIFF pictures looked at, such as {next(iter(found))}"
    return [f"{which}, are {darkness(max(found.values()))}"]
