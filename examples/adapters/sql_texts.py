"""How questions about a database are asked: one list of sentences for each form of query.

Invariant: no sentence is in both splits, and every sentence of a form has the same placeholders.
Knows nothing of SQL.
"""

from __future__ import annotations

from branchline.examples.adapters.words import Texts

COMPARISONS: dict[str, Texts] = {
    ">": Texts(
        train=("more than {n}", "over {n}", "above {n}"),
        held_out=("greater than {n}", "higher than {n}"),
    ),
    "<": Texts(
        train=("less than {n}", "under {n}", "below {n}"),
        held_out=("lower than {n}", "smaller than {n}"),
    ),
    ">=": Texts(train=("at least {n}", "{n} or more"), held_out=("no less than {n}",)),
    "<=": Texts(train=("at most {n}", "{n} or less"), held_out=("no more than {n}",)),
}
"""Wordings of each operator."""
AGGREGATES: dict[str, Texts] = {
    "AVG": Texts(train=("average",), held_out=("mean",)),
    "MAX": Texts(train=("highest", "largest"), held_out=("maximum",)),
    "MIN": Texts(train=("lowest", "smallest"), held_out=("minimum",)),
    "SUM": Texts(train=("total",), held_out=("combined",)),
}
"""Wordings of each function."""
DIRECTIONS: dict[str, Texts] = {
    "DESC": Texts(
        train=("from high to low", "in descending order", "largest first"),
        held_out=("from the highest to the lowest", "starting with the largest"),
    ),
    "ASC": Texts(
        train=("from low to high", "in ascending order", "smallest first"),
        held_out=("from the lowest to the highest", "starting with the smallest"),
    ),
}
"""Wordings of each order."""
EXTREMES: dict[str, Texts] = {
    "DESC": Texts(train=("highest", "largest"), held_out=("greatest",)),
    "ASC": Texts(train=("lowest", "smallest"), held_out=("least",)),
}
"""Wordings of the end of an order."""
QUESTIONS: dict[str, Texts] = {
    "measure": Texts(
        train=(
            "Which {plural} have a {measure} of {comparison}?",
            "List the {plural} with {comparison} {measure}.",
            "Show all {plural} whose {measure} is {comparison}.",
            "Name every {table} with a {measure} of {comparison}.",
        ),
        held_out=(
            "I am looking for {plural} with a {measure} {comparison}.",
            "Give me the {label} of each {table} where the {measure} is {comparison}.",
        ),
    ),
    "category": Texts(
        train=(
            "Which {plural} have the {category} {value}?",
            "List the {plural} whose {category} is {value}.",
            "Show all {plural} with {category} {value}.",
            "Name every {table} that has {value} as its {category}.",
        ),
        held_out=(
            "I am looking for {plural} where the {category} equals {value}.",
            "Give me the {label} of each {table} with {value} for {category}.",
        ),
    ),
    "both": Texts(
        train=(
            "Which {plural} have the {category} {value} and a {measure} of {comparison}?",
            "List the {plural} whose {category} is {value} and whose {measure} is {comparison}.",
            "Show all {plural} with {category} {value} and {comparison} {measure}.",
        ),
        held_out=(
            "I am looking for {plural} where the {category} equals {value} and the {measure} is "
            "{comparison}.",
            "Give me each {table} with {value} for {category} and a {measure} {comparison}.",
        ),
    ),
    "between": Texts(
        train=(
            "Which {plural} have a {measure} between {low} and {high}?",
            "List the {plural} whose {measure} is from {low} to {high}.",
            "Show all {plural} with {low} to {high} {measure}.",
        ),
        held_out=(
            "I am looking for {plural} with a {measure} that lies between {low} and {high}.",
            "Give me each {table} whose {measure} is in the range {low} to {high}.",
        ),
    ),
    "count": Texts(
        train=(
            "How many {plural} have a {measure} of {comparison}?",
            "Count the {plural} whose {measure} is {comparison}.",
            "What is the number of {plural} with {comparison} {measure}?",
        ),
        held_out=(
            "Tell me how many {plural} there are with a {measure} {comparison}.",
            "I need the count of {plural} where the {measure} is {comparison}.",
        ),
    ),
    "count_category": Texts(
        train=(
            "How many {plural} have the {category} {value}?",
            "Count the {plural} whose {category} is {value}.",
            "What is the number of {plural} with {category} {value}?",
        ),
        held_out=(
            "Tell me how many {plural} there are with {value} for {category}.",
            "I need the count of {plural} where the {category} equals {value}.",
        ),
    ),
    "aggregate": Texts(
        train=(
            "What is the {aggregate} {measure} of all {plural}?",
            "Find the {aggregate} {measure} of the {plural}.",
            "Compute the {aggregate} {measure} over every {table}.",
        ),
        held_out=(
            "I need the {aggregate} {measure} across {plural}.",
            "Tell me the {aggregate} {measure} among all the {plural}.",
        ),
    ),
    "aggregate_category": Texts(
        train=(
            "What is the {aggregate} {measure} of {plural} whose {category} is {value}?",
            "Find the {aggregate} {measure} of the {plural} with {category} {value}.",
            "For {plural} with the {category} {value}, compute the {aggregate} {measure}.",
        ),
        held_out=(
            "I need the {aggregate} {measure} across {plural} with {value} for {category}.",
            "Tell me the {aggregate} {measure} among {plural} where the {category} equals {value}.",
        ),
    ),
    "top": Texts(
        train=(
            "Which {n} {plural} have the {extreme} {measure}?",
            "List the {n} {plural} with the {extreme} {measure}.",
            "Show the {n} {plural} of {extreme} {measure}.",
        ),
        held_out=(
            "I am looking for the {n} {plural} that have the {extreme} {measure}.",
            "Give me {n} {plural}, those with the {extreme} {measure}.",
        ),
    ),
    "group_count": Texts(
        train=(
            "How many {plural} are there for each {category}?",
            "Count the {plural} of each {category}.",
            "Show every {category} and its number of {plural}.",
        ),
        held_out=(
            "For each {category}, tell me how many {plural} there are.",
            "I need the number of {plural} by {category}.",
        ),
    ),
    "group_aggregate": Texts(
        train=(
            "What is the {aggregate} {measure} of {plural} for each {category}?",
            "Show every {category} and the {aggregate} {measure} of its {plural}.",
            "Find the {aggregate} {measure} of the {plural} of each {category}.",
        ),
        held_out=(
            "For each {category}, tell me the {aggregate} {measure} of the {plural}.",
            "I need the {aggregate} {measure} of {plural} by {category}.",
        ),
    ),
    "sorted": Texts(
        train=(
            "Show the {label} and {measure} of all {plural}, sorted by {measure} {direction}.",
            "List {label} and {measure} of every {table}, ordered by {measure} {direction}.",
            "Sort the {plural} by {measure} {direction} and show {label} and {measure}.",
        ),
        held_out=(
            "I need each {table} with {label} and {measure}, arranged by {measure} {direction}.",
            "Give me {label} and {measure} of the {plural}, {direction} by {measure}.",
        ),
    ),
    "distinct": Texts(
        train=(
            "Which different values of {category} do the {plural} have?",
            "List every {category} of the {plural} once.",
            "Show the distinct {category} of the {plural}.",
        ),
        held_out=(
            "I need all unique values of {category} among the {plural}.",
            "Give me each {category} that occurs in the {plural}, without repeats.",
        ),
    ),
    "lookup": Texts(
        train=(
            "What is the {measure} of {name}?",
            "Find the {measure} of the {table} {name}.",
            "Show the {measure} for {name}.",
        ),
        held_out=(
            "Tell me the {measure} that belongs to {name}.",
            "I need to know the {measure} of {name}.",
        ),
    ),
    "join_category": Texts(
        train=(
            "Which {plural} belong to a {parent} whose {category} is {value}?",
            "List the {plural} of every {parent} with {category} {value}.",
            "Show all {plural} that have a {parent} with the {category} {value}.",
        ),
        held_out=(
            "I am looking for {plural} that go with a {parent} where the {category} equals "
            "{value}.",
            "Give me the {plural} connected to any {parent} with {value} for {category}.",
        ),
    ),
    "join_count": Texts(
        train=(
            "How many {plural} does each {parent} have?",
            "Show the {label} of every {parent} and its number of {plural}.",
            "Count the {plural} of each {parent}.",
        ),
        held_out=(
            "For each {parent}, tell me how many {plural} it has.",
            "I need the {label} of each {parent} with the number of {plural} that belong to it.",
        ),
    ),
}
"""Sentences of each form."""
