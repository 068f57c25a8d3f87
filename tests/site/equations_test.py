"""Equations of docstrings as MathML."""

import re

import pytest

from tests.api.names import names
from tests.site import equations


def plain(text, **options):
    """Elements without attributes and without space."""
    found = equations.inline(text, **options)
    return re.sub(r' [a-z]+="[^"]*"|<mspace[^>]*/>|</?mrow>', "", found)[6:-7]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a / b c", "<mfrac><mi>a</mi><mi>b</mi></mfrac><mi>c</mi>"),
        ("a b / (c + 1)", "<mfrac><mi>a</mi><mi>b</mi><mi>c</mi><mo>+</mo><mn>1</mn>"
         "</mfrac>"),
        ("x**2", "<msup><mi>x</mi><mn>2</mn></msup>"),
        ("v_j^T", "<msubsup><mi>v</mi><mi>j</mi><mi>T</mi></msubsup>"),
        ("k'_j", "<msubsup><mi>k</mi><mi>j</mi><mo>′</mo></msubsup>"),
        ("sqrt(K)", "<msqrt><mi>K</mi></msqrt>"),
        ("2 a - |x|", "<mn>2</mn><mi>a</mi><mo>−</mo><mo>|</mo><mi>x</mi><mo>|</mo>"),
        ("q . k", "<mi>q</mi><mo>·</mo><mi>k</mi>"),
        ("g * h", "<mi>g</mi><mo>⊙</mo><mi>h</mi>"),
        ("lam * h", "<mi>λ</mi><mi>h</mi>"),
        ("W1 x", "<msub><mi>W</mi><mn>1</mn></msub><mi>x</mi>"),
        ("a <- weight_decay", "<mi>a</mi><mo>←</mo><mtext>weight_decay</mtext>"),
    ],
)  # fmt: skip
def test_notation(text, expected):
    assert plain(text) == expected


@pytest.mark.parametrize("text", ["sqrt(K", "a ) b", "/ b", "what?"])
def test_what_is_no_equation_is_refused(text):
    with pytest.raises(equations.EquationError):
        equations.inline(text)


def test_lines_stand_below_each_other_and_labels_beside():
    found = equations.block("sla    y = f(a,\n         b)\nrelu   y = x      z = 1")
    assert found.count("<mtr>") == 2 and found.count('class="label"') == 2


def test_tags_are_closed_in_every_docstring():
    """Of those that are equations, most."""
    read = 0
    for name in names():
        for block in re.split(r"\n\n+", name.docstring.text):
            if name.rows and block.startswith("    "):
                try:
                    found = equations.block(block)
                except equations.EquationError:
                    continue
                read += 1
                for tag in ("mrow", "mi", "msub", "msubsup", "mfrac", "msqrt", "mtr"):
                    opened = len(re.findall(rf"<{tag}[ >]", found))
                    assert opened == found.count(f"</{tag}>"), (name.path, tag)
    assert read > 60
