"""Save and load models, and begin from other weights.

A checkpoint is a directory in the `save_pretrained` layout: config.json, model.safetensors, tokenizer.json.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedModel

from tbkin_core.errors import CheckpointError, ConfigError, TbkinError
from tbkin_core.modeling import TbkinConfig, TbkinForPreTraining, TbkinForRec, TbkinForVqa
from tbkin_core.modeling.models import TbkinPreTrainedModel
from tbkin_core.selection import SCOPES, SELECTIONS
from tbkin_core.shipped import located
from tbkin_core.support.console import quiet_transformers, shown
from tbkin_core.support.files import make_directory, temporary_directory, write_errors
from tbkin_core.support.pretrained import load_pretrained
from tbkin_core.support.schema import (
    Check,
    anything,
    flag,
    list_of,
    mapping_of,
    maybe,
    number,
    one_of,
    read_checked,
    record,
    text,
)
from tbkin_core.texts.tokenizer import load_tokenizer, save_tokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer

logger = logging.getLogger("tbkin")

_COPY = "the file is damaged: copy the directory of the run again, or train again"
_OTHER_INIT = "give the directory of a checkpoint, or --init none to begin from random weights"


_WEIGHT_TYPES = ("F64", "F32", "F16", "BF16")
_WORDS = "tbkin.text_embeddings.word_embeddings.weight"
# By size in the configuration: a weight that has it, and on which axis.
_SIZED_BY = {
    "vocab_size": (_WORDS, 0),
    "max_position_embeddings": ("tbkin.text_embeddings.position_embeddings.weight", 0),
    "type_vocab_size": ("tbkin.text_embeddings.token_type_embeddings.weight", 0),
    "intermediate_size": ("tbkin.encoder.layers.0.intermediate.weight", 0),
    "region_feature_size": ("tbkin.region_embeddings.feature_projection.weight", 1),
    "num_object_classes": ("object_decoder.weight", 0),
    "num_attribute_classes": ("attribute_decoder.weight", 0),
    "num_answers": ("answer_decoder.weight", 0),
    "tower_width": ("text_tower.states.weight", 0),
}
_SIZE, _SHARE = number(1, 1e7, whole=True), number(0, 1)
_CONFIG_KEYS: dict[str, Check] = {
    "architectures": maybe(list_of(text, least=1)),
    "dtype": maybe(one_of("float64", "float32", "float16", "bfloat16")),
    "id2label": maybe(mapping_of(text)),
    "label2id": maybe(mapping_of(number(0, whole=True))),
    "data_vocabulary": flag,
    **dict.fromkeys([*_SIZED_BY, "hidden_size", "num_hidden_layers", "num_attention_heads"], _SIZE),
    **dict.fromkeys(["max_regions", "max_text_tokens"], _SIZE),
    **dict.fromkeys(["hidden_dropout_prob", "attention_probs_dropout_prob", "layer_norm_eps"], _SHARE),
    **dict.fromkeys(["feature_dropout_prob", "encoder_dropout_prob"], _SHARE),
    "direct_width": number(0, 1e5, whole=True),
    "match_weight": number(0, 1e3),
    "initializer_range": number(0, 1e3),
    "pad_token_id": maybe(number(0, 1e7, whole=True)),
    "threshold": number(),
    "selection": one_of(*SELECTIONS),
    "threshold_layers": maybe(list_of(number(0, 1e7, whole=True))),
    "threshold_scope": one_of(*SCOPES),
    **dict.fromkeys(
        [
            "straight_through",
            "use_regions",
            "tie_word_embeddings",
            "aligned_matching",
            "even_words",
            "direct_words",
            "direct_attends",
        ],
        flag,
    ),
    "extractor": maybe(
        record(
            {},
            {
                **dict.fromkeys(["extractor", "store", "model", "backbone"], maybe(text)),
                **dict.fromkeys(["object_names", "attribute_names"], list_of(text)),
                **dict.fromkeys(["feature_size", "max_regions"], _SIZE),
            },
        )
    ),
}
_CONFIG = record({}, _CONFIG_KEYS)


def _models() -> dict[str, type[Any]]:
    """The class of the model of each task."""
    return {kind.task: kind for kind in TbkinPreTrainedModel.__subclasses__() if kind.task}


def save_model(model: PreTrainedModel, tokenizer: Tokenizer, path: Path) -> None:
    """Write a checkpoint; a reader sees the old files or the new ones, never a part of one."""
    quiet_transformers()
    make_directory(path)
    with write_errors(path), temporary_directory(path, "model") as temporary:
        with _store_from(model, path):
            model.save_pretrained(temporary)
        save_tokenizer(tokenizer, temporary)
        # safetensors writes for its owner alone, whatever the umask says.
        shutil.copymode(temporary / "config.json", temporary / "model.safetensors")
        for file in sorted(temporary.iterdir()):
            file.replace(path / file.name)


@contextlib.contextmanager
def _store_from(model: PreTrainedModel, path: Path) -> Iterator[None]:
    """While a model is written, it names its features by the way from there: equal runs are equal bytes."""
    extractor = model.config.extractor
    if extractor and extractor.get("store"):
        model.config.extractor = {**extractor, "store": os.path.relpath(extractor["store"], path.resolve())}
    try:
        yield
    finally:
        model.config.extractor = extractor


def task_of(path: Path) -> str:
    """ "pretrain", "vqa", "rec" or "retrieval": what a checkpoint was made for.

    Raises:
        CheckpointError: No tbkin checkpoint there.
    """
    config = load_model_config(path)
    kinds = {kind.__name__: task for task, kind in _models().items()}
    architecture = (config.architectures or [""])[0]
    if architecture not in kinds:
        raise CheckpointError(f"{path}: holds a {architecture or 'model of no known kind'}, no tbkin model")
    return kinds[architecture]


def load_model_config(path: Path) -> TbkinConfig:
    """The configuration of a checkpoint.

    Raises:
        CheckpointError: Missing, half-written, or of another model type.
    """
    path = located(path)
    if not path.exists():
        raise CheckpointError(f"{path}: there is no such checkpoint", hint="make one with `tbkin finetune`")
    needed = ("config.json", "model.safetensors")
    missing = [name for name in needed if not (path / name).is_file()]
    if len(missing) == len(needed):
        reason = "it holds no config.json" if path.is_dir() else "it is a file, no directory"
        raise CheckpointError(
            f"{path}: is no checkpoint, {reason}",
            hint="give the directory of a finished run, such as runs/finetune/vqa",
        )
    if missing:
        raise CheckpointError(
            f"{path}: is no whole checkpoint: {' and '.join(missing)} missing",
            hint="if a training run was interrupted, start it again: it goes on",
        )
    values = read_checked(path / "config.json", mapping_of(anything), _COPY, CheckpointError)
    if values.get("model_type") != "tbkin":
        raise CheckpointError(
            f"{path}: holds a model of type {shown(values.get('model_type'))}, expected 'tbkin'"
        )
    read_checked(path / "config.json", _CONFIG, _COPY, CheckpointError)
    # Whatever else is in the file (another library's settings, a program to run) is passed over.
    values = {name: value for name, value in values.items() if name in _CONFIG_KEYS}
    try:
        config = TbkinConfig.from_dict(values)
    except ValueError as error:  # of answers that have no number
        raise CheckpointError(f"{path}/config.json: cannot be read ({error})", hint=_COPY) from error
    _check_config(config, path)
    return config


def _check_config(config: TbkinConfig, path: Path) -> None:
    """CheckpointError where a configuration contradicts itself or the weights beside it."""
    try:
        shapes = _shapes(path / "model.safetensors")
    except Exception as error:  # safetensors raises many kinds
        raise _unreadable(path / "model.safetensors", error) from error
    try:
        config.attention_selection()
        if config.hidden_size % config.num_attention_heads:
            raise ValueError(f"{config.num_attention_heads} heads do not divide the width")
        if config.max_text_tokens > config.max_position_embeddings:
            raise ValueError(f"texts of {config.max_text_tokens} tokens are longer than its positions")
        if "answer_decoder.weight" in shapes and sorted(config.id2label or {}) != [
            *range(config.num_answers)
        ]:
            raise ValueError(f"id2label does not name its {config.num_answers} answers")
    except (ConfigError, ValueError) as error:
        raise CheckpointError(f"{path}/config.json: {error}", hint=_COPY) from error
    try:
        found = _sizes(shapes)
    except (KeyError, ValueError, IndexError) as error:
        raise CheckpointError(f"{path}/model.safetensors: holds no tbkin model", hint=_COPY) from error
    # Before a model of such sizes is built.
    for name, size in found.items():
        if getattr(config, name) != size:
            raise CheckpointError(
                f"{path}: config.json and model.safetensors do not belong together: {name} is"
                f" {getattr(config, name)} in one and {size} in the other",
                hint=_COPY,
            )


def _shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """By name the shape of each tensor in a file of weights; nothing of it is loaded."""
    with safe_open(file, framework="pt") as opened:
        tensors = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118 (no mapping)
        if odd := [name for name, tensor in tensors.items() if tensor.get_dtype() not in _WEIGHT_TYPES]:
            raise ValueError(f"{odd[0]} holds no weights")
        return {name: tuple(tensor.get_shape()) for name, tensor in tensors.items()}


def _sizes(shapes: Mapping[str, Sequence[int]]) -> dict[str, int]:
    """What weights say of the sizes in their configuration; KeyError where they are of no such model."""
    found = {name: shapes[weight][axis] for name, (weight, axis) in _SIZED_BY.items() if weight in shapes}
    layers = {name.split(".")[3] for name in shapes if name.startswith("tbkin.encoder.layers.")}
    return {**found, "hidden_size": shapes[_WORDS][1], "num_hidden_layers": len(layers)}


def _refuse_broken(weights: Mapping[str, Tensor], file: Path | str) -> None:
    """CheckpointError where a weight is not a finite number."""
    for name, value in weights.items():
        if not value.isfinite().all():
            raise CheckpointError(f"{file}: {name} holds numbers that are not finite", hint=_COPY)


def load_model(path: Path, task: str) -> tuple[Any, Tokenizer]:
    """Load a checkpoint for a task, in evaluation mode, on the CPU.

    Raises:
        CheckpointError: Missing or broken, or made for another task.
    """
    quiet_transformers()
    found = task_of(path)
    if found != task:
        raise CheckpointError(
            f"{path}: is a checkpoint for {found}, expected {task}",
            hint=f"make one with `tbkin {'pretrain' if task == 'pretrain' else f'finetune --task {task}'}`",
        )
    path = located(path)
    try:
        model, report = _models()[task].from_pretrained(
            str(path),
            config=load_model_config(path),
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    except TbkinError:
        raise
    except Exception as error:  # safetensors and transformers raise many kinds
        raise _unreadable(path, error) from error
    # Transformers would leave random values in the place of weights that are missing or of another shape.
    unfit = sorted({*report["missing_keys"], *(entry[0] for entry in report["mismatched_keys"])})
    if unfit:
        raise CheckpointError(
            f"{path}: config.json and model.safetensors do not belong together: {len(unfit)} weights are"
            f" missing or of another shape, such as {unfit[0]}",
            hint=_COPY,
        )
    _refuse_broken(model.state_dict(), path / "model.safetensors")
    tokenizer = load_tokenizer(path)
    if (largest := max(tokenizer.get_vocab().values())) >= model.config.vocab_size:
        raise CheckpointError(
            f"{path}: its tokenizer has a word {largest}, the model {model.config.vocab_size} words",
            hint=_COPY,
        )
    if (extractor := model.config.extractor) and extractor.get("store"):
        # An earlier version wrote a whole path, which stays.
        extractor["store"] = os.path.normpath(path.resolve() / extractor["store"])
    return model.eval(), tokenizer


def _unreadable(path: Path | str, error: Exception) -> CheckpointError:
    reason = " ".join(str(error).split())[:200]
    return CheckpointError(f"{path}: its weights cannot be loaded ({reason})", hint=_COPY)


def load_tensors(file: Path, device: torch.device | str = "cpu") -> Any:
    """What `torch.save` wrote, read without running code; ValueError where a byte of it is another.

    PyTorch itself unpacks as many bytes as a file declares, and takes damaged ones for numbers.
    """
    if file.exists() and not file.is_file():
        raise ValueError("it is no regular file")  # a pipe would be waited for
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            if any(member.compress_type != zipfile.ZIP_STORED for member in members):
                raise ValueError("it is packed, which torch.save does not do")
            if sum(member.file_size for member in members) > file.stat().st_size:
                raise ValueError("it declares more than it holds")
            if (damaged := archive.testzip()) is not None:
                raise ValueError(f"{damaged} is not what was written")
    return torch.load(file, map_location=device, weights_only=True)


def load_init(path: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights to begin from, under the names of `TbkinForPreTraining`, and their configuration.

    Args:
        path: A tbkin checkpoint, the name of one that comes with tbkin, a directory with a BERT model, a hub
            id of one, or a `.pkl` of ROSITA.

    Raises:
        CheckpointError: Not found, damaged, or a model of another type.
    """
    weights, values = _load_init(path)
    _refuse_broken(weights, path)
    return weights, values


def _load_init(path: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    from transformers import AutoConfig, AutoModel

    directory = located(Path(path))
    if directory.is_file():
        weights, config = _read_rosita(directory, None)
        # Which answer is which row is not in the file.
        weights = {name: value for name, value in weights.items() if "answer_decoder" not in name}
        return weights, config.to_dict()
    values: dict[str, Any] = {}
    if directory.is_dir():
        if not (directory / "config.json").is_file():
            raise CheckpointError(f"{path}: holds no model (no config.json)", hint=_OTHER_INIT)
        file = directory / "config.json"
        values = read_checked(file, mapping_of(anything), _OTHER_INIT, CheckpointError)
    if values.get("model_type") == TbkinConfig.model_type:
        config = load_model_config(directory)
        from safetensors.torch import load_file

        try:
            return load_file(directory / "model.safetensors"), config.to_dict()
        except Exception as error:
            raise _unreadable(path, error) from error
    if not directory.is_dir():
        # A misspelt path would be asked for on the hub, for half a minute where there is no network.
        if directory.exists() or directory.is_absolute() or directory.parent.parts[:1] == ("..",):
            raise CheckpointError(f"init: {path}: is not a directory with a model", hint=_OTHER_INIT)
        if len(directory.parts) > 2 or (len(directory.parts) == 2 and directory.parent.is_dir()):
            raise CheckpointError(f"init: {path}: there is no such directory", hint=_OTHER_INIT)
        logger.info("init: no directory %s here; asking the Hugging Face hub for it", path)
    try:
        bert_config = load_pretrained(AutoConfig, path)
        if (kind := bert_config.model_type) == "bert":
            return bert_weights(load_pretrained(AutoModel, path).state_dict()), bert_config.to_dict()
    except TbkinError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split()).partition(". ")[0]
        text = (
            f"init: {path!r} is no directory here and cannot be loaded from the Hugging Face hub ({reason})"
        )
        if directory.is_dir():
            text = f"init: {path}: cannot be loaded ({reason})"
        raise CheckpointError(text, hint=_OTHER_INIT) from error
    raise CheckpointError(f"{path}: holds a model of type {kind!r}, expected BERT or tbkin")


# By module of a part of ROSITA, the module here; "text_mlm_head." has a bias of its own.
_ROSITA_MODULES = {
    "text_embeddings.word_embeddings": "tbkin.text_embeddings.word_embeddings",
    "text_embeddings.position_embeddings": "tbkin.text_embeddings.position_embeddings",
    "text_embeddings.token_type_embeddings": "tbkin.text_embeddings.token_type_embeddings",
    "text_embeddings.layer_norm": "tbkin.text_embeddings.layer_norm",
    "visual_embeddings.dense_imgfeat": "tbkin.region_embeddings.feature_projection",
    "visual_embeddings.dense_bboxfeat": "tbkin.region_embeddings.geometry_projection",
    "visual_embeddings.layer_norm": "tbkin.region_embeddings.layer_norm",
    "pooler.dense": "tbkin.pooler",
    "text_mlm_head.dense": "mlm_head.dense",
    "text_mlm_head.layer_norm": "mlm_head.layer_norm",
    "text_mlm_head.decode": "mlm_decoder",
    "text_mlm_head.": "mlm_decoder",
    "imgfeat_head.dense": "region_head.dense",
    "imgfeat_head.layer_norm": "region_head.layer_norm",
    "imgfeat_head.dense_feat": "region_feature_decoder",
    "imgfeat_head.dense_obj": "object_decoder",
    "imgfeat_head.dense_attr": "attribute_decoder",
    "mm_itm_head.dense": "itm_head",
    "mm_qa_head.dense0": "answer_head.dense",
    "mm_qa_head.layer_norm": "answer_head.layer_norm",
    "mm_qa_head.dense1": "answer_decoder",
    "mm_refs_head.dense": "rec_head.dense",
    "mm_refs_head.layer_norm": "rec_head.layer_norm",
    "mm_refs_head.dense_rank": "score_decoder",
    "mm_refs_head.dense_reg": "delta_decoder",
}
# By module of a layer here, its names in BERT and in ROSITA.
_LAYER = {
    "query": ("attention.self.query", "mhatt.dense_q"),
    "key": ("attention.self.key", "mhatt.dense_k"),
    "value": ("attention.self.value", "mhatt.dense_v"),
    "attention_output": ("attention.output.dense", "mhatt.dense_merge"),
    "attention_norm": ("attention.output.LayerNorm", "layer_norm0"),
    "intermediate": ("intermediate.dense", "ffn.dense0"),
    "output": ("output.dense", "ffn.dense1"),
    "output_norm": ("output.LayerNorm", "layer_norm1"),
}
_BERT_LAYER, _ROSITA_LAYER = ({names[place]: own for own, names in _LAYER.items()} for place in (0, 1))
_ROSITA_HEADS: dict[str, tuple[type[Any], tuple[str, ...]]] = {
    "pretraining": (TbkinForPreTraining, ("text_mlm_head", "imgfeat_head", "mm_itm_head")),
    "vqa": (TbkinForVqa, ("mm_qa_head",)),
    "rec": (TbkinForRec, ("mm_refs_head",)),
}


def import_rosita(path: Path | str, head: str = "pretraining", attention_heads: int | None = None) -> Any:
    """A model with the weights of a checkpoint of ROSITA (Cui et al., ACM MM 2021), in evaluation mode.

    Its files are a dict of one state dict a part of the model (`text_embeddings`, `backbone`, ...); optimizer
    states in it are passed over. It was trained on bottom-up-attention features (F = 2048) as they are, and
    on the vocabulary of bert-base-uncased. Answers have the order of its `answer_vocab.json`.

    Args:
        path: The `.pkl`; read without running code.
        head: "pretraining", "vqa" or "rec".
        attention_heads: H; None takes one for each 64 of the width, as the published models have.

    Raises:
        ConfigError: Another head.
        CheckpointError: No such file, no checkpoint of ROSITA, or one without that head.
    """
    if head not in _ROSITA_HEADS:
        raise ConfigError(f"head: expected one of {', '.join(_ROSITA_HEADS)}, got {head!r}")
    kind, parts = _ROSITA_HEADS[head]
    weights, config = _read_rosita(Path(path), attention_heads, parts)
    model = kind(config)
    own = model.state_dict()
    needed = {name for name in own if not name.endswith(("feature_mean", "feature_scale"))}
    unfit = [it for it in own if it in needed and (it not in weights or weights[it].shape != own[it].shape)]
    if unfit:
        raise CheckpointError(
            f"{path}: {len(unfit)} weights of a {head} model are missing or of another shape,"
            f" such as {unfit[0]}"
        )
    model.load_state_dict({name: weights.get(name, value) for name, value in own.items()})
    return model.eval()


def _read_rosita(
    path: Path, attention_heads: int | None, needed: Sequence[str] = ()
) -> tuple[dict[str, Tensor], TbkinConfig]:
    """The weights in a file of ROSITA under tbkin's names, and the sizes that they have."""
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such file")
    try:
        with warnings.catch_warnings(action="ignore"):  # of old pickle protocols
            content = load_tensors(path)
    except Exception as error:  # torch and pickle raise many kinds
        raise CheckpointError(
            f"{path}: cannot be read as a checkpoint of ROSITA ({' '.join(str(error).split())[:200]})",
            hint="give one of its .pkl files, or a directory with config.json and model.safetensors",
        ) from error
    parts = content if isinstance(content, dict) else {}
    needed = ("text_embeddings", "backbone", "pooler", *needed)
    if missing := [part for part in needed if not isinstance(parts.get(part), Mapping)]:
        raise CheckpointError(
            f"{path}: is no checkpoint of ROSITA with this head: it holds no {', '.join(missing)}",
            hint="the published rosita-base.pkl holds the pretraining heads; a fine-tuned one holds its own",
        )
    weights: dict[str, Tensor] = {}
    try:
        for part in dict.fromkeys(module.partition(".")[0] for module in _ROSITA_MODULES):
            for name, value in content.get(part, {}).items():
                module, _, kind = name.rpartition(".")
                if own := _ROSITA_MODULES.get(f"{part}.{module}"):
                    weights[f"{own}.{kind}"] = value.float()
        for name, value in content["backbone"].items():
            _, number, rest = name.split(".", 2)
            module, _, kind = rest.rpartition(".")
            if module in _ROSITA_LAYER:
                weights[f"tbkin.encoder.layers.{number}.{_ROSITA_LAYER[module]}.{kind}"] = value.float()
        sizes: dict[str, Any] = _sizes({name: value.shape for name, value in weights.items()})
        heads = attention_heads or max(sizes["hidden_size"] // 64, 1)
        config = TbkinConfig(**sizes, num_attention_heads=heads)
    except (KeyError, ValueError, IndexError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{path}: is no checkpoint of ROSITA ({error!r})") from error
    return weights, config


def bert_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the weights of a BERT model to tbkin's; what has no counterpart is left out."""
    renamed = {}
    for name, value in weights.items():
        module, _, kind = name.removeprefix("bert.").rpartition(".")
        if module.startswith("embeddings."):
            part = module.removeprefix("embeddings.").replace("LayerNorm", "layer_norm")
            renamed[f"tbkin.text_embeddings.{part}.{kind}"] = value
        elif module.startswith("encoder.layer."):
            number, _, part = module.removeprefix("encoder.layer.").partition(".")
            if part in _BERT_LAYER:
                renamed[f"tbkin.encoder.layers.{number}.{_BERT_LAYER[part]}.{kind}"] = value
        elif module == "pooler.dense":
            renamed[f"tbkin.pooler.{kind}"] = value
    renamed.pop("tbkin.text_embeddings.position_ids", None)
    return renamed


# What has a row an answer.
_ANSWER_ROWS = (
    "answer_decoder.weight", "answer_decoder.bias", "direct.answers.weight", "direct.met.weight"
)  # fmt: skip
# What has a row a word or a position, of which a model may have more than its initial weights.
_LONGER = (
    "word_embeddings", "position_embeddings", "mlm_decoder", "text_tower.words", "direct.vocabulary",
    "direct.usual",
)  # fmt: skip
# What a new word has there: it adds nothing to a sum over words, and is never said of an image.
_NEW_ROWS = {"text_tower.words.weight": 0.0, "direct.vocabulary.bias": -30.0}


@torch.no_grad()
def apply_init(
    model: PreTrainedModel, weights: Mapping[str, Tensor], source: str, answers: Sequence[str] = ()
) -> int:
    """Copy weights into a model where names and shapes match; a longer vocabulary keeps its new rows.

    Args:
        model: The model.
        weights: By name.
        source: Where they are from, for messages.
        answers: What the rows of their answers stand for; those that the model gives, too, are taken.

    Returns:
        How many tensors were taken.

    Raises:
        CheckpointError: Shapes differ (another width or another region feature size), or nothing fits.
    """
    own = model.state_dict()
    taken = 0
    differing = []
    here, there = _shared_rows(model.config.id2label or {}, answers)
    for name, value in weights.items():
        if name not in own:
            continue
        target = own[name]
        longer = any(part in name for part in _LONGER)
        if name in _ANSWER_ROWS:
            # By their names: answers of as many other data would have each other's rows.
            if here and target.shape[1:] == value.shape[1:]:
                target[here] = value[there].to(target.dtype)
                taken += 1
        elif target.shape == value.shape:
            target.copy_(value)
            taken += 1
        elif longer and target.shape[1:] == value.shape[1:]:
            rows = min(len(target), len(value))
            target[:rows] = value[:rows]
            if name in _NEW_ROWS:
                target[rows:] = _NEW_ROWS[name]
            taken += 1
        elif name.startswith("tbkin."):
            differing.append(f"{name} {tuple(value.shape)} instead of {tuple(target.shape)}")
    if differing:
        more = f" and {len(differing) - 1} more" if len(differing) > 1 else ""
        raise CheckpointError(
            f"init {source}: {differing[0]}{more}",
            hint="features of another size or a model of another size: extract features as that model's were,"
            " or use --init none",
        )
    if not taken:
        raise CheckpointError(f"init {source}: none of its weights fits this model")
    return taken


def _shared_rows(labels: Mapping[Any, str], answers: Sequence[str]) -> tuple[list[int], list[int]]:
    """Of the answers that are in both: their numbers in `labels`, and their places among `answers`."""
    numbers = {answer: number for number, answer in labels.items()}
    shared = [(numbers[answer], place) for place, answer in enumerate(answers) if answer in numbers]
    return [number for number, _ in shared], [place for _, place in shared]
