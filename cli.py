"""fit, validate, test and predict from YAML and the command line: `python cli.py --help`."""

import os
import sys

import d2v_lightning  # noqa: F401  # the imports make the short class names of YAML files known
import datamodules  # noqa: F401
from d2v_lightning.commands.command_line import main

if __name__ == "__main__":
    sys.path.append(os.getcwd())  # a person's own classes; last, so that nothing there hides a library
    main()
