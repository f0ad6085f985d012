"""The sentences of the extraction task: what is said, in how many ways, in each split.

Invariant: no sentence is in both splits, and every text of a kind has the same placeholders. Knows
nothing of records.
"""

from __future__ import annotations

from branchline.examples.adapters.words import Texts

ORDER_TEXTS = Texts(
    train=(
        "{customer} would like {quantity} of the {product} at {price} each, delivered by {due}. "
        "{priority}",
        "Please send {quantity} pieces of the {product} to {customer}. The unit price is {price}. "
        "They should arrive on {due}. {priority}",
        "New order from {customer}: {quantity} x {product}, {price} per piece, due {due}. "
        "{priority}",
        "Hello, this is {customer}. I want to buy the {product}, {quantity} of them, for {price} "
        "each. I need them by {due}. {priority}",
        "{priority} The order is for the {product}. Price: {price} each. Amount: {quantity}. "
        "Customer: {customer}. Delivery date: {due}.",
        "By {due} we have to deliver {quantity} units of the {product} to {customer}, who pays "
        "{price} for each one. {priority}",
        "At {price} a piece, {customer} takes {quantity} of the {product}. {priority} Delivery is "
        "on {due}.",
        "Could you put the {product} on the list for {customer}? {quantity} units, {price} each, "
        "to be shipped before {due}. {priority}",
        "Note from the phone: {customer} called. {priority} Wants the {product}, {quantity} "
        "pieces, and agreed to {price} apiece. The date is {due}.",
        "{quantity} times the {product} for {customer}. {priority} We said {price} each and "
        "promised {due}.",
    ),
    held_out=(
        "Dear team, {customer} has just confirmed a purchase of {quantity} items, namely the "
        "{product}. Each costs {price}. The goods are expected on {due}. {priority}",
        "Reminder: the {product} goes out to {customer} no later than {due}. They ordered "
        "{quantity} and each is {price}. {priority}",
        "{priority} A request came in for the {product} ({quantity} in total, {price} for one); "
        "the buyer is {customer} and the deadline {due}.",
        "We sold the {product} to {customer} today: {quantity} at {price}. {priority} It has to be "
        "there by {due}.",
    ),
)
EVENT_TEXTS = Texts(
    train=(
        "Join us for a {kind} on {topic} in {city} on {date} at {hour}. There are {seats} seats. "
        "{free}",
        '{city} hosts the {kind} "{topic}" on {date}. Doors open at {hour}, and {seats} people '
        "can take part. {free}",
        "{topic}: a {kind} in {city}. Date: {date}. Start: {hour}. Places: {seats}. {free}",
        "On {date} at {hour} our {kind} about {topic} begins in {city}. {free} We have room for "
        "{seats} guests.",
        "{free} The {kind} called {topic} takes place in {city}, {date}, {hour}. The hall has "
        "{seats} seats.",
        "Save the date: {date}, {hour}, {city}. The {kind} is about {topic}, {seats} seats. {free}",
        "With {seats} seats, the {kind} {topic} is the largest in {city} this year. It is on "
        "{date} from {hour}. {free}",
        "Are you interested in {topic}? Then come to {city} on {date} at {hour} for a {kind} with "
        "{seats} places. {free}",
    ),
    held_out=(
        "Announcing {topic}, a {kind} that starts at {hour} on {date}. It is held in {city} and "
        "limited to {seats} visitors. {free}",
        "This {kind} brings {topic} to {city}. {free} Up to {seats} can attend, and it is "
        "scheduled for {date}, {hour}.",
        "{free} Up next in {city}: {topic}. The {kind} is planned for {date}; be there at {hour}, "
        "as only {seats} chairs are available.",
    ),
)
CONTACT_TEXTS = Texts(
    train=(
        "I met {name} from {company} on {met}. {role} The address is {email}, extension "
        "{extension}.",
        "{name} works at {company}. {role} You can write to {email} or call extension {extension}. "
        "We met on {met}.",
        "New contact: {name}, {company}. {role} E-mail {email}, phone extension {extension}, met "
        "{met}.",
        "On {met} I talked to {name}. {role} The company is {company}, the extension {extension} "
        "and the e-mail {email}.",
        "{role} I mean {name} of {company}, whom we met on {met}. Reach them at {email} or on "
        "extension {extension}.",
        "At the fair on {met} I got a card: {name}, {company}, {email}, extension {extension}. "
        "{role}",
        "For questions ask {name} ({email}, extension {extension}) at {company}. {role} First "
        "meeting: {met}.",
        "Dial {extension} for {name} at {company}. {role} We have known each other since {met}. "
        "Mail goes to {email}.",
    ),
    held_out=(
        "Please add {name} to the address book. {role} The firm is {company}, the mailbox {email} "
        "and the internal number {extension}. Our meeting took place on {met}.",
        "A card from {company} says {name}, {email}, ext. {extension}. {role} It was handed to me "
        "on {met}.",
        "It was {met} when {name} introduced {company} to us. {role} Use {email} or ring "
        "{extension}.",
    ),
)
CHOICES: dict[str, Texts] = {
    "low": Texts(
        train=(
            "There is no hurry.",
            "It can wait.",
            "Take your time.",
            "It is not urgent.",
            "Low priority.",
            "No rush at all.",
        ),
        held_out=("Do not rush.", "This is not pressing, it can wait a while."),
    ),
    "normal": Texts(
        train=(
            "Handle it as usual.",
            "Normal priority.",
            "Just the standard procedure.",
            "Nothing special about it.",
            "A regular order.",
            "Treat it like any other.",
        ),
        held_out=("The usual procedure applies.", "It is an ordinary, regular one."),
    ),
    "high": Texts(
        train=(
            "It is urgent.",
            "Please hurry.",
            "High priority.",
            "This is very important.",
            "We need it as soon as possible.",
            "It must not be late.",
        ),
        held_out=("Please be quick, it is really urgent.", "This one is top priority."),
    ),
    "free": Texts(
        train=(
            "Entry is free.",
            "Nobody pays anything.",
            "There is no charge.",
            "Admission is free of charge.",
            "It costs nothing.",
            "No ticket is needed.",
        ),
        held_out=("You can come for free.", "Visitors pay nothing."),
    ),
    "paid": Texts(
        train=(
            "Tickets are sold at the door.",
            "There is an entry fee.",
            "You have to buy a ticket.",
            "Guests pay for entry.",
            "Tickets are required.",
            "Admission is charged.",
        ),
        held_out=("A fee is charged for entry.", "Buy your ticket early."),
    ),
    "buyer": Texts(
        train=("Job: buyer.", "A buyer.", "The role is buyer.", "They buy for the company."),
        held_out=("Their position is that of a buyer.", "By profession a buyer."),
    ),
    "engineer": Texts(
        train=("Job: engineer.", "An engineer.", "The role is engineer.", "They build machines."),
        held_out=("Their position is that of an engineer.", "By profession an engineer."),
    ),
    "lawyer": Texts(
        train=("Job: lawyer.", "A lawyer.", "The role is lawyer.", "They deal with contracts."),
        held_out=("Their position is that of a lawyer.", "By profession a lawyer."),
    ),
    "manager": Texts(
        train=("Job: manager.", "A manager.", "The role is manager.", "They lead a team."),
        held_out=("Their position is that of a manager.", "By profession a manager."),
    ),
}
"""Wordings of each value of a closed set."""
ASIDES = Texts(
    train=(
        "The last one was number {number}.",
        "I have {number} other things to do today.",
        "See also page {number} of the handbook.",
        "The weather was fine.",
        "Thanks for the coffee last week.",
        "My colleague sends greetings.",
        "The file is in folder {number}.",
        "Ask me if anything is unclear.",
    ),
    held_out=(
        "This is message {number} on the matter.",
        "By the way, room {number} has been painted.",
        "I hope the holidays were pleasant.",
        "The other office knows about it.",
    ),
)
"""Sentences that say nothing of a record, with numbers that belong to nothing."""
