"""Settings: defaults < YAML < flags; every problem in one message."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from tbkin_core.errors import ConfigError
from tbkin_core.settings import (
    BuildGraphsConfig,
    ExtractFeaturesConfig,
    FinetuneConfig,
    PretrainConfig,
    StageConfig,
    ThresholdSweepConfig,
    VisualizeConfig,
    dump_config,
    load_config,
    parse_thresholds,
)
from tbkin_core.tasks.masking import MaskingConfig

STAGES: dict[type[StageConfig], dict[str, Any]] = {
    ExtractFeaturesConfig: {},
    BuildGraphsConfig: {},
    PretrainConfig: {},
    FinetuneConfig: {"task": "vqa"},
    ThresholdSweepConfig: {"task": "rec"},
    VisualizeConfig: {"images": ["a.jpg"], "question": "what color?"},
}


def write(path: Path, content: str) -> Path:
    file = path / "settings.yaml"
    file.write_text(content, encoding="utf-8")
    return file


def message_of(kind: type[StageConfig], file: Path | None, flags: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(kind, file, flags)
    assert caught.value.hint
    return caught.value.message


def test_flags_beat_the_file_and_the_file_beats_defaults(tmp_path: Path) -> None:
    file = write(tmp_path, "epochs: 5\nlearning-rate: 1e-4\nout: from_file\nmasking: {base: 0.2}\n")
    config = load_config(PretrainConfig, file, {"epochs": 7, "out": None, "data": ["a", Path("b")]})
    assert config.epochs == 7
    assert config.learning_rate == 1e-4
    assert config.out == Path("from_file")
    assert config.data == [Path("a"), Path("b")]
    assert config.masking == MaskingConfig(base=0.2)
    assert config.batch_size is None
    assert config.seed == 0


def test_an_empty_file_changes_nothing(tmp_path: Path) -> None:
    assert load_config(PretrainConfig, write(tmp_path, ""), {}) == PretrainConfig()


@pytest.mark.parametrize("kind", STAGES, ids=lambda kind: kind.__name__)
def test_every_stage_dumps_and_loads_back_equal(kind: type[StageConfig], tmp_path: Path) -> None:
    config = load_config(kind, None, STAGES[kind])
    assert load_config(kind, write(tmp_path, dump_config(config)), {}) == config


def strategy_of(kind: type[Any]) -> st.SearchStrategy[Any]:
    """Values of the right type for every field of a stage, few of them special."""
    import typing

    hints = typing.get_type_hints(kind)
    text = st.text(max_size=8)
    paths = st.text("abc/._- é:#'\"", min_size=1, max_size=8).map(Path)
    basic: dict[Any, st.SearchStrategy[Any]] = {
        bool: st.booleans(),
        int: st.integers(-3, 10**6),
        float: st.floats(allow_nan=False),
        str: text,
        Path: paths,
        list[float]: st.lists(st.floats(-1, 4), max_size=3),
        list[int]: st.lists(st.integers(-2, 50), max_size=3),
        list[str]: st.lists(text, max_size=3),
        list[Path]: st.lists(paths, max_size=3),
    }

    def values(hint: Any) -> st.SearchStrategy[Any]:
        if dataclasses.is_dataclass(hint):
            return strategy_of(typing.cast(type[Any], hint))
        if type(None) in typing.get_args(hint):
            (inner,) = (option for option in typing.get_args(hint) if option is not type(None))
            return st.none() | values(inner)
        return basic[hint]

    return st.builds(kind, **{entry.name: values(hints[entry.name]) for entry in dataclasses.fields(kind)})


@pytest.mark.parametrize("kind", STAGES, ids=lambda kind: kind.__name__)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_whatever_is_dumped_loads_back_equal_or_is_refused(
    kind: type[StageConfig], tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    config = data.draw(strategy_of(kind))
    file = write(tmp_path_factory.getbasetemp(), dump_config(config))
    problems = config.problems()
    if problems:
        message = message_of(kind, file, {})
        assert all(problem in message for problem in problems)
    else:
        assert load_config(kind, file, {}) == config


def test_a_misspelt_setting_gets_the_nearest_name(tmp_path: Path) -> None:
    message = message_of(PretrainConfig, write(tmp_path, "learning_rat: 1e-4\nmasking: {anchr: 0.4}\n"), {})
    assert "learning_rat: unknown setting (did you mean learning_rate?)" in message
    assert "masking.anchr: unknown setting (did you mean anchor?)" in message
    assert "settings.yaml" in message


def test_all_problems_come_in_one_message(tmp_path: Path) -> None:
    content = "epoch: 3\nbatch_size: many\ndropout: 2\nsize: tinny\nschedule: [linear]\n"
    message = message_of(FinetuneConfig, write(tmp_path, content), {"threshold": 1.5})
    for part in (
        "epoch: unknown setting (did you mean epochs?)",
        "batch_size: expected int, got 'many'",
        "dropout: expected a number from 0 to 1, got 2",
        "size: expected one of auto, tiny, small, base, got 'tinny' (did you mean tiny?)",
        "schedule: expected str, got ['linear']",
        "threshold: expected a number from 0 to 1",
        "task: ",
    ):
        assert part in message
    assert "schedule: expected one of" not in message
    assert "masking.base: expected a number from 0 to 1, got 7" in message_of(
        PretrainConfig, write(tmp_path, "masking: {base: 7}"), {}
    )


@pytest.mark.parametrize(
    "content",
    [
        "epochs: .inf", "epochs: .nan", "epochs: 1.5", "epochs: true", "epochs: [1]", "epochs: {a: 1}",
        "seed: null", "seed: -1", "overwrite: 1", "overwrite: maybe", "dropout: .nan", "warmup: -.inf",
        "learning_rate: 0", "learning_rate: .nan", "masking: 3", "masking: {1: 2}", "decay_epochs: [a]",
        "devices: null", "out: 3", "init: [a]", "masking: {mask: 0.9, replace: 0.2}", "features: [a]",
        "data: {a: b}", "[1, 2]", "epochs", "a: b: c", "\t- x", "\x00", "1: 2",
    ],
)  # fmt: skip
def test_values_that_cannot_be_are_refused_in_one_line(content: str, tmp_path: Path) -> None:
    message = message_or_none(PretrainConfig, write(tmp_path, content))
    assert message is not None
    assert "\n" not in message


def message_or_none(kind: type[StageConfig], file: Path) -> str | None:
    try:
        load_config(kind, file, {})
    except ConfigError as error:
        return error.message
    return None


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(PretrainConfig, tmp_path / "none.yaml", {})


YAML_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)
FINETUNE_NAMES = [entry.name for entry in dataclasses.fields(FinetuneConfig)]


@settings(max_examples=100, deadline=None)
@given(
    content=st.dictionaries(st.text(max_size=6), YAML_VALUES, max_size=3),
    names=st.lists(st.sampled_from(FINETUNE_NAMES), max_size=3),
)
def test_no_file_ever_gives_more_than_a_message(
    content: dict[str, Any], names: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    values = dict(zip([*names, *content][: len(content)], content.values(), strict=True))
    file = write(tmp_path_factory.getbasetemp(), yaml.safe_dump(values))
    try:
        assert isinstance(load_config(FinetuneConfig, file, {"task": "vqa"}), FinetuneConfig)
    except ConfigError as error:
        assert error.message


# ---- thresholds ---------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(start=st.integers(-50, 50), count=st.integers(0, 100), step=st.integers(1, 20))
def test_a_range_of_thresholds_includes_its_stop(start: int, count: int, step: int) -> None:
    stop = start + count * step
    found = parse_thresholds(f"{start / 100}:{stop / 100}:{step / 100}")
    assert found == pytest.approx([(start + place * step) / 100 for place in range(count + 1)])
    short = parse_thresholds(f"{start / 100}:{(stop + step / 2) / 100}:{step / 100}")
    assert short == pytest.approx(found)


@settings(max_examples=50, deadline=None)
@given(
    values=st.lists(
        st.floats(-1e6, 1e6).map(lambda value: round(value, 6)), min_size=1, max_size=6, unique=True
    )
)
def test_a_list_of_thresholds_is_read_as_it_stands(values: list[float]) -> None:
    text = ",".join(repr(value) for value in sorted(values))
    assert parse_thresholds(text) == sorted(values)
    if len(values) > 1:
        with pytest.raises(ConfigError, match="increasing"):
            parse_thresholds(",".join(repr(value) for value in sorted(values, reverse=True)))


@settings(max_examples=100, deadline=None)
@given(text=st.text("0123456789.:,-+einfa ", max_size=12))
def test_any_text_gives_increasing_thresholds_or_a_message(text: str) -> None:
    try:
        values = parse_thresholds(text)
    except ConfigError:
        return
    assert values
    assert all(math.isfinite(value) for value in values)
    assert values == sorted(set(values))


@pytest.mark.parametrize(
    "text", ["", "a", "0:1", "0:1:0", "1:0:0.1", "0:1:-0.1", "0:1e9:1e-9", "0,0", "nan", "0:nan:1", "inf"]
)
def test_thresholds_that_cannot_be_read_are_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_thresholds(text)


def test_a_sweep_checks_its_thresholds_against_every_rule() -> None:
    message = message_of(
        ThresholdSweepConfig,
        None,
        {"task": "vqa", "selection": ["topk", "relative"], "thresholds": "0,0.5,2"},
    )
    assert "'topk', got 0.5" in message
    assert "'relative', got 2" in message


RECIPES = sorted((Path(__file__).resolve().parents[1] / "examples").glob("*.yaml"))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_shipped_recipes_are_read(recipe: Path) -> None:
    if recipe.stem.startswith("finetune-"):
        task = {"vqa": "vqa", "refcoco": "rec"}[recipe.stem.split("-")[1]]
        config: Any = load_config(FinetuneConfig, recipe, {"task": task})
    else:
        config = load_config(PretrainConfig, recipe, {"data": [Path("coco")]})
    wanted = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    for name, value in wanted.items():
        if not isinstance(value, dict):
            assert getattr(config, name) == value, name
    if "base" in recipe.stem:
        # ROSITA's published settings.
        assert (config.max_text_tokens, config.max_regions, config.grad_clip) == (20, 36, 1.0)
    if recipe.stem == "pretrain-base":
        assert (config.epochs, config.batch_size, config.learning_rate, config.warmup) == (40, 512, 1e-4, 2)
