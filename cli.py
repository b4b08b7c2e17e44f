"""fit, validate, test and predict from YAML and the command line: `python cli.py --help`."""

import d2v_lightning  # noqa: F401  # the imports make the short class names of YAML files known
import datamodules  # noqa: F401
from d2v_lightning.command_line import main

if __name__ == "__main__":
    main()
