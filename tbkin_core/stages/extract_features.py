"""`tbkin extract-features`: images of a dataset, or features that lie in it, to its feature store."""

from __future__ import annotations

from tbkin_core.datasets import open_dataset
from tbkin_core.features.extract import extract_dataset
from tbkin_core.results import ExtractFeaturesResult
from tbkin_core.settings import ExtractFeaturesConfig, dump_config
from tbkin_core.support.files import write_text
from tbkin_core.support.shards import store_place


def extract_features(config: ExtractFeaturesConfig) -> ExtractFeaturesResult:
    """Extract or import region features of every image of a dataset into its feature store.

    Raises:
        TbkinError: As `tbkin_core.features.extract.extract_dataset`.
    """
    dataset = open_dataset(config.data)
    out = store_place(config.out, config.data, "features")
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
    )
    write_text(out / "config.yaml", dump_config(config))
    counts = {name: getattr(extraction, name) for name in ("made", "present", "skipped", "missing")}
    problems = [*extraction.problems, *dataset.problems]
    if not extraction.missing:
        store = extraction.store
        counts |= {"images": len(store), "feature_size": store.feature_size}
        return ExtractFeaturesResult(out=out, problems=problems, extractor=store.extractor, **counts)
    problems.append(
        f"{extraction.missing} shards of other ranks are missing: the rank that ends last completes the"
        " store; what a rank has left out, the same command makes when it is run again"
    )
    return ExtractFeaturesResult(out=out, problems=problems, **counts)
