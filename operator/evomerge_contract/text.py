"""Numbers as people read them: aligned, with a real minus sign, no more digits than they deserve."""

from evomerge_contract.report import Interval

MINUS = "\N{MINUS SIGN}"
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def decimals_of(size: float) -> int:
    """Digits after the point for a score of this size: three for accuracies, fewer for large perplexities."""
    return 3 if size < 10 else 2 if size < 100 else 1


def score(value: float, digits: int | None = None) -> str:
    """A score, such as 0.638 or −12.31."""
    if abs(value) >= 1e6:
        return f"{value:.3g}".replace("-", MINUS)
    text = f"{value:.{decimals_of(abs(value)) if digits is None else digits}f}"
    return MINUS + text[1:] if text.startswith("-") and float(text) != 0 else text.removeprefix("-")


def signed(value: float) -> str:
    """A difference, such as +0.528 or −0.012."""
    text = score(value)
    return text if text.startswith(MINUS) or not float(text) else f"+{text}"


def interval(value: Interval, *, sign: bool = False) -> str:
    """An interval, such as [0.596, 0.680] or, with signs, [+0.484, +0.572]."""
    form = signed if sign else score
    return f"[{form(value.low)}, {form(value.high)}]"


def seconds(value: float) -> str:
    """A duration in the unit that suits it: 4.1 ms, 0.21 s, 3 min 12 s, 2 h 5 min."""
    if value < 0.1:
        return f"{value * 1000:.1f} ms"
    if value < 10:
        return f"{value:.2f} s"
    if value < 60:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def seconds_of(duration: str) -> int:
    """The seconds of a manifest's time span: "90s", "30m", "72h", "7d"."""
    return int(duration[:-1]) * _UNITS[duration[-1]]


def size(value: int) -> str:
    """Bytes in decimal units: 2.6 MB."""
    amount = float(value)
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 1000:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.3g} {unit}"
        amount /= 1000
    return f"{amount:,.1f} TB"


def count(value: int, noun: str = "") -> str:
    """A number of things: 13,000 candidates, 1 candidate."""
    return f"{value:,} {noun}{'' if value == 1 else 's'}" if noun else f"{value:,}"


def listing(names: list[str]) -> str:
    """Names in a sentence: a, b and c."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
