"""Numbers and sentences as people read them, for the page and for the terminal."""

from __future__ import annotations

import math
from html import escape
from typing import TYPE_CHECKING, Any

from ..registry import Registry

if TYPE_CHECKING:
    from ..population import Population

_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def number(value: float, digits: int = 3) -> str:
    """A number with so many significant digits, a true minus sign, and – for what is not finite or not there."""
    value = float(value)
    if math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if value == round(value) and abs(value) < 1e6:
        return f"{value + 0.0:.0f}".replace("-", "−")
    if not 1e-4 <= abs(value) < 1e6:
        mantissa, _, power = f"{value:.{digits - 1}e}".partition("e")
        return f"{mantissa}·10{str(int(power)).translate(_RAISED)}".replace("-", "−")
    return f"{value:.{max(0, digits - 1 - math.floor(math.log10(abs(value))))}f}".replace("-", "−")


def places(values: list[float]) -> int:
    """The decimals at which numbers of this spread are told apart at a glance."""
    finite = [v for v in values if math.isfinite(v)]
    if all(v == round(v) for v in finite):
        return 0
    spread = (max(finite) - min(finite)) or max(map(abs, finite)) if finite else 0.0
    return min(6, max(0, 3 - math.floor(math.log10(spread)))) if spread > 0 else 2


def fixed(value: float, decimals: int) -> str:
    """A number with so many decimals, to be compared with its neighbours; no sign in front of zero."""
    if not math.isfinite(value) or abs(value) >= 1e6:
        return number(value)
    text = f"{value:.{decimals}f}"
    return text.lstrip("-") if not float(text) else text.replace("-", "−")


def setting(value: float) -> str:
    """A number that somebody chose: as it was written."""
    return f"{value:.4g}".replace("-", "−")


def count(value: float) -> str:
    """A whole number, in threes: 12 800."""
    return f"{int(value):,}".replace(",", "\u202f")


def percent(share: float) -> str:
    """A share of one: 12 %, 3.1 %, < 0.1 %."""
    if math.isnan(share):
        return "–"
    hundred = 100 * share
    return "0 %" if share == 0 else "< 0.1 %" if hundred < 0.1 else f"{hundred:.1f} %" if hundred < 9.95 else f"{hundred:.0f} %"


def duration(seconds: float) -> str:
    """Seconds in the unit that fits: 340 ms, 12.1 s, 4 min 10 s."""
    if seconds < 1:
        if 0 < seconds < 0.0005:
            return "< 1 ms"
        return f"{1000 * seconds:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def size(number: float) -> str:
    """Bytes in the unit that fits: 812 KiB, 3.4 GiB."""
    units = ("B", "KiB", "MiB", "GiB", "TiB")
    power = 0
    while number >= 1000 and power < len(units) - 1:
        number, power = number / 1024, power + 1
    return f"{number:.1f} {units[power]}" if power and number < 99.5 else f"{number:.0f} {units[power]}"


def plural(n: float, noun: str) -> str:
    """1 particle, 64 particles."""
    return f"{count(n)} {noun}{'' if n == 1 else 's'}"


def listed(words: list[str]) -> str:
    """a, b and c"""
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]


# -- what was run ---------------------------------------------------------------------------------------------------------------------


def model_name(config: dict[str, Any]) -> str:
    """The name that a model goes by: its own if it tells one, else what the record says."""
    model = config.get("model") or {}
    told = model.get("config", {}).get("name")
    return str(told if isinstance(told, str) else model.get("name", "a model"))


def method_name(config: dict[str, Any]) -> str:
    return str((config.get("method") or {}).get("name", "a method"))


def title(population: Population) -> str:
    """What was done, in a few words."""
    config = population.config
    if method_name(config) == "base":
        return f"{model_name(config)}, not steered"
    return f"{model_name(config)}, steered toward {config.get('reward', 'a reward')}"


def sentence(population: Population) -> str:
    """What was done, in one sentence: method, λ, K × G, T."""
    config, (g, k) = population.config, population.shape
    ran = int(config.get("particles", k))
    who = plural(ran, "particle") if g == 1 else f"{plural(g, 'group')} of {plural(ran, 'particle')}"
    if g > 1 and len(set(population.prompts)) == g:
        who = f"{plural(ran, 'particle')} for each of {plural(g, 'prompt')}"
    steps, lam = config.get("steps"), config.get("lam")
    doing = f"drawn by {method_name(config)}" + (f" in {plural(steps, 'step')}" if steps else "")
    wish = (config.get("lam_pilot") or {}).get("wish")
    strength = "" if lam is None else f" at λ\u00a0=\u00a0{setting(float(lam))}" + (f", solved for {wish}" if wish else "")
    scored = f", scored by {config.get('reward', 'a reward')}" if method_name(config) == "base" else ""
    kept = "" if ran == k else f"; {count(k)} returned" + (" per group" if g > 1 else "")
    return f"{who} {doing}{strength}{scored}{kept}."


def table(head: list[str], rows: list[list[str]]) -> str:
    """A table whose first column is words and whose others are numbers."""
    top = "".join(f"<th>{escape(h)}</th>" for h in head)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


# -- running it again -----------------------------------------------------------------------------------------------------------------


def obstacle(config: dict[str, Any]) -> str | None:
    """Why a run cannot be repeated from its record alone, or None. Names can be looked up again; objects of the user's own cannot."""
    from ..models import models
    from ..rewards import rewards

    def named(name: str, registry: Registry) -> bool:
        return name.partition(":")[0] in registry

    model, reward = model_name(config), str(config.get("reward", ""))
    objects = config.get("own") or []
    own = []
    if "model" in objects or not (named(model, models) or "/" in model):
        own.append(f"its model ({model})")
    if "reward" in objects or not named(reward, rewards):
        own.append(f"its reward ({reward or 'unknown'})")
    settings = config.get("method") or {}
    pushes = [settings.get(name) for name in ("guide", "twist")]
    # A name or a file can be looked up again, and so can a family of twists without parameters.
    lost = [isinstance(p, dict) and "file" not in p and ("theta" in p or "tensor " in str(p) or p.get("name") == "Own") for p in pushes]
    if any(lost) or isinstance(pushes[0], str):
        own.append("its guidance")
    if not own:
        return None
    was = "was an object, not a name" if len(own) == 1 else "were objects, not names"
    return f"this run cannot be repeated from its record alone: {listed(own)} {was}. Repeat it from Python."


def repeat_line(config: dict[str, Any]) -> str | None:
    """The command that repeats a run whose record is in run.json, or None where none can."""
    return None if obstacle(config) else "viot sample --config run.json --out again"
