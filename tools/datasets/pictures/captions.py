"""Captions of emoji, made of their English names: what each image shows, in a few words."""

import collections
import re

# What the image shows where the name does not say it.
SHOWN = """hourglass done: hourglass | joker: joker playing card | pool 8 ball: black 8 ball
brick: brick wall | foggy: foggy city | salt: salt shaker | luggage: suitcase | link: chain link
bullseye: target hit by a dart | meat on bone: meat on the bone | person in bed: person in a bed
bust in silhouette: silhouette of a bust | building construction: construction site
chart increasing with yen: rising chart with a yen sign | horse racing: jockey on a racing horse
construction: construction barrier | lacrosse: lacrosse stick and ball | milky way: the Milky Way
cricket game: cricket bat and ball | nail polish: hand with nail polish | x-ray: x-ray of a skull
dizzy: star with a curved trail | water closet: sign that says WC | multiply: multiplication sign
face with hand over mouth: face with a hand over its mouth | ping pong: ping pong paddle and ball
face with open eyes and hand over mouth: face with open eyes and a hand over its mouth
face with symbols on mouth: red face with symbols over its mouth | bowling: bowling ball and pins
flower playing cards: flower playing card | selfie: hand taking a selfie with a phone
hand with fingers splayed: hand with its fingers splayed | heart hands: two hands forming a heart
heart exclamation: heart exclamation mark | Statue of Liberty: the Statue of Liberty
hourglass not done: hourglass with running sand | breast-feeding: woman breast-feeding a baby
hundred points: the number 100, underlined twice | busts in silhouette: silhouette of two busts
leaf fluttering in wind: leaves fluttering in the wind | palms up together: two palms up together
mount fuji: Mount Fuji | unlocked: open padlock | divide: division sign | cyclone: blue spiral
night with stars: city at night with stars | couple with heart: two people with a heart
performing arts: two theatre masks, happy and sad | mahjong red dragon: mahjong tile, red dragon
person in suit levitating: person in a dark suit levitating | litter in bin sign: litter bin sign
pouring liquid: glass pouring out liquid | crossed flags: crossed flags of Japan | dna: DNA helix
rolling on the floor laughing: face rolling on the floor laughing | star-struck: star-struck face
tennis: tennis racket and ball | wedding: church with a heart | camping: tent among trees
Tokyo tower: Tokyo Tower | collision: red explosion | kiss: two people kissing | kaaba: the Kaaba
umbrella on ground: beach umbrella on the ground | badminton: badminton racket and shuttlecock
video game: video game controller | cinema: sign with a movie camera | dashing away: puff of dust
white flower: white flower stamp | cooking: frying pan with an egg | high voltage: lightning bolt
wireless: wi-fi sign | ZZZ: the letters ZZZ | mate: gourd of mate | Mx Claus: Mx. Claus"""
SHOWN = dict(entry.split(": ", 1) for entry in re.split(r" \| |\n", SHOWN))
# The order of a dictionary's names made that of a sentence; the first match counts.
SENTENCES = {
    r"keycap #": "blue keycap with a hash sign",
    r"keycap \*": "blue keycap with an asterisk",
    r"keycap (\d+)": r"blue keycap with the number \1",
    r"([ABO]+) button \(blood type\)": r"blood type button that says \1",
    r"([A-Z!]+) button": r"button that says \1",
    r"([A-Z!]+) arrow": r"arrow with the word \1",
    r"Japanese (.+) button": r'Japanese "\1" button',
    r"(.+ o'clock|[a-z]+-thirty)": r"clock showing \1",
    r"speaker (\w+) volume": r"speaker at \1 volume",
    r"locked(.*)": r"closed padlock\1",
    r"input (.+)": r"button for \1 input",
    r"(.*face) with tongue": r"\1 with its tongue out",
    r"(.+ )?index pointing (.+)": r"\1index finger pointing \2",
    r"(\w+ hockey)": r"\1 stick",
    r"(light rail|metro)": r"\1 train",
    r"(\w+) tipping hand": r"\1 holding out a hand",
    r"((?:men|women|people) .+)": r"two \1",
    r"(man|woman|person) (bald)": r"\2 \1",
    r"(man|woman|person) (beard|\w+ hair)": r"\1 with \2",
    r"man (?!in |with |mountain |\w+ing\b)(.+)": r"male \1",
    r"woman (?!in |with |mountain |and |\w+ing\b)(.+)": r"female \1",
    r"(Aries|Taurus|Gemini|Cancer|Leo|Virgo|Libra|Scorpio)": r"the zodiac sign \1",
    r"(Sagittarius|Capricorn|Aquarius|Pisces|Ophiuchus)": r"the zodiac sign \1",
    r"(no .+|copyright|registered|trade mark|information|biohazard|radioactive|warning|prohibited"
    r"|restroom|(?:wo)?men's room|elevator|baggage claim|left luggage|passport control|customs"
    r"|place of worship|(?:non-)?potable water|children crossing|plus|minus|infinity|khanda"
    r"|yin yang|mobile phone off|vibration mode|sparkle|hot springs|om)": r"\1 sign",
}
INNER = "with|in|on|without|behind|wearing|raising|rowing|bouncing|getting|feeding|taking"
MASS = "bacon|bread|broccoli|butter|coral|dango|falafel|fear|fire|fog|fondue|garlic|hair|ice|joy"
MASS += "|lightning|liquid|meat|money|oden|polish|popcorn|rain|rice|sake|sand|snow|soap|spaghetti"
MASS += "|steam|sushi|sweat|thread|wood|yarn|leaves"
AS_IT_IS = ("a ", "an ", "the ", "its ", "two ", "Mount ", "Mrs. ", "Mx. ", "Santa ", "Tokyo ")
LANDS = r"(European|United) .+|(.* )?(Bahamas|Gambia|Islands|Maldives|Netherlands|Philippines)"
LANDS += r"|Comoros|Isle of Man|.* (Republic|Territor(y|ies))"
# The skin painted for each of the five names: the package swaps medium and medium-light, except for
# couples and technologists, and reverses one mountain biker.  Captions say what is painted.
SKINS = ["light", "medium-light", "medium", "medium-dark", "dark"]
PAINTED = {"1f6b5-1f3f.": "42310", ".*(1f4(6[bcd]|8f|91|bb)|1f91d|2764).*": "01234", ".*": "02134"}


def with_article(noun: str) -> str:
    """The noun phrase with the article it takes, if any: an axe, scissors, cooked rice."""
    head = re.split(r" (?:of|and|from|over|at|among|that|\w+ing)\b", noun)[0].split()[-1]
    plural = head.endswith("s") and not head.endswith(("ss", "us", "os", "-lis", "wards"))
    if plural or re.fullmatch(MASS, head) or noun.startswith(AS_IT_IS):
        return noun
    return f"{'an' if re.match('(?!eu|ew|uni|one)[aeiou]|hour|x-', noun.lower()) else 'a'} {noun}"


def described(name: str) -> str:
    """What an image of this name, without skin tone, shows."""
    if group := re.fullmatch("(family|kiss|couple).*?((?: (?:wo)?man| boy| girl)+)", name):
        two = {"man": "two men", "woman": "two women", "boy": "two boys", "girl": "two girls"}
        counts = collections.Counter(group[2].split())
        *most, last = [two[who] if count > 1 else f"a {who}" for who, count in counts.items()]
        who = f"{', '.join(most)} and {last}" if most else last
        doing = {"family": f"a family of {who}", "kiss": f"{who} kissing"}
        return doing.get(group[1], f"{who} with a heart")
    found = ((re.fullmatch(pattern, name), words) for pattern, words in SENTENCES.items())
    said = SHOWN.get(name) or next((match.expand(words) for match, words in found if match), name)
    parts = re.split(f" ({INNER}) ", said)
    return " ".join(part if i % 2 else with_article(part) for i, part in enumerate(parts))


def caption(stem: str, names: dict[str, dict]) -> str:
    """The caption of the image whose file name, without ending, is these code points in hex."""
    codes = re.split("[-_]", stem)
    nation = codes[1:2] == ["e0067"]  # spelt in tags, whose end mark the file names lack
    name = names["".join(chr(int(c, 16)) for c in codes + ["e007f"] * nation)]["en"].strip(":")
    name = name.replace("_", " ").replace("’", "'").replace("&", "and")
    if nation or re.match("1f1[ef].-1f1[ef].", stem):
        return f"the flag of {'the ' * bool(re.fullmatch(LANDS, name))}{name}"
    if not (tone := re.search(r" (\S+) skin tone", name)):
        return described(name)
    order = next(order for pattern, order in PAINTED.items() if re.fullmatch(pattern, stem))
    skin = SKINS[int(order[SKINS.index(tone[1])])]
    return f"{described(name.replace(tone[0], ''))}, {skin} skin tone"
