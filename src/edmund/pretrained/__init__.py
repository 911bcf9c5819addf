"""The field's published networks as models of edmund: read safely, checked, with the published behaviour."""

from edmund.pretrained.files import load
from edmund.pretrained.folder import LeftOut
from edmund.pretrained.original import from_state_dict

__all__ = ["LeftOut", "from_state_dict", "load"]
