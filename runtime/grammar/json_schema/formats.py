r"""Formats of strings as patterns. Invariant: every text of a pattern here has the format.

Names that are not here are annotations, as JSON Schema has it. Sources: RFC 3339 (dates, times,
durations), RFC 5321 (e-mail), RFC 1123 (host names), RFC 4291 (IPv6), RFC 3986 and 3987 (URI,
IRI), RFC 6570 (templates), RFC 6901 (pointers), RFC 9562 (UUID), ECMA-262 (regex).
"""

from __future__ import annotations

_LEAP = "(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:0[48]|[2468][048]|[13579][26])00)"
_YEAR = "(?:[1-9][0-9]{3}|0[1-9][0-9]{2}|00[1-9][0-9]|000[1-9])"
_DATE = (
    f"(?:{_YEAR}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])"
    "|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)"
    f"|02-(?:0[1-9]|1[0-9]|2[0-8]))|{_LEAP}-02-29)"
)
_OFFSET = "(?:[Zz]|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
_TIME = (
    "(?:(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\\.[0-9]+)?"
    f"{_OFFSET}|23:59:60(?:\\.[0-9]+)?(?:[Zz]|[+-]00:00))"
)
_CLOCK = "T(?:[0-9]+H(?:[0-9]+M(?:[0-9]+S)?)?|[0-9]+M(?:[0-9]+S)?|[0-9]+S)"
_DAYS = "(?:[0-9]+Y(?:[0-9]+M(?:[0-9]+D)?)?|[0-9]+M(?:[0-9]+D)?|[0-9]+D)"
_OCTET = "(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_IPV4 = f"{_OCTET}(?:\\.{_OCTET}){{3}}"
_H16 = "[0-9A-Fa-f]{1,4}"
_LS32 = f"(?:{_H16}:{_H16}|{_IPV4})"
_IPV6 = (
    "(?:"
    + "|".join(
        [f"(?:{_H16}:){{6}}{_LS32}", f"::(?:{_H16}:){{5}}{_LS32}"]
        + [
            f"(?:{_H16}(?::{_H16}){{0,{left}}})?::(?:{_H16}:){{{4 - left}}}{_LS32}"
            for left in range(5)
        ]
        + [f"(?:{_H16}(?::{_H16}){{0,5}})?::{_H16}", f"(?:{_H16}(?::{_H16}){{0,6}})?::"]
    )
    + ")"
)
_LABEL = "[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_HOST = f"{_LABEL}(?:\\.{_LABEL})*"
_ATOM = "[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+"
_QUOTED = '"(?:[ !#-\\[\\]-~]|\\\\[ -~])*"'
_LITERAL = f"\\[(?:{_IPV4}|IPv6:{_IPV6})\\]"
_UCS = "\\u00a0-\\ud7ff\\uf900-\\ufdcf\\ufdf0-\\uffef"
_PLANES = "|".join(f"[\\u{{{p:x}0000}}-\\u{{{p:x}fffd}}]" for p in range(1, 15))


def _reference(*, letters: str, extra: str, absolute: bool) -> str:
    """RFC 3986 (with `letters` and `extra` of RFC 3987)."""

    def chars(more: str) -> str:
        return f"(?:[A-Za-z0-9._~!$&'()*+,;={more}{letters}-]{extra}|%[0-9A-Fa-f]{{2}})"

    plain, path, query = chars(":@"), chars(":@/"), chars(":@/?")
    address = f"\\[(?:{_IPV6}|v[0-9A-Fa-f]+\\.[A-Za-z0-9._~!$&'()*+,;=:-]+)\\]"
    authority = f"(?:{chars(':')}*@)?(?:{address}|{chars('')}*)(?::[0-9]*)?"
    scheme = "[A-Za-z][A-Za-z0-9+.-]*:"
    net = f"//{authority}(?:/{path}*)?"
    rest = f"(?:\\?{query}*)?(?:#{query}*)?"
    whole = f"{scheme}(?:{net}|/(?:{plain}{path}*)?|{plain}{path}*|){rest}"
    if absolute:
        return whole
    first = f"{chars('@')}+(?:/{path}*)?"
    return f"(?:{whole}|(?:{net}|/(?:{plain}{path}*)?|{first}|){rest})"


def _template() -> str:
    name = "(?:[A-Za-z0-9_]|%[0-9A-Fa-f]{2})+"
    variable = f"{name}(?:\\.{name})*(?::[1-9][0-9]{{0,3}}|\\*)?"
    expression = f"\\{{[+#./;?&=,!@|]?{variable}(?:,{variable})*\\}}"
    text = f"[!#$&(-;=?-\\[\\]_a-z~{_UCS}]"
    return f"(?:{text}|{_PLANES}|%[0-9A-Fa-f]{{2}}|{expression})*"


def _regex(depth: int) -> str:
    """ECMA-262 patterns with groups within groups down to `depth`."""
    escape = (
        "\\\\(?:[dDwWsSbBtnvfr0^$\\\\.*+?()\\[\\]{}|/-]|x[0-9A-Fa-f]{2}|u[0-9A-Fa-f]{4}|c[A-Za-z])"
    )
    in_class = "\\\\(?:[dDwWsSbtnvfr0^$\\\\.*+?()\\[\\]{}|/-]|x[0-9A-Fa-f]{2}|u[0-9A-Fa-f]{4})"
    span = "(?:0-9|[0-8]-9|a-z|A-Z|a-f|A-F)"
    group = f"\\[\\^?(?:{span}|[^\\\\\\]\\[-]|{in_class})(?:{span}|[^\\\\\\]\\[-]|{in_class})*-?\\]"
    inside = ""
    for level in range(depth + 1):
        atom = f"(?:[^\\\\\\[\\](){{}}*+?|^$]|{escape}|{group}"
        if level:
            atom += f"|\\((?:\\?[:=!])?{inside}\\)"
        times = "(?:[*+?]|\\{[0-9]{1,2}(?:,)?\\}|\\{0,[1-9][0-9]{0,2}\\}|\\{1,[1-9][0-9]{0,2}\\})"
        term = f"(?:{atom})(?:{times}\\??)?|[\\^$])"
        inside = f"{term}*(?:\\|{term}*)*"
    return inside


FORMATS: dict[str, str] = {
    "date": _DATE,
    "time": _TIME,
    "date-time": f"{_DATE}[Tt]{_TIME}",
    "duration": f"P(?:[0-9]+W|{_DAYS}(?:{_CLOCK})?|{_CLOCK})",
    "email": f"(?:{_ATOM}(?:\\.{_ATOM})*|{_QUOTED})@(?:{_HOST}|{_LITERAL})",
    "hostname": f"(?=.{{1,253}}$){_HOST}",
    "ipv4": _IPV4,
    "ip-address": _IPV4,
    "ipv6": _IPV6,
    "uuid": "[0-9A-Fa-f]{8}-(?:[0-9A-Fa-f]{4}-){3}[0-9A-Fa-f]{12}",
    "uri": _reference(letters="", extra="", absolute=True),
    "uri-reference": _reference(letters="", extra="", absolute=False),
    "iri": _reference(letters=_UCS, extra=f"|{_PLANES}", absolute=True),
    "iri-reference": _reference(letters=_UCS, extra=f"|{_PLANES}", absolute=False),
    "uri-template": _template(),
    "json-pointer": "(?:/(?:[^~/]|~[01])*)*",
    "relative-json-pointer": "(?:0|[1-9][0-9]*)(?:#|(?:/(?:[^~/]|~[01])*)*)",
    "regex": _regex(3),
}
"""Patterns of whole texts (they need anchors around them)."""

REFUSED_FORMATS: dict[str, str] = {
    "idn-hostname": "depends on Unicode tables of IDNA 2008",
    "idn-email": "depends on Unicode tables of IDNA 2008",
}
"""Formats that assert something no grammar here expresses, and why."""
