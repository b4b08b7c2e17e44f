"""Making objects from settings, and saying whose constructor refuses them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from d2v_lightning.commands.running import one_line
from d2v_lightning.commands.signatures import is_base
from d2v_lightning.support.errors import UserError, flat

# What a constructor raises that was written without a thought of the value at hand.
_OF_VALUES = (TypeError, ValueError, LookupError, ArithmeticError, AttributeError, AssertionError, RuntimeError)


class ConstructorError(BaseException):
    """Carries what a constructor raised past jsonargparse, which catches every `Exception`."""

    def __init__(self, error: Exception) -> None:
        super().__init__(error)
        self.error = error


def construct(cls: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    """An instance; what comes of a value that its constructor cannot use is said with the name of the class."""
    if isinstance(cls, type) and is_base(cls):
        raise ConstructorError(UserError(f"{cls.__name__} is only a base of other classes: name one of those"))
    try:
        return cls(*args, **kwargs)
    except _OF_VALUES as error:
        if one_line(error) is not None:
            raise ConstructorError(error) from error
        name = cls.__name__ if isinstance(cls, type) else "Trainer"
        reason = flat(error) or type(error).__name__
        refusal = UserError(f"{name} cannot be made with these settings: {reason}")
        refusal.__cause__ = error
        raise ConstructorError(refusal) from error
    except Exception as error:
        raise ConstructorError(error) from error
