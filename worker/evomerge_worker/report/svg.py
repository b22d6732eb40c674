"""SVG elements as escaped markup."""

from markupsafe import Markup, escape


def element(tag: str, *children: str, **attributes: object) -> Markup:
    """An element; text among `children` is escaped, markup is not. `class_` stands for class, `stroke_width` for
    stroke-width."""
    pairs = Markup("").join(
        Markup(' {}="{}"').format(name.rstrip("_").replace("_", "-"), _attribute(value))
        for name, value in attributes.items()
    )
    inner = Markup("").join(escape(child) for child in children)
    return Markup("<{0}{1}>{2}</{0}>").format(tag, pairs, inner) if inner else Markup("<{}{}/>").format(tag, pairs)


def picture(width: float, height: float, label: str, *children: str, class_: str = "chart") -> Markup:
    """A chart that scales with the page; `label` says in words what is to be seen."""
    return element(
        "svg",
        *children,
        class_=class_,
        viewBox=f"0 0 {number(width)} {number(height)}",
        role="img",
        aria_label=label,
    )


def number(value: float) -> str:
    """A coordinate to a tenth of a pixel."""
    return f"{value:.1f}".removesuffix(".0")


def _attribute(value: object) -> str:
    return number(value) if isinstance(value, float) else str(value)
