"""`python -m d2v_lightning.checkpoints inspect|import|export`: see `d2v_lightning.convert`."""

import sys

from d2v_lightning.convert import main

if __name__ == "__main__":
    sys.exit(main())
