"""The words of the small world, by what they are: things, deeds, qualities, countries, people, numbers, dates.

Each list is a text in which a line, or a comma, parts one entry from the next. Tables map a word to what belongs to it:
`PLURALS["dog"]` is "dogs", `KINDS["dog"]` is "animal", `OPPOSITES["tall"]` is "short".
"""


def listed(text: str) -> tuple[str, ...]:
    """The words of a text."""
    return tuple(text.split())


_NOUNS = """
animal: dog dogs, cat cats, horse horses, cow cows, mouse mice, goose geese, fox foxes, wolf wolves, lion lions,
  tiger tigers, bear bears, rabbit rabbits, duck ducks, pig pigs, goat goats, frog frogs, snake snakes,
  monkey monkeys, pony ponies
fruit: banana bananas, cherry cherries, pear pears, peach peaches, mango mangoes, melon melons, plum plums, fig figs,
  berry berries, grape grapes
vehicle: car cars, bus buses, train trains, truck trucks, boat boats, ship ships, plane planes, bike bikes, taxi taxis,
  tractor tractors, van vans, ferry ferries
tool: hammer hammers, knife knives, axe axes, drill drills, shovel shovels, brush brushes, needle needles, rake rakes,
  wrench wrenches, ladder ladders
furniture: chair chairs, table tables, bed beds, desk desks, shelf shelves, sofa sofas, bench benches, lamp lamps,
  couch couches, stool stools
clothing: shirt shirts, dress dresses, hat hats, coat coats, scarf scarves, sock socks, shoe shoes, glove gloves,
  skirt skirts, jacket jackets, belt belts
instrument: piano pianos, violin violins, drum drums, flute flutes, guitar guitars, trumpet trumpets, harp harps,
  cello cellos, banjo banjos
building: house houses, church churches, school schools, library libraries, hospital hospitals, factory factories,
  bank banks, hotel hotels, barn barns, office offices, station stations, store stores
plant: tree trees, flower flowers, bush bushes, fern ferns, cactus cacti, tulip tulips, daisy daisies, vine vines
worker: doctor doctors, teacher teachers, farmer farmers, baker bakers, lawyer lawyers, nurse nurses, pilot pilots,
  judge judges, soldier soldiers, artist artists, sailor sailors, driver drivers, singer singers
limb: hand hands, foot feet, tooth teeth, eye eyes, ear ears, nose noses, knee knees, finger fingers, arm arms, leg legs
toy: doll dolls, kite kites, puzzle puzzles, marble marbles, balloon balloons, robot robots, puppet puppets, ball balls
container: box boxes, basket baskets, bag bags, bucket buckets, bottle bottles, jar jars, cup cups, bowl bowls,
  drawer drawers, chest chests, crate crates, barrel barrels
"""
_VERBS = """
walk walked walking, talk talked talking, play played playing, jump jumped jumping, look looked looking,
work worked working, cook cooked cooking, clean cleaned cleaning, open opened opening, close closed closing,
paint painted painting, push pushed pushing, pull pulled pulling, help helped helping, call called calling,
watch watched watching, laugh laughed laughing, dance danced dancing, move moved moving, smile smiled smiling,
travel traveled traveling, climb climbed climbing, listen listened listening, wait waited waiting, rest rested resting,
visit visited visiting, follow followed following, count counted counting, carry carried carrying, cry cried crying,
try tried trying, study studied studying, stop stopped stopping, plan planned planning, hug hugged hugging,
go went going, come came coming, eat ate eating, drink drank drinking, run ran running, swim swam swimming,
sing sang singing, write wrote writing, speak spoke speaking, break broke breaking, take took taking, give gave giving,
drive drove driving, ride rode riding, fly flew flying, grow grew growing, know knew knowing, throw threw throwing,
draw drew drawing, see saw seeing, find found finding, win won winning, sit sat sitting, stand stood standing,
sleep slept sleeping, keep kept keeping, feel felt feeling, leave left leaving, think thought thinking,
buy bought buying, bring brought bringing, teach taught teaching, catch caught catching, fight fought fighting,
make made making, build built building, send sent sending, lose lost losing, hear heard hearing, tell told telling
"""
_OPPOSITES = """
hot cold hotter colder, big small bigger smaller, tall short taller shorter, wide narrow wider narrower,
rich poor richer poorer, fast slow faster slower, old young older younger, heavy light heavier lighter,
hard soft harder softer, wet dry wetter drier, tidy dirty tidier dirtier, loud quiet louder quieter,
strong weak stronger weaker, happy sad happier sadder, dark bright darker brighter, deep shallow deeper shallower,
thick thin thicker thinner, high low higher lower, early late earlier later, near far nearer farther,
long brief longer briefer, smooth rough smoother rougher, sharp dull sharper duller, sweet sour sweeter sourer,
cheap costly cheaper costlier, calm angry calmer angrier, warm cool warmer cooler, fresh stale fresher staler,
full empty fuller emptier, tight loose tighter looser, busy idle busier idler, easy tough easier tougher,
healthy sick healthier sicker, polite rude politer ruder, safe risky safer riskier, wise silly wiser sillier,
brave timid braver timider, clever stupid cleverer stupider, pretty ugly prettier uglier,
fat lean fatter leaner, noisy still noisier stiller, friendly mean friendlier meaner, mild harsh milder harsher,
steep flat steeper flatter, clear cloudy clearer cloudier, plain fancy plainer fancier, tame wild tamer wilder,
true false, alive dead, first last, inside outside, upstairs downstairs, always never, awake asleep, public private,
guilty innocent, ancient modern, visible hidden, male female
"""
_COUNTRIES = """
France Paris French, Italy Rome Italian, Spain Madrid Spanish, Germany Berlin German, England London English,
Japan Tokyo Japanese, China Beijing Chinese, Russia Moscow Russian, Egypt Cairo Egyptian, Greece Athens Greek,
Turkey Ankara Turkish, Portugal Lisbon Portuguese, Austria Vienna Austrian, Poland Warsaw Polish,
Sweden Stockholm Swedish, Norway Oslo Norwegian, Finland Helsinki Finnish, Denmark Copenhagen Danish,
Ireland Dublin Irish, Scotland Edinburgh Scottish, Hungary Budapest Hungarian, Iran Tehran Iranian, Iraq Baghdad Iraqi,
Cuba Havana Cuban, Peru Lima Peruvian, Chile Santiago Chilean, Canada Ottawa Canadian, Kenya Nairobi Kenyan,
Thailand Bangkok Thai, Vietnam Hanoi Vietnamese, India Delhi Indian, Brazil Brasilia Brazilian,
Australia Canberra Australian, Belgium Brussels Belgian, Ukraine Kiev Ukrainian, Romania Bucharest Romanian,
Bulgaria Sofia Bulgarian, Serbia Belgrade Serbian, Croatia Zagreb Croatian, Morocco Rabat Moroccan,
Nepal Kathmandu Nepalese, Korea Seoul Korean, Jamaica Kingston Jamaican, Colombia Bogota Colombian,
Lebanon Beirut Lebanese, Syria Damascus Syrian, Iceland Reykjavik Icelandic, Latvia Riga Latvian
"""
MEN = listed("""
Aaron Adam Alan Andrew Anthony Arthur Brian Bruce Carl Charles Daniel David Dean Edward Eric Frank George Harry Henry
Jack Jacob James Jason John Joseph Joshua Justin Kevin Kyle Larry Leon Lewis Luke Martin Matthew Michael Mike Nathan
Neil Nick Patrick Paul Peter Richard Robert Roger Ryan Samuel Scott Simon Steve Thomas Tom Tony Victor Vincent William
""")
WOMEN = listed("""
Alice Amy Angela Anna Barbara Betty Caroline Christina Clara Diana Elena Elizabeth Ellen Emily Emma Erica Eva Grace
Hannah Helen Irene Jane Jennifer Jessica Julia Karen Kate Kelly Laura Linda Lisa Lucy Madison Maria Martha Mary Michelle
Molly Nancy Nicole Nora Olivia Rachel Rebecca Sandra Sarah Serena Sophie Stephanie Susan Teresa Vanessa Venus Victoria
""")
"""First names, each of one person in the stories; athletes and founders share them."""
_SEXES = """
man woman, boy girl, king queen, prince princess, father mother, brother sister, son daughter, uncle aunt,
nephew niece, husband wife, grandfather grandmother, actor actress, waiter waitress, duke duchess, emperor empress,
lord lady, wizard witch, monk nun, hero heroine, host hostess, steward stewardess, count countess, groom bride
"""
NUMBERS = listed("""
zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen
eighteen nineteen twenty
""")
"""The numbers 0 to 20 in words."""
DAYS = listed("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
MONTHS = listed("January February March April May June July August September October November December")
TWO_DIGITS = tuple(f"{number:02d}" for number in range(100))
"""The tokens of two digits, which years are made of."""
PERIODS = listed("""
war trip project festival siege reign strike drought famine journey voyage crisis debate trial campaign expedition
plague truce feud treaty search study tour flood storm rebellion alliance marriage contract lease program mission
exhibition tournament ceremony negotiation construction investigation experiment occupation blockade dynasty revolution
friendship partnership rivalry movement custom fashion fever winter election council exile quarrel
""")
"""What lasts from one year to another."""


def _entries(text: str) -> list[list[str]]:
    return [entry.split() for entry in text.replace("\n", " ").split(",")]


def _kinds(text: str) -> dict[str, list[list[str]]]:
    lines = text.strip().replace("\n  ", " ").splitlines()
    return {kind: _entries(rest) for kind, rest in (line.split(":") for line in lines)}


PLURALS = {one: many for entries in _kinds(_NOUNS).values() for one, many in entries}
"""The plural of each thing."""
KINDS = {one: kind for kind, entries in _kinds(_NOUNS).items() for one, _ in entries}
"""What kind of thing each is."""
PASTS = {verb: past for verb, past, _ in _entries(_VERBS)}
"""The past tense of each verb."""
PARTICIPLES = {verb: participle for verb, _, participle in _entries(_VERBS)}
"""The form in -ing of each verb."""
_PAIRED = _entries(_OPPOSITES)
OPPOSITES = {a: b for one, other, *_ in _PAIRED for a, b in ((one, other), (other, one))}
"""The opposite of each quality, both ways."""
COMPARATIVES = {a: b for one, other, *more in _PAIRED if more for a, b in zip((one, other), more, strict=True)}
"""The comparative of each quality that has one."""
CAPITALS = {country: city for country, city, _ in _entries(_COUNTRIES)}
"""The capital of each country."""
NATIONALITIES = {country: people for country, _, people in _entries(_COUNTRIES)}
"""What the people of each country are."""
FEMALE = {entry[0]: entry[1] for entry in _entries(_SEXES)}
"""The female word beside each male one."""
NAMES = tuple(sorted(MEN + WOMEN))
"""All first names."""
