"""Every network by its name. A literal dict: what stands here is all there is, and importing it builds nothing."""

from collections.abc import Callable
from importlib import import_module
from typing import Any

from torch import nn

from cmunext.errors import InputError, UsageError
from cmunext.networks.attention_unet import AttentionUNet
from cmunext.networks.cmunet import CMUNet
from cmunext.networks.cmunext import cmunext, cmunext_l, cmunext_plain_skip, cmunext_s
from cmunext.networks.convunext import ConvUNeXt
from cmunext.networks.medt import MedT
from cmunext.networks.mobile_uvit import MobileUViT, mobile_uvit_l
from cmunext.networks.swin_unet import SwinUNet
from cmunext.networks.transunet import TransUNet
from cmunext.networks.unet import UNet, reduced_unet
from cmunext.networks.unet3_plus import UNet3Plus
from cmunext.networks.unet_plus_plus import UNetPlusPlus
from cmunext.networks.unext import UNeXt

BUILDERS: dict[str, Callable[..., nn.Module]] = {
    # Tables 1 and 2 of the CMUNeXt paper
    "cmunext-s": cmunext_s,
    "cmunext": cmunext,
    "cmunext-l": cmunext_l,
    "unet": UNet,
    "attention-unet": AttentionUNet,
    "unet++": UNetPlusPlus,
    "unet3+": UNet3Plus,
    "cmunet": CMUNet,
    "transunet": TransUNet,
    "medt": MedT,
    "swin-unet": SwinUNet,
    "unext": UNeXt,
    "convunext": ConvUNeXt,
    # the authors' companion benchmark
    "mobile-uvit": MobileUViT,
    "mobile-uvit-l": mobile_uvit_l,
    # the ablation of Table 3, between "unet" and "cmunext"
    "reduced-unet": reduced_unet,
    "cmunext-plain-skip": cmunext_plain_skip,
}


def names() -> tuple[str, ...]:
    """The names that `create` knows, in the order of the paper's tables."""
    return tuple(BUILDERS)


def create(name: str, in_channels: int = 3, num_classes: int = 1, **arguments: Any) -> nn.Module:
    """Build a network with its default initialisation.

    Parameters
    ----------
    name : one of `names()`, or "module:callable" for a network of your own, called with the same arguments.
    in_channels, num_classes : channels of the input and of the logits.
    arguments : what else the network takes (`image_size=` for medt, swin-unet and transunet; `pretrained=` a local file for
        unet++ and transunet).

    Raises
    ------
    UsageError : when the name is not known, or the arguments do not fit it.
    InputError : when a file given as `pretrained` holds something else.
    """
    try:
        return builder(name)(in_channels=in_channels, num_classes=num_classes, **arguments)
    except InputError:
        raise
    except (TypeError, ValueError) as error:
        given = {"in_channels": in_channels, "num_classes": num_classes, **arguments}
        raise UsageError(f"network {name} cannot be built with {given}: {error}") from error


def builder(name: str) -> Callable[..., nn.Module]:
    """What builds a network: from `names()`, or "module:callable". Raises UsageError when the name is not known."""
    return BUILDERS.get(name) or _imported(name)


def _imported(name: str) -> Callable[..., nn.Module]:
    module, _, attribute = name.partition(":")
    if not attribute:
        raise UsageError(f"there is no network {name!r}; choose one of {', '.join(BUILDERS)}, or module:callable")
    try:
        found = getattr(import_module(module), attribute)
    except (ImportError, AttributeError, TypeError, ValueError) as error:  # the last two for names such as ".a" and ""
        raise UsageError(
            f"network {name!r} cannot be imported ({error}); give module:callable, the module in a folder of PYTHONPATH"
        ) from error
    if not callable(found):
        raise UsageError(f"network {name!r} is {found!r}, which builds nothing; give module:callable")
    return found
