"""Cells that several tests build."""

from typing import Any

from fewshot.memory.cell import MemoryCell
from fewshot.memory.lrua import Lrua

OF_THE_CELL = ("controller", "hidden_size", "tie", "intervention")


def lrua_cell(input_size: int, label_size: int, **options: Any) -> MemoryCell:
    """A cell with a least recently used memory, from the options of both."""
    of_cell = {name: value for name, value in options.items() if name in OF_THE_CELL}
    of_memory = {name: value for name, value in options.items() if name not in OF_THE_CELL}
    return MemoryCell(input_size, label_size, **of_cell, memory=Lrua(**of_memory))
