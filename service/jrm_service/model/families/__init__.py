"""Families of backbones: everything that differs between them is in one small file for each.

docs/families.md says how to add one.
"""

from __future__ import annotations

from .family import Config, Family, ImageTables, text_head_dim
from .qwen2_5_vl import Qwen25VL
from .qwen2_vl import Qwen2VL
from .qwen3_vl import Qwen3VL

__all__ = ["FAMILIES", "Config", "Family", "ImageTables", "family_of", "text_head_dim"]

FAMILIES: dict[str, Family] = {family.model_type: family for family in (Qwen3VL(), Qwen25VL(), Qwen2VL())}
"""By ``model_type``."""


def family_of(config: Config) -> Family:
    """The family that a configuration belongs to. Raises KeyError for one that is not served."""
    return FAMILIES[config.model_type]
