"""The words of generated products and goals. They are ours: no shop's text is here."""

from __future__ import annotations

from dataclasses import dataclass

CATALOGUE_VERSION = 1
"""Moves when a change here or in `webshop_catalogue` changes what a seed gives."""


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


BRANDS = _words(
    "Kestrin Alvora Brindle Cadmore Dunlea Elmont Farrow Galwick Hestia Ivoret Jorvik Kelmar "
    "Lunary Mavento Norrin Ostara Pellan Quillon Ravena Selwyn Tavira Umbrel Velden Wexley "
    "Yarrow Zephra Arbela Bremen Corvin Delmar Estrel Fenwick Gravel Holmen Isolde Juniper "
    "Kirvan Lorrel Merrow Nimbus"
)
SERIES = _words(
    "Nova Atlas Breeze Cedar Delta Echo Flint Grove Haven Indigo Jade Koda Lark Maple Nest "
    "Orbit Pine Quartz Ridge Sage Terra Unity Vista Willow"
)

COLORS = _words("black white red blue green gray brown pink beige navy purple yellow")
METALS = _words("brass nickel copper bronze black white")
SIZES = _words("small medium large plus")
BEDS = _words("twin full queen king")
SHOES = _words("seven eight nine ten eleven")
SCENTS = _words("lavender vanilla citrus rose mint coconut")
FLAVORS = _words("almond caramel honey ginger peach cinnamon")
PACKS = ("single", "pair", "box of six", "case of twelve")
FLUIDS = ("travel size", "regular bottle", "family bottle")
LENGTHS = ("three feet", "six yards", "ten meters")
STYLES = _words("classic modern rustic vintage")


@dataclass(frozen=True, slots=True)
class Section:
    """Kinds of products that are sold side by side.

    Attributes:
        path: Category and section, as product categories begin.
        kinds: What is sold.
        attributes: What a product of the section may be or have.
        options: Option name -> its values; a product offers some of them.
        materials: For the description.
        places: For the description.
        prices: Lowest and highest, in dollars.
    """

    path: tuple[str, str]
    kinds: tuple[str, ...]
    attributes: tuple[str, ...]
    options: tuple[tuple[str, tuple[str, ...]], ...]
    materials: tuple[str, ...]
    places: tuple[str, ...]
    prices: tuple[int, int]


def _section(
    path: str,
    kinds: str,
    attributes: str,
    options: dict[str, tuple[str, ...]],
    materials: str,
    places: str,
    prices: tuple[int, int],
) -> Section:
    category, section = path.split(" > ")
    return Section(
        path=(category, section),
        kinds=tuple(kinds.split(", ")),
        attributes=tuple(attributes.split(", ")),
        options=tuple(options.items()),
        materials=tuple(materials.split(", ")),
        places=tuple(places.split(", ")),
        prices=prices,
    )


SECTIONS = (
    _section(
        "Home > Lighting",
        "desk lamp, floor lamp, night light, ceiling light",
        "energy efficient, easy install, glass shade, dimmable, space saving, long lasting, "
        "touch control, remote control",
        {"color": METALS, "style": STYLES},
        "steel, oak wood, frosted glass, linen",
        "reading corners, small bedrooms, the hallway, late work",
        (12, 89),
    ),
    _section(
        "Home > Bedding",
        "duvet cover, throw blanket, bed pillow, fitted sheet",
        "machine washable, super soft, hypoallergenic, wrinkle resistant, double sided, "
        "breathable, quick drying, heavy duty",
        {"color": COLORS, "size": BEDS},
        "cotton, bamboo fiber, fleece, linen",
        "cold nights, guest rooms, summer, the sofa",
        (14, 79),
    ),
    _section(
        "Home > Kitchen",
        "coffee mug, water bottle, frying pan, cutting board, tea kettle, lunch box",
        "dishwasher safe, bpa free, non slip, easy clean, leak proof, lightweight, non stick, "
        "eco friendly",
        {"color": COLORS, "pack": PACKS},
        "steel, ceramic, bamboo, cast iron",
        "the office, busy mornings, family meals, picnics",
        (8, 59),
    ),
    _section(
        "Home > Furniture",
        "bar stool, coffee table, book shelf, office chair, shoe rack",
        "easy assemble, heavy duty, space saving, solid wood, height adjustable, foldable, "
        "scratch resistant, fully assembled",
        {"color": COLORS, "style": STYLES},
        "pine, walnut wood, steel, rattan",
        "small flats, the living room, the balcony, a study",
        (29, 149),
    ),
    _section(
        "Clothing > Men",
        "polo shirt, cargo pants, winter jacket, dress shirt",
        "machine wash, slim fit, quick dry, moisture wicking, long sleeve, regular fit, "
        "water resistant, elastic waist",
        {"size": SIZES, "color": COLORS},
        "cotton, wool, recycled polyester, denim",
        "the office, long walks, cold days, travel",
        (15, 99),
    ),
    _section(
        "Clothing > Women",
        "maxi dress, yoga leggings, knit sweater, rain coat",
        "hand wash, high waist, tummy control, loose fit, stretchy, side pockets, fleece lined, "
        "wrinkle free",
        {"size": SIZES, "color": COLORS},
        "cotton, viscose, merino wool, nylon",
        "parties, daily wear, the gym, rainy days",
        (15, 99),
    ),
    _section(
        "Clothing > Shoes",
        "running shoe, ankle boot, beach sandal, house slipper",
        "memory foam, arch support, rubber sole, anti slip, wide fit, open toe, vegan leather, "
        "waterproof",
        {"size": SHOES, "color": COLORS},
        "leather, mesh, canvas, cork",
        "trails, the city, the beach, evenings at home",
        (18, 119),
    ),
    _section(
        "Beauty > Hair",
        "hair mask, shampoo bar, curl cream, hair oil",
        "sulfate free, cruelty free, paraben free, for dry hair, deep repair, color safe, "
        "plant based, alcohol free",
        {"scent": SCENTS, "size": FLUIDS},
        "argan oil, shea butter, aloe, keratin",
        "weekly care, curly hair, summer, sensitive scalps",
        (6, 39),
    ),
    _section(
        "Beauty > Skin",
        "face cream, lip balm, body lotion, hand soap",
        "fragrance free, oil free, long lasting, dermatologist tested, non greasy, anti aging, "
        "fast absorbing, cruelty free",
        {"scent": SCENTS, "size": FLUIDS},
        "shea butter, aloe, jojoba oil, oat milk",
        "dry skin, cold weather, every morning, travel",
        (5, 39),
    ),
    _section(
        "Electronics > Audio",
        "wireless earbuds, bluetooth speaker, studio headphones",
        "noise cancelling, fast charging, water proof, stereo sound, long battery, hands free, "
        "deep bass, ultra light",
        {"color": COLORS, "style": STYLES},
        "aluminum, silicone, soft foam, carbon",
        "commuting, the shower, long flights, parties",
        (19, 139),
    ),
    _section(
        "Electronics > Accessories",
        "phone case, laptop sleeve, charging cable, tablet stand",
        "shock proof, wireless charging, high speed, anti scratch, ultra slim, tempered glass, "
        "easy carry, heavy duty",
        {"color": COLORS, "length": LENGTHS},
        "silicone, felt, nylon, aluminum",
        "the desk, daily commutes, the car, students",
        (6, 49),
    ),
    _section(
        "Grocery > Snacks",
        "green tea, trail mix, protein bar, dark chocolate",
        "gluten free, sugar free, non gmo, organic, low sodium, dairy free, keto friendly, "
        "high protein",
        {"flavor": FLAVORS, "pack": PACKS},
        "whole nuts, cocoa, dried fruit, green leaves",
        "hikes, the lunch box, quiet evenings, gifts",
        (5, 45),
    ),
    _section(
        "Sports > Outdoor",
        "yoga mat, camping tent, hiking backpack, sleeping bag",
        "lightweight, extra thick, tear resistant, easy carry, anti slip, windproof, foldable, "
        "machine washable",
        {"color": COLORS, "size": SIZES},
        "nylon, natural rubber, canvas, goose down",
        "weekends, beginners, alpine trips, the park",
        (15, 129),
    ),
)

TITLE_FORMS = ("{brand} {series} {attribute} {kind}", "{brand} {series} {kind}")
DESCRIPTIONS = (
    "{title}. Made of {material} for {place}.",
    "{title}. A {kind} of {material}, good for {place}.",
    "{title}. Ideal for {place}. Contains {material}.",
)
LAST_FEATURES = (
    "One year warranty",
    "Gift box included",
    "Free returns",
    "Designed for {place}",
)
REQUESTS = (
    "i am looking for a {kind} that is {attributes}",
    "i need a {attributes} {kind}",
    "find me a {kind} which is {attributes}",
    "i want to buy a {attributes} {kind}",
)
