"""Settings: declared once, checked wherever they are made; defaults < YAML < flags."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import re
from dataclasses import is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from tbkin_cli import main
from tbkin_core.errors import ConfigError, DataError
from tbkin_core.modeling import TbkinConfig
from tbkin_core.results import StageResult
from tbkin_core.runs import open_run, run_settings
from tbkin_core.selection import SELECTIONS, Selection, check_threshold
from tbkin_core.settings import (
    BuildGraphsConfig,
    ExtractFeaturesConfig,
    FinetuneConfig,
    MaskingConfig,
    PretrainConfig,
    StageConfig,
    ThresholdSweepConfig,
    VisualizeConfig,
    commented,
    config_values,
    dump_config,
    fields_of,
    load_config,
    parse_thresholds,
)
from tbkin_core.settings.base import Field
from tbkin_core.support.files import write_json
from tbkin_core.tasks.table import FINETUNE_TASKS

STAGES: dict[type[StageConfig], dict[str, Any]] = {
    ExtractFeaturesConfig: {},
    BuildGraphsConfig: {"data": "coco"},
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


# ---- every field --------------------------------------------------------------------------------

FIELDS = [(kind, entry) for kind in STAGES for entry in fields_of(kind).values()]
NAMES = [f"{kind.__name__}.{entry.name}" for kind, entry in FIELDS]
TEXT = st.text("abc+-.:/é τ1", min_size=1, max_size=8)
PLAIN: dict[type[Any], st.SearchStrategy[Any]] = {
    bool: st.booleans(),
    int: st.integers(-3, 5000),
    float: st.floats(-1, 4) | st.sampled_from([math.inf, 0.0, 1.0]),
    str: TEXT | st.sampled_from(["topk=1,4", "0,0.3", "cpu:2"]),
    Path: TEXT,
}


def plain_values(entry: Field) -> st.SearchStrategy[Any]:
    """Values of a field as YAML has them; some are against its bounds."""
    if dataclasses.is_dataclass(entry.kind):
        inner = fields_of(entry.kind).values()
        return st.fixed_dictionaries({}, optional={one.name: plain_values(one) for one in inner})
    one = PLAIN[entry.kind]
    if entry.option.choices:
        one = st.sampled_from(entry.option.choices) | (TEXT if entry.option.others else st.nothing())
    many = st.lists(one, max_size=3) if entry.is_list else one
    return st.none() | many if entry.optional else many


def settings_of(kind: type[StageConfig]) -> st.SearchStrategy[dict[str, Any]]:
    """A few settings of a stage, as YAML has them, beside those it needs."""
    entries = list(fields_of(kind).values())
    chosen = st.lists(st.sampled_from(entries), max_size=5, unique_by=lambda entry: entry.name)
    return chosen.flatmap(
        lambda some: st.fixed_dictionaries({entry.name: plain_values(entry) for entry in some})
    ).map(lambda values: {**STAGES[kind], **values})


@pytest.mark.parametrize(("kind", "entry"), FIELDS, ids=NAMES)
def test_every_field_says_what_it_is_and_its_default_is_allowed(
    kind: type[StageConfig], entry: Field
) -> None:
    option = entry.option
    assert option.help.endswith((".", "...")) and "default" not in option.help
    assert entry.kind in PLAIN or dataclasses.is_dataclass(entry.kind)
    assert set(option.only_for) <= set(FINETUNE_TASKS)
    assert not option.only_with or option.only_with in fields_of(kind)
    assert entry.optional or entry.is_list or not option.unset
    if not option.required and not dataclasses.is_dataclass(entry.kind):
        assert entry.read(entry.default) == entry.default
        assert not list(entry.faults(entry.default))


@pytest.mark.parametrize("name", main.STAGES)
def test_every_option_is_a_field_and_every_field_with_a_group_an_option(name: str) -> None:
    shown = [
        (parameter.name, parameter.param_type_name, parameter.opts)
        for parameter in typer.main.get_command(main.app).commands[name].params  # type: ignore[attr-defined]
    ]
    wanted = [
        (entry.name, "argument", [entry.name])
        if entry.option.argument
        else (entry.name, "option", [entry.flag])
        for entry in fields_of(main.STAGES[name].settings).values()
        if entry.option.group
    ]
    own = [
        ("config", ["--config"]),
        ("json", ["--json"]),
        ("print_config", ["--print-config"]),
        ("quiet", ["--quiet", "-q"]),
    ]
    assert sorted(shown) == sorted(wanted + [(name, "option", flags) for name, flags in own])


def outcome_of(make: Any) -> Any:
    """Settings, or what is wrong with them."""
    try:
        return make()
    except ConfigError as error:
        return set(error.message.partition(": ")[2].split("; "))


def outcome_typed(name: str, line: list[str]) -> Any:
    """The settings that a command hands to its stage, or what is wrong with them."""
    seen: list[StageConfig] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(main, "show", lambda *_: None)
        made = StageResult(out=Path())
        patch.setattr(main.pkgutil, "resolve_name", lambda stage: lambda given: seen.append(given) or made)
        done = CliRunner().invoke(main.app, [name, *line])
    if done.exit_code == 0:
        return seen[0]
    assert done.stderr.startswith("tbkin: ConfigError: settings: ")
    return set(done.stderr.splitlines()[0].removeprefix("tbkin: ConfigError: settings: ").split("; "))


@pytest.mark.parametrize("name", main.STAGES)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_flags_yaml_and_python_give_the_same_settings_or_the_same_message(
    name: str, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    kind = main.STAGES[name].settings
    fields = fields_of(kind)
    values = data.draw(settings_of(kind))
    file = write(tmp_path_factory.getbasetemp(), yaml.safe_dump(values))
    assert outcome_of(lambda: load_config(kind, file, {})) == outcome_of(lambda: kind(**values))
    # Off and none cannot be said on a command line, which also wants its argument.
    typed = {"data": "coco"} if kind in (ExtractFeaturesConfig, BuildGraphsConfig) else {}
    typed |= {key: value for key, value in values.items() if value is not False and value not in (None, [])}
    typed = {key: value for key, value in typed.items() if fields[key].option.group}
    line: list[str] = []
    arguments: list[str] = []
    for key, value in typed.items():
        items = value if isinstance(value, list) else [value]
        if fields[key].option.argument:
            arguments = items
        elif fields[key].kind is bool:
            line.append(fields[key].flag)
        else:
            line += [f"{fields[key].flag}={item}" for item in items]
    made = outcome_of(lambda: kind(**main.STAGES[name].arrange(typed)))
    assert outcome_typed(name, [*line, "--", *arguments]) == made


@pytest.mark.parametrize("kind", STAGES, ids=lambda kind: kind.__name__)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_settings_survive_being_written_and_read(
    kind: type[StageConfig], tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    made = outcome_of(lambda: kind(**data.draw(settings_of(kind))))
    if isinstance(made, kind):
        file = write(tmp_path_factory.getbasetemp(), dump_config(made))
        assert load_config(kind, file, {}) == made == kind(**config_values(made))


def wrong_values(entry: Field) -> st.SearchStrategy[Any]:
    """Values that a field must refuse."""
    option, wrong = entry.option, []
    if entry.kind is not str:
        wrong.append(
            st.just({"a": 1}) | st.sampled_from(["", "many"] if entry.kind is not Path else [3, 0.5])
        )
    if entry.kind is not bool:
        wrong.append(st.booleans())
    if option.choices and not option.others:
        wrong.append(TEXT.filter(lambda text: text not in option.choices))
    if option.low is not None:
        wrong.append(st.integers(max_value=math.ceil(option.low) - 1))
    if option.high is not None:
        wrong.append(st.integers(min_value=math.floor(option.high) + 1))
    if option.above is not None:
        wrong.append(st.integers(max_value=math.floor(option.above)))
    return st.one_of(wrong).map(lambda value: [value] if entry.is_list else value)


@pytest.mark.parametrize(("kind", "entry"), FIELDS, ids=NAMES)
@settings(max_examples=10, deadline=None)
@given(data=st.data())
def test_a_wrong_value_gives_one_message_that_names_the_field(
    kind: type[StageConfig], entry: Field, data: st.DataObject
) -> None:
    value = data.draw(wrong_values(entry))
    with pytest.raises(ConfigError) as caught:
        kind(**{**STAGES[kind], entry.name: value})
    (fault,) = (part for part in caught.value.message.removeprefix("settings: ").split("; "))
    # Of settings within settings, each is named.
    assert fault.startswith((f"{entry.name}: ", f"{entry.name}.a: "))
    assert "\n" not in fault


def test_in_python_settings_are_checked_as_on_the_command_line() -> None:
    with pytest.raises(
        ConfigError, match=r"task: .*'vqq' \(did you mean vqa\?\); patience: .* got -1"
    ) as caught:
        FinetuneConfig(task="vqq", patience=-1)
    assert caught.value.hint
    config = FinetuneConfig(task="rec", data="coco", epochs=3.0)  # type: ignore[arg-type]
    assert (config.data, config.epochs) == (Path("coco"), 3)
    with pytest.raises(ConfigError, match="epochs: expected at least 0, got -1"):
        dataclasses.replace(config, epochs=-1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.epochs = -1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("kind", "values", "says"),
    [
        (FinetuneConfig, {"task": "rec", "answers": "a.json"}, "answers: only for --task vqa"),
        (FinetuneConfig, {"task": "rec", "kl_epochs": 0}, "kl_epochs: only for --task vqa"),
        (FinetuneConfig, {"task": "rec", "blind": True}, "blind: only for --task vqa"),
        (FinetuneConfig, {}, "task: is missing, for example --task vqa"),
        (ThresholdSweepConfig, {"task": "vqa", "seeds": 2}, "seeds: only with --refit"),
        (ExtractFeaturesConfig, {"backbone_side": 64}, "backbone_side: only with --backbone"),
        (
            VisualizeConfig,
            {"images": ["a.jpg"], "question": "what color?", "limit": 7},
            "limit: only with --from",
        ),
    ],
)
def test_a_setting_of_another_task_or_mode_is_refused(
    kind: type[StageConfig], values: dict[str, Any], says: str
) -> None:
    assert message_of(kind, None, values) == f"settings: {says}"


@settings(max_examples=40, deadline=None)
@given(
    rule=st.sampled_from(SELECTIONS),
    threshold=st.sampled_from([0.0, 0.3, 1.0, 4.0]),
    layers=st.none() | st.lists(st.integers(0, 5), max_size=3),
    straight=st.booleans(),
)
def test_the_selection_settings_become_the_selection_of_the_attention(
    rule: str, threshold: float, layers: list[int] | None, straight: bool
) -> None:
    values = {"selection": rule, "threshold": threshold, "threshold_layers": layers}
    if check_threshold(rule, threshold):
        message_of(FinetuneConfig, None, {"task": "vqa", **values})
        return
    config = FinetuneConfig(task="vqa", **values, straight_through=straight, threshold_scope="cross-modal")
    model = TbkinConfig(**config.selection_values())
    if rule in ("sparsemax", "entmax15"):
        threshold = 1.0
    wanted = Selection(rule, threshold, None if layers is None else tuple(layers), "cross-modal", straight)
    assert model.attention_selection() == wanted


def test_files_of_earlier_versions_compare_equal(tmp_path: Path) -> None:
    """A run is resumed where its run.json has the same settings: no key may come, go or be renamed."""
    lines = """out: null
seed: 0
devices: auto
overwrite: false
size: auto
init: auto
epochs: null
batch_size: null
micro_batch_size: null
learning_rate: null
warmup: 0.1
schedule: linear
decay_epochs: []
weight_decay: 0.01
grad_clip: 1.0
dropout: null
precision: auto
max_minutes: null
max_text_tokens: 32
max_regions: null
tensorboard: false
wandb: false
mlflow: false
save_minutes: 2.0
resume: true
"""
    pretrain = """data: []
features: []
graphs: []
weights: []
mismatch: 0.5
ot_weight: 0.1
masking:
  text_side: 0.5
  base: 0.15
  mask: 0.8
  replace: 0.1
  anchor: 0.5
  attribute_factor: 5.0
  attribute_cap: 0.5
  relation_factor: 20.0
  relation_cap: 0.5
  extra: 0.2
  cross_modal: 0.9
  neighbour: 0.3
  neighbour_iou: 0.2
  text_structure: true
  image_structure: true
  cross_modal_structure: true
  interference: false
"""
    finetune = """threshold: 0.0
selection: relative
threshold_layers: null
threshold_scope: all
straight_through: false
task: vqa
data: null
features: null
dataset: null
train_split: null
blind: false
kl_epochs: null
min_answer_count: null
answers: null
patience: 0
threshold_epochs: null
image_dropout: null
blind_epochs: null
predict: []
"""
    for config, values in ((PretrainConfig(), pretrain), (FinetuneConfig(task="vqa"), finetune)):
        of_before = yaml.safe_load(lines + values)
        assert load_config(type(config), write(tmp_path, lines + values), {}) == config
        # What came since says how a machine computes, or has the default by which runs were made before.
        (tmp_path / "run").mkdir(exist_ok=True)
        stage = "pretrain" if isinstance(config, PretrainConfig) else "finetune"
        # But for what is done otherwise since: then it is another run.
        since: dict[str, Any] = {"match_hidden": True} if stage == "pretrain" else {}
        asked = dataclasses.replace(config, out=tmp_path / "run", **since)
        kept = {name: value for name, value in of_before.items() if name in run_settings(config)}
        write_json(tmp_path / "run" / "run.json", {"stage": stage, "status": "running", "settings": kept})
        with contextlib.ExitStack() as held:
            assert open_run(asked, stage, tmp_path, held) == (tmp_path / "run", tmp_path / "run", None)
        for name in since:
            other = dataclasses.replace(config, out=tmp_path / "run")
            with contextlib.ExitStack() as held, pytest.raises(DataError, match=rf"settings \({name}\)"):
                open_run(other, stage, tmp_path, held)
        changed = {**kept, "seed": 1}
        write_json(tmp_path / "run" / "run.json", {"stage": stage, "status": "running", "settings": changed})
        with contextlib.ExitStack() as held, pytest.raises(DataError, match=r"other settings \(seed\)"):
            open_run(asked, stage, tmp_path, held)


# ---- files --------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("kind", STAGES)
def test_the_commented_file_holds_every_setting_and_reads_back(
    kind: type[StageConfig], tmp_path: Path
) -> None:
    given = STAGES[kind] | {"seed": 3, "out": "a b\x1b/\u00fc"}
    text = commented(kind, None, given)
    file = write(tmp_path, text)
    config = load_config(kind, file, {})
    assert config == kind(**given)
    assert max(map(len, text.splitlines())) <= 102
    inner = {
        name
        for entry in fields_of(kind).values()
        if is_dataclass(entry.kind)
        for name in fields_of(entry.kind)
    }
    for name, entry in fields_of(kind).items():
        assert re.search(rf"^# .*\n(# .*\n)*{name}:", text, re.MULTILINE), f"{name} stands below its text"
        assert entry.option.help.split()[0] in text
    assert all(re.search(rf"^  {name}:", text, re.MULTILINE) for name in inner)
    assert load_config(kind, write(tmp_path, commented(kind, file, {"seed": 4})), {}) == replace(
        config, seed=4
    )


def test_the_commented_file_leaves_out_what_is_missing_and_refuses_what_is_wrong(tmp_path: Path) -> None:
    text = commented(FinetuneConfig, None, {"threshold": 0.3})
    assert "\n# task: ''\n" in text and "\nthreshold: 0.3\n" in text
    assert load_config(FinetuneConfig, write(tmp_path, text), {"task": "rec"}).threshold == 0.3
    with pytest.raises(ConfigError, match="epochs: expected at least 0, got -1"):
        commented(FinetuneConfig, None, {"epochs": -1})
    with pytest.raises(ConfigError, match=r"epoch: unknown setting \(did you mean epochs\?\)"):
        commented(FinetuneConfig, write(tmp_path, "epoch: 3"), {})
