"""What README.md and docs/ say: links lead somewhere, samples are read, commands parse and run."""

from __future__ import annotations

import ast
import csv
import html
import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from command_line import ENVIRONMENT, succeeds, tbkin
from documents import (
    DOCS,
    REPOSITORY,
    Block,
    Names,
    anchors,
    blocks,
    commands,
    inline_code,
    links,
    settings_of,
)
from PIL import Image, ImageDraw

from tbkin_cli.main import STAGES
from tbkin_cli.options import CallOptions
from tbkin_core.datasets.dataset import Dataset, open_dataset
from tbkin_core.datasets.single_files import read_captions, read_questions
from tbkin_core.settings import MaskingConfig, StageConfig, fields_of, load_config

PAGES = [REPOSITORY / "README.md", REPOSITORY / "examples" / "README.md", *sorted(DOCS.glob("*.md"))]
LINKED = [*PAGES, REPOSITORY / "CONTRIBUTING.md"]
BLOCKS = [block for page in PAGES for block in blocks(page)]
SAMPLES = DOCS / "examples"
LANGUAGES = {"sh", "text", "python", "yaml", "json", "jsonl", "csv", "bibtex"}
PROGRAMS = {"tbkin", "pip", "python", "python3", "make", "cd", "export", "cat", "."}


def name_of(page: Path) -> str:
    return str(page.relative_to(REPOSITORY))


def of(*languages: str) -> Any:
    return pytest.mark.parametrize("block", [it for it in BLOCKS if it.language in languages], ids=str)


def hooks() -> Any:
    spec = importlib.util.spec_from_file_location("docs_hooks", DOCS / "hooks.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# ---- links ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", LINKED, ids=name_of)
def test_links_lead_to_files_and_headings(page: Path) -> None:
    for target in links(page):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), f"{target}: no such file"
        assert there.is_relative_to(REPOSITORY), f"{target}: outside the repository"
        if anchor:
            assert anchor in anchors(there), f"{target}: no such heading"


@pytest.mark.parametrize("page", LINKED, ids=name_of)
def test_files_that_are_named_exist(page: Path) -> None:
    named = [part for code in inline_code(page) for part in code.split()]
    named = [
        part
        for part in named
        if re.fullmatch(r"(tests|examples|docs|tbkin_core|tbkin_cli)/[\w./-]+\w/?", part)
    ]
    made = ("examples/NAME", "tbkin_core/tasks/NAME.py", "tbkin_core/features/extractors/NAME.py")
    for part in set(named) - {"tbkin_core/datasets/formats/NAME.py", *made}:
        assert (REPOSITORY / part).exists(), part


def _rows(text: str) -> list[list[str]]:
    """The rows of tables, as cells."""
    return [
        [cell.strip() for cell in row.split("|")[1:-1]] for row in re.findall(r"^\|.*\|$", text, re.MULTILINE)
    ]


def test_figures_of_the_readme_are_those_of_the_pages() -> None:
    told = _rows((DOCS / "training.md").read_text("utf-8") + (DOCS / "visualize.md").read_text("utf-8"))
    shown = [
        row
        for row in _rows(section(REPOSITORY / "README.md", "What it reaches"))
        if re.search(r"\d", row[-1])
    ]
    assert len(shown) == 6
    for name, *figures in shown:
        # A page says more in each cell: how it was measured, and the interval.
        whole = [row for row in told if row[0].startswith(name.split(", 10 minutes")[0])]
        found = any(all(map(_begins, row[1:], figures)) for row in whole if len(row) > len(figures))
        assert found, (name, figures)


def _begins(cell: str, figure: str) -> bool:
    return re.match(rf"{re.escape(figure)}(?![\d.])", cell) is not None


# ---- blocks -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_block_says_what_it_is(page: Path) -> None:
    for block in blocks(page):
        assert block.language in LANGUAGES, f"{block}: {block.language!r}"
    outside = re.sub(
        r"^ *```.*?^ *```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL
    )
    assert not re.search(r"\n\n {4}\S", outside), "a block that is only indented is not checked"


@of("sh")
def test_shell_blocks_parse(block: Block, tmp_path: Path) -> None:
    check_commands(block.text, settings_files(tmp_path))


@pytest.mark.parametrize(
    "line",
    [
        "tbkin finetune --task vqa --treshold 0.3",
        "tbkin finetune --task vga",
        "tbkin finetunes --task vqa",
        "tbkin extract-features coco/ --extractor foto",
        "tbkin threshold-sweep --task vqa --thresholds 0.9:0:0.1",
        "tbkin pretrain coco/ --config examples/no-such.yaml",
        'tbkin visualize "what color"',
        "make demmo",
        "python examples/demmo.py",
        "pip install '.[wrods]'",
    ],
)
def test_a_misspelt_option_or_value_is_found(line: str, tmp_path: Path) -> None:
    with pytest.raises(Exception):  # noqa: B017 - click's, ConfigError, an assertion
        check_commands(line, settings_files(tmp_path))


def settings_files(place: Path) -> dict[str, Path]:
    """Each file of settings that the pages show, by its name."""
    files = {}
    for block in BLOCKS:
        if block.language == "yaml":
            files[block.title] = place / block.title
            files[block.title].write_text(block.text)
    return files


def check_commands(text: str, files: dict[str, Path]) -> None:
    """Each line is something that can be run: an option that is none, or a value, is an error."""
    targets = set(re.findall(r"^([\w-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))
    pyproject = (REPOSITORY / "pyproject.toml").read_text()
    for program, *words in commands(text):
        assert program in PROGRAMS, program
        if program == "tbkin":
            settings_of(words, files)
        elif program == "make":
            assert set(words) <= targets, words
        elif program.startswith("python") and words[0].endswith(".py"):
            assert (REPOSITORY / words[0]).exists(), words[0]
        elif program == "pip":
            for extra in re.findall(r"\[(\w+)\]", " ".join(words)):
                assert f"\n{extra} = [" in pyproject, extra


@pytest.mark.parametrize("page", LINKED, ids=name_of)
def test_commands_in_the_text_parse(page: Path, tmp_path: Path) -> None:
    files = settings_files(tmp_path)
    for code in inline_code(page):
        if code.startswith("tbkin ") and not re.search(r"\.\.\.|COMMAND|QUESTIONS|NAME", code):
            # N stands for a number, here and in --help.
            (words,) = (["1" if word == "N" else word for word in it] for it in commands(code))
            assert words[1].startswith("-") or words[1] in STAGES, code
            # A command alone, or with an option that is spoken of, is its name.
            takes_one = words[1] in ("extract-features", "pretrain", "build-graphs")
            if len(words) > 3 or (len(words) == 3 and takes_one):
                settings_of(words[1:], files)


@pytest.mark.parametrize("page", LINKED, ids=name_of)
def test_options_in_the_text_exist(page: Path) -> None:
    kinds = [CallOptions, *(stage.settings for stage in STAGES.values())]
    known = {flag for kind in kinds for it in fields_of(kind).values() for flag in it.flag.split()}
    known |= {"--help", "--version"}
    # An option that its examples invent, and those of scripts that a sentence has named before.
    known |= {
        "CONTRIBUTING.md": {"--label-smoothing", "--replay", "--check"},
        "README.md": {"--full"} if page.parent.name == "examples" else set(),
    }.get(page.name, set())
    for code in inline_code(page):
        words, options = code.split(), set(re.findall(r"(?<![\w-])--[a-z][\w-]*", code))
        script = next((word for word in words if word.endswith(".py")), None)
        if words[:1] == ["pip"] or words[:1] == ["torchrun"] or words[:2] == ["python", "-m"]:
            continue
        if script is not None and options:
            beside = page.parent / script
            source = (beside if beside.exists() else REPOSITORY / script).read_text(encoding="utf-8")
            # Of a Typer function an option is a parameter.
            options = {it for it in options if not re.search(rf"\b{it[2:].replace('-', '_')}\b|{it}", source)}
            assert not options, code
        assert options <= known, code


@of("yaml")
def test_settings_are_read(block: Block, tmp_path: Path) -> None:
    file = settings_files(tmp_path)[block.title]
    config = load_config(STAGES[file.stem].settings, file, {})
    assert set(yaml.safe_load(block.text)) <= set(vars(config))


@of("json")
def test_json_is_valid(block: Block) -> None:
    json.loads(block.text)


@of("python")
def test_names_in_python_exist(block: Block) -> None:
    Names().visit(ast.parse(block.text))


@pytest.mark.parametrize(
    "wrong",
    [
        "from tbkin_core import Answerer\nAnswerer(treshold=1)",
        "from tbkin_core import Answerer\nAnswerer().ask('a', 'b').answr",
        "from tbkin_core import Answerer\nfound = Answerer().ask('a', 'b', tops=3)",
        "from tbkin_core.stages import finetunes",
        "from tbkin_core.settings import FinetuneConfig\nFinetuneConfig(tsk='vqa')",
        "from tbkin_core.stages import visualize\nvisualize(1).imags",
    ],
)
def test_a_name_that_is_none_is_found(wrong: str) -> None:
    with pytest.raises((AssertionError, TypeError)):
        Names().visit(ast.parse(wrong))


# ---- samples of data ----------------------------------------------------------------------------------


def test_every_sample_is_shown_as_it_is() -> None:
    shown = {block.text.rstrip("\n") for block in blocks(DOCS / "own-data.md")}
    files = sorted(SAMPLES.iterdir())
    assert files
    for file in files:
        assert file.read_text(encoding="utf-8").rstrip("\n") in shown, file.name
    samples = {file.read_text(encoding="utf-8").rstrip("\n") for file in files}
    for block in BLOCKS:
        if block.language in ("jsonl", "csv"):
            assert block.text.rstrip("\n") in samples, f"{block}: is no file of docs/examples"


def photos(place: Path) -> Path:
    """Pictures of the names that the samples have."""
    for number, name in enumerate(("dog.jpg", "horse.jpg", "beach/kite.jpg")):
        draw_photo(place / "photos" / name, number)
    return place


def draw_photo(file: Path, number: int) -> None:
    """Something with the noise and the soft edges of a photograph."""
    file.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.new("RGB", (200, 150), (90 + 20 * number, 150, 210))
    draw = ImageDraw.Draw(picture)
    draw.rectangle((0, 90, 200, 150), fill=(70, 130 + 10 * number, 60))
    draw.ellipse((30 + 30 * number, 60, 90 + 30 * number, 120), fill=(120, 70, 40))
    pixels = np.asarray(picture, np.int16)
    noise = np.random.default_rng(number).normal(0, 12, pixels.shape)
    Image.fromarray(np.clip(pixels + noise, 0, 255).astype(np.uint8)).save(file)


def _questions(dataset: Dataset, rows: int) -> None:
    found = {it.question_id: it for it in dataset.questions()}
    assert len(found) == rows and {it.image_id for it in found.values()} == {"dog", "horse", "kite"}
    assert found["kite-1"].split == "val" and found["kite-1"].answers == ("2",)
    assert ("yes", "yes", "no") in {it.answers for it in found.values()}
    assert ("a hat", "hat") in {it.answers for it in found.values() if it.split == "test"}


def _captions(dataset: Dataset, rows: int) -> None:
    found = dataset.captions()
    assert len(found) == rows and {it.image_id for it in found} == {"dog", "kite"}
    assert [it.split for it in found] == ["train", "train", "val"]


def _expressions(dataset: Dataset, rows: int) -> None:
    found = dataset.expressions()
    assert [it.target_xywh for it in found] == [(10, 20, 100, 70), (120, 25, 60, 70), (30, 10, 50, 80)]
    assert len(found) == rows and found[-1].split == "val"


@pytest.mark.parametrize(
    "name, rows, check",
    [
        ("questions.jsonl", 4, _questions),
        ("questions.csv", 4, _questions),
        ("captions.jsonl", 3, _captions),
        ("expressions.jsonl", 3, _expressions),
        ("expressions.csv", 3, _expressions),
    ],
)
def test_samples_are_read_in_a_dataset(
    name: str, rows: int, check: Callable[[Dataset, int], None], tmp_path: Path
) -> None:
    (photos(tmp_path) / name).write_bytes((SAMPLES / name).read_bytes())
    dataset = open_dataset(tmp_path)
    check(dataset, rows)
    assert dataset.problems == []
    assert all(it.path is not None for it in dataset.images())


def test_samples_are_read_by_themselves() -> None:
    for name in ("to-ask.csv", "to-ask.jsonl"):
        found = read_questions(SAMPLES / name)
        assert [it.image for it in found.asked] == [
            "photos/dog.jpg",
            "photos/horse.jpg",
        ] and not found.problems
    for name in ("captions.txt", "captions.csv"):
        texts, problems = read_captions(SAMPLES / name)
        assert len(texts) == 2 and not problems
    assert load_config(
        STAGES["finetune"].settings, None, {"task": "vqa", "answers": SAMPLES / "answers.json"}
    )
    assert json.loads((SAMPLES / "answers.json").read_text())


def test_the_samples_that_are_left_have_a_test() -> None:
    read = set(re.findall(r'"([\w-]+\.(?:jsonl|csv|txt|json))"', Path(__file__).read_text(encoding="utf-8")))
    assert {file.name for file in SAMPLES.iterdir()} <= read


# ---- what can run, runs ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def walk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory such as the pages speak of: photo.jpg, photos/, and coco/ with features and graphs."""
    place = photos(tmp_path_factory.mktemp("walk"))
    draw_photo(place / "photo.jpg", 3)
    photos(place / "coco")
    (place / "coco" / "captions.jsonl").write_bytes((SAMPLES / "captions.jsonl").read_bytes())
    succeeds("extract-features", "coco", "--extractor", "builtin", "--workers", "0", cwd=place)
    succeeds("build-graphs", "coco", "--workers", "0", cwd=place)
    return place


@pytest.fixture(scope="module")
def asked(walk: Path) -> Path:
    """The same after the first commands of README.md have been run there."""
    first = next(block for block in blocks(REPOSITORY / "README.md") if "photo.jpg" in block.text)
    lines = list(commands(first.text))
    assert len(lines) == 3
    outs = [succeeds(*words[1:], cwd=walk).out for words in lines]
    assert "answer" in outs[0] and "%" in outs[0]
    assert "dog.jpg" in outs[1] and "kite.jpg" in outs[1]
    shown = blocks(REPOSITORY / "README.md")[2]
    rows = [row.rstrip() for row in outs[2].splitlines()]
    assert all(row.rstrip() in rows for row in shown.text.splitlines()), (shown.text, outs[2])
    return walk


@pytest.mark.xdist_group("docs-walk")
def test_the_first_commands_of_the_readme_run(asked: Path) -> None:
    made = {file.name for file in (asked / "runs" / "visualize").iterdir()}
    assert {
        "photo-what-is-the-man-doing.png",
        "photo-what-is-the-man-doing.npz",
        "photos-a-dog-jumps-into-the-water.png",
    } <= made


@pytest.mark.xdist_group("docs-walk")
def test_a_file_of_questions_is_answered(asked: Path) -> None:
    (asked / "to-ask.csv").write_bytes((SAMPLES / "to-ask.csv").read_bytes())
    succeeds("visualize", "to-ask.csv", cwd=asked)
    with (asked / "to-ask.answers.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    described = set(re.findall(r"`([\w]+)`", section(DOCS / "formats.md", "Answers to a file of questions")))
    assert len(rows) == 2 and set(rows[0]) - {"image", "question", "note"} <= described
    assert all(row["prediction"] for row in rows) and rows[0]["note"] == "mine"


def section(page: Path, title: str) -> str:
    text = page.read_text(encoding="utf-8")
    return text.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


# Training, or models and pipelines that are not installed.
NOT_RUN = ("finetune(", "runs/finetune", "spacy.load")


def runnable() -> Iterator[Block]:
    for block in BLOCKS:
        if block.language == "python" and not any(part in block.text for part in NOT_RUN):
            yield block


@pytest.mark.xdist_group("docs-walk")
def test_python_blocks_run(
    asked: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(asked)
    ran = list(runnable())
    assert len(ran) >= 8
    for block in ran:
        code = compile(block.text, str(block), "exec")
        exec(code, {"__name__": "__main__"})
    assert capsys.readouterr().out


@pytest.mark.xdist_group("docs-walk")
def test_stores_and_traces_hold_what_is_described(asked: Path) -> None:
    from safetensors import safe_open

    with safe_open(asked / "coco" / "features" / "shard-00000.safetensors", "numpy") as shard:
        arrays = {name: shard.get_tensor(name) for name in shard.keys()}  # noqa: SIM118
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \|", section(DOCS / "formats.md", "Feature store"), re.MULTILINE)
    assert dict(rows) == {name: str(it.dtype) for name, it in arrays.items()}
    manifest = json.loads((asked / "coco" / "features" / "store.json").read_text())
    assert all(f"`{name}`" in section(DOCS / "formats.md", "Feature store") for name in manifest)
    described = set(re.findall(r"`([\w.]+)`", section(DOCS / "formats.md", "Traces")))
    with np.load(asked / "runs" / "visualize" / "photo-what-is-the-man-doing.npz") as trace:
        assert set(trace.files) <= described


def test_exported_graphs_look_as_described(tmp_path: Path) -> None:
    example = next(it for it in blocks(DOCS / "formats.md") if '"text_id"' in it.text)
    described = json.loads(example.text)
    (tmp_path / "captions.txt").write_text(described["text"] + "\n")
    succeeds("build-graphs", "captions.txt", "--export", "graphs.jsonl", cwd=tmp_path)
    assert json.loads((tmp_path / "graphs.jsonl").read_text()) == described


# ---- messages ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trouble(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory in which the commands of the page of troubles fail as it says."""
    place = photos(tmp_path_factory.mktemp("trouble"))
    draw_photo(place / "photo.jpg", 1)
    (place / "broken.jpg").write_bytes((place / "photo.jpg").read_bytes()[:3000])
    (place / "empty").mkdir()
    for name in ("drawn", "plain", "boxes"):
        for file in photos(place / name).rglob("*.jpg"):
            drawing = Image.new("RGB", (200, 150), "white")
            ImageDraw.Draw(drawing).rectangle((30, 40, 90, 110), fill="red")
            drawing.save(file)
        succeeds("extract-features", name, "--extractor", "builtin", "--workers", "0", cwd=place)
    for name in ("questions.csv", "captions.jsonl"):
        (place / "drawn" / name).write_bytes((SAMPLES / name).read_bytes())
    (place / "boxes" / "boxes.csv").write_text('image,text,box\ndog.jpg,the dog,"1, 2, 30, 40"\n')
    (place / "wording.csv").write_text("image,wording\nphoto.jpg,what is it?\n")
    (place / "bad.yaml").write_text("learning_rat: 0.1\nepochs: many\n")
    return place


MESSAGES = [it for it in blocks(DOCS / "troubleshooting.md") if it.text.startswith("$ ")]


@pytest.mark.xdist_group("docs-messages")
@pytest.mark.parametrize("block", MESSAGES, ids=str)
def test_messages_are_those_of_the_program(block: Block, trouble: Path) -> None:
    typed, _, message = block.text.partition("\n")
    place = trouble
    if typed.startswith("$ cd "):
        place /= typed.removeprefix("$ cd ")
        typed, _, message = message.partition("\n")
    ((program, *words),) = commands(typed.removeprefix("$ "))
    assert program == "tbkin"
    outcome = tbkin(*words, cwd=place)
    pattern = re.escape(message.strip()).replace(re.escape("..."), ".*")
    assert re.search(rf"^{pattern}$", outcome.err.strip(), re.MULTILINE), outcome.err
    assert outcome.code == (2 if "ConfigError" in message else 1)


# ---- the site ------------------------------------------------------------------------------------------


def test_the_page_of_commands_names_every_setting() -> None:
    text = hooks().settings_text()
    ids = re.findall(r'id="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    common = {**fields_of(StageConfig), **fields_of(CallOptions)}
    shown = {f"every-{name}": field for name, field in common.items()}
    for command, stage in STAGES.items():
        for name, field in fields_of(stage.settings).items():
            if name not in common or field.option != common[name].option:
                shown[f"{command}-{name}"] = field
    for inner in fields_of(MaskingConfig).values():
        shown[f"pretrain-masking.{inner.name}"] = inner
    for anchor, field in shown.items():
        entry = text.partition(f'id="{anchor}"')[2].partition("</dd>")[0]
        assert entry, anchor
        typed = re.split("</code>", entry)[0].partition("<code>")[2].split()[0]
        if field.option.group is None:
            assert typed == anchor.partition("-")[2].rpartition("-")[2], anchor
        elif not field.option.argument:
            assert typed.rstrip(",") == field.flag.split()[0], anchor
        told = html.unescape(re.sub(r"<[^>]*>", "", entry))
        assert " ".join(field.option.help.replace("`", "").split()) in told, anchor


class _Loaded(HTMLParser):
    """What a page loads by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "link" or tag in ("script", "img", "iframe", "source", "video", "object", "embed"):
            self.found += [it for it in (given.get("href"), given.get("src"), given.get("data")) if it]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for needed in ("mkdocs", "material", "mkdocstrings_handlers.python"):
        pytest.importorskip(needed, reason="the site is built where `pip install 'tbkin[docs]'` was")
    place = tmp_path_factory.mktemp("site") / "site"
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(place)],
        cwd=REPOSITORY,
        env={**ENVIRONMENT, "NO_MKDOCS_2_WARNING": "1", "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return place


@pytest.mark.xdist_group("docs-site")
def test_the_site_builds_strictly(site: Path) -> None:
    for page in DOCS.glob("*.md"):
        assert (site / f"{page.stem}.html").is_file(), page.name
    text = (site / "commands.html").read_text(encoding="utf-8")
    assert 'id="finetune-threshold"' in text
    api = (site / "api.html").read_text(encoding="utf-8")
    for name in ("Answerer", "Answered", "FinetuneResult", "TbkinForVqa", "StageConfig", "DataError"):
        assert re.search(rf'id="tbkin_core[\w.]*\.{name}"', api), name
    assert not list(site.rglob("*.py")), "code is no page"


@pytest.mark.xdist_group("docs-site")
def test_the_site_loads_nothing_from_another_host(site: Path) -> None:
    for page in site.rglob("*.html"):
        parser = _Loaded()
        parser.feed(page.read_text(encoding="utf-8"))
        away = [it for it in parser.found if re.match(r"(https?:)?//", it)]
        assert not away, f"{page.name}: {away}"
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import)\s*['\"]?(https?:)?//", sheet.read_text(encoding="utf-8")), (
            sheet
        )
