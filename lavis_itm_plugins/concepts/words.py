"""English words of captions by class, for where no tagger is at hand: what is no stop word, property or motion is a
thing. Chosen by hand from what describes pictures; lemmas only.
"""

from __future__ import annotations


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


STOP_WORDS = _words(
    """
    a an the this that these those some any each every all both another other others such same own one ones each
    i me my mine we us our ours you your yours he him his she her hers it its they them their theirs himself herself
    itself themselves who whom whose which what where when while why how
    and or but nor so if because than then as though although whilst until unless whether
    in on at of to from by with without for into onto over under above below beneath underneath behind beside besides
    between among amongst through across along around about against after before during near nearby next off out up
    down inside outside within toward towards upon atop amid past beyond via per like unlike onto away apart aside
    together alone back forward forwards backward backwards upside downward upward midair sideways
    is are am was were be been being isn't aren't do does did doing done don't doesn't has have had having can could
    will would shall should may might must let lets get gets getting got gotten going go goes gone went come comes
    coming came make makes making made take takes taking took taken put puts putting seem seems appear appears
    appearing try tries trying tried start starts starting begin begins beginning use uses using used keep keeps
    not no yes very too also just only even still yet again ever never always really quite almost nearly here there
    now today maybe perhaps well much more most less least few several many lot lots bit various couple pair bunch
    group set kind type sort piece number amount part side top bottom front middle center end edge way thing
    something someone somebody anything anyone everything everyone nothing nobody things stuff
    left right it's he's she's they're there's that's who's s t re ve ll d m
    apparently possibly presumably seemingly probably quickly slowly happily
    image picture photo photograph view background foreground scene closeup close-up shot
    """
)

PROPERTIES = _words(
    """
    red orange yellow green blue purple violet pink white black brown gray grey tan beige gold golden silver blond
    blonde brunette colored coloured colorful colourful multicolored multi-colored striped dotted plaid spotted dark
    light bright pale clear plain patterned brightly
    two three four five six seven eight nine ten dozen single double multiple lone
    small little tiny large big huge giant massive tall short long high low deep shallow wide narrow thin thick fat
    flat round square circular straight steep curly curved full empty half whole
    young old elderly older younger adult middle-aged teenage male female bald bearded shirtless barefoot topless
    naked nude asian african american african-american indian chinese japanese german european western
    happy sad angry excited serious beautiful pretty cute lovely funny silly playful fancy fluffy furry hairy
    long-haired wet dry dirty clean muddy sandy snowy rocky grassy icy dusty leafy sunny cloudy rainy foggy
    stormy cold hot warm
    cool frozen fresh raw cooked ripe sweet delicious sliced chopped
    wooden metal metallic plastic concrete stone brick leather glass stuffed inflatable rubber
    open closed busy crowded quiet calm rough smooth soft hard heavy sharp broken abandoned new modern antique ancient
    vintage fake real wild tame professional formal casual
    indoor outdoor indoors outdoors rural urban public private local distant tropical
    parked paved fenced wooded lit unlit decorated shaded covered dressed lined tiled stacked attached
    different similar various opposite matching alike separate asleep awake alive dead ready
    fast slow upright sleeveless shiny dull lush barren blurry foggy overcast electric electronic digital toy
    """
)

MOTIONS = _words(
    """
    sit stand walk run jump ride play hold look wear watch lie lay swim climb leap eat drink fly skate ski surf
    snowboard skateboard bike cycle drive throw catch kick hit swing bat pitch toss hang smile laugh talk speak sing
    dance perform pose stare gaze face point wave reach pull push carry drag lift drop pick bend lean kneel crouch
    squat crawl roll slide fall float splash dive dig chase race wrestle fight bite chew lick sniff bark shake nap
    sleep rest relax wait cross enter leave pass follow lead approach return turn spin twist flip balance grind dunk
    dribble shoot aim score win compete practice train exercise stretch bow cheer clap celebrate hug kiss cuddle
    pet feed graze drink pour cook bake cut slice chop prepare serve clean wash brush wipe sweep dust fix repair build
    construct paint draw write read type show display hand give receive grab grasp clutch touch squeeze pinch scratch
    hike camp fish hunt row paddle sail kayak canoe raft parasail wakeboard waterski bathe shower blow smoke burn
    shine glow rain snow melt grow plant pick gather collect load unload pack unpack park stop travel move land
    soar hover glide perch nest flap yawn cry scream yell shout argue whisper listen hear see photograph film record
    skip hop tumble trip stumble march parade protest shop buy sell pay order visit tour explore attend gather meet
    greet enjoy attempt work study learn teach help guide assist protect guard rescue wrap cover dress decorate
    attach tie lock open close fill surround overlook line top stack pile cast cradle straddle maneuver manoeuvre
    navigate juggle knit sew fold iron vacuum mow rake shovel saw hammer weld drill operate steer herd groom saddle
    gallop trot buck bounce dangle sled tackle block defend stick peek peer hide search sniff inspect examine check
    """
)

# Words that end like a form of a verb and are things
NOT_FORMS = _words(
    """
    building clothing wedding evening morning ceiling railing string ring king wing thing spring earring painting
    crossing clearing siding icing frosting dressing stocking bedding awning lightning meeting opening swing
    seating flooring lighting topping filling sling sibling duckling pudding parking setting housing sidewalk
    something anything everything nothing
    bed red sled shed seed weed breed feed speed reed
    glass grass dress bus gas lens canvas compass christmas tennis class cross mess moss boss bass pass
    pants jeans shorts clothes scissors glasses sunglasses goggles stairs binoculars headphones series species
    news sports always perhaps others is was has as this his us
    """
)

IRREGULAR = {
    "men": "man", "women": "woman", "children": "child", "people": "person", "feet": "foot", "teeth": "tooth",
    "mice": "mouse", "geese": "goose", "oxen": "ox", "wolves": "wolf", "leaves": "leaf", "knives": "knife",
    "loaves": "loaf", "shelves": "shelf", "scarves": "scarf", "halves": "half", "wives": "wife", "calves": "calf",
    "elves": "elf", "hooves": "hoof", "policemen": "policeman", "firemen": "fireman", "snowmen": "snowman",
    "fishermen": "fisherman", "buses": "bus", "dresses": "dress", "glasses": "glasses",
    "ran": "run", "sat": "sit", "stood": "stand", "held": "hold", "rode": "ride", "ridden": "ride", "flew": "fly",
    "ate": "eat", "eaten": "eat", "drank": "drink", "drove": "drive", "threw": "throw", "thrown": "throw",
    "caught": "catch", "swam": "swim", "swung": "swing", "hung": "hang", "led": "lead", "leapt": "leap",
    "lying": "lie", "laid": "lay", "laying": "lay", "tying": "tie", "worn": "wear", "wore": "wear", "drawn": "draw",
    "blown": "blow", "bent": "bend", "shown": "show", "seen": "see", "grown": "grow", "written": "write",
    "stuck": "stick", "fed": "feed", "fought": "fight", "built": "build", "fell": "fall", "fallen": "fall",
}  # fmt: skip
