"""JSON Schema as a grammar that llguidance enforces exactly, or a refusal by name.

document    subschemas, references, drafts
languages   regular languages; patterns, formats and spelling make and write them
numbers     sets of numbers
sets        sets of values of one type; scalars, containers, applicators: what each keyword means
expander    schemas as unions of sets
shapes      objects and arrays laid out; clauses: which names are present
printer     rules; objects, arrays, lark
compiler    the whole way
"""
