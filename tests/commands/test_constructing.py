"""Whose constructor refuses a setting is said; a refusal for people stays as it is, and none is caught on its way."""

from __future__ import annotations

from typing import Any

import pytest

from d2v_lightning import Encoder
from d2v_lightning.commands.constructing import ConstructorError, construct
from d2v_lightning.flavour import pl
from d2v_lightning.pretrain.pretraining import Pretraining
from d2v_lightning.support.errors import UserError


class Part:
    def __init__(self, error: Exception | None = None) -> None:
        if error is not None:
            raise error


def refused(error: Exception, cls: Any = Part) -> Exception:
    with pytest.raises(ConstructorError) as raised:
        construct(cls, error)
    assert not isinstance(raised.value, Exception), "jsonargparse would catch it"
    return raised.value.error


def test_an_instance_is_made() -> None:
    assert isinstance(construct(Part, error=None), Part)


def test_a_refusal_for_people_stays_as_it_is() -> None:
    error = UserError("lr is -1: it must not be negative")
    assert refused(error) is error


@pytest.mark.parametrize(
    ("error", "said"),
    [(ZeroDivisionError("division\nby zero"), "division by zero"), (AssertionError(), "AssertionError")],
)
def test_a_value_that_nobody_thought_of_is_said_with_the_name_of_the_class(error: Exception, said: str) -> None:
    found = refused(error)
    assert isinstance(found, UserError)
    assert str(found) == f"Part cannot be made with these settings: {said}"
    assert found.__cause__ is error
    assert str(refused(error, lambda error: Part(error))).startswith("Trainer cannot be made")


@pytest.mark.parametrize("cls", [Encoder, Pretraining, pl.callbacks.BaseFinetuning])
def test_a_class_that_is_there_for_its_subclasses_is_refused(cls: type) -> None:
    with pytest.raises(ConstructorError) as raised:
        construct(cls)
    assert str(raised.value.error) == f"{cls.__name__} is only a base of other classes: name one of those"
    assert construct(type("Encoder", (), {})), "one of the user's that is only called so"


def test_any_other_error_is_carried_as_it_is() -> None:
    error = StopIteration("a fault")
    assert refused(error) is error
