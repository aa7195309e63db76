"""What a worker may see of a spec: everything but the values that tend to be secrets.

Pure.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from swarmlet.model import ContainerTemplate, Service, ServiceSpec, TaskTemplate

MASK = "********"


def mask_service(service: Service) -> Service:
    previous = service.previous_spec
    return dataclasses.replace(
        service,
        spec=mask_spec(service.spec),
        previous_spec=mask_spec(previous) if previous is not None else None,
    )


def mask_spec(spec: ServiceSpec) -> ServiceSpec:
    return dataclasses.replace(spec, task=mask_template(spec.task))


def mask_template(task: TaskTemplate) -> TaskTemplate:
    driver = task.log_driver
    if driver is not None:
        # splunk-token, awslogs-credentials: options of log drivers hold keys.
        driver = dataclasses.replace(driver, options=_mask_values(driver.options))
    return dataclasses.replace(task, container=_mask_container(task.container), log_driver=driver)


def _mask_container(container: ContainerTemplate) -> ContainerTemplate:
    mounts = tuple(
        # o=username=…,password=… of a CIFS volume.
        dataclasses.replace(mount, driver_options=_mask_values(mount.driver_options))
        for mount in container.mounts
    )
    env = tuple(_mask_variable(entry) for entry in container.env)
    return dataclasses.replace(container, env=env, mounts=mounts)


def _mask_variable(entry: str) -> str:
    name, separator, _ = entry.partition("=")
    return f"{name}={MASK}" if separator else entry


def _mask_values(values: Mapping[str, str]) -> dict[str, str]:
    return dict.fromkeys(values, MASK)
