"""Draws invented names, addresses, dates and prices."""

import random

from fusion_vlm.synthesis.documents.phrases import read_lists, split_list


SHOPS = {
    "grocery": ("Market", "Grocery", "Deli", "Foods", "Farm Stand"),
    "hardware": ("Hardware", "Garden Center", "Tool Shop", "Home Supply"),
    "stationery": ("Stationers", "Office Supply", "School Supply"),
    "clothing": ("Outfitters", "Clothing", "Boutique", "Apparel"),
}
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")


def draw_things(rng: random.Random, section: str, key: str, number: int) -> list[str]:
    """Draw different things from a list of `things.ini`."""
    return rng.sample(split_list(read_lists("things")[section][key]), number)


def draw_thing(rng: random.Random, section: str, key: str) -> str:
    return draw_things(rng, section, key, 1)[0]


def draw_person(rng: random.Random) -> str:
    return f"{draw_thing(rng, 'people', 'first')} {draw_thing(rng, 'people', 'last')}"


def draw_firm(rng: random.Random, sort: str) -> str:
    """Draw the name of a firm: of the `SHOPS` for a sort of goods, of any `shop`, or of an `office`."""
    last = rng.choice(SHOPS[sort]) if sort in SHOPS else draw_thing(rng, "firms", sort)
    return f"{draw_thing(rng, 'firms', 'first')} {last}"


def draw_address(rng: random.Random) -> str:
    return f"{rng.randint(2, 989)} {draw_thing(rng, 'places', 'street')} {draw_thing(rng, 'places', 'way')}"


def draw_phone(rng: random.Random) -> str:
    """Draw a phone number. Those with 555-01 are kept free for fiction."""
    return f"({rng.randint(201, 989)}) 555-01{rng.randint(0, 99):02}"


def draw_time(rng: random.Random) -> str:
    return show_time(rng.randrange(6 * 60, 22 * 60, 5))


def draw_code(rng: random.Random, letters: int = 2, digits: int = 5) -> str:
    """Draw a code of letters and digits without letters that look like digits."""
    head = "".join(rng.choice("ABCDEFGHJKLMNPQRTUVWXY") for _ in range(letters))
    return f"{head}-{rng.randrange(10 ** (digits - 1), 10**digits)}" if letters else str(rng.randrange(10**digits))


def show_time(minutes: int) -> str:
    """Write a time of day, given in minutes, as `3:05 PM`."""
    hour, minute = divmod(minutes, 60)
    return f"{(hour - 1) % 12 + 1}:{minute:02} {'PM' if hour % 24 >= 12 else 'AM'}"


def show_money(cents: int) -> str:
    return f"${cents / 100:,.2f}"
