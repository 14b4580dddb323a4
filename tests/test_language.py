"""Whether a text asks (then a VQA model answers it) or names something (then a REC model does)."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import pytest
from command_line import succeeds

from tbkin_core.datasets import open_dataset
from tbkin_core.parsing.parser import CaptionParser
from tbkin_core.texts.language import is_question, looks_foreign

# Labelled by hand before the rule was written.
QUESTIONS = """
what color is the ball?
what color is the ball
is the man wearing a hat
is it raining?
are there any people
are the dogs brown?
can he swim?
can you see the ocean
will it rain soon
will the man fall?
does the girl have a bag
do they look happy?
has the bus stopped
have the boys eaten?
had it snowed here
which one is taller
which animal is on the left?
how many dogs are there
how many people?
what is the man on the left doing
where is the cat
who is holding the umbrella
why is he smiling
was this photo taken at night
could this be a kitchen
should the car stop here
the dog is what color?
what's in the bowl
what looks good to eat here?
isn't the door open
"""
EXPRESSIONS = """
can on the left
can of coke next to the plate
can opener
can closest to us
can that is open
will smith on the left
will on the far right
will's hat
have-not sign
what looks like a dog
what appears to be a cow
what the man is holding
whatever is on the plate
which ever plate is nearest
who ever is on the bike
where the man is standing
find the man
show me the red car
point to the tallest tree
click on the blue bike
locate the lamp
do not enter sign
does in the field
how-to book
when in rome poster
the red dog
guy who is sitting
girl whose hair is long
left can
the person that can be seen behind the fence
"""
MORE_QUESTIONS = """
can people swim here
can dogs see this sign?
will smith win this race?
will people get wet
do dogs like him
does anyone wear glasses
can that be a zebra
can this be eaten
in this picture, what is red
whose bag is it
whom is she calling
when was this taken
where are they going
how is the weather
which of the two is bigger
what kind of bird is this
what time does the clock show
who wears a hat
who's on the left?
can't you see him
don't they look alike
must he pay here
did the batter hit the ball
were the lights on
would you sit here
what animals can be seen
is anyone skiing
are those sheep
tell me what color the car is
"""
MORE_EXPRESSIONS = """
can with a red label
can behind the bottle
can in his hand
can near the top
can second from left
will ferrell in the yellow suit
may flowers in the vase
must have sign
do it yourself book
don't walk sign
does grazing together
can he is holding
can the man is holding
cans stacked up
what seems to be a bird
what she is wearing
which ever one is bigger
whoever sits on the right
where the two roads meet
when pigs fly sign
has-been actor in front
can left
can 2
can green
wherever the cat sleeps
would-be buyer
doe in the field
whose ever bag is black
"""


def listed(texts: str) -> list[str]:
    return [text for text in texts.splitlines() if text]


@pytest.fixture(autouse=True)
def _one_pipeline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CaptionParser, "pipeline", staticmethod(_pipeline))


_pipeline = functools.cache(CaptionParser.pipeline)


@pytest.mark.parametrize("text", listed(QUESTIONS + MORE_QUESTIONS))
def test_questions_ask(text: str) -> None:
    assert is_question(text)
    assert is_question(text.upper() + " ?")


@pytest.mark.parametrize("text", listed(EXPRESSIONS + MORE_EXPRESSIONS))
def test_expressions_name(text: str) -> None:
    assert not is_question(text)


def test_only_what_is_ambiguous_is_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    def loaded() -> None:
        raise AssertionError("a pipeline was loaded")

    monkeypatch.setattr(CaptionParser, "pipeline", staticmethod(loaded))
    for text in ("what color", "is it red", "the can on the left", "can", "", "can he swim?", "which ever"):
        is_question(text)
    with pytest.raises(AssertionError):
        is_question("can on the left")


# ---- other languages ----------------------------------------------------------------------------

# Written before the rule was tried on them.
FOREIGN_CAPTIONS = """
ein roter Kreis über einem blauen Quadrat
zwei Hunde spielen auf einer Wiese
eine Frau mit einem Regenschirm wartet an der Haltestelle
der Junge springt ins Wasser
mehrere Leute sitzen um einen Tisch
un cercle rouge au-dessus d un carré bleu
un homme en chemise blanche joue de la guitare
deux enfants jouent dans le sable
une femme tient un parapluie
des gens attendent le bus
un círculo rojo encima de un cuadrado azul
dos perros corren por la playa
una mujer con un sombrero lee un libro
el niño salta al agua
hombre con gafas sentado en una silla
due cani che giocano sulla spiaggia
una donna con un ombrello
um homem de camisa branca toca violão
uma menina com um cachorro
een vrouw met een paraplu
de jongen springt in het water
красный круг над синим квадратом
две собаки играют на траве
红色的圆圈在蓝色方块上面
青い四角の上の赤い丸
"""


def test_most_captions_of_other_languages_are_told() -> None:
    captions = FOREIGN_CAPTIONS.strip().splitlines()
    told = [caption for caption in captions if looks_foreign(caption, least=1)]
    assert len(told) >= 0.85 * len(captions), set(captions) - set(told)


@pytest.mark.parametrize("name", ["coco", "flickr8k", "visual_genome_samples"])
def test_english_captions_do_not_look_foreign(shared_data: Path, name: str) -> None:
    if not (shared_data / name).is_dir():
        pytest.skip(f"no {shared_data / name}")
    captions = [caption.text for caption in open_dataset(shared_data / name).captions()]
    alarms = [caption for caption in captions if looks_foreign(caption, least=1)]
    assert len(alarms) < len(captions) / 1000, alarms


@pytest.mark.parametrize(("foreign", "english", "told"), [(25, 10, True), (3, 20, True), (2, 2, False)])
def test_graphs_of_captions_of_other_languages_are_told_of(
    tmp_path: Path, foreign: int, english: int, told: bool
) -> None:
    captions = [*FOREIGN_CAPTIONS.strip().splitlines()[:foreign], *["a red circle on a table"] * english]
    (tmp_path / "data").mkdir()
    (tmp_path / "data/captions.jsonl").write_text("".join(json.dumps({"text": it}) + "\n" for it in captions))
    outcome = succeeds("build-graphs", "data", "--json", cwd=tmp_path)
    notes = [note for note in json.loads(outcome.out)["problems"] if "not look English" in note]
    assert len(notes) == told
    if told:
        assert f"of {foreign + english} captions" in notes[0] and "ein roter Kreis" in notes[0]
