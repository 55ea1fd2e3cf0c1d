"""The formats of JSON schema as patterns. Each takes a part of what its standard does."""
_YEAR = r"(\d{3}[1-9]|\d{2}[1-9]\d|\d[1-9]\d{2}|[1-9]\d{3})"
_LEAP = r"(\d\d(0[48]|[2468][048]|[13579][26])|(0[48]|[2468][048]|[13579][26])00)"
_DAY = (r"(" + _YEAR + r"-((0[13578]|1[02])-(0[1-9]|[12]\d|3[01])|(0[469]|11)-(0[1-9]|[12]\d|30)|"
        r"02-(0[1-9]|1\d|2[0-8]))|" + _LEAP + r"-02-29)")
_TIME = r"([01]\d|2[0-3]):[0-5]\d:[0-5]\d(\.\d{1,9})?(Z|[+-]([01]\d|2[0-3]):[0-5]\d)"
_BYTE = r"(25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)"
_NAME = r"[A-Za-z0-9]{1,16}(-[A-Za-z0-9]{1,16}){0,2}"  # of a host; hyphens are single
_HOST = _NAME + r"(\." + _NAME + r"){0,3}"
_HEX = "[0-9A-Fa-f]{1,4}"
_IPV6 = "|".join([f"{_HEX}(:{_HEX}){{7}}", f"::({_HEX}(:{_HEX}){{0,6}})?", *[
    f"{_HEX}(:{_HEX}){{{count - 1}}}::({_HEX}(:{_HEX}){{0,{6 - count}}})?" for count in range(1, 7)]])
_CHAR = r"([A-Za-z0-9._~!$&'()*+,;=:@-]|%[0-9A-Fa-f]{2})"
_TAIL = rf"(\?({_CHAR}|[/?])*)?(#({_CHAR}|[/?])*)?"
_AUTHORITY = rf"//([A-Za-z0-9._~-]+(:[A-Za-z0-9._~-]*)?@)?({_HOST}|\[({_IPV6})\])(:\d{{1,4}})?"
_URI = rf"[A-Za-z][A-Za-z0-9+.-]*:({_AUTHORITY}(/{_CHAR}*)*|/({_CHAR}+(/{_CHAR}*)*)?|{_CHAR}+(/{_CHAR}*)*){_TAIL}"
_RELATIVE = rf"({_AUTHORITY}(/{_CHAR}*)*|/({_CHAR}+(/{_CHAR}*)*)?|([A-Za-z0-9._~-]+(/{_CHAR}*)*)?){_TAIL}"
_DATES = r"(\d{1,9}Y(\d{1,9}M(\d{1,9}D)?)?|\d{1,9}M(\d{1,9}D)?|\d{1,9}D)"
_TIMES = r"T(\d{1,9}H(\d{1,9}M(\d{1,9}S)?)?|\d{1,9}M(\d{1,9}S)?|\d{1,9}S)"
_POINTER = "(/([^/~]|~[01])*)*"
FORMATS = {
    "date": f"^{_DAY}$", "time": f"^{_TIME}$", "date-time": f"^{_DAY}T{_TIME}$",
    "duration": rf"^P({_DATES}({_TIMES})?|{_TIMES}|\d{{1,9}}W)$",
    "uuid": "^[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}$",
    "ipv4": rf"^{_BYTE}\.{_BYTE}\.{_BYTE}\.{_BYTE}$", "ipv6": f"^({_IPV6})$", "hostname": f"^{_HOST}$",
    "email": r"^[A-Za-z0-9_+-]+(\.[A-Za-z0-9_+-]+){0,4}@([A-Za-z0-9]+(-[A-Za-z0-9]+){0,4}\.){1,4}[A-Za-z]+$",
    "uri": f"^{_URI}$", "uri-reference": f"^({_URI}|{_RELATIVE})$",
    "json-pointer": f"^{_POINTER}$", "relative-json-pointer": rf"^(0|[1-9]\d{{0,8}})(#|{_POINTER})$",
}
FORMATS.update({"idn-email": FORMATS["email"], "idn-hostname": FORMATS["hostname"], "iri": FORMATS["uri"],
                "iri-reference": FORMATS["uri-reference"], "uri-template": FORMATS["uri-reference"]})
OTHER_FORMATS = {"regex"}  # of JSON schema too: texts that are of it are refused
