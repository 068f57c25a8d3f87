"""Equations as docstrings have them, as MathML, which browsers typeset by themselves.

    o_i = (q'_i . sum_j k'_j v_j^T) / (q'_i . sum_j k'_j + eps)

`/` divides the product before it by the factor behind it, `*` is elementwise, factors
beside each other are a product, three spaces part equations, a name of several letters
is upright. What cannot be read raises `EquationError`.
"""

import html
import itertools
import re
from collections.abc import Callable
from typing import NamedTuple

GREEK = dict(
    alpha="α", beta="β", gamma="γ", delta="δ", eps="ε", epsilon="ε", eta="η", kappa="κ",
    lam="λ", mu="μ", nu="ν", phi="φ", Phi="Φ", pi="π", psi="ψ", Psi="Ψ", rho="ρ",
    sigma="σ", theta="θ",
)  # fmt: skip
RELATIONS = {"<-": "←", "->": "→", "<=": "≤", ">=": "≥", "=": "=", "<": "&lt;"}
RELATIONS |= {">": "&gt;", ":": ":", ",": ",", ";": ";", "...": "…", "|": "|"}
_TOKEN = re.compile(
    r"(?P<space>\s+)|(?P<number>\d+(?:\.\d+)?(?:e-?\d+)?)|(?P<word>`[^`]+`|[A-Za-z]"
    r"[A-Za-z0-9]*(?:'+|~)?(?:_(?:\{[^}]*\}|[A-Za-z0-9]+))*)|(?P<sign>\.\.\.|<-|->|<=|>=|\*\*|.)",
)
_NAME = re.compile(r"([A-Za-z][A-Za-z0-9]*?)(\d*(?:x\d+)?)('+|~)?(?:_(.+))?$")


class EquationError(ValueError):
    """Text that is no equation of this notation."""


class Token(NamedTuple):
    """A piece of text: `kind` is number, word or sign.

    Attributes:
      before, after: whether space stands there.
    """

    kind: str
    text: str
    before: bool
    after: bool


def block(text: str, times: str = "⊙") -> str:
    """MathML of the lines of a displayed equation; `times` is the sign of `*`."""
    rows = []
    for line in _joined(text):
        match = re.match(r"([a-z][a-z0-9_]+|)\s{2,}(.+)", line)
        label, rest = match.groups() if match else ("", line)
        cells = [inline(c, times, False) for c in re.split(r"\s{3,}", rest.strip())]
        rows.append((label, '<mspace width="2em"/>'.join(cells)))
    columns = [[f'<mtext class="label">{n}</mtext>' for n, _ in rows]]
    columns = columns * any(n for n, _ in rows) + [[row for _, row in rows]]
    lines = (
        "".join(f"<mtd>{cell}</mtd>" for cell in line)
        for line in zip(*columns, strict=True)
    )
    inside = "".join(f"<mtr>{line}</mtr>" for line in lines)
    table = f'<mtable displaystyle="true">{inside}</mtable>'
    return f'<div class="equation"><math display="block">{table}</math></div>'


def inline(text: str, times: str = "⊙", whole: bool = True) -> str:
    """MathML of one equation, `whole` or to be put into another."""
    parser = _Parser(_tokens(text), times)
    row = parser.row(lambda token: False)
    return f"<math>{row}</math>" if whole else f"<mrow>{row}</mrow>"


def fence(source, language, css_class, options, md, **kwargs) -> str:
    """```equation of a page, for pymdownx.superfences."""
    return block(source)


def _joined(text: str) -> list[str]:
    """Lines, those whose brackets are open with the next."""
    lines: list[str] = []
    for line in filter(str.strip, text.splitlines()):
        if lines and sum(map(lines[-1].count, "([{")) > sum(
            map(lines[-1].count, ")]}")
        ):
            lines[-1] += f" {line.strip()}"
        else:
            lines.append(line)
    return lines


def _tokens(text: str) -> list[Token]:
    matches = [m for m in _TOKEN.finditer(text) if m.lastgroup is not None]
    found, spaced = [], True
    for i, match in enumerate(matches):
        if match.lastgroup == "space":
            spaced = True
            continue
        after = i + 1 == len(matches) or matches[i + 1].lastgroup == "space"
        found.append(Token(match.lastgroup, match[0], spaced, after))
        spaced = False
    return found


class _Parser:
    """Reads tokens from left to right; every method gives MathML."""

    def __init__(self, tokens: list[Token], times: str):
        self.tokens, self.times, self.at = tokens, times, 0

    def peek(self, ahead: int = 0) -> Token | None:
        at = self.at + ahead
        return self.tokens[at] if at < len(self.tokens) else None

    def take(self, *texts: str) -> Token:
        token = self.peek()
        if token is None or (texts and token.text not in texts):
            expected = " or ".join(texts) or "more"
            got = "the end" if token is None else repr(token.text)
            raise EquationError(f"expected {expected}, got {got}")
        self.at += 1
        return token

    def row(self, ends: Callable[[Token], bool]) -> str:
        """Sums with relations, commas and bars between them."""
        parts = []
        while (token := self.peek()) is not None and not ends(token):
            if token.text in RELATIONS and not self.opens(token):
                self.take()
                sign = RELATIONS[token.text]
                parts.append(_mo(sign))
                if token.text in (",", ";"):
                    parts.append('<mspace width="0.4em"/>')
            elif token.text == "." and token.after:  # of a sentence
                self.take()
            else:
                parts.append(self.sum(ends))
        return "".join(parts)

    def opens(self, token: Token) -> bool:
        """Whether a bar is the first of two around an absolute value."""
        return token.text == "|" and not token.after

    def sum(self, ends: Callable[[Token], bool]) -> str:
        parts = []
        if (token := self.peek()) is not None and token.text in "+-":
            parts.append(_mo("−" if self.take().text == "-" else "+"))
        parts.append(self.term(ends))
        while (token := self.peek()) is not None and token.text in ("+", "-"):
            parts.append(_mo("−" if self.take().text == "-" else "+"))
            parts.append(self.term(ends))
        return "".join(parts)

    def term(self, ends: Callable[[Token], bool]) -> str:
        """Products and quotients; a quotient takes in the product before it."""
        done, product = "", [self.factor()]
        while (token := self.peek()) is not None and not ends(token):
            if token.text == "/":
                self.take()
                below = self.factor(bare=True)
                above = _bare(product[0]) if len(product) == 1 else _joined_by(product)
                product = [f"<mfrac><mrow>{above}</mrow><mrow>{below}</mrow></mfrac>"]
            elif token.text == "*":
                self.take()
                done += self.multiplied(_joined_by(product), self.peek())
                product = [self.factor()]
            elif token.text == "." and token.before and self.peek(1) is not None:
                self.take()
                done += _joined_by(product) + _mo("·")
                product = [self.factor()]
            elif (
                token.kind in ("word", "number")
                or token.text in "([{"
                or (token.text == "|" and self.opens(token))
            ):
                product.append(self.factor())
            else:
                break
        return done + _joined_by(product)

    def multiplied(self, left: str, token: Token | None) -> str:
        scalar = token is not None and (token.kind == "number" or token.text in GREEK)
        if scalar or re.fullmatch(r"<mn>[^<]*</mn>|<mi>[α-ω]</mi>", left):
            return left + '<mspace width="0.2em"/>'
        return left + _mo(self.times)

    def factor(self, bare: bool = False) -> str:
        """A number, name, call or bracket, with its power."""
        token = self.take()
        if token.text == "-":
            return f"<mrow>{_mo('−')}{self.factor()}</mrow>"
        if token.kind == "number":
            base = f"<mn>{token.text}</mn>"
        elif token.kind == "word":
            base = self.named(token)
        elif token.text in "([{":
            base = self.bracket(token)
        elif token.text == "|":
            inside = self.row(lambda t: t.text == "|" and not t.before)
            self.take("|")
            base = f"<mrow>{_mo('|')}{inside}{_mo('|')}</mrow>"
        else:
            raise EquationError(f"unexpected {token.text!r}")
        while (sign := self.peek()) is not None and sign.text in ("^", "**", "_"):
            if self.take().text == "_":
                base = f"<msub>{base}<mrow>{_index(self.take().text)}</mrow></msub>"
            else:
                base = _raised(base, self.factor(bare=True))
        return _bare(base) if bare else base

    def bracket(self, token: Token) -> str:
        closing = {"(": ")", "[": "]", "{": "}"}[token.text]
        inside = self.row(lambda t: t.text == closing)
        self.take(closing)
        return f"<mrow>{_mo(token.text)}{inside}{_mo(closing)}</mrow>"

    def named(self, token: Token) -> str:
        """A symbol, or a function with its arguments."""
        following = self.peek()
        called = following is not None and following.text == "(" and not token.after
        if token.text == "sqrt" and called:
            return f"<msqrt>{_bare(self.bracket(self.take()))}</msqrt>"
        symbol = _symbol(token.text)
        if not called:
            return symbol
        return f"<mrow>{symbol}{_mo('&#x2061;')}{self.bracket(self.take())}</mrow>"


def _symbol(text: str) -> str:
    if text.startswith("`"):
        return f"<mtext>{html.escape(text.strip('`'))}</mtext>"
    match = _NAME.match(text)
    if match is None:
        raise EquationError(f"{text!r} is no name")
    name, digits, mark, below = match.groups()
    if len(name) > 1 and len(below or "") > 2 and not mark and "{" not in below:
        return f"<mtext>{text}</mtext>"
    sizes = digits and "x" in digits
    if name == "sum" and below is not None:
        base = '<mo movablelimits="false">∑</mo>'
    elif name in GREEK or len(name) == 1:
        base = f"<mi>{GREEK.get(name, name)}</mi>"
    else:
        base = f'<mi mathvariant="normal">{name}</mi>'
    index = "".join(filter(None, (digits.replace("x", "×"), "")))
    under = f"<mn>{index}</mn>" if index else ""
    if below is not None:
        inside = below.strip("{}")
        under += inline(inside, whole=False) if "{" in below else _index(inside)
    over = _mo("~" if mark == "~" else "′" * len(mark), "mark") if mark else ""
    if mark == "~":
        base, over = f"<mover>{base}{over}</mover>", ""
    if name == "sum" and under and not sizes:
        return f"<munder>{base}<mrow>{under}</mrow></munder>"
    if under and over:
        return f"<msubsup>{base}<mrow>{under}</mrow>{over}</msubsup>"
    if under:
        return f"<msub>{base}<mrow>{under}</mrow></msub>"
    return f"<msup>{base}{over}</msup>" if over else base


def _index(text: str) -> str:
    """`ij` is i and j, `old` a word."""
    if len(text) <= 2:
        return "".join(f"<mi>{c}</mi>" for c in text)
    if text in GREEK:
        return f"<mi>{GREEK[text]}</mi>"
    return f"<mtext>{text.replace('x', '×') if 'RxR' in text else text}</mtext>"


def _raised(base: str, power: str) -> str:
    if match := re.fullmatch(r"<msub>(.*)</msub>", base):
        return f"<msubsup>{match[1]}<mrow>{power}</mrow></msubsup>"
    return f"<msup>{base}<mrow>{power}</mrow></msup>"


def _bare(part: str) -> str:
    """Without the round brackets that stand around all of it."""
    opened, closed = f"<mrow>{_mo('(')}", f"{_mo(')')}</mrow>"
    if not (part.startswith(opened) and part.endswith(closed)):
        return part
    inside = part[len(opened) : -len(closed)]
    depth = 0
    for found in re.finditer(r"<(/?)mrow>", inside):
        depth += -1 if found[1] else 1
        if depth < 0:
            return part
    return f"<mrow>{inside}</mrow>"


def _joined_by(parts: list[str]) -> str:
    """A product: more space beside names of several letters."""
    text = parts[0]
    for before, part in itertools.pairwise(parts):
        wide = any(
            'variant="normal"' in p[:30] or "<mtext" in p[:8] for p in (before, part)
        )
        text += f'<mspace width="{0.28 if wide else 0.14}em"/>{part}'
    return text


def _mo(sign: str, kind: str = "") -> str:
    return f'<mo class="{kind}">{sign}</mo>' if kind else f"<mo>{sign}</mo>"
