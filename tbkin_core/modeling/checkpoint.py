"""Save and load models, and begin from other weights.

A checkpoint is a directory in the `save_pretrained` layout: config.json, model.safetensors, tokenizer.json.
"""

from __future__ import annotations

import logging
import math
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedModel

from tbkin_core.errors import CheckpointError, ConfigError, TbkinError
from tbkin_core.modeling import TbkinConfig, TbkinForPreTraining, TbkinForRec, TbkinForVqa
from tbkin_core.modeling.models import TbkinPreTrainedModel
from tbkin_core.support.console import quiet_transformers, shortened, shown
from tbkin_core.support.files import make_directory, write_errors
from tbkin_core.support.pretrained import load_pretrained
from tbkin_core.texts.tokenizer import load_tokenizer, save_tokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer

logger = logging.getLogger("tbkin")

_OTHER_INIT = "give the directory of a checkpoint, or --init none to begin from random weights"


def _models() -> dict[str, type[Any]]:
    """The class of the model of each task."""
    return {kind.task: kind for kind in TbkinPreTrainedModel.__subclasses__() if kind.task}


def save_model(model: PreTrainedModel, tokenizer: Tokenizer, path: Path) -> None:
    """Write a checkpoint; a reader sees the old files or the new ones, never a part of one."""
    quiet_transformers()
    make_directory(path)
    with write_errors(path), tempfile.TemporaryDirectory(dir=path, prefix=".saving-") as name:
        temporary = Path(name)
        model.save_pretrained(temporary)
        save_tokenizer(tokenizer, temporary)
        for file in sorted(temporary.iterdir()):
            file.replace(path / file.name)


def task_of(path: Path) -> str:
    """ "pretrain", "vqa" or "rec": what a checkpoint was made for.

    Raises:
        CheckpointError: No tbkin checkpoint there.
    """
    config = load_model_config(path)
    kinds = {kind.__name__: task for task, kind in _models().items()}
    listed = config.architectures
    task = kinds.get(str(listed[0])) if isinstance(listed, list) and listed else None
    if task is None:
        raise CheckpointError(f"{path}: holds {shown(listed) if listed else 'a model'}, no tbkin model")
    return task


def load_model_config(path: Path) -> TbkinConfig:
    """The configuration of a checkpoint.

    Raises:
        CheckpointError: Missing, half-written, or of another model type.
    """
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
    try:
        values, _ = TbkinConfig.get_config_dict(str(path))
        kind, size = values.get("model_type"), (path / "model.safetensors").stat().st_size
        if kind != "tbkin":
            raise CheckpointError(f"{path}: holds a model of type {shown(kind)}, expected 'tbkin'")
        # Before anything is made of these sizes.
        for name, value in values.items():
            if isinstance(value, int) and value > size:
                raise CheckpointError(f"{path}/config.json: {name} is more than its weights can hold")
        values.pop("num_labels", None)  # would make as many names of labels, where a file gives none
        return TbkinConfig.from_dict(values)
    except TbkinError:
        raise
    except Exception as error:  # transformers checks types and values in many ways
        reason = shortened(" ".join(str(error).split()), 200)
        raise CheckpointError(f"{path}/config.json: cannot be read ({reason})") from error


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
    try:
        config = load_model_config(path)
        _check_sizes(path, _models()[task], config)
        model, report = _models()[task].from_pretrained(
            str(path), config=config, output_loading_info=True, ignore_mismatched_sizes=True
        )
    except TbkinError:
        raise
    except Exception as error:  # safetensors and transformers raise many kinds
        raise _unreadable(path, error) from error
    # Transformers would leave random values in the place of weights that are missing or of another shape.
    unfit = sorted({*report["missing_keys"], *(entry[0] for entry in report["mismatched_keys"])})
    if unfit:
        raise _unfit(path, f"{len(unfit)} weights are missing or of another shape, such as {unfit[0]}")
    return model.eval(), load_tokenizer(path)


def _check_sizes(path: Path, kind: type[Any], config: TbkinConfig) -> None:
    """CheckpointError where config.json asks for more numbers than there are weights, before it gets them."""
    with safe_open(path / "model.safetensors", "pt") as file:
        held = {name: math.prod(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    wanted = 0
    if config.num_hidden_layers <= len(held):
        with torch.device("meta"):
            wanted = sum(value.numel() for value in kind(config).state_dict().values())
    # Tied weights count twice in the model and once in the file.
    if not 0 < wanted <= 2 * sum(held.values()) + 1024:
        raise _unfit(path, "the sizes are not those of the weights")


def _unfit(path: Path, what: str) -> CheckpointError:
    return CheckpointError(
        f"{path}: config.json and model.safetensors do not belong together: {what}",
        hint="copy the whole directory of the run again, or train again",
    )


def _unreadable(path: Path | str, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"{path}: its weights cannot be loaded ({' '.join(str(error).split())[:200]})",
        hint="the file is cut short or broken: copy the directory again, or train again",
    )


def load_init(path: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights to begin from, under the names of `TbkinForPreTraining`, and their configuration.

    Args:
        path: A tbkin checkpoint, a directory with a BERT model, a hub id of one, or a `.pkl` of ROSITA.

    Raises:
        CheckpointError: Not found, or a model of another type.
    """
    from transformers import AutoConfig, AutoModel

    directory = Path(path)
    if directory.is_file():
        weights, config = _read_rosita(directory, None)
        # Which answer is which row is not in the file.
        weights = {name: value for name, value in weights.items() if "answer_decoder" not in name}
        return weights, config.to_dict()
    if directory.is_dir() and not (directory / "config.json").is_file():
        raise CheckpointError(f"{path}: holds no model (no config.json)")
    if directory.is_dir() and b"tbkin" in (directory / "config.json").read_bytes():
        config = load_model_config(directory)
        from safetensors.torch import load_file

        try:
            return load_file(directory / "model.safetensors"), config.to_dict()
        except Exception as error:
            raise _unreadable(path, error) from error
    if not directory.is_dir():
        # A misspelt path would be asked for on the hub, for half a minute where there is no network.
        if directory.exists() or directory.is_absolute() or directory.parent.parts[:1] == ("..",):
            raise CheckpointError(f"init: {path}: is not a directory with a model")
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
            content = torch.load(path, map_location="cpu", weights_only=True)
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

    def rows(name: str, default: int) -> int:
        return int(weights[name].shape[0]) if name in weights else default

    try:
        words, width = weights["tbkin.text_embeddings.word_embeddings.weight"].shape
        features = weights.get("tbkin.region_embeddings.feature_projection.weight")
        config = TbkinConfig(
            vocab_size=int(words),
            hidden_size=int(width),
            num_hidden_layers=1 + max(int(name.split(".")[1]) for name in content["backbone"]),
            num_attention_heads=attention_heads or max(int(width) // 64, 1),
            intermediate_size=rows("tbkin.encoder.layers.0.intermediate.weight", 4 * int(width)),
            max_position_embeddings=rows("tbkin.text_embeddings.position_embeddings.weight", 512),
            type_vocab_size=rows("tbkin.text_embeddings.token_type_embeddings.weight", 2),
            region_feature_size=2048 if features is None else int(features.shape[1]),
            num_object_classes=rows("object_decoder.weight", 1600),
            num_attribute_classes=rows("attribute_decoder.weight", 400),
            num_answers=rows("answer_decoder.weight", 3129),
        )
    except (KeyError, ValueError, IndexError) as error:
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


@torch.no_grad()
def apply_init(model: PreTrainedModel, weights: Mapping[str, Tensor], source: str) -> int:
    """Copy weights into a model where names and shapes match; a longer vocabulary keeps its new rows.

    Returns:
        How many tensors were taken.

    Raises:
        CheckpointError: Shapes differ (another width or another region feature size), or nothing fits.
    """
    own = model.state_dict()
    taken = 0
    differing = []
    for name, value in weights.items():
        if name not in own:
            continue
        target = own[name]
        longer = "word_embeddings" in name or "position_embeddings" in name or name.startswith("mlm_decoder")
        if target.shape == value.shape or (longer and target.shape[1:] == value.shape[1:]):
            rows = min(len(target), len(value))
            target[:rows] = value[:rows]
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
