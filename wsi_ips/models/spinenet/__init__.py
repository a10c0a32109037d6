"""SpineNet (Du et al., CVPR 2020): backbones whose blocks change scale in a learned order.

Importing this package registers ``spinenet49s``, ``spinenet49``, ``spinenet96``, ``spinenet143``,
``spinenet143l``, ``spinenet190``, ``r0_sp53``, ``r23_sp30`` and ``r50_sp0`` with ``timm.create_model``.
:func:`create_spinenet` builds a network from any specification.
"""

from wsi_ips.models.spinenet.backbone import SpineNet
from wsi_ips.models.spinenet.registry import MEMBERS, create_spinenet
from wsi_ips.models.spinenet.specification import Block, Specification, load_specification

__all__ = ["MEMBERS", "Block", "Specification", "SpineNet", "create_spinenet", "load_specification"]
