"""The rules of training by the section of a config that asks for them."""

from collections.abc import Callable, Mapping
from typing import Any

from normjax.core.errors import UserError
from normjax.tasks import Task
from normjax.train.adversarial import ConcurrentAdversarial
from normjax.train.recorded import RecordedTeacher
from normjax.train.rule import Rule
from normjax.train.self_distill import SelfDistillation
from normjax.train.teacher import taught

RULES: Mapping[str, Callable[[Any, Task, Any], Rule]] = {
    "distill.path": taught,
    "distill.records": lambda config, task, _: RecordedTeacher(config, task),
    "self_distill.weight": lambda config, task, _: SelfDistillation(config, task),
    "adversarial.epsilon": lambda config, task, _: ConcurrentAdversarial(config, task),
}
"""By the field that asks for one, where it is neither empty nor 0: what makes the rule
of (config, task, build_model)."""


def rule_of(config: Any, task: Task, build_model: Any) -> Rule:
    """The rule that a config asks for.

    Args:
      build_model: (config, **arguments) -> the model of a run.

    Raises:
      UserError: two of them, or what does not go with it.
    """
    field = asked(config)
    return RULES[field](config, task, build_model) if field else Rule()


def asked(config: Any) -> str:
    """The field of a config that asks for a rule, or "".

    Raises:
      UserError: two of them, or one that needs another.
    """
    if _value(config, "distill.features") and not _value(config, "distill.path"):
        raise UserError("config.distill.features needs config.distill.path")
    fields = [field for field in RULES if _value(config, field)]
    if len(fields) > 1:
        names = " and ".join(f"config.{field}" for field in fields)
        raise UserError(f"{names} do not go together: choose one")
    return fields[0] if fields else ""


def _value(config: Any, field: str) -> Any:
    section, name = field.split(".")
    return config[section].get(name)
