"""Make `tbkin_core/resources/object_names.json`, the table behind `--similarity lexical`.

    python examples/shipped_models/build_synonyms.py objects_vocab.txt object_alias.txt object_names.json

The two files are the object vocabulary of bottom-up attention (Anderson et al. 2018; 1,600 names with their
spellings) and Visual Genome's alias list, both derived from Visual Genome (Krishna et al. 2017, CC BY 4.0).
The alias list was collected from annotators: besides irregular plurals ("goose,geese") it holds regular
plurals, which a rule handles, and slips ("is blue", "pelicanss", "an apple"), which are dropped. What is a
synonym or a kind of what is written by hand below, for COCO's 80 names and the everyday words of captions.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from tbkin_core.names.similarity import regular_singular

# Interchangeable names, the first as COCO or Visual Genome has it.
SAME = """
person, people, human, someone, somebody, individual
man, guy, gentleman, dude, male, fellow
woman, lady, female, gal
child, kid, youngster, youth
baby, infant, newborn
bicycle, bike, cycle, pushbike
car, automobile, auto
taxi, cab, taxi cab
motorcycle, motorbike, motor cycle, motor bike
airplane, plane, aeroplane, aircraft
bus, coach
truck, lorry
train, locomotive
boat, vessel, water craft
traffic light, stoplight, traffic signal, stop light, signal light, street signal
fire hydrant, hydrant, fire plug
stop sign, stopsign
parking meter, meter
bench, park bench
bird, birdie
cat, kitty, feline, house cat
dog, doggy, doggie, canine, hound, mutt, pooch
cow, cattle, bovine
backpack, rucksack, knapsack, back pack
umbrella, parasol
handbag, purse, hand bag, pocketbook
tie, necktie, neck tie
suitcase, luggage, baggage
frisbee, disc, disk
snowboard, snow board
sports ball, ball
baseball bat, bat
baseball glove, glove, mitt, baseball mitt, catcher's mitt
skateboard, skate board
surfboard, surf board
tennis racket, racket, racquet, tennis racquet
wine glass, glass, goblet
cup, teacup, tea cup
sandwich, sub
hot dog, hotdog, wiener
donut, doughnut
cake, gateau
chair, seat
couch, sofa, loveseat, settee
potted plant, plant, houseplant, house plant
dining table, table
toilet, commode, toilet bowl
tv, television, tv screen, television set
monitor, computer monitor, computer screen
laptop, laptop computer, notebook computer
mouse, computer mouse
remote, remote control, tv remote
keyboard, computer keyboard
cell phone, phone, cellphone, smartphone, smart phone, mobile phone, telephone, iphone, mobile
microwave, microwave oven
oven, stove
sink, washbasin, basin, washbowl
refrigerator, fridge, freezer, refridgerator
clock, timepiece
scissor, shear
teddy bear, teddy, stuffed bear
hair drier, hair dryer, blow dryer, blow drier
toothbrush, tooth brush
circle, disc
cross, plus
glasses, eyeglasses, eye glasses, spectacles
sunglass, sun glass
trash can, garbage can, bin, trash bin, waste basket, dustbin, garbage bin, wastebasket, trashcan
trash, garbage, rubbish, litter
street, road, roadway
sidewalk, side walk, pavement, walkway
highway, freeway, motorway
ocean, sea
forest, wood
hill, hillside
stone, rock, boulder
shore, shoreline, coast
beach, seashore
picture, photo, photograph, image
painting, artwork
poster, placard
tshirt, t shirt, tee shirt, tee
pant, trouser, slack
jean, denim
coat, jacket
sweater, jumper, pullover
sneaker, tennis shoe, trainer, running shoe
hat, cap
swimsuit, bathing suit, swim suit
bathroom, restroom, washroom
faucet, tap, spigot
tub, bathtub, bath tub
curtain, drape, drapery
rug, carpet
nightstand, night stand, bedside table
lamp post, lamppost, streetlight, street light, street lamp
pillow, cushion
stove top, stovetop
cabinet, cupboard
counter, countertop, counter top
drawer, dresser
closet, wardrobe
stair, staircase, stairway, stairwell
store, shop
home, house
airport, airfield
tail light, taillight
fire truck, firetruck, fire engine
van, minivan
racing car, race car
sailboat, sail boat
headboard, head board
french fry, fry, chip
soda, soft drink
cookie, biscuit
bread, loaf
beverage, drink
vegetable, veggie
bunny, rabbit
mobile home, rv, camper, motorhome
napkin, serviette
sign post, signpost
branch, limb, bough
shrub, bush
flower, blossom, bloom
lawn, yard
playing field, field, pitch
snow hill, ski slope, slope
policeman, police officer, cop, officer
fireman, firefighter, fire fighter
waiter, waitress
jug, pitcher
photo frame, picture frame, frame
christmas tree, xmas tree
ketchup, catsup
computer, pc, desktop computer, desktop
cd, compact disc
bag, sack
box, carton
pot, saucepan
pan, skillet, frying pan
fireplace, fire place
apartment, flat
ad, advertisement, advert
ground, earth
mustache, moustache
gray, grey
ice cream, icecream
airliner, jetliner, passenger plane
barbecue, bbq, grill
pajamas, pyjamas
meal, lunch, dinner, supper
"""

# "concept: words" that are a kind of it, as its annotators label them (a man is a COCO person).
KINDS = """
person: man, woman, boy, girl, child, baby, toddler, player, skier, surfer, snowboarder, skateboarder, skater
person: rider, cyclist, bicyclist, biker, motorcyclist, batter, catcher, pitcher, umpire, pedestrian, chef
person: worker, couple, crowd, adult, teenager, teen, spectator, passenger, driver, coach, athlete, student
person: policeman, fireman, waiter, bride, groom, soldier, tourist, shopper, customer, audience, family
person: mother, father, mom, dad, parent, son, daughter, brother, sister, friend, boarder, swimmer, jockey
person: conductor, businessman, businesswoman, fisherman, vendor, cowboy, referee, farmer, doctor, teacher
person: dancer, singer, team, runner, hiker, bystander, onlooker, baseman, outfielder, hitter, goalie, golfer
person: pilot, baker
child: boy, girl, toddler, baby
man: groom, businessman, policeman, fireman, fisherman, father, dad, cowboy
woman: bride, businesswoman, mother, mom
bicycle: tricycle, mountain bike
car: taxi, suv, sedan, hatchback, convertible, minivan, jeep, van, racing car, police car, limousine, limo
motorcycle: moped, scooter, dirt bike, motor scooter, vespa
airplane: jet, airliner, biplane, seaplane, jumbo jet, fighter jet, glider, passenger jet, propeller plane
bus: double decker, double decker bus, trolley, school bus, shuttle, minibus
train: subway, tram, railcar, train car, train engine, steam engine, streetcar, freight train, monorail
truck: pickup, van, fire truck, dump truck, semi, trailer, mobile home, tow truck, tractor trailer
boat: ship, canoe, kayak, sailboat, yacht, ferry, rowboat, raft, gondola, tugboat, speedboat, barge, dinghy
boat: cruise ship, catamaran
bird: pigeon, seagull, gull, parrot, duck, goose, swan, owl, eagle, chicken, hen, flamingo, penguin, crow
bird: hawk, dove, sparrow, pelican, rooster, robin, heron, stork, ostrich, peacock, duckling
bird: finch, hummingbird, woodpecker, vulture, cockatoo, parakeet, falcon, egret
cat: kitten, tabby, siamese
dog: puppy, pup, poodle, terrier, dalmatian, bulldog, labrador, retriever, corgi, collie, dachshund, beagle
dog: pug, chihuahua, greyhound, sheepdog, shepherd dog, husky, rottweiler
horse: pony, foal, stallion, mare, colt
sheep: lamb, ram, ewe
cow: bull, calf, ox, steer, heifer
bear: cub, polar bear, grizzly, grizzly bear, bear cub, panda, panda bear, brown bear
elephant: baby elephant, elephant calf
tie: bow tie, bowtie
suitcase: briefcase, duffel bag
handbag: tote, tote bag, shoulder bag
sports ball: baseball, soccer ball, tennis ball, basketball, football, volleyball, beach ball, bowling ball
sports ball: golf ball
bottle: wine bottle, beer bottle, water bottle, flask
cup: mug, coffee cup, coffee mug, paper cup, tumbler
knife: butter knife, steak knife, cleaver
sandwich: burger, hamburger, cheeseburger, panini, toasted sandwich, wrap
bowl: mixing bowl, salad bowl
cake: cupcake, birthday cake, wedding cake, cheesecake, layer cake
chair: armchair, stool, recliner, rocking chair, lounge chair, lawn chair, bar stool, high chair
couch: futon, sectional
potted plant: fern, bonsai, flower pot, potted flower
bed: mattress, bunk bed, cot, crib, bunk
dining table: desk, coffee table, kitchen table, picnic table, end table
toilet: urinal, bidet
tv: monitor, screen, flat screen, flatscreen
remote: controller, wii remote, game controller, wiimote
laptop: macbook, netbook
book: novel, textbook, notebook, magazine, cookbook
clock: clock tower, watch, alarm clock, wall clock, clock face
vase: urn
hot dog: chili dog, corn dog
pizza: pepperoni pizza, pizza slice, calzone
oven: toaster oven
orange: tangerine, clementine, mandarin
hat: baseball cap, beanie, cowboy hat, hardhat, helmet
shoe: sneaker, boot, sandal, slipper, flip flop, loafer
shirt: tshirt, polo shirt, blouse, tank top, jersey, dress shirt
pant: jean, sweatpants, khaki
coat: raincoat, blazer, parka
tree: palm tree, pine tree, evergreen, oak, christmas tree
flower: rose, tulip, daisy, sunflower, lily, daffodil, orchid, carnation
building: skyscraper, house, church, barn, shed, cabin, castle, apartment building, store
street: highway, alley, lane, avenue, city street
sign: street sign, stop sign, billboard, road sign
picture: painting, poster, portrait
water: ocean, lake, river, pond, stream
"""

# "broad word: names" that it covers; captions say "food", regions "pizza".
BROAD = """
animal: bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe
animal: goat, donkey, lion, monkey
pet: dog, cat, bunny
herd: cow, sheep, elephant, zebra, giraffe, horse
flock: bird, sheep
livestock: cow, sheep, horse
vehicle: car, bus, truck, motorcycle, train, van
traffic: car, bus, truck
food: sandwich, hot dog, pizza, donut, cake, banana, apple, orange, broccoli, carrot
food: vegetable, fruit, bread, meat
meal: sandwich, hot dog, pizza
fruit: banana, apple, orange, strawberry, grape, lemon, pear
vegetable: broccoli, carrot, tomato, potato, onion, pepper
dessert: cake, donut, cookie, ice cream
pastry: donut, cake, croissant
appliance: refrigerator, oven, microwave, toaster, dishwasher
electronics: tv, laptop, cell phone, computer
device: cell phone, laptop, remote
furniture: chair, couch, bed, dining table, desk
utensil: fork, knife, spoon
silverware: fork, knife, spoon
cutlery: fork, knife, spoon
computer: laptop, tv, monitor
board: skateboard, surfboard, snowboard
glassware: wine glass
dish: bowl, cup, plate
tableware: bowl, cup, plate, fork, knife, spoon, wine glass
toy: teddy bear
stuffed animal: teddy bear
stuffed toy: teddy bear
bag: handbag, backpack, suitcase
beverage: wine, beer, soda, coffee
clothing: shirt, pant, coat, dress
woman: girl
man: boy
plant: flower, tree, shrub
wine glass: glasses
bike: motorcycle
"""

# The last word of these says nothing of what they are.
OPAQUE = """
hot dog, corn dog, chili dog, ice cream, french fry, sweet potato, sea horse, sidewalk, flower bed, truck bed
bus stop, fire place, parking meter, butterfly, dragonfly, hair band, rubber band, french toast
toilet bowl, key board, skateboard ramp, cupboard, headboard, keyboard, billboard, dashboard, cardboard
computer mouse, rocking horse, saw horse, bean bag, tea bag, punching bag, sleeping bag
trash bag, plastic bag, paper bag, grocery bag, air bag, trash can, watering can, soda can, tail fin
motorcycle, light house, green house, bird house, dog house, bird cage, horse shoe
snow man, snowman, scarecrow
"""

# Plurals that the rule of `regular_singular` misses and the alias list lacks, or things of their own.
PLURALS = {
    "men": "man", "cookies": "cookie", "selfies": "selfie", "smoothies": "smoothie", "hoodies": "hoodie",
    "birdies": "birdie", "bunnies": "bunny", "doggies": "doggie", "lenses": "lens", "wives": "wife",
    "thieves": "thief", "teeth": "tooth", "dice": "die", "volcanoes": "volcano", "beanies": "beanie",
    "glasses": "glasses", "eyeglasses": "eyeglasses", "spectacles": "spectacles", "skies": "sky",
    "vases": "vase", "axes": "axe", "caches": "cache", "headaches": "headache", "pies": "pie", "ties": "tie",
    "bow ties": "bow tie", "electronics": "electronics", "pajamas": "pajamas", "pyjamas": "pyjamas",
    "businessmen": "businessman", "snowmen": "snowman", "cacti": "cactus", "hooves": "hoof",
}  # fmt: skip

# Heads of alias lines whose "plural" is another word or a typing slip.
NOISE = frozenset(
    {
        "specie", "sol", "rus", "pas", "lev", "filum", "chari", "bowie", "graz", "ire", "graf",
        "motif", "matte", "dais", "glass", "glasses", "vas", "sunglass", "sunglasses", "gar", "gal", "gas",
        "levi", "capri", "medium", "lillie", "ottoman", "plexiglas", "tennis", "stripes", "bis", "mms", "ash",
        "niche", "chilli",
    }
)  # fmt: skip
SHORT_HEADS = frozenset({"tv", "rv", "ox", "ad", "pc", "cd"})
# Endings of plurals that are no slip.
PLURAL_ENDINGS = ("ves", "men", "oes", "ies", "ses", "ae", "oxen", "geese", "mice", "lice", "feet",
                  "children", "is", "us", "os")  # fmt: skip


def read_lines(path: Path) -> list[list[str]]:
    """Comma-separated names of each line of a vocabulary or alias file."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [[name.strip() for name in line.split(",") if name.strip()] for line in lines if line.strip()]


def irregular_plurals(aliases: list[list[str]]) -> dict[str, str]:
    """Plural -> singular, where no rule gives it and both look like words."""
    found: dict[str, str] = {}
    for head, *others in aliases:
        if not head.isalpha() or head in NOISE or (len(head) < 3 and head not in SHORT_HEADS):
            continue
        for name in others:
            plausible = name.isalpha() and not name.endswith("ss") and len(name) > len(head) - 2
            known = name.endswith(PLURAL_ENDINGS) or name in {f"{head}s", f"{head}es", "pence"}
            if plausible and known and regular_singular(name) != regular_singular(head):
                found[name] = head
    return found


def groups(text: str) -> list[list[str]]:
    """Comma-separated names of each line."""
    return [[name.strip() for name in line.split(",")] for line in text.strip().splitlines()]


def relations(text: str) -> dict[str, list[str]]:
    """Lines "concept: words", those of one concept joined."""
    table: dict[str, list[str]] = {}
    for line in text.strip().splitlines():
        concept, _, words = line.partition(":")
        table.setdefault(concept.strip(), []).extend(word.strip() for word in words.split(","))
    return table


def build(objects: list[list[str]], aliases: list[list[str]]) -> dict[str, object]:
    """The table as `tbkin_core.names.similarity.SynonymTable` reads it."""
    same = groups(SAME)
    first = {name: group for group in same for name in group}
    for names in objects:
        known = next((first[name] for name in names if name in first), None)
        if known is not None:
            known.extend(name for name in names if name not in known)
        elif len(names) > 1:
            same.append(list(names))
    return {
        # Stores of graphs carry a digest of the table: were a word of this to change, all would be made anew.
        "about": "Names of things for the lexical similarity, made by examples/build_synonyms.py. Spellings,"
        " compounds and irregular plurals come from the object vocabulary of bottom-up attention (Anderson"
        " et al. 2018) and the alias list of Visual Genome (Krishna et al. 2017, https://visualgenome.org,"
        " CC BY 4.0), normalised, deduplicated and filtered; synonyms, kinds and broad words were written for"
        " tbkin.",
        "same": [group for group in same if len(group) > 1],
        "kinds": relations(KINDS),
        "broad": relations(BROAD),
        "opaque": sorted(name for group in groups(OPAQUE) for name in group),
        "plurals": dict(sorted((irregular_plurals(aliases) | PLURALS).items())),
        "compounds": sorted({name for names in objects for name in names if " " in name or "-" in name}),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("objects", type=Path, help="objects_vocab.txt: a name and its spellings per line")
    parser.add_argument("aliases", type=Path, help="object_alias.txt: a name and its aliases per line")
    parser.add_argument("out", type=Path, help="where the table goes, for example object_names.json")
    options = parser.parse_args()
    table = build(read_lines(options.objects), read_lines(options.aliases))
    parts = [f" {json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}" for key, value in table.items()]
    options.out.write_text("{\n" + ",\n".join(parts) + "\n}\n", encoding="utf-8")
    print(f"{options.out}: {options.out.stat().st_size / 1024:.1f} kB")


if __name__ == "__main__":
    main()
