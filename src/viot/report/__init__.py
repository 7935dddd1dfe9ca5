"""What a person sees of a population: pictures, a page, a verdict."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .files import write_images
from .page import notebook, page
from .pictures import to_pil
from .sheet import contact_sheet
from .text import samples_text
from .verdict import Verdict, verdict

if TYPE_CHECKING:
    from ..population import Population

__all__ = ["Verdict", "contact_sheet", "notebook", "page", "save_report", "to_pil", "verdict"]


def save_report(population: Population, folder: str | Path) -> list[dict[str, Any]]:
    """Write samples.png and images/ (or samples.txt), and report.html into `folder`, each file whole or not at all.

    Returns what run.json says of the pictures' files: none for videos, whose frames are on the sheet. Without Pillow the pictures are left out and a warning says so; points in space have no samples.png, the page plots them.
    """
    from ..population import write_text

    folder = Path(folder)
    images: list[dict[str, Any]] = []
    if population.modality == "text":
        write_text(folder / "samples.txt", samples_text(population))
    elif population.modality in ("images", "video"):
        try:
            sheet = contact_sheet(population)
            images = write_images(population, folder) if population.modality == "images" else []
        except ImportError as error:
            warnings.warn(f"the pictures were not written: {error}", UserWarning, stacklevel=3)
        else:
            partial = folder / "samples.png.part"
            # Trying every way to pack a large sheet takes longer than all else here, and wins a few per cent.
            sheet.save(partial, format="PNG", optimize=sheet.width * sheet.height < 1_000_000)
            os.replace(partial, folder / "samples.png")
    write_text(folder / "report.html", page(population))
    return images
