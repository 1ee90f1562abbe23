"""Which class an image belongs to: runs of the order in which Unicode lists its emoji."""

import json
import tarfile
from pathlib import Path

# The first emoji of every run, by Unicode's name; the run ends where the next begins.
RUNS = """grinning face: face | skull: creature | grinning cat: cat | see-no-evil monkey: monkey
love letter: heart | kiss mark: symbol | waving hand: hand | flexed biceps: body part
baby: person | people holding hands: people | speaking head: symbol | people hugging: people
footprints: symbol | monkey face: animal | turkey: bird | frog: animal
spouting whale: sea animal | snail: bug | bouquet: flower | seedling: plant | grapes: fruit
avocado: vegetable | bread: food | soft ice cream: dessert | baby bottle: drink
chopsticks: tableware | globe showing Europe-Africa: map | snow-capped mountain: landscape
stadium: building | fountain: scene | locomotive: vehicle | bus stop: traffic | anchor: boat
airplane: aircraft | bellhop bell: object | hourglass done: clock | new moon: sky
cloud: weather | jack-o-lantern: decoration | military medal: medal
soccer ball: sports equipment | bullseye: game | performing arts: art | glasses: clothing
muted speaker: sound | saxophone: musical instrument | mobile phone: device | candle: lamp
notebook with decorative cover: book | coin: money | envelope: mail | pencil: stationery
locked: lock | hammer: tool | alembic: laboratory | syringe: medicine | door: household item
cigarette: object | ATM sign: sign | up arrow: arrow | place of worship: symbol
Aries: button | female sign: symbol | keycap #: keycap | input latin uppercase: button
red circle: shape | chequered flag: flag"""
RUNS = dict(entry.split(": ", 1) for entry in RUNS.replace("\n", " | ").split(" | "))

Codes = tuple[int, ...]


def essential_codes(text: str) -> Codes:
    """The code points of an emoji but for skin tones and what file names write now and then."""
    codes = map(ord, text)
    return tuple(c for c in codes if not (0x1F3FB <= c <= 0x1F3FF or c in (0xFE0F, 0xE007F)))


def classes_of(order: dict[str, str]) -> dict[Codes, str]:
    """The class of every emoji, of their names in Unicode's order, which begins with a run's."""
    if lacking := RUNS.keys() - set(order.values()):
        raise ValueError(f"the order of emoji lacks {min(lacking)}")
    classes, current = {}, ""
    for text, name in order.items():
        current = RUNS.get(name, current)
        classes[essential_codes(text)] = current
    return classes


def order_in(package: Path) -> tuple[dict[str, str], str]:
    """The names of all emoji in Unicode's order, as the npm package has them, and its licence."""
    with tarfile.open(package) as files:
        listed = json.loads(files.extractfile("package/data-by-emoji.json").read())
        licence = files.extractfile("package/LICENSE").read().decode()
    return {text: entry["name"] for text, entry in listed.items()}, licence
