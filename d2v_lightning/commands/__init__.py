"""What people type: the one floor above both packages."""

import sys

from d2v_lightning.configurable import own_package
from d2v_lightning.support.errors import UserError

try:
    own_package("datamodules")  # before a command fails to import what another package of that name lacks
except UserError as error:
    sys.exit(f"error: {error}")
