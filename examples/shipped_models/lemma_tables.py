"""The table of lemmas that ships with the parser: the forms whose lemma the suffix rules get wrong.

Morphy, WordNet's lemmatiser, lets suffix rules propose base forms and keeps the ones that WordNet lists. Here
the same is done beforehand, the other way round: every base form of WordNet's is inflected, and a form enters
the table when `lemmatize_noun` or `lemmatize_verb` would not lead back. Where a form belongs to several base
forms, `CHOSEN_NOUNS` and `CHOSEN_VERBS` come first, then what the treebank's annotators said, then the base
form that it goes with best (`ITSELF` to `LOOSE`), then the more frequent one.

WordNet's words, its irregular forms and the frequencies come from the package spacy-lookups-data, which only
the recipe needs: `pip install spacy-lookups-data`.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import log

from caption_rules import VERB_TAGS
from spacy.util import load_language_data, registry

from tbkin_core.names.lexicon import lemmatize_noun, lemmatize_verb

# How well a form goes with a base form, the best first. A base form is `ITSELF`, or `ITSELF_TOO` when it is
# rather a form of another one ("found", "wings"); `LOOSE` forms are spelt as is often done and seldom right.
TREEBANK, ITSELF, INFLECTED, ITSELF_TOO, LOOSE = range(5)
# A plural that WordNet lists is a word of its own when it is this many times as frequent as the singular.
PLURAL_WORD = 5.0  # "outskirts"
NO_PLURAL = 10.0  # likewise of what looks like a singular: "tetris", which is no plural of "tetri"
COMMON = -17.0  # log probability from which on nouns that WordNet lacks count: "hoodies"
RARE = -19.0  # log probability from which on adjectives count
UNSEEN = -25.0  # log probability of a word that the frequencies lack

# What people see in pictures: bases are of baseball, bras and tabs not of music. Garments and tools of two
# parts have no singular.
CHOSEN_NOUNS = {
    "bases": "base", "bras": "bra", "tabs": "tab", "controls": "control", "grounds": "ground",
    "bikers": "biker", "pilates": "pilates", "leaves": "leaf", "media": "media", "vases": "vase",
    **{
        word: word
        for word in (
            "binoculars", "briefs", "capris", "dungarees", "eyeglasses", "glasses", "goggles", "headphones",
            "jeans", "khakis", "leggings", "overalls", "pajamas", "panties", "pants", "pliers", "pyjamas",
            "scissors", "shears", "shorts", "slacks", "spectacles", "sunglasses", "tights", "tongs",
            "trousers", "tweezers",
        )
    },
}  # fmt: skip
# FACTUAL's annotators: who lies lays, who is seated sits; pepper is ground.
CHOSEN_VERBS = {
    "lie": "lay", "lies": "lay", "lied": "lay", "lying": "lay", "lain": "lay", "lay": "lay", "seated": "sit",
    "ground": "ground", "bathing": "bathe", "bathed": "bathe", "skied": "ski", "stove": "stove",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Words:
    """What is known of the words of one part of speech.

    Attributes:
        bases: Base forms.
        irregular: Irregular form -> its base forms, some of which are none of `bases` ("spoon-feed").
        frequency: Log probability of words of any part of speech; what it lacks is hardly used.
    """

    bases: frozenset[str]
    irregular: Mapping[str, Sequence[str]]
    frequency: Mapping[str, float]

    def often(self, word: str) -> float:
        return self.frequency.get(word, UNSEEN)


def wordnet() -> tuple[Words, Words]:
    """WordNet's single nouns and verbs.

    Raises:
        ImportError: spacy-lookups-data is not installed.
    """
    if "en" not in registry.lookups:
        raise ImportError("the lemmas are made with WordNet's words: pip install spacy-lookups-data")
    files = registry.lookups.get("en")
    index, irregular, frequency = (
        load_language_data(files[name]) for name in ("lemma_index", "lemma_exc", "lexeme_prob")
    )

    def words(kind: str) -> Words:
        bases = frozenset(filter(_is_word, index[kind]))
        known = {
            form: [lemma for lemma in lemmas if _is_word(lemma)]
            for form, lemmas in irregular[kind].items()
            if _is_word(form)
        }
        return Words(bases, known, frequency)

    return words("noun"), words("verb")


def only_adjectives() -> list[str]:
    """WordNet's adjectives in -y that are no nouns or verbs as well, without rare ones."""
    files = registry.lookups.get("en")
    index, frequency = (load_language_data(files[name]) for name in ("lemma_index", "lexeme_prob"))
    words = set(index["adj"]) - set(index["noun"]) - set(index["verb"])
    return sorted(word for word in words if word.endswith("y") and _is_seen(word, frequency))


def _is_seen(word: str, frequency: Mapping[str, float]) -> bool:
    return word.isalpha() and word.islower() and frequency.get(word, UNSEEN) > RARE


def _is_word(text: str) -> bool:
    return len(text) > 1 and text.replace("-", "").isalpha() and text[0] != "-" != text[-1]


_VOWELS = frozenset("aeiou")


def _ends_like_bet(word: str) -> bool:
    """Whether the last consonant follows a single vowel and may be doubled."""
    before = word[-3:-2]
    return (
        len(word) > 2
        and word[-1] not in "aeiouwxyh"
        and word[-2] in _VOWELS | {"y"}
        and (before not in _VOWELS or (word[-3:-1] == "ui" and word[-4:-3] == "q"))
    )


def _with_s(word: str) -> str:
    if word.endswith(("s", "x", "z", "ch", "sh")):
        return word + "es"
    if word.endswith("y") and word[-2:-1] not in _VOWELS:
        return word[:-1] + "ies"
    return word + "s"


def noun_forms(noun: str) -> Iterator[tuple[int, str]]:
    """Regular plurals of a noun, each with how well it goes with it."""
    yield INFLECTED, _with_s(noun)
    if noun.endswith("o"):
        yield LOOSE, noun + "es"
    if noun.endswith(("z", "s")) and _ends_like_bet(noun):
        yield LOOSE, noun + noun[-1] + "es"


def verb_forms(verb: str) -> Iterator[tuple[int, str]]:
    """The regular -s, -ed and -ing forms of a verb, each with how well it goes with it."""
    yield INFLECTED, verb + "es" if verb.endswith("o") and verb[-2:-1] not in _VOWELS else _with_s(verb)
    sort = doubled_sort = INFLECTED
    past = present = verb
    if verb.endswith("e"):
        past = verb[:-1]
        if verb.endswith("ie"):
            present = verb[:-2] + "y"
        elif not verb.endswith(("ee", "oe", "ye")):
            present = verb[:-1]
    elif verb.endswith("y") and verb[-2:-1] not in _VOWELS:
        past = verb[:-1] + "i"
    elif _ends_like_bet(verb):
        if sum(letter in _VOWELS for letter in verb.replace("qu", "q")) <= 1:
            sort = LOOSE
        else:
            doubled_sort = LOOSE
        yield doubled_sort, verb + verb[-1] + "ing"
        yield doubled_sort, verb + verb[-1] + "ed"
    if any(letter in _VOWELS | {"y"} for letter in present):
        yield sort, present + "ing"
        yield sort, past + "ed"


def _annotated(tokens: Iterable[tuple[str, str, str]]) -> dict[str, dict[str, Counter[str]]]:
    """Form -> lemmas by how often the treebank's annotators gave them, of "noun" and "verb"."""
    seen: dict[str, dict[str, Counter[str]]] = {"noun": defaultdict(Counter), "verb": defaultdict(Counter)}
    for word, lemma, tag in tokens:
        kind = "noun" if tag in {"NN", "NNS"} else "verb" if tag in VERB_TAGS else None
        if tag == "NN" and lemma.lower() != word.lower():
            continue  # a singular is its own lemma
        if kind and word.isalpha() and lemma.isalpha():
            seen[kind][word.lower()][lemma.lower()] += 1
    return seen


def _candidates(kind: str, words: Words, others: Words) -> dict[str, set[tuple[int, str]]]:
    """Form -> (how well they go together, base form) of every form that WordNet's words have.

    Args:
        kind: "noun" or "verb".
        words: The words of this kind.
        others: Those of the other kind; a "caped" man has no cap.
    """
    found: dict[str, set[tuple[int, str]]] = defaultdict(set)
    endings: dict[str, str] = {}
    strong: set[str] = set()
    for form, lemmas in words.irregular.items():
        for lemma in lemmas:
            if lemma in words.bases:
                found[form].add((INFLECTED, lemma))
            elif lemma != form and (kind == "verb" or words.often(lemma) > words.often(form)):
                found[form].add((LOOSE, lemma))
        if kind == "noun":
            endings.update((lemma, form) for lemma in lemmas if len(lemma) >= 3)
        elif not form.endswith(("ing", "ed", "s")):
            strong.update(lemmas)
    for base in words.bases:
        forms = [*(noun_forms if kind == "noun" else verb_forms)(base)]
        for size in range(3, len(base)):  # "headscarves" as "scarves"
            if plural := endings.get(base[-size:]):
                forms.append((LOOSE, base[:-size] + plural))
        for sort, form in forms:
            # "gas" is none of "ga", "his" none of "hi"; "tvs" and "cds" are plurals.
            if len(form) <= 3 and any(letter in _VOWELS | {"y"} for letter in form):
                continue
            if form not in words.frequency:
                continue
            if (
                kind == "noun"
                and lemmatize_noun(form, {}) == form
                and words.often(form) > words.often(base) + log(NO_PLURAL)
            ):
                continue
            if sort == LOOSE and kind == "verb" and lemmatize_verb(form, {}) in others.bases:
                continue
            found[form].add((LOOSE if base in strong and form.endswith("ed") else sort, base))
    for base in words.bases:
        plural = kind == "noun" and base.endswith("s") and len(base) > 3
        lemmas = {lemma for _, lemma in found[base] if plural or lemma in words.irregular.get(base, ())}
        often = max((words.often(lemma) for lemma in lemmas - {base}), default=2 * UNSEEN)
        if plural:
            itself = words.often(base) > often + log(PLURAL_WORD)
        else:  # "rent" is seldom the past of "rend", "cola" not the plural of "colon"
            itself = words.often(base) > often or (kind == "noun" and base.endswith(("a", "ing")))
        found[base].add((ITSELF if itself else ITSELF_TOO, base))
    if kind == "noun":
        for form, often in words.frequency.items():
            if often > COMMON and form.endswith("ies") and len(form) > 4 and form not in found:
                lemmas = {form[:-1], form[:-3] + "y"}
                if form.isalpha() and form.islower() and not lemmas & (words.bases | others.bases):
                    found[form] = {(LOOSE, lemma) for lemma in lemmas}
    return found


def lemma_tables(
    tokens: Iterable[tuple[str, str, str]], nouns: Words, verbs: Words
) -> tuple[dict[str, str], dict[str, str]]:
    """(noun, verb) forms whose lemma the suffix rules get wrong.

    Args:
        tokens: (word, lemma, Penn tag) of the treebank.
        nouns: What is known of nouns.
        verbs: What is known of verbs.
    """
    annotated = _annotated(tokens)
    tables = []
    for kind, words, others, rule, chosen in (
        ("noun", nouns, verbs, lemmatize_noun, CHOSEN_NOUNS),
        ("verb", verbs, nouns, lemmatize_verb, CHOSEN_VERBS),
    ):
        candidates = _candidates(kind, words, others)
        for form, lemmas in annotated[kind].items():
            lemma, count = lemmas.most_common(1)[0]
            known = lemma in words.bases or (kind == "noun" and lemma == form)
            sure = count > 1 or lemma in {base for _, base in candidates.get(form, ())}
            sure = sure or (kind == "noun" and lemma + "s" == form)  # "ads", too short for `_candidates`
            if known and sure and lemma[0] == form[0]:
                candidates[form].add((TREEBANK, lemma))
        best = {
            form: min(found, key=lambda item: (item[0], -words.often(item[1]), item[1]))[1]
            for form, found in candidates.items()
            if found
        }
        best.update(chosen)
        tables.append(
            {
                form: lemma
                for form, lemma in sorted(best.items())
                if rule(form, {}) != lemma and best.get(lemma, rule(lemma, {})) == lemma
            }
        )
    return tables[0], tables[1]
