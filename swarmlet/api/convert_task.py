"""Tasks as Docker shows them, and the names and labels of their containers.

Pure.
"""

from __future__ import annotations

from typing import Any

from swarmlet.api.convert_network import write_network_brief
from swarmlet.api.convert_service import write_task_template
from swarmlet.api.fields import timestamp
from swarmlet.manager.view import View
from swarmlet.model import (
    Desired,
    Network,
    Observation,
    Service,
    Task,
    TaskState,
    TaskTemplate,
)

#: What the log says of a task's end is shown behind its error, up to so many characters.
ERROR_LINE_CHARACTERS = 200

_DESIRED = {
    Desired.READY: "ready",
    Desired.RUNNING: "running",
    Desired.SHUTDOWN: "shutdown",
    Desired.REMOVE: "remove",
}


def write_task(task: Task, view: View, template: TaskTemplate | None) -> dict[str, Any]:
    """The record of *task*; *template* is what it was made from, if that is still known."""
    seen = view.status_of(task)
    document: dict[str, Any] = {
        "ID": task.id,
        "Version": {"Index": task.version},
        "CreatedAt": timestamp(task.created_at),
        "UpdatedAt": timestamp(task.updated_at),
        "Labels": {},
        "Spec": write_task_template(template) if template is not None else {},
        "ServiceID": task.service,
    }
    if task.slot:
        document["Slot"] = task.slot
    if task.node:
        document["NodeID"] = task.node
    document["Status"] = _write_status(task, seen)
    document["DesiredState"] = desired_of(task)
    attachments = [
        _write_attachment(endpoint.address, network)
        for endpoint in task.endpoints
        if (network := view.state.networks.get(endpoint.network)) is not None
    ]
    if attachments:
        document["NetworksAttachments"] = attachments
    return document


def desired_of(task: Task) -> str:
    """What is wanted of *task*, as Docker shows it: one that has ended is wanted no more."""
    if task.outcome is not None and task.desired <= Desired.RUNNING:
        return "shutdown"
    return _DESIRED[task.desired]


def state_name(state: TaskState) -> str:
    return state.name.lower()


def task_name(task: Task, service: Service | None) -> str:
    """`web.1.<id>`, or `web.<node>.<id>` for a task of a global service."""
    name = service.spec.name if service is not None else task.service
    return f"{name}.{task.slot or task.node}.{task.id}"


def error_of(seen: Observation) -> str:
    """Why a task failed, with the last line that it wrote: most often it says just that."""
    if not seen.error:
        return ""
    last = next((line.strip() for line in reversed(seen.log_tail) if line.strip()), "")
    if not last or last in seen.error or seen.state is not TaskState.FAILED:
        return seen.error
    return f"{seen.error}; its last words: {last[:ERROR_LINE_CHARACTERS]}"


def _write_status(task: Task, seen: Observation) -> dict[str, Any]:
    status: dict[str, Any] = {
        "Timestamp": timestamp(seen.at or task.updated_at),
        "State": state_name(seen.state),
        "Message": seen.message,
    }
    if error := error_of(seen):
        status["Err"] = error
    if seen.container or seen.pid or seen.exit_code is not None:
        status["ContainerStatus"] = {
            "ContainerID": seen.container,
            "PID": seen.pid,
            "ExitCode": seen.exit_code or 0,
        }
    status["PortStatus"] = {}
    # Ours: Docker's client does not read it.
    if seen.log_tail:
        status["LogTail"] = list(seen.log_tail)
    if seen.attempt:
        status["Attempt"] = seen.attempt
    return status


def _write_attachment(address: str, network: Network) -> dict[str, Any]:
    prefix = network.subnet.partition("/")[2]
    return {
        "Network": write_network_brief(network),
        "Addresses": [f"{address}/{prefix}"] if address else [],
    }
