"""Names, places and things of the generated texts, in two halves that share no word.

Invariant: an entity of one split never occurs in the other, neither whole nor in parts, so a
held-out score says nothing about memory.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal

Split = Literal["train", "held_out"]


@dataclass(frozen=True)
class Pool:
    """Words of one sort, separated by spaces; "_" stands for a space inside one.

    Attributes:
        train, held_out: the words of each split.
    """

    train: str
    held_out: str

    def of(self, split: Split) -> list[str]:
        """The words of a split."""
        words = self.train if split == "train" else self.held_out
        return [word.replace("_", " ") for word in words.split()]

    def draw(self, rng: random.Random, split: Split) -> str:
        """One word."""
        return rng.choice(self.of(split))


@dataclass(frozen=True)
class Texts:
    """Sentences, or parts of them, of each split."""

    train: tuple[str, ...]
    held_out: tuple[str, ...]

    def of(self, split: Split) -> tuple[str, ...]:
        """The sentences of a split."""
        return self.train if split == "train" else self.held_out


FIRST = Pool(
    train="Ada Bruno Carla Dmitri Elena Farid Greta Hugo Irina Jonas Kavya Lars Mira Nadia Oskar "
    "Paula Quentin Rosa Stefan Tamara Umar Vera Walter Ximena Yusuf Zofia Amir Beatrice Cedric "
    "Daria Emil Fatima Gustav Helena Ivan Joanna Kenji Leila Marco Nina Olga Pedro Rania Samuel "
    "Theresa Ursula Victor Wanda Yara Zeno Alicia Boris Clara Dennis Esther Felix Grace Henri",
    held_out="Abel Brigitta Casimir Dolores Edwin Fiona Gideon Harriet Ismael Jasmin Konrad Lucia "
    "Magnus Noor Orla Philippa Raul Sabine Tobias Valerie",
)
LAST = Pool(
    train="Abara Becker Castro Dvorak Eriksen Fontaine Garcia Haddad Ibarra Janssen Kowalski "
    "Lindgren Moreau Nakata Okafor Petrov Quispe Rossi Schmidt Tanaka Ueda Varga Weiss Xu Yilmaz "
    "Zeller Andrade Bianchi Cohen Duarte Egger Ferrari Gruber Horvat Jovic Keller Lopez Meyer "
    "Novak Olsen Pereira Richter Santos Torres Unger Vidal Wagner Yoder Zanetti Amari Brandt "
    "Costa Demir Elmore Fischer Goldberg Hansen Iyer Jensen",
    held_out="Achterberg Bellini Cardenas Delacroix Engstrom Fairfax Grigoryan Hollister Imanov "
    "Jankovic Kirchner Lombardo Mbeki Nightingale Oyelaran Pettersson Rutherford Sandoval "
    "Tremblay Vasquez",
)
CITY = Pool(
    train="Porto Lyon Graz Malmo Ghent Turin Bergen Krakow Split Bilbao Utrecht Basel Leeds Cork "
    "Tartu Varna Brno Aarhus Nantes Valencia Bremen Tampere Ostrava Debrecen Zagreb Bari Dijon "
    "Salzburg Gdansk Leuven",
    held_out="Trieste Rostock Vilnius Groningen Cardiff Timisoara Lausanne Trondheim Zaragoza Linz",
)
COMPANY = Pool(
    train="Norvik Halden_Works Brightwater Castellan Deltaform Evergrid Foxglove_Labs Granary "
    "Hexalin Ironbark Juniper_Foods Kestrel_Air Lumenta Marlowe_Press Northgate Opaline "
    "Pinecrest Quarry_Stone Redfern_Mills Silverline Tidewater Umbra_Optics Vantage_Rail "
    "Westbrook Yellowhill",
    held_out="Aldermoor Bluefinch Corvane Dunmore_Textiles Elmsworth Fjordline Glasshouse "
    "Harrowgate Inkwell Larkspur",
)
PRODUCT_KIND = Pool(
    train="oak steel ceramic folding wireless leather cotton glass brass heavy compact portable "
    "wooden electric foldable copper marble linen rubber bamboo",
    held_out="walnut titanium velvet magnetic inflatable waterproof enamel cordless",
)
PRODUCT = Pool(
    train="desk lamp chair kettle backpack drill mirror blanket teapot ladder printer keyboard "
    "shelf bicycle tent radio pillow bench stove monitor wardrobe mug basket clock camera",
    held_out="hammock easel saddle lantern thermos scooter cradle telescope stool projector",
)
TOPIC = Pool(
    train="Baroque_Music Urban_Gardening Data_Privacy Street_Photography Home_Brewing "
    "Modern_Poetry River_Ecology Clean_Energy Medieval_Maps Jazz_Guitar Robot_Ethics Glass_Blowing "
    "Night_Skies Wild_Bees Paper_Folding Volcanoes Silent_Film Choir_Singing Public_Transport "
    "Alpine_Plants Font_Design Chess_Openings Folk_Dance",
    held_out="Coral_Reefs Carpet_Weaving Quantum_Clocks Viking_Ships Mushroom_Hunting "
    "Shadow_Puppets Tidal_Power Opera_Costumes Desert_Foxes Bridge_Building",
)
WEBSITE = Pool(
    train="mailhub.example postbox.example norvik.example deltaform.example silverline.example "
    "inbox.example kestrel.example lumenta.example office.example quickmail.example",
    held_out="corvane.example fjordmail.example larkspur.example inkpost.example",
)
ADJECTIVE = Pool(
    train="Silver Quiet Golden Broken Distant Gentle Hidden Lonely Northern Purple Rapid Secret "
    "Tall Scarlet Wandering Ancient Bitter Crimson Dusty Eastern Faded Green Hollow Iron",
    held_out="Amber Brave Cobalt Drifting Emerald Fearless Gleaming Humble Ivory Jagged",
)
NOUN = Pool(
    train="River Garden Harbor Letter Mountain Orchard Palace Road Summit Tower Valley Window "
    "Anchor Bell Crown Door Field Gate Island Journey Key Lighthouse Mirror Night",
    held_out="Acorn Beacon Canyon Dune Falcon Glacier Hearth Kite Meteor Pebble",
)
LETTER = Pool(train="A B C D E F G H K L M N", held_out="P R S T V X")


def person(rng: random.Random, split: Split) -> str:
    """A first and a last name."""
    return f"{FIRST.draw(rng, split)} {LAST.draw(rng, split)}"


def product(rng: random.Random, split: Split) -> str:
    """A thing that can be ordered."""
    return f"{PRODUCT_KIND.draw(rng, split)} {PRODUCT.draw(rng, split)}"


def title(rng: random.Random, split: Split) -> str:
    """What a thing is called."""
    return f"{ADJECTIVE.draw(rng, split)} {NOUN.draw(rng, split)}"


def code(rng: random.Random, split: Split) -> str:
    """A letter and three digits."""
    return f"{LETTER.draw(rng, split)}{rng.randint(100, 999)}"


POOLS: dict[str, Pool] = {
    "first names": FIRST,
    "last names": LAST,
    "cities": CITY,
    "companies": COMPANY,
    "kinds of products": PRODUCT_KIND,
    "products": PRODUCT,
    "topics": TOPIC,
    "websites": WEBSITE,
    "adjectives": ADJECTIVE,
    "nouns": NOUN,
    "letters": LETTER,
}
