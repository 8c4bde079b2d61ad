"""Writes the emitted kernel of docs/compiler.md anew: `python docs/emitted.py`. A test holds the page to it."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import nn

from abridged.compiler.emit import emit
from abridged.compiler.pipeline import plan
from abridged.graph.capture import capture

PAGE = Path(__file__).with_name("compiler.md")
BLOCK = re.compile(r"(<!-- emitted: (\w+) -->\n```c\n)(.*?)(```\n<!-- /emitted -->)", re.DOTALL)


def network() -> nn.Module:
    """The network of the page: one pruned convolution and a ReLU."""
    torch.manual_seed(0)
    convolution = nn.Conv2d(4, 8, 3, padding=1)
    with torch.no_grad():
        convolution.weight *= torch.rand_like(convolution.weight) < 0.1
    return nn.Sequential(convolution, nn.ReLU()).eval()


def emitted() -> dict[str, str]:
    """Parts of the network's model.c: the convolution's kernel without its #undef lines, and the function that runs all."""
    text = emit(plan(capture(network(), torch.zeros(1, 4, 14, 14)))).files["model.c"].decode()
    symbol = re.search(r"struct args a = .*?(k\d+)_start", text)
    assert symbol is not None
    kernel = next(part for part in text.split("\n\n#define ") if f"#define SYMBOL {symbol[1]}\n" in part)
    kernel = "#define " + kernel.removeprefix("#define ")
    kernel = kernel[: kernel.index("#undef")].rstrip() + "\n"
    run = text[text.index("void model_run(") : text.rindex("}\n") + 2]
    return {"kernel": kernel, "run": run}


def written(page: str) -> str:
    """The page with the parts as they are emitted today."""
    parts = emitted()
    return BLOCK.sub(lambda found: found[1] + parts[found[2]] + found[4], page)


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
