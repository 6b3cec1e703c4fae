"""What a teardown may take down: its scopes, and what refuses it before anything is touched. Pure."""

from __future__ import annotations

from collections.abc import Collection
from enum import StrEnum

from nim_rollouts.core.environment import Environment
from nim_rollouts.core.errors import EnvironmentProtected, NimRolloutsError, NotConfirmed, SpecError


class Scope(StrEnum):
    """How much is to go. Each takes what the one before it takes, of every deployment."""

    DEPLOYMENT = "deployment"
    PLATFORM = "platform"
    EVERYTHING = "everything"


def refusals(
    environment: Environment, scope: str, deployment: str, confirm: str, known: Collection[str]
) -> list[NimRolloutsError]:
    """Every reason not to begin; empty when there is none.

    :param confirm: the environment's name, as somebody typed it
    :param known: deployments that exist as a file, or that were ever claimed
    """
    if scope not in tuple(Scope):
        return [SpecError(f'scope "{scope}" is neither {", ".join(Scope)}', hint="Choose one")]
    if scope == Scope.DEPLOYMENT:
        return [] if deployment in known else [_unknown(deployment, known)]
    found: list[NimRolloutsError] = []
    if deployment:
        found.append(SpecError(f"scope {scope} takes every deployment down, yet one is named",
                               hint="Leave deployment empty, or choose the scope deployment"))  # fmt: skip
    if environment.policies.protected:
        found.append(EnvironmentProtected(
            f"the environment {environment.name} is protected: the scope {scope} is refused",
            hint=f"To take it down all the same, set policies.protected to false in include/environments/"
                 f"{environment.name}.yaml and trigger again"))  # fmt: skip
    if confirm != environment.name:
        said = f'is "{confirm}"' if confirm else "is empty"
        found.append(NotConfirmed(
            f"the scope {scope} takes down all of {environment.name}, and the field confirm {said}",
            hint=f'Type "{environment.name}" into confirm and trigger again, if that is what you want'))  # fmt: skip
    return found


def _unknown(deployment: str, known: Collection[str]) -> SpecError:
    listed = ", ".join(sorted(known)) or "none"
    if not deployment:
        return SpecError(f"the scope deployment needs a name, and there is no deployment without one; known: {listed}",
                         reason="deployment-unknown", hint="Name one, or choose another scope")  # fmt: skip
    return SpecError(f'there is no deployment "{deployment}"; known: {listed}',
                     reason="deployment-unknown", hint="Name one that exists")  # fmt: skip
