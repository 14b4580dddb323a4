"""The words that questions are made of and about, by what they say."""

from __future__ import annotations

from tbkin_core.parsing.sentences import COLLECTIVES, PLACES


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


COLORS = _words("""
    beige black blond blue brown gold gray green maroon orange pink purple red silver tan teal turquoise
    white yellow
""")
SAME_COLOR = {"grey": "gray", "golden": "gold", "blonde": "blond"}
# Colours that people give one and the same thing; none of these answers "no" to another.
NEAR_COLORS = (
    _words("beige tan brown gold orange yellow blond"),
    _words("white beige silver gray"),
    _words("black gray silver"),
    _words("red maroon pink orange purple brown"),
    _words("blue teal turquoise green purple"),
)
HAIR = _words("beard fur hair mustache ponytail")
ANY_CLOTHES = _words("clothes clothing outfit")
MATERIALS = {
    "wooden": "wood", "wood": "wood", "brick": "brick", "metal": "metal", "plastic": "plastic",
    "stone": "stone", "concrete": "concrete", "cement": "concrete", "leather": "leather", "glass": "glass",
    "straw": "straw", "rubber": "rubber", "paper": "paper", "cardboard": "cardboard", "iron": "iron",
    "steel": "steel", "denim": "denim", "marble": "marble", "bamboo": "bamboo", "wicker": "wicker",
}  # fmt: skip
PATTERNS = {
    "striped": "stripes", "plaid": "plaid", "checkered": "checks", "floral": "flowers",
    "flowered": "flowers", "spotted": "spots", "camouflage": "camouflage",
}  # fmt: skip
OLD, YOUNG = _words("old older elderly aged"), _words("young younger")
PEOPLE = _words("""
    adult artist athlete audience baby band batter bicyclist biker boarder boxer boy bride catcher
    cheerleader child climber couple cowboy crew crowd cyclist dancer driver family fan father female
    fisherman friend gentleman girl goalie guitarist guy gymnast hiker individual infant jogger kayaker
    kid lady male man mother motorcyclist musician officer parent pedestrian people performer person
    pitcher player quarterback racer referee rider runner singer skateboarder skater skier snowboarder
    soldier someone student surfer swimmer team teen teenager toddler tourist wakeboarder woman worker
    wrestler youth
""")
# Several in one word, as many as it says; 0 for who knows how many.
GROUPS = {"couple": 2, "crowd": 0, "team": 0, "family": 0, "band": 0, "audience": 0, "crew": 0}
SEVERAL = _words("people police cattle")
AGED = _words("man woman person people lady guy couple male female men women")
ANIMALS = _words("animal greyhound poodle puppy kitten bulldog retriever duck wolf squirrel camel")
PARTS = _words("""
    arm back beard belly body chest ear eye face finger foot fur hair hand head knee lap leg lip mouth
    mustache neck nose paw ponytail shoulder skin tail teeth thumb tongue tooth torso waist wheel wing
""")
# These have no singular in use.
PLURALS = _words("""
    binoculars clothes eyeglasses flippers glasses goggles headphones jeans khakis leggings overalls
    pajamas pants scissors shorts slacks spectacles stairs sunglasses swimtrunks tights trousers trunks
""")
# Other words in -ed are what is left of "the red-haired", "the fenced".
NOUNS_IN_ED = _words("bed bobsled breed feed flatbed moped reed seaweed seed shed sled steed weed")
# Words that name nothing to be seen, and parts whose whole is meant.
EMPTY = (
    PLACES
    | COLLECTIVES
    | _words("""
    action activity advertisement air all another apparatus area attempt background balance barefoot begin
    bit bounce breed camera cartwheel catch climb close-up closeup color competition contest cream
    creature dance dancing dark day derby device direction distance dive downhill drive each embrace
    environment equipment event everybody everyone feature fetch fight flip foreground frolic fun game
    gear grin handstand he height her high him hold horseback hug i image it item jump kick kind kiss
    kneel laugh lead leap length look manner marking match material mid mid-air midair midst motion move
    music need none object obstacle one onstage other performance photo photograph picture piece place
    play pose position practice process race reaction rest ride romp run scene she shot show sight sit
    smile somersault something sort space speed splash sport stance step structure stuff sunlight swim
    swimming talk tandem terrain that them they thing throw time tournament trick try turn two type
    underwater us use view wait way we wheelie which who you
""")
)
WORN = _words("""
    apron backpack bandana bathrobe belt bikini blouse boot bow bracelet cap cape clothes clothing coat
    collar costume dress earring eyeglasses flippers glasses glove goggles gown hat headband headphones
    headscarf helmet hood hoodie jacket jeans jersey jumpsuit khakis kilt kimono leash leggings leotard
    mask mitten muzzle necklace outfit overalls pajamas pants parka poncho robe sandal scarf shirt shoe
    shorts skirt slacks sneaker snowsuit sock spectacles suit sunglasses sweater sweatshirt swimsuit
    swimtrunks t-shirt tie tights top trousers trunks tshirt turban tutu tuxedo underwear uniform veil
    vest watch wetsuit wig
""")
# Where things are.
SCENES = _words("""
    airport alley arena bathroom bathtub beach bed bedroom bench boat bridge building bus canoe canyon car
    chair church city classroom cliff couch countryside court creek crosswalk desert dirt dock escalator
    farm fence field floor forest fountain garage garden grass gravel ground gym hallway hammock harbor
    hill hillside hotel house ice island jungle kayak kitchen lake lawn library log mall market meadow
    motorcycle mountain mud museum ocean office park parking pasture path patio pavement pier playground
    pond pool porch puddle raft railing ramp restaurant ring rink river road rock roof room salon sand sea
    shop shore sidewalk sink slope snow snowbank snowfield sofa stadium stage stair station store stream
    street subway surf swamp swing table tent theater track trail train trampoline tree truck tub tunnel
    water waterfall wave wood yard zoo
""")
# Grounds of which an image mostly shows one.
GROUNDS = {
    "snow": _words("snow slope snowbank snowfield ski ice rink"),
    "water": _words("water ocean lake river sea pool stream pond wave surf waterfall creek beach shore sand"),
    "street": _words("street road sidewalk city crosswalk pavement store subway station market building"),
    "green": _words("grass field yard lawn park meadow pasture garden farm forest wood tree jungle"),
    "inside": _words(
        "bed couch room kitchen floor bathroom bathtub bedroom classroom office restaurant sofa table"
    ),
}
ONE_AT_A_TIME = _words("riding sitting lying climbing kicking throwing catching chasing driving standing")


# How a place is where something is: "a dog runs through the snow" is in the snow.
WITHIN = _words("in on at through across along down up inside around into onto")
WHEREABOUTS = _words("above behind beside in inside near on under between") | {
    "in front of",
    "next to",
    "on top of",
}
PREPOSITIONS = _words("""
    about above across after against along alongside among around as at atop before behind below beneath
    beside between beyond by down during for from in inside into left like near next of off on onto out
    outside over past right through to top toward towards under underneath up upon with within without
""")
# What a question cannot end in.
NO_ENDS = _words("next left right top without")
NO_ACTIONS = _words("""
    allow appear attach attempt be become begin call come connect contain decorate do enjoy find get give
    go have include involve keep let like line lose make name need place prepare put seem set show sport
    start take try use want
""")
# What is so for longer than it is done.
STATES = _words("""
    belong carry cover cross display enclose face feature follow hold lead overlook reach surround touch
    wear
""")
# Verbs whose object belongs to what is done: "riding a bike", not "riding".
# "riding", "looking" alone do not say what somebody does.
NEED_OBJECT = _words("""
    bite carry catch chase drink eat hang hit hold kick look play point pull push reach read ride stare
    throw watch
""")
PLAYED = _words(
    "guitar drum drums violin piano instrument flute saxophone trumpet accordion cello banjo harmonica"
)
MALE = _words("man boy guy gentleman male father son men brother dude groom")
FEMALE = _words("woman girl lady female mother daughter women sister bride")
POSTURES = _words("sit stand lie lay kneel crouch sleep rest squat lean")
MOTIONS = _words("run walk jump leap swim dance fly climb ride skate ski surf dive jog gallop race")
# "sitting" alone says what somebody does, whatever the parser takes for its object.
NO_OBJECT = POSTURES | (MOTIONS - {"ride", "fly"}) | _words("dig smile laugh")
MOST_COUNTED = 10


# ---- for referring expressions ------------------------------------------------------------------

# Of these there are often more than people annotate, so that nobody should count or compare them.
CROWDED = _words(
    "apple banana book bottle bowl broccoli carrot chair cup donut fork glass knife orange spoon vase"
)
# Names of which one thing may be called either way.
CONFUSED = (
    _words("bus car truck van"),
    _words("bottle bowl cup glass vase"),
    _words("laptop monitor tv screen"),
    _words("bench chair couch sofa bed"),
    _words("bicycle motorcycle bike scooter"),
    _words("fork knife spoon"),
    _words("cake donut sandwich pizza"),
    _words("backpack bag handbag suitcase purse"),
    _words("cow horse sheep goat"),
)
