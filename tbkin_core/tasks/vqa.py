"""Visual question answering over a closed set of answers, scored as the official VQA evaluator does.

Letters: B batch, N samples, K regions.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tbkin_core.datasets.formats.own_questions import SHAPE
from tbkin_core.datasets.records import Question
from tbkin_core.errors import DataError
from tbkin_core.evaluation.linear import LinearModels, fit_linear_models, mean_vectors
from tbkin_core.evaluation.vqa import (
    NUMBER_WORDS,
    VqaAccuracy,
    answer_accuracy,
    normalize_answer,
    soft_scores,
    vqa_accuracy,
)
from tbkin_core.modeling import TbkinForVqa
from tbkin_core.modeling.direct import MEETINGS
from tbkin_core.modeling.losses import answer_loss
from tbkin_core.support.files import read_json
from tbkin_core.support.randomness import mix, uniform
from tbkin_core.tasks.base import (
    OWN_ROW,
    FinetuneObjective,
    FinetuneTask,
    Head,
    LearningPlan,
    ReportRow,
    SampleSet,
    Shown,
    Split,
    SplitReport,
    chosen_set,
    listed,
    other_sets,
)
from tbkin_core.tasks.inputs import Batch, Inputs, check_finite, model_inputs, run_batches
from tbkin_core.texts.tokenizer import SPECIAL_TOKENS

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from tbkin_core.datasets import Dataset
    from tbkin_core.features.store import FeatureStore
    from tbkin_core.settings import FinetuneConfig

MANY_QUESTIONS = 100_000
"""From so many on, the BCE loss follows the KL loss, as published."""

MET = {"yes": 0.5, "no": -0.5}
"""What a question says of its answer whose words fit the image, before anything is learnt of it."""

_NUMBERS = {str(number): word for number, word in enumerate(NUMBER_WORDS)}
_MOST_IMAGES = 2000  # over which the usual chances of words are taken
# Name of a stream of random numbers, see `uniform`.
_HIDDEN_IMAGES = 11


@dataclass(frozen=True, slots=True)
class Answers:
    """The best answer to each of N questions, and its probability (N,)."""

    answers: list[str]
    probability: NDArray[np.float32]


class VqaTask(FinetuneTask[Question]):
    """Visual question answering."""

    name = "vqa"
    asks = True
    head = TbkinForVqa
    metric = "VQA accuracy"
    unit = "question"
    label = "answers"
    # A REC model has learnt to find what words name, which few questions teach.
    starts_from = ("rec",)
    question_only = True

    def found_in(self, dataset: Dataset) -> bool:
        return bool(dataset.question_splits())

    def split_names(self, dataset: Dataset, subset: str | None) -> list[str]:
        return list(dataset.question_splits(question_set(dataset, subset)))

    def split_samples(self, dataset: Dataset, split: str, subset: str | None) -> list[Question]:
        return list(dataset.questions(split, question_set(dataset, subset)))

    def samples(self, dataset: Dataset, subset: str | None) -> SampleSet[Question]:
        chosen = question_set(dataset, subset)
        notes = other_sets(subset, chosen, dataset.question_sets())
        splits: dict[str, list[Question]] = {}
        names = dataset.question_splits(chosen)
        if dataset.mixes_questions():
            sources = "; ".join(f"{name} from {', '.join(dataset.question_files(name))}" for name in names)
            notes.append(f"the files of the splits have unlike names: {sources}")
        for name in names:
            questions = dataset.questions(name, chosen)
            answered = [item for item in questions if item.answers]
            if lacking := len(questions) - len(answered) if answered else 0:
                notes.append(f"{name}: {lacking} of {len(questions)} questions have no answers (left out)")
            if questions:
                splits[name] = answered or questions
            if len(files := dataset.question_files(name, chosen)) > 1:
                listed = ", ".join(f"{file} ({count})" for file, count in files.items())
                notes.append(
                    f"{name}: the questions of {len(files)} files are taken together: {listed}; to take one"
                    " alone, put the others into another directory"
                )
        # Either all questions of a split have answers by now, or none has.
        silent = [name for name in splits if not name.startswith("test") and not splits[name][0].answers]
        notes += [f"{name}: none of its questions has answers (not used)" for name in silent]
        return SampleSet(splits, silent, chosen, notes=notes)

    def text(self, sample: Question) -> str:
        return sample.question

    def labelled(self, sample: Question) -> bool:
        return bool(sample.answers)

    def kind(self, sample: Question) -> str:
        return sample.answer_type or ""

    def build_head(self, training: Sequence[Question], config: FinetuneConfig) -> Head:
        if config.answers is not None:
            answers, source = load_answers(config.answers), f"those of {config.answers}"
        else:
            answers, minimum = answer_vocabulary(training, config.min_answer_count)
            source = f"questions per answer: at least {minimum}"
        names = dict(enumerate(answers))
        numbers = {answer: number for number, answer in names.items()}
        values = {"num_answers": len(answers), "id2label": names, "label2id": numbers}
        note = f"{len(answers)} answers to learn ({source})"
        return Head({**values, "use_regions": not config.blind}, len(answers), note)

    def begin(
        self, model: Any, training: Split[Question], tokenizer: Tokenizer, known: Mapping[str, Tensor]
    ) -> str:
        direct, table = model.direct, known.get("direct.vocabulary.weight")  # (V, W)
        answered = "direct.answers.weight" in known and "direct.share" not in known
        if answered and direct is not None and direct.share is not None:
            # These answers did without what attention looks at, which comes in as it is learnt.
            torch.nn.init.constant_(direct.share, -4.0)
        if direct is None or direct.met is None or table is None:
            return ""
        begun = 0
        answers = model.config.answers()
        with torch.no_grad():
            if "direct.usual" not in known:
                direct.usual[: len(table)] = _usual_chances(model, training.inputs)[: len(table)]
                # Marks and [CLS] and [SEP] are said of no image, and tell nothing.
                direct.usual[[row for token, row in tokenizer.get_vocab().items() if not _is_word(token)]] = 0
            images = direct.answers.weight[:, -table.shape[1] :]
            for row, answer in enumerate(answers):
                pieces = _said_as(answer, tokenizer, len(table))
                # The weights may know what an answer looks like already.
                if pieces and not images[row].any():
                    images[row] = table[pieces].mean(0)
                    begun += 1
                if answer in MET and not direct.met.weight[row].any():
                    direct.met.weight[row, MEETINGS.index("mean")] = MET[answer]
        what = "begin with what pretraining knows of the images that their words are said of"
        return f"{begun} answers {what}" if begun else ""

    def targets(self, samples: Sequence[Question], store: FeatureStore) -> list[dict[str, float]]:
        """For each question a dict of normalised answer to soft score, empty without answers."""
        return [soft_scores(item.answers) for item in samples]

    def objective(
        self, splits: Mapping[str, Split], head: Head, config: FinetuneConfig, plan: LearningPlan
    ) -> VqaObjective:
        train, validation = splits["train"], splits.get("val")
        kl_epochs = config.kl_epochs
        if kl_epochs is None:
            # A softmax is the right model where one answer is right, and needs no other loss after it. From
            # few questions the other one unlearns some of it (captions' questions: 43.9 % in place of 44.7).
            certain = all(len(scores) == 1 for scores in train.targets)
            kl_epochs = plan.epochs if certain or len(train) < MANY_QUESTIONS else plan.epochs // 3
        if validation is not None and not self.scored(validation):
            validation = None
        answers = list(head.values["id2label"].values())
        hidden = config.seed, plan.image_dropout, plan.blind_epochs
        objective = VqaObjective(train, validation, answers, kl_epochs, plan.batch_size, *hidden)
        given = set().union(*train.targets) if config.answers else set(answers)
        odd = [answer for answer in answers if answer not in given and normalize_answer(answer) != answer]
        if odd:
            objective.notes.append(
                f"{len(odd)} of the {len(answers)} answers of {config.answers} are not spelt as the metric"
                f" compares them, such as {odd[0]!r} ({normalize_answer(odd[0])!r}): nothing teaches these"
            )
        counts = {name: without_known_answer(questions, answers) for name, questions in splits.items()}
        objective.values["without_known_answer"] = {name: count for name, count in counts.items() if count}
        for name, count in objective.values["without_known_answer"].items():
            total = len(splits[name])
            effect = "skipped" if name == "train" else "never answered rightly"
            objective.notes.append(
                f"{name}: {count} of {total} questions ({count / total:.1%}) have no answer among the"
                f" {head.outcomes} that are learnt; {effect}"
            )
        return objective

    def predict(self, model: Any, inputs: Inputs, device: torch.device, batch_size: int) -> Answers:
        chosen, probability = np.zeros(len(inputs), np.int64), np.zeros(len(inputs), np.float32)
        for indices, output in run_batches(model, inputs, device, batch_size):
            best = output.vqa_logits.float().softmax(dim=-1).max(dim=-1)
            chosen[indices] = best.indices.cpu().numpy()
            probability[indices] = best.values.cpu().numpy()
        check_finite(model, probability)
        answers = model.config.answers()
        return Answers([answers[number] for number in chosen], probability)

    def scores(self, split: Split, predictions: Answers) -> NDArray[np.float64]:
        def score(question: Question, scores: dict[str, float], answer: str) -> float:
            # What normalisation leaves alone needs no normalising; the scores of the targets then suffice.
            if not question.answers or normalize_answer(answer) == answer:
                return scores.get(answer, 0.0)
            return answer_accuracy(answer, question.answers)

        entries = zip(split.samples, split.targets, predictions.answers, strict=True)
        return np.array([score(*entry) for entry in entries], np.float64)

    def scored(self, split: Split) -> bool:
        return any(split.targets)

    def report(
        self, split: Split, predictions: Answers, training: Sequence[Question], blind: bool, hidden: Any
    ) -> SplitReport:
        own = official_accuracy(split, predictions.answers)
        results = [
            {
                "question_id": item.question_id,
                "image_id": item.image_id,
                "text": item.question,
                "type": item.question_type or item.answer_type,
                "answer": answer,
                "probability": round(float(certainty), 4),
                "answers": {name: round(score, 4) for name, score in scores.items()},
                "score": round(own.per_question[item.question_id] / 100, 4),
            }
            for item, answer, certainty, scores in zip(
                split.samples, predictions.answers, predictions.probability, split.targets, strict=True
            )
        ]

        rows = []
        if hidden is not None:
            accuracy = official_accuracy(split, hidden.answers)
            rows.append(report_row("this model, image hidden", split, accuracy, 2))
        majority = [answer_vocabulary(training, 1)[0][0]] * len(split)
        rows.append(report_row("majority answer", split, official_accuracy(split, majority), 0))
        name = "this model, without the image" if blind else "this model"
        rows.append(report_row(name, split, own, OWN_ROW))
        counts = Counter(item.question_type for item in split.samples)
        by_type = {
            "per_question_type": own.per_question_type,
            "questions_per_type": {name: counts[name] for name in own.per_question_type},
            "per_answer_type": own.per_answer_type,
        }
        return SplitReport(results, rows, by_type)

    def baselines(self, training: Split, model: Any, blind: bool) -> LinearBaselines | None:
        known = set(model.config.answers())
        # The scores of a question stand by falling counts, so that its most common answer comes first.
        best = [max(scores, key=scores.__getitem__, default=None) for scores in training.targets]
        labels = [answer if answer in known else None for answer in best]
        texts = [self.text(item) for item in training.samples]
        models = fit_linear_models(texts, labels, training.inputs, blind)
        return None if models is None else LinearBaselines(models)

    def prediction_rows(
        self, model: Any, samples: Sequence[Question], split: Split, predictions: Answers
    ) -> tuple[list[dict[str, Any]], str]:
        known = dict(zip([item.question_id for item in split.samples], predictions.answers, strict=True))
        # Servers want all questions answered; the first answer is the commonest in training.
        usual = model.config.answers()[0]
        ids = [item.question_id for item in samples]
        rows = [{"question_id": number, "answer": known.get(number, usual)} for number in ids]
        return rows, f"are answered {usual!r}"

    def shown(self, model: Any, output: Any, boxes: NDArray, size: tuple[int, int], top: int) -> Shown:
        answers = model.config.answers()
        best = output.vqa_logits[0].float().softmax(dim=-1).topk(min(top, len(answers)))
        names = [answers[number] for number in best.indices.tolist()]
        return Shown(list(zip(names, best.values.tolist(), strict=True)))


@dataclass(frozen=True, slots=True)
class LinearBaselines:
    """Rows of the linear models."""

    models: LinearModels

    @property
    def values(self) -> dict[str, Any]:
        return {"linear": self.models.values}

    @property
    def notes(self) -> list[str]:
        return self.models.notes

    def rows(self, split: Split) -> list[ReportRow]:
        texts = [item.question for item in split.samples]
        rows = []
        for name, sees in {"linear, question only": False, "linear, with image": True}.items():
            if not sees or self.models.seeing is not None:
                answers = self.models.predict(texts, split.inputs, sees)
                rows.append(report_row(name, split, official_accuracy(split, answers), 1))
        return rows


class VqaObjective(FinetuneObjective):
    """What a VQA model learns.

    Args:
        answers: What can be answered, in the order of the model's outputs.
        kl_epochs: Epochs with the KL loss before the BCE loss.
        seed: Decides with the epoch which images are hidden.
        image_dropout: Share of the questions of an epoch that are learnt without any region. The model then
            also answers from the question alone, and is measured both ways: `ignores_image` says whether the
            last evaluation was better without.
        blind_epochs: Epochs, the first ones, that learn from the questions alone.

    Raises:
        DataError: No training question has one of the answers.
    """

    def __init__(
        self,
        train: Split[Question],
        validation: Split[Question] | None,
        answers: Sequence[str],
        kl_epochs: int,
        batch_size: int,
        seed: int = 0,
        image_dropout: float = 0.0,
        blind_epochs: int = 0,
    ) -> None:
        ids = {answer: number for number, answer in enumerate(answers)}
        self._targets = [
            [(ids[answer], score) for answer, score in scores.items() if answer in ids and score > 0]
            for scores in train.targets
        ]
        # A question none of whose answers can be given would only teach the model to be unsure.
        rows = np.array([row for row, targets in enumerate(self._targets) if targets], np.int64)
        super().__init__(VqaTask(), train, validation, rows, batch_size)
        self.answers = list(answers)
        self.kl_epochs, self.blind_epochs = kl_epochs, blind_epochs
        self.seed, self.image_dropout = seed, image_dropout
        self.metric = "best_accuracy" if image_dropout else "accuracy"
        self.ignores_image = False
        if not len(rows):
            raise DataError(
                f"finetune: none of the {len(answers)} answers to learn, such as {answers[0]!r}, is given to"
                f" any of the {len(self._targets)} training questions",
                hint="--answers takes them as the metric compares them: in lower case, without articles"
                " and punctuation; omit it for the answers of the data",
            )

    def targets_checksum(self) -> int:
        return zlib.crc32(repr((self.answers, self._targets)).encode())

    def named(self, rows: NDArray) -> str:
        return listed("question ids", [self.train.samples[row].question_id for row in self.rows[rows]])

    def collate(self, rows: NDArray, epoch: int) -> Batch:
        samples = self.rows[rows]
        targets = np.zeros((len(rows), len(self.answers)), np.float32)
        for place, sample in enumerate(samples):
            for answer, score in self._targets[sample]:
                targets[place, answer] = score
        inputs = self.train.inputs
        if epoch < self.blind_epochs:
            inputs = replace(inputs, blind=True)
        batch = inputs.batch(samples)
        if self.image_dropout:
            hidden = uniform(mix(self.seed, epoch), _HIDDEN_IMAGES, samples, 1) < self.image_dropout  # (B, 1)
            batch["region_mask"] = batch["region_mask"] & ~hidden
        return {**batch, "targets": targets}

    def targets(self, batch: Batch, epoch: int) -> dict[str, float]:
        return {"vqa": float(len(batch["targets"]))}

    def losses(self, model: Any, batch: Batch, epoch: int) -> dict[str, Tensor]:
        logits = model(**model_inputs(batch)).vqa_logits
        return {"vqa": answer_loss(logits, batch["targets"], "kl" if epoch < self.kl_epochs else "bce")}

    def evaluate(self, model: Any, device: torch.device) -> dict[str, float]:
        """The same, and with hidden images also the accuracy without any."""
        values = super().evaluate(model, device)
        if values and self.image_dropout:
            without = self.accuracy(model, replace(self.validation.inputs, blind=True), device)
            # Where the regions only mislead, the model is kept as one that answers without them.
            self.ignores_image = without > values["accuracy"]
            values |= {"accuracy_without_image": without, "best_accuracy": max(without, values["accuracy"])}
        return values

    def kept_values(self) -> dict[str, Any]:
        return {"use_regions": False} if self.ignores_image else {}


def _usual_chances(model: Any, inputs: Inputs) -> Tensor:
    """(V,) mean logarithm of the chance of each word to be said of the images of a split, or many of them."""
    rows = np.unique(inputs.rows)
    rows = rows[np.linspace(0, len(rows) - 1, min(len(rows), _MOST_IMAGES)).astype(np.int64)]
    known, direct = model.tbkin.region_embeddings, model.direct
    means = (torch.from_numpy(mean_vectors(inputs, rows)) - known.feature_mean) * known.feature_scale
    total = torch.zeros_like(direct.usual)
    for part in means.split(256):  # (256, V) at once
        total += direct.chances(direct.of_image(part)).sum(dim=0)
    return total / len(means)


def _is_word(token: str) -> bool:
    return token not in SPECIAL_TOKENS and any(character.isalnum() for character in token)


def _said_as(answer: str, tokenizer: Tokenizer, most: int) -> list[int]:
    """The word pieces by which captions say an answer; none of yes and no, which they do not say.

    Nor of one that the vocabulary can only spell letter by letter, or lacks.
    """
    if answer in ("yes", "no"):
        return []
    words = " ".join(_NUMBERS.get(word, word) for word in answer.split())
    found = tokenizer.encode(words, add_special_tokens=False)
    if any(piece == "[UNK]" or (piece.startswith("##") and len(piece) == 3) for piece in found.tokens):
        return []
    ids: list[int] = found.ids
    return ids if all(piece < most for piece in ids) else []


def question_set(dataset: Dataset, name: str | None) -> str:
    """The set of questions of a name, or the first; errors as `FinetuneTask.split_names`."""
    if not dataset.question_splits():
        raise DataError(
            f"{dataset.path}: no VQA questions (found: {', '.join(dataset.layouts)}){dataset.unread()}",
            hint="expected files such as v2_OpenEnded_mscoco_train2014_questions.json, or your own"
            f" questions.jsonl with lines such as {SHAPE}",
        )
    return chosen_set(name, dataset.question_sets())


# ---- answers ------------------------------------------------------------------------------------


def answer_vocabulary(questions: Sequence[Question], minimum: int | None) -> tuple[list[str], int]:
    """The answers to learn: the most common one of each question, counted over the training questions.

    They lead `minimum` questions at least; None takes 9, as for VQA 2.0, from 50,000 questions up, and fewer
    for smaller data. Returns the answers by falling count, and the minimum used.
    """
    if minimum is None:
        minimum = 9 if len(questions) >= 50_000 else 3 if len(questions) >= 10_000 else 1
    counts: Counter[str] = Counter()
    for question in questions:
        # Of articles and marks alone normalisation leaves nothing.
        if scores := soft_scores(question.answers):
            given = Counter(normalize_answer(answer) for answer in question.answers)
            # Keys of the scores: the official metric compares unanimous answers as they were written.
            leading = max(scores, key=lambda answer: (scores[answer], given[normalize_answer(answer)]))
            counts[leading] += 1
    answers = [answer for answer, count in counts.items() if count >= minimum and answer]
    if not answers:
        raise DataError(
            "finetune: no answer is left to learn",
            hint="lower --min-answer-count, or check the annotation files",
        )
    return sorted(answers, key=lambda answer: (-counts[answer], answer)), minimum


def load_answers(path: Path) -> list[str]:
    """A JSON list of answers, such as the 3,129 of VQA 2.0, without empty ones and repeats."""
    content = read_json(path, hint="name a JSON file with a list of answers")
    if isinstance(content, list) and content and all(isinstance(entry, dict) for entry in content):
        content = content[0]  # [answer to number, number to answer], as OpenVQA and ROSITA write it
    if isinstance(content, dict):
        content = list(content)
    if not isinstance(content, list) or not all(isinstance(entry, str) for entry in content):
        raise DataError(f"{path}: is no list of answers", hint='expected JSON such as ["yes", "no", "2"]')
    if answers := list(dict.fromkeys(answer for answer in content if answer.strip())):
        return answers
    raise DataError(f"{path}: holds no answers", hint='expected JSON such as ["yes", "no", "2"]')


def without_known_answer(split: Split[Question], answers: Sequence[str]) -> int:
    """How many questions have human answers, but none of `answers` among them."""
    known = set(answers)
    return sum(
        bool(question.answers) and known.isdisjoint(scores)
        for question, scores in zip(split.samples, split.targets, strict=True)
    )


def report_row(name: str, split: Split, accuracy: VqaAccuracy, order: int) -> ReportRow:
    """A row of a report, from the accuracy on the questions of a split."""
    return ReportRow(name, np.array([accuracy.per_question[it.question_id] for it in split.samples]), order)


def official_accuracy(split: Split, predicted: Sequence[str]) -> VqaAccuracy:
    """The official VQA accuracy of predicted answers, overall and by type."""
    names = ("question_id", "question_type", "answer_type")
    annotations = [
        {**{name: getattr(item, name) for name in names}, "answers": [{"answer": it} for it in item.answers]}
        for item in split.samples
    ]
    results = [
        {"question_id": item.question_id, "answer": answer}
        for item, answer in zip(split.samples, predicted, strict=True)
    ]
    # Of the questions it asks for their numbers alone.
    return vqa_accuracy(annotations, annotations, results)
