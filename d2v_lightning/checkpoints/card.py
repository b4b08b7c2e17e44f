"""The model card: what a directory of weights is, where it comes from and what one may do with it."""

from __future__ import annotations

from d2v_lightning.checkpoints.content import NON_COMMERCIAL, Content
from d2v_lightning.checkpoints.shareable import shareable

_PACKAGE = """\
```python
from d2v_lightning import {name}

model = {name}.from_pretrained("this directory")
```
"""
_TRANSFORMERS = """\
```python
from transformers import {name}

model = {name}.from_pretrained("this directory")
```
"""


def card(content: Content, transformers: str | None) -> str:
    """Markdown, with the header that the model hub reads. Where files lay on its writer's computer is left out.

    Args:
        transformers: class of `transformers` that loads the directory; None where only this package does.
    """
    name = str(content.tree["class_path"]).rpartition(".")[2]
    header = ["tags:", "- data2vec", f"library_name: {'transformers' if transformers else 'd2v_lightning'}"]
    if content.licence:
        header.append(f"license: {content.licence}")
    loads = _TRANSFORMERS.format(name=transformers) if transformers else _PACKAGE.format(name=name)
    if not transformers:
        loads += "\n`transformers` has no class for this network: it loads with the package d2v_lightning only.\n"
    return "\n".join(
        [
            "---",
            *header,
            "---",
            "",
            f"# {content.kind[0].upper()}{content.kind[1:]}",
            "",
            loads,
            "## Licence",
            "",
            licence_said(content.licence),
            "",
            "## Metrics",
            "",
            "\n".join(f"- {name}: {value:.4g}" for name, value in sorted(content.metrics.items())) or "None recorded.",
            "",
            "## Data",
            "",
            *(["```", *settings({"data": shareable(content.data)}), "```"] if content.data else ["Not recorded."]),
            "",
            "## Recipe",
            "",
            "```",
            *settings(shareable(content.tree["init_args"])),
            "```",
            "",
        ]
    )


def licence_said(licence: str | None) -> str:
    """A sentence on what one may do with weights."""
    if licence == NON_COMMERCIAL:
        return (
            "Meta's released image weights, and what is made from them, are for non-commercial use (CC-BY-NC 4.0). "
            "Weights that you trained yourself are yours."
        )
    if licence:
        return f"Meta's released weights of this kind: {licence}. Weights that you trained yourself are yours."
    return "Not recorded: the weights are their trainer's."


def settings(value: object, depth: int = 0) -> list[str]:
    """Constructor arguments, indented, classes by their short names."""
    lines = []
    for name, item in value.items() if isinstance(value, dict) else ():
        if isinstance(item, dict) and "class_path" in item:
            lines.append(f"{'  ' * depth}{name}: {str(item['class_path']).rpartition('.')[2]}")
            lines += settings(item.get("init_args") or {}, depth + 1)
        elif isinstance(item, dict) and any(isinstance(inside, dict) for inside in item.values()):
            lines += [f"{'  ' * depth}{name}:", *settings(item, depth + 1)]
        else:
            text = str(item)
            lines.append(f"{'  ' * depth}{name}: {text if len(text) <= 100 else text[:97] + '...'}")
    return lines
