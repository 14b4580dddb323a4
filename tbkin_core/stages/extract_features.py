"""`tbkin extract-features`: images of a dataset, or features that lie in it, to its feature store."""

from __future__ import annotations

from typing import Any

from tbkin_core.datasets import open_dataset
from tbkin_core.features.extract import Extraction, extract_dataset
from tbkin_core.results import StageResult, Table
from tbkin_core.settings import ExtractFeaturesConfig, dump_config
from tbkin_core.support.files import write_text
from tbkin_core.support.shards import store_place


def extract_features(config: ExtractFeaturesConfig) -> StageResult:
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
    problems = [*extraction.problems, *dataset.problems]
    return _share(extraction, problems) if extraction.missing else _whole(extraction, problems)


def _share(extraction: Extraction, problems: list[str]) -> StageResult:
    """The result of a rank that is not the last one."""
    out, made, skipped, missing = extraction.path, extraction.made, extraction.skipped, extraction.missing
    problems = [
        *problems,
        f"{missing} shards of other ranks are missing: the rank that ends last completes the store; what a"
        " rank has left out, the same command makes when it is run again",
    ]
    table = Table(
        f"Share of the features in {out}",
        ["made now", "skipped", "shards of others missing"],
        [[str(made), str(skipped), str(missing)]],
    )
    values: dict[str, Any] = {"out": str(out), "made": made, "present": extraction.present}
    values |= {"skipped": skipped, "missing": missing, "problems": problems}
    return StageResult(out, values, [table], problems)


def _whole(extraction: Extraction, problems: list[str]) -> StageResult:
    """The result of a run that leaves a complete store."""
    out, made, skipped, store = extraction.path, extraction.made, extraction.skipped, extraction.store
    table = Table(
        f"Features in {out}",
        ["extractor", "images", "made now", "skipped", "feature size"],
        [[store.extractor, str(len(store)), str(made), str(skipped), str(store.feature_size)]],
    )
    values = {
        "out": str(out),
        "extractor": store.extractor,
        "images": len(store),
        "made": made,
        "present": extraction.present,
        "skipped": skipped,
        "feature_size": store.feature_size,
        "problems": problems,
    }
    return StageResult(out, values, [table], problems)
