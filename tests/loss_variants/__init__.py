"""Every way to use a loss that the common contract is tested on: one module per family, each with its VARIANTS."""

from importlib import import_module
from pkgutil import iter_modules

from loss_variant import Variant

VARIANTS: dict[str, Variant] = {
    name: variant
    for module in iter_modules(__path__)
    for name, variant in import_module(f"{__name__}.{module.name}").VARIANTS.items()
}
