"""Numbers as people read them: few digits, thousands apart, a true minus, a dash for what is not there."""

import math

ABSENT = "–"


def significant(value: float | None, *, digits: int = 3) -> str:
    """To so many digits: 41,200, 4.13, 0.0582, 1.23e-07."""
    if value is None or not math.isfinite(value):
        return ABSENT
    if value == 0:
        return "0"
    rounded = float(f"{value:.{digits - 1}e}")
    magnitude = math.floor(math.log10(abs(rounded)))
    if magnitude < -4:
        return _minus(f"{value:.{digits}g}")
    return _minus(f"{rounded:,.{max(0, digits - 1 - magnitude)}f}")


def score(value: float | None) -> str:
    """A value of a metric: three decimals below ten, four digits above."""
    if value is None or not math.isfinite(value):
        return ABSENT
    return _minus(f"{value:.3f}") if abs(value) < 10 else significant(value, digits=4)


def mean_deviation(mean: float, deviation: float | None) -> str:
    """A mean with the deviation about it, to as many decimals: 0.691 ± 0.004, 12.18 ± 0.40."""
    shown = score(mean)
    decimals = len(shown.partition(".")[2])
    return shown if deviation is None else f"{shown} ± {deviation:,.{decimals}f}"


def signed(value: float) -> str:
    """A difference of scores: +0.012, −0.004."""
    shown = score(value)
    return shown if shown.startswith("−") else f"+{shown}"


def count(value: int | None) -> str:
    return ABSENT if value is None else _minus(f"{value:,}")


def times(ratio: float) -> str:
    """A ratio: 1.4×, 0.62×, 12×."""
    return f"{significant(ratio, digits=2)}×"


def percent(fraction: float) -> str:
    """A difference in parts of a hundred: +12 %, −3 %, +0.4 %."""
    value = 100 * fraction
    shown = f"{value:,.0f}" if abs(value) >= 9.95 else f"{value:,.1f}"
    if float(shown.replace(",", "")) == 0:
        return "0 %"
    return f"{_minus(shown)} %" if value < 0 else f"+{shown} %"


def duration(seconds: float) -> str:
    """0.4 s, 12 s, 3 min 20 s, 2 h 5 min."""
    if seconds < 10:
        return f"{significant(seconds, digits=2)} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def plural(number: int, one: str, many: str | None = None) -> str:
    """1 run, 3 runs."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def listed(words: list[str], *, last: str = "and") -> str:
    """a; a and b; a, b and c."""
    if len(words) < 2:
        return "".join(words)
    return f"{', '.join(words[:-1])} {last} {words[-1]}"


def few(words: list[str], *, most: int = 3, by: str = ", ") -> str:
    """As `listed`, but of many the first and how many more: a, b and 9 others."""
    if len(words) > most + 1:
        words = [*words[:most], f"{len(words) - most} others"]
    return f"{by.join(words[:-1])}{' and ' if by == ', ' else by}{words[-1]}" if len(words) > 1 else words[0]


def _minus(text: str) -> str:
    return text.replace("-", "−", 1) if text.startswith("-") else text
